package forward

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is a real server on loopback, over UDP and TCP, whose answers the test makes.
type upstream struct {
	addr netip.AddrPort

	mu    sync.Mutex
	serve func(network string, r *dns.Msg) *dns.Msg
	asked atomic.Int64
	ports map[string]bool
	ids   map[uint16]bool
}

func newUpstream(t *testing.T, serve func(network string, r *dns.Msg) *dns.Msg) *upstream {
	t.Helper()
	u := &upstream{serve: serve, ports: map[string]bool{}, ids: map[uint16]bool{}}
	packets, streams := freePort(t)
	u.addr = netip.MustParseAddrPort(packets.LocalAddr().String())
	for network, s := range map[string]*dns.Server{"udp": {PacketConn: packets}, "tcp": {Listener: streams}} {
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			u.asked.Add(1)
			u.mu.Lock()
			u.ports[w.RemoteAddr().String()], u.ids[r.Id] = true, true
			answer := u.serve
			u.mu.Unlock()
			if m := answer(network, r); m != nil {
				_ = w.WriteMsg(m)
			}
		})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = s.ActivateAndServe() // until it is shut down
		}()
		t.Cleanup(func() {
			_ = s.Shutdown()
			if s.PacketConn != nil {
				_ = s.PacketConn.Close()
			} else {
				_ = s.Listener.Close()
			}
			<-ended
		})
	}
	return u
}

// freePort binds a port that is free for both protocols.
func freePort(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		streams, err := net.Listen("tcp", packets.LocalAddr().String())
		if err == nil {
			return packets, streams
		}
		_ = packets.Close()
	}
	t.Fatal("no port is free for both protocols")
	return nil, nil
}

func (u *upstream) answer(serve func(network string, r *dns.Msg) *dns.Msg) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.serve = serve
}

func record(text string) dns.RR {
	rr, err := dns.NewRR(text)
	if err != nil {
		panic(err)
	}
	return rr
}

// replying answers with a code and records; those of type SOA go to the authority section.
func replying(rcode int, records ...string) func(string, *dns.Msg) *dns.Msg {
	return func(_ string, r *dns.Msg) *dns.Msg {
		m := new(dns.Msg)
		m.SetRcode(r, rcode)
		for _, text := range records {
			rr := record(text)
			if rr.Header().Rrtype == dns.TypeSOA {
				m.Ns = append(m.Ns, rr)
			} else {
				m.Answer = append(m.Answer, rr)
			}
		}
		return m
	}
}

func silent(string, *dns.Msg) *dns.Msg { return nil }

// clock is a time that the test moves.
type clock struct{ nanos atomic.Int64 }

func (c *clock) now() time.Time       { return time.Unix(0, c.nanos.Load()) }
func (c *clock) pass(d time.Duration) { c.nanos.Add(int64(d)) }

func newForwarder(opts Options, servers ...*upstream) (*Forwarder, *clock) {
	c := &clock{}
	c.pass(time.Hour)
	opts.Now = c.now
	if opts.Attempt == 0 {
		opts.Attempt = 300 * time.Millisecond
	}
	f := New(opts)
	var addrs []netip.AddrPort
	for _, u := range servers {
		addrs = append(addrs, u.addr)
	}
	f.SetUpstreams(addrs)
	return f, c
}

func ask(f *Forwarder, name string) Result {
	return f.Ask(context.Background(), Question{Name: name, Type: dns.TypeA})
}

