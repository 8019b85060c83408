package app_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/store"
	dnsv1 "podwire.dev/proto/podwire/dns/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/dns/app"
)

// page is docs/dns.md.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func blocks(text, language string) []string {
	var out []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// manifests are the objects of a block.
func manifests(t *testing.T, text string) []manifest.Object {
	t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Parse(kinds, "docs/dns.md", strings.NewReader(text), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// TestDocs asks what the page asks, of the objects that it shows, and finds what it says.
func TestDocs(t *testing.T) {
	t.Parallel()
	text := page(t)
	yamls := blocks(text, "yaml")
	if len(yamls) != 3 {
		t.Fatalf("%d files on the page", len(yamls))
	}
	s := newStack(t, nil)
	var last store.Revision
	for _, o := range manifests(t, yamls[0]) {
		o.Message.GetMetadata().Namespace = "default"
		object, ok := o.Message.(store.Object)
		if !ok {
			t.Fatalf("%s is no object of the store", o)
		}
		last = s.Put(o.Kind.StoreKind(), object)
	}
	s.Passed(last)
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([A-Z]+) \\| (.+) \\|$").FindAllStringSubmatch(text, -1)
	if len(rows) < 20 {
		t.Fatalf("%d answers on the page", len(rows))
	}
	for _, row := range rows {
		m := new(dns.Msg)
		m.SetQuestion(row[1]+".", dns.StringToType[row[2]])
		got, err := dns.Exchange(m, s.dns[0].String())
		if err != nil {
			t.Fatal(err)
		}
		var data []string
		for _, rr := range got.Answer {
			data = append(data, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		slices.Sort(data)
		said := strings.Join(data, ", ")
		switch {
		case got.Rcode != dns.RcodeSuccess:
			said = dns.RcodeToString[got.Rcode]
		case said == "":
			said = "NODATA"
		}
		if said != row[3] {
			t.Errorf("%s %s: %s, the page says %s", row[1], row[2], said, row[3])
		}
	}
	commands := blocks(text, "console")
	if len(commands) != 2 {
		t.Errorf("%d commands on the page", len(commands))
	}
	for _, c := range commands {
		s.resolves(c)
	}

	policy, ok := manifests(t, yamls[1])[0].Message.(*objectv1.NetworkPolicy)
	if !ok || policy.GetSpec().GetEgress()[0].GetTo()[0].GetPodSelector().GetMatchLabels()["k8s-app"] != "kube-dns" {
		t.Errorf("the policy: %v", policy)
	}
	path := filepath.Join(t.TempDir(), "dns.yaml")
	if err := os.WriteFile(path, []byte(yamls[2]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Load[app.Config](path); err != nil {
		t.Errorf("the configuration: %v", err)
	}
}

// resolves makes the call that a command line makes, and finds its answer.
func (s *stack) resolves(command string) {
	s.T.Helper()
	parts := regexp.MustCompile(`(?s)^\$ grpcurl .*? -d '(.*?)' \$RUN/dns.sock podwire.dns.v1.ResolveService/Resolve\n(.*)$`).FindStringSubmatch(command)
	if parts == nil {
		s.T.Errorf("no command: %s", command)
		return
	}
	req, want := &dnsv1.ResolveRequest{}, &dnsv1.ResolveResponse{}
	if err := protojson.Unmarshal([]byte(parts[1]), req); err != nil {
		s.T.Fatal(err)
	}
	if err := protojson.Unmarshal([]byte(parts[2]), want); err != nil {
		s.T.Fatal(err)
	}
	got, err := dnsv1.NewResolveServiceClient(s.Dial(pki.User("alice"))).Resolve(s.Ctx, req, grpc.WaitForReady(true))
	if err != nil {
		s.T.Fatal(err)
	}
	got.Revision = 0
	for _, a := range got.GetAnswers() {
		a.Authority = nil
		slices.SortFunc(a.GetRecords(), func(a, b *dnsv1.Record) int { return strings.Compare(a.GetData(), b.GetData()) })
	}
	// As JSON with its keys in order: the text of messages varies on purpose.
	plain := func(m *dnsv1.ResolveResponse) string {
		text, err := protojson.Marshal(m)
		if err != nil {
			s.T.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(text, &v); err != nil {
			s.T.Fatal(err)
		}
		if text, err = json.Marshal(v); err != nil {
			s.T.Fatal(err)
		}
		return string(text)
	}
	if plain(got) != plain(want) {
		s.T.Errorf("%s\ngot %s\nthe page says %s", parts[1], plain(got), plain(want))
	}
}
