package member

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
)

// site is a node, a replica of dns and somebody who is no member, on one underlay.
type site struct {
	node, dns, outside *testnet.NS
	rows               []nodestate.Member
	node1              *fabric.Fabric
	door               *guarded
}

var siteRanges = []nodestate.Range{
	{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("10.244.0.0/16")},
	{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("fd00:10:244::/48")},
}

// Pods of the node, and the member's addresses.
var (
	podsOfNode = []netip.Addr{netip.MustParseAddr("10.244.1.9"), netip.MustParseAddr("fd00:10:244:1::9")}
	ownOfDNS   = []netip.Addr{netip.MustParseAddr("10.244.255.193"), netip.MustParseAddr("fd00:10:244::c1")}
)

func newSite(t *testing.T, underlay netip.Prefix) *site {
	t.Helper()
	n := testnet.New(t)
	plug := n.Underlay("underlay")
	s := &site{node: n.AddNS("node-1"), dns: n.AddNS("dns"), outside: n.AddNS("outside")}
	address := underlay.Addr()
	for _, ns := range []*testnet.NS{s.node, s.dns, s.outside} {
		address = address.Next()
		plug(ns, netip.PrefixFrom(address, underlay.Bits()))
		ns.LinkUp("lo")
		s.rows = append(s.rows, nodestate.Member{Underlay: []netip.Addr{address}})
	}
	// As in a container.
	s.dns.SetSysctl("net/ipv4/ip_forward", "1")
	s.dns.SetSysctl("net/ipv6/conf/all/forwarding", "1")
	node, dns := &s.rows[0], &s.rows[1]
	*node = nodestate.Member{
		Name: "node-1", Kind: nodestate.MemberNode, Underlay: node.Underlay, TunnelMAC: nodestate.TunnelMACOf("node-1"),
		Tunnel: []netip.Addr{netip.MustParseAddr("10.244.1.0"), netip.MustParseAddr("fd00:10:244:1::")},
		Blocks: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/26"), netip.MustParsePrefix("fd00:10:244:1::/122")},
	}
	self := nodestate.ServiceMember("dns-1")
	*dns = nodestate.Member{
		Name: self, Kind: nodestate.MemberService, Underlay: dns.Underlay, TunnelMAC: nodestate.TunnelMACOf(self), Tunnel: ownOfDNS,
	}
	for i, a := range ownOfDNS {
		dns.Blocks = append(dns.Blocks, netip.PrefixFrom(a, a.BitLen()))
		s.node.AddAddr("lo", netip.PrefixFrom(podsOfNode[i], a.BitLen()))
	}
	open := func(ns *testnet.NS, cfg fabric.Config) (f *fabric.Fabric) {
		ns.Must(func() (err error) { f, err = fabric.Open(cfg); return err })
		t.Cleanup(f.Close)
		return f
	}
	s.node1 = open(s.node, fabric.Config{Self: "node-1", Underlay: node.Underlay[0]})
	s.door = guard(open(s.dns, fabric.Config{Self: self, Underlay: dns.Underlay[0]}), self, 0, Service{Name: "dns", Ports: []Port{
		{Name: "dns", Port: 53, Protocol: nodestate.UDP}, {Name: "dns-tcp", Port: 53, Protocol: nodestate.TCP},
	}})
	s.node.Must(func() error { _, err := s.node1.Apply(s.rows[:2], siteRanges); return err })
	s.apply(t)
	return s
}

func (s *site) apply(t *testing.T) (r fabric.Result) {
	t.Helper()
	s.dns.Must(func() (err error) { r, err = s.door.Apply(s.rows[:2], siteRanges); return err })
	return r
}

var siteUnderlays = map[string]netip.Prefix{
	"IPv4 underlay": netip.MustParsePrefix("172.30.0.0/24"), "IPv6 underlay": netip.MustParsePrefix("fd00:172:30::/64"),
}

// TestPodsReachWhatIsServed: pods reach the ports that a member serves, nothing else of it, and are seen themselves.
func TestPodsReachWhatIsServed(t *testing.T) {
	for name, underlay := range siteUnderlays {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, underlay)
			for i, own := range ownOfDNS {
				from := netip.AddrPortFrom(podsOfNode[i], 0)
				tcp, udp := s.dns.ServeTCP("tcp", netip.AddrPortFrom(own, 53)), s.dns.ServeUDP("udp", netip.AddrPortFrom(own, 53))
				other := s.dns.ServeTCP("grpc", netip.AddrPortFrom(own, 7443))
				back := s.node.ServeTCP("pod", netip.AddrPortFrom(podsOfNode[i], 0))
				for what, r := range map[string]testnet.Result{
					"TCP": s.node.TCP(testnet.Attempt{Target: tcp, From: from}), "UDP": s.node.UDP(testnet.Attempt{Target: udp, From: from}),
				} {
					if r.Outcome != testnet.Reached || r.Client.Addr() != podsOfNode[i] {
						t.Errorf("pod %s to the member, %s: %+v", podsOfNode[i], what, r)
					}
				}
				if r := s.dns.TCP(testnet.Attempt{Target: back}); r.Outcome != testnet.Reached || r.Client.Addr() != own {
					t.Errorf("the member to pod %s: %+v", podsOfNode[i], r)
				}
				if r := s.node.TCP(testnet.Attempt{Target: other, From: from}); r.Outcome != testnet.Refused {
					t.Errorf("pod %s to a port that is not served: %+v", podsOfNode[i], r)
				}
				if r := s.dns.TCP(testnet.Attempt{Target: other}); r.Outcome != testnet.Reached {
					t.Errorf("the member to itself: %+v", r)
				}
			}
		})
	}
}

