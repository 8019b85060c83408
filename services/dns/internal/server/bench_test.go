package server

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/resolver"
)

func questionFor(b *testing.B, name string) []byte {
	b.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	m.SetEdns0(1232, false)
	p, err := m.Pack()
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// BenchmarkHandle is one packet in and one out, without a socket.
func BenchmarkHandle(b *testing.B) {
	r := resolver.New(forward.New(forward.Options{}))
	r.Publish(crowd(3).Publish(1))
	for _, name := range []string{"crowd.default.svc.cluster.local.", "nobody.default.svc.cluster.local."} {
		b.Run(name[:5], func(b *testing.B) {
			p := questionFor(b, name)
			h := newHandler(r, false)
			b.ReportAllocs()
			for b.Loop() {
				h.handle(p)
			}
		})
	}
}

// BenchmarkQueries is questions over UDP on loopback, each client waiting for its answer: server and clients share the cores.
func BenchmarkQueries(b *testing.B) {
	s := serve(b, crowd(3), nil, Limits{})
	p := questionFor(b, "crowd.default.svc.cluster.local.")
	var left atomic.Int64
	left.Store(int64(b.N))
	var clients sync.WaitGroup
	b.ResetTimer()
	for range 8 * runtime.GOMAXPROCS(0) {
		clients.Go(func() {
			conn, err := net.Dial("udp", s.Addr().String())
			if err != nil {
				b.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			buf := make([]byte, 2048)
			for left.Add(-1) >= 0 {
				if _, err := conn.Write(p); err != nil {
					b.Error(err)
					return
				}
				if _, err := conn.Read(buf); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}
