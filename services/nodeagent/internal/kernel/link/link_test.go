package link

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/rtnl"
	"podwire.dev/internal/testnet"
)

// node is a namespace with forwarding on, whose host has the address of each family that pods may reach.
type node struct {
	*testnet.NS
	t     *testing.T
	links *Links
}

var hostAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::1/128")}

func newNode(t *testing.T, n *testnet.Net) *node {
	t.Helper()
	s := n.AddNS("node")
	s.SetSysctl("net/ipv4/ip_forward", "1")
	s.SetSysctl("net/ipv6/conf/all/forwarding", "1")
	for _, name := range []string{"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"} {
		s.SetSysctl(name, "1")
	}
	for _, p := range hostAddresses {
		s.AddAddr("lo", p)
	}
	d := &node{NS: s, t: t}
	s.Must(func() error {
		var err error
		d.links, err = Open()
		return err
	})
	t.Cleanup(d.links.Close)
	return d
}

func (d *node) attach(p Pod) (Attachment, error) {
	var a Attachment
	err := d.Do(func() error {
		var err error
		a, err = d.links.Attach(p)
		return err
	})
	return a, err
}

func (d *node) mustAttach(p Pod) Attachment {
	d.t.Helper()
	a, err := d.attach(p)
	if err != nil {
		d.t.Fatal(err)
	}
	return a
}

func (d *node) list() []Attachment {
	d.t.Helper()
	var list []Attachment
	d.Must(func() error {
		var err error
		list, err = d.links.List()
		return err
	})
	return list
}

var stacks = map[string][]netip.Addr{
	"dual": {netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:10:244:1::5")},
	"IPv4": {netip.MustParseAddr("10.244.1.5")},
	"IPv6": {netip.MustParseAddr("fd00:10:244:1::5")},
}

func pod(n *testnet.Net, name string, addresses ...netip.Addr) (Pod, *testnet.NS) {
	s := n.AddNS(name)
	return Pod{
		UID: "uid-" + name, Namespace: "default", Name: name, NetNS: s.Path(), Addresses: addresses, MTU: 1450,
	}, s
}

func TestFirstPacketIsDeliveredBothWays(t *testing.T) {
	for stack, addresses := range stacks {
		t.Run(stack, func(t *testing.T) {
			n := testnet.New(t)
			d := newNode(t, n)
			p, inside := pod(n, "web", addresses...)
			for _, a := range addresses {
				inside.ServeUDP("web", netip.AddrPortFrom(a, 53))
				d.ServeUDP("host", netip.AddrPortFrom(hostAddressOf(a), 53))
			}
			d.mustAttach(p)
			for _, a := range addresses {
				// One datagram, and no second: what is lost is not repeated.
				if r := d.UDP(testnet.Attempt{Target: netip.AddrPortFrom(a, 53)}); r.Outcome != testnet.Reached {
					t.Errorf("first datagram from the host to %s: %+v", a, r)
				}
				to := netip.AddrPortFrom(hostAddressOf(a), 53)
				if r := inside.UDP(testnet.Attempt{Target: to}); r.Outcome != testnet.Reached || r.Client.Addr() != a {
					t.Errorf("first datagram from %s to the host: %+v", a, r)
				}
			}
		})
	}
}

func hostAddressOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return hostAddresses[0].Addr()
	}
	return hostAddresses[1].Addr()
}

func TestPodsReachEachOther(t *testing.T) {
	n := testnet.New(t)
	d := newNode(t, n)
	a, insideA := pod(n, "a", stacks["dual"]...)
	b, insideB := pod(n, "b", netip.MustParseAddr("10.244.1.6"), netip.MustParseAddr("fd00:10:244:1::6"))
	d.mustAttach(a)
	d.mustAttach(b)
	payload := make([]byte, 100_000)
	for i, address := range b.Addresses {
		at := insideB.ServeTCP("b", netip.AddrPortFrom(address, 80))
		r := insideA.TCP(testnet.Attempt{Target: at, Payload: payload})
		if r.Outcome != testnet.Reached || r.Client.Addr() != a.Addresses[i] {
			t.Errorf("%s: %+v", address, r)
		}
	}
}

func TestAttachTwiceWritesNothing(t *testing.T) {
	for stack, addresses := range stacks {
		t.Run(stack, func(t *testing.T) {
			n := testnet.New(t)
			d := newNode(t, n)
			p, _ := pod(n, "web", addresses...)
			first := d.mustAttach(p)
			before := d.links.Writes()
			if before == 0 {
				t.Fatal("attaching a pod counted no write")
			}
			if second := d.mustAttach(p); fmt.Sprint(second) != fmt.Sprint(first) {
				t.Errorf("the second time gave %+v, the first %+v", second, first)
			}
			if got := d.links.Writes() - before; got != 0 {
				t.Errorf("attaching again made %d writes", got)
			}
		})
	}
}

