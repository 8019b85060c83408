package manifest

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
)

// Format is a form of text for objects.
type Format string

// The formats, as the command line names them.
const (
	YAML Format = "yaml"
	JSON Format = "json"
)

// Encode prints one object, with a line break at its end. As kubectl has it, the
// names stand in alphabetical order (apiVersion, kind and metadata first), JSON is
// indented by four spaces and YAML by two; what is empty is left out as Kubernetes
// leaves it out. Equal objects give equal bytes.
func Encode(m Message, f Format) ([]byte, error) {
	t, err := tree(m)
	if err != nil {
		return nil, err
	}
	return render(t, f)
}

// EncodeMessage prints any message in proto3's JSON mapping, stably, where
// protojson's own text varies from build to build on purpose: for answers that
// are not objects. Fields with their default value are left out.
func EncodeMessage(m proto.Message, f Format) ([]byte, error) {
	t, err := newEncoder().message(m.ProtoReflect())
	if err != nil {
		return nil, errs.Wrap(err, "manifest: encode %s", m.ProtoReflect().Descriptor().Name())
	}
	return render(t, f)
}

// EncodeList prints objects as a v1 List, which Parse and kubectl read. The
// resource version is the store revision at which they were read; empty for none.
func EncodeList(ms []Message, resourceVersion string, f Format) ([]byte, error) {
	items := outValue{kind: outList}
	for _, m := range ms {
		t, err := tree(m)
		if err != nil {
			return nil, err
		}
		items.items = append(items.items, t)
	}
	list := outValue{kind: outObject}
	list.add("apiVersion", text("v1"))
	list.add("kind", text("List"))
	metadata := outValue{kind: outObject}
	if resourceVersion != "" {
		metadata.add("resourceVersion", text(resourceVersion))
	}
	list.add("metadata", metadata)
	list.add("items", items)
	return render(list, f)
}

func render(t outValue, f Format) ([]byte, error) {
	switch f {
	case JSON:
		return append(appendJSON(nil, t, "\n"), '\n'), nil
	case YAML:
		return appendYAML(nil, t), nil
	default:
		return nil, errs.New(errs.Invalid, "manifest: no output format %q; use %s or %s", f, YAML, JSON)
	}
}

type outKind uint8

const (
	// outBare is a number, a boolean or null, printed as it is.
	outBare outKind = iota
	outString
	outList
	outObject
)

// outValue is a value ready to be printed.
type outValue struct {
	kind  outKind
	text  string
	names []string
	items []outValue
}

func text(s string) outValue { return outValue{kind: outString, text: s} }
func bare(s string) outValue { return outValue{kind: outBare, text: s} }

func (v *outValue) add(name string, item outValue) {
	v.names = append(v.names, name)
	v.items = append(v.items, item)
}

// tree orders an object for printing.
func tree(m Message) (outValue, error) {
	t, err := newEncoder().message(m.ProtoReflect())
	if err != nil {
		return outValue{}, errs.Wrap(err, "manifest: encode %s", label(m.GetKind(), m.GetMetadata().GetNamespace(), m.GetMetadata().GetName()))
	}
	return t, nil
}

// encoder remembers each message type's fields in their order.
type encoder struct {
	fields map[protoreflect.FullName][]protoreflect.FieldDescriptor
}

func newEncoder() encoder {
	return encoder{fields: make(map[protoreflect.FullName][]protoreflect.FieldDescriptor)}
}

// headFirst orders the fields of an object: what says which object it is comes
// before the rest.
func headFirst(name string) int {
	if i := slices.Index([]string{"apiVersion", "kind", "metadata"}, name); i >= 0 {
		return i
	}
	return 3
}

func (e encoder) sorted(md protoreflect.MessageDescriptor) []protoreflect.FieldDescriptor {
	if fds, ok := e.fields[md.FullName()]; ok {
		return fds
	}
	isObject := md.Fields().ByJSONName("metadata") != nil
	fds := make([]protoreflect.FieldDescriptor, md.Fields().Len())
	for i := range fds {
		fds[i] = md.Fields().Get(i)
	}
	slices.SortFunc(fds, func(a, b protoreflect.FieldDescriptor) int {
		if isObject {
			if c := headFirst(a.JSONName()) - headFirst(b.JSONName()); c != 0 {
				return c
			}
		}
		return cmp.Compare(a.JSONName(), b.JSONName())
	})
	e.fields[md.FullName()] = fds
	return fds
}

// printedEmpty names the fields that Kubernetes prints even when they are zero,
// where a reader would miss them.
func printedEmpty(fd protoreflect.FieldDescriptor) bool {
	switch string(fd.ContainingMessage().Name()) + "." + string(fd.Name()) {
	case "ContainerStatus.ready", "ContainerStatus.restart_count", "ContainerStatus.image", "ContainerStatus.image_id",
		"ContainerStateTerminated.exit_code", "EnvVar.name", "ContainerPort.container_port", "ServicePort.port",
		"HTTPHeader.value", "GRPCAction.port", "Condition.reason", "Condition.message", "IngressPortStatus.port":
		return true
	default:
		return false
	}
}