// TestKeeping keeps answers for their time and not longer, negative ones by their SOA.
func TestKeeping(t *testing.T) {
	t.Parallel()
	const soa = "example. 900 IN SOA a. b. 1 2 3 4 "
	for what, c := range map[string]struct {
		serve func(string, *dns.Msg) *dns.Msg
		keeps time.Duration
		first uint32 // TTL handed out at first
	}{
		"an answer":              {replying(0, "x.example. 60 IN A 192.0.2.1", "x.example. 90 IN A 192.0.2.2"), 60 * time.Second, 60},
		"for very long":          {replying(0, "x.example. 86400 IN A 192.0.2.1"), 10 * time.Minute, 600},
		"not at all":             {replying(0, "x.example. 0 IN A 192.0.2.1"), 0, 0},
		"an alias and its end":   {replying(0, "x.example. 7 IN CNAME y.example.", "y.example. 60 IN A 192.0.2.1"), 7 * time.Second, 7},
		"no name":                {replying(dns.RcodeNameError, soa+"5"), 5 * time.Second, 5},
		"no data":                {replying(0, soa+"5"), 5 * time.Second, 5},
		"no data of an alias":    {replying(0, "x.example. 3 IN CNAME y.example.", soa+"5"), 3 * time.Second, 3},
		"nothing for very long":  {replying(dns.RcodeNameError, soa+"86400"), 30 * time.Second, 30},
		"nothing without an SOA": {replying(dns.RcodeNameError), 0, 0},
	} {
		u := newUpstream(t, c.serve)
		f, now := newForwarder(Options{Cache: CacheOptions{MaxTTL: 10 * time.Minute}}, u)
		r := ask(f, "x.example.")
		if r.Source != Upstream || r.Server != u.addr {
			t.Errorf("%s: %+v", what, r)
		}
		answer, authority, _ := r.Records("x.example.")
		if all := append(answer, authority...); len(all) > 0 && all[0].Header().Ttl != c.first {
			t.Errorf("%s: handed out for %d s, want %d", what, all[0].Header().Ttl, c.first)
		}
		if c.keeps > 0 {
			now.pass(c.keeps - time.Second)
			r := ask(f, "X.Example.")
			answer, authority, _ := r.Records("X.Example.")
			all := append(answer, authority...)
			if r.Source != Cache || all[0].Header().Ttl != 1 || len(answer) > 0 && answer[0].Header().Name != "X.Example." {
				t.Errorf("%s: before its time is over: %+v %v", what, r, all)
			}
			now.pass(time.Second)
		}
		if r := ask(f, "x.example."); r.Source != Upstream || u.asked.Load() != 2 {
			t.Errorf("%s: after its time: %+v, asked %d times", what, r, u.asked.Load())
		}
	}
}

// TestBounds keeps no more than it may, and the most recently used.
func TestBounds(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(_ string, r *dns.Msg) *dns.Msg {
		return replying(0, r.Question[0].Name+" 60 IN A 192.0.2.1")("", r)
	})
	f, _ := newForwarder(Options{Cache: CacheOptions{Entries: 64}}, u)
	for i := range 300 {
		ask(f, fmt.Sprintf("n%d.example.", i))
		ask(f, "often.example.")
	}
	kept := 0
	for i := range f.cache.shards {
		kept += len(f.cache.shards[i].entries)
	}
	if kept > 64 || kept < 32 {
		t.Errorf("%d are kept", kept)
	}
	if n := u.asked.Load(); n != 301 {
		t.Errorf("asked %d times: what is used often went", n)
	}
	// What is large is handed on and not kept.
	u.answer(func(network string, r *dns.Msg) *dns.Msg {
		m := replying(0)("", r)
		m.Truncated = network == "udp"
		for i := 0; i < 30 && !m.Truncated; i++ {
			m.Answer = append(m.Answer, record(fmt.Sprintf("large.example. 60 IN TXT %q", strings.Repeat("x", 200)+fmt.Sprint(i))))
		}
		return m
	})
	large := func() Result {
		return f.Ask(context.Background(), Question{Name: "large.example.", Type: dns.TypeTXT})
	}
	if a, b := large(), large(); a.Source != Upstream || b.Source != Upstream {
		t.Errorf("large: %+v, %+v", a, b)
	}
}