func TestListIsTheWitness(t *testing.T) {
	n := testnet.New(t)
	d := newNode(t, n)
	p, _ := pod(n, "web", stacks["dual"]...)
	want := d.mustAttach(p)
	list := d.list()
	if len(list) != 1 || fmt.Sprint(list[0]) != fmt.Sprint(want) {
		t.Fatalf("the kernel lists %+v, Attach returned %+v", list, want)
	}
	if want.Link != Name(p.UID) || want.UID != p.UID || want.Namespace != "default" || want.Name != "web" {
		t.Errorf("attachment %+v", want)
	}
	for range 2 {
		d.Must(func() error { return d.links.Detach(p.UID) })
		if list := d.list(); len(list) != 0 {
			t.Errorf("after Detach the kernel lists %+v", list)
		}
	}
	if out := d.Run("ip", "route", "show", "table", "all", "proto", fmt.Sprint(rtnl.Protocol)); out != "" {
		t.Errorf("routes left behind:\n%s", out)
	}
	if out := d.Run("ip", "-o", "link"); strings.Contains(out, Prefix) {
		t.Errorf("links left behind:\n%s", out)
	}
}

func TestAttachRepairs(t *testing.T) {
	damage := map[string]func(t *testing.T, host, inside *testnet.NS, link string){
		"route on the host": func(_ *testing.T, host, _ *testnet.NS, _ string) {
			host.Run("ip", "-6", "route", "del", "fd00:10:244:1::5/128")
			host.Run("ip", "route", "del", "10.244.1.5/32")
		},
		"neighbours": func(_ *testing.T, host, inside *testnet.NS, link string) {
			host.Run("ip", "neigh", "flush", "dev", link, "nud", "permanent")
			inside.Run("ip", "neigh", "flush", "dev", "eth0", "nud", "permanent")
		},
		"addresses in the pod": func(_ *testing.T, _, inside *testnet.NS, _ string) {
			inside.Run("ip", "address", "flush", "dev", "eth0")
		},
		"pod's link down":  func(_ *testing.T, _, inside *testnet.NS, _ string) { inside.Run("ip", "link", "set", "eth0", "down") },
		"host's link down": func(_ *testing.T, host, _ *testnet.NS, link string) { host.Run("ip", "link", "set", link, "down") },
		"pod's loopback":   func(_ *testing.T, _, inside *testnet.NS, _ string) { inside.Run("ip", "link", "set", "lo", "down") },
		"pod's MAC": func(_ *testing.T, _, inside *testnet.NS, _ string) {
			inside.Run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
		},
		"MTU": func(_ *testing.T, host, _ *testnet.NS, link string) {
			host.Run("ip", "link", "set", link, "mtu", "1300")
		},
		"link deleted": func(_ *testing.T, host, _ *testnet.NS, link string) {
			host.Run("ip", "link", "del", link)
		},
		"settings": func(_ *testing.T, host, _ *testnet.NS, link string) {
			host.SetSysctl("net/ipv6/conf/"+link+"/accept_ra", "1")
			host.SetSysctl("net/ipv4/conf/"+link+"/rp_filter", "1")
		},
		"IPv6 of the links": func(_ *testing.T, host, inside *testnet.NS, link string) {
			host.SetSysctl("net/ipv6/conf/"+link+"/disable_ipv6", "1")
			inside.SetSysctl("net/ipv6/conf/all/disable_ipv6", "1")
		},
		"address that is not the pod's": func(_ *testing.T, host, inside *testnet.NS, link string) {
			inside.Run("ip", "address", "add", "10.244.1.99/32", "dev", "eth0")
			host.Run("ip", "route", "add", "10.244.1.99/32", "dev", link, "proto", "97", "metric", "1024")
		},
	}
	for name, hurt := range damage {
		t.Run(name, func(t *testing.T) {
			n := testnet.New(t)
			d := newNode(t, n)
			p, inside := pod(n, "web", stacks["dual"]...)
			a := d.mustAttach(p)
			hurt(t, d.NS, inside, a.Link)
			before := d.links.Writes()
			d.mustAttach(p)
			if d.links.Writes() == before {
				t.Error("nothing was repaired")
			}
			after := d.links.Writes()
			d.mustAttach(p)
			if got := d.links.Writes() - after; got != 0 {
				t.Errorf("after the repair, attaching made %d writes", got)
			}
			for _, address := range p.Addresses {
				at := inside.ServeTCP("web", netip.AddrPortFrom(address, 80))
				if r := d.TCP(testnet.Attempt{Target: at}); r.Outcome != testnet.Reached {
					t.Errorf("%s: %+v", at, r)
				}
			}
			if list := d.list(); len(list) != 1 || len(list[0].Addresses) != 2 {
				t.Errorf("the kernel lists %+v", list)
			}
		})
	}
}

