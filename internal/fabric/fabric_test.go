package fabric

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
)

// cluster is members on one underlay, each with a block of each family.
type cluster struct {
	t       *testing.T
	members []*member
	ranges  []nodestate.Range
}

type member struct {
	*testnet.NS
	fabric *Fabric
	row    nodestate.Member
	device Device
}

var clusterRanges = []nodestate.Range{
	{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("10.244.0.0/16")},
	{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("fd00:10:244::/48")},
	{Kind: nodestate.RangeService, Prefix: netip.MustParsePrefix("10.96.0.0/16")},
	{Kind: nodestate.RangeService, Prefix: netip.MustParsePrefix("fd00:10:96::/112")},
	{Kind: nodestate.RangeLoadBalancer, Prefix: netip.MustParsePrefix("172.30.0.192/26")},
}

// newCluster makes members node-1… with the underlay addresses of the family of the given prefix, on hosts that prepare
// has changed.
func newCluster(t *testing.T, count int, underlay netip.Prefix, prepare ...func(*testnet.NS)) *cluster {
	t.Helper()
	n := testnet.New(t)
	plug := n.Underlay("underlay")
	c := &cluster{t: t, ranges: clusterRanges}
	address := underlay.Addr()
	for i := 1; i <= count; i++ {
		address = address.Next()
		m := &member{NS: n.AddNS(fmt.Sprintf("node-%d", i))}
		plug(m.NS, netip.PrefixFrom(address, underlay.Bits()))
		m.SetSysctl("net/ipv4/conf/all/rp_filter", "1")
		for _, change := range prepare {
			change(m.NS)
		}
		m.Must(func() error {
			var err error
			m.fabric, err = Open(Config{Self: m.Name(), Underlay: address})
			if err != nil {
				return err
			}
			m.device, err = m.fabric.EnsureDevice()
			return err
		})
		t.Cleanup(m.fabric.Close)
		prefix := netip.MustParsePrefix
		m.row = nodestate.Member{
			Name: m.Name(), Kind: nodestate.MemberNode, Underlay: []netip.Addr{address}, TunnelMAC: m.device.MAC,
			Blocks: []netip.Prefix{
				prefix(fmt.Sprintf("10.244.%d.0/26", i)), prefix(fmt.Sprintf("fd00:10:244:%d::/122", i)),
			},
		}
		for _, b := range m.row.Blocks {
			m.row.Tunnel = append(m.row.Tunnel, b.Addr().Next())
		}
		c.members = append(c.members, m)
	}
	return c
}

func (c *cluster) rows() []nodestate.Member {
	var rows []nodestate.Member
	for _, m := range c.members {
		rows = append(rows, m.row)
	}
	return rows
}

func (c *cluster) apply(m *member, rows []nodestate.Member, ranges []nodestate.Range) Result {
	c.t.Helper()
	var r Result
	m.Must(func() error {
		var err error
		r, err = m.fabric.Apply(rows, ranges)
		return err
	})
	return r
}

func (c *cluster) applyAll() {
	c.t.Helper()
	for _, m := range c.members {
		if r := c.apply(m, c.rows(), c.ranges); len(r.Problems) > 0 {
			c.t.Errorf("%s: problems %v", m.Name(), r.Problems)
		}
	}
}

var underlays = map[string]netip.Prefix{
	"IPv4 underlay": netip.MustParsePrefix("172.30.0.0/24"),
	"IPv6 underlay": netip.MustParsePrefix("fd00:172:30::/64"),
}

func TestMembersReachEachOtherWithTheFirstPacket(t *testing.T) {
	for name, underlay := range underlays {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3, underlay)
			c.applyAll()
			for _, from := range c.members {
				for _, to := range c.members {
					if from == to {
						continue
					}
					for i, a := range to.row.Tunnel {
						at := to.ServeUDP(to.Name(), netip.AddrPortFrom(a, 0))
						r := from.UDP(testnet.Attempt{Target: at})
						if r.Outcome != testnet.Reached || r.Client.Addr() != from.row.Tunnel[i] {
							t.Errorf("first datagram from %s to %s: %+v", from.Name(), at, r)
						}
					}
				}
			}
		})
	}
}

