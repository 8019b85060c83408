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

// family is the set of addresses that a test uses in one address family.
type family struct {
	n                             plan.Family
	node, outside, tunnel         netip.Addr
	remote, service, balancer     netip.Addr
	pods                          map[string]netip.Addr
	podRange, serviceRange, other netip.Prefix
}

func families() []family {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	return []family{
		{4, a("172.30.9.2"), a("172.30.9.1"), a("10.244.0.1"), a("10.244.1.5"), a("10.96.0.7"), a("203.0.113.9"),
			map[string]netip.Addr{"a": a("10.244.0.10"), "b": a("10.244.0.11"), "c": a("10.244.0.12")},
			p("10.244.0.0/16"), p("10.96.0.0/16"), p("10.244.1.0/26")},
		{6, a("fd00:172:30:9::2"), a("fd00:172:30:9::1"), a("fd00:10:244::1"), a("fd00:10:244:1::5"), a("fd00:10:96::7"),
			a("2001:db8::9"),
			map[string]netip.Addr{"a": a("fd00:10:244::10"), "b": a("fd00:10:244::11"), "c": a("fd00:10:244::12")},
			p("fd00:10:244::/48"), p("fd00:10:96::/112"), p("fd00:10:244:1::/122")},
	}
}

// tunnelPort is where a test's servers stand in for the tunnel.
const tunnelPort = 8472

