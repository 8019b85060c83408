package secondopinion

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/plan"
)

// pod finds a box by name: a1 is the first pod of node-1.
func (w *world) pod(name string) *box {
	w.t.Helper()
	for _, p := range w.pods {
		if p.name == name {
			return p
		}
	}
	w.t.Fatalf("no pod %s", name)
	return nil
}

// open are the rows of pods that no policy isolates.
func (w *world) open(but ...nodestate.Row) []nodestate.Row {
	side := nodestate.Side{Mode: nodestate.SideOpen}
	rows := make([]nodestate.Row, 0, len(w.pods)+len(but))
	for _, p := range w.pods {
		rows = append(rows, nodestate.Subject{PodUID: p.name, Ingress: side, Egress: side})
	}
	return append(rows, but...) // a later row replaces an earlier one
}

var forbidden = nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{200}, Policies: []string{"default/none"}}

// line is a TCP connection of which both ends are held.
type line struct{ client, server net.Conn }

// dial connects two boxes in their namespaces, at a port of its own.
func (w *world) dial(from, to *box, target netip.Addr) line {
	w.t.Helper()
	var l net.Listener
	to.ns.Must(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(target, 0).String())
		return err
	})
	defer l.Close()
	var c line
	from.ns.Must(func() (err error) {
		c.client, err = net.DialTimeout("tcp", l.Addr().String(), patient)
		return err
	})
	var err error
	if c.server, err = l.Accept(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.client.Close(); _ = c.server.Close() })
	return c
}

// carries says whether a message arrives within a time: at the server, and at the client.
func (l line) carries(t *testing.T, within time.Duration) (there, back bool) {
	t.Helper()
	end := time.Now().Add(within)
	var done sync.WaitGroup
	one := func(from, to net.Conn, arrived *bool) {
		if _, err := from.Write([]byte{1}); err != nil {
			return
		}
		_ = to.SetReadDeadline(end)
		n, _ := to.Read(make([]byte, 16)) // an error is a message that did not arrive
		*arrived = n > 0
	}
	done.Go(func() { one(l.client, l.server, &there) })
	done.Go(func() { one(l.server, l.client, &back) })
	done.Wait()
	return there, back
}

// silence is how long a message gets that must not arrive.
const silence = 250 * time.Millisecond

// TestForbiddenConnectionIsCut changes policy while connections are open. What is forbidden carries nothing more, in
// either direction, from the moment that the change is done, and stays cut when it is allowed again.
func TestForbiddenConnectionIsCut(t *testing.T) {
	w := newWorld(t, 2)
	a1, a2, b1 := w.pod("a1"), w.pod("a2"), w.pod("b1")
	w.everywhere(nil, w.open()...)
	for what, c := range map[string]struct {
		from, to *box
		forbid   nodestate.Subject
	}{
		"ingress, one node":  {a1, a2, nodestate.Subject{PodUID: "a2", Ingress: forbidden, Egress: nodestate.Side{Mode: nodestate.SideOpen}}},
		"ingress, two nodes": {b1, a2, nodestate.Subject{PodUID: "a2", Ingress: forbidden, Egress: nodestate.Side{Mode: nodestate.SideOpen}}},
		"egress, two nodes":  {a2, b1, nodestate.Subject{PodUID: "a2", Ingress: nodestate.Side{Mode: nodestate.SideOpen}, Egress: forbidden}},
		"egress, outside":    {a2, w.out, nodestate.Subject{PodUID: "a2", Ingress: nodestate.Side{Mode: nodestate.SideOpen}, Egress: forbidden}},
	} {
		for f := range families {
			t.Run(fmt.Sprintf("%s, IPv%d", what, families[f]), func(t *testing.T) {
				cut := w.dial(c.from, c.to, c.to.addrs[f])
				other := w.dial(a1, b1, b1.addrs[f])
				for _, l := range []line{cut, other} {
					if there, back := l.carries(t, patient); !there || !back {
						t.Fatalf("an allowed connection carries nothing: %v, %v", there, back)
					}
				}
				if n := w.everywhere(nil, w.open(c.forbid)...); n == 0 {
					t.Error("no flow was ended")
				}
				if there, back := cut.carries(t, silence); there || back {
					t.Errorf("a forbidden connection carried a message: %v, %v", there, back)
				}
				if there, back := other.carries(t, patient); !there || !back {
					t.Errorf("another connection was cut as well: %v, %v", there, back)
				}
				w.everywhere(nil, w.open()...)
				if there, back := cut.carries(t, silence); there || back {
					t.Errorf("a connection that was cut is back: %v, %v", there, back)
				}
				if there, back := w.dial(c.from, c.to, c.to.addrs[f]).carries(t, patient); !there || !back {
					t.Errorf("a new connection carries nothing: %v, %v", there, back)
				}
			})
		}
	}
}

