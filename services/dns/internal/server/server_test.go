package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/resolver"
	"podwire.dev/services/dns/internal/zone"
)

// crowd is a World with a headless Service of n endpoints.
func crowd(n int) *zone.World {
	w := zone.NewWorld("cluster.local", 3)
	w.SetNamespace("default")
	w.SetService(&objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "crowd"}, Spec: &objectv1.ServiceSpec{ClusterIp: "None"},
	})
	port, name := int32(80), "http"
	s := &objectv1.EndpointSlice{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "crowd-1", Labels: map[string]string{"kubernetes.io/service-name": "crowd"}},
		Ports:    []*objectv1.EndpointPort{{Name: &name, Port: &port}},
	}
	addr := netip.MustParseAddr("10.244.0.0")
	for range n {
		addr = addr.Next()
		s.Endpoints = append(s.Endpoints, &objectv1.Endpoint{Addresses: []string{addr.String()}})
	}
	w.SetSlice(s)
	return w
}

// TestTruncation has answers that do not fit cut, with as much as fits, and whole over TCP.
func TestTruncation(t *testing.T) {
	t.Parallel()
	s := serve(t, crowd(300), nil, Limits{})
	ask := func(network string, size uint16, kind uint16, name string) *dns.Msg {
		t.Helper()
		m := new(dns.Msg)
		m.SetQuestion(name, kind)
		if size > 0 {
			m.SetEdns0(size, false)
		}
		got, _, err := (&dns.Client{Net: network, UDPSize: 65535}).Exchange(m, s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, c := range []struct {
		network string
		size    uint16
		bytes   int
		cut     bool
	}{{"udp", 0, 512, true}, {"udp", 100, 512, true}, {"udp", 800, 800, true}, {"udp", 4096, 1232, true}, {"tcp", 0, 65535, false}} {
		got := ask(c.network, c.size, dns.TypeA, "crowd.default.svc.cluster.local.")
		got.Compress = true
		if n := got.Len(); got.Truncated != c.cut || n > c.bytes || c.cut && n < c.bytes-40 || (got.IsEdns0() != nil) != (c.size > 0) {
			t.Errorf("%+v: %d bytes, %d records, cut %v", c, n, len(got.Answer), got.Truncated)
		}
		if !c.cut && len(got.Answer) != 300 {
			t.Errorf("%d records over TCP", len(got.Answer))
		}
	}
	// The addresses of SRV targets are a courtesy: that they do not fit is no truncation.
	small := serve(t, crowd(8), nil, Limits{})
	s = small
	if got := ask("udp", 1232, dns.TypeSRV, "_http._tcp.crowd.default.svc.cluster.local."); got.Truncated || len(got.Answer) != 8 || len(got.Extra) == 0 {
		t.Errorf("SRV: cut %v, %d records, %d extra", got.Truncated, len(got.Answer), len(got.Extra))
	}
}

// TestRotation has the first address change from answer to answer.
func TestRotation(t *testing.T) {
	t.Parallel()
	s := serve(t, crowd(4), nil, Limits{})
	first := map[string]bool{}
	for range 8 {
		first[exchange(t, s, "udp", "crowd.default.svc.cluster.local.", dns.TypeA).Answer[0].String()] = true
	}
	if len(first) != 4 {
		t.Errorf("first came only %v", first)
	}
}

// TestRefusals has each kind of question that is not for us answered with its code.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s := serve(t, fixture(t, "coredns-handler"), nil, Limits{})
	const name = "svc1.testns.svc.cluster.local."
	for what, c := range map[string]struct {
		change func(*dns.Msg)
		rcode  int
		said   string
	}{
		"an update":      {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented, ""},
		"a notification": {func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented, ""},
		"a transfer":     {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused, "not transferred"},
		"part of one":    {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }, dns.RcodeRefused, "not transferred"},
		"the version": {func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "version.bind.", Qtype: dns.TypeTXT, Qclass: dns.ClassCHAOS}
		}, dns.RcodeRefused, "class IN"},
		"mail agents":       {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMAILA }, dns.RcodeNotImplemented, ""},
		"two questions":     {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError, ""},
		"no question":       {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError, ""},
		"another EDNS":      {func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers, ""},
		"EDNS twice":        {func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }, dns.RcodeFormatError, ""},
		"an answer in it":   {func(m *dns.Msg) { m.Answer = []dns.RR{&dns.NULL{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeNULL}}} }, dns.RcodeFormatError, ""},
		"a name outside":    {func(m *dns.Msg) { m.Question[0].Name = "example.org." }, dns.RcodeRefused, "no upstream server is configured"},
		"without recursion": {func(m *dns.Msg) { m.Question[0].Name, m.RecursionDesired = "example.org.", false }, dns.RcodeRefused, "no answer is kept"},
		"ANY":               {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }, dns.RcodeSuccess, ""},
		"ANY of nothing": {func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "x.cluster.local.", Qtype: dns.TypeANY, Qclass: 1}
		}, dns.RcodeNameError, ""},
		"an unassigned type": {func(m *dns.Msg) { m.Question[0].Qtype = 65280 }, dns.RcodeSuccess, ""},
	} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		m.SetEdns0(1232, true)
		c.change(m)
		got, _, err := new(dns.Client).Exchange(m, s.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		var said string
		if opt := got.IsEdns0(); opt != nil {
			for _, o := range opt.Option {
				if e, ok := o.(*dns.EDNS0_EDE); ok {
					said = e.ExtraText
				}
			}
		}
		if got.Rcode != c.rcode || !strings.Contains(said, c.said) || c.said == "" && said != "" {
			t.Errorf("%s: %s %q, want %s %q", what, dns.RcodeToString[got.Rcode], said, dns.RcodeToString[c.rcode], c.said)
		}
		if what == "ANY" && (len(got.Answer) != 1 || got.Answer[0].Header().Rrtype != dns.TypeHINFO) {
			t.Errorf("ANY: %v", got.Answer)
		}
	}
}

