package app_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podwire.dev/internal/apptest"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	dnsv1 "podwire.dev/proto/podwire/dns/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
	"podwire.dev/services/dns/app"
)

// fakeMember is a place in the fabric that is loopback.
type fakeMember struct {
	joined chan struct{}
	mu     sync.Mutex
	ready  bool
}

func (m *fakeMember) Await(ctx context.Context) ([]netip.Addr, error) {
	select {
	case <-m.joined:
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *fakeMember) Ready() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = true
}

func (m *fakeMember) NotReady(string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = false
}

// stack is the service, with a place in the fabric.
type stack struct {
	*apptest.Stack
	member *fakeMember
	dns    []netip.AddrPort
}

func newStack(t *testing.T, change func(*app.Config)) *stack {
	t.Helper()
	s := &stack{Stack: apptest.New(t, app.Name, app.Kinds()), member: &fakeMember{joined: make(chan struct{})}}
	s.Put("namespaces", &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "default"}})
	first := s.Put("services", clusterIP("web", "10.96.1.1"))
	cfg := app.Config{}
	cfg.SetDefaults()
	if change != nil {
		change(&cfg)
	}
	var running *app.Running
	s.Serve(func(r *service.Replica) (err error) {
		running, err = app.Serve(r, s.member, cfg, 0)
		return err
	})
	if s.member.ready {
		t.Error("ready without an address")
	}
	close(s.member.joined)
	var err error
	if s.dns, err = running.Addresses(s.Ctx); err != nil || len(s.dns) != 2 {
		t.Fatalf("%v, %v", s.dns, err)
	}
	s.Passed(first)
	return s
}

// ask asks each address over UDP and TCP, and gives the rcode with the data of the answers.
func (s *stack) ask(name string, kind uint16) string {
	s.T.Helper()
	var said []string
	for _, addr := range s.dns {
		for _, network := range []string{"udp", "tcp"} {
			m := new(dns.Msg)
			m.SetQuestion(name, kind)
			got, _, err := (&dns.Client{Net: network}).Exchange(m, addr.String())
			if err != nil {
				s.T.Fatal(err)
			}
			text := dns.RcodeToString[got.Rcode]
			for _, rr := range got.Answer {
				text += " " + strings.TrimPrefix(rr.String(), rr.Header().String())
			}
			said = append(said, text)
		}
	}
	if said = slices.Compact(said); len(said) != 1 {
		s.T.Fatalf("%s: %q", name, said)
	}
	return said[0]
}

func clusterIP(name, ip string) *objectv1.Service {
	return &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name},
		Spec:     &objectv1.ServiceSpec{ClusterIp: ip, ClusterIps: []string{ip}, Ports: []*objectv1.ServicePort{{Name: "http", Port: 80}}},
	}
}

// TestNewName is true at once: what was NXDOMAIN resolves as soon as the watermark has passed the change, and the trace of
// the change leads here.
func TestNewName(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	if got := s.ask("web.default.svc.cluster.local.", dns.TypeA); got != "NOERROR 10.96.1.1" {
		t.Errorf("web: %s", got)
	}
	for i := range 3 {
		name := "late-" + string(rune('a'+i))
		if got := s.ask(name+".default.svc.cluster.local.", dns.TypeA); got != "NXDOMAIN" {
			t.Errorf("before: %s", got)
		}
		s.Passed(s.Put("services", clusterIP(name, "10.96.2.1")))
		if got := s.ask(name+".default.svc.cluster.local.", dns.TypeA); got != "NOERROR 10.96.2.1" {
			t.Errorf("after: %s", got)
		}
	}
	if got := s.ask("9.9.244.10.in-addr.arpa.", dns.TypePTR); got != "NXDOMAIN" {
		t.Errorf("an address that nobody has: %s", got)
	}
	if got := s.ask("1.1.96.10.in-addr.arpa.", dns.TypePTR); got != "NOERROR web.default.svc.cluster.local." {
		t.Errorf("a Service's address: %s", got)
	}
	if got := s.ask("example.org.", dns.TypeA); got != "REFUSED" {
		t.Errorf("outside, with nobody to ask: %s", got)
	}
	s.member.mu.Lock()
	defer s.member.mu.Unlock()
	if !s.member.ready {
		t.Error("answering and not ready")
	}
}

