package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Position is a place in a source.
type Position struct {
	// Source is the file's name as the caller gave it.
	Source string
	// Line and Column count from 1, columns in characters. Line 0 is the source
	// as a whole, column 0 the whole line; JSON has no columns here.
	Line, Column int
}

// String is source:line, or the source alone.
func (p Position) String() string {
	if p.Line == 0 {
		return p.Source
	}
	return fmt.Sprintf("%s:%d", p.Source, p.Line)
}

// Object is one object of a manifest.
type Object struct {
	// Kind is the object's entry in the registry.
	Kind Kind
	// Message is the object; its metadata is never nil.
	Message Message
	// Pos is where the object begins.
	Pos Position

	root *node
}

// Name is metadata.name.
func (o Object) Name() string { return o.Message.GetMetadata().GetName() }

// Namespace is metadata.namespace as written; empty for cluster-scoped kinds and
// where the manifest leaves it to the command line.
func (o Object) Namespace() string { return o.Message.GetMetadata().GetNamespace() }

// String names the object for people: Pod default/web.
func (o Object) String() string {
	return label(o.Kind.Name, o.Namespace(), o.Name())
}

func label(kind, namespace, name string) string {
	if namespace != "" {
		name = namespace + "/" + name
	}
	return strings.TrimSpace(kind + " " + name)
}

// Locate finds where a field was written, by its Kubernetes path
// (spec.ports[0].port); a field that is absent is where its nearest parent is. So
// an error that a service returns can be shown at its line of the file.
func (o Object) Locate(field string) Position {
	at := o.root
	if at == nil {
		return o.Pos
	}
	for _, step := range splitPath(field) {
		next := at.child(step)
		if next == nil {
			break
		}
		at = next
	}
	return Position{Source: o.Pos.Source, Line: at.line, Column: at.column}
}

// splitPath cuts spec.ports[0].port into spec, ports, [0], port; what stands in
// brackets is one step even if it has dots, as label keys do.
func splitPath(path string) []string {
	var steps []string
	for path != "" {
		switch {
		case path[0] == '.':
			path = path[1:]
		case path[0] == '[':
			end := strings.IndexByte(path, ']')
			if end < 0 {
				return append(steps, path)
			}
			steps, path = append(steps, path[:end+1]), path[end+1:]
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			steps, path = append(steps, path[:end]), path[end:]
		}
	}
	return steps
}

// Order sorts objects for apply: kinds on which others depend first (Namespaces
// before everything), otherwise as written. Delete in the reverse order.
func Order(objects []Object) {
	slices.SortStableFunc(objects, func(a, b Object) int { return cmp.Compare(a.Kind.Phase, b.Kind.Phase) })
}
