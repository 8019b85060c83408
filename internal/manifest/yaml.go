package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// chunk is a stretch of a source that holds one YAML document, as a rule.
type chunk struct {
	text []byte
	// line is how many lines stand before it.
	line int
}

// chunks cuts a source at its document markers, so that a syntax error in one
// document does not hide what is wrong in the others.
func chunks(src []byte) []chunk {
	var out []chunk
	start, startLine, line := 0, 0, 0
	blank := true // nothing but comments, directives and blank lines since start
	for at := 0; at < len(src); line++ {
		end := len(src)
		if i := bytes.IndexByte(src[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		text := src[at:end]
		switch {
		case isMarker(text):
			if !blank {
				out = append(out, chunk{text: src[start:at], line: startLine})
				start, startLine = at, line
			}
			blank = false
		case len(bytes.TrimSpace(text)) > 0 && text[0] != '#' && text[0] != '%':
			blank = false
		}
		at = end
	}
	return append(out, chunk{text: src[start:], line: startLine})
}

// isMarker says whether a line begins a document: --- at its very start.
func isMarker(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// separators is a number that a third of the values in the text does not exceed
// by much: each value but the first follows one of these marks. It is counted
// before the parser runs because the parser builds its whole tree, some 200
// bytes a value, before anybody can stop it.
func separators(text []byte) int {
	return bytes.Count(text, []byte(",")) + bytes.Count(text, []byte("\n")) +
		bytes.Count(text, []byte("[")) + bytes.Count(text, []byte("{")) +
		bytes.Count(text, []byte("- ")) + bytes.Count(text, []byte("? "))
}

// yamlSource reads every document of a YAML source.
func (r *reader) yamlSource(src []byte) []*node {
	var docs []*node
	for _, c := range chunks(src) {
		if separators(c.text) > r.limits.Values/3 {
			r.exceeded(c.line+1, 0, fmt.Sprintf("document is too big: more than about %d values; split it", r.limits.Values))
			return docs
		}
		dec := yaml.NewDecoder(bytes.NewReader(c.text))
		for {
			var doc yaml.Node
			err := dec.Decode(&doc)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				r.syntax(c, err)
				break
			}
			if n := r.yamlDocument(&doc, c.line); n != nil {
				docs = append(docs, n)
			}
			if r.over(len(docs), c.line+1) {
				return docs
			}
		}
		if r.exhausted {
			return docs
		}
	}
	return docs
}

// over reports a source with too many documents.
func (r *reader) over(docs, line int) bool {
	if docs <= r.limits.Documents {
		return false
	}
	r.exceeded(line, 0, fmt.Sprintf("more than %d documents in one source; split it", r.limits.Documents))
	return true
}

// syntax reports an error of the YAML parser. Its text names the line within the
// chunk, counted from 0 where the grammar is at fault and from 1 where a token is,
// and no line for an alias without anchor.
func (r *reader) syntax(c chunk, err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = strings.TrimPrefix(text, m[0])
		if strings.HasPrefix(text, "did not find expected") {
			line++
		}
	}
	if m := regexp.MustCompile(`^unknown anchor '(.*)' referenced$`).FindStringSubmatch(text); m != nil {
		if before, _, ok := bytes.Cut(c.text, []byte("*"+m[1])); ok {
			line = 1 + bytes.Count(before, []byte("\n"))
		}
	}
	if strings.Contains(text, "cannot start any token") {
		text += " (YAML is indented with spaces, not tabs; text that begins with a special character is quoted)"
	}
	r.fail(c.line+line, 0, "not valid YAML: "+text)
}

// yamlTree turns the parser's tree into nodes.
type yamlTree struct {
	*reader
	offset int
	// open are the anchors being expanded, to see an alias within itself.
	open map[*yaml.Node]bool
	// aliases is how many aliases enclose the place that is being read.
	aliases int
}

func (r *reader) yamlDocument(doc *yaml.Node, offset int) *node {
	if len(doc.Content) == 0 {
		return nil
	}
	t := &yamlTree{reader: r, offset: offset, open: make(map[*yaml.Node]bool)}
	return t.value(doc.Content[0], 0)
}

// value gives the node of a YAML value, or nil once a limit is passed.
func (t *yamlTree) value(y *yaml.Node, depth int) *node {
	line := t.offset + y.Line
	if !t.spend(line, y.Column, depth, t.aliases > 0) {
		return nil
	}
	switch y.Kind {
	case yaml.AliasNode:
		return t.alias(y, depth)
	case yaml.MappingNode:
		return t.mapping(y, depth)
	case yaml.SequenceNode:
		n := &node{kind: listNode, line: line, column: y.Column, items: make([]*node, 0, len(y.Content))}
		for _, item := range y.Content {
			if v := t.value(item, depth+1); v != nil {
				n.items = append(n.items, v)
			}
		}
		return n
	default:
		return t.scalar(y)
	}
}

func (t *yamlTree) alias(y *yaml.Node, depth int) *node {
	if t.open[y.Alias] {
		t.fail(t.offset+y.Line, y.Column, fmt.Sprintf("alias *%s is part of what it stands for", y.Value))
		return nil
	}
	t.open[y.Alias] = true
	t.aliases++
	n := t.value(y.Alias, depth)
	t.aliases--
	delete(t.open, y.Alias)
	return n
}

func (t *yamlTree) scalar(y *yaml.Node) *node {
	var n node
	tagged := y.Style&yaml.TaggedStyle != 0
	quoted := y.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	switch {
	case !tagged && !quoted:
		n = t.scalars.plain(y.Value)
	case !tagged || y.ShortTag() == "!!str" || y.ShortTag() == "!!timestamp":
		n = node{kind: stringNode, text: y.Value}
	default:
		n = t.scalars.plain(y.Value)
		want, ok := map[string]nodeKind{
			"!!int": numberNode, "!!float": numberNode, "!!bool": boolNode, "!!null": nullNode,
		}[y.ShortTag()]
		if !ok || n.kind != want {
			t.fail(t.offset+y.Line, y.Column, fmt.Sprintf("%q cannot be read as %s", y.Value, y.ShortTag()))
		}
	}
	n.line, n.column = t.offset+y.Line, y.Column
	return &n
}

func (t *yamlTree) mapping(y *yaml.Node, depth int) *node {
	n := &node{kind: objectNode, line: t.offset + y.Line, column: y.Column}
	var merges []*yaml.Node
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, v := y.Content[i], y.Content[i+1]
		if k.Kind == yaml.ScalarNode && k.Value == "<<" && k.Style == 0 {
			merges = append(merges, v)
			continue
		}
		if name, ok := t.keyName(k); ok {
			if value := t.value(v, depth+1); value != nil {
				n.keys = append(n.keys, key{name: name, line: t.offset + k.Line, column: k.Column})
				n.items = append(n.items, value)
			}
		}
	}
	for _, v := range merges {
		t.merge(n, v, depth)
	}
	return n
}

func (t *yamlTree) keyName(k *yaml.Node) (string, bool) {
	if k.Kind == yaml.AliasNode {
		k = k.Alias
	}
	if k.Kind == yaml.ScalarNode {
		if name, ok := t.scalar(k).keyText(); ok {
			return name, true
		}
	}
	t.fail(t.offset+k.Line, k.Column, "a key must be a string")
	return "", false
}

// merge adds the entries of <<, which the object's own entries and earlier merges
// override.
func (t *yamlTree) merge(into *node, y *yaml.Node, depth int) {
	from := t.value(y, depth)
	if from == nil {
		return
	}
	sources := []*node{from}
	if from.kind == listNode {
		sources = from.items
	}
	for _, src := range sources {
		if src.kind != objectNode {
			t.fail(t.offset+y.Line, y.Column, "<< takes an object or a list of objects, not "+src.kind.String())
			continue
		}
		for i, k := range src.keys {
			if into.get(k.name) == nil {
				into.keys = append(into.keys, k)
				into.items = append(into.items, src.items[i])
			}
		}
	}
}
