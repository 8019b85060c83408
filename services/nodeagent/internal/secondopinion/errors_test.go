package secondopinion

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/testnet"
)

// TestErrorsFromAnotherNode sends ICMP errors through the tunnel, about flows that the sender's node knows and about one that it
// does not. What a node gets through the tunnel it believes, so the sender's own node must stop those of a third.
func TestErrorsFromAnotherNode(t *testing.T) {
	w := newWorld(t, 2)
	w.everywhere(nil, w.open()...)
	a1, a2, b1, b2 := w.pod("a1"), w.pod("a2"), w.pod("b1"), w.pod("b2")
	for f := range families {
		for i, c := range []struct {
			what      string
			from, far *box // the error goes to a1, about its flow with far
			want      bool
		}{
			{"an end's", b1, b1, true},
			{"a third's, about a flow with a pod of its node", b2, b1, false},
			{"a third's, about a flow that its node does not know", b2, a2, false},
			{"a third's, about a flow with a member", b2, w.member, false},
		} {
			t.Run(fmt.Sprintf("%s, IPv%d", c.what, families[f]), func(t *testing.T) {
				port := uint16(7100 + i)
				at := netip.AddrPortFrom(c.far.addrs[f], listening[0])
				r := a1.ns.UDP(testnet.Attempt{Target: at, From: netip.AddrPortFrom(a1.addrs[f], port), Timeout: patient})
				if r.Outcome != testnet.Reached {
					t.Fatalf("the flow with %s: %s %v", c.far.name, r.Outcome, r.Err)
				}
				told := fmt.Appendf(nil, "%s told of %s", c.from.name, c.far.name)
				tap := a1.ns.Tap("eth0")
				c.from.ns.Send("eth0", unreachable(c.from, a1, f, testnet.Frame{
					Src: a1.addrs[f], Dst: at.Addr(), Protocol: unix.IPPROTO_UDP, SrcPort: port, DstPort: at.Port(), Payload: told,
				}))
				timeout := patient
				if !c.want {
					timeout = silence
				}
				if got := tap.Wait(timeout, func(b []byte) bool { return bytes.Contains(b, told) }) != nil; got != c.want {
					t.Errorf("arrives: %v\n%s", got, w.dropped())
				}
			})
		}
	}
}

// unreachable is an ICMP error of a pod, port unreachable, about a packet.
func unreachable(from, to *box, f int, about testnet.Frame) []byte {
	e := testnet.Frame{
		SrcMAC: from.ns.Link("eth0").Attrs().HardwareAddr, DstMAC: net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee},
		Src: from.addrs[f], Dst: to.addrs[f], Protocol: unix.IPPROTO_ICMP, Type: 3, Code: 3, Payload: about.Bytes()[14:],
	}
	if f == 1 {
		e.Protocol, e.Type, e.Code = unix.IPPROTO_ICMPV6, 1, 4
	}
	return e.Bytes()
}
