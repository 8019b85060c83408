package manifest

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
)

// walker checks one object's tree against its descriptor and builds the message
// on the way.
type walker struct {
	*reader
	// object names the object in errors.
	object string
	// root is the path of the object itself; nil unless it is one of a list.
	root *path
	// sensitive is Kind.Sensitive of the object.
	sensitive bool
}

// secret says that the value at a path must not be quoted.
func (w *walker) secret(at *path) bool {
	if !w.sensitive || at == w.root {
		return false
	}
	for at.parent != w.root {
		at = at.parent
	}
	return at.name != "apiVersion" && at.name != "kind" && at.name != "metadata"
}

// wrong records that a value breaks a rule.
func (w *walker) wrong(n *node, at *path, rule string) {
	p := Problem{
		Pos:       Position{Source: w.source},
		Object:    w.object,
		Violation: errs.Violation{Field: at.String(), Rule: rule},
	}
	if n != nil {
		p.Pos.Line, p.Pos.Column = n.line, n.column
		if !w.secret(at) {
			p.Value = n.written()
		}
	}
	w.problems = append(w.problems, p)
}

func (w *walker) unknownField(k key, v *node, at *path, known []string) {
	w.wrong(&node{kind: v.kind, text: v.text, line: k.line, column: k.column}, at.field(k.name),
		"unknown field"+didYouMean(k.name, known))
}

// duplicates reports names that an object has twice; step gives the path of a
// name, which differs between a field and the key of a map.
func (w *walker) duplicates(n *node, step func(name string) *path) {
	seen := make(map[string]int, len(n.keys))
	for i, k := range n.keys {
		if first, dup := seen[k.name]; dup {
			w.wrong(&node{kind: n.items[i].kind, text: n.items[i].text, line: k.line, column: k.column}, step(k.name),
				fmt.Sprintf("is given twice, first in line %d", first))
			continue
		}
		seen[k.name] = k.line
	}
}

// isA reports a value of another kind than the rule asks for.
func (w *walker) isA(n *node, at *path, want nodeKind, rule string) bool {
	if n.kind == want {
		return true
	}
	w.wrong(n, at, "must be "+rule+", not "+n.kind.String()+w.hint(n, want, at))
	return false
}

// hint says how to write what was most likely meant.
func (w *walker) hint(n *node, want nodeKind, at *path) string {
	switch {
	case want == stringNode && (n.kind == numberNode || n.kind == boolNode) && w.secret(at):
		return " (write it in quotes)"
	case want == stringNode && (n.kind == numberNode || n.kind == boolNode):
		return fmt.Sprintf(" (write it in quotes: %q)", n.text)
	case n.kind == stringNode && want != listNode && want != objectNode && w.scalars.plain(n.text).kind == want:
		return " (write it without quotes)"
	case want == listNode && n.kind == objectNode:
		return " (begin each element with \"- \")"
	default:
		return ""
	}
}

// message fills in a message from an object.
func (w *walker) message(m protoreflect.Message, n *node, at *path) {
	w.duplicates(n, at.field)
	fields := m.Descriptor().Fields()
	for i, k := range n.keys {
		fd := fields.ByJSONName(k.name)
		if fd == nil {
			w.unknownField(k, n.items[i], at, jsonNames(fields))
			continue
		}
		// Null is absent: Kubernetes' own output has creationTimestamp: null.
		if n.items[i].kind != nullNode {
			w.field(m, fd, n.items[i], at.field(k.name))
		}
	}
}

func jsonNames(fields protoreflect.FieldDescriptors) []string {
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = fields.Get(i).JSONName()
	}
	return names
}

func (w *walker) field(m protoreflect.Message, fd protoreflect.FieldDescriptor, n *node, at *path) {
	switch {
	case fd.IsMap():
		w.mapField(m, fd, n, at)
	case fd.IsList():
		if !w.isA(n, at, listNode, "a list") {
			return
		}
		list := m.Mutable(fd).List()
		for i, item := range n.items {
			if item.kind == nullNode {
				// Dropping the element would change what the list means (one empty
				// rule of a policy admits everything), and so might keeping it.
				w.wrong(item, at.item(i), "must not be null; write {} for an empty element or remove it")
				continue
			}
			if v, ok := w.value(fd, list.NewElement, item, at.item(i)); ok {
				list.Append(v)
			}
		}
	default:
		if v, ok := w.value(fd, func() protoreflect.Value { return m.NewField(fd) }, n, at); ok {
			m.Set(fd, v)
		}
	}
}

func (w *walker) mapField(m protoreflect.Message, fd protoreflect.FieldDescriptor, n *node, at *path) {
	if !w.isA(n, at, objectNode, "an object") {
		return
	}
	w.duplicates(n, at.key)
	into := m.Mutable(fd).Map()
	for i, k := range n.keys {
		item := n.items[i]
		if item.kind == nullNode {
			if kind := fd.MapValue().Kind(); kind != protoreflect.StringKind && kind != protoreflect.BytesKind {
				continue
			}
			// As Kubernetes has it: "disk:" in a nodeSelector asks for the empty
			// value. Dropping the entry would make the selector match more.
			item = &node{kind: stringNode, line: item.line, column: item.column}
		}
		if v, ok := w.value(fd.MapValue(), into.NewValue, item, at.key(k.name)); ok {
			into.Set(protoreflect.ValueOfString(k.name).MapKey(), v)
		}
	}
}

