package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
)

// newService makes the last member of a cluster one that is no node, with an address of each family from a block that is
// cut for members.
func newService(c *cluster) *member {
	c.t.Helper()
	m := c.members[len(c.members)-1]
	m.Must(func() error {
		if err := m.fabric.Remove(); err != nil {
			return err
		}
		var err error
		m.fabric, err = Open(Config{Self: nodestate.ServiceMember("dns-1"), Underlay: m.row.Underlay[0]})
		return err
	})
	c.t.Cleanup(m.fabric.Close)
	m.row.Name, m.row.Kind = nodestate.ServiceMember("dns-1"), nodestate.MemberService
	m.row.TunnelMAC = nodestate.TunnelMACOf(m.row.Name)
	m.row.Tunnel = []netip.Addr{netip.MustParseAddr("10.244.0.65"), netip.MustParseAddr("fd00:10:244::41")}
	m.row.Blocks = nil
	for _, a := range m.row.Tunnel {
		m.row.Blocks = append(m.row.Blocks, netip.PrefixFrom(a, a.BitLen()))
	}
	return m
}

// TestServiceMemberAndPods: pods of every node reach a member that is no node, which sees their addresses, and it reaches
// them, with the first packet and both families.
func TestServiceMemberAndPods(t *testing.T) {
	for name, underlay := range underlays {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3, underlay)
			m := newService(c)
			c.applyAll()
			for i, node := range c.members[:2] {
				node.LinkUp("lo")
				for f, a := range []string{fmt.Sprintf("10.244.%d.9", i+1), fmt.Sprintf("fd00:10:244:%d::9", i+1)} {
					pod := netip.MustParseAddr(a)
					node.AddAddr("lo", netip.PrefixFrom(pod, pod.BitLen()))
					at := m.ServeUDP("dns", netip.AddrPortFrom(m.row.Tunnel[f], 0))
					if r := node.UDP(testnet.Attempt{Target: at, From: netip.AddrPortFrom(pod, 0)}); r.Outcome != testnet.Reached || r.Client.Addr() != pod {
						t.Errorf("pod %s to the member: %+v", pod, r)
					}
					back := node.ServeTCP("pod", netip.AddrPortFrom(pod, 0))
					if r := m.TCP(testnet.Attempt{Target: back}); r.Outcome != testnet.Reached || r.Client.Addr() != m.row.Tunnel[f] {
						t.Errorf("the member to pod %s: %+v", pod, r)
					}
				}
			}
			if r := c.apply(m, c.rows(), c.ranges); r.Writes != 0 {
				t.Errorf("applied again: %d writes", r.Writes)
			}
		})
	}
}

// TestServiceMemberRefuses: what only nodes translate, and what nobody holds, does not leave a member by its default route.
func TestServiceMemberRefuses(t *testing.T) {
	c := newCluster(t, 2, underlays["IPv4 underlay"])
	m := newService(c)
	m.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("172.30.0.1"))
	c.applyAll()
	for _, a := range []string{"10.96.0.1", "fd00:10:96::1", "10.244.77.1", "fd00:10:244:77::1"} {
		r := m.TCP(testnet.Attempt{Target: netip.AddrPortFrom(netip.MustParseAddr(a), 80)})
		if r.Outcome != testnet.Unreachable {
			t.Errorf("%s: %+v", a, r)
		}
	}
	for _, b := range m.row.Blocks {
		if out := m.Run("ip", "route", "show", "exact", b.String(), "proto", "97"); strings.TrimSpace(out) != "" {
			t.Errorf("its own address has the route %s", out)
		}
	}
}

// TestHeld: a new process learns whose the fabric is and which addresses it serves on.
func TestHeld(t *testing.T) {
	c := newCluster(t, 2, underlays["IPv4 underlay"])
	m := newService(c)
	held := func() (h Held) {
		t.Helper()
		m.Must(func() (err error) { h, err = m.fabric.Held(); return err })
		return h
	}
	if h := held(); h.MAC != [6]byte{} || len(h.Addresses) > 0 {
		t.Errorf("nothing is there, but held is %+v", h)
	}
	c.applyAll()
	if h := held(); h.MAC != nodestate.TunnelMACOf(m.row.Name) || !slices.Equal(h.Addresses, m.row.Tunnel) {
		t.Errorf("held is %+v", h)
	}
	fake := NewFake(m.row.Name, m.row.Underlay[0])
	if h, err := fake.Held(); err != nil || h.MAC != [6]byte{} {
		t.Errorf("the fake holds %+v, %v", h, err)
	}
	if _, err := fake.Apply(c.rows(), c.ranges); err != nil {
		t.Fatal(err)
	}
	if h, err := fake.Held(); err != nil || h.MAC != nodestate.TunnelMACOf(m.row.Name) || !slices.Equal(h.Addresses, m.row.Tunnel) {
		t.Errorf("the fake holds %+v, %v", h, err)
	}
	if err := fake.Remove(); err != nil || fake.Rows().Len() != 0 {
		t.Errorf("the fake holds rows after its removal: %v", err)
	}
}

func TestHostUnderlay(t *testing.T) {
	n := testnet.New(t)
	plug := n.Underlay("underlay")
	m := n.AddNS("dns-1")
	ask := func() (out []netip.Addr, err error) {
		doErr := m.Do(func() error { out, err = HostUnderlay(); return nil })
		if doErr != nil {
			t.Fatal(doErr)
		}
		return out, err
	}
	if out, err := ask(); !errs.Is(err, errs.NotFound) {
		t.Errorf("no link: %v, %v", out, err)
	}
	plug(m, netip.MustParsePrefix("172.30.0.31/24"))
	m.Run("ip", "addr", "add", "172.30.0.32/24", "dev", "eth0")
	m.Run("ip", "addr", "add", "fd00:172:30::31/64", "dev", "eth0", "nodad")
	want := []netip.Addr{netip.MustParseAddr("172.30.0.31"), netip.MustParseAddr("fd00:172:30::31")}
	if out, err := ask(); err != nil || !slices.Equal(out, want) {
		t.Errorf("the only link: %v, %v", out, err)
	}
	m.Run("ip", "link", "add", "other", "type", "veth", "peer", "name", "end")
	m.LinkUp("other")
	m.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "other")
	if out, err := ask(); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "2 links") {
		t.Errorf("two links and no default route: %v, %v", out, err)
	}
	m.Run("ip", "route", "add", "default", "via", "192.0.2.9", "metric", "200")
	m.Run("ip", "route", "add", "default", "via", "172.30.0.1", "metric", "100")
	if out, err := ask(); err != nil || !slices.Equal(out, want) {
		t.Errorf("the better of two default routes: %v, %v", out, err)
	}
}
