package testnet

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var families = map[string]struct{ a, b netip.Prefix }{
	"IPv4": {netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24")},
	"IPv6": {netip.MustParsePrefix("2001:db8::1/64"), netip.MustParsePrefix("2001:db8::2/64")},
}

// pair is two namespaces with a wire and one address of each family.
func pair(t *testing.T) (*NS, *NS) {
	n := New(t)
	a, b := n.AddNS("a"), n.AddNS("b")
	ea, eb := End{NS: a, Link: "eth0"}, End{NS: b, Link: "eth0"}
	for _, f := range families {
		ea.Addresses, eb.Addresses = append(ea.Addresses, f.a), append(eb.Addresses, f.b)
	}
	n.Wire(ea, eb)
	return a, b
}

func TestOutcomes(t *testing.T) {
	a, b := pair(t)
	for name, f := range families {
		t.Run(name, func(t *testing.T) {
			for protocol, try := range map[string]struct {
				serve func(string, netip.AddrPort) netip.AddrPort
				reach func(Attempt) Result
			}{"TCP": {b.ServeTCP, a.TCP}, "UDP": {b.ServeUDP, a.UDP}} {
				at := try.serve("web", netip.AddrPortFrom(f.b.Addr(), 0))
				payload := bytes.Repeat([]byte("podwire "), 1000)
				r := try.reach(Attempt{Target: at, Payload: payload})
				if r.Outcome != Reached || r.Server != "web" || r.Client.Addr() != f.a.Addr() {
					t.Errorf("%s: a server answered %+v", protocol, r)
				}
				from := netip.AddrPortFrom(f.a.Addr(), 4242)
				if r := try.reach(Attempt{Target: at, From: from}); r.Client != from {
					t.Errorf("%s: from %s, the server saw %+v", protocol, from, r)
				}
				r = try.reach(Attempt{Target: netip.AddrPortFrom(f.b.Addr(), 1)})
				if r.Outcome != Refused {
					t.Errorf("%s: a port without a server gave %+v", protocol, r)
				}
				nobody := f.b.Addr().Next()
				r = try.reach(Attempt{Target: netip.AddrPortFrom(nobody, 1), Timeout: 100 * time.Millisecond})
				if r.Outcome != TimedOut {
					t.Errorf("%s: an address without a host gave %+v", protocol, r)
				}
				away := netip.MustParseAddr(map[bool]string{true: "198.51.100.1", false: "2001:db8:1::1"}[nobody.Is4()])
				if r := try.reach(Attempt{Target: netip.AddrPortFrom(away, 1)}); r.Outcome != Unreachable {
					t.Errorf("%s: an address without a route gave %+v", protocol, r)
				}
			}
		})
	}
}

func TestUnspecifiedServerAnswersFromTheAddressAsked(t *testing.T) {
	a, b := pair(t)
	for name, extra := range map[string]netip.Prefix{
		"IPv4": netip.MustParsePrefix("192.0.2.3/32"), "IPv6": netip.MustParsePrefix("2001:db8::3/128"),
	} {
		b.AddAddr("eth0", extra)
		unspecified := netip.IPv4Unspecified()
		if extra.Addr().Is6() {
			unspecified = netip.IPv6Unspecified()
		}
		at := b.ServeUDP("web", netip.AddrPortFrom(unspecified, 53))
		if r := a.UDP(Attempt{Target: netip.AddrPortFrom(extra.Addr(), at.Port())}); r.Outcome != Reached {
			t.Errorf("%s: second address: %+v", name, r)
		}
	}
}

func TestForgedFramesArrive(t *testing.T) {
	a, b := pair(t)
	for name, f := range families {
		for protocol, number := range map[string]uint8{"TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP} {
			tap := b.Tap("eth0")
			frame := Frame{
				SrcMAC: a.Link("eth0").Attrs().HardwareAddr, DstMAC: b.Link("eth0").Attrs().HardwareAddr,
				Src: f.a.Addr(), Dst: f.b.Addr(), Protocol: number, SrcPort: 7, DstPort: 9,
				Flags: FlagSYN, Payload: []byte("odd"),
			}.Bytes()
			a.Send("eth0", frame)
			if tap.Wait(2*time.Second, func(got []byte) bool { return bytes.Equal(got, frame) }) == nil {
				t.Errorf("%s %s: the frame did not arrive", name, protocol)
			}
			// The kernel answers only to a frame whose checksums are right: nobody listens, so with a refusal.
			answer := func(got []byte) bool {
				discovery := got[12] == 0x86 && got[20] == unix.IPPROTO_ICMPV6 && got[54] >= 133
				return !discovery && bytes.Equal(got[0:6], frame[6:12]) && bytes.Equal(got[12:14], frame[12:14])
			}
			if tap.Wait(2*time.Second, answer) == nil {
				t.Errorf("%s %s: the kernel did not answer", name, protocol)
			}
		}
	}
}

func TestHostileHostForwardsNothing(t *testing.T) {
	for name, profile := range map[string]Profile{
		"FORWARD DROP": ForwardDrop, "docker": Docker, "ufw": UFW, "firewalld": Firewalld,
	} {
		t.Run(name, func(t *testing.T) {
			n := New(t)
			left, host, right := n.AddNS("left"), n.AddNS("host"), n.AddNS("right")
			prefix := netip.MustParsePrefix
			n.Wire(End{left, "eth0", []netip.Prefix{prefix("192.0.2.1/30"), prefix("2001:db8::1/64")}},
				End{host, "left", []netip.Prefix{prefix("192.0.2.2/30"), prefix("2001:db8::2/64")}})
			n.Wire(End{right, "eth0", []netip.Prefix{prefix("192.0.2.5/30"), prefix("2001:db8:1::1/64")}},
				End{host, "right", []netip.Prefix{prefix("192.0.2.6/30"), prefix("2001:db8:1::2/64")}})
			host.SetSysctl("net/ipv4/ip_forward", "1")
			host.SetSysctl("net/ipv6/conf/all/forwarding", "1")
			for _, s := range []*NS{left, right} {
				v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
				if s == right {
					v4, v6 = netip.MustParseAddr("192.0.2.6"), netip.MustParseAddr("2001:db8:1::2")
				}
				s.AddRoute(prefix("0.0.0.0/0"), v4)
				s.AddRoute(prefix("::/0"), v6)
			}
			v4 := Attempt{Target: right.ServeTCP("right", netip.MustParseAddrPort("192.0.2.5:80")), Timeout: 200 * time.Millisecond}
			v6 := Attempt{Target: right.ServeTCP("right", netip.MustParseAddrPort("[2001:db8:1::1]:80")), Timeout: 200 * time.Millisecond}
			for _, a := range []Attempt{v4, v6} {
				if r := left.TCP(a); r.Outcome != Reached {
					t.Fatalf("%s before: %+v", a.Target, r)
				}
			}
			host.Hostile(profile)
			for _, a := range []Attempt{v4, v6} {
				if r := left.TCP(a); r.Outcome == Reached {
					t.Errorf("%s through a hostile host: %+v", a.Target, r)
				}
			}
			if host.Ruleset() == "" {
				t.Error("a hostile host has no rules")
			}
		})
	}
}

func TestCommandsAndSysctlsStayInside(t *testing.T) {
	n := New(t)
	a, b := n.AddNS("a"), n.AddNS("b")
	a.SetSysctl("net/ipv4/ip_forward", "1")
	if got := b.Sysctl("net/ipv4/ip_forward"); got != "0" {
		t.Errorf("b's ip_forward is %q", got)
	}
	if out := a.Run("cat", "/proc/sys/net/ipv4/ip_forward"); out != "1\n" {
		t.Errorf("a command in a saw ip_forward %q", out)
	}
	if out, err := a.Try("false"); err == nil {
		t.Errorf("false succeeded: %q", out)
	}
	if n.NS("a") != a {
		t.Error("NS(a) is another namespace")
	}
}