func TestAddressesFollowThePod(t *testing.T) {
	n := testnet.New(t)
	d := newNode(t, n)
	p, inside := pod(n, "web", stacks["dual"]...)
	d.mustAttach(p)
	p.Addresses = []netip.Addr{netip.MustParseAddr("10.244.1.7")}
	d.mustAttach(p)
	if list := d.list(); len(list) != 1 || fmt.Sprint(list[0].Addresses) != "[10.244.1.7]" {
		t.Errorf("the kernel lists %+v", list)
	}
	at := inside.ServeTCP("web", netip.MustParseAddrPort("10.244.1.7:80"))
	if r := d.TCP(testnet.Attempt{Target: at}); r.Outcome != testnet.Reached {
		t.Errorf("new address: %+v", r)
	}
}

func TestSameUIDInANewNamespace(t *testing.T) {
	n := testnet.New(t)
	d := newNode(t, n)
	p, _ := pod(n, "web", stacks["dual"]...)
	d.mustAttach(p)
	again, inside := pod(n, "web-again", stacks["dual"]...)
	p.NetNS = again.NetNS
	d.mustAttach(p)
	at := inside.ServeTCP("web", netip.AddrPortFrom(p.Addresses[0], 80))
	if r := d.TCP(testnet.Attempt{Target: at}); r.Outcome != testnet.Reached {
		t.Errorf("the pod made anew: %+v", r)
	}
	if list := d.list(); len(list) != 1 {
		t.Errorf("the kernel lists %+v", list)
	}
}

func TestForeignLinksAreLeftAlone(t *testing.T) {
	n := testnet.New(t)
	d := newNode(t, n)
	p, inside := pod(n, "web", stacks["dual"]...)
	inside.Run("ip", "link", "add", "eth0", "type", "bridge")
	if _, err := d.attach(p); !errs.Is(err, errs.Exists) {
		t.Errorf("with a foreign eth0 in the pod: %v", err)
	}
	if list := d.list(); len(list) != 0 {
		t.Errorf("after a refusal the kernel lists %+v", list)
	}
	q, _ := pod(n, "other", stacks["dual"]...)
	d.Run("ip", "link", "add", Name(q.UID), "type", "bridge")
	if _, err := d.attach(q); !errs.Is(err, errs.Exists) {
		t.Errorf("with a foreign link on the host: %v", err)
	}
	if err := d.Do(func() error { return d.links.Detach(q.UID) }); !errs.Is(err, errs.Exists) {
		t.Errorf("detaching a foreign link: %v", err)
	}
	d.Link(Name(q.UID))
}

func TestContainerWithIPv6TurnedOff(t *testing.T) {
	n := testnet.New(t)
	d := newNode(t, n)
	p, inside := pod(n, "web", stacks["dual"]...)
	inside.SetSysctl("net/ipv6/conf/all/disable_ipv6", "1")
	d.mustAttach(p)
	at := inside.ServeTCP("web", netip.AddrPortFrom(p.Addresses[1], 80))
	if r := d.TCP(testnet.Attempt{Target: at}); r.Outcome != testnet.Reached {
		t.Errorf("%+v", r)
	}
}