// TestUnread answers SERVFAIL until there is a World, and from then on.
func TestUnread(t *testing.T) {
	t.Parallel()
	r := resolver.New(forward.New(forward.Options{}))
	s := serveResolver(t, r, Limits{})
	const name = "crowd.default.svc.cluster.local."
	if got := exchange(t, s, "udp", name, dns.TypeA); got.Rcode != dns.RcodeServerFailure || len(got.Ns) != 0 {
		t.Errorf("before: %v", got)
	}
	r.Publish(crowd(1).Publish(1))
	if got := exchange(t, s, "udp", name, dns.TypeA); got.Rcode != dns.RcodeSuccess || !got.Authoritative {
		t.Errorf("after: %v", got)
	}
}

// TestAliases completes an alias that leads outside with what others say of its end.
func TestAliases(t *testing.T) {
	t.Parallel()
	upstream := startUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: "test.", Rrtype: dns.TypeSOA, Class: 1, Ttl: 9}, Ns: "a.", Mbox: "b."}}
		_ = w.WriteMsg(m)
	})
	f := forward.New(forward.Options{})
	f.SetUpstreams([]netip.AddrPort{upstream})
	const name = "External.testns.svc.cluster.local."
	got := exchange(t, serve(t, fixture(t, "coredns-handler"), f, Limits{}), "udp", name, dns.TypeA)
	if got.Rcode != dns.RcodeNameError || len(got.Answer) != 1 || got.Answer[0].Header().Name != name || len(got.Ns) != 1 || got.Authoritative {
		t.Errorf("an end that is not there: %v", got)
	}
	// With nobody to ask, the alias is still true.
	got = exchange(t, serve(t, fixture(t, "coredns-handler"), nil, Limits{}), "udp", name, dns.TypeA)
	if got.Rcode != dns.RcodeSuccess || len(got.Answer) != 1 {
		t.Errorf("no upstream: %v", got)
	}
}

// dial opens a raw connection.
func dial(t *testing.T, s *Server) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

func framed(t *testing.T, m *dns.Msg) []byte {
	t.Helper()
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...)
}

func receive(t *testing.T, conn net.Conn) *dns.Msg {
	t.Helper()
	m, err := (&dns.Conn{Conn: conn}).ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestPipeline sends many questions over one connection before it reads: those for others are overtaken by ours.
func TestPipeline(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	upstream := startUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		<-release
		m := new(dns.Msg)
		m.SetReply(r)
		_ = w.WriteMsg(m)
	})
	f := forward.New(forward.Options{Attempt: 20 * time.Second})
	f.SetUpstreams([]netip.AddrPort{upstream})
	s := serve(t, crowd(1), f, Limits{})
	conn := dial(t, s)
	var sent bytes.Buffer
	want := map[uint16]string{}
	for i := range 20 {
		m := new(dns.Msg)
		m.SetQuestion("crowd.default.svc.cluster.local.", dns.TypeA)
		if i == 0 {
			m.SetQuestion("slow.example.", dns.TypeA)
		}
		m.Id = uint16(i)
		want[m.Id] = m.Question[0].Name
		sent.Write(framed(t, m))
	}
	if _, err := conn.Write(sent.Bytes()); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		if n == 19 {
			close(release)
		}
		m := receive(t, conn)
		if (m.Id == 0) != (n == 19) || want[m.Id] != m.Question[0].Name {
			t.Fatalf("answer %d: %v", n, m)
		}
		delete(want, m.Id)
	}
}

// TestStreamLimits closes connections that are too many, too quiet, too slow, or that talk rubbish, and serves the others.
func TestStreamLimits(t *testing.T) {
	t.Parallel()
	s := serve(t, crowd(1), nil, Limits{Connections: 3, ConnectionsPerClient: 2, Idle: 200 * time.Millisecond, Transfer: 200 * time.Millisecond})
	closed := func(what string, conn net.Conn) {
		t.Helper()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
			t.Errorf("%s: %v", what, err)
		}
	}
	m := new(dns.Msg)
	m.SetQuestion("crowd.default.svc.cluster.local.", dns.TypeA)
	question := framed(t, m)
	ask := func(conn net.Conn) {
		t.Helper()
		if _, err := conn.Write(question); err != nil {
			t.Fatal(err)
		}
		receive(t, conn)
	}
	first, second := dial(t, s), dial(t, s)
	ask(first)
	ask(second)
	closed("one too many", dial(t, s))
	closed("one too quiet", first)
	if _, err := second.Write(question[:5]); err == nil {
		closed("one too slow", second)
	}
	for what, p := range map[string][]byte{
		"an answer": {0, 12, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "too short": {0, 3, 1, 2, 3}, "too large": {0xff, 0xff, 0},
	} {
		conn := dial(t, s)
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
		closed(what, conn)
	}
	ask(dial(t, s))
}