// world is one node with three pods, a remote pod behind pwvx, and a host outside.
type world struct {
	t       *testing.T
	ns      map[string]*testnet.NS
	table   *nft.Table
	planner *plan.Planner
	now     time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	net := testnet.New(t)
	w := &world{t: t, ns: map[string]*testnet.NS{}, now: time.Unix(1000, 0)}
	for _, name := range []string{"node", "outside", "remote", "a", "b", "c"} {
		w.ns[name] = net.AddNS(name)
	}
	w.wire(net)
	table, err := nft.Open(w.ns["node"].FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	w.table = table

	node := plan.Node{Name: "node-1", TunnelPort: tunnelPort}
	self := nodestate.Member{Name: "node-1", Kind: nodestate.MemberNode}
	var rows []nodestate.Row
	for _, f := range families() {
		node.Addresses = append(node.Addresses, f.node)
		self.Tunnel = append(self.Tunnel, f.tunnel)
		self.Underlay = append(self.Underlay, f.node)
		rows = append(rows, nodestate.Range{Kind: nodestate.RangePod, Prefix: f.podRange},
			nodestate.Range{Kind: nodestate.RangeService, Prefix: f.serviceRange})
	}
	w.planner = plan.New(node, plan.NewAllocator())
	open := nodestate.Side{Mode: nodestate.SideOpen}
	for _, name := range []string{"a", "b", "c"} {
		at := plan.Attachment{UID: name, Link: "pwp" + name}
		for _, f := range families() {
			at.Addresses = append(at.Addresses, f.pods[name])
		}
		w.planner.Attach(at)
		rows = append(rows, nodestate.Subject{PodUID: name, Ingress: open, Egress: open})
	}
	w.apply(append(rows, self)...)
	if _, err := w.planner.Commit(w.now); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Install(w.planner.Desired()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) wire(net *testnet.Net) {
	node := w.ns["node"]
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		node.SetSysctl(s, "1")
	}
	node.Hostile(testnet.ForwardDrop)
	for _, ip := range []string{"ip", "ip6"} {
		for _, direction := range []string{"iifname", "oifname"} {
			node.Run("nft", "add", "rule", ip, "filter", "FORWARD", direction, "pw*", "accept")
		}
	}
	wired := func(ns, link, at string, inside, host []netip.Prefix) {
		net.Wire(testnet.End{NS: w.ns[ns], Link: at, Addresses: inside}, testnet.End{NS: node, Link: link, Addresses: host})
	}
	var out, in, tunnel, far []netip.Prefix
	for _, f := range families() {
		bits := map[plan.Family]int{4: 24, 6: 64}[f.n]
		out = append(out, netip.PrefixFrom(f.outside, bits))
		in = append(in, netip.PrefixFrom(f.node, bits))
		tunnel = append(tunnel, host(f.tunnel))
		far = append(far, host(f.remote))
	}
	wired("outside", "eth0", "eth0", out, in)
	wired("remote", "pwvx", "eth0", far, tunnel)
	mac := func(ns, link string) string { return w.ns[ns].Link(link).Attrs().HardwareAddr.String() }
	for _, f := range families() {
		ip := func(ns string, args ...string) {
			w.ns[ns].Run("ip", append([]string{"-" + fmt.Sprint(f.n)}, args...)...)
		}
		ip("node", "route", "add", f.other.String(), "dev", "pwvx")
		ip("node", "route", "add", f.serviceRange.String(), "dev", "pwvx", "src", f.tunnel.String())
		ip("remote", "route", "add", f.tunnel.String(), "dev", "eth0")
		ip("remote", "route", "add", "default", "via", f.tunnel.String(), "dev", "eth0")
		// Permanent, as in the fabric: neighbour discovery does not pass pwvx.
		ip("remote", "neigh", "replace", f.tunnel.String(), "dev", "eth0", "lladdr", mac("node", "pwvx"))
		ip("node", "neigh", "replace", f.remote.String(), "dev", "pwvx", "lladdr", mac("remote", "eth0"))
		ip("node", "route", "add", "default", "via", f.outside.String())
		for _, target := range []netip.Addr{f.balancer, f.service} {
			ip("outside", "route", "add", target.String(), "via", f.node.String())
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		gateway := []netip.Prefix{netip.MustParsePrefix("169.254.1.1/32"), netip.MustParsePrefix("fe80::1/64")}
		var own []netip.Prefix
		for _, f := range families() {
			own = append(own, host(f.pods[name]))
		}
		wired(name, "pwp"+name, "eth0", own, gateway)
		w.ns[name].Run("ip", "route", "add", "169.254.1.1", "dev", "eth0")
		w.ns[name].Run("ip", "route", "add", "default", "via", "169.254.1.1")
		w.ns[name].Run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
		// Permanent, as in the product: no first packet waits for its link.
		for _, gateway := range []string{"169.254.1.1", "fe80::1"} {
			w.ns[name].Run("ip", "neigh", "replace", gateway, "dev", "eth0", "lladdr", mac("node", "pwp"+name))
		}
		for _, f := range families() {
			node.Run("ip", "route", "add", f.pods[name].String(), "dev", "pwp"+name, "src", f.tunnel.String())
			node.Run("ip", "neigh", "replace", f.pods[name].String(), "dev", "pwp"+name, "lladdr", mac(name, "eth0"))
		}
	}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// apply changes rows without a commit.
func (w *world) apply(rows ...nodestate.Row) {
	w.t.Helper()
	if err := w.planner.Apply(nodestate.Delta{Upserts: rows}); err != nil {
		w.t.Fatal(err)
	}
}

// commit brings the kernel up to date, late removals included.
func (w *world) commit() {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	change, err := w.planner.Commit(w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range []plan.Change{change, {Remove: change.Late}} {
		if _, err := w.table.Apply(c); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) set(rows ...nodestate.Row) {
	w.t.Helper()
	w.apply(rows...)
	w.commit()
}

func (w *world) remove(rows ...nodestate.Row) {
	w.t.Helper()
	var d nodestate.Delta
	for _, r := range rows {
		d.Removes = append(d.Removes, nodestate.RefOf(r))
	}
	if err := w.planner.Apply(d); err != nil {
		w.t.Fatal(err)
	}
	w.commit()
}

// tcp tries once; what should fail gets little time.
func (w *world) tcp(from string, to netip.Addr, port uint16) testnet.Result {
	return w.ns[from].TCP(testnet.Attempt{Target: netip.AddrPortFrom(to, port), Timeout: 400 * time.Millisecond})
}

func (w *world) udp(from string, to netip.Addr, port uint16) testnet.Result {
	return w.ns[from].UDP(testnet.Attempt{Target: netip.AddrPortFrom(to, port), Timeout: 400 * time.Millisecond})
}

// want checks an outcome, and the server where it was reached.
func (w *world) want(what string, r testnet.Result, o testnet.Outcome, server string) {
	w.t.Helper()
	if r.Outcome != o || r.Server != server {
		w.t.Errorf("%s: %s %q (%v), want %s %q\n%v", what, r.Outcome, r.Server, r.Err, o, server, w.counts())
	}
}

func (w *world) counts() map[nft.Counter]nft.Count {
	w.t.Helper()
	c, err := w.table.Counts()
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range c {
		if v.Packets == 0 {
			delete(c, k)
		}
	}
	return c
}

func key(proto nodestate.Protocol) nodestate.ServiceKey {
	return nodestate.ServiceKey{Namespace: "default", Service: "web", Protocol: proto}
}

// service is default/web on port 80 of the family's Service address.
func service(f family, proto nodestate.Protocol) nodestate.ServicePort {
	return nodestate.ServicePort{
		ServiceKey: key(proto), ClusterAddresses: []netip.Addr{f.service}, Port: 80, SourceMode: nodestate.SourceAll,
		InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
	}
}

func endpoint(proto nodestate.Protocol, at netip.Addr, port uint16, node string) nodestate.Endpoint {
	return nodestate.Endpoint{
		ServiceKey: key(proto), Address: at, Backend: port, Node: node, State: nodestate.EndpointReady,
	}
}
