package nft_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

// each runs a test in both families, each in a world of its own.
func each(t *testing.T, test func(*world, family)) {
	for _, f := range families() {
		t.Run(fmt.Sprintf("IPv%d", f.n), func(t *testing.T) { test(newWorld(t), f) })
	}
}

// any is the unspecified address of a family.
func (f family) any() netip.Addr {
	if f.n == 4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// serve starts TCP and UDP servers on port 8080 of all pods and of the remote one.
func (w *world) serve(f family, names ...string) {
	for _, name := range names {
		w.ns[name].ServeTCP(name, netip.AddrPortFrom(f.any(), 8080))
		w.ns[name].ServeUDP(name, netip.AddrPortFrom(f.any(), 8080))
	}
}

func TestPaths(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "a", "b", "remote", "outside", "node")
		for _, c := range []struct {
			from   string
			to     netip.Addr
			server string
			client netip.Addr
		}{
			{"a", f.pods["b"], "b", f.pods["a"]},
			{"a", f.remote, "remote", f.pods["a"]},
			{"a", f.outside, "outside", f.node},
			{"a", f.node, "node", f.pods["a"]},
			{"node", f.pods["a"], "a", f.tunnel},
			{"node", f.remote, "remote", f.tunnel},
			{"remote", f.pods["a"], "a", f.remote},
			{"outside", f.node, "node", f.outside},
		} {
			for kind, r := range map[string]testnet.Result{
				"TCP": w.tcp(c.from, c.to, 8080), "UDP": w.udp(c.from, c.to, 8080),
			} {
				what := fmt.Sprintf("%s from %s to %s", kind, c.from, c.to)
				w.want(what, r, testnet.Reached, c.server)
				if r.Client.Addr() != c.client {
					t.Errorf("%s: the server sees %s, want %s", what, r.Client, c.client)
				}
			}
		}
		got := w.counts()
		delete(got, nft.DropGate) // what kernels say on any link: router solicitations, multicast reports
		delete(got, nft.DropSpoofed)
		if len(got) > 0 {
			t.Errorf("something was dropped: %v", got)
		}
	})
}

func TestServiceChoosesEvenly(t *testing.T) {
	each(t, func(w *world, f family) {
		for i := range 50 {
			w.ns["b"].ServeUDP(fmt.Sprint(20000+i), netip.AddrPortFrom(f.any(), uint16(20000+i)))
		}
		for _, n := range []int{3, 50} {
			rows := []nodestate.Row{service(f, nodestate.UDP)}
			for i := range n {
				rows = append(rows, endpoint(nodestate.UDP, f.pods["b"], uint16(20000+i), "node-1"))
			}
			w.set(rows...)
			got := map[string]int{}
			tries := 40 * n
			for range tries {
				r := w.udp("a", f.service, 80)
				if r.Outcome != testnet.Reached {
					t.Fatalf("n=%d: %s %v %v", n, r.Outcome, r.Err, w.counts())
				}
				got[r.Server]++
			}
			// Chi-square with n-1 degrees of freedom: 2n+40 is passed by chance less than once in 10^6 runs.
			var chi float64
			for _, c := range got {
				chi += float64((c-40)*(c-40)) / 40
			}
			if len(got) != n || chi > float64(2*n+40) {
				t.Errorf("n=%d: %d endpoints, chi square %.1f: %v", n, len(got), chi, got)
			}
		}
	})
}

