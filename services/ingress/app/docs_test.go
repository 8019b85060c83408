package app_test

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/manifest"
	"podwire.dev/internal/pki"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/admission"
	"podwire.dev/services/ingress/internal/proxy"
)

// TestDocsLimits compares the page's limits with the defaults.
func TestDocsLimits(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/ingress.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "## Limits")
	list, _, _ = strings.Cut(list, "\n## ")
	said := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\|").FindAllStringSubmatch(list, -1) {
		said[row[1]] = row[2]
	}
	limits := reflect.ValueOf(proxy.DefaultLimits())
	for i := range limits.NumField() {
		key := limits.Type().Field(i).Tag.Get("yaml")
		if got := fmt.Sprint(limits.Field(i).Interface()); said[key] != got {
			t.Errorf("%s is %s, the page says %q", key, got, said[key])
		}
	}
	if len(said) != limits.NumField() {
		t.Errorf("%d limits on the page, %d in the code", len(said), limits.NumField())
	}
}

// TestDocsMatch asks for the route that the page asks for, of the objects that it shows.
func TestDocsMatch(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../../docs/ingress.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	call := regexp.MustCompile("(?s)```console\n\\$ grpcurl .*-d '([^']+)' .*?RouteService/Match\n(.*?)```").FindStringSubmatch(text)
	yamls := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1)
	if call == nil || len(yamls) != 2 {
		t.Fatalf("%d manifests, call %q", len(yamls), call)
	}
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Parse(kinds, "docs/ingress.md", strings.NewReader(yamls[1][1]), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	s := newStack(t)
	for _, o := range objects {
		if in, ok := o.Message.(*objectv1.Ingress); ok {
			in.Metadata.Namespace = "default"
			s.Put(admission.KindIngress, in)
		}
	}
	s.Passed(s.service("mini", netip.MustParseAddrPort("10.244.0.9:80")))
	req, want := &ingressv1.MatchRequest{}, &ingressv1.MatchResponse{}
	if err := protojson.Unmarshal([]byte(call[1]), req); err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal([]byte(call[2]), want); err != nil {
		t.Fatal(err)
	}
	got, err := ingressv1.NewRouteServiceClient(s.Dial(pki.User("alice"))).Match(s.Ctx, req, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if want.Revision = got.GetRevision(); !proto.Equal(got, want) {
		t.Errorf("match is\n%s\nthe page says\n%s", got, want)
	}
}
