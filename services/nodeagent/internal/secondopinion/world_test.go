package secondopinion

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/ct"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

// families are the two address families, as indexes of pair.
var families = [2]plan.Family{plan.IPv4, plan.IPv6}

// pair is an address of each family.
type pair [2]netip.Addr

func both(v4, v6 string) pair { return pair{netip.MustParseAddr(v4), netip.MustParseAddr(v6)} }

var (
	podRanges = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	// serviceRanges hold service addresses, outsideRanges those of load balancers.
	serviceRanges = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
	outsideRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/64")}
	outsideAddr   = both("172.30.9.254", "fd00:172:30:9::fe")
)

// listening are the ports that every pod, node and the outside serve in TCP and UDP; deaf is one that nobody serves.
var listening = []uint16{8080, 8081, 8090, 9000}

const deaf uint16 = 7777

// tunnelPort is where the nodes' and the member's tunnels are.
const tunnelPort uint16 = 8472

// memberAddr is what a member that is no node leases, memberUnderlay where it is on the underlay.
var (
	memberAddr     = both("10.244.7.7", "fd00:10:244:7::7")
	memberUnderlay = both("172.30.9.100", "fd00:172:30:9::64")
)

// box is something that sends and serves: a pod, a node, a member that is no node, or the host outside.
type box struct {
	name string
	ns   *testnet.NS
	// node is the node that a pod runs on, or the node itself; nil for the member and the outside.
	node  *node
	link  string // a pod's
	addrs pair
}

func (b *box) isPod() bool { return b.link != "" }

// node is a node with all doors to its kernel.
type node struct {
	*box
	index   int
	tunnel  pair
	blocks  []netip.Prefix
	rules   *nft.Table
	fabric  *fabric.Fabric
	links   *link.Links
	flows   *ct.Flows
	planner *plan.Planner
	queue   plan.Queue
	tables  dataplane.Tables
}

// world is two nodes with pods, a member that is no node, an underlay between them, and a host outside.
type world struct {
	t      *testing.T
	net    *testnet.Net
	nodes  [2]*node
	member *box
	out    *box
	pods   []*box
}

// newWorld makes two nodes with the given number of pods each. Their policies and Services are empty.
func newWorld(t *testing.T, podsPerNode int) *world {
	t.Helper()
	w := &world{t: t, net: testnet.New(t)}
	plug := w.net.Underlay("underlay")
	w.out = &box{name: "outside", ns: w.net.AddNS("outside"), addrs: outsideAddr}
	for _, s := range []string{"net/ipv4/conf/all/accept_redirects", "net/ipv6/conf/all/accept_redirects", "net/ipv6/conf/default/accept_redirects"} {
		w.out.ns.SetSysctl(s, "0")
	}
	plug(w.out.ns, wide(outsideAddr)...)
	for i := range w.nodes {
		w.nodes[i] = w.addNode(i+1, plug)
	}
	w.member = &box{name: "dns-1", ns: w.net.AddNS("dns-1"), addrs: memberAddr}
	plug(w.member.ns, wide(memberUnderlay)...)
	members := w.members()
	w.attend(members)
	for _, n := range w.nodes {
		w.join(n, members)
		for i := range podsPerNode {
			w.addPod(n, i)
		}
		for f := range families { // the way from outside to pods, and to the addresses of Services
			w.out.ns.AddRoute(n.blocks[f], n.addrs[f])
		}
	}
	for _, list := range [][]netip.Prefix{serviceRanges, outsideRanges} {
		for f, p := range list {
			w.out.ns.AddRoute(p, w.nodes[0].addrs[f])
		}
	}
	for _, b := range w.boxes() {
		b.serve()
	}
	return w
}

func (w *world) boxes() []*box {
	all := []*box{w.out, w.member}
	for _, n := range w.nodes {
		all = append(all, n.box)
	}
	return append(all, w.pods...)
}

// wide are addresses with the prefixes of the underlay.
func wide(p pair) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(p[0], 24), netip.PrefixFrom(p[1], 64)}
}

// serve listens on every port, and lets the kernel tell of closed ones as often as it is asked.
func (b *box) serve() {
	for _, s := range []string{"net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"} {
		b.ns.SetSysctl(s, "0")
	}
	for _, port := range listening {
		for _, wildcard := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			b.ns.ServeTCP(b.name, netip.AddrPortFrom(wildcard, port))
			b.ns.ServeUDP(b.name, netip.AddrPortFrom(wildcard, port))
		}
	}
}

