package manifest

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"podwire.dev/internal/errs"
)

// Parse reads every object of a source: YAML or JSON, one document or many, lists
// unfolded, in the order of the text. The source's name is for positions only.
//
// Either every object is good, or the error is an *Error with every mistake in the
// source, or an error of reading it. A source without objects gives none.
func Parse(kinds *Registry, source string, in io.Reader, limits Limits) ([]Object, error) {
	src, err := io.ReadAll(io.LimitReader(in, limits.Bytes+1))
	if err != nil {
		return nil, errs.Wrap(err, "manifest: read %s", source)
	}
	r := &reader{kinds: kinds, source: source, limits: limits, scalars: newScalars()}
	docs := r.documents(src)
	var objects []Object
	if !r.exhausted { // what is wrong in a part says little about the whole
		objects = r.objects(docs)
	}
	if len(r.problems) == 0 {
		return objects, nil
	}
	slices.SortStableFunc(r.problems, func(a, b Problem) int { return a.Pos.Line - b.Pos.Line })
	e := &Error{Problems: r.problems}
	if most := max(limits.Problems, 1); len(e.Problems) > most {
		e.Problems, e.More = e.Problems[:most], len(e.Problems)-most
	}
	return nil, e
}

// reader is the state of one Parse.
type reader struct {
	kinds   *Registry
	source  string
	limits  Limits
	scalars scalars

	problems []Problem
	// values and aliased are what has been spent of the limits.
	values, aliased int
	// exhausted is set once a limit is passed: what follows is not read.
	exhausted bool
}

// fail records a mistake that belongs to no field.
func (r *reader) fail(line, column int, rule string) {
	r.problems = append(r.problems, Problem{
		Pos: Position{Source: r.source, Line: line, Column: column}, Violation: errs.Violation{Rule: rule},
	})
}

// spend takes one value from the limits and reports the first that is passed.
func (r *reader) spend(line, column, depth int, byAlias bool) bool {
	if r.exhausted {
		return false
	}
	r.values++
	if byAlias {
		r.aliased++
	}
	var rule string
	switch {
	case depth > r.limits.Depth:
		rule = fmt.Sprintf("nested more than %d deep", r.limits.Depth)
	case r.values > r.limits.Values:
		rule = fmt.Sprintf("more than %d values in one source; split it", r.limits.Values)
	case r.aliased > r.limits.Aliased:
		rule = fmt.Sprintf("aliases stand for more than %d values; write them out or use fewer", r.limits.Aliased)
	default:
		return true
	}
	r.exceeded(line, column, rule)
	return false
}

// exceeded records that a limit was passed.
func (r *reader) exceeded(line, column int, rule string) {
	r.exhausted = true
	r.fail(line, column, rule)
}

// documents reads the source's text into trees.
func (r *reader) documents(src []byte) []*node {
	if int64(len(src)) > r.limits.Bytes {
		r.exceeded(0, 0, fmt.Sprintf("bigger than %d bytes; split it", r.limits.Bytes))
		return nil
	}
	src = bytes.TrimPrefix(src, []byte("\ufeff"))
	if !utf8.Valid(src) {
		line := 1 + bytes.Count(src[:invalidAt(src)], []byte("\n"))
		r.fail(line, 0, "not UTF-8 text")
		return nil
	}
	if !bytes.HasPrefix(bytes.TrimLeft(src, " \t\r\n"), []byte("{")) {
		return r.yamlSource(src)
	}
	docs, notJSON := r.jsonSource(src)
	if notJSON == nil {
		return docs
	}
	// A brace begins YAML's flow style too; only if it is neither is the text
	// reported, as the JSON that it most likely was meant to be.
	r.values = 0
	before := len(r.problems)
	if docs = r.yamlSource(src); len(r.problems) == before || r.exhausted {
		return docs
	}
	r.problems = r.problems[:before]
	r.fail(notJSON.line, 0, notJSON.Error())
	return nil
}

// invalidAt is the offset of the first byte that is not UTF-8.
func invalidAt(src []byte) int {
	for at := 0; at < len(src); {
		c, size := utf8.DecodeRune(src[at:])
		if c == utf8.RuneError && size == 1 {
			return at
		}
		at += size
	}
	return len(src)
}

// objects turns documents into objects.
func (r *reader) objects(docs []*node) []Object {
	var out []Object
	for _, doc := range docs {
		if doc.kind == nullNode {
			continue
		}
		out = append(out, r.document(doc, nil, typeMeta{})...)
	}
	return out
}

// typeMeta is what a document says that it is.
type typeMeta struct{ apiVersion, kind string }

