package manifest

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
)

//go:embed kubernetes.txt
var kubernetesFields string

// schema is the Kubernetes API as far as object/v1 covers it: type -> field ->
// type of the field. It lets Parse refuse a misspelt field also where the
// messages carry a Struct, as Kubernetes does.
type schema map[string]map[string]string

// anyType is the type of what Kubernetes itself leaves open.
const anyType = "any"

func loadSchema() (schema, error) {
	s := make(schema)
	for i, line := range strings.Split(kubernetesFields, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		fields := make(map[string]string, len(words)-1)
		for _, w := range words[1:] {
			name, typ, ok := strings.Cut(w, ":")
			if !ok {
				return nil, fmt.Errorf("manifest: kubernetes.txt line %d: %q is not name:type", i+1, w)
			}
			fields[name] = typ
		}
		s[words[0]] = fields
	}
	return s, nil
}

// ofField is the type of one element of a field that a message carries as
// Struct; messages are named as their Kubernetes types are.
func (s schema) ofField(fd protoreflect.FieldDescriptor) string {
	typ := s[string(fd.ContainingMessage().Name())][fd.JSONName()]
	typ = strings.TrimPrefix(strings.TrimPrefix(typ, "[]"), "*")
	if typ == "" {
		return anyType
	}
	return typ
}

// structValue checks an object against a type and builds the Struct.
func (w *walker) structValue(n *node, typ string, at *path) *structpb.Struct {
	w.duplicates(n, at.field)
	fields, typed := w.kinds.schema[typ]
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(n.keys))}
	for i, k := range n.keys {
		fieldType := anyType
		if typed {
			var known bool
			if fieldType, known = fields[k.name]; !known {
				w.unknownField(k, n.items[i], at, slices.Sorted(maps.Keys(fields)))
				continue
			}
		}
		if n.items[i].kind == nullNode {
			continue
		}
		if v := w.typedValue(n.items[i], fieldType, at.field(k.name)); v != nil {
			out.Fields[k.name] = v
		}
	}
	return out
}

// typedValue checks a value against a type of the schema; nil if it is wrong.
func (w *walker) typedValue(n *node, typ string, at *path) *structpb.Value {
	typ = strings.TrimPrefix(typ, "*")
	var ok bool
	switch {
	case strings.HasPrefix(typ, "[]"):
		if !w.isA(n, at, listNode, "a list") {
			return nil
		}
		return w.listValue(n, strings.TrimPrefix(typ, "[]"), at)
	case strings.HasPrefix(typ, "map[string]"):
		if !w.isA(n, at, objectNode, "an object") {
			return nil
		}
		return w.mapValue(n, strings.TrimPrefix(typ, "map[string]"), at)
	case typ == anyType:
		return w.openValue(n, at)
	case typ == "string":
		ok = w.isA(n, at, stringNode, "a string")
	case typ == "bool":
		if !w.isA(n, at, boolNode, "true or false") {
			return nil
		}
		return structpb.NewBoolValue(n.bool)
	case typ == "int32":
		ok = w.int32(n, at)
	case typ == "int64":
		ok = w.integer(n, at)
	case typ == "quantity":
		ok = w.quantity(n, at)
	case typ == "int-or-string":
		ok = w.intOrString(n, at)
	case typ == "time":
		_, ok = w.timestamp(n, at)
	default:
		if !w.isA(n, at, objectNode, "an object") {
			return nil
		}
		return structpb.NewStructValue(w.structValue(n, typ, at))
	}
	if !ok {
		return nil
	}
	return scalarValue(n)
}

func (w *walker) listValue(n *node, typ string, at *path) *structpb.Value {
	out := &structpb.ListValue{Values: make([]*structpb.Value, 0, len(n.items))}
	for i, item := range n.items {
		if item.kind == nullNode {
			w.wrong(item, at.item(i), "must not be null; write {} for an empty element or remove it")
			continue
		}
		if v := w.typedValue(item, typ, at.item(i)); v != nil {
			out.Values = append(out.Values, v)
		}
	}
	return structpb.NewListValue(out)
}

// mapValue checks a map, in which null has the meaning that it has in mapField.
func (w *walker) mapValue(n *node, typ string, at *path) *structpb.Value {
	w.duplicates(n, at.key)
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(n.keys))}
	for i, k := range n.keys {
		item := n.items[i]
		if item.kind == nullNode {
			if typ != "string" {
				continue
			}
			item = &node{kind: stringNode, line: item.line, column: item.column}
		}
		if v := w.typedValue(item, typ, at.key(k.name)); v != nil {
			out.Fields[k.name] = v
		}
	}
	return structpb.NewStructValue(out)
}

// openValue takes a value of any type.
func (w *walker) openValue(n *node, at *path) *structpb.Value {
	switch n.kind {
	case objectNode:
		return structpb.NewStructValue(w.structValue(n, anyType, at))
	case listNode:
		return w.listValue(n, anyType, at)
	case boolNode:
		return structpb.NewBoolValue(n.bool)
	case numberNode:
		if !n.exact() || !n.finite() {
			w.wrong(n, at, "cannot be kept without loss; write it in quotes")
			return nil
		}
		return structpb.NewNumberValue(n.number)
	default:
		return structpb.NewStringValue(n.text)
	}
}
