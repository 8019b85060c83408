package manifest_test

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"podwire.dev/internal/manifest"
)

// endless gives a text again and again, and counts what was taken of it.
type endless struct {
	text  string
	at    int
	taken int64
	most  int64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.taken >= e.most {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = e.text[e.at]
		e.at = (e.at + 1) % len(e.text)
	}
	e.taken += int64(len(p))
	return len(p), nil
}

const head = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"

// TestBombs feeds what is small to write and big to read.
func TestBombs(t *testing.T) {
	kinds := builtin(t)
	laughs := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	for name, c := range map[string]struct {
		in   string
		want string
	}{
		"aliases":        {laughs, "aliases stand for more than 100000 values"},
		"merged aliases": {"a: &a {" + strings.Repeat("k: v, ", 3000) + "}\n" + strings.Repeat("b: {<<: [*a, *a, *a, *a]}\n", 3000), "aliases stand for more than 100000 values"},
		"flow depth":     {head + "  affinity: " + strings.Repeat("{a: ", 200) + strings.Repeat("}", 200), "nested more than 64 deep"},
		"block depth":    {head + "  affinity: " + strings.Repeat("- ", 9000), "not valid YAML"},
		"list depth":     {"a:\n  " + strings.Repeat("- ", 9000) + "b", "nested more than 64 deep"},
		"json depth":     {`{"a": ` + strings.Repeat("[", 9999) + strings.Repeat("]", 9999) + "}", "nested more than 64 deep"},
		"json very deep": {`{"a": ` + strings.Repeat("[", 1<<20), "nested more than 64 deep"},
		"brackets":       {strings.Repeat("[", 4<<20), "document is too big"},
		"commas":         {"a: [" + strings.Repeat(",", 4<<20) + "]", "document is too big"},
		"json commas":    {`{"a": [0` + strings.Repeat(",0", 3<<20) + "]}", "more than 1000000 values"},
		"documents":      {strings.Repeat("--- {}\n", 60_000), "more than 50000 documents"},
		"json documents": {strings.Repeat("{}\n", 60_000), "more than 50000 documents"},
		"not text":       {"a: b\n\xff\xfe", "in:2: not UTF-8 text"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifest.Parse(kinds, "in", strings.NewReader(c.in), manifest.DefaultLimits())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %.300v, want %q", err, c.want)
			}
		})
	}
}

// TestSize offers 100 MB and looks at how much of it was read and held.
func TestSize(t *testing.T) {
	kinds := builtin(t)
	for _, text := range []string{head + "---\n", "#", `{"apiVersion": "v1", "a": "`, "a: [b, c]\n"} {
		in := &endless{text: text, most: 100 << 20}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := manifest.Parse(kinds, "big.yaml", in, manifest.DefaultLimits())
		runtime.ReadMemStats(&after)
		if err == nil || err.Error() != "big.yaml: bigger than 8388608 bytes; split it" {
			t.Errorf("got %.200v", err)
		}
		if in.taken > 32<<20 {
			t.Errorf("took %d bytes", in.taken)
		}
		if held := after.TotalAlloc - before.TotalAlloc; held > 96<<20 {
			t.Errorf("allocated %d bytes", held)
		}
	}
}

// TestFull parses a source near the limit of size: 1,000 Services and their
// endpoints.
func TestFull(t *testing.T) {
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec: {ports: [{port: 80}], selector: {app: a%d}}\n", i, i)
		fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s%d}\naddressType: IPv4\nendpoints:\n", i)
		for j := range 10 {
			fmt.Fprintf(&b, "- addresses: [10.%d.%d.%d]\n  conditions: {ready: true}\n", i/250, i%250, j)
		}
	}
	if got := len(parse(t, b.String())); got != 2000 {
		t.Errorf("got %d objects", got)
	}
}

func TestManyProblemsAreCut(t *testing.T) {
	_, err := manifest.Parse(builtin(t), "in", strings.NewReader(strings.Repeat("---\na: b\n", 200)), manifest.DefaultLimits())
	var listed *manifest.Error
	if !errors.As(err, &listed) || len(listed.Problems) != 100 || listed.More != 300 {
		t.Fatalf("got %.200v", err)
	}
	if !strings.HasSuffix(err.Error(), "\nand 300 more") {
		t.Error("the rest is not counted")
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

func TestReadError(t *testing.T) {
	_, err := manifest.Parse(builtin(t), "f.yaml", broken{}, manifest.DefaultLimits())
	if err == nil || err.Error() != "manifest: read f.yaml: disk on fire" {
		t.Errorf("got %v", err)
	}
}