// value gives a single value: a scalar, a message, or an element of a list or
// map.
func (w *walker) value(
	fd protoreflect.FieldDescriptor, fresh func() protoreflect.Value, n *node, at *path,
) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(n.text), w.isA(n, at, stringNode, "a string")
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n.bool), w.isA(n, at, boolNode, "true or false")
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n.integer)), w.int32(n, at)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(n.number), w.integer(n, at)
	case protoreflect.BytesKind:
		return w.bytes(n, at)
	case protoreflect.MessageKind:
		return w.messageValue(fd, fresh, n, at)
	default:
		w.wrong(n, at, "is of a type that manifests cannot hold: "+fd.Kind().String())
		return protoreflect.Value{}, false
	}
}

func (w *walker) messageValue(
	fd protoreflect.FieldDescriptor, fresh func() protoreflect.Value, n *node, at *path,
) (protoreflect.Value, bool) {
	switch fd.Message().FullName() {
	case timestampName:
		t, ok := w.timestamp(n, at)
		return protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()), ok
	case valueName:
		// Every map of Values holds quantities, every single Value is an
		// int-or-string: see the package comment of object/v1.
		check := w.intOrString
		if parent, ok := fd.Parent().(protoreflect.MessageDescriptor); ok && parent.IsMapEntry() {
			check = w.quantity
		}
		return protoreflect.ValueOfMessage(scalarValue(n).ProtoReflect()), check(n, at)
	case structName:
		if !w.isA(n, at, objectNode, "an object") {
			return protoreflect.Value{}, false
		}
		s := w.structValue(n, w.kinds.schema.ofField(fd), at)
		return protoreflect.ValueOfMessage(s.ProtoReflect()), true
	default:
		if !w.isA(n, at, objectNode, "an object") {
			return protoreflect.Value{}, false
		}
		v := fresh()
		w.message(v.Message(), n, at)
		return v, true
	}
}

const (
	timestampName protoreflect.FullName = "google.protobuf.Timestamp"
	valueName     protoreflect.FullName = "google.protobuf.Value"
	structName    protoreflect.FullName = "google.protobuf.Struct"
)

// scalarValue is a Value for a checked string or number. A number that a double
// cannot hold is kept as the text of itself, which quantities allow.
func scalarValue(n *node) *structpb.Value {
	switch {
	case n.kind == numberNode && n.exact():
		return structpb.NewNumberValue(n.number)
	case n.kind == numberNode && n.isInt:
		return structpb.NewStringValue(strconv.FormatInt(n.integer, 10))
	case n.kind == numberNode:
		return structpb.NewStringValue(strconv.FormatFloat(n.number, 'g', -1, 64))
	default:
		return structpb.NewStringValue(n.text)
	}
}

func (w *walker) integer(n *node, at *path) bool {
	if !w.isA(n, at, numberNode, "an integer") {
		return false
	}
	if !n.isInt && n.finite() && n.number == math.Trunc(n.number) {
		w.wrong(n, at, "is out of range")
		return false
	}
	if !n.isInt {
		w.wrong(n, at, "must be a whole number")
		return false
	}
	if !n.exact() {
		w.wrong(n, at, fmt.Sprintf("must be between -%d and %d", int64(1)<<53, int64(1)<<53))
		return false
	}
	return true
}

func (w *walker) int32(n *node, at *path) bool {
	if n.kind == numberNode && n.finite() && (n.number > math.MaxInt32 || n.number < math.MinInt32) {
		w.wrong(n, at, fmt.Sprintf("must be between %d and %d", math.MinInt32, math.MaxInt32))
		return false
	}
	return w.integer(n, at)
}

func (w *walker) intOrString(n *node, at *path) bool {
	if n.kind == stringNode {
		return true
	}
	if n.kind != numberNode {
		w.wrong(n, at, "must be an integer or a string, not "+n.kind.String())
		return false
	}
	return w.int32(n, at)
}

func (w *walker) quantity(n *node, at *path) bool {
	if n.kind != stringNode && n.kind != numberNode {
		w.wrong(n, at, "must be a quantity such as 100m or 1Gi, not "+n.kind.String())
		return false
	}
	if n.kind == numberNode && n.finite() {
		return true
	}
	if n.kind == numberNode || !w.scalars.quantity.MatchString(strings.TrimSpace(n.text)) {
		w.wrong(n, at, "must be a quantity: a number, perhaps followed by n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei or an exponent")
		return false
	}
	return true
}

func (w *walker) timestamp(n *node, at *path) (time.Time, bool) {
	const rule = "must be a time in the form of RFC 3339, as in 2006-01-02T15:04:05Z"
	if n.kind != stringNode {
		w.wrong(n, at, rule+", not "+n.kind.String())
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339, n.text)
	if err != nil || timestamppb.New(t).CheckValid() != nil {
		w.wrong(n, at, rule)
		return time.Time{}, false
	}
	return t, true
}

func (w *walker) bytes(n *node, at *path) (protoreflect.Value, bool) {
	if !w.isA(n, at, stringNode, "a string in base64") {
		return protoreflect.Value{}, false
	}
	b, err := base64.StdEncoding.DecodeString(n.text)
	if err != nil {
		w.wrong(&node{line: n.line, column: n.column}, at, "must be base64: "+err.Error())
		return protoreflect.Value{}, false
	}
	return protoreflect.ValueOfBytes(b), true
}

// setTypeMeta writes apiVersion and kind, which an element of a typed list may
// leave out.
func setTypeMeta(m proto.Message, k Kind) {
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	r.Set(fields.ByJSONName("apiVersion"), protoreflect.ValueOfString(k.APIVersion()))
	r.Set(fields.ByJSONName("kind"), protoreflect.ValueOfString(k.Name))
}
