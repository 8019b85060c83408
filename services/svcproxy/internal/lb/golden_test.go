package lb_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"podwire.dev/services/svcproxy/internal/lb"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden runs stories: an archive puts objects (*.yaml), deletes some (*.delete: kind and namespace/name per line),
// and after each such step states what was written, what is stored and what nodes hold (*.want).
func TestGolden(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) { tell(t, name) })
	}
}

func tell(t *testing.T, name string) {
	archive, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s := newSim(t)
	wants := 0
	for i, file := range archive.Files {
		text := string(file.Data)
		switch filepath.Ext(file.Name) {
		case ".yaml":
			for _, o := range objects(t, text) {
				s.put(o)
			}
		case ".delete":
			for line := range strings.Lines(text) {
				kind, at, _ := strings.Cut(strings.TrimSpace(line), " ")
				ns, object, _ := strings.Cut(at, "/")
				s.remove(kind, lb.Ref{Namespace: ns, Name: object})
			}
		case ".want":
			wants++
			s.settle()
			got := s.String()
			if *update {
				archive.Files[i].Data = []byte(got)
			} else if got != text {
				t.Errorf("%s: got\n%s\nwant\n%s", file.Name, got, text)
			}
		default:
			t.Fatalf("file %s", file.Name)
		}
	}
	if wants == 0 {
		t.Fatal("a story states what is wanted")
	}
	if *update {
		if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