// TestOrder asks servers in their order, the ones that failed lately last.
func TestOrder(t *testing.T) {
	t.Parallel()
	one := newUpstream(t, replying(0, "x.example. 0 IN A 192.0.2.1"))
	two := newUpstream(t, replying(0, "x.example. 0 IN A 192.0.2.2"))
	f, now := newForwarder(Options{}, one, two)
	by := func(what string, want *upstream) {
		t.Helper()
		if r := ask(f, "x.example."); r.Server != want.addr || r.Failed {
			t.Errorf("%s: %+v", what, r)
		}
	}
	by("both are well", one)
	one.answer(silent)
	by("the first is silent", two)
	n := one.asked.Load()
	by("it is left alone for a while", two)
	if one.asked.Load() != n {
		t.Error("it was asked all the same")
	}
	one.answer(replying(0, "x.example. 0 IN A 192.0.2.1"))
	now.pass(2 * time.Second)
	by("it is tried again, and is well", one)
	one.answer(replying(dns.RcodeServerFailure))
	by("it speaks of failure", two)
	one.answer(replying(dns.RcodeRefused))
	by("it refuses", two)
	f.SetUpstreams([]netip.AddrPort{two.addr})
	by("another configuration", two)
}

// TestFailures remembers a failure for a second, then longer, never for more than five.
func TestFailures(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, replying(dns.RcodeServerFailure))
	f, now := newForwarder(Options{}, u)
	for i, pause := range []time.Duration{1, 2, 4, 5, 5} {
		if r := ask(f, "x.example."); !r.Failed || r.Rcode != dns.RcodeServerFailure || !strings.Contains(r.Reason, "answers SERVFAIL") {
			t.Fatalf("failure %d: %+v", i, r)
		}
		asked := u.asked.Load()
		now.pass(pause*time.Second - time.Millisecond)
		if r := ask(f, "x.example."); !r.Failed || u.asked.Load() != asked {
			t.Errorf("failure %d: asked again before %d s", i, pause)
		}
		now.pass(time.Millisecond)
	}
	u.answer(replying(0, "x.example. 60 IN A 192.0.2.1"))
	if r := ask(f, "x.example."); r.Failed {
		t.Errorf("well again: %+v", r)
	}
}

// TestStale hands out what is past its time while nobody renews it, for an hour.
func TestStale(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, replying(0, "x.example. 60 IN A 192.0.2.1"))
	f, now := newForwarder(Options{Attempt: 50 * time.Millisecond}, u)
	ask(f, "x.example.")
	u.answer(silent)
	now.pass(2 * time.Minute)
	r := ask(f, "x.example.")
	answer, _, _ := r.Records("x.example.")
	if !r.Stale || r.Failed || len(answer) != 1 || answer[0].Header().Ttl != 30 {
		t.Errorf("past its time: %+v %v", r, answer)
	}
	asked := u.asked.Load()
	if r := ask(f, "x.example."); !r.Stale || u.asked.Load() != asked {
		t.Errorf("right after: %+v, asked %d times more", r, u.asked.Load()-asked)
	}
	now.pass(58 * time.Minute)
	if r := ask(f, "x.example."); !r.Stale {
		t.Errorf("within the hour: %+v", r)
	}
	now.pass(2 * time.Minute)
	if r := ask(f, "x.example."); !r.Failed {
		t.Errorf("after it: %+v", r)
	}
	u.answer(replying(0, "x.example. 60 IN A 192.0.2.9"))
	now.pass(10 * time.Second)
	if r := ask(f, "x.example."); r.Source != Upstream || r.Stale {
		t.Errorf("renewed: %+v", r)
	}
}