// document reads one object, or a list of them. The elements of a typed list
// (PodList) may leave out what the list's own kind implies.
func (r *reader) document(n *node, at *path, implied typeMeta) []Object {
	w := &walker{reader: r}
	if n.kind != objectNode {
		w.wrong(n, at, "must be an object with apiVersion, kind and metadata, not "+n.kind.String())
		return nil
	}
	meta, ok := w.typeMeta(n, at, implied)
	if !ok {
		return nil
	}
	if item, isList := r.listOf(meta); isList {
		return r.list(n, at, item)
	}
	kind, ok := r.kinds.Lookup(meta.apiVersion, meta.kind)
	if !ok {
		w.wrong(n.get("kind"), at.field("kind"), r.kinds.unknown(meta))
		return nil
	}
	name := n.get("metadata").scalarText("name")
	w.object = label(kind.Name, n.get("metadata").scalarText("namespace"), name)
	w.root, w.sensitive = at, kind.Sensitive
	before := len(r.problems)
	msg := kind.New()
	w.message(msg.ProtoReflect(), n, at)
	if len(r.problems) == before {
		w.identity(msg, n, at)
	}
	if len(r.problems) != before {
		return nil
	}
	setTypeMeta(msg, kind)
	return []Object{{
		Kind: kind, Message: msg, Pos: Position{Source: r.source, Line: n.line, Column: n.column}, root: n,
	}}
}

// identity checks what an object cannot be stored without.
func (w *walker) identity(msg Message, n *node, at *path) {
	meta := msg.GetMetadata()
	where := at.field("metadata").field("name")
	switch {
	case meta.GetName() != "":
	case meta.GetGenerateName() != "":
		w.wrong(n.get("metadata"), where, "must be set; generateName cannot be applied, since each apply would make another object")
	case n.get("metadata") != nil && n.get("metadata").kind == objectNode:
		w.wrong(n.get("metadata"), where, "must be set")
	default:
		w.wrong(n, where, "must be set")
	}
}

// listOf says whether a type is a list, and what its elements are if it says so.
func (r *reader) listOf(meta typeMeta) (typeMeta, bool) {
	if meta.kind == "List" && meta.apiVersion == "v1" {
		return typeMeta{}, true
	}
	item := typeMeta{apiVersion: meta.apiVersion, kind: strings.TrimSuffix(meta.kind, "List")}
	_, known := r.kinds.Lookup(item.apiVersion, item.kind)
	return item, known && item.kind != meta.kind
}

func (r *reader) list(n *node, at *path, implied typeMeta) []Object {
	w := &walker{reader: r, object: "List"}
	w.duplicates(n, at.field)
	for i, k := range n.keys {
		switch k.name {
		case "apiVersion", "kind", "metadata", "items":
		default:
			w.unknownField(k, n.items[i], at, []string{"apiVersion", "kind", "metadata", "items"})
		}
	}
	items := n.get("items")
	if items == nil || items.kind == nullNode {
		return nil
	}
	if items.kind != listNode {
		w.wrong(items, at.field("items"), "must be a list, not "+items.kind.String())
		return nil
	}
	var out []Object
	for i, item := range items.items {
		out = append(out, r.document(item, at.field("items").item(i), implied)...)
	}
	return out
}

// typeMeta reads apiVersion and kind.
func (w *walker) typeMeta(n *node, at *path, implied typeMeta) (typeMeta, bool) {
	meta, ok := implied, true
	for _, f := range []struct {
		name string
		into *string
	}{{"apiVersion", &meta.apiVersion}, {"kind", &meta.kind}} {
		v := n.get(f.name)
		switch {
		case (v == nil || v.kind == nullNode || v.kind == stringNode && v.text == "") && *f.into == "":
			w.wrong(n, at.field(f.name), "must be set")
			ok = false
		case v == nil || v.kind == nullNode:
		case v.kind != stringNode:
			w.wrong(v, at.field(f.name), "must be a string, not "+v.kind.String())
			ok = false
		default:
			*f.into = v.text
		}
	}
	return meta, ok
}

// scalarText is the text of a string in an object; empty if there is none.
func (n *node) scalarText(name string) string {
	if n == nil {
		return ""
	}
	if v := n.get(name); v != nil && v.kind == stringNode {
		return v.text
	}
	return ""
}

// unknown says what is wrong with a type, with the nearest known ones.
func (r *Registry) unknown(meta typeMeta) string {
	known := make([]string, 0, len(r.kinds))
	for _, k := range r.kinds {
		if k.Name == meta.kind {
			return fmt.Sprintf("is of apiVersion %s, not %s", k.APIVersion(), meta.apiVersion)
		}
		known = append(known, fmt.Sprintf("%s (%s)", k.Name, k.APIVersion()))
	}
	names := make([]string, 0, len(r.kinds))
	for _, k := range r.kinds {
		names = append(names, k.Name)
	}
	return fmt.Sprintf("is not a known kind of apiVersion %s%s; known are %s",
		meta.apiVersion, didYouMean(meta.kind, names), strings.Join(known, ", "))
}
