// Package tracer says where a node's tables send a packet, and which part of them decides.
//
// In: the elements of the nftables table (plan.Elements), what the host routes, and a packet that begins a flow. Out: the
// steps of its way, the backends that a Service may choose, and for each of them the fate, the source address by which
// answers come back, and the part that decided.
//
// The model is written from what the chains are documented to do, by hand, and not derived from the rules that
// internal/kernel/nft sends to the kernel: one is held against the other with real packets, and neither can be wrong in
// the same way by construction. The chains are those of the table, in the order of the kernel's hooks:
//
//	from a pod, the fabric or the underlay:  prerouting, nat-prerouting, route, then input or forward, forward-ingress,
//	                                         postrouting, nat-postrouting
//	from a process of the node:              route, nat-output, output, route, postrouting, nat-postrouting
//
// Limits. The first packet of a flow is followed, not what conntrack remembers of it: neither ICMP errors, which belong to flows
// that exist, nor the mark of a flow that policy has cut, are in the model. An affinity is a choice among all
// endpoints. What other software adds (a firewall of the host, its NAT) is not in the model.
//
// The package is pure.
package tracer

import (
	"fmt"
	"net/netip"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// Origin says where a packet starts.
type Origin uint8

// The origins.
const (
	// Pod is a pod of this node.
	Pod Origin = iota + 1
	// Process is a process of this node outside of all pods.
	Process
	// Fabric is the tunnel: another member.
	Fabric
	// Underlay is any other link of the host.
	Underlay
)

// Segment says how a TCP packet presents itself; other protocols have Opening only.
type Segment uint8

// The segments.
const (
	// Opening is a bare SYN.
	Opening Segment = iota
	// Middle is any other first segment.
	Middle
)

// ICMP is the protocol of pings, in both families.
const ICMP nodestate.Protocol = 1

// Packet is the first packet of a flow.
type Packet struct {
	Source, Destination netip.Addr
	Protocol            nodestate.Protocol
	// Port is the destination port; 0 for ICMP.
	Port   uint16
	Origin Origin
	// Link is the host side of the pod where Origin is Pod; empty: the link of the pod that has the source address.
	Link    string
	Segment Segment
}

// Host is what the node's own tables of addresses and routes say.
type Host struct {
	// Own are the addresses of the node itself, tunnel addresses included.
	Own []netip.Addr
	// Members are the blocks that other members hold.
	Members []netip.Prefix
}

// HostOf is the host of the rows that a node holds.
func HostOf(node plan.Node, fabric *nodestate.Slice) Host {
	h := Host{Own: append([]netip.Addr(nil), node.Addresses...)}
	if fabric == nil {
		return h
	}
	for _, r := range fabric.Rows(nodestate.TableMembers) {
		m, ok := r.(nodestate.Member)
		switch {
		case ok && m.Name == node.Name:
			h.Own = append(h.Own, m.Tunnel...)
		case ok:
			h.Members = append(h.Members, m.Blocks...)
		}
	}
	return h
}

// Fate is how a packet's way ends.
type Fate uint8

// The fates, the best first.
const (
	Delivered Fate = iota + 1 // to a pod of this node, or to the node itself
	Forwarded                 // to another member, or outside
	Rejected                  // refused with RST or ICMP
	Dropped
)

// String is a word for people.
func (f Fate) String() string {
	switch f {
	case Delivered:
		return "delivered"
	case Forwarded:
		return "forwarded"
	case Rejected:
		return "rejected"
	case Dropped:
		return "dropped"
	}
	return "unknown"
}

// Part is the part of the tables that decided.
type Part string

// The parts.
const (
	PartGate     Part = "gate"                    // the address is not the link's
	PartSpoofed  Part = "anti-spoofing"           // a pod's address from outside the fabric, the reverse, or no member to the tunnel
	PartOpening  Part = "opening"                 // no flow begins like this
	PartRefuse   Part = "no endpoints"            // the Service has none, or the address has no such port
	PartNoLocal  Part = "traffic policy Local"    // and no endpoint on this node
	PartSources  Part = "source ranges"           // loadBalancerSourceRanges do not admit the client
	PartMiss     Part = "service in change"       // the tables hold a part of the Service only
	PartEgress   Part = "egress policy"           // at the source
	PartIngress  Part = "ingress policy"          // at the destination
	PartRoute    Part = "route"                   // nobody has the address; or nothing stopped the packet
	PartHost     Part = "host"                    // none of ours: the host's own routes and firewall decide
	PartSelfPass Part = "a pod reaches itself"    // which no policy can forbid
	PartOwnNode  Part = "a node reaches its pods" // which no policy can forbid
)

// Rewrite says which source address the destination sees.
type Rewrite uint8

// The rewrites.
const (
	Kept   Rewrite = iota + 1 // the packet's own
	Tunnel                    // the node's tunnel address; the port is then one that masquerade lends, but for a pod to itself
	Uplink                    // the node's address on the link that the packet leaves by, and a port that masquerade lends
)

// String is a word for people.
func (r Rewrite) String() string {
	switch r {
	case Kept:
		return "source kept"
	case Tunnel:
		return "source becomes the tunnel address"
	case Uplink:
		return "source becomes the address of the leaving link"
	}
	return "unknown"
}

// Way is one way that the packet may go.
type Way struct {
	// Backend is where a Service sends it; the zero value where nothing is translated.
	Backend netip.AddrPort
	// Steps in order, each "<chain>: <what happens>".
	Steps []string
	Fate  Fate
	// Decided is the part that stopped the packet or, where it passed, the last one that judged it.
	Decided Part
	// Rewrite is set where the packet arrives.
	Rewrite Rewrite
}

// Trace is the answer: at least one way, several where a Service has several backends, in the order of its slots.
type Trace struct{ Ways []Way }

// Worst is the first way among those with the worst fate.
func (t Trace) Worst() Way {
	worst := t.Ways[0]
	for _, w := range t.Ways[1:] {
		if w.Fate > worst.Fate {
			worst = w
		}
	}
	return worst
}

// Backends are the backends of all ways.
func (t Trace) Backends() []netip.AddrPort {
	var list []netip.AddrPort
	for _, w := range t.Ways {
		if w.Backend.IsValid() {
			list = append(list, w.Backend)
		}
	}
	return list
}

// Do follows a packet. A packet that cannot be (ends of two families, an unknown origin) is errs.Invalid.
func Do(e plan.Elements, h Host, p Packet) (Trace, error) {
	p.Source, p.Destination = p.Source.Unmap(), p.Destination.Unmap()
	switch {
	case !p.Source.IsValid() || p.Source.BitLen() != p.Destination.BitLen():
		return Trace{}, errs.New(errs.Invalid, "trace: source %s and destination %s must be two addresses of one family",
			p.Source, p.Destination)
	case p.Origin < Pod || p.Origin > Underlay:
		return Trace{}, errs.New(errs.Invalid, "trace: the origin must be a pod, a process of the node, the fabric or the underlay")
	case p.Protocol == 0:
		return Trace{}, errs.New(errs.Invalid, "trace: the protocol must be set")
	case p.Protocol == ICMP && p.Port != 0:
		return Trace{}, errs.New(errs.Invalid, "trace: ICMP has no ports")
	}
	w := &walk{elements: e, host: h, packet: p, family: plan.IPv6}
	if p.Source.Is4() {
		w.family = plan.IPv4
	}
	if p.Origin == Pod && p.Link == "" {
		w.packet.Link, _ = w.podLink(p.Source)
		if w.packet.Link == "" {
			return Trace{}, errs.New(errs.Invalid, "trace: no pod of this node has the address %s; name its link, or another origin", p.Source)
		}
	}
	return Trace{w.run()}, nil
}

// walk is a packet on its way. A copy is taken for each backend.
type walk struct {
	elements plan.Elements
	host     Host
	packet   Packet
	family   plan.Family
	// target is where the packet goes after translation, backend the same if it was translated.
	target, backend netip.AddrPort
	steps           []string
	// judged is the last part that let the packet pass.
	judged Part
}

func (w *walk) say(chain, format string, args ...any) {
	w.steps = append(w.steps, chain+": "+fmt.Sprintf(format, args...))
}

// stop ends a way.
func (w *walk) stop(chain string, fate Fate, part Part, format string, args ...any) *Way {
	w.say(chain, format, args...)
	return &Way{Backend: w.backend, Steps: w.steps, Fate: fate, Decided: part}
}

// fork is a copy that goes to a backend.
func (w *walk) fork(to netip.AddrPort) *walk {
	c := *w
	c.steps = append([]string(nil), w.steps...)
	c.target, c.backend = to, to
	return &c
}