// stream sends numbered datagrams from one box to another without pause, and says which of them arrived.
type stream struct {
	sent, arrived atomic.Uint64 // the last numbers
	stop          func()
}

func (w *world) stream(from, to *box, target netip.Addr) *stream {
	w.t.Helper()
	var server net.PacketConn
	to.ns.Must(func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(target, 0).String())
		return err
	})
	var client net.Conn
	from.ns.Must(func() (err error) {
		client, err = net.Dial("udp", server.LocalAddr().String())
		return err
	})
	s := &stream{}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	s.stop = sync.OnceFunc(func() { cancel(); _ = client.Close(); _ = server.Close(); done.Wait() })
	w.t.Cleanup(s.stop)
	done.Go(func() {
		b := make([]byte, 64)
		for {
			n, _, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			s.arrived.Store(binary.BigEndian.Uint64(b[:n]))
		}
	})
	tick := time.NewTicker(200 * time.Microsecond)
	done.Go(func() {
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			// An error is one that came back for an earlier datagram.
			_, _ = client.Write(binary.BigEndian.AppendUint64(nil, s.sent.Load()+1))
			s.sent.Add(1)
		}
	})
	return s
}

// await waits until the condition holds, which counters of running goroutines decide.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	deadline := time.After(patient)
	for !ok() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("%s: not within %s", what, patient)
		}
	}
}

// TestForbiddenDatagramsStop forbids a stream of datagrams that is under way.
func TestForbiddenDatagramsStop(t *testing.T) {
	w := newWorld(t, 2)
	a1, a2 := w.pod("a1"), w.pod("a2")
	forbid := nodestate.Subject{PodUID: "a2", Ingress: forbidden, Egress: nodestate.Side{Mode: nodestate.SideOpen}}
	// stops says whether none of the datagrams that are sent from now on arrive.
	stops := func(s *stream) bool {
		last := s.sent.Load() + 1 // one may be on its way
		await(t, "more is sent", func() bool { return s.sent.Load() > last+100 })
		return s.arrived.Load() <= last
	}
	for range 5 {
		w.everywhere(nil, w.open()...)
		s := w.stream(a1, a2, a2.addrs[0])
		await(t, "the stream begins", func() bool { return s.arrived.Load() > 20 })
		w.everywhere(nil, w.open(forbid)...)
		if !stops(s) {
			t.Error("datagrams arrived that were sent after the change")
		}
		s.stop()
	}
}

func udpService(name string, port uint16, edit func(*nodestate.ServicePort)) nodestate.ServicePort {
	p := nodestate.ServicePort{
		ServiceKey: nodestate.ServiceKey{Namespace: "default", Service: name, Protocol: nodestate.UDP}, Port: port,
		SourceMode: nodestate.SourceAll, InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
	}
	edit(&p)
	return p
}

func backend(p nodestate.ServicePort, b *box, f int) nodestate.Endpoint {
	return nodestate.Endpoint{
		ServiceKey: p.ServiceKey, Address: b.addrs[f], Backend: listening[0], Node: b.node.name, State: nodestate.EndpointReady,
	}
}