// TestResolve asks by gRPC, as nobody and as pods.
func TestResolve(t *testing.T) {
	t.Parallel()
	upstream := startUpstream(t)
	s := newStack(t, func(c *app.Config) { c.Forward.Upstreams = []string{upstream} })
	none, ndots := "None", "1"
	s.Put("pods", &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "client"}})
	s.Put("services", clusterIP("api", "10.96.3.1"))
	s.Passed(s.Put("pods", &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "own"},
		Spec: &objectv1.PodSpec{DnsPolicy: &none, DnsConfig: &objectv1.PodDNSConfig{
			Nameservers: []string{"192.0.2.53"}, Searches: []string{"svc.cluster.local"}, Options: []*objectv1.PodDNSConfigOption{{Name: "ndots", Value: &ndots}},
		}},
	}))
	client := dnsv1.NewResolveServiceClient(s.Dial(pki.User("alice")))
	for _, c := range []struct {
		req    *dnsv1.ResolveRequest
		want   string // rcode source data of each answer
		tried  string
		reason string
	}{
		{&dnsv1.ResolveRequest{Name: "web.default.svc.cluster.local", Type: "a"}, "NOERROR ZONE 10.96.1.1", "web.default.svc.cluster.local.", "the ClusterIP of Service default/web"},
		{&dnsv1.ResolveRequest{Name: "web", Pod: "default/client"}, "NOERROR ZONE 10.96.1.1; NOERROR ZONE", "web.default.svc.cluster.local.", "no address of this family"},
		{&dnsv1.ResolveRequest{Name: "web", Type: "A"}, "NXDOMAIN FORWARDED", "web.", "answered by " + upstream},
		{&dnsv1.ResolveRequest{Name: "api.default", Pod: "default/client", Type: "A"}, "NOERROR ZONE 10.96.3.1", "api.default.default.svc.cluster.local. api.default.svc.cluster.local.", ""},
		{&dnsv1.ResolveRequest{Name: "api.default", Pod: "default/own", Type: "A"}, "NOERROR ZONE 10.96.3.1", "api.default. api.default.svc.cluster.local.", ""},
		{&dnsv1.ResolveRequest{Name: "_http._tcp.web.default.svc.cluster.local", Type: "SRV"}, "NOERROR ZONE 0 100 80 web.default.svc.cluster.local.", "_http._tcp.web.default.svc.cluster.local.", "port _http._tcp of Service default/web"},
		{&dnsv1.ResolveRequest{Name: "10.96.1.1", Type: "PTR"}, "NOERROR ZONE web.default.svc.cluster.local.", "1.1.96.10.in-addr.arpa.", ""},
		{&dnsv1.ResolveRequest{Name: "example.org", Type: "A", NoForward: true}, "REFUSED NONE", "example.org.", "no answer is kept"},
		{&dnsv1.ResolveRequest{Name: "example.org", Type: "A"}, "NOERROR FORWARDED 192.0.2.80", "example.org.", "answered by " + upstream},
		{&dnsv1.ResolveRequest{Name: "example.org", Type: "A", NoForward: true}, "NOERROR CACHE 192.0.2.80", "example.org.", "kept from"},
	} {
		resp, err := client.Resolve(s.Ctx, c.req, grpc.WaitForReady(true))
		if err != nil {
			t.Errorf("%v: %v", c.req, err)
			continue
		}
		var got []string
		reason := ""
		for _, a := range resp.GetAnswers() {
			text := a.GetRcode() + " " + strings.TrimPrefix(a.GetSource().String(), "SOURCE_")
			for _, r := range a.GetRecords() {
				text += " " + r.GetData()
			}
			got, reason = append(got, text), a.GetReason()
		}
		if strings.Join(got, "; ") != c.want || strings.Join(resp.GetTried(), " ") != c.tried || !strings.Contains(reason, c.reason) || resp.GetRevision() == 0 {
			t.Errorf("%v: %q %q %q, want %q %q %q", c.req, got, resp.GetTried(), reason, c.want, c.tried, c.reason)
		}
	}
	for field, req := range map[string]*dnsv1.ResolveRequest{
		"name": {Name: strings.Repeat("x", 64)}, "type": {Name: "x", Type: "AXFR"}, "pod": {Name: "x", Pod: "client"},
	} {
		_, err := client.Resolve(s.Ctx, req)
		if v := errs.ViolationsOf(err); !errs.Is(err, errs.Invalid) || len(v) != 1 || v[0].Field != field {
			t.Errorf("%v: %v", req, err)
		}
	}
	if _, err := client.Resolve(s.Ctx, &dnsv1.ResolveRequest{Name: "x", Pod: "default/nobody"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("an unknown pod: %v", err)
	}
	if _, err := dnsv1.NewResolveServiceClient(s.Dial(pki.Node("node-1"))).Resolve(s.Ctx, &dnsv1.ResolveRequest{Name: "x"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node: %v", err)
	}
}

// TestHops finds the change of a Service among the hops that the process keeps.
func TestHops(t *testing.T) {
	t.Parallel()
	s := newStack(t, nil)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	svc := clusterIP("traced", "10.96.4.1")
	rev, err := s.Fake.Txn().Create(svc, "services", store.TracedAs("00-"+trace+"-00f067aa0ba902b7-01")).Commit(s.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.Passed(rev)
	resp, err := tracev1.NewTraceServiceClient(s.Dial(pki.User("alice"))).GetHops(s.Ctx, &tracev1.GetHopsRequest{TraceId: trace}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range resp.GetHops() {
		if h.GetName() == "plan" && h.GetRevision() == int64(rev) {
			return
		}
	}
	t.Errorf("no plan of %d among %v", rev, resp.GetHops())
}

// startUpstream is a server on loopback that knows example.org.
func startUpstream(t *testing.T) string {
	t.Helper()
	started := make(chan struct{})
	u := &dns.Server{Addr: "127.0.0.1:0", Net: "udp", NotifyStartedFunc: func() { close(started) }}
	u.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetRcode(r, dns.RcodeNameError)
		if r.Question[0].Name == "example.org." {
			rr, err := dns.NewRR("example.org. 60 IN A 192.0.2.80")
			if err != nil {
				t.Error(err)
			}
			m.Rcode, m.Answer = dns.RcodeSuccess, []dns.RR{rr}
		}
		_ = w.WriteMsg(m)
	})
	ended := make(chan error, 1)
	go func() { ended <- u.ListenAndServe() }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Shutdown() })
	return u.PacketConn.LocalAddr().String()
}

