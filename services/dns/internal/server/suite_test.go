package server

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/resolver"
	"podwire.dev/services/dns/internal/zone"
)

// deviations are the rows that say something else than what we answer, each with the reason.
var deviations = map[string]string{
	"dns-058": "SERVFAIL as there, without an SOA: a failure is no negative answer, and must not be kept as one",
	"dns-063": "an option of CoreDNS: a Service without ready endpoints keeps its ClusterIP, as the specification says",
	"dns-065": "an option of CoreDNS: pod names are always answered here",
	"dns-068": "pod names are verified: without a Pod of the address there is no name",
	"dns-081": "the server's address is that of Service kube-system/kube-dns, which the fixture has not",
}

// otherwise are groups of rows about what we do not have.
var otherwise = map[string]string{
	"multiclusterDnsTestCases":    "the multi-cluster schema",
	"dnsTestCases(upstream stub)": "an answer of the upstream stub, not a question",
}

// row is one line of testdata/dns.tsv.
type row struct {
	id, suite, fixture, group, name, kind, rcode  string
	answer, authority, additional, options, about string
}

func rows(t *testing.T) []row {
	t.Helper()
	text, err := os.ReadFile("testdata/dns.tsv")
	if err != nil {
		t.Fatal(err)
	}
	var out []row
	for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n")[2:] {
		f := append(strings.Split(line, "\t"), make([]string, 12)...)
		out = append(out, row{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11]})
	}
	return out
}

// fixture makes a World of the objects of testdata/dns-fixtures.yaml.
func fixture(t testing.TB, name string) *zone.World {
	t.Helper()
	text, err := os.ReadFile("testdata/dns-fixtures.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Fixtures map[string][]map[string]any `yaml:"fixtures"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	w := zone.NewWorld("cluster.local", 1)
	w.SetRanges([]netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("1234::/16"), netip.MustParsePrefix("fd00::/16"),
	})
	w.SetNamespace("svcns") // of row dns-076, where every Namespace exists whose name does not deny it
	for _, o := range file.Fixtures[name] {
		into(t, w, o)
	}
	return w
}

func into(t testing.TB, w *zone.World, o map[string]any) {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	read := func(m proto.Message) {
		if err := protojson.Unmarshal(text, m); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	switch o["kind"] {
	case "Namespace":
		m := &objectv1.Namespace{}
		read(m)
		w.SetNamespace(m.GetMetadata().GetName())
	case "Service":
		m := &objectv1.Service{}
		read(m)
		w.SetService(m)
	case "EndpointSlice":
		m := &objectv1.EndpointSlice{}
		read(m)
		w.SetSlice(m)
	case "Pod":
		m := &objectv1.Pod{}
		read(m)
		w.SetPod(m)
	default:
		t.Fatalf("kind %v", o["kind"])
	}
}

// startUpstream is a server on loopback with a handler of its own.
func startUpstream(t testing.TB, handle dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	started := make(chan struct{})
	s := &dns.Server{Addr: "127.0.0.1:0", Net: "udp", Handler: handle, NotifyStartedFunc: func() { close(started) }}
	ended := make(chan error, 1)
	go func() { ended <- s.ListenAndServe() }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return netip.MustParseAddrPort(s.PacketConn.LocalAddr().String())
}

// serve runs a server of a World on loopback.
func serve(t testing.TB, w *zone.World, f *forward.Forwarder, limits Limits) *Server {
	t.Helper()
	if f == nil {
		f = forward.New(forward.Options{})
	}
	r := resolver.New(f)
	if w != nil {
		r.Publish(w.Publish(1499347823))
	}
	return serveResolver(t, r, limits)
}

func serveResolver(t testing.TB, r *resolver.Resolver, limits Limits) *Server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := Listen(ctx, netip.MustParseAddrPort("127.0.0.1:0"), r, limits, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func exchange(t testing.TB, s *Server, network, name string, kind uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	m.SetEdns0(4096, false)
	got, _, err := (&dns.Client{Net: network}).Exchange(m, s.Addr().String())
	if err != nil {
		t.Fatalf("%s %s: %v", name, dns.TypeToString[kind], err)
	}
	return got
}

// facts are what rows compare of a section: name, type and data of each record, of an SOA the name alone, sorted.
func facts(list []dns.RR) []string {
	out := []string{}
	for _, rr := range list {
		h := rr.Header()
		if h.Rrtype == dns.TypeOPT {
			continue
		}
		data := strings.TrimPrefix(rr.String(), h.String())
		if h.Rrtype == dns.TypeSOA {
			data = ""
		}
		out = append(out, strings.TrimSpace(h.Name+" "+dns.TypeToString[h.Rrtype]+" "+data))
	}
	slices.Sort(out)
	return out
}

func expected(t *testing.T, id, section string) []string {
	t.Helper()
	var list []dns.RR
	for _, text := range strings.Split(section, " ; ") {
		if strings.TrimSpace(text) == "" {
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatalf("%s: %q: %v", id, text, err)
		}
		list = append(list, rr)
	}
	return facts(list)
}

// TestSuite replays the cases of other projects, over UDP and TCP.
func TestSuite(t *testing.T) {
	upstream := startUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if q := r.Question[0]; q.Name == "ext.interwebs.test." && q.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: []byte{1, 2, 3, 4}}}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})
	f := forward.New(forward.Options{})
	f.SetUpstreams([]netip.AddrPort{upstream})
	servers := map[string]*Server{}
	for _, name := range []string{"coredns-handler", "coredns-reverse"} {
		servers[name] = serve(t, fixture(t, name), f, Limits{})
	}
	unread := serve(t, nil, f, Limits{})
	judged := 0
	for _, r := range rows(t) {
		if r.suite != "coredns-unit" || otherwise[r.group] != "" {
			continue // the specification's sections are cases of package zone
		}
		s := servers[r.fixture]
		if r.group == "notSyncedTestCases" {
			s = unread
		}
		for _, network := range []string{"udp", "tcp"} {
			got := exchange(t, s, network, dns.Fqdn(r.name), dns.StringToType[r.kind])
			var wrong []string
			if rcode := dns.RcodeToString[got.Rcode]; rcode != r.rcode {
				wrong = append(wrong, fmt.Sprintf("%s, want %s", rcode, r.rcode))
			}
			for _, section := range []struct {
				name, want string
				got        []dns.RR
			}{{"answer", r.answer, got.Answer}, {"authority", r.authority, got.Ns}, {"additional", r.additional, got.Extra}} {
				if have, want := facts(section.got), expected(t, r.id, section.want); !slices.Equal(have, want) {
					wrong = append(wrong, fmt.Sprintf("%s %q, want %q", section.name, have, want))
				}
			}
			reason, deviates := deviations[r.id]
			switch {
			case len(wrong) > 0 && !deviates:
				t.Errorf("%s %s %s over %s: %s", r.id, r.name, r.kind, network, strings.Join(wrong, "; "))
			case len(wrong) == 0 && deviates:
				t.Errorf("%s is listed as different (%s) and is not", r.id, reason)
			}
		}
		judged++
	}
	if judged != 85 {
		t.Errorf("%d rows were judged", judged)
	}
}
