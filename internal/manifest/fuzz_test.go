package manifest_test

import (
	"errors"
	"strings"
	"testing"

	"podwire.dev/internal/manifest"
)

// FuzzParse feeds Parse anything. What it refuses, it refuses with an Error; what
// it accepts, Encode prints in a form that parses to the same.
func FuzzParse(f *testing.F) {
	kinds := builtin(f)
	for _, name := range files(f, "testdata/mission/*.yaml", "testdata/docs/*.yaml", "testdata/kubectl/*.json", "testdata/errors/*.txtar") {
		f.Add(string(read(f, name)))
		for _, doc := range strings.Split(string(read(f, name)), "---\n") {
			f.Add(doc)
		}
	}
	limits := manifest.DefaultLimits()
	limits.Bytes, limits.Values, limits.Aliased = 1<<16, 1<<14, 1<<12
	f.Fuzz(func(t *testing.T, text string) {
		objects, err := manifest.Parse(kinds, "in", strings.NewReader(text), limits)
		var listed *manifest.Error
		if err != nil && (!errors.As(err, &listed) || len(listed.Problems) == 0 || objects != nil) {
			t.Fatalf("got %v with %v", objects, err)
		}
		for _, o := range objects {
			sameAgain(t, kinds, o)
		}
	})
}
