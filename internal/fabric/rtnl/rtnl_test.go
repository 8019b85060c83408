package rtnl_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/fabric/rtnl"
	"podwire.dev/internal/testnet"
)

// open returns a Conn in a namespace with a veth pair whose ends, "near" and "far", are in it and in another.
func open(t *testing.T) (*testnet.NS, *rtnl.Conn, rtnl.Link) {
	t.Helper()
	n := testnet.New(t)
	s, other := n.AddNS("near"), n.AddNS("far")
	var c *rtnl.Conn
	s.Must(func() error {
		var err error
		c, err = rtnl.Open()
		return err
	})
	t.Cleanup(c.Close)
	l, err := c.DoThenGet("near",
		rtnl.AddVeth(rtnl.VethPair{
			Name: "near", PeerName: "far", MAC: [6]byte{2, 1}, PeerMAC: [6]byte{2, 2}, MTU: 1450, PeerNS: other.FD(),
		}),
		rtnl.Prepare(rtnl.Prepared{Name: "near", Alias: "an alias", LinkLocal: rtnl.NoLinkLocal}),
		rtnl.SetUp(rtnl.Setup{Name: "near"}))
	if err != nil {
		t.Fatal(err)
	}
	other.LinkUp("far")
	return s, c, l
}

func TestLinksReadBack(t *testing.T) {
	s, c, l := open(t)
	if l.Name != "near" || l.Kind != "veth" || l.Alias != "an alias" || l.MAC != [6]byte{2, 1} || l.MTU != 1450 || !l.Up || l.Peer == 0 || l.PeerNS < 0 {
		t.Errorf("a veth read back as %+v", l)
	}
	far := s.Run("ip", "-6", "address", "show", "dev", "near")
	if strings.Contains(far, "fe80") {
		t.Errorf("a link that was to have no link-local address has one:\n%s", far)
	}
	byIndex, found, err := c.LinkByIndex(l.Index)
	if err != nil || !found || byIndex != l {
		t.Errorf("by index: %+v, %v, %v", byIndex, found, err)
	}
	if _, found, err := c.LinkByName("nobody"); found || err != nil {
		t.Errorf("a link that does not exist: %v, %v", found, err)
	}
	if _, found, err := c.LinkByIndex(4242); found || err != nil {
		t.Errorf("an index that does not exist: %v, %v", found, err)
	}
	all, err := c.Links()
	if err != nil || len(all) < 2 {
		t.Errorf("all links: %+v, %v", all, err)
	}
	want := rtnl.VXLAN{VNI: 42, Port: 8472, Local: netip.MustParseAddr("2001:db8::1")}
	v, err := c.DoThenGet("vx", rtnl.AddVXLAN("vx", [6]byte{2, 3}, 1400, want))
	if err != nil || v.VXLAN != want || v.Kind != "vxlan" || v.MAC != [6]byte{2, 3} || v.MTU != 1400 || v.Up {
		t.Errorf("a VXLAN device read back as %+v, %v", v, err)
	}
	for range 2 {
		if err := c.Do(rtnl.DeleteLink(v.Index)); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
}

func TestNamespaceIDs(t *testing.T) {
	s, c, l := open(t)
	n := testnet.New(t)
	if id, err := c.NamespaceID(n.AddNS("stranger").FD()); err != nil || id != -1 {
		t.Errorf("a namespace without an id has %d, %v", id, err)
	}
	if _, err := c.NamespaceID(s.FD()); err != nil {
		t.Error(err)
	}
	if l.PeerNS < 0 {
		t.Errorf("the peer's namespace has id %d", l.PeerNS)
	}
}

func TestRowsReadBack(t *testing.T) {
	_, c, l := open(t)
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	addresses := []rtnl.Address{
		{Index: l.Index, Address: addr("192.0.2.1"), Protocol: rtnl.Protocol},
		{Index: l.Index, Address: addr("192.0.2.2"), Preference: rtnl.Deprecated, Scope: unix.RT_SCOPE_LINK, Protocol: rtnl.Protocol},
		{Index: l.Index, Address: addr("2001:db8::1"), Protocol: rtnl.Protocol},
		{Index: l.Index, Address: addr("2001:db8::2"), Preference: rtnl.Deprecated, Protocol: rtnl.Protocol},
	}
	neighbours := []rtnl.Neighbour{
		{Index: l.Index, Address: addr("169.254.1.1"), MAC: [6]byte{2, 9}}, {Index: l.Index, Address: addr("fe80::1"), MAC: [6]byte{2, 9}},
	}
	routes := []rtnl.Route{
		{Dst: prefix("0.0.0.0/0"), Type: rtnl.Unicast, Index: l.Index, Via: addr("169.254.1.1"), Metric: 7},
		{Dst: prefix("::/0"), Type: rtnl.Unicast, Index: l.Index, Via: addr("fe80::1"), Metric: 7},
		{Dst: prefix("10.0.0.0/8"), Type: rtnl.Unicast, Index: l.Index, Src: addr("192.0.2.1"), Metric: 7},
		{Dst: prefix("fd00::/8"), Type: rtnl.Unicast, Index: l.Index, Src: addr("2001:db8::1"), Metric: 7},
		{Dst: prefix("10.1.0.0/16"), Type: rtnl.Unreachable, Metric: 7},
		{Dst: prefix("fd01::/16"), Type: rtnl.Unreachable, Metric: 7},
	}
	var add, remove []rtnl.Request
	var local []netip.Addr
	for _, a := range addresses {
		add, remove, local = append(add, a.Add()), append(remove, a.Delete()), append(local, a.Address)
	}
	for _, n := range neighbours {
		add, remove = append(add, n.Set()), append(remove, n.Delete())
	}
	for _, r := range routes {
		add, remove = append(add, r.Add()), append(remove, r.Delete())
	}
	before := c.Writes()
	if err := c.DoThenAwait(local, add...); err != nil {
		t.Fatal(err)
	}
	if got := c.Writes() - before; int(got) != len(add) {
		t.Errorf("%d additions counted as %d writes", len(add), got)
	}
	gotAddresses, err1 := c.Addresses(l.Index)
	gotNeighbours, err2 := c.Neighbours(l.Index)
	gotRoutes, err3 := c.Routes(0)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	same(t, "addresses", gotAddresses, addresses)
	same(t, "neighbours", gotNeighbours, neighbours)
	same(t, "routes", gotRoutes, routes)
	if index, found, err := c.FindAddress(addr("2001:db8::2")); index != l.Index || !found || err != nil {
		t.Errorf("find: link %d, %v, %v", index, found, err)
	}
	// In reverse: the kernel takes routes away with the address that is their source.
	for i, j := 0, len(remove)-1; i < j; i, j = i+1, j-1 {
		remove[i], remove[j] = remove[j], remove[i]
	}
	for range 2 {
		if err := c.Do(remove...); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if rest, err := c.Routes(0); err != nil || len(rest) != 0 {
		t.Errorf("routes left: %v, %v", rest, err)
	}
	if rest, err := c.Addresses(l.Index); err != nil || len(rest) != 0 {
		t.Errorf("addresses left: %v, %v", rest, err)
	}
}

func same[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	count := map[T]int{}
	for _, x := range want {
		count[x]++
	}
	for _, x := range got {
		count[x]--
	}
	for x, n := range count {
		if n != 0 {
			t.Errorf("%s: %+v: %+d too few", what, x, n)
		}
	}
}

func TestForwardingReadsBack(t *testing.T) {
	_, c, _ := open(t)
	for _, to := range []string{"192.0.2.9", "2001:db8::9"} {
		far := netip.MustParseAddr(to)
		v, err := c.DoThenGet("vx", rtnl.AddVXLAN("vx", [6]byte{2, 3}, 1400, rtnl.VXLAN{VNI: 42, Port: 8472, Local: far.Next()}),
			rtnl.SetUp(rtnl.Setup{Name: "vx"}))
		if err != nil {
			t.Fatal(err)
		}
		entry := rtnl.Forwarding{Index: v.Index, MAC: [6]byte{2, 8}, To: far}
		moved := entry
		moved.To = far.Next().Next()
		for _, e := range []rtnl.Forwarding{entry, moved} {
			if err := c.Do(e.Set()); err != nil {
				t.Fatal(err)
			}
			got, err := c.Forwardings(v.Index)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "forwarding entries", got, []rtnl.Forwarding{e})
		}
		for range 2 {
			if err := c.Do(moved.Delete()); err != nil {
				t.Error(err)
			}
		}
		if err := c.Do(rtnl.DeleteLink(v.Index)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusalsNameTheRequestAndTheRestIsDone(t *testing.T) {
	_, c, l := open(t)
	dst := func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i)) }
	good := rtnl.Route{Dst: dst(1), Type: rtnl.Unicast, Index: l.Index, Metric: 1}
	if err := c.Do(good.Add()); err != nil {
		t.Fatal(err)
	}
	other := rtnl.Route{Dst: dst(2), Type: rtnl.Unicast, Index: l.Index, Metric: 1}
	bad := rtnl.Route{Dst: dst(3), Type: rtnl.Unicast, Index: 4242, Metric: 1}
	before := c.Writes()
	err := c.Do(good.Add(), bad.Add(), other.Add())
	if !errors.Is(err, unix.EEXIST) || !errors.Is(err, unix.ENODEV) {
		t.Errorf("two refusals: %v", err)
	}
	if err == nil || !strings.Contains(err.Error(), "10.1.0.0/16") || !strings.Contains(err.Error(), "10.3.0.0/16") {
		t.Errorf("which requests: %v", err)
	}
	if got := c.Writes() - before; got != 1 {
		t.Errorf("one of three counted as %d writes", got)
	}
	if err := c.Do(good.Add().Tolerating(unix.EEXIST)); err != nil {
		t.Errorf("tolerated: %v", err)
	}
	routes, err := c.Routes(l.Index)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "routes", routes, []rtnl.Route{good, other})
	replaced := good
	replaced.Type, replaced.Index = rtnl.Unreachable, 0
	if err := c.Do(replaced.Replace()); err != nil {
		t.Fatal(err)
	}
	if routes, err = c.Routes(0); err != nil {
		t.Fatal(err)
	}
	same(t, "routes", routes, []rtnl.Route{replaced, other})
}

