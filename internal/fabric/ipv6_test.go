package fabric

import (
	"net/netip"
	"strings"
	"testing"

	"podwire.dev/internal/testnet"
)

// TestHostsWithIPv6TurnedOff: a container engine turns IPv6 off for the links that are made later in a container of its
// own, and an administrator for all of a host.
func TestHostsWithIPv6TurnedOff(t *testing.T) {
	for _, scope := range []string{"default", "all"} {
		t.Run(scope, func(t *testing.T) {
			setting := "net/ipv6/conf/" + scope + "/disable_ipv6"
			c := newCluster(t, 3, underlays["IPv4 underlay"], func(s *testnet.NS) { s.SetSysctl(setting, "1") })
			service := newService(c)
			c.applyAll()
			for _, from := range c.members {
				for _, to := range c.members {
					if from == to {
						continue
					}
					for i, a := range to.row.Tunnel {
						at := to.ServeUDP(to.Name(), netip.AddrPortFrom(a, 0))
						if r := from.UDP(testnet.Attempt{Target: at}); r.Outcome != testnet.Reached || r.Client.Addr() != from.row.Tunnel[i] {
							t.Errorf("first datagram from %s to %s: %+v", from.Name(), at, r)
						}
					}
				}
				if r := c.apply(from, c.rows(), c.ranges); r.Writes != 0 {
					t.Errorf("%s: applied again: %d writes", from.Name(), r.Writes)
				}
				if v := from.Sysctl(setting); v != "1" {
					t.Errorf("%s: the host's own %s is now %s", from.Name(), setting, v)
				}
			}
			for m, unreachable := range map[*member]string{c.members[0]: "fd00:10:244:99::1", service: "fd00:10:96::1"} {
				if r := m.TCP(testnet.Attempt{Target: netip.AddrPortFrom(netip.MustParseAddr(unreachable), 80)}); r.Outcome != testnet.Unreachable {
					t.Errorf("%s to %s: %+v", m.Name(), unreachable, r)
				}
			}
		})
	}
}

// TestIPv6IsTurnedOnAgain: whoever turns IPv6 off for a whole host takes addresses and routes away with it.
func TestIPv6IsTurnedOnAgain(t *testing.T) {
	c := newCluster(t, 2, underlays["IPv4 underlay"])
	c.applyAll()
	m := c.members[0]
	before := dump(m)
	m.SetSysctl("net/ipv6/conf/all/disable_ipv6", "1")
	if broken := dump(m); strings.Contains(broken, m.row.Tunnel[1].String()) {
		t.Fatalf("the kernel keeps addresses where IPv6 is off:\n%s", broken)
	}
	if r := c.apply(m, c.rows(), c.ranges); len(r.Problems) > 0 {
		t.Errorf("problems %v", r.Problems)
	}
	if after := dump(m); sorted(after) != sorted(before) {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if r := c.apply(m, c.rows(), c.ranges); r.Writes != 0 {
		t.Errorf("applied again: %d writes", r.Writes)
	}
}
