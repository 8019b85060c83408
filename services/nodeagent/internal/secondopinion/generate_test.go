package secondopinion

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"podwire.dev/internal/nodestate"
)

// generator makes random rows over a world.
type generator struct {
	*rand.Rand
	w *world
}

func newGenerator(seed uint64, w *world) generator {
	return generator{rand.New(rand.NewPCG(seed, 0)), w}
}

// chance is true once in n times.
func (g generator) chance(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g generator, list []T) T { return list[g.IntN(len(list))] }

// classes is the number of classes of each kind; few, so that allowances meet subjects and peers.
const classes = 4

func (g generator) class() nodestate.Class { return nodestate.Class{byte(1 + g.IntN(classes))} }

// policy makes the rule table of a node: most pods have a Subject, most addresses a peer class.
func (g generator) policy(n *node) *nodestate.Slice {
	s := nodestate.NewSlice()
	for _, p := range g.w.pods {
		if p.node == n && !g.chance(12) {
			s.Upsert(nodestate.Subject{PodUID: p.name, Ingress: g.side(), Egress: g.side()})
		}
		for _, a := range p.addrs {
			if !g.chance(4) {
				s.Upsert(nodestate.Peer{Address: a, Class: g.class()})
			}
		}
	}
	for _, a := range g.w.member.addrs {
		if !g.chance(4) {
			s.Upsert(nodestate.Peer{Address: a, Class: g.class()})
		}
	}
	for _, r := range g.ranges() {
		s.Upsert(nodestate.PeerRange{AddrRange: r, Class: g.class()})
	}
	for range g.IntN(14) {
		s.Upsert(g.allow())
	}
	return s
}

func (g generator) side() nodestate.Side {
	if g.chance(2) {
		return nodestate.Side{Mode: nodestate.SideOpen}
	}
	return nodestate.Side{Mode: nodestate.SideIsolated, Class: g.class(), Policies: []string{"default/some"}}
}

// ranges are disjoint ranges of addresses that hold pods, nodes and the outside.
func (g generator) ranges() []nodestate.AddrRange {
	var list []nodestate.AddrRange
	add := func(prefix string, low, high int) {
		at := func(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("%s%x", prefix, n)) }
		if prefix[len(prefix)-1] == '.' {
			at = func(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("%s%d", prefix, n)) }
		}
		if !g.chance(3) {
			list = append(list, nodestate.AddrRange{From: at(low), To: at(high)})
		}
	}
	for _, prefix := range []string{"10.244.1.", "10.244.2.", "fd00:10:244:1::", "fd00:10:244:2::"} {
		cut := 5 + g.IntN(10)
		add(prefix, 0, cut)
		add(prefix, cut+1, 63)
	}
	for _, prefix := range []string{"172.30.9.", "fd00:172:30:9::"} {
		add(prefix, 1, 1+g.IntN(2))
		add(prefix, 128, 254)
	}
	return list
}

func (g generator) allow() nodestate.Allow {
	a := nodestate.Allow{
		Direction: nodestate.Direction(1 + g.IntN(2)), Subject: g.class(), PeerMode: nodestate.PeerAny,
		PortMode: nodestate.PortMode(1 + g.IntN(3)), Origins: []string{"default/some"},
	}
	if !g.chance(4) {
		a.PeerMode, a.Peer = nodestate.PeerClass, g.class()
	}
	if a.PortMode == nodestate.PortAny {
		return a
	}
	a.Protocol = pick(g, []nodestate.Protocol{nodestate.TCP, nodestate.TCP, nodestate.UDP, nodestate.UDP, nodestate.SCTP})
	if a.PortMode == nodestate.PortRange {
		a.From = pick(g, listening) - uint16(g.IntN(3))
		a.To = a.From + uint16(g.IntN(4))
		switch g.IntN(4) {
		case 0:
			a.To = a.From + uint16(g.IntN(1000))
		case 1:
			a.From, a.To = uint16(g.IntN(8090)), uint16(8090+g.IntN(50000))
		}
	}
	return a
}

// services makes the Services of the cluster, the same for both nodes.
func (g generator) services() *nodestate.Slice {
	s := nodestate.NewSlice()
	for i := range 3 + g.IntN(6) {
		p := g.service(i)
		s.Upsert(p)
		for range g.IntN(5) {
			s.Upsert(g.endpoint(p))
		}
	}
	return s
}

func (g generator) locality() nodestate.Locality {
	if g.chance(3) {
		return nodestate.LocalityLocal
	}
	return nodestate.LocalityCluster
}

