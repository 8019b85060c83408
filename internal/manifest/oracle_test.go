package manifest

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	sigsyaml "sigs.k8s.io/yaml"
)

// plainJSON turns a tree into what encoding/json makes of the same value.
func plainJSON(n *node) any {
	switch n.kind {
	case boolNode:
		return n.bool
	case numberNode:
		return n.number
	case stringNode:
		return n.text
	case listNode:
		out := make([]any, len(n.items))
		for i, item := range n.items {
			out[i] = plainJSON(item)
		}
		return out
	case objectNode:
		out := make(map[string]any, len(n.items))
		for i, item := range n.items {
			out[n.keys[i].name] = plainJSON(item)
		}
		return out
	default:
		return nil
	}
}

// agree compares our reading of a document with that of the library which kubectl
// uses. What only one of the two accepts is not compared.
func agree(t *testing.T, text string) bool {
	t.Helper()
	theirs, err := sigsyaml.YAMLToJSON([]byte(text))
	if err != nil {
		return false
	}
	r := &reader{source: "in", limits: DefaultLimits(), scalars: newScalars()}
	docs := r.yamlSource([]byte(text))
	if len(docs) != 1 || len(r.problems) > 0 {
		return false
	}
	var want any
	if err := json.Unmarshal(theirs, &want); err != nil {
		return false
	}
	a, err := json.Marshal(plainJSON(docs[0]))
	if err != nil {
		return false
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%q: we read %s, kubectl reads %s", text, a, b)
	}
	return true
}

var scalarCases = strings.Fields(`
	y Y yes Yes YES yEs n N no No NO true True TRUE tRUE false off Off OFF on On ON
	~ null Null NULL nULL none None
	0 -0 +1 1_000 010 0o17 0O17 0x1F 0X1f 0b101 -0b11 080 09 0_8 1e3 1E3 1.5e3 .5 5. +.5 -1.5 1e400 .e1
	12345678901234567890 99999999999999999999999 9223372036854775807 -9223372036854775808
	.inf -.inf .nan inf nan
	1.2.3 10.0.0.1 fd00::1 12:30 12:30:45 2001-12-14 2001-12-14T21:59:43Z 20:1 1/2 100m 1Gi 0.5 80.0 1e 1ex 0x 0b2 _1 1_ + 01000080 18446744073709551615
	<< = @a foo foo:bar - a-b 'single' "double" "010" 'yes' "\u0041" !!str\ 1
`)

func TestScalarsAreKubectls(t *testing.T) {
	compared := 0
	for _, s := range scalarCases {
		s = strings.ReplaceAll(s, `\ `, " ")
		for _, text := range []string{"a: " + s, "- " + s, s + ": a", "{a: " + s + "}", "a: |\n  " + s} {
			if agree(t, text) {
				compared++
			}
		}
	}
	if compared < 350 {
		t.Errorf("only %d of the cases were comparable", compared)
	}
}

// FuzzYAMLAgainstKubectl looks for documents that both read, and read differently.
func FuzzYAMLAgainstKubectl(f *testing.F) {
	for _, s := range scalarCases {
		f.Add("a: [" + s + ", {b: " + s + "}]")
		f.Add(s + ": " + s)
	}
	f.Add("a: &x {b: 1}\nc: *x\nd: {<<: *x, b: 2}\n")
	f.Add("a: >-\n  folded\n  text\n\n  more\nb: |+\n  kept\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		// Known to differ: the older library lets << override (and a second << and
		// a duplicate key take effect), and reads tags of its own.
		if len(text) > 1<<12 || strings.Contains(text, "<<") || strings.Contains(text, "!") || strings.Contains(text, "%") {
			return
		}
		for _, c := range chunks([]byte(text)) {
			if len(c.text) != len(text) {
				return
			}
		}
		if hasDuplicates(text) {
			return
		}
		agree(t, text)
	})
}

func hasDuplicates(text string) bool {
	r := &reader{source: "in", limits: DefaultLimits(), scalars: newScalars()}
	var within func(n *node) bool
	within = func(n *node) bool {
		seen := make(map[string]bool)
		for _, k := range n.keys {
			if seen[k.name] {
				return true
			}
			seen[k.name] = true
		}
		for _, item := range n.items {
			if within(item) {
				return true
			}
		}
		return false
	}
	for _, doc := range r.yamlSource([]byte(text)) {
		if within(doc) {
			return true
		}
	}
	return false
}

// FuzzPlainScalar checks that a string which Encode prints without quotes is the
// same string to kubectl's library and to ours.
func FuzzPlainScalar(f *testing.F) {
	for _, s := range scalarCases {
		f.Add(s)
	}
	f.Add("a\nb\n")
	f.Add(" a: b # c")
	f.Add(strings.Repeat("k", 2000))
	f.Add(strings.Repeat("\x7f", 200))
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ToValidUTF8(s, "") != s || len(s) > 1<<12 {
			return
		}
		doc := outValue{kind: outObject}
		doc.add(s, text(s))
		list := outValue{kind: outList, items: []outValue{text(s), doc}}
		doc.add("list", list)
		printed := appendYAML(nil, doc)
		var got map[string]any
		if err := sigsyaml.Unmarshal(printed, &got); err != nil {
			t.Fatalf("%q is printed as what kubectl refuses: %v\n%s", s, err, printed)
		}
		items, ok := got["list"].([]any)
		if s != "list" && (got[s] != s || !ok || items[0] != s) {
			t.Fatalf("%q is printed as what kubectl reads as %q:\n%s", s, got, printed)
		}
		if !json.Valid(appendJSON(nil, doc, "\n")) {
			t.Fatalf("%q is printed as what is not JSON", s)
		}
	})
}

func TestNumbers(t *testing.T) {
	for in, want := range map[float64]string{
		0: "0", 80: "80", -1: "-1", 1.5: "1.5", 1e6: "1000000", 1 << 53: "9007199254740992", 1e300: "1e+300", 0.1: "0.1",
	} {
		got, err := number64(in)
		if err != nil || got.text != want {
			t.Errorf("%v: got %q (%v), want %q", in, got.text, err, want)
		}
	}
	for _, in := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		if _, err := number64(in); err == nil {
			t.Errorf("%v has no form in JSON", in)
		}
	}
}
