package manifest

import (
	"strconv"
	"strings"
)

type nodeKind uint8

const (
	nullNode nodeKind = iota
	boolNode
	numberNode
	stringNode
	listNode
	objectNode
)

// String names the kind as errors do.
func (k nodeKind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "a list", "an object"}[k]
}

// node is one value of a source, the same whether it was YAML or JSON. A node
// that several YAML aliases share is shared: nothing changes it once it is made.
type node struct {
	kind nodeKind
	// text is the string's value, or the scalar as written.
	text string
	bool bool
	// number is the value of a numberNode; integer is exact where isInt.
	number  float64
	integer int64
	isInt   bool
	// float says that the number was written as one that YAML calls a float, which
	// a whole number may be too (8e1).
	float bool
	// items are the elements of a list, or the values of an object beside keys.
	items []*node
	keys  []key

	line, column int
}

// key is a name in an object, with the place where it was written.
type key struct {
	name         string
	line, column int
}

// child follows one step of a field path: a name, or [index] or [key].
func (n *node) child(step string) *node {
	if inner, ok := strings.CutPrefix(step, "["); ok {
		step = strings.TrimSuffix(inner, "]")
		if n.kind == listNode {
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(n.items) {
				return nil
			}
			return n.items[i]
		}
	}
	return n.get(step)
}

// get is the value of a name in an object; nil if it has none.
func (n *node) get(name string) *node {
	if n.kind != objectNode {
		return nil
	}
	for i, k := range n.keys {
		if k.name == name {
			return n.items[i]
		}
	}
	return nil
}

// written is the scalar as an error quotes it; empty for lists, objects and null.
func (n *node) written() string {
	const most = 80
	switch n.kind {
	case boolNode, numberNode, stringNode:
		if len(n.text) > most {
			return strings.ToValidUTF8(n.text[:most], "") + "…"
		}
		return n.text
	default:
		return ""
	}
}

// path is a Kubernetes field path, built from the leaf up so that only an error
// pays for text.
type path struct {
	parent *path
	name   string
	index  int
}

func (p *path) field(name string) *path { return &path{parent: p, name: name, index: -1} }

func (p *path) item(i int) *path { return &path{parent: p, index: i} }

func (p *path) key(name string) *path { return &path{parent: p, name: "[" + name + "]", index: -1} }

// String is the path as Kubernetes writes it: spec.ports[0].port,
// metadata.labels[app].
func (p *path) String() string {
	if p == nil {
		return ""
	}
	prefix := p.parent.String()
	switch {
	case p.index >= 0:
		return prefix + "[" + strconv.Itoa(p.index) + "]"
	case strings.HasPrefix(p.name, "[") || prefix == "":
		return prefix + p.name
	default:
		return prefix + "." + p.name
	}
}