// TestBusy answers at once what there is no room to forward, and goes on with what there is.
func TestBusy(t *testing.T) {
	t.Parallel()
	release, asked := make(chan struct{}), make(chan struct{}, 8)
	upstream := startUpstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		asked <- struct{}{}
		<-release
		m := new(dns.Msg)
		m.SetReply(r)
		_ = w.WriteMsg(m)
	})
	f := forward.New(forward.Options{Attempt: 20 * time.Second})
	f.SetUpstreams([]netip.AddrPort{upstream})
	for what, limits := range map[string]Limits{"of all": {Forwarded: 1}, "of one": {ForwardedPerClient: 1}} {
		testBusy(t, what, serve(t, crowd(1), f, limits), asked, release)
	}
}

// testBusy takes the only room there is, and gives it back.
func testBusy(t *testing.T, what string, s *Server, asked, release chan struct{}) {
	conn := dial(t, s)
	m := new(dns.Msg)
	m.SetQuestion("slow-"+what[3:]+".example.", dns.TypeA)
	if _, err := conn.Write(framed(t, m)); err != nil {
		t.Fatal(err)
	}
	<-asked
	for _, network := range []string{"udp", "tcp"} {
		if got := exchange(t, s, network, "other.example.", dns.TypeA); got.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: %v", network, got)
		}
		if got := exchange(t, s, network, "crowd.default.svc.cluster.local.", dns.TypeA); len(got.Answer) != 1 {
			t.Errorf("%s: %v", network, got)
		}
	}
	release <- struct{}{}
	if got := receive(t, conn); got.Rcode != dns.RcodeSuccess {
		t.Errorf("%s: the first: %v", what, got)
	}
}

// TestSilence drops what is no query, and goes on.
func TestSilence(t *testing.T) {
	t.Parallel()
	s := serve(t, crowd(1), nil, Limits{})
	conn, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	answer := new(dns.Msg)
	answer.SetReply(new(dns.Msg).SetQuestion("crowd.default.svc.cluster.local.", dns.TypeA))
	p, err := answer.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, junk := range [][]byte{{}, {1, 2, 3}, p} {
		if _, err := conn.Write(junk); err != nil {
			t.Fatal(err)
		}
	}
	m := new(dns.Msg)
	m.SetQuestion("crowd.default.svc.cluster.local.", dns.TypeA)
	if p, err = m.Pack(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(p); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	if err != nil || binary.BigEndian.Uint16(buf[:n]) != m.Id {
		t.Errorf("the first answer is not the question's: %d bytes, %v", n, err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("another answer of %d bytes, %v", n, err)
	}
}

// FuzzHandle takes any packet: no answer, or one that can be read, belongs to the packet and is no larger than it may be.
func FuzzHandle(f *testing.F) {
	r := resolver.New(forward.New(forward.Options{}))
	w := fixture(f, "coredns-handler")
	r.Publish(w.Publish(1))
	for _, name := range []string{"svc1.testns.svc.cluster.local.", `a\.b\000.cluster.local.`, "_http._tcp.hdls1.testns.svc.cluster.local.", "external.testns.svc.cluster.local.", "1.0.0.10.in-addr.arpa.", "."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeSOA, dns.TypeANY, dns.TypeCNAME} {
			m := new(dns.Msg)
			m.SetQuestion(name, kind)
			m.SetEdns0(700, true)
			p, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(p)
		}
	}
	udp, tcp := newHandler(r, false), newHandler(r, true)
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, h := range []*handler{udp, tcp} {
			reply, e := h.handle(p)
			if e != nil {
				var err error
				if reply, err = run(context.Background(), r, e, h.stream); err != nil {
					t.Fatalf("%x: %v", p, err)
				}
			}
			if reply == nil {
				if len(p) >= headerBytes && p[2]&0x80 == 0 {
					t.Fatalf("%x: no answer", p)
				}
				return
			}
			var m dns.Msg
			if err := m.Unpack(reply); err != nil {
				t.Fatalf("%x: answer %x: %v", p, reply, err)
			}
			if !m.Response || binary.BigEndian.Uint16(p) != m.Id || !h.stream && len(reply) > maxPayload {
				t.Fatalf("%x: answer %v of %d bytes", p, m, len(reply))
			}
			var q dns.Msg
			if err := q.Unpack(p); err == nil && len(q.Question) == 1 && len(m.Question) == 1 && !slices.Equal(q.Question, m.Question) {
				t.Fatalf("%x: asked %v, answered %v", p, q.Question, m.Question)
			}
		}
	})
}
