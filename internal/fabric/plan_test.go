package fabric

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"podwire.dev/internal/nodestate"
)

// row makes a member: name, underlay, tunnel addresses, blocks; lists are separated by spaces.
func row(name, underlay, tunnel, blocks string) nodestate.Member {
	m := nodestate.Member{Name: name, Kind: nodestate.MemberNode, TunnelMAC: nodestate.TunnelMACOf(name)}
	for _, s := range strings.Fields(underlay) {
		m.Underlay = append(m.Underlay, netip.MustParseAddr(s))
	}
	for _, s := range strings.Fields(tunnel) {
		m.Tunnel = append(m.Tunnel, netip.MustParseAddr(s))
	}
	for _, s := range strings.Fields(blocks) {
		m.Blocks = append(m.Blocks, netip.MustParsePrefix(s))
	}
	return m
}

func (r Route) text() string {
	s := map[RouteKind]string{ToMember: "member", ToService: "service", Unassigned: "unassigned"}[r.Kind] + " " + r.Dst.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Src.IsValid() {
		s += " src " + r.Src.String()
	}
	return s
}

func TestCompute(t *testing.T) {
	self := row("a", "172.30.0.1", "10.244.1.1 fd00:10:244:1::1", "10.244.1.0/26 fd00:10:244:1::/122")
	other := row("b", "172.30.0.2 fd00::2", "10.244.2.1 fd00:10:244:2::1", "10.244.2.0/26 fd00:10:244:2::/122 10.244.5.0/26")
	changed := func(m nodestate.Member, change func(*nodestate.Member)) nodestate.Member {
		change(&m)
		return m
	}
	for _, c := range []struct {
		name     string
		members  []nodestate.Member
		ranges   []nodestate.Range
		peers    string
		routes   []string
		problems []string
	}{
		{
			name: "two members", members: []nodestate.Member{self, other}, ranges: clusterRanges, peers: "172.30.0.2",
			routes: []string{
				"service 10.96.0.0/16 src 10.244.1.1",
				"unassigned 10.244.0.0/16",
				"unassigned 10.244.1.0/26",
				"member 10.244.2.0/26 via 10.244.2.1 src 10.244.1.1",
				"member 10.244.5.0/26 via 10.244.2.1 src 10.244.1.1",
				"service fd00:10:96::/112 src fd00:10:244:1::1",
				"unassigned fd00:10:244::/48",
				"unassigned fd00:10:244:1::/122",
				"member fd00:10:244:2::/122 via fd00:10:244:2::1 src fd00:10:244:1::1",
			},
		},
		{name: "nothing", problems: []string{"member a: this member is not registered yet"}},
		{
			name: "not registered", members: []nodestate.Member{row("b", "172.30.0.2", "10.244.2.1", "10.244.2.0/26")},
			ranges: clusterRanges[2:3], peers: "172.30.0.2",
			routes:   []string{"service 10.96.0.0/16", "member 10.244.2.0/26 via 10.244.2.1"},
			problems: []string{"member a: this member is not registered yet"},
		},
		{
			name:    "single stack",
			members: []nodestate.Member{row("a", "172.30.0.1", "10.244.1.1", "10.244.1.0/26"), row("b", "172.30.0.2", "10.244.2.1", "10.244.2.0/26")},
			peers:   "172.30.0.2",
			routes:  []string{"unassigned 10.244.1.0/26", "member 10.244.2.0/26 via 10.244.2.1 src 10.244.1.1"},
		},
		{
			name: "underlay of another family", members: []nodestate.Member{self, row("b", "fd00::2 172.30.0.2", "10.244.2.1", "10.244.2.0/26")},
			routes:   []string{"unassigned 10.244.1.0/26", "unassigned fd00:10:244:1::/122"},
			problems: []string{"member b: its tunnel ends at fd00::2 and ours at 172.30.0.1"},
		},
		{
			name: "no underlay", members: []nodestate.Member{self, row("b", "", "10.244.2.1", "10.244.2.0/26")},
			routes:   []string{"unassigned 10.244.1.0/26", "unassigned fd00:10:244:1::/122"},
			problems: []string{"member b: it has no underlay address"},
		},
		{
			name: "our underlay", members: []nodestate.Member{self, row("b", "172.30.0.1", "10.244.2.1", "10.244.2.0/26")},
			routes:   []string{"unassigned 10.244.1.0/26", "unassigned fd00:10:244:1::/122"},
			problems: []string{"member b: it is registered with our own underlay address 172.30.0.1"},
		},
		{
			name:    "no MAC",
			members: []nodestate.Member{self, changed(other, func(m *nodestate.Member) { m.TunnelMAC = [6]byte{} })},
			routes:  []string{"unassigned 10.244.1.0/26", "unassigned fd00:10:244:1::/122"},
			problems: []string{
				"member b: its tunnel MAC 000000000000 is not a unicast address",
			},
		},
		{
			name:     "our MAC",
			members:  []nodestate.Member{self, changed(other, func(m *nodestate.Member) { m.TunnelMAC = nodestate.TunnelMACOf("a") })},
			routes:   []string{"unassigned 10.244.1.0/26", "unassigned fd00:10:244:1::/122"},
			problems: []string{"member b: member a has the same tunnel MAC"},
		},
		{
			name: "stolen block", members: []nodestate.Member{self, row("b", "172.30.0.2", "10.244.2.1", "10.244.1.0/26")},
			peers:    "172.30.0.2",
			routes:   []string{"unassigned 10.244.1.0/26", "unassigned fd00:10:244:1::/122"},
			problems: []string{"member b: 10.244.1.0/26 belongs to member a"},
		},
		{
			name: "stolen tunnel address", members: []nodestate.Member{self, row("b", "172.30.0.2", "10.244.1.1", "10.244.2.0/26")},
			peers:  "172.30.0.2",
			routes: []string{"unassigned 10.244.1.0/26", "unassigned fd00:10:244:1::/122"},
			problems: []string{
				"member b: it has no tunnel address of the family of its block 10.244.2.0/26",
				"member b: its tunnel address 10.244.1.1 is not valid, or is that of member a",
			},
		},
		{
			name:     "registered before a change",
			members:  []nodestate.Member{changed(self, func(m *nodestate.Member) { m.TunnelMAC = nodestate.TunnelMACOf("b"); m.Underlay = other.Underlay })},
			routes:   []string{"unassigned 10.244.1.0/26", "unassigned fd00:10:244:1::/122"},
			problems: []string{"member a: it is registered with tunnel MAC", "member a: it is registered with underlay address 172.30.0.2"},
		},
		{
			name: "bad prefixes", members: []nodestate.Member{row("a", "172.30.0.1", "", "10.244.1.1/26")},
			ranges:   []nodestate.Range{{Kind: nodestate.RangeService}},
			problems: []string{"member a: 10.244.1.1/26 is not a prefix", "range invalid Prefix: invalid Prefix is not a prefix"},
		},
		{
			name: "a pod range of one block", members: []nodestate.Member{row("a", "172.30.0.1", "", ""), row("b", "172.30.0.2", "10.244.2.1", "10.244.2.0/26")},
			ranges: []nodestate.Range{{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("10.244.2.0/26")}},
			peers:  "172.30.0.2", routes: []string{"member 10.244.2.0/26 via 10.244.2.1"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			plan := Compute("a", netip.MustParseAddr("172.30.0.1"), c.members, c.ranges)
			var peers, routes []string
			for _, p := range plan.Peers {
				peers = append(peers, p.Underlay.String())
			}
			for _, r := range plan.Routes {
				routes = append(routes, r.text())
			}
			if got := strings.Join(peers, " "); got != c.peers {
				t.Errorf("peers %q, want %q", got, c.peers)
			}
			if got, want := strings.Join(routes, "\n"), strings.Join(c.routes, "\n"); got != want {
				t.Errorf("routes\n%s\nwant\n%s", got, want)
			}
			if len(plan.Problems) != len(c.problems) {
				t.Fatalf("problems %v, want %v", plan.Problems, c.problems)
			}
			for i, p := range plan.Problems {
				if !strings.HasPrefix(p.String(), c.problems[i]) {
					t.Errorf("problem %q, want %q", p, c.problems[i])
				}
			}
			reversed := append([]nodestate.Member(nil), c.members...)
			for i, j := 0, len(reversed)-1; i < j; i, j = i+1, j-1 {
				reversed[i], reversed[j] = reversed[j], reversed[i]
			}
			if again := Compute("a", netip.MustParseAddr("172.30.0.1"), reversed, c.ranges); fmt.Sprint(again) != fmt.Sprint(plan) {
				t.Errorf("with the rows reversed: %v", again)
			}
		})
	}
}

func TestMACOf(t *testing.T) {
	a, b := nodestate.TunnelMACOf("a"), nodestate.TunnelMACOf("b")
	if a == b || a != nodestate.TunnelMACOf("a") || a[0]&3 != 2 {
		t.Errorf("MACs %x and %x", a, b)
	}
}
