package manifest_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestErrors parses in.yaml or in.json of each archive and compares every line of
// the error with the file want.
func TestErrors(t *testing.T) {
	kinds := builtin(t)
	for _, name := range files(t, "testdata/errors/*.txtar") {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) != 2 || archive.Files[1].Name != "want" {
				t.Fatal("an archive holds the input and want")
			}
			in := archive.Files[0]
			_, err = manifest.Parse(kinds, in.Name, strings.NewReader(string(in.Data)), manifest.DefaultLimits())
			if err == nil {
				t.Fatal("accepted")
			}
			var listed *manifest.Error
			if !errors.As(err, &listed) {
				t.Fatalf("got a %T: %v", err, err)
			}
			if !errs.Is(err, errs.Invalid) || len(errs.ViolationsOf(err)) != len(listed.Problems) {
				t.Errorf("as errs has it: kind %v, violations %v", errs.KindOf(err), errs.ViolationsOf(err))
			}
			got := err.Error() + "\n"
			if *update {
				archive.Files[1].Data = []byte(got)
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(archive.Files[1].Data); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}