func (w *world) addNode(index int, plug func(*testnet.NS, ...netip.Prefix)) *node {
	w.t.Helper()
	name := fmt.Sprintf("node-%d", index)
	n := &node{
		box: &box{
			name: name, ns: w.net.AddNS(name),
			addrs: both(fmt.Sprintf("172.30.9.%d", index), fmt.Sprintf("fd00:172:30:9::%d", index)),
		},
		index:  index,
		tunnel: both(fmt.Sprintf("10.244.%d.1", index), fmt.Sprintf("fd00:10:244:%d::1", index)),
		blocks: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/26", index)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/122", index)),
		},
	}
	n.node = n
	n.ns.Hostile(testnet.ForwardDrop)
	for _, family := range []string{"ip", "ip6"} { // what goes through the host and concerns no pod is the host's affair
		n.ns.Run("nft", "add", "rule", family, "filter", "FORWARD", "iifname", "eth0", "oifname", "eth0", "accept")
	}
	for _, s := range []string{"net/ipv4/conf/all/send_redirects", "net/ipv4/conf/default/send_redirects"} {
		n.ns.SetSysctl(s, "0")
	}
	plug(n.ns, wide(n.addrs)...)
	for f, a := range outsideAddr {
		n.ns.AddRoute([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}[f], a)
	}
	n.ns.Must(func() (err error) {
		if n.rules, err = nft.Open(0); err != nil {
			return err
		}
		if n.fabric, err = fabric.Open(fabric.Config{Self: name, Underlay: n.addrs[0], Port: tunnelPort}); err != nil {
			return err
		}
		if _, err = n.fabric.EnsureDevice(); err != nil {
			return err
		}
		if n.links, err = link.Open(); err != nil {
			return err
		}
		h, err := host.Open(host.Config{
			Record: filepath.Join(w.t.TempDir(), "host.json"), Underlay: "eth0", TunnelPort: tunnelPort,
			TunnelPeers: []netip.Prefix{wide(n.addrs)[0].Masked()},
		})
		if err != nil {
			return err
		}
		defer h.Close()
		_, err = h.Apply()
		return err
	})
	conntrack, err := ct.Open(n.ns.FD())
	if err != nil {
		w.t.Fatal(err)
	}
	n.flows = ct.New(conntrack)
	w.t.Cleanup(func() { n.links.Close(); n.fabric.Close(); _ = n.rules.Close(); _ = conntrack.Close() })
	return n
}

func (n *node) member() nodestate.Member {
	return nodestate.Member{
		Name: n.name, Kind: nodestate.MemberNode, Underlay: n.addrs[:], TunnelMAC: nodestate.TunnelMACOf(n.name),
		Tunnel: n.tunnel[:], Blocks: n.blocks,
	}
}

// members are the rows of the fabric: the nodes, and a member with a block of a single address.
func (w *world) members() []nodestate.Member {
	service := nodestate.Member{
		Name: "dns-1", Kind: nodestate.MemberService, Underlay: memberUnderlay[:], TunnelMAC: nodestate.TunnelMACOf("dns-1"),
		Tunnel: memberAddr[:],
	}
	for _, a := range memberAddr {
		service.Blocks = append(service.Blocks, netip.PrefixFrom(a, a.BitLen()))
	}
	list := []nodestate.Member{service}
	for _, n := range w.nodes {
		list = append(list, n.member())
	}
	return list
}

// attend brings up the member's fabric. It has no table, and no way to Services.
func (w *world) attend(members []nodestate.Member) {
	w.t.Helper()
	var ranges []nodestate.Range
	for _, p := range podRanges {
		ranges = append(ranges, nodestate.Range{Kind: nodestate.RangePod, Prefix: p})
	}
	w.member.ns.Must(func() error {
		fab, err := fabric.Open(fabric.Config{Self: w.member.name, Underlay: memberUnderlay[0], Port: tunnelPort})
		if err != nil {
			return err
		}
		w.t.Cleanup(fab.Close)
		if _, err := fab.EnsureDevice(); err != nil {
			return err
		}
		r, err := fab.Apply(members, ranges)
		if err == nil && len(r.Problems) > 0 {
			return fmt.Errorf("the fabric of %s has problems: %v", w.member.name, r.Problems)
		}
		return err
	})
}