func (e encoder) message(m protoreflect.Message) (outValue, error) {
	switch x := m.Interface().(type) {
	case *timestamppb.Timestamp:
		if err := x.CheckValid(); err != nil {
			return outValue{}, err
		}
		return text(x.AsTime().Format(time.RFC3339Nano)), nil
	case *durationpb.Duration:
		if err := x.CheckValid(); err != nil {
			return outValue{}, err
		}
		return text(strconv.FormatFloat(x.AsDuration().Seconds(), 'f', -1, 64) + "s"), nil
	case *structpb.Struct:
		return e.structure(x)
	case *structpb.Value:
		return e.value(x)
	}
	out := outValue{kind: outObject}
	for _, fd := range e.sorted(m.Descriptor()) {
		if !m.Has(fd) && !printedEmpty(fd) {
			continue
		}
		v, err := e.field(fd, m.Get(fd))
		if err != nil {
			return outValue{}, fmt.Errorf("%s: %w", fd.JSONName(), err)
		}
		if v.kind == outBare && v.text == "null" {
			continue
		}
		out.add(fd.JSONName(), v)
	}
	return out, nil
}

func (e encoder) field(fd protoreflect.FieldDescriptor, v protoreflect.Value) (outValue, error) {
	switch {
	case fd.IsList():
		out := outValue{kind: outList}
		for i := range v.List().Len() {
			item, err := e.single(fd, v.List().Get(i))
			if err != nil {
				return outValue{}, fmt.Errorf("[%d]: %w", i, err)
			}
			out.items = append(out.items, item)
		}
		return out, nil
	case fd.IsMap():
		entries := make(map[string]outValue, v.Map().Len())
		var failed error
		v.Map().Range(func(k protoreflect.MapKey, item protoreflect.Value) bool {
			entries[k.String()], failed = e.single(fd.MapValue(), item)
			return failed == nil
		})
		return inOrder(entries), failed
	default:
		return e.single(fd, v)
	}
}

func inOrder(entries map[string]outValue) outValue {
	out := outValue{kind: outObject}
	names := make([]string, 0, len(entries))
	for name, v := range entries {
		if v.kind != outBare || v.text != "null" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		out.add(name, entries[name])
	}
	return out
}

func (e encoder) single(fd protoreflect.FieldDescriptor, v protoreflect.Value) (outValue, error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return text(strings.ToValidUTF8(v.String(), "\ufffd")), nil
	case protoreflect.BoolKind:
		return bare(strconv.FormatBool(v.Bool())), nil
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return bare(strconv.FormatInt(v.Int(), 10)), nil
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return bare(strconv.FormatUint(v.Uint(), 10)), nil
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return text(strconv.FormatInt(v.Int(), 10)), nil
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return text(strconv.FormatUint(v.Uint(), 10)), nil
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return number64(v.Float())
	case protoreflect.BytesKind:
		return text(base64.StdEncoding.EncodeToString(v.Bytes())), nil
	case protoreflect.EnumKind:
		if ev := fd.Enum().Values().ByNumber(v.Enum()); ev != nil {
			return text(string(ev.Name())), nil
		}
		return bare(strconv.Itoa(int(v.Enum()))), nil
	case protoreflect.MessageKind:
		return e.message(v.Message())
	default:
		return outValue{}, errs.New(errs.Internal, "a field of type %s has no text form", fd.Kind())
	}
}

func (e encoder) structure(s *structpb.Struct) (outValue, error) {
	entries := make(map[string]outValue, len(s.GetFields()))
	for name, v := range s.GetFields() {
		item, err := e.value(v)
		if err != nil {
			return outValue{}, fmt.Errorf("%s: %w", name, err)
		}
		entries[name] = item
	}
	return inOrder(entries), nil
}

func (e encoder) value(v *structpb.Value) (outValue, error) {
	switch x := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return text(strings.ToValidUTF8(x.StringValue, "\ufffd")), nil
	case *structpb.Value_BoolValue:
		return bare(strconv.FormatBool(x.BoolValue)), nil
	case *structpb.Value_NumberValue:
		return number64(x.NumberValue)
	case *structpb.Value_StructValue:
		return e.structure(x.StructValue)
	case *structpb.Value_ListValue:
		out := outValue{kind: outList}
		for i, item := range x.ListValue.GetValues() {
			t, err := e.value(item)
			if err != nil {
				return outValue{}, fmt.Errorf("[%d]: %w", i, err)
			}
			out.items = append(out.items, t)
		}
		return out, nil
	default:
		return bare("null"), nil
	}
}

// number64 prints a whole number without exponent, as Kubernetes prints integers.
func number64(f float64) (outValue, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return outValue{}, errs.New(errs.Invalid, "%v has no form in JSON", f)
	}
	if f == math.Trunc(f) && math.Abs(f) <= 1<<53 {
		return bare(strconv.FormatInt(int64(f), 10)), nil
	}
	return bare(strconv.FormatFloat(f, 'g', -1, 64)), nil
}
