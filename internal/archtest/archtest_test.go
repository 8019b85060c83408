package archtest

import (
	"bytes"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

var rules = slices.Concat(roomRules, doorRules(&podwire), outsideRules, shapeRules, wordRules, commandRules)

// TestTree judges the repository.
func TestTree(t *testing.T) {
	tree, err := LoadTree(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		t.Run(rule.Name, func(t *testing.T) {
			findings := Judge(rule, tree, &podwire, exceptions)
			for _, finding := range findings {
				t.Error(finding)
			}
			if len(findings) > 0 {
				t.Log("the rule: " + rule.Says)
			}
		})
	}
}

// TestSamples judges one small bad tree per rule: each must yield exactly the findings of its file "want", so that
// no rule can pass because it sees nothing. Good code stands beside the bad in each sample.
func TestSamples(t *testing.T) {
	for _, rule := range rules {
		t.Run(rule.Name, func(t *testing.T) {
			tree, want := loadSample(t, rule.Name)
			var got []string
			for _, finding := range Judge(rule, tree, &podwire, nil) {
				got = append(got, finding.String())
			}
			if len(want) == 0 {
				t.Fatal("the sample wants no finding: it proves nothing")
			}
			if diff := difference(want, got); diff != "" {
				t.Errorf("findings (- wanted, + got):\n%s", diff)
			}
		})
	}
}

// TestEmptyTree holds every rule to failing where it has nothing to judge.
func TestEmptyTree(t *testing.T) {
	tree, err := LoadTree(memory(t, &txtar.Archive{Files: []txtar.File{{Name: "empty.bin", Data: []byte{0}}}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		if len(Judge(rule, tree, &podwire, nil)) == 0 {
			t.Errorf("%s passes on an empty tree", rule.Name)
		}
	}
}

// TestExceptions holds exceptions to their place, their reason and their use.
func TestExceptions(t *testing.T) {
	tree, _ := loadSample(t, "goroutines")
	rule := named(t, "goroutines")
	all := len(Judge(rule, tree, &podwire, nil))

	for _, test := range []struct {
		name      string
		exception Exception
		excused   int
		complaint string
	}{
		{"file", Exception{"goroutines", "internal/watch/watch.go", "because a test says so"}, 5, ""},
		{"directory", Exception{"goroutines", "internal", "because a test says so"}, 5, ""},
		{"function", Exception{"goroutines", "internal/watch/watch.go#Hub.Run", "because a test says so"}, 1, ""},
		{"no reason", Exception{"goroutines", "internal", "why not"}, 5, "gives no reason"},
		{"stale", Exception{"goroutines", "internal/gone", "because a test says so"}, 0, "excuses nothing"},
		{"no prefix of a name", Exception{"goroutines", "internal/wat", "because a test says so"}, 0, "excuses nothing"},
		{"another rule", Exception{"no-init", "internal", "because a test says so"}, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			left := Judge(rule, tree, &podwire, []Exception{test.exception})
			complaints := 0
			if test.complaint != "" {
				complaints = 1
				if !slices.ContainsFunc(left, func(f Finding) bool { return strings.Contains(f.Message, test.complaint) }) {
					t.Errorf("no finding says %q: %v", test.complaint, left)
				}
			}
			if want := all - test.excused + complaints; len(left) != want {
				t.Errorf("%d findings left, want %d: %v", len(left), want, left)
			}
		})
	}
}

// TestExceptionsNameRules catches an exception whose rule was renamed: it would never be found stale.
func TestExceptionsNameRules(t *testing.T) {
	for _, exception := range exceptions {
		named(t, exception.Rule)
	}
}

// TestSamplesHaveRules catches a sample that no rule reads.
func TestSamplesHaveRules(t *testing.T) {
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		named(t, strings.TrimSuffix(entry.Name(), ".txtar"))
	}
}

func named(t *testing.T, name string) Rule {
	t.Helper()
	i := slices.IndexFunc(rules, func(r Rule) bool { return r.Name == name })
	if i < 0 {
		t.Fatalf("no rule is named %q", name)
	}
	return rules[i]
}

// repeated is a line of a sample that stands for many: "// ×600".
var repeated = regexp.MustCompile(`(?m)^(.*) ×(\d+)$`)

// loadSample reads testdata/<rule>.txtar: a tree, and in its file "want" one finding per line.
func loadSample(t *testing.T, rule string) (*Tree, []string) {
	t.Helper()
	archive, err := txtar.ParseFile("testdata/" + rule + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	for i := range archive.Files {
		archive.Files[i].Data = repeated.ReplaceAllFunc(archive.Files[i].Data, func(line []byte) []byte {
			match := repeated.FindSubmatch(line)
			times, err := strconv.Atoi(string(match[2]))
			if err != nil {
				t.Fatal(err)
			}
			return bytes.TrimSuffix(bytes.Repeat(append(match[1], '\n'), times), []byte("\n"))
		})
	}
	var want []string
	archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool {
		if f.Name != "want" {
			return false
		}
		want = strings.Split(strings.TrimSpace(string(f.Data)), "\n")
		return true
	})
	tree, err := LoadTree(memory(t, archive))
	if err != nil {
		t.Fatal(err)
	}
	return tree, want
}

func memory(t *testing.T, archive *txtar.Archive) fs.FS {
	t.Helper()
	fsys, err := txtar.FS(archive)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func difference(want, got []string) string {
	var out strings.Builder
	for _, line := range want {
		if !slices.Contains(got, line) {
			out.WriteString("- " + line + "\n")
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			out.WriteString("+ " + line + "\n")
		}
	}
	return out.String()
}