// TestHostWithIPv6TurnedOff: a container engine turns IPv6 off for links that are made later in a container of its own.
func TestHostWithIPv6TurnedOff(t *testing.T) {
	for _, scope := range []string{"default", "all"} {
		t.Run(scope, func(t *testing.T) {
			n := testnet.New(t)
			d := newNode(t, n)
			d.SetSysctl("net/ipv6/conf/"+scope+"/disable_ipv6", "1")
			if scope == "all" { // which reaches each link that is there; the engine turns it on again for those with an address
				d.SetSysctl("net/ipv6/conf/lo/disable_ipv6", "0")
				d.AddAddr("lo", hostAddresses[1])
			}
			p, inside := pod(n, "web", stacks["dual"]...)
			d.mustAttach(p)
			at := inside.ServeTCP("web", netip.AddrPortFrom(p.Addresses[1], 80))
			if r := d.TCP(testnet.Attempt{Target: at}); r.Outcome != testnet.Reached {
				t.Errorf("%+v", r)
			}
			before := d.links.Writes()
			d.mustAttach(p)
			if got := d.links.Writes() - before; got != 0 {
				t.Errorf("attaching again made %d writes", got)
			}
			if v := d.Sysctl("net/ipv6/conf/default/disable_ipv6"); v != "1" {
				t.Errorf("the host's own default is now %s", v)
			}
			// An IPv4-only pod asks for nothing.
			q, _ := pod(n, "four", netip.MustParseAddr("10.244.1.6"))
			if v := d.Sysctl("net/ipv6/conf/" + d.mustAttach(q).Link + "/disable_ipv6"); v != "1" {
				t.Errorf("IPv6 of a pod's link without IPv6: disable_ipv6 is %s", v)
			}
		})
	}
}

// TestPodsGiveNoDirections: a pod can name no way to its host, neither in a packet nor by a redirect, and is told of none.
func TestPodsGiveNoDirections(t *testing.T) {
	n := testnet.New(t)
	d := newNode(t, n)
	for _, family := range []string{"ipv4", "ipv6"} {
		for _, name := range []string{"accept_redirects", "accept_source_route"} {
			d.SetSysctl("net/"+family+"/conf/all/"+name, "1")
			d.SetSysctl("net/"+family+"/conf/default/"+name, "1")
		}
	}
	d.SetSysctl("net/ipv4/conf/all/send_redirects", "0") // the kernel takes the larger of this and the link's
	p, inside := pod(n, "web", stacks["dual"]...)
	a := d.mustAttach(p)
	for _, name := range []string{
		"ipv4/conf/" + a.Link + "/accept_redirects", "ipv6/conf/" + a.Link + "/accept_redirects",
		"ipv4/conf/" + a.Link + "/accept_source_route", "ipv6/conf/" + a.Link + "/accept_source_route",
		"ipv4/conf/" + a.Link + "/send_redirects",
	} {
		if v := d.Sysctl("net/" + name); v != "0" {
			t.Errorf("%s is %s", name, v)
		}
	}
	// A datagram to an address behind the pod's own link goes back where it came from, which is what redirects are for.
	other := netip.MustParseAddr("10.244.1.77")
	d.Run("ip", "route", "add", other.String()+"/32", "dev", a.Link)
	datagram := testnet.Frame{
		SrcMAC: inside.Link(Interface).Attrs().HardwareAddr, DstMAC: hostMAC[:], Src: p.Addresses[0], Dst: other,
		Protocol: unix.IPPROTO_UDP, SrcPort: 4000, DstPort: 4000, Payload: []byte("x"),
	}.Bytes()
	redirect := func(f []byte) bool {
		return len(f) > 34 && f[12] == 8 && f[13] == 0 && f[23] == unix.IPPROTO_ICMP && f[34] == icmpRedirect
	}
	tap := inside.Tap(Interface)
	inside.Send(Interface, datagram)
	if f := tap.Wait(300*time.Millisecond, redirect); f != nil {
		t.Errorf("the pod was redirected: %x", f)
	}
	// The same on a link without our setting, so that the test can fail.
	d.SetSysctl("net/ipv4/conf/"+a.Link+"/send_redirects", "1")
	inside.Send(Interface, datagram)
	if tap.Wait(5*time.Second, redirect) == nil {
		t.Error("a host without our setting does not redirect either")
	}
}

// icmpRedirect is the type of a redirect (RFC 792).
const icmpRedirect = 5