func (g generator) service(i int) nodestate.ServicePort {
	protocol := pick(g, []nodestate.Protocol{nodestate.TCP, nodestate.UDP})
	p := nodestate.ServicePort{
		ServiceKey: nodestate.ServiceKey{Namespace: "default", Service: fmt.Sprintf("s%d", i), Protocol: protocol},
		Port:       pick(g, []uint16{80, 81}), SourceMode: nodestate.SourceAll,
		InternalPolicy: g.locality(), ExternalPolicy: g.locality(),
	}
	for f := range families {
		if !g.chance(8) {
			p.ClusterAddresses = append(p.ClusterAddresses, frontendAddr(f, serviceRanges, i))
		}
		if g.chance(2) {
			p.NodePort = uint16(30000 + i)
			p.NodePortFamilies = append(p.NodePortFamilies, uint8(families[f]))
		}
		if g.chance(3) {
			p.LoadBalancerAddresses = append(p.LoadBalancerAddresses, frontendAddr(f, outsideRanges, i))
		} else if g.chance(3) {
			p.ExternalAddresses = append(p.ExternalAddresses, frontendAddr(f, outsideRanges, i))
		}
	}
	if g.chance(4) {
		p.AffinitySeconds = uint32(1 + g.IntN(100))
	}
	if g.chance(3) {
		p.SourceMode = nodestate.SourceSome
		for range g.IntN(4) {
			p.SourceRanges = append(p.SourceRanges, pick(g, []netip.Prefix{
				podRanges[0], podRanges[1], g.w.nodes[0].blocks[0], g.w.nodes[1].blocks[1], netip.PrefixFrom(outsideAddr[0], 32),
				netip.MustParsePrefix("fd00:172:30:9::/64"), netip.MustParsePrefix("172.30.9.0/30"),
			}))
		}
	}
	return p
}

// frontendAddr is the address number i of a range.
func frontendAddr(f int, ranges []netip.Prefix, i int) netip.Addr {
	a := ranges[f].Addr()
	for range 10 + i {
		a = a.Next()
	}
	return a
}

func (g generator) endpoint(p nodestate.ServicePort) nodestate.Endpoint {
	b := pick(g, g.w.pods)
	if g.chance(6) {
		b = pick(g, g.w.boxes())
	}
	e := nodestate.Endpoint{
		ServiceKey: p.ServiceKey, Address: b.addrs[g.IntN(2)], Backend: pick(g, listening), State: nodestate.EndpointReady,
	}
	if b.node != nil {
		e.Node = b.node.name
	}
	if g.chance(6) {
		e.Backend = deaf
	}
	if g.chance(5) {
		e.State = nodestate.EndpointTerminating
	}
	if !g.chance(4) {
		e.HintNodes = []string{pick(g, g.w.nodes[:]).name}
	}
	return e
}

// probe is one attempt to reach something.
type probe struct {
	from     *box
	to       netip.Addr
	port     uint16
	protocol nodestate.Protocol
}

func (p probe) String() string {
	return fmt.Sprintf("%s from %s to %s", p.protocol, p.from.name, netip.AddrPortFrom(p.to, p.port))
}

// probes are attempts from random boxes to pods, nodes, the outside, Services and addresses that nobody has.
func (g generator) probes(n int, services *nodestate.Slice) []probe {
	var ports []nodestate.ServicePort
	for _, r := range services.Rows(nodestate.TableServicePorts) {
		ports = append(ports, r.(nodestate.ServicePort))
	}
	var list []probe
	for range n {
		p := probe{
			from: pick(g, g.w.boxes()), to: pick(g, g.w.boxes()).addrs[g.IntN(2)], port: pick(g, append(listening, deaf)),
			protocol: pick(g, []nodestate.Protocol{nodestate.TCP, nodestate.UDP}),
		}
		s := pick(g, ports)
		front := append(append(append([]netip.Addr(nil), s.ClusterAddresses...), s.LoadBalancerAddresses...), s.ExternalAddresses...)
		switch {
		case g.chance(2) && len(front) > 0:
			p.to, p.port, p.protocol = pick(g, front), s.Port, s.Protocol
			if g.chance(10) {
				p.port++
			}
		case g.chance(3) && s.NodePort != 0:
			p.to, p.port, p.protocol = pick(g, g.w.nodes[:]).addrs[g.IntN(2)], s.NodePort, s.Protocol
		case g.chance(12):
			p.to = pick(g, g.w.nodes[:]).tunnel[g.IntN(2)]
		case g.chance(12):
			p.port, p.protocol = tunnelPort, nodestate.UDP
		case g.chance(12):
			p.to = pick(g, []netip.Addr{g.w.pods[0].addrs[0].Prev(), g.w.pods[0].addrs[1].Prev(), serviceRanges[0].Addr().Next()})
		}
		list = append(list, p)
	}
	return list
}