func TestMTUIsDerivedAndLargePacketsPass(t *testing.T) {
	for name, want := range map[string]int{"IPv4 underlay": 1450, "IPv6 underlay": 1430} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2, underlays[name])
			c.applyAll()
			a, b := c.members[0], c.members[1]
			if a.device.MTU != want || a.Link(DefaultLink).Attrs().MTU != want {
				t.Errorf("MTU is %d, want %d", a.device.MTU, want)
			}
			for i, address := range b.row.Tunnel {
				at := b.ServeUDP("b", netip.AddrPortFrom(address, 0))
				// The largest datagram that needs no fragment, less the greeting that comes back with it.
				payload := make([]byte, want-[]int{20, 40}[i]-8-64)
				if r := a.UDP(testnet.Attempt{Target: at, Payload: payload}); r.Outcome != testnet.Reached {
					t.Errorf("datagram of %d bytes to %s: %+v", len(payload), at, r)
				}
				tcp := b.ServeTCP("b", netip.AddrPortFrom(address, 0))
				if r := a.TCP(testnet.Attempt{Target: tcp, Payload: make([]byte, 1<<20)}); r.Outcome != testnet.Reached {
					t.Errorf("1 MiB to %s: %+v", tcp, r)
				}
			}
			// The underlay changes: so does the tunnel.
			if err := a.Handle().LinkSetMTU(a.Link("eth0"), 9000); err != nil {
				t.Fatal(err)
			}
			if r := c.apply(a, c.rows(), c.ranges); r.Device.MTU != want+7500 || r.Writes == 0 {
				t.Errorf("with an underlay MTU of 9000: %+v", r)
			}
			if r := c.apply(a, c.rows(), c.ranges); r.Writes != 0 {
				t.Errorf("applied again: %d writes", r.Writes)
			}
		})
	}
}

func TestApplyAgainWritesNothing(t *testing.T) {
	c := newCluster(t, 3, underlays["IPv4 underlay"])
	for _, m := range c.members {
		if r := c.apply(m, c.rows(), c.ranges); r.Writes == 0 {
			t.Errorf("%s: the first time nothing was written", m.Name())
		}
		if r := c.apply(m, c.rows(), c.ranges); r.Writes != 0 || len(r.Problems) != 0 {
			t.Errorf("%s: the second time %+v", m.Name(), r)
		}
		// A restarted process knows nothing but the kernel.
		m.Must(func() error {
			f, err := Open(m.fabric.cfg)
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := f.Apply(c.rows(), c.ranges)
			if r.Writes != 0 {
				t.Errorf("%s: a new process made %d writes", m.Name(), r.Writes)
			}
			return err
		})
	}
}

// dump is the fabric's part of a member's kernel as iproute2 shows it.
func dump(m *member) string {
	return strings.Join([]string{
		m.Run("ip", "-o", "addr", "show", "dev", DefaultLink),
		m.Run("ip", "neigh", "show", "dev", DefaultLink),
		m.Run("ip", "-6", "neigh", "show", "dev", DefaultLink),
		m.Run("bridge", "fdb", "show", "dev", DefaultLink),
		m.Run("ip", "route", "show", "proto", "97"),
		m.Run("ip", "-6", "route", "show", "proto", "97"),
	}, "")
}

