package fabric

import (
	"fmt"
	"net/netip"
	"sort"

	"podwire.dev/internal/nodestate"
)

// Plan is what the kernel of one member is to hold, each list sorted and without duplicates.
type Plan struct {
	// Addresses are the member's own tunnel addresses.
	Addresses []netip.Addr
	// Peers are the other members' tunnel ends.
	Peers []Peer
	// Routes are the routes of the main table.
	Routes []Route
	// Problems are rows that are not in the plan, or only in part.
	Problems []Problem
}

// Peer is the far end of the tunnel to one member.
type Peer struct {
	MAC [6]byte
	// Underlay is where encapsulated frames to MAC are sent.
	Underlay netip.Addr
	// Addresses are the member's tunnel addresses: neighbours that are always at MAC.
	Addresses []netip.Addr
}

// Route is one route of the plan.
type Route struct {
	Dst  netip.Prefix
	Kind RouteKind
	// Via is the tunnel address of the member that holds Dst; only for ToMember.
	Via netip.Addr
	// Src is this member's tunnel address of the family; the zero value where it has none. Not for Unassigned.
	Src netip.Addr
}

// RouteKind says what a route is for.
type RouteKind uint8

// The kinds of routes.
const (
	// ToMember leads to a block of another member, through the tunnel.
	ToMember RouteKind = 1
	// ToService gives what this host sends to a Service address a source, and a device on which translation finds it.
	ToService RouteKind = 2
	// Unassigned refuses what nobody holds: addresses of our own blocks without a pod, and pod addresses in nobody's
	// block. Without it such packets would leave by the default route, or return to us from where they came. On a member
	// that is no node it refuses Service addresses, too, which only nodes translate.
	Unassigned RouteKind = 3
)

// Problem is a row that cannot be used.
type Problem struct {
	// Row names it: "member node-2".
	Row string
	// Reason says what is wrong with it, and what to do.
	Reason string
}

// String is "<row>: <reason>".
func (p Problem) String() string { return p.Row + ": " + p.Reason }

// Compute plans the fabric of the member self, whose tunnel ends at underlay, from the rows of ipam. Rows that contradict
// each other are resolved by name: the first member keeps what a later one claims too. Any order of the rows gives the same
// plan.
func Compute(self string, underlay netip.Addr, members []nodestate.Member, ranges []nodestate.Range) Plan {
	c := compute{
		self: self, underlay: underlay, own: map[bool]netip.Addr{},
		macs: map[[6]byte]string{}, tunnels: map[netip.Addr]string{}, routed: map[netip.Prefix]string{},
	}
	members = append([]nodestate.Member(nil), members...)
	sort.Slice(members, func(i, j int) bool { return members[i].Name < members[j].Name })
	registered := false
	for _, m := range members {
		if m.Name == self {
			registered = true
			c.addSelf(m)
		}
	}
	if !registered {
		c.problem("member "+self, "this member is not registered yet, so it has no tunnel address")
	}
	for _, m := range members {
		if m.Name != self {
			c.addPeer(m)
		}
	}
	for _, r := range ranges {
		c.addRange(r)
	}
	return c.sorted()
}

type compute struct {
	self     string
	kind     nodestate.MemberKind
	underlay netip.Addr
	own      map[bool]netip.Addr // by Is4
	macs     map[[6]byte]string
	tunnels  map[netip.Addr]string
	routed   map[netip.Prefix]string
	plan     Plan
}

func (c *compute) problem(row, format string, args ...any) {
	c.plan.Problems = append(c.plan.Problems, Problem{row, fmt.Sprintf(format, args...)})
}

func (c *compute) addSelf(m nodestate.Member) {
	row := "member " + m.Name
	if m.TunnelMAC != nodestate.TunnelMACOf(m.Name) {
		c.problem(row, "it is registered with tunnel MAC %x, but its device has %x; register it again", m.TunnelMAC, nodestate.TunnelMACOf(m.Name))
	}
	if len(m.Underlay) > 0 && m.Underlay[0] != c.underlay {
		c.problem(row, "it is registered with underlay address %s, but its tunnel ends at %s; register it again",
			m.Underlay[0], c.underlay)
	}
	c.kind = m.Kind
	c.macs[nodestate.TunnelMACOf(m.Name)] = m.Name
	for _, a := range m.Tunnel {
		if _, taken := c.own[a.Is4()]; taken || !a.IsValid() {
			c.problem(row, "its tunnel addresses %v are not one of each family", m.Tunnel)
			continue
		}
		c.own[a.Is4()], c.tunnels[a] = a, m.Name
		c.plan.Addresses = append(c.plan.Addresses, a)
	}
	for _, b := range m.Blocks {
		if b.IsSingleIP() && c.own[b.Addr().Is4()] == b.Addr() {
			c.routed[b] = row // nothing of the block is left for pods
			continue
		}
		c.route(row, Route{Dst: b, Kind: Unassigned})
	}
}