// TestOneFlight asks once for many.
func TestOneFlight(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	u := newUpstream(t, func(_ string, r *dns.Msg) *dns.Msg {
		<-release
		return replying(0, "x.example. 60 IN A 192.0.2.1")("", r)
	})
	f, _ := newForwarder(Options{Attempt: 20 * time.Second}, u)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for i := range 50 {
		wg.Go(func() {
			if i == 0 { // one gives up: the others do not
				if r := f.Ask(ctx, Question{Name: "x.example.", Type: dns.TypeA}); !r.Failed && r.Server != u.addr {
					t.Errorf("the one that gives up: %+v", r)
				}
				return
			}
			if r := ask(f, "X.example."); r.Failed || r.Server != u.addr {
				t.Errorf("%+v", r)
			}
		})
	}
	cancel()
	close(release)
	wg.Wait()
	if n := u.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// TestLoop has a question come back to us: it joins itself, and ends.
func TestLoop(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, silent)
	f, _ := newForwarder(Options{}, u)
	u.answer(func(_ string, r *dns.Msg) *dns.Msg {
		back := f.Ask(context.Background(), Question{Name: r.Question[0].Name, Type: r.Question[0].Qtype})
		return replying(back.Rcode)("", r)
	})
	if r := ask(f, "x.example."); !r.Failed || r.Rcode != dns.RcodeServerFailure {
		t.Errorf("%+v", r)
	}
	if n := u.asked.Load(); n > maxAttempts {
		t.Errorf("sent %d times", n)
	}
	f, _ = newForwarder(Options{Avoid: func(a netip.AddrPort) bool { return a == u.addr }}, u)
	if r := ask(f, "x.example."); !r.Failed || r.Rcode != dns.RcodeRefused || !strings.Contains(r.Reason, "this service itself") {
		t.Errorf("an upstream that is ourselves: %+v", r)
	}
}

// TestTruncated asks over TCP for what UDP cuts short, and fails where that is cut, too.
func TestTruncated(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(network string, r *dns.Msg) *dns.Msg {
		m := replying(0)("", r)
		m.Truncated = network == "udp"
		if network == "tcp" {
			m.Answer = []dns.RR{record("x.example. 60 IN A 192.0.2.1")}
		}
		return m
	})
	f, _ := newForwarder(Options{}, u)
	r := ask(f, "x.example.")
	if answer, _, _ := r.Records("x.example."); len(answer) != 1 || u.asked.Load() != 2 {
		t.Errorf("%+v, asked %d times", r, u.asked.Load())
	}
	u.answer(func(_ string, r *dns.Msg) *dns.Msg {
		m := replying(0)("", r)
		m.Truncated = true
		return m
	})
	if r := ask(f, "y.example."); !r.Failed || !strings.Contains(r.Reason, "cut short") {
		t.Errorf("also over TCP: %+v", r)
	}
}

// TestWithoutEDNS asks a server that does not know EDNS again without it.
func TestWithoutEDNS(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(_ string, r *dns.Msg) *dns.Msg {
		if r.IsEdns0() != nil {
			return replying(dns.RcodeFormatError)("", r)
		}
		return replying(0, "x.example. 60 IN A 192.0.2.1")("", r)
	})
	f, _ := newForwarder(Options{}, u)
	if r := ask(f, "x.example."); r.Failed {
		t.Errorf("%+v", r)
	}
}

// TestForeignAnswers takes no answer that is not the question's: another id, another name, from another server.
func TestForeignAnswers(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 2048)
		n, client, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var q dns.Msg
		if err := q.Unpack(buf[:n]); err != nil {
			t.Error(err)
			return
		}
		send := func(from net.PacketConn, addr string, change func(*dns.Msg)) {
			m := replying(0, "x.example. 60 IN A "+addr)("", &q)
			change(m)
			p, err := m.Pack()
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := from.WriteTo(p, client); err != nil {
				t.Error(err)
			}
		}
		_, _ = conn.WriteTo([]byte("rubbish"), client)
		send(conn, "203.0.113.1", func(m *dns.Msg) { m.Id++ })
		send(conn, "203.0.113.2", func(m *dns.Msg) { m.Question[0].Name = "y.example." })
		send(conn, "203.0.113.3", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA })
		send(conn, "203.0.113.4", func(m *dns.Msg) { m.Response = false })
		send(other, "203.0.113.5", func(*dns.Msg) {})
		send(conn, "192.0.2.1", func(*dns.Msg) {})
	}()
	f, _ := newForwarder(Options{Attempt: 10 * time.Second})
	f.SetUpstreams([]netip.AddrPort{netip.MustParseAddrPort(conn.LocalAddr().String())})
	r := ask(f, "x.example.")
	if answer, _, _ := r.Records("x.example."); len(answer) != 1 || !strings.HasSuffix(answer[0].String(), "192.0.2.1") {
		t.Errorf("%+v %v", r, answer)
	}
	_, _ = conn.Close(), other.Close()
	<-ended
}

