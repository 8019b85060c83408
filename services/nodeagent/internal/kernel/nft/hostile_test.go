package nft_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
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

// An ICMP error belongs to the flow that it quotes, passes with it, and carries data. Pod a may send nothing, b may receive
// nothing.
func TestErrorsComeFromTheFlowsEnds(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "a", "c", "node", "remote")
		w.set(isolated("a", false, true), isolated("b", true, false))
		for _, c := range []struct {
			what string
			report
			want bool
		}{
			{"about a flow with another node's pod", report{from: "a", to: "b", owner: "b", far: "remote"}, false},
			{"about a flow with another pod of the node", report{from: "a", to: "b", owner: "b", far: "c"}, false},
			{"about a flow of the node", report{from: "a", to: "node", owner: "node", far: "c"}, false},
			{"to one that is no end of it", report{from: "c", to: "a", owner: "b", far: "c"}, false},
			{"about its own flow", report{from: "c", to: "b", owner: "b", far: "c"}, true},
			{"about its own flow, to the node", report{from: "c", to: "node", owner: "node", far: "c"}, true},
			{"about its own flow, from another node", report{from: "remote", to: "b", owner: "b", far: "remote"}, true},
		} {
			if got := w.arrives(f, c.report); got != c.want {
				t.Errorf("an error from %s to %s %s: arrives %v\n%v", c.from, c.to, c.what, got, w.counts())
			}
		}
	})
}

// report is an ICMP error, port unreachable, from one end to another, about a flow of UDP that owner began with far.
type report struct{ from, to, owner, far string }

// arrives begins the flow, sends the error, and says whether what it carries arrives.
func (w *world) arrives(f family, r report) bool {
	w.t.Helper()
	at := map[string]netip.Addr{"node": f.tunnel, "remote": f.remote}
	link := map[string]string{"remote": "pwvx"}
	for name, a := range f.pods {
		at[name], link[name] = a, "pwp"+name
	}
	icmp, kind, code := uint8(unix.IPPROTO_ICMP), uint8(3), uint8(3)
	if f.n == 6 {
		icmp, kind, code = unix.IPPROTO_ICMPV6, 1, 4
	}
	const port = 7001
	flow := w.ns[r.owner].UDP(testnet.Attempt{
		Target: netip.AddrPortFrom(at[r.far], 8080), From: netip.AddrPortFrom(at[r.owner], port), Timeout: 400 * time.Millisecond,
	})
	if flow.Outcome != testnet.Reached {
		w.t.Fatalf("the flow of %s with %s: %s %v", r.owner, r.far, flow.Outcome, flow.Err)
	}
	told := fmt.Appendf(nil, "told by %s to %s", r.from, r.to)
	quoted := testnet.Frame{
		Src: at[r.owner], Dst: at[r.far], Protocol: unix.IPPROTO_UDP, SrcPort: port, DstPort: 8080, Payload: told,
	}.Bytes()[14:]
	before := w.counts()
	var tap *testnet.Tap
	if r.to != "node" {
		tap = w.ns[r.to].Tap("eth0")
	}
	w.ns[r.from].Send("eth0", testnet.Frame{
		SrcMAC: w.ns[r.from].Link("eth0").Attrs().HardwareAddr, DstMAC: w.ns["node"].Link(link[r.from]).Attrs().HardwareAddr,
		Src: at[r.from], Dst: at[r.to], Protocol: icmp, Type: kind, Code: code, Payload: quoted,
	}.Bytes())
	if tap != nil {
		return tap.Wait(500*time.Millisecond, func(b []byte) bool { return bytes.Contains(b, told) }) != nil
	}
	// No link of the node shows what its own stack accepts. One queue, one order: when this is answered, the error has passed.
	w.want("the node to "+r.from, w.udp("node", at[r.from], 8080), testnet.Reached, r.from)
	return w.counts()[nft.DropError] == before[nft.DropError]
}