func TestAnyStateToAnyState(t *testing.T) {
	c := newCluster(t, 3, underlays["IPv4 underlay"])
	m := c.members[0]
	all := c.rows()
	moved := append([]nodestate.Member(nil), all...)
	// node-2 was made anew elsewhere; node-3 took one of its blocks over.
	moved[1].Underlay = []netip.Addr{netip.MustParseAddr("172.30.0.99")}
	moved[1].Blocks = moved[1].Blocks[1:]
	moved[2].Blocks = append([]netip.Prefix{all[1].Blocks[0]}, all[2].Blocks...)
	more := append([]nodestate.Member(nil), all...)
	more[0].Blocks = append([]netip.Prefix{netip.MustParsePrefix("10.244.9.0/26")}, all[0].Blocks...)
	states := map[string]struct {
		members []nodestate.Member
		ranges  []nodestate.Range
	}{
		"empty": {nil, nil}, "alone": {all[:1], c.ranges}, "all": {all, c.ranges}, "moved": {moved, c.ranges},
		"more blocks": {more, c.ranges}, "no ranges": {all, nil}, "not registered": {all[1:], c.ranges},
	}
	want := map[string]string{}
	for name, s := range states {
		m.Must(m.fabric.Remove)
		c.apply(m, s.members, s.ranges)
		want[name] = dump(m)
	}
	for from, a := range states {
		for to, b := range states {
			c.apply(m, a.members, a.ranges)
			c.apply(m, b.members, b.ranges)
			if got := sorted(dump(m)); got != sorted(want[to]) {
				t.Errorf("%s, then %s:\n%s\nwant\n%s", from, to, got, sorted(want[to]))
			}
			if r := c.apply(m, b.members, b.ranges); r.Writes != 0 {
				t.Errorf("%s, then %s: again made %d writes", from, to, r.Writes)
			}
		}
	}
}

func sorted(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, l := range lines {
		// The index of the device changes with it.
		if _, rest, ok := strings.Cut(l, ": "+DefaultLink); ok {
			lines[i] = rest
		}
	}
	for i := range lines {
		for j := i + 1; j < len(lines); j++ {
			if lines[j] < lines[i] {
				lines[i], lines[j] = lines[j], lines[i]
			}
		}
	}
	return strings.Join(lines, "\n")
}

func TestUnassignedAddressesAreRefusedAtOnce(t *testing.T) {
	c := newCluster(t, 2, underlays["IPv4 underlay"])
	m := c.members[0]
	// A default route, by which the packets would leave.
	m.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("172.30.0.2"))
	c.applyAll()
	for _, a := range []string{"10.244.1.44", "fd00:10:244:1::3", "10.244.77.1", "fd00:10:244:77::1"} {
		r := m.TCP(testnet.Attempt{Target: netip.AddrPortFrom(netip.MustParseAddr(a), 80)})
		if r.Outcome != testnet.Unreachable {
			t.Errorf("%s, which no pod has: %+v", a, r)
		}
	}
}