func TestManyRequestsInOneCall(t *testing.T) {
	_, c, l := open(t)
	var add []rtnl.Request
	for i := range 4000 {
		a := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
		add = append(add, rtnl.Route{Dst: netip.PrefixFrom(a, 32), Type: rtnl.Unicast, Index: l.Index, Metric: 1}.Add())
	}
	if err := c.Do(add...); err != nil {
		t.Fatal(err)
	}
	routes, err := c.Routes(l.Index)
	if err != nil || len(routes) != len(add) {
		t.Errorf("%d of %d routes, %v", len(routes), len(add), err)
	}
}

func TestLearnedRouters(t *testing.T) {
	s, c, l := open(t)
	if links, err := c.LearnedRouters(); err != nil || len(links) != 0 {
		t.Errorf("without a router: %v, %v", links, err)
	}
	s.Run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "near", "metric", "5")
	s.Run("ip", "-6", "route", "add", "2001:db8::/32", "via", "fe80::1", "dev", "near", "proto", "ra")
	if links, err := c.LearnedRouters(); err != nil || len(links) != 0 {
		t.Errorf("with routes that were not learned, or lead nowhere in particular: %v, %v", links, err)
	}
	s.Run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "near", "proto", "ra")
	if links, err := c.LearnedRouters(); err != nil || len(links) != 1 || links[0] != l.Index {
		t.Errorf("with a learned router: %v, %v", links, err)
	}
}

// The kernel announces the route of an IPv6 address a moment before its own lookup finds it; who looks once after the
// announcement and then waits for another one waits in vain, about once in 1,500 times.
func TestAwaitDoesNotRelyOnTheLastEvent(t *testing.T) {
	_, c, l := open(t)
	for i := range 4000 {
		a := rtnl.Address{Index: l.Index, Address: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)), Protocol: rtnl.Protocol}
		if err := c.DoThenAwait([]netip.Addr{a.Address}, a.Add()); err != nil {
			t.Fatalf("address %d: %v", i+1, err)
		}
		if err := c.Do(a.Delete()); err != nil {
			t.Fatal(err)
		}
	}
}
