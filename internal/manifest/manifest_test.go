package manifest_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func builtin(t testing.TB) *manifest.Registry {
	t.Helper()
	r, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func parse(t testing.TB, text string) []manifest.Object {
	t.Helper()
	objects, err := manifest.Parse(builtin(t), "in", strings.NewReader(text), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// one parses a manifest of one object.
func one[M manifest.Message](t testing.TB, text string) M {
	t.Helper()
	objects := parse(t, text)
	if len(objects) != 1 {
		t.Fatalf("got %d objects, want 1", len(objects))
	}
	m, ok := objects[0].Message.(M)
	if !ok {
		t.Fatalf("got a %T", objects[0].Message)
	}
	return m
}

func files(t testing.TB, patterns ...string) []string {
	t.Helper()
	var out []string
	for _, p := range patterns {
		found, err := filepath.Glob(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 0 {
			t.Fatalf("no files match %s", p)
		}
		out = append(out, found...)
	}
	return out
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sameAgain checks what Encode promises: its text, in either format, parses to an
// equal object; its JSON is what protojson reads too; a second run gives the same
// bytes.
func sameAgain(t testing.TB, kinds *manifest.Registry, o manifest.Object) {
	t.Helper()
	for _, format := range []manifest.Format{manifest.YAML, manifest.JSON} {
		text, err := manifest.Encode(o.Message, format)
		if err != nil {
			t.Fatalf("%v: encode: %v", o, err)
		}
		again, err := manifest.Parse(kinds, "again", bytes.NewReader(text), manifest.DefaultLimits())
		if err != nil {
			t.Fatalf("%v: parse what was printed: %v\n%s", o, err, text)
		}
		if len(again) != 1 || !proto.Equal(again[0].Message, o.Message) {
			t.Fatalf("%v: changed on its way through %s:\n%s\nwas %v\nis %v", o, format, text, o.Message, again)
		}
		second, err := manifest.Encode(again[0].Message, format)
		if err != nil || !bytes.Equal(text, second) {
			t.Fatalf("%v: not stable (%v):\n%s\n%s", o, err, text, second)
		}
		if format == manifest.JSON {
			bare := o.Kind.New()
			if err := protojson.Unmarshal(text, bare); err != nil {
				t.Fatalf("%v: protojson refuses our JSON: %v\n%s", o, err, text)
			}
			if !proto.Equal(bare, o.Message) {
				t.Fatalf("%v: protojson reads our JSON differently:\n%s", o, text)
			}
		}
	}
}

// TestAccepted parses manifests as they are found in the world and prints them
// again.
func TestAccepted(t *testing.T) {
	kinds := builtin(t)
	for _, name := range files(t, "testdata/mission/*.yaml", "testdata/docs/*.yaml", "testdata/kubectl/*.json") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			objects, err := manifest.Parse(kinds, name, bytes.NewReader(read(t, name)), manifest.DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			if len(objects) == 0 {
				t.Fatal("no objects")
			}
			for _, o := range objects {
				sameAgain(t, kinds, o)
			}
		})
	}
}

// TestKubectlJSONIsProtoJSON sends kubectl's output through bare protojson, as
// grpcurl does, and compares it with what Parse makes of it.
func TestKubectlJSONIsProtoJSON(t *testing.T) {
	kinds := builtin(t)
	for _, name := range files(t, "testdata/kubectl/*.json") {
		var list struct{ Items []json.RawMessage }
		if err := json.Unmarshal(read(t, name), &list); err != nil {
			t.Fatal(err)
		}
		for _, item := range list.Items {
			objects, err := manifest.Parse(kinds, name, bytes.NewReader(item), manifest.DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			bare := objects[0].Kind.New()
			if err := protojson.Unmarshal(item, bare); err != nil {
				t.Fatalf("%v: %v", objects[0], err)
			}
			if !proto.Equal(bare, objects[0].Message) {
				t.Errorf("%v: protojson gives\n%v\nParse gives\n%v", objects[0], bare, objects[0].Message)
			}
			var printed, given any
			text, err := manifest.Encode(bare, manifest.JSON)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &printed); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(item, &given); err != nil {
				t.Fatal(err)
			}
			if a, b := mustJSON(t, given), mustJSON(t, printed); a != b {
				t.Errorf("%v: kubectl's JSON is not printed as it was:\n%s\n%s", objects[0], a, b)
			}
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPresence(t *testing.T) {
	policy := func(spec string) *objectv1.NetworkPolicySpec {
		return one[*objectv1.NetworkPolicy](t,
			"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: "+spec).GetSpec()
	}
	if s := policy("{podSelector: {}, ingress: [{}]}"); s.PodSelector == nil || len(s.Ingress) != 1 {
		t.Errorf("an empty selector or rule was lost: %v", s)
	}
	if s := policy("{podSelector: {matchLabels: }, ingress: []}"); s.PodSelector == nil || len(s.Ingress) != 0 {
		t.Errorf("matchLabels without value is an empty selector: %v", s)
	}
	peer := policy("{ingress: [{from: [{namespaceSelector: {}}]}]}").Ingress[0].From[0]
	if peer.NamespaceSelector == nil || peer.PodSelector != nil || peer.IpBlock != nil {
		t.Errorf("an empty namespaceSelector is not an absent one: %v", peer)
	}
	peer = policy("{ingress: [{from: [{namespaceSelector: null, podSelector: {}}]}]}").Ingress[0].From[0]
	if peer.NamespaceSelector != nil || peer.PodSelector == nil {
		t.Errorf("null is absent: %v", peer)
	}
	slice := one[*objectv1.EndpointSlice](t, `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s},
  addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false}}]}`)
	if c := slice.Endpoints[0].GetConditions(); c != nil && c.Ready != nil {
		t.Errorf("absent ready is set: %v", c)
	}
	if c := slice.Endpoints[1].GetConditions(); c == nil || c.Ready == nil || *c.Ready {
		t.Errorf("ready: false is lost: %v", c)
	}
}

func TestValues(t *testing.T) {
	pod := one[*objectv1.Pod](t, `
apiVersion: v1
kind: Pod
metadata:
  name: p
  creationTimestamp: null
  labels: {80: eighty, on: "yes", empty: }
spec:
  hostNetwork: yes
  containers:
  - name: c
    args: ["010", 'yes', "null"]
    ports:
    - {containerPort: 80.0}
    - {containerPort: 0x50}
    - {containerPort: 8e1}
    - {containerPort: 0o120}
    - {containerPort: 0120}
    - {containerPort: 080}
`)
	if !pod.Spec.HostNetwork {
		t.Error("yes is true in YAML 1.1, which kubectl reads")
	}
	if l := pod.Metadata.Labels; len(l) != 3 || l["80"] != "eighty" || l["true"] != "yes" || l["empty"] != "" {
		t.Errorf("labels %v", l)
	}
	for i, p := range pod.Spec.Containers[0].Ports {
		if p.ContainerPort != 80 {
			t.Errorf("port %d is %d, want 80", i, p.ContainerPort)
		}
	}
	if pod.Metadata.CreationTimestamp != nil {
		t.Error("creationTimestamp: null is absent")
	}
}

func TestAnchors(t *testing.T) {
	pod := one[*objectv1.Pod](t, `
apiVersion: v1
kind: Pod
metadata: {name: p, labels: &labels {app: web, tier: front}, annotations: {<<: *labels, tier: back}}
spec:
  containers:
  - &c {name: c, image: nginx}
  - {<<: *c, name: d}
`)
	if a := pod.Metadata.Annotations; a["app"] != "web" || a["tier"] != "back" {
		t.Errorf("annotations %v: the object's own entry overrides a merged one", a)
	}
	if c := pod.Spec.Containers[1]; c.Name != "d" || c.Image != "nginx" {
		t.Errorf("container %v", c)
	}
}

func TestDocuments(t *testing.T) {
	ns := func(name string) string { return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}\n" }
	for name, text := range map[string]string{
		"markers":       "---\n" + ns("a") + "---\n---\n# nothing\n---\n" + ns("b") + "...\n---\n" + ns("c"),
		"directive":     "%YAML 1.1\n---\n" + ns("a") + "--- # comment\n" + ns("b") + "---\n" + ns("c"),
		"content":       "--- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n" + ns("b") + "---\n" + ns("c"),
		"windows":       strings.ReplaceAll(ns("a")+"---\n"+ns("b")+"---\n"+ns("c"), "\n", "\r\n"),
		"byte order":    "\ufeff" + ns("a") + "---\n" + ns("b") + "---\n" + ns("c"),
		"json stream":   `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}} {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}` + "\n" + `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"c"}}`,
		"list":          "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: b}}]}\n- {apiVersion: v1, kind: Namespace, metadata: {name: c}}",
		"typed list":    `{"apiVersion": "v1", "kind": "NamespaceList", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}, {"kind": "Namespace", "metadata": {"name": "c"}}]}`,
		"flow, a brace": "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n" + ns("b") + "---\n" + ns("c"),
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			for _, o := range parse(t, text) {
				if o.Message.GetKind() != "Namespace" || o.Message.GetApiVersion() != "v1" {
					t.Errorf("%v", o.Message)
				}
				got += o.Name()
			}
			if got != "abc" {
				t.Errorf("got %q", got)
			}
		})
	}
	for _, empty := range []string{"", "\n\n", "---\n", "# only a comment\n", "null\n"} {
		if got := parse(t, empty); len(got) != 0 {
			t.Errorf("%q gives %v", empty, got)
		}
	}
}

func TestOrderAndLocate(t *testing.T) {
	objects := parse(t, `apiVersion: v1
kind: Service
metadata:
  name: s
  labels: {a.b/c: x}
spec:
  ports:
  - port: 80
  - port: 81
---
apiVersion: v1
kind: Namespace
metadata: {name: first}
`)
	manifest.Order(objects)
	if objects[0].Name() != "first" || objects[1].Name() != "s" {
		t.Fatalf("order %v", objects)
	}
	for field, line := range map[string]int{
		"spec.ports[1].port": 9, "spec.ports[1].targetPort": 9, "spec.type": 7, "metadata.labels[a.b/c]": 5, "status.x": 1, "": 1,
		"spec.ports[7]": 8,
	} {
		if got := objects[1].Locate(field); got.Line != line {
			t.Errorf("%s is in line %d, want %d", field, got.Line, line)
		}
	}
}

func TestPlace(t *testing.T) {
	o := parse(t, "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec:\n  ports:\n  - port: 99999\n")[0]
	err := o.Place([]errs.Violation{{Field: "spec.ports[0].port", Value: "99999", Rule: "must be between 1 and 65535"}})
	const want = `in:6: Service shop/s: spec.ports[0].port: "99999": must be between 1 and 65535`
	if err == nil || err.Error() != want || !errs.Is(err, errs.Invalid) {
		t.Errorf("got %v", err)
	}
	if err := o.Place(nil); err != nil {
		t.Errorf("no violation is no error, got %v", err)
	}
}

// TestProtoJSONTakesNull: old kubectl prints creationTimestamp: null.
func TestProtoJSONTakesNull(t *testing.T) {
	const text = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "creationTimestamp": null}, "status": {}}`
	bare := &objectv1.Pod{}
	if err := protojson.Unmarshal([]byte(text), bare); err != nil || !proto.Equal(bare, one[*objectv1.Pod](t, text)) {
		t.Errorf("%v: %v", err, bare)
	}
}