func (c *compute) addPeer(m nodestate.Member) {
	row := "member " + m.Name
	switch {
	case len(m.Underlay) == 0:
		c.problem(row, "it has no underlay address")
		return
	case m.Underlay[0].Is4() != c.underlay.Is4():
		c.problem(row, "its tunnel ends at %s and ours at %s: all members must use one address family on the underlay",
			m.Underlay[0], c.underlay)
		return
	case m.Underlay[0] == c.underlay:
		c.problem(row, "it is registered with our own underlay address %s", c.underlay)
		return
	case m.TunnelMAC == [6]byte{} || m.TunnelMAC[0]&1 != 0:
		c.problem(row, "its tunnel MAC %x is not a unicast address", m.TunnelMAC)
		return
	}
	if holder, taken := c.macs[m.TunnelMAC]; taken {
		c.problem(row, "member %s has the same tunnel MAC %x", holder, m.TunnelMAC)
		return
	}
	c.macs[m.TunnelMAC] = m.Name
	peer := Peer{MAC: m.TunnelMAC, Underlay: m.Underlay[0]}
	via := map[bool]netip.Addr{}
	for _, a := range m.Tunnel {
		if holder, taken := c.tunnels[a]; taken || !a.IsValid() {
			c.problem(row, "its tunnel address %s is not valid, or is that of member %s", a, holder)
			continue
		}
		c.tunnels[a] = m.Name
		peer.Addresses = append(peer.Addresses, a)
		if _, ok := via[a.Is4()]; !ok {
			via[a.Is4()] = a
		}
	}
	c.plan.Peers = append(c.plan.Peers, peer)
	for _, b := range m.Blocks {
		gateway, ok := via[b.Addr().Is4()]
		if !ok {
			c.problem(row, "it has no tunnel address of the family of its block %s", b)
			continue
		}
		c.route(row, Route{Dst: b, Kind: ToMember, Via: gateway, Src: c.own[b.Addr().Is4()]})
	}
}

func (c *compute) addRange(r nodestate.Range) {
	row := "range " + r.Prefix.String()
	switch r.Kind {
	case nodestate.RangeService:
		if c.kind == nodestate.MemberService {
			c.route(row, Route{Dst: r.Prefix, Kind: Unassigned})
			return
		}
		c.route(row, Route{Dst: r.Prefix, Kind: ToService, Src: c.own[r.Prefix.Addr().Is4()]})
	case nodestate.RangePod:
		// A range that is one block has its route by its holder.
		if c.routed[r.Prefix] == "" {
			c.route(row, Route{Dst: r.Prefix, Kind: Unassigned})
		}
	}
}

func (c *compute) route(row string, r Route) {
	if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() {
		c.problem(row, "%s is not a prefix", r.Dst)
		return
	}
	if holder, taken := c.routed[r.Dst]; taken {
		if holder != row {
			c.problem(row, "%s belongs to %s", r.Dst, holder)
		}
		return
	}
	c.routed[r.Dst] = row
	c.plan.Routes = append(c.plan.Routes, r)
}

func (c *compute) sorted() Plan {
	p := c.plan
	sort.Slice(p.Addresses, func(i, j int) bool { return p.Addresses[i].Less(p.Addresses[j]) })
	sort.Slice(p.Peers, func(i, j int) bool { return p.Peers[i].Underlay.Less(p.Peers[j].Underlay) })
	sort.Slice(p.Routes, func(i, j int) bool { return p.Routes[i].Dst.Compare(p.Routes[j].Dst) < 0 })
	sort.Slice(p.Problems, func(i, j int) bool { return p.Problems[i].String() < p.Problems[j].String() })
	return p
}