// join brings up a node's fabric and an empty table.
func (w *world) join(n *node, members []nodestate.Member) {
	w.t.Helper()
	var ranges []nodestate.Range
	var rows []nodestate.Row
	for f := range families {
		ranges = append(ranges, nodestate.Range{Kind: nodestate.RangePod, Prefix: podRanges[f]},
			nodestate.Range{Kind: nodestate.RangeService, Prefix: serviceRanges[f]})
	}
	for _, r := range ranges {
		rows = append(rows, r)
	}
	for _, m := range members {
		rows = append(rows, m)
	}
	n.ns.Must(func() error {
		r, err := n.fabric.Apply(members, ranges)
		if err == nil && len(r.Problems) > 0 {
			return fmt.Errorf("the fabric of %s has problems: %v", n.name, r.Problems)
		}
		return err
	})
	at := plan.Node{Name: n.name, Addresses: n.addrs[:], TunnelPort: tunnelPort}
	n.planner = plan.New(at, plan.NewAllocator())
	n.tables = dataplane.Tables{
		Node: at, Fabric: nodestate.NewSlice(), Services: nodestate.NewSlice(), Policy: nodestate.NewSlice(),
	}
	if _, err := n.rules.Install(n.planner.Desired()); err != nil {
		w.t.Fatal(err)
	}
	w.set(n, nodestate.NewSlice(rows...), n.tables.Services, n.tables.Policy)
}

func (w *world) addPod(n *node, i int) {
	w.t.Helper()
	name := fmt.Sprintf("%c%d", 'a'+n.index-1, i+1)
	b := &box{
		name: name, ns: w.net.AddNS(name), node: n,
		addrs: both(fmt.Sprintf("10.244.%d.%d", n.index, 10+i), fmt.Sprintf("fd00:10:244:%d::%x", n.index, 10+i)),
	}
	n.ns.Must(func() error {
		at, err := n.links.Attach(link.Pod{
			UID: name, Namespace: "default", Name: name, NetNS: b.ns.Path(), Addresses: b.addrs[:], MTU: 1400,
		})
		b.link = at.Link
		return err
	})
	a := plan.Attachment{UID: name, Link: b.link, Addresses: b.addrs[:]}
	n.planner.Attach(a)
	n.tables.Attachments = append(n.tables.Attachments, a)
	w.pods = append(w.pods, b)
}

// set brings a node from the rows that it holds to others, as the agent does: plan, one transaction, flows, late removals.
// It returns how many flows ended.
func (w *world) set(n *node, fabric, services, policy *nodestate.Slice) int {
	w.t.Helper()
	ended, err := n.set(fabric, services, policy)
	if err != nil {
		w.t.Fatalf("%s: %v", n.name, err)
	}
	return ended
}

// everywhere sets the Services and policies of all nodes. It returns how many flows ended.
func (w *world) everywhere(services []nodestate.Row, policy ...nodestate.Row) int {
	w.t.Helper()
	ended := 0
	for _, n := range w.nodes {
		ended += w.set(n, n.tables.Fabric, nodestate.NewSlice(services...), nodestate.NewSlice(policy...))
	}
	return ended
}

func (n *node) set(fabric, services, policy *nodestate.Slice) (ended int, err error) {
	var what dataplane.Concern
	for _, s := range []struct {
		held    **nodestate.Slice
		next    *nodestate.Slice
		concern dataplane.Concern
	}{
		{&n.tables.Fabric, fabric, dataplane.Concern{}},
		{&n.tables.Services, services, dataplane.Concern{Services: true}},
		{&n.tables.Policy, policy, dataplane.Concern{Policy: true}},
	} {
		d := nodestate.Diff(*s.held, s.next)
		if d.Empty() {
			continue
		}
		if err := n.planner.Apply(d); err != nil {
			return 0, err
		}
		*s.held = s.next.Clone()
		what.Services, what.Policy = what.Services || s.concern.Services, what.Policy || s.concern.Policy
	}
	return n.commit(what)
}

func (n *node) commit(what dataplane.Concern) (ended int, err error) {
	change, err := n.planner.Commit(time.Now())
	if err != nil {
		return 0, err
	}
	change = n.queue.Rebase(change)
	if _, err := n.rules.Apply(change); err != nil {
		return 0, err
	}
	n.queue.Put(time.Now(), change.Late)
	n.tables.Elements = n.planner.Desired()
	if ended, err = n.flows.Reconcile(context.Background(), n.tables, what); err != nil {
		return ended, err
	}
	_, err = n.rules.Apply(n.queue.Due(time.Now()))
	return ended, err
}