// A pod chooses the number that it sends from. Kept on the node's address, what the far end sends to that number of the
// node would go to the pod, before any socket or node port.
func TestMasqueradeLendsNoServicePorts(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "outside", "remote", "b")
		lent := func(what string, r testnet.Result, server string) {
			t.Helper()
			w.want(what, r, testnet.Reached, server)
			if p := r.Client.Port(); p < 32768 || p > 60999 {
				t.Errorf("%s: the far end sees %s", what, r.Client)
			}
		}
		s := service(f, nodestate.TCP)
		s.NodePort, s.NodePortFamilies = 30080, []uint8{uint8(f.n)}
		other := service(f, nodestate.UDP)
		other.NodePort, other.NodePortFamilies = 30080, []uint8{uint8(f.n)}
		w.set(s, other, endpoint(nodestate.TCP, f.remote, 8080, "node-2"), endpoint(nodestate.UDP, f.remote, 8080, "node-2"))
		send := func(from string, source, to netip.Addr, port, own uint16) map[string]testnet.Result {
			a := testnet.Attempt{
				Target: netip.AddrPortFrom(to, port), From: netip.AddrPortFrom(source, own), Timeout: 400 * time.Millisecond,
			}
			return map[string]testnet.Result{"TCP": w.ns[from].TCP(a), "UDP": w.ns[from].UDP(a)}
		}
		for _, own := range []uint16{22, 443, 7443, 30080, 61000} {
			for protocol, r := range send("a", f.pods["a"], f.outside, 8080, own) {
				lent(fmt.Sprintf("%s from port %d of a pod", protocol, own), r, "outside")
			}
			for protocol, r := range send("outside", f.outside, f.node, 30080, own) {
				lent(fmt.Sprintf("%s from port %d outside, through a node port", protocol, own), r, "remote")
			}
			for protocol, r := range send("a", f.pods["a"], f.pods["b"], 8080, own+1) {
				w.want(protocol+" to a pod", r, testnet.Reached, "b")
				if r.Client != netip.AddrPortFrom(f.pods["a"], own+1) {
					t.Errorf("%s between pods: the far end sees %s", protocol, r.Client)
				}
			}
		}
		for protocol, r := range send("a", f.pods["a"], f.outside, 8080, 40000) {
			if r.Client != netip.AddrPortFrom(f.node, 40000) {
				t.Errorf("%s from a port that may be lent: %s, and the far end sees %s", protocol, r.Outcome, r.Client)
			}
		}
		w.set(endpoint(nodestate.TCP, f.outside, 8080, "node-3"), endpoint(nodestate.UDP, f.outside, 8080, "node-3"))
		w.remove(endpoint(nodestate.TCP, f.remote, 8080, "node-2"), endpoint(nodestate.UDP, f.remote, 8080, "node-2"))
		for protocol, r := range send("node", f.node, f.service, 80, 444) {
			lent(protocol+" of the node to a Service on a host's network", r, "outside")
		}
		for range 2 {
			w.ns["a"].Run("ping", "-c1", "-W1", f.outside.String())
		}
		w.lendsSCTP(f)
	})
}

// lendsSCTP begins an SCTP association from a pod's low port. No server is needed: the masqueraded packet is looked at.
func (w *world) lendsSCTP(f family) {
	w.t.Helper()
	tap := w.ns["outside"].Tap("eth0")
	w.ns["a"].Send("eth0", testnet.Frame{
		SrcMAC: w.ns["a"].Link("eth0").Attrs().HardwareAddr, DstMAC: w.ns["node"].Link("pwpa").Attrs().HardwareAddr,
		Src: f.pods["a"], Dst: f.outside, Protocol: unix.IPPROTO_SCTP, Payload: sctp(443, 9999, 0, sctpINIT),
	}.Bytes())
	header := 14 + 20
	if f.n == 6 {
		header = 14 + 40
	}
	seen := tap.Wait(2*time.Second, func(b []byte) bool {
		if len(b) < header+12 || binary.BigEndian.Uint16(b[header+2:]) != 9999 {
			return false
		}
		if p := binary.BigEndian.Uint16(b[header:]); p < 32768 || p > 60999 {
			w.t.Errorf("SCTP from port 443: the far end sees %d", p)
		}
		return true
	})
	if seen == nil {
		w.t.Error("the SCTP packet was lost")
	}
}

// The ports that may be lent are 28,232 for each far end's address and port. When all are, one more flow to it gets none, and
// waits in vain as if its packets were lost; other far ends, and other flows, are as before.
func TestLentPortsRunOut(t *testing.T) {
	each(t, func(w *world, f family) {
		const ports = 60999 - 32768 + 1
		w.serve(f, "outside", "b")
		// Nothing reads there, and nothing is answered.
		w.ns["outside"].Must(func() error {
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.outside, 9)))
			if err == nil {
				t.Cleanup(func() { _ = c.Close() })
			}
			return err
		})
		w.want("the way", w.udp("a", f.outside, 8080), testnet.Reached, "outside")
		frame := testnet.Frame{
			SrcMAC: w.ns["a"].Link("eth0").Attrs().HardwareAddr, DstMAC: w.ns["node"].Link("pwpa").Attrs().HardwareAddr,
			Src: f.pods["a"], Dst: f.outside, Protocol: unix.IPPROTO_UDP, DstPort: 9,
		}
		flows := func(filter ...string) int {
			args := append([]string{"-L", "-p", "udp", "--orig-port-dst", "9", "-f", fmt.Sprintf("ipv%d", f.n)}, filter...)
			return strings.Count(w.ns["node"].Run("conntrack", args...), "udp ")
		}
		var frames [][]byte
		for i := range ports { // each gets its own: no flow has to search
			frame.SrcPort = uint16(32768 + i)
			frames = append(frames, frame.Bytes())
		}
		for range 2 { // the second time for what a queue lost
			w.ns["a"].Send("eth0", frames...)
		}
		if n := flows(); n != ports {
			t.Fatalf("%d flows, want %d", n, ports)
		}
		frame.SrcPort = 30000
		w.ns["a"].Send("eth0", frame.Bytes())
		for _, name := range []string{"a", "node"} {
			w.want("another port of the far end, from "+name, w.udp(name, f.outside, 8080), testnet.Reached, "outside")
			w.want("another protocol, from "+name, w.tcp(name, f.outside, 8080), testnet.Reached, "outside")
		}
		w.want("a pod", w.udp("a", f.pods["b"], 8080), testnet.Reached, "b")
		if flows("--orig-port-src", "30000") != 0 {
			t.Error("a flow got a port that another has")
		}
	})
}
