package secondopinion

import (
	"fmt"
	"net/netip"
	"testing"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
)

// TestMembersArePeers holds packets of a member that is no node against the row "member" of docs/dataplane.md: seen and judged
// by its own address in both directions, and masqueraded to like any endpoint on another member where the client is outside.
func TestMembersArePeers(t *testing.T) {
	w := newWorld(t, 1)
	a1, b1, member := w.pod("a1"), w.pod("b1"), w.member
	isolated := nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{1}, Policies: []string{"default/some"}}
	// allow lets the member, and nobody else, pass at every pod: both ways, or one.
	allow := func(directions ...nodestate.Direction) []nodestate.Row {
		var rows []nodestate.Row
		for _, p := range w.pods {
			rows = append(rows, nodestate.Subject{PodUID: p.name, Ingress: isolated, Egress: isolated})
		}
		for _, d := range directions {
			rows = append(rows, nodestate.Allow{
				Direction: d, Subject: nodestate.Class{1}, PeerMode: nodestate.PeerClass, Peer: nodestate.Class{9},
				PortMode: nodestate.PortRange, Protocol: nodestate.UDP, From: listening[0], To: listening[0], Origins: []string{"default/some"},
			})
		}
		for _, a := range member.addrs {
			rows = append(rows, nodestate.Peer{Address: a, Class: nodestate.Class{9}})
		}
		return rows
	}
	for f := range families {
		t.Run(fmt.Sprintf("IPv%d", families[f]), func(t *testing.T) {
			check := func(what string, p probe, server string, client netip.Addr) {
				t.Helper()
				timeout := patient
				if server == "" {
					timeout = silence
				}
				r := p.try(timeout)
				if (r.Outcome == testnet.Reached) != (server != "") || r.Server != server || r.Client.Addr().Unmap() != client {
					t.Errorf("%s: %s: %s by %q, which sees %s, want %q and %s\n%s", what, p, r.Outcome, r.Server, r.Client, server, client,
						w.dropped())
				}
			}
			none := netip.Addr{}
			to := func(from, to *box, protocol nodestate.Protocol) probe {
				return probe{from, to.addrs[f], listening[0], protocol}
			}
			w.everywhere(nil, w.open()...)
			for _, p := range []*box{a1, b1} {
				for _, protocol := range []nodestate.Protocol{nodestate.TCP, nodestate.UDP} {
					check("open", to(p, member, protocol), member.name, p.addrs[f])
					check("open", to(member, p, protocol), p.name, member.addrs[f])
				}
			}
			check("a node", to(w.nodes[0].box, member, nodestate.TCP), member.name, w.nodes[0].tunnel[f])

			w.everywhere(nil, allow(nodestate.Egress)...)
			check("egress allowed", to(a1, member, nodestate.UDP), member.name, a1.addrs[f])
			check("egress of another protocol", to(a1, member, nodestate.TCP), "", none)
			check("ingress not allowed", to(member, a1, nodestate.UDP), "", none)
			w.everywhere(nil, allow(nodestate.Ingress)...)
			check("egress not allowed", to(a1, member, nodestate.UDP), "", none)
			check("ingress allowed", to(member, b1, nodestate.UDP), b1.name, member.addrs[f])
			check("ingress of another protocol", to(member, b1, nodestate.TCP), "", none)
			check("another peer", to(b1, a1, nodestate.UDP), "", none)

			// As kube-dns and the ingress are exposed: a ClusterIP for pods, a node port for clients outside.
			service := udpService("member", 53, func(p *nodestate.ServicePort) {
				p.ClusterAddresses = []netip.Addr{frontendAddr(f, serviceRanges, 60)}
				p.NodePort, p.NodePortFamilies = 30060, []uint8{uint8(families[f])}
			})
			at := nodestate.Endpoint{
				ServiceKey: service.ServiceKey, Address: member.addrs[f], Backend: listening[0], State: nodestate.EndpointReady,
			}
			w.everywhere([]nodestate.Row{service, at}, allow(nodestate.Egress)...)
			inside := probe{a1, service.ClusterAddresses[0], 53, nodestate.UDP}
			check("a Service of the member", inside, member.name, a1.addrs[f])
			check("a Service of the member, for a node", probe{w.nodes[0].box, service.ClusterAddresses[0], 53, nodestate.UDP},
				member.name, w.nodes[0].tunnel[f])
			check("a node port, from outside", probe{w.out, w.nodes[0].addrs[f], 30060, nodestate.UDP}, member.name, w.nodes[0].tunnel[f])
			w.everywhere([]nodestate.Row{service, at}, allow()...)
			check("the Service, egress not allowed", inside, "", none)
			w.everywhere(nil, w.open()...)
		})
	}
}