// TestConfig refuses what cannot be, all of it at once.
func TestConfig(t *testing.T) {
	t.Parallel()
	load := func(text string) []string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "dns.yaml")
		if err := os.WriteFile(path, []byte("socket: /run/dns.sock\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := daemon.Load[app.Config](path)
		var fields []string
		for _, v := range errs.ViolationsOf(err) {
			fields = append(fields, v.Field)
		}
		slices.Sort(fields)
		return fields
	}
	const peers = "peers: {cluster: a, ipam: b}\n"
	for text, want := range map[string]string{
		peers: "",
		"":    "peers.cluster peers.ipam",
		peers + "forward: {upstreams: [192.0.2.1, '192.0.2.1:5353', '2001:db8::1', '[2001:db8::1]:53']}\nstubZones: [{zone: Corp.Example., upstreams: [192.0.2.1]}]\ncache: {maxTTL: 30s}\n": "",
		peers + "forward: {upstreams: [ns.example, '192.0.2.1:0', 0.0.0.0], resolvConf: /etc/resolv.conf}\n":                                                                                 "forward forward.upstreams[0] forward.upstreams[1] forward.upstreams[2]",
		peers + "clusterDomain: Not_a_domain\nranges: [10.244.0.1/16, x, 0.0.0.0/0]\n":                                                                                                       "clusterDomain ranges[0] ranges[1] ranges[2]",
		peers + "stubZones: [{zone: svc.cluster.local, upstreams: [192.0.2.1]}, {zone: '.'}, {zone: a.example, upstreams: [x]}, {zone: a.example, upstreams: [192.0.2.1]}]\n": "stubZones[0].zone stubZones[1].upstreams stubZones[1].zone " +
			"stubZones[2].upstreams[0] stubZones[3].zone",
		peers + "cache: {entries: 0, maxTTL: 1ms, maxNegativeTTL: 48h}\n": "cache.entries cache.maxNegativeTTL cache.maxTTL",
		peers + "member: {name: ingress-1}\n":                             "member.name",
		peers + "upstreams: []\n":                                         "line 3",
	} {
		if got := strings.Join(load(text), " "); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}