// TestDatagramsFollowTheService sends every datagram from one source port, so that each meets the entry of the last.
func TestDatagramsFollowTheService(t *testing.T) {
	w := newWorld(t, 2)
	for f := range families {
		t.Run(fmt.Sprintf("IPv%d", families[f]), func(t *testing.T) {
			a1, a2, b1 := w.pod("a1"), w.pod("a2"), w.pod("b1")
			ask := func(from *box, to netip.Addr, port uint16) testnet.Result {
				at := netip.AddrPortFrom(to, port)
				return from.ns.UDP(testnet.Attempt{Target: at, From: netip.AddrPortFrom(from.addrs[f], 12345), Timeout: brief})
			}
			want := func(what string, r testnet.Result, server string) {
				t.Helper()
				if (r.Outcome == testnet.Reached) != (server != "") || r.Server != server {
					t.Errorf("%s: %s %q %v, want %q\n%s", what, r.Outcome, r.Server, r.Err, server, w.dropped())
				}
			}
			nodePort := udpService("nodeport", 80, func(p *nodestate.ServicePort) {
				p.NodePort, p.NodePortFamilies = 30053, []uint8{uint8(families[f])}
			})
			node2 := w.nodes[1].addrs[f]
			set := func(rows ...nodestate.Row) { w.everywhere(rows, w.open()...) }

			set()
			want("before there is a Service", ask(w.out, node2, 30053), "")
			set(nodePort)
			want("a Service without endpoints", ask(w.out, node2, 30053), "")
			set(nodePort, backend(nodePort, a1, f))
			want("the first endpoint (svc-053)", ask(w.out, node2, 30053), "a1")
			set(nodePort, backend(nodePort, b1, f))
			want("another endpoint (svc-049)", ask(w.out, node2, 30053), "b1")
			terminating := backend(nodePort, b1, f)
			terminating.State = nodestate.EndpointTerminating
			set(nodePort, backend(nodePort, a1, f), terminating)
			want("the old one terminates", ask(w.out, node2, 30053), "b1")
			set(nodePort)
			want("scaled to zero", ask(w.out, node2, 30053), "")
			set(nodePort, backend(nodePort, a2, f))
			want("scaled up", ask(w.out, node2, 30053), "a2")
			other := nodePort
			other.Service = "other"
			set(other, backend(other, b1, f))
			want("the node port is used again", ask(w.out, node2, 30053), "b1")
			set()
			want("the Service is deleted", ask(w.out, node2, 30053), "")

			local := udpService("local", 53, func(p *nodestate.ServicePort) {
				p.ClusterAddresses = []netip.Addr{frontendAddr(f, serviceRanges, 40)}
				p.InternalPolicy = nodestate.LocalityLocal
			})
			vip := local.ClusterAddresses[0]
			set(local, backend(local, a1, f), backend(local, b1, f))
			want("the local endpoint", ask(a2, vip, 53), "a1")
			set(local, backend(local, b1, f))
			want("no local endpoint", ask(a2, vip, 53), "")
			set(local, backend(local, a2, f), backend(local, b1, f))
			want("a new local endpoint (svc-051)", ask(a2, vip, 53), "a2")
			want("the other node's own", ask(w.pod("b2"), vip, 53), "b1")

			balancer := udpService("balancer", 53, func(p *nodestate.ServicePort) {
				p.ExternalAddresses = []netip.Addr{frontendAddr(f, outsideRanges, 40)}
			})
			set()
			want("an address that is nobody's yet", ask(w.out, balancer.ExternalAddresses[0], 53), "")
			set(balancer, backend(balancer, a1, f))
			want("it is a Service's now", ask(w.out, balancer.ExternalAddresses[0], 53), "a1")
		})
	}
}

const flips = 60