func TestServiceRefuses(t *testing.T) {
	each(t, func(w *world, f family) {
		for _, proto := range []nodestate.Protocol{nodestate.TCP, nodestate.UDP} {
			s := service(f, proto)
			s.NodePort, s.NodePortFamilies = 30080, []uint8{uint8(f.n)}
			s.LoadBalancerAddresses = []netip.Addr{f.balancer}
			w.set(s)
		}
		targets := []netip.AddrPort{
			netip.AddrPortFrom(f.service, 80), netip.AddrPortFrom(f.balancer, 80), netip.AddrPortFrom(f.node, 30080),
		}
		for _, from := range []string{"a", "node", "outside"} {
			for _, to := range targets {
				w.want("TCP from "+from+" to "+to.String(), w.tcp(from, to.Addr(), to.Port()), testnet.Refused, "")
				if r := w.udp(from, to.Addr(), to.Port()); r.Outcome != testnet.Refused && (from != "node" || r.Outcome != testnet.Unreachable) {
					t.Errorf("UDP from %s to %s: %s %v, want refused", from, to, r.Outcome, r.Err)
				}
			}
		}
		for _, from := range []string{"a", "node"} {
			w.want("other port from "+from, w.tcp(from, f.service, 81), testnet.Refused, "")
			w.want("other address from "+from, w.tcp(from, f.service.Next(), 80), testnet.Refused, "")
		}
		if out, err := w.ns["a"].Try("ping", "-c1", "-W1", f.service.String()); err == nil {
			t.Errorf("a Service address answers ping: %s", out)
		}
	})
}

func TestServiceClients(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "a", "b", "remote", "outside")
		s := service(f, nodestate.TCP)
		s.NodePort, s.NodePortFamilies = 30080, []uint8{uint8(f.n)}
		s.ExternalAddresses = []netip.Addr{f.balancer}
		check := func(what, from string, to netip.Addr, port uint16, server string, client netip.Addr) {
			t.Helper()
			r := w.tcp(from, to, port)
			w.want(what, r, testnet.Reached, server)
			if r.Client.Addr() != client {
				t.Errorf("%s: the endpoint sees %s, want %s", what, r.Client, client)
			}
		}
		local := endpoint(nodestate.TCP, f.pods["a"], 8080, "node-1")
		w.set(s, local)
		check("pod", "b", f.service, 80, "a", f.pods["b"])
		check("hairpin", "a", f.service, 80, "a", f.tunnel)
		check("own process", "node", f.service, 80, "a", f.tunnel)
		check("outside", "outside", f.node, 30080, "a", f.outside)
		check("outside, external address", "outside", f.balancer, 80, "a", f.outside)
		check("pod to node port", "b", f.node, 30080, "a", f.pods["b"])

		w.remove(local)
		w.set(endpoint(nodestate.TCP, f.remote, 8080, "node-2"))
		check("pod to remote", "b", f.service, 80, "remote", f.pods["b"])
		check("own process to remote", "node", f.service, 80, "remote", f.tunnel)
		check("own process, node port", "node", f.node, 30080, "remote", f.tunnel)
		check("outside to remote", "outside", f.node, 30080, "remote", f.tunnel)

		s.ExternalPolicy, s.InternalPolicy = nodestate.LocalityLocal, nodestate.LocalityLocal
		w.set(s)
		w.want("outside, no local endpoint", w.tcp("outside", f.node, 30080), testnet.TimedOut, "")
		w.want("pod, no local endpoint", w.tcp("b", f.service, 80), testnet.TimedOut, "")
		check("short cut for pods", "b", f.balancer, 80, "remote", f.pods["b"])
		w.set(local)
		for range 8 {
			check("outside, local", "outside", f.node, 30080, "a", f.outside)
			check("pod, local", "b", f.service, 80, "a", f.pods["b"])
		}

		w.remove(local, endpoint(nodestate.TCP, f.remote, 8080, "node-2"))
		s.ExternalPolicy, s.InternalPolicy = nodestate.LocalityCluster, nodestate.LocalityCluster
		w.set(s, endpoint(nodestate.TCP, f.outside, 8080, "node-3"))
		check("pod to an endpoint on a host's network", "b", f.service, 80, "outside", f.node)
		check("own process to it", "node", f.service, 80, "outside", f.node)
		if marks := w.ns["node"].Run("conntrack", "-L"); containsMark(marks) {
			t.Errorf("a flow kept a mark:\n%s", marks)
		}
	})
}

