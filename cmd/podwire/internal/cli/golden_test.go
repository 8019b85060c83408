package cli

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/tools/txtar"

	"podwire.dev/cmd/podwire/internal/lab"
)

var update = flag.Bool("update", false, "write the golden files anew")

func rootOf(a *app) *cobra.Command {
	root := &cobra.Command{Use: "podwire", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(a.commands()...)
	root.SetOut(a.out)
	root.SetErr(a.err)
	return root
}

// TestGolden plays the stories of testdata. The files of an archive:
//
//	objects.yaml            what the store has
//	later.yaml              what every watch hears after its bookmark (annotation test/deleted: it went)
//	nodes                   the nodes that have an agent
//	answer <method>         what a method answers: JSON documents separated by ---, or "error KIND: text"
//	answer <process> <method>
//	answer <method> ~ <part of the request's JSON>
//	outside                 routes of the outside: PREFIX SOURCE [VIA]
//	file <name>             a file in the directory that the commands run in
//	$ <arguments>           a command, and what it prints; each line of stderr begins with "! ", the last line is its status
//	$ <arguments> < <name>  the same with a file as its input
func TestGolden(t *testing.T) {
	stories, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(stories) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, story := range stories {
		t.Run(strings.TrimSuffix(filepath.Base(story), ".txtar"), func(t *testing.T) { play(t, story) })
	}
}

func play(t *testing.T, story string) {
	path, err := filepath.Abs(story)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	f := set(t, archive)
	commands := 0
	for i, file := range archive.Files {
		line, ok := strings.CutPrefix(file.Name, "$ ")
		if !ok {
			continue
		}
		commands++
		got := f.command(t, line)
		if *update {
			archive.Files[i].Data = []byte(got)
		} else if got != string(file.Data) {
			t.Errorf("$ %s\ngot\n%swant\n%s", line, got, file.Data)
		}
	}
	if commands == 0 {
		t.Error("the story has no command")
	}
	if *update {
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// set starts a fake with what the archive has.
func set(t *testing.T, archive *txtar.Archive) *fakeCluster {
	t.Helper()
	var nodes []string
	for _, file := range archive.Files {
		if file.Name == "nodes" {
			nodes = strings.Fields(string(file.Data))
		}
	}
	f := newFake(t, nodes...)
	for _, file := range archive.Files {
		what, name, _ := strings.Cut(file.Name, " ")
		switch what {
		case "objects.yaml":
			f.objects = f.load(string(file.Data))
		case "later.yaml":
			f.later = f.load(string(file.Data))
		case "answer":
			f.canned[name] = strings.Split(string(file.Data), "---\n")
		case "file":
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, file.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		case "outside":
			f.routes = routes(t, string(file.Data))
		case "nodes", "$":
		default:
			t.Fatalf("what is the file %q for?", file.Name)
		}
	}
	return f
}

func routes(t *testing.T, text string) map[netip.Prefix]lab.Route {
	t.Helper()
	out := map[netip.Prefix]lab.Route{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			t.Fatalf("route %q", line)
		}
		r := lab.Route{Source: netip.MustParseAddr(words[1])}
		if len(words) > 2 {
			r.Via = netip.MustParseAddr(words[2])
		}
		out[netip.MustParsePrefix(words[0])] = r
	}
	return out
}

// storyTime bounds one command; --timeout of a story is far below it.
const storyTime = 20 * time.Second

func (f *fakeCluster) command(t *testing.T, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), storyTime)
	defer cancel()
	line, from, redirected := strings.Cut(line, " < ")
	in := strings.NewReader("")
	if redirected {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		in = strings.NewReader(string(text))
	}
	got := f.run(ctx, in, strings.Fields(line)...)
	text := got.out
	for l := range strings.Lines(got.err) {
		text += "! " + l
	}
	return text + fmt.Sprintf("exit %d\n", got.status)
}