// TestFlipsLeakNothing changes the form of a policy again and again, while it forbids one pod the same as before and
// allows another the same as before.
func TestFlipsLeakNothing(t *testing.T) {
	w := newWorld(t, 3)
	a1, a2, a3, b1 := w.pod("a1"), w.pod("a2"), w.pod("a3"), w.pod("b1")
	peers := []nodestate.Row{}
	for f := range families {
		peers = append(peers, nodestate.Peer{Address: a1.addrs[f], Class: nodestate.Class{1}},
			nodestate.Peer{Address: b1.addrs[f], Class: nodestate.Class{1}}, nodestate.Peer{Address: a3.addrs[f], Class: nodestate.Class{2}})
	}
	// forms allow class 1 and nobody else to reach a2's first port.
	form := func(i int) []nodestate.Row {
		class := nodestate.Class{100, byte(i / 3 % 2)}
		side := nodestate.Side{Mode: nodestate.SideIsolated, Class: class}
		rows := w.open(nodestate.Subject{PodUID: "a2", Ingress: side, Egress: nodestate.Side{Mode: nodestate.SideOpen}})
		for _, protocol := range []nodestate.Protocol{nodestate.TCP, nodestate.UDP} {
			allow := nodestate.Allow{
				Direction: nodestate.Ingress, Subject: class, PeerMode: nodestate.PeerClass, Peer: nodestate.Class{1},
				PortMode: nodestate.PortProtocol, Protocol: protocol,
			}
			switch i % 3 {
			case 1:
				allow.PortMode, allow.From, allow.To = nodestate.PortRange, listening[0], listening[0]
			case 2:
				allow.PortMode, allow.From, allow.To = nodestate.PortRange, 1, 60000
			}
			rows = append(rows, allow)
		}
		return append(rows, peers...)
	}
	w.everywhere(nil, form(0)...)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var probes sync.WaitGroup
	var allowed, denied atomic.Int64
	// again tries at a bounded rate, until one attempt ends otherwise than it must.
	again := func(p probe, timeout time.Duration, must testnet.Outcome, count *atomic.Int64) {
		pace := time.NewTicker(10 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil {
			if r := p.try(timeout); r.Outcome != must {
				t.Errorf("%s: %s %q %v, must be %s", p, r.Outcome, r.Reply, r.Err, must)
				return
			}
			count.Add(1)
			<-pace.C
		}
	}
	for f := range families {
		for _, protocol := range []nodestate.Protocol{nodestate.TCP, nodestate.UDP} {
			for _, from := range []*box{a1, b1} {
				probes.Go(func() { again(probe{from, a2.addrs[f], listening[0], protocol}, patient, testnet.Reached, &allowed) })
			}
			for range 3 {
				probes.Go(func() { again(probe{a3, a2.addrs[f], listening[0], protocol}, silence/10, testnet.TimedOut, &denied) })
			}
		}
	}
	for i := range flips {
		// A packet that leaked has left an entry, which would be ended now.
		if n := w.everywhere(nil, form(i)...); n > 0 {
			t.Errorf("flip %d: %d flows were there that are forbidden", i, n)
		}
	}
	cancel()
	probes.Wait()
	t.Logf("%d allowed attempts succeeded, %d forbidden ones failed", allowed.Load(), denied.Load())
	if allowed.Load() == 0 || denied.Load() == 0 {
		t.Error("nothing was tried")
	}
}

// TestDetachedPodTakesItsFlows takes a pod out of the tables while its process still runs and its link is still there.
func TestDetachedPodTakesItsFlows(t *testing.T) {
	w := newWorld(t, 2)
	a1, a2 := w.pod("a1"), w.pod("a2")
	w.everywhere(nil, w.open()...)
	var lines []line
	for f := range families {
		lines = append(lines, w.dial(a1, a2, a2.addrs[f]), w.dial(a2, w.out, w.out.addrs[f]), w.dial(a1, w.out, w.out.addrs[f]))
	}
	n := a2.node
	n.planner.Detach(a2.name)
	n.tables.Attachments = slices.DeleteFunc(n.tables.Attachments, func(a plan.Attachment) bool { return a.UID == a2.name })
	ended, err := n.commit(dataplane.Concern{Policy: true})
	if err != nil || ended != 4 {
		t.Errorf("%d flows ended: %v", ended, err)
	}
	for i, l := range lines {
		there, back := l.carries(t, silence)
		if want := i%3 == 2; there != want || back != want {
			t.Errorf("line %d: %v, %v, want %v", i, there, back, want)
		}
	}
	// The address's next pod must not find anything of the last one.
	n.planner.Attach(plan.Attachment{UID: a2.name, Link: a2.link, Addresses: a2.addrs[:]})
	n.tables.Attachments = append(n.tables.Attachments, plan.Attachment{UID: a2.name, Link: a2.link, Addresses: a2.addrs[:]})
	if _, err := n.commit(dataplane.Concern{Policy: true}); err != nil {
		t.Fatal(err)
	}
	if there, back := lines[0].carries(t, silence); there || back {
		t.Errorf("a connection of the pod before is back: %v, %v", there, back)
	}
}