func TestAffinity(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "b", "c", "remote")
		s := service(f, nodestate.TCP)
		s.AffinitySeconds = 60
		ends := map[string]nodestate.Endpoint{
			"b":      endpoint(nodestate.TCP, f.pods["b"], 8080, "node-1"),
			"c":      endpoint(nodestate.TCP, f.pods["c"], 8080, "node-1"),
			"remote": endpoint(nodestate.TCP, f.remote, 8080, "node-2"),
		}
		w.set(s, ends["b"], ends["c"], ends["remote"])
		stick := func() string {
			t.Helper()
			first := w.tcp("a", f.service, 80)
			for range 15 {
				w.want("same client", w.tcp("a", f.service, 80), testnet.Reached, first.Server)
			}
			return first.Server
		}
		first := stick()
		w.remove(ends[first])
		if second := stick(); second == first {
			t.Errorf("%s is still used", first)
		}
		s.AffinitySeconds = 0
		w.set(s, ends[first])
		got := map[string]bool{}
		for range 60 {
			got[w.tcp("a", f.service, 80).Server] = true
		}
		if len(got) != 3 {
			t.Errorf("without affinity one client reaches %v", got)
		}
	})
}

func TestSourceRanges(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "b")
		s := service(f, nodestate.TCP)
		s.LoadBalancerAddresses = []netip.Addr{f.balancer}
		s.SourceMode, s.SourceRanges = nodestate.SourceSome, []netip.Prefix{host(f.pods["a"])}
		w.set(s, endpoint(nodestate.TCP, f.pods["b"], 8080, "node-1"))
		w.want("in range", w.tcp("a", f.balancer, 80), testnet.Reached, "b")
		w.want("out of range", w.tcp("c", f.balancer, 80), testnet.TimedOut, "")
		w.want("out of range", w.tcp("outside", f.balancer, 80), testnet.TimedOut, "")
		w.want("the Service address has none", w.tcp("c", f.service, 80), testnet.Reached, "b")
		s.SourceRanges = append(s.SourceRanges, f.podRange)
		w.set(s)
		w.want("in the wider range", w.tcp("c", f.balancer, 80), testnet.Reached, "b")
		s.SourceMode, s.SourceRanges = nodestate.SourceAll, nil
		w.set(s)
		w.want("all", w.tcp("outside", f.balancer, 80), testnet.Reached, "b")
	})
}

// TestNoPacketMeetsAHalfChangedService changes the endpoints of a service while a client uses it. Both backends serve
// all the time, so each datagram must be answered.
func TestNoPacketMeetsAHalfChangedService(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "b", "c")
		steady := endpoint(nodestate.UDP, f.pods["b"], 8080, "node-1")
		coming := endpoint(nodestate.UDP, f.pods["c"], 8080, "node-1")
		w.set(service(f, nodestate.UDP), steady, coming)
		done := make(chan error)
		go func() { done <- flip(w, steady, coming) }()
		for tries := 0; ; tries++ {
			select {
			case err := <-done:
				if err != nil || tries == 0 {
					t.Errorf("%d tries: %v", tries, err)
				}
				return
			default:
			}
			if r := w.udp("a", f.service, 80); r.Outcome != testnet.Reached {
				t.Errorf("try %d: %s %v", tries, r.Outcome, r.Err)
			}
		}
	})
}

// flip lets two endpoints take turns; late removals wait as they do in the agent.
func flip(w *world, a, b nodestate.Row) error {
	var queue plan.Queue
	for i := range 1000 {
		gone, back := a, b
		if i%2 == 1 {
			gone, back = b, a
		}
		d := nodestate.Delta{Upserts: []nodestate.Row{back}, Removes: []nodestate.Ref{nodestate.RefOf(gone)}}
		if err := w.planner.Apply(d); err != nil {
			return err
		}
		c, err := w.planner.Commit(w.now)
		if err != nil {
			return err
		}
		if _, err := w.table.Apply(queue.Rebase(c)); err != nil {
			return err
		}
		queue.Put(time.Now(), c.Late)
		if _, err := w.table.Apply(queue.Due(time.Now())); err != nil {
			return err
		}
	}
	return nil
}