func TestServiceRangeGivesASource(t *testing.T) {
	c := newCluster(t, 2, underlays["IPv4 underlay"])
	c.applyAll()
	m := c.members[0]
	for i, a := range []string{"10.96.0.1", "fd00:10:96::1"} {
		out := m.Run("ip", "route", "get", a)
		if !strings.Contains(out, "dev "+DefaultLink) || !strings.Contains(out, "src "+m.row.Tunnel[i].String()) {
			t.Errorf("route to %s: %s", a, out)
		}
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	c := newCluster(t, 2, underlays["IPv4 underlay"])
	m := c.members[0]
	before := m.Run("ip", "route", "show", "table", "all")
	m.Must(m.fabric.Remove)
	empty := m.Run("ip", "-o", "link") + m.Run("ip", "-o", "addr") + m.Run("ip", "route", "show", "table", "all")
	c.applyAll()
	if after := m.Run("ip", "route", "show", "table", "all"); after == before {
		t.Fatal("applying added no route")
	}
	for range 2 {
		m.Must(m.fabric.Remove)
		got := m.Run("ip", "-o", "link") + m.Run("ip", "-o", "addr") + m.Run("ip", "route", "show", "table", "all")
		if got != empty {
			t.Errorf("left behind:\n%s\nbefore:\n%s", got, empty)
		}
	}
}

func TestForeignThingsAreLeftAlone(t *testing.T) {
	c := newCluster(t, 2, underlays["IPv4 underlay"])
	m := c.members[0]
	m.Run("ip", "route", "add", "10.244.2.0/26", "via", "172.30.0.2", "metric", fmt.Sprint(metric), "proto", "static")
	podRoute := []string{"10.244.1.9/32", "dev", "eth0", "proto", "97", "metric", "1024"}
	m.Run("ip", append([]string{"route", "add"}, podRoute...)...)
	r := c.apply(m, c.rows(), c.ranges)
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].String(), "10.244.2.0/26") {
		t.Errorf("problems %v", r.Problems)
	}
	if out := m.Run("ip", "route", "show", "10.244.2.0/26"); !strings.Contains(out, "proto static") {
		t.Errorf("the foreign route is now %q", out)
	}
	m.Must(m.fabric.Remove)
	if out := m.Run("ip", "route", "show", "proto", "97"); !strings.Contains(out, "10.244.1.9") {
		t.Errorf("the pod route is gone; left is %q", out)
	}
	m.Run("ip", "link", "add", DefaultLink, "type", "bridge")
	if err := m.Do(func() error { _, err := m.fabric.EnsureDevice(); return err }); !errs.Is(err, errs.Exists) {
		t.Errorf("with a foreign %s: %v", DefaultLink, err)
	}
	m.Must(m.fabric.Remove)
	m.Link(DefaultLink)
}

func TestDeviceFollowsItsConfiguration(t *testing.T) {
	c := newCluster(t, 2, underlays["IPv4 underlay"])
	c.applyAll()
	m := c.members[0]
	other := m.fabric.cfg
	other.Port, other.VNI = 8473, 98
	m.Must(func() error {
		f, err := Open(other)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Apply(c.rows(), c.ranges); err != nil {
			return err
		}
		r, err := f.Apply(c.rows(), c.ranges)
		if r.Writes != 0 {
			t.Errorf("applied again: %d writes", r.Writes)
		}
		return err
	})
	if out := m.Run("ip", "-d", "link", "show", DefaultLink); !strings.Contains(out, "id 98") || !strings.Contains(out, "dstport 8473") ||
		!strings.Contains(out, "nolearning") {
		t.Errorf("the device is %s", out)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	good := Config{Self: "node-1", Underlay: netip.MustParseAddr("172.30.0.1")}
	for name, change := range map[string]func(*Config){
		"no name":             func(c *Config) { c.Self = "" },
		"no underlay":         func(c *Config) { c.Underlay = netip.Addr{} },
		"loopback":            func(c *Config) { c.Underlay = netip.MustParseAddr("127.0.0.1") },
		"unspecified":         func(c *Config) { c.Underlay = netip.IPv6Unspecified() },
		"long link":           func(c *Config) { c.Link = "sixteen-letters-" },
		"VNI out of 24 bits":  func(c *Config) { c.VNI = 1 << 24 },
		"IPv4-mapped address": func(c *Config) { c.Underlay = netip.MustParseAddr("::ffff:172.30.0.1") },
	} {
		c := good
		change(&c)
		if _, err := Open(c); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := newCluster(t, 1, underlays["IPv4 underlay"]).members[0]
	m.Run("ip", "link", "set", "eth0", "mtu", "1300")
	if err := m.Do(func() error { _, err := m.fabric.EnsureDevice(); return err }); !errs.Is(err, errs.Invalid) {
		t.Errorf("an underlay MTU of 1300: %v", err)
	}
	m.Run("ip", "address", "flush", "dev", "eth0")
	if err := m.Do(func() error { _, err := m.fabric.EnsureDevice(); return err }); !errs.Is(err, errs.NotFound) {
		t.Errorf("underlay address gone: %v", err)
	}
}
