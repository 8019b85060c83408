package nft_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
)

// containsMark says whether conntrack lists a flow with a mark.
func containsMark(list string) bool {
	for _, f := range strings.Fields(list) {
		if strings.HasPrefix(f, "mark=") && f != "mark=0" {
			return true
		}
	}
	return false
}

func isolated(uid string, ingress, egress bool) nodestate.Subject {
	open := nodestate.Side{Mode: nodestate.SideOpen}
	s := nodestate.Subject{PodUID: uid, Ingress: open, Egress: open}
	if ingress {
		s.Ingress = nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{1}}
	}
	if egress {
		s.Egress = nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{2}}
	}
	return s
}

func allow(d nodestate.Direction, peer byte, mode nodestate.PortMode, from, to uint16) nodestate.Allow {
	a := nodestate.Allow{Direction: d, Subject: nodestate.Class{byte(d)}, PeerMode: nodestate.PeerAny, PortMode: mode}
	if peer != 0 {
		a.PeerMode, a.Peer = nodestate.PeerClass, nodestate.Class{peer}
	}
	if mode != nodestate.PortAny {
		a.Protocol, a.From, a.To = nodestate.TCP, from, to
	}
	return a
}

func TestPolicy(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "a", "b", "c", "outside", "node")
		reached := func(from string, to netip.Addr, server string) {
			t.Helper()
			w.want(from+" to "+server, w.tcp(from, to, 8080), testnet.Reached, server)
		}
		denied := func(from string, to netip.Addr) {
			t.Helper()
			w.want(from+" to "+to.String(), w.tcp(from, to, 8080), testnet.TimedOut, "")
		}
		w.set(isolated("b", true, false), nodestate.Peer{Address: f.pods["a"], Class: nodestate.Class{9}})
		denied("a", f.pods["b"])
		reached("node", f.pods["b"], "b")
		reached("b", f.pods["a"], "a")

		rule := allow(nodestate.Ingress, 9, nodestate.PortRange, 8080, 8080)
		w.set(rule)
		reached("a", f.pods["b"], "b")
		denied("c", f.pods["b"])
		if r := w.udp("a", f.pods["b"], 8080); r.Outcome != testnet.TimedOut {
			t.Errorf("UDP passes a TCP rule: %s", r.Outcome)
		}
		if _, err := w.ns["a"].Try("ping", "-c1", "-W1", f.pods["b"].String()); err == nil {
			t.Error("ping passes a rule with ports")
		}
		w.remove(rule)
		denied("a", f.pods["b"])
		for _, r := range []nodestate.Allow{
			allow(nodestate.Ingress, 9, nodestate.PortAny, 0, 0),
			allow(nodestate.Ingress, 9, nodestate.PortProtocol, 0, 0),
			allow(nodestate.Ingress, 0, nodestate.PortRange, 8000, 8100),
			allow(nodestate.Ingress, 9, nodestate.PortRange, 8070, 8085),
			allow(nodestate.Ingress, 9, nodestate.PortRange, 1, 65535),
		} {
			w.set(r)
			reached("a", f.pods["b"], "b")
			if r.PortMode == nodestate.PortAny {
				w.ns["a"].Run("ping", "-c1", "-W1", f.pods["b"].String())
			}
			w.remove(r)
			denied("a", f.pods["b"])
		}

		w.set(isolated("c", false, true), nodestate.PeerRange{
			AddrRange: nodestate.AddrRange{From: f.outside, To: f.outside}, Class: nodestate.Class{7},
		}, allow(nodestate.Egress, 7, nodestate.PortAny, 0, 0))
		reached("c", f.outside, "outside")
		denied("c", f.pods["a"])
		denied("c", f.node)
		reached("a", f.pods["c"], "c")

		s := service(f, nodestate.TCP)
		w.set(s, endpoint(nodestate.TCP, f.pods["c"], 8080, "node-1"))
		w.want("a pod cannot block itself", w.tcp("c", f.service, 80), testnet.Reached, "c")

		w.remove(isolated("a", false, false))
		denied("a", f.pods["c"])
	})
}

func TestGate(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "b")
		stranger := f.pods["c"].Next()
		w.ns["a"].AddAddr("eth0", host(stranger))
		r := w.ns["a"].TCP(testnet.Attempt{
			Target: netip.AddrPortFrom(f.pods["b"], 8080), From: netip.AddrPortFrom(stranger, 0), Timeout: 400 * time.Millisecond,
		})
		w.want("forged source", r, testnet.TimedOut, "")
		if w.counts()[nft.DropGate].Packets == 0 {
			t.Error("the gate counted nothing")
		}
		w.ns["outside"].AddAddr("eth0", host(f.pods["c"].Next().Next()))
		w.ns["outside"].AddRoute(host(f.pods["b"]), f.node)
		r = w.ns["outside"].TCP(testnet.Attempt{
			Target: netip.AddrPortFrom(f.pods["b"], 8080), From: netip.AddrPortFrom(f.pods["c"].Next().Next(), 0),
			Timeout: 400 * time.Millisecond,
		})
		w.want("a pod's address from outside", r, testnet.TimedOut, "")
		w.planner.Detach("b")
		w.commit()
		w.want("detached", w.tcp("a", f.pods["b"], 8080), testnet.TimedOut, "")
		w.want("detached, own process", w.tcp("node", f.pods["b"], 8080), testnet.TimedOut, "")
	})
}

func TestBareSYN(t *testing.T) {
	each(t, func(w *world, f family) {
		w.serve(f, "b")
		w.want("a flow", w.tcp("a", f.pods["b"], 8080), testnet.Reached, "b")
		for _, flags := range []uint8{testnet.FlagACK, testnet.FlagSYN | testnet.FlagACK, testnet.FlagRST, testnet.FlagFIN} {
			before := w.counts()
			w.ns["a"].Send("eth0", testnet.Frame{
				SrcMAC: w.ns["a"].Link("eth0").Attrs().HardwareAddr, DstMAC: w.ns["node"].Link("pwpa").Attrs().HardwareAddr,
				Src: f.pods["a"], Dst: f.pods["b"], Protocol: 6, SrcPort: 7, DstPort: 8080, Flags: flags, Seq: 1, Ack: 1,
			}.Bytes())
			// The reply to a connection attempt comes after the frame: one queue, one order.
			w.want("a flow", w.tcp("a", f.pods["b"], 8080), testnet.Reached, "b")
			now := w.counts()
			dropped := now[nft.DropNoSYN].Packets + now[nft.DropInvalid].Packets -
				before[nft.DropNoSYN].Packets - before[nft.DropInvalid].Packets
			if dropped != 1 {
				t.Errorf("flags %#x: %d segments dropped, want 1", flags, dropped)
			}
		}
	})
}
