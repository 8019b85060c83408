package dataplane_test

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

// machine is one node in a namespace, with the doors that the agent has.
type machine struct {
	t       *testing.T
	net     *testnet.Net
	ns      *testnet.NS
	dir     string
	rules   *nft.Table
	fabric  *fabric.Fabric
	links   *link.Links
	address netip.Addr
}

func newReal(t *testing.T) *machine {
	t.Helper()
	r := &machine{t: t, net: testnet.New(t), dir: t.TempDir(), address: netip.MustParseAddr("172.30.9.2")}
	r.ns = r.net.AddNS("node")
	r.ns.Hostile(testnet.ForwardDrop)
	plug := r.net.Underlay("underlay")
	plug(r.ns, netip.PrefixFrom(r.address, 24))
	r.ns.Must(func() (err error) {
		if r.rules, err = nft.Open(0); err != nil {
			return err
		}
		if r.fabric, err = fabric.Open(fabric.Config{Self: self, Underlay: r.address}); err != nil {
			return err
		}
		if r.links, err = link.Open(); err != nil {
			return err
		}
		h, err := host.Open(host.Config{Record: filepath.Join(r.dir, "host.json"), Underlay: "eth0"})
		if err != nil {
			return err
		}
		defer h.Close()
		_, err = h.Apply()
		return err
	})
	t.Cleanup(func() { r.links.Close(); r.fabric.Close(); _ = r.rules.Close() })
	return r
}

// attach makes a pod's namespace and link, as if it ran before the agent did.
func (r *machine) attach(name string, addresses ...string) *testnet.NS {
	r.t.Helper()
	ns := r.net.AddNS(name)
	r.ns.Must(func() error {
		_, err := r.links.Attach(link.Pod{
			UID: name, Namespace: "default", Name: name, NetNS: ns.Path(), Addresses: addrs(addresses...), MTU: 1450,
		})
		return err
	})
	return ns
}

// restore starts an agent's dataplane over what is held, without any service, and returns what it wrote.
func (r *machine) restore(held map[nodestate.Source]dataplane.Held) dataplane.Stats {
	r.t.Helper()
	var attached []plan.Attachment
	var stats dataplane.Stats
	r.ns.Must(func() error {
		live, err := r.links.List()
		if err != nil {
			return err
		}
		for _, l := range live {
			attached = append(attached, plan.Attachment{UID: l.UID, Link: l.Link, Addresses: l.Addresses})
		}
		loop, err := dataplane.New(dataplane.Config{
			Node: plan.Node{Name: self, Addresses: []netip.Addr{r.address}}, Rules: r.rules, Members: r.fabric,
			IDFile: filepath.Join(r.dir, "ids"), Held: held, Attachments: attached,
		})
		if err != nil {
			return err
		}
		if err := loop.Restore(r.t.Context()); err != nil {
			return err
		}
		stats = loop.Wrote()
		return nil
	})
	return stats
}

func TestRestoreOnAnEmptyKernel(t *testing.T) {
	r := newReal(t)
	a, b := r.attach("a", "10.244.0.10", "fd00:10:244::10"), r.attach("b", "10.244.0.11", "fd00:10:244::11")
	for _, at := range []string{"10.244.0.11:8080", "10.244.0.11:9090", "[fd00:10:244::11]:8080", "[fd00:10:244::11]:9090"} {
		b.ServeTCP("b", netip.MustParseAddrPort(at))
	}

	try := func(to string) testnet.Result {
		return a.TCP(testnet.Attempt{Target: netip.MustParseAddrPort(to), Timeout: 400 * time.Millisecond})
	}
	self := member(self, "10.244.0.1", "fd00:10:244::1")
	self.Underlay, self.Blocks = []netip.Addr{r.address}, []netip.Prefix{prefix("10.244.0.0/26"), prefix("fd00:10:244::/122")}
	held := map[nodestate.Source]dataplane.Held{
		nodestate.SourceIPAM: slice(7, self,
			nodestate.Range{Kind: nodestate.RangePod, Prefix: prefix("10.244.0.0/16")},
			nodestate.Range{Kind: nodestate.RangePod, Prefix: prefix("fd00:10:244::/48")},
			nodestate.Range{Kind: nodestate.RangeService, Prefix: prefix("10.96.0.0/16")},
			nodestate.Range{Kind: nodestate.RangeService, Prefix: prefix("fd00:10:96::/112")}),
		nodestate.SourceSvcproxy: slice(8, service("web", "10.96.0.7"), endpoint("web", "10.244.0.11"),
			service("web6", "fd00:10:96::7"), endpoint("web6", "fd00:10:244::11")),
		nodestate.SourcePolicy: slice(9, open("a"), isolated("b", 7),
			nodestate.Peer{Address: netip.MustParseAddr("10.244.0.10"), Class: nodestate.Class{8}},
			nodestate.Peer{Address: netip.MustParseAddr("fd00:10:244::10"), Class: nodestate.Class{8}},
			nodestate.Allow{
				Direction: nodestate.Ingress, Subject: nodestate.Class{7}, PeerMode: nodestate.PeerClass, Peer: nodestate.Class{8},
				PortMode: nodestate.PortRange, Protocol: nodestate.TCP, From: 8080, To: 8080,
			}),
	}
	if wrote := r.restore(held); wrote.Writes == 0 {
		t.Error("nothing was written into an empty kernel")
	}
	check := func(when string) {
		t.Helper()
		for _, to := range []string{"10.96.0.7:80", "10.244.0.11:8080", "[fd00:10:96::7]:80", "[fd00:10:244::11]:8080"} {
			if got := try(to); got.Outcome != testnet.Reached || got.Server != "b" {
				t.Errorf("%s: %s, which policy allows: %s %q %v", when, to, got.Outcome, got.Server, got.Err)
			}
		}
		for _, to := range []string{"10.244.0.11:9090", "[fd00:10:244::11]:9090"} {
			if got := try(to); got.Outcome == testnet.Reached {
				t.Errorf("%s: %s, which policy does not allow, was reached", when, to)
			}
		}
	}
	check("restored")
	if again := r.restore(held); again.Writes != 0 || again.Objects != 0 {
		t.Errorf("a second start wrote %d times, %d objects", again.Writes, again.Objects)
	}
	check("restored again")

	// Without the policy's slice, its pods are closed, whatever the kernel held.
	delete(held, nodestate.SourcePolicy)
	r.restore(held)
	for _, to := range []string{"10.96.0.7:80", "10.244.0.11:8080", "[fd00:10:244::11]:8080"} {
		if got := try(to); got.Outcome == testnet.Reached {
			t.Errorf("%s was reached, and no policy of the pod is known", to)
		}
	}
}
