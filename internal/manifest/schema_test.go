package manifest

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// laterOrOurs names messages that have no counterpart in the list: Podwire's own,
// and a status that Kubernetes 1.28 removed.
var laterOrOurs = map[protoreflect.Name]bool{
	"NetworkPolicyStatus": true, "AddressBlock": true, "AddressBlockSpec": true, "AddressBlockStatus": true,
	"AddressClaim": true, "AddressClaimSpec": true, "AddressClaimStatus": true, "AddressOwner": true,
}

// defaulted names fields that are not pointers in Kubernetes but have a default
// other than zero, so that absent has to be told from zero.
var defaulted = map[string]bool{
	"ServiceSpec.type": true, "ServiceSpec.sessionAffinity": true, "ServiceSpec.externalTrafficPolicy": true,
	"ServicePort.protocol": true, "ContainerPort.protocol": true, "Container.terminationMessagePath": true,
	"Container.terminationMessagePolicy": true, "Container.imagePullPolicy": true, "PodSpec.restartPolicy": true,
	"PodSpec.dnsPolicy": true, "PodSpec.schedulerName": true, "Probe.timeoutSeconds": true, "Probe.periodSeconds": true,
	"Probe.successThreshold": true, "Probe.failureThreshold": true, "HTTPGetAction.path": true, "HTTPGetAction.scheme": true,
	"Toleration.operator": true,
}

// TestMessagesAreKubernetesTypes compares every message of the registry's kinds
// with the fields of Kubernetes' own types, in both directions.
func TestMessagesAreKubernetesTypes(t *testing.T) {
	r, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[protoreflect.FullName]bool)
	for _, k := range r.Kinds() {
		compare(t, r.schema, k.New().ProtoReflect().Descriptor(), seen)
	}
	if len(seen) < 60 {
		t.Errorf("only %d messages compared", len(seen))
	}
}

func compare(t *testing.T, s schema, md protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) {
	if seen[md.FullName()] || strings.HasPrefix(string(md.FullName()), "google.") {
		return
	}
	seen[md.FullName()] = true
	want, known := s[string(md.Name())]
	if !known && !laterOrOurs[md.Name()] {
		t.Errorf("%s is not a Kubernetes type", md.Name())
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		name := string(md.Name()) + "." + fd.JSONName()
		if fd.Kind() == protoreflect.MessageKind {
			element := fd.Message()
			if fd.IsMap() && fd.MapValue().Kind() == protoreflect.MessageKind {
				element = fd.MapValue().Message()
			}
			if !element.IsMapEntry() {
				compare(t, s, element, seen)
			}
		}
		if !known {
			continue
		}
		typ, ok := want[fd.JSONName()]
		if !ok {
			if name != "NetworkPolicy.status" {
				t.Errorf("%s is not a field in Kubernetes", name)
			}
			continue
		}
		if problem := mismatch(s, fd, typ, defaulted[name]); problem != "" {
			t.Errorf("%s is %s in Kubernetes: %s", name, typ, problem)
		}
	}
	for name := range want {
		if md.Fields().ByJSONName(name) == nil {
			t.Errorf("%s lacks %s", md.Name(), name)
		}
	}
}

// mismatch says what is wrong with the declaration of a field; empty if nothing.
func mismatch(s schema, fd protoreflect.FieldDescriptor, typ string, hasDefault bool) string {
	bare := strings.TrimPrefix(typ, "*")
	if element, ok := strings.CutPrefix(bare, "[]"); ok {
		if !fd.IsList() {
			return "must be repeated"
		}
		return sameType(s, fd, element)
	}
	if element, ok := strings.CutPrefix(bare, "map[string]"); ok {
		if !fd.IsMap() {
			return "must be a map"
		}
		return sameType(s, fd.MapValue(), element)
	}
	scalar := fd.Kind() != protoreflect.MessageKind
	if want := typ != bare || hasDefault; scalar && fd.HasOptionalKeyword() != want {
		return "wrong use of optional"
	}
	return sameType(s, fd, bare)
}

func sameType(s schema, fd protoreflect.FieldDescriptor, typ string) string {
	message := ""
	if fd.Kind() == protoreflect.MessageKind {
		message = string(fd.Message().FullName())
	}
	want := map[string]string{
		"int-or-string": string(valueName), "quantity": string(valueName), "time": string(timestampName),
	}[typ]
	_, isType := s[typ]
	var ok bool
	switch {
	case want != "":
		ok = message == want
	case isType:
		ok = message == string(structName) || message == "podwire.object.v1."+typ
	case typ == "int32":
		ok = fd.Kind() == protoreflect.Int32Kind
	case typ == "int64":
		ok = fd.Kind() == protoreflect.Int32Kind || fd.Kind() == protoreflect.DoubleKind
	default:
		ok = fd.Kind().String() == typ
	}
	if !ok {
		return "declared as " + fd.Kind().String() + " " + message
	}
	return ""
}

// TestSchemaIsClosed checks that the list has every type that it mentions.
func TestSchemaIsClosed(t *testing.T) {
	s, err := loadSchema()
	if err != nil {
		t.Fatal(err)
	}
	basic := map[string]bool{
		"string": true, "bool": true, "int32": true, "int64": true, "quantity": true, "time": true, "int-or-string": true, "bytes": true, anyType: true,
	}
	for name, fields := range s {
		for field, typ := range fields {
			typ = strings.NewReplacer("[]", "", "map[string]", "", "*", "").Replace(typ)
			if _, ok := s[typ]; !ok && !basic[typ] {
				t.Errorf("%s.%s is of the unlisted type %s", name, field, typ)
			}
		}
	}
}

func TestPathAndSuggestion(t *testing.T) {
	var root *path
	for want, p := range map[string]*path{
		"":                     root,
		"spec.ports[1].port":   root.field("spec").field("ports").item(1).field("port"),
		"metadata.labels[a.b]": root.field("metadata").field("labels").key("a.b"),
		"items[0].kind":        root.field("items").item(0).field("kind"),
	} {
		if got := p.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for written, want := range map[string]string{
		"prots": " (did you mean ports?)", "PORTS": " (did you mean ports?)", "wibble": "", "por": " (did you mean ports?)",
		"typ": " (did you mean type?)", strings.Repeat("x", 100): "",
	} {
		if got := didYouMean(written, []string{"type", "ports", "selector"}); got != want {
			t.Errorf("%q: got %q, want %q", written, got, want)
		}
	}
}