// TestGuessing finds ids and source ports that nobody foresees: no two of a few hundred in a row, hardly any twice.
func TestGuessing(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, replying(0, "x.example. 0 IN A 192.0.2.1"))
	f, _ := newForwarder(Options{}, u)
	for i := range 200 {
		ask(f, fmt.Sprintf("x%d.example.", i))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.ports) < 180 || len(u.ids) < 190 {
		t.Errorf("%d ports and %d ids of 200", len(u.ports), len(u.ids))
	}
}

// TestStubs asks the servers of the longest zone that fits.
func TestStubs(t *testing.T) {
	t.Parallel()
	rest, corp, dev := newUpstream(t, replying(0)), newUpstream(t, replying(0)), newUpstream(t, replying(0))
	f, _ := newForwarder(Options{Stubs: []Stub{{"corp.example.", []netip.AddrPort{corp.addr}}, {"dev.corp.example.", []netip.AddrPort{dev.addr}}}}, rest)
	for name, want := range map[string]*upstream{
		"example.": rest, "xcorp.example.": rest, "corp.example.": corp, "A.Corp.Example.": corp, "dev.corp.example.": dev, "x.dev.corp.example.": dev,
	} {
		if r := ask(f, name); r.Server != want.addr {
			t.Errorf("%s: asked %s", name, r.Server)
		}
	}
}

// TestNobody refuses, and keeps nothing of it.
func TestNobody(t *testing.T) {
	t.Parallel()
	f, _ := newForwarder(Options{})
	if r := ask(f, "x.example."); r.Rcode != dns.RcodeRefused || !r.Failed || r.Source != None {
		t.Errorf("%+v", r)
	}
	if _, ok := f.Kept(Question{Name: "x.example.", Type: dns.TypeA}); ok {
		t.Error("a refusal was kept")
	}
	u := newUpstream(t, replying(0, "x.example. 60 IN A 192.0.2.1"))
	f.SetUpstreams([]netip.AddrPort{u.addr})
	if r := ask(f, "x.example."); r.Failed {
		t.Errorf("%+v", r)
	}
	if r, ok := f.Kept(Question{Name: "x.example.", Type: dns.TypeA}); !ok || r.Source != Cache {
		t.Errorf("%+v", r)
	}
}

// FuzzBelongs takes any answer: none is taken for that of another question.
func FuzzBelongs(f *testing.F) {
	query := new(dns.Msg)
	query.SetQuestion("x.example.", dns.TypeA)
	reply := replying(0, "x.example. 60 IN A 192.0.2.1")("", query)
	p, err := reply.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	c := newCache(CacheOptions{Entries: 16})
	f.Fuzz(func(t *testing.T, p []byte) {
		var m dns.Msg
		if m.Unpack(p) != nil || !belongs(&m, query) {
			return
		}
		if m.Id != query.Id || !m.Response {
			t.Fatalf("%v", &m)
		}
		k := keyOf(Question{Name: "x.example.", Type: dns.TypeA})
		c.put(k, time.Unix(1, 0), &m, netip.AddrPort{})
		if r, ok := c.get(k, time.Unix(1, 0)); ok {
			r.Records("x.example.")
			if m.Truncated {
				t.Fatal("a truncated answer is kept")
			}
		}
	})
}