// TestOnlyTheFabricReachesAMember: who is no member reaches no fabric address from the underlay.
func TestOnlyTheFabricReachesAMember(t *testing.T) {
	for name, underlay := range siteUnderlays {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, underlay)
			own := ownOfDNS[0]
			if underlay.Addr().Is6() {
				own = ownOfDNS[1]
			}
			s.outside.AddRoute(netip.PrefixFrom(own, own.BitLen()), s.rows[1].Underlay[0])
			tcp, udp := s.dns.ServeTCP("tcp", netip.AddrPortFrom(own, 53)), s.dns.ServeUDP("udp", netip.AddrPortFrom(own, 53))
			if r := s.outside.TCP(testnet.Attempt{Target: tcp, Timeout: 300 * time.Millisecond}); r.Outcome == testnet.Reached {
				t.Errorf("TCP from outside: %+v", r)
			}
			if r := s.outside.UDP(testnet.Attempt{Target: udp, Timeout: 300 * time.Millisecond}); r.Outcome == testnet.Reached {
				t.Errorf("UDP from outside: %+v", r)
			}
			local := s.dns.ServeTCP("grpc", netip.AddrPortFrom(s.rows[1].Underlay[0], 7443))
			if r := s.outside.TCP(testnet.Attempt{Target: local}); r.Outcome != testnet.Reached {
				t.Errorf("its underlay address from outside: %+v", r)
			}
		})
	}
}

// TestNobodySpeaksForPodsThroughAMember: neither a tunnel packet of somebody who is no member, nor a packet that a member is
// to forward, gets into the fabric with a pod's address as its source.
func TestNobodySpeaksForPodsThroughAMember(t *testing.T) {
	for name, underlay := range siteUnderlays {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, underlay)
			forged := []byte("forged, from nobody's pod")
			pod := netip.MustParseAddr("10.244.1.20")
			mac := func(ns *testnet.NS, link string) net.HardwareAddr { return ns.Link(link).Attrs().HardwareAddr }
			frame := func(dst netip.Addr) testnet.Frame {
				return testnet.Frame{
					SrcMAC: mac(s.outside, "eth0"), DstMAC: mac(s.dns, "eth0"), Src: pod, Dst: dst, Protocol: unix.IPPROTO_UDP,
					SrcPort: 4000, DstPort: 53, Payload: forged,
				}
			}
			inTunnel := func(dst netip.Addr) []byte {
				inner := frame(dst)
				inner.DstMAC = mac(s.dns, fabric.DefaultLink)
				head := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, 97<<8)
				outer := testnet.Frame{
					SrcMAC: mac(s.outside, "eth0"), DstMAC: mac(s.dns, "eth0"), Src: s.rows[2].Underlay[0], Dst: s.rows[1].Underlay[0],
					Protocol: unix.IPPROTO_UDP, SrcPort: 50000, DstPort: fabric.DefaultPort, Payload: append(head, inner.Bytes()...),
				}
				return outer.Bytes()
			}
			atNode, atDNS := s.node.Tap(fabric.DefaultLink), s.dns.Tap(fabric.DefaultLink)
			s.outside.Send("eth0", frame(podsOfNode[0]).Bytes(), inTunnel(podsOfNode[0]), inTunnel(ownOfDNS[0]))
			// What comes after the forged packets, and arrives, shows that they had their time.
			at := s.dns.ServeUDP("dns", netip.AddrPortFrom(ownOfDNS[0], 53))
			genuine := []byte("genuine")
			if r := s.node.UDP(testnet.Attempt{Target: at, From: netip.AddrPortFrom(podsOfNode[0], 0), Payload: genuine}); r.Outcome != testnet.Reached {
				t.Fatalf("a pod to the member: %+v", r)
			}
			for where, tap := range map[string]*testnet.Tap{"node": atNode, "member": atDNS} {
				seen := false
				if tap.Wait(patience, func(b []byte) bool {
					seen = seen || bytes.Contains(b, forged)
					return bytes.Contains(b, genuine)
				}) == nil {
					t.Fatalf("%s: nothing came", where)
				}
				if seen {
					t.Errorf("a forged packet is in the fabric at the %s", where)
				}
			}
		})
	}
}

// TestTheWallStays: it is written where it is missing or differs, and goes with the fabric.
func TestTheWallStays(t *testing.T) {
	s := newSite(t, siteUnderlays["IPv4 underlay"])
	if r := s.apply(t); r.Writes != 0 {
		t.Errorf("applied again: %d writes", r.Writes)
	}
	for _, damage := range [][]string{
		{"flush", "ruleset"}, {"flush", "chain", "inet", "podwire-member", "forward"}, {"delete", "chain", "inet", "podwire-member", "forward"},
	} {
		s.dns.Run("nft", damage...)
		if r := s.apply(t); r.Writes != 1 {
			t.Errorf("after nft %v: %d writes", damage, r.Writes)
		}
		if list := s.dns.Run("nft", "list", "ruleset"); !strings.Contains(list, `comment "into the fabric"`) {
			t.Errorf("after nft %v there is\n%s", damage, list)
		}
	}
	s.dns.Must(s.door.Remove)
	if list := s.dns.Run("nft", "list", "ruleset"); strings.TrimSpace(list) != "" {
		t.Errorf("after the removal there is\n%s", list)
	}
}
