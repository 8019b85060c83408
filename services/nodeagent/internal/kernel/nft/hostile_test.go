package nft_test

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
)

// A pod that reached a tunnel's end would speak for every pod: the inner packet's source is believed.
func TestOnlyMembersReachTheTunnel(t *testing.T) {
	each(t, func(w *world, f family) {
		for _, name := range []string{"b", "node", "outside"} {
			w.ns[name].ServeUDP(name, netip.AddrPortFrom(f.any(), tunnelPort))
		}
		for _, c := range []struct {
			from string
			to   netip.Addr
		}{{"a", f.node}, {"a", f.tunnel}, {"a", f.outside}, {"remote", f.tunnel}, {"remote", f.node}, {"outside", f.node}} {
			w.want("tunnel port from "+c.from+" to "+c.to.String(), w.udp(c.from, c.to, tunnelPort), testnet.TimedOut, "")
		}
		w.want("the same port of a pod", w.udp("a", f.pods["b"], tunnelPort), testnet.Reached, "b")
		peer := nodestate.Member{Name: "node-2", Kind: nodestate.MemberNode, Underlay: []netip.Addr{f.outside}}
		w.set(peer)
		w.want("a member", w.udp("outside", f.node, tunnelPort), testnet.Reached, "node")
		w.want("a pod to a member", w.udp("a", f.outside, tunnelPort), testnet.TimedOut, "")
		w.remove(peer)
		w.want("no member any more", w.udp("outside", f.node, tunnelPort), testnet.TimedOut, "")
	})
}

// The answers of a masqueraded flow go to the pod before any socket of the node: a pod that sends from the tunnel's port
// to a member's would get what that member's pods send to this node's.
func TestNoFlowOfAPodTakesTheTunnelsPackets(t *testing.T) {
	each(t, func(w *world, f family) {
		w.set(nodestate.Member{Name: "node-2", Kind: nodestate.MemberNode, Underlay: []netip.Addr{f.outside}})
		w.serve(f, "outside")
		var tunnel net.PacketConn
		w.ns["node"].Must(func() (err error) {
			tunnel, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.node, tunnelPort)))
			return err
		})
		defer func() { _ = tunnel.Close() }()
		w.ns["a"].Send("eth0", testnet.Frame{
			SrcMAC: w.ns["a"].Link("eth0").Attrs().HardwareAddr, DstMAC: w.ns["node"].Link("pwpa").Attrs().HardwareAddr,
			Src: f.pods["a"], Dst: f.outside, Protocol: unix.IPPROTO_UDP, SrcPort: tunnelPort, DstPort: 40000,
		}.Bytes())
		// One queue, one order: when this is answered, the frame has passed.
		w.want("a pod to outside", w.udp("a", f.outside, 8080), testnet.Reached, "outside")
		secret := []byte("of another pod")
		w.ns["outside"].Send("eth0", testnet.Frame{
			SrcMAC: w.ns["outside"].Link("eth0").Attrs().HardwareAddr, DstMAC: w.ns["node"].Link("eth0").Attrs().HardwareAddr,
			Src: f.outside, Dst: f.node, Protocol: unix.IPPROTO_UDP, SrcPort: 40000, DstPort: tunnelPort, Payload: secret,
		}.Bytes())
		got := make([]byte, 100)
		_ = tunnel.SetReadDeadline(time.Now().Add(time.Second))
		if n, _, err := tunnel.ReadFrom(got); err != nil || !bytes.Equal(got[:n], secret) {
			t.Errorf("a member's packet does not reach the tunnel: %q, %v", got[:n], err)
		}
	})
}