func TestRouterAdvertisementOfAPodIsIgnored(t *testing.T) {
	n := testnet.New(t)
	d := newNode(t, n)
	d.SetSysctl("net/ipv6/conf/default/accept_ra", "2")
	p, inside := pod(n, "web", stacks["IPv6"]...)
	a := d.mustAttach(p)
	// A router advertisement (RFC 4861 section 4.2): hop limit 64, lifetime 1800 s; to an address of the host, since the link
	// has no link-local address and with it no multicast.
	advertisement := testnet.Frame{
		SrcMAC: inside.Link("eth0").Attrs().HardwareAddr, DstMAC: hostMAC[:],
		Src: netip.MustParseAddr("fe80::bad"), Dst: hostAddresses[1].Addr(), Protocol: 58, TTL: 255, Type: 134,
		Payload: make([]byte, 8),
	}.Bytes()
	copy(advertisement[58:62], []byte{64, 0, 0x07, 0x08})
	fixICMPv6(advertisement)
	tap := d.Tap(a.Link)
	inside.Send("eth0", advertisement)
	if tap.Wait(2*time.Second, func(f []byte) bool { return len(f) > 54 && f[54] == 134 }) == nil {
		t.Fatal("the advertisement did not arrive")
	}
	if out := d.Run("ip", "-6", "route", "show", "proto", "ra"); out != "" {
		t.Errorf("the host learned a router from a pod:\n%s", out)
	}
	// The same frame on a link without our settings, so that the test can fail.
	d.SetSysctl("net/ipv6/conf/"+a.Link+"/accept_ra", "2")
	inside.Send("eth0", advertisement)
	tap.Wait(2*time.Second, func(f []byte) bool { return len(f) > 54 && f[54] == 134 })
	if out := d.Run("ip", "-6", "route", "show", "proto", "ra"); out == "" {
		t.Error("the advertisement is not one that a host without our setting would believe")
	}
}

// fixICMPv6 writes the checksum of an ICMPv6 message whose body was changed after it was built.
func fixICMPv6(frame []byte) {
	frame[56], frame[57] = 0, 0
	sum := uint32(58 + len(frame) - 54)
	for _, b := range [][]byte{frame[22:54], frame[54:]} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(b[i])<<8 + uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	frame[56], frame[57] = byte(^sum>>8), byte(^sum)
}

func TestBadPodsAreRefused(t *testing.T) {
	good := Pod{UID: "u", Namespace: "d", Name: "n", NetNS: "/proc/self/ns/net", Addresses: stacks["dual"], MTU: 1450}
	v4 := stacks["IPv4"][0]
	for name, change := range map[string]func(*Pod){
		"no UID":              func(p *Pod) { p.UID = "" },
		"UID with a colon":    func(p *Pod) { p.UID = "a:b" },
		"long UID":            func(p *Pod) { p.UID = strings.Repeat("u", 129) },
		"no namespace":        func(p *Pod) { p.NetNS = "" },
		"no address":          func(p *Pod) { p.Addresses = nil },
		"two of one family":   func(p *Pod) { p.Addresses = []netip.Addr{v4, v4.Next()} },
		"zero address":        func(p *Pod) { p.Addresses = []netip.Addr{{}} },
		"IPv4-mapped address": func(p *Pod) { p.Addresses = []netip.Addr{netip.AddrFrom16(v4.As16())} },
		"small MTU":           func(p *Pod) { p.MTU = 1279 },
	} {
		p := good
		change(&p)
		if err := p.validate(); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := good.validate(); err != nil {
		t.Errorf("a good pod: %v", err)
	}
	n := testnet.New(t)
	d := newNode(t, n)
	p, _ := pod(n, "web", stacks["dual"]...)
	p.NetNS = "/proc/self/no-such-file"
	if _, err := d.attach(p); !errs.Is(err, errs.NotFound) {
		t.Errorf("a namespace that is gone: %v", err)
	}
}

func TestNamesAndAliases(t *testing.T) {
	if got := Name("uid"); len(got) != 15 || !strings.HasPrefix(got, Prefix) {
		t.Errorf("Name is %q", got)
	}
	long := Pod{UID: strings.Repeat("u", 128), Namespace: strings.Repeat("n", 63), Name: strings.Repeat("p", 253)}
	for _, p := range []Pod{{UID: "u", Namespace: "ns", Name: "p"}, long} {
		alias := aliasOf(p)
		a, ok := parseAlias(alias)
		if !ok || len(alias) > aliasMax || a.UID != p.UID || a.Namespace != p.Namespace || !strings.HasPrefix(p.Name, a.Name) {
			t.Errorf("alias %q reads back as %+v", alias, a)
		}
	}
	for _, alias := range []string{"", "podwire", "podwire:pod:", "podwire:pod::ns/name", "podwire:pod:uid", "eth0"} {
		if a, ok := parseAlias(alias); ok {
			t.Errorf("alias %q was taken for ours: %+v", alias, a)
		}
	}
}

func FuzzParseAlias(f *testing.F) {
	f.Add("podwire:pod:uid:ns/name")
	f.Add("podwire:pod::/")
	f.Fuzz(func(t *testing.T, alias string) {
		a, ok := parseAlias(alias)
		if ok && (a.UID == "" || strings.Contains(a.UID, ":")) {
			t.Errorf("alias %q gave UID %q", alias, a.UID)
		}
	})
}
