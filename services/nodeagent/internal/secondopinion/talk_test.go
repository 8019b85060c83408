package secondopinion

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
)

// way is one direction of a talk: the numbers of the last datagram that was sent, and of the last that arrived.
type way struct{ sent, arrived atomic.Uint64 }

func (y *way) write(send func([]byte) (int, error)) {
	// An error is one that came back for an earlier datagram.
	_, _ = send(binary.BigEndian.AppendUint64(nil, y.sent.Load()+1))
	y.sent.Add(1)
}

// carries says whether datagrams arrive that are sent from now on. It may be asked when others still are sent.
func (y *way) carries(t *testing.T) func() bool {
	last := y.sent.Load() + 1 // one may be on its way
	return func() bool {
		await(t, "more is sent", func() bool { return y.sent.Load() > last+200 })
		return y.arrived.Load() > last
	}
}

// talk is a UDP flow whose server, once it was spoken to, never stops to answer, whether or not anything more comes.
type talk struct{ there, back way }

func (w *world) talk(from, to *box, source, target netip.Addr) (*talk, func()) {
	w.t.Helper()
	var server net.PacketConn
	to.ns.Must(func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(target, 0).String())
		return err
	})
	var client net.PacketConn
	from.ns.Must(func() (err error) {
		client, err = net.ListenPacket("udp", netip.AddrPortFrom(source, 0).String())
		return err
	})
	k := &talk{}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); _ = client.Close(); _ = server.Close(); done.Wait() })
	w.t.Cleanup(stop)
	var peer atomic.Pointer[net.Addr]
	hear := func(at net.PacketConn, y *way, each func(net.Addr)) {
		b := make([]byte, 64)
		for {
			n, who, err := at.ReadFrom(b)
			if err != nil {
				return
			}
			y.arrived.Store(binary.BigEndian.Uint64(b[:n]))
			each(who)
		}
	}
	say := func(y *way, send func([]byte) (int, error)) {
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			y.write(send)
		}
	}
	done.Go(func() { hear(server, &k.there, func(a net.Addr) { peer.Store(&a) }) })
	done.Go(func() { hear(client, &k.back, func(net.Addr) {}) })
	done.Go(func() {
		say(&k.there, func(b []byte) (int, error) { return client.WriteTo(b, server.LocalAddr()) })
	})
	done.Go(func() {
		say(&k.back, func(b []byte) (int, error) {
			if a := peer.Load(); a != nil {
				return server.WriteTo(b, *a)
			}
			return 0, nil
		})
	})
	return k, stop
}

// TestATalkThatIsForbiddenStaysCut closes and opens policy while both ends of a UDP flow send without pause. Not one datagram
// passes either way once a change that forbids it is done, although the answers alone would be allowed: ended, the flow would
// begin anew from its server, and take with it what is forbidden.
func TestATalkThatIsForbiddenStaysCut(t *testing.T) {
	w := newWorld(t, 2)
	a1, a2, b1 := w.pod("a1"), w.pod("a2"), w.pod("b1")
	open := nodestate.Side{Mode: nodestate.SideOpen}
	ingress := func(p *box) nodestate.Subject {
		return nodestate.Subject{PodUID: p.name, Ingress: forbidden, Egress: open}
	}
	egress := func(p *box) nodestate.Subject {
		return nodestate.Subject{PodUID: p.name, Ingress: open, Egress: forbidden}
	}
	for what, c := range map[string]struct {
		from, to *box
		forbid   nodestate.Subject
	}{
		"ingress, one node":  {a1, a2, ingress(a2)},
		"egress, one node":   {a1, a2, egress(a1)},
		"ingress, two nodes": {b1, a2, ingress(a2)},
		"egress, two nodes":  {a2, b1, egress(a2)},
		"egress, outside":    {a2, w.out, egress(a2)},
		"egress, own host":   {a2, a2.node.box, egress(a2)},
	} {
		for f := range families {
			t.Run(fmt.Sprintf("%s, IPv%d", what, families[f]), func(t *testing.T) {
				w.everywhere(nil, w.open()...)
				k, stop := w.talk(c.from, c.to, c.from.addrs[f], c.to.addrs[f])
				defer stop()
				for round := range 3 {
					heard, answered := k.there.arrived.Load(), k.back.arrived.Load()
					await(t, "the talk goes on", func() bool {
						return k.there.arrived.Load() > heard+20 && k.back.arrived.Load() > answered+20
					})
					if n := w.everywhere(nil, w.open(c.forbid)...); n == 0 {
						t.Error("no flow was ended")
					}
					there, back := k.there.carries(t), k.back.carries(t)
					if there() || back() {
						t.Errorf("round %d: datagrams pass that were sent after the change: there %v, back %v", round, there(), back())
					}
					if n := w.everywhere(nil, w.open(c.forbid, nodestate.Peer{
						Address: outsideAddr[0], Class: nodestate.Class{byte(round)},
					})...); n != 0 {
						t.Errorf("round %d: another change ended %d flows", round, n)
					}
					w.everywhere(nil, w.open()...)
				}
			})
		}
	}
}
