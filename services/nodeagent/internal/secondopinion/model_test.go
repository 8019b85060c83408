package secondopinion

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/judge"
	"podwire.dev/services/nodeagent/internal/tracer"
)

// expectation is one end that an attempt may come to. Which one is chance where a Service has several backends.
type expectation struct {
	outcomes []testnet.Outcome
	// server and client are who answers, and whom it sees, where the outcome is reached.
	server string
	client netip.Addr
	why    []string
}

func (e expectation) met(r testnet.Result) bool {
	if !slices.Contains(e.outcomes, r.Outcome) {
		return false
	}
	if r.Reply == "" { // a ping, whose answer names nobody
		return true
	}
	return r.Outcome != testnet.Reached || r.Server == e.server && r.Client.Addr().Unmap() == e.client
}

func (e expectation) String() string {
	text := fmt.Sprintf("%v", e.outcomes)
	if e.server != "" {
		text += fmt.Sprintf(" %s, which sees %s", e.server, e.client)
	}
	return text + ":\n    " + strings.Join(e.why, "\n    ")
}

// model predicts what the world does with packets, by the tracers of both nodes.
type model struct {
	w      *world
	judges map[*node]*judge.Judge
	// disagreements are the packets of which the judge and the tracer say different things.
	disagreements []string
}

func newModel(w *world) *model {
	m := &model{w: w, judges: map[*node]*judge.Judge{}}
	for _, n := range w.nodes {
		j := judge.New()
		j.Load(n.tables.Policy, n.tables.Attachments)
		m.judges[n] = j
	}
	return m
}

// predict says how an attempt may end. Source is the address that the sender uses.
func (m *model) predict(p probe, source netip.Addr) []expectation {
	packet := tracer.Packet{Source: source, Destination: p.to, Protocol: p.protocol, Port: p.port, Origin: tracer.Underlay}
	n := p.from.node
	switch {
	case p.from.isPod():
		packet.Origin, packet.Link = tracer.Pod, p.from.link
	case n != nil:
		packet.Origin = tracer.Process
	case p.from == m.w.member:
		if n = m.holder(p.to); n != nil {
			packet.Origin = tracer.Fabric
		} else {
			n = m.neighbour(p.to)
		}
	default:
		n = m.gateway(p.to)
	}
	if packet.Origin != tracer.Process && slices.Contains(p.from.addrs[:], p.to) {
		return []expectation{m.serves(p.from, packet, []string{"it never leaves " + p.from.name})}
	}
	if n == nil && p.from == m.w.member && slices.Contains(m.w.out.addrs[:], p.to) {
		return []expectation{m.serves(m.w.out, packet, []string{"it goes by the underlay"})}
	}
	if n == nil {
		return []expectation{{outcomes: lost, why: []string{"nobody has " + p.to.String()}}}
	}
	return m.at(n, packet, nil)
}

// holder is the node whose block has an address, neighbour the one that has it on the underlay.
func (m *model) holder(a netip.Addr) *node {
	for _, n := range m.w.nodes {
		if n.has(a) {
			return n
		}
	}
	return nil
}

func (m *model) neighbour(a netip.Addr) *node {
	for _, n := range m.w.nodes {
		if slices.Contains(n.addrs[:], a) {
			return n
		}
	}
	return nil
}

// lost are the outcomes of what nobody answers: somebody on the way may say so.
var lost = []testnet.Outcome{testnet.TimedOut, testnet.Unreachable}

// gateway is the node to which the outside sends packets for an address.
func (m *model) gateway(to netip.Addr) *node {
	if n := m.neighbour(to); n != nil {
		return n
	}
	if n := m.holder(to); n != nil {
		return n
	}
	for f := range families {
		if serviceRanges[f].Contains(to) || outsideRanges[f].Contains(to) {
			return m.w.nodes[0]
		}
	}
	return nil
}

// has says whether an address is in the node's blocks.
func (n *node) has(a netip.Addr) bool { return n.blocks[0].Contains(a) || n.blocks[1].Contains(a) }

// at follows a packet from where it enters a node.
func (m *model) at(n *node, packet tracer.Packet, before []string) []expectation {
	if len(before) > 100 {
		return []expectation{{why: append(before, "and so on")}} // a loop: no outcome is right
	}
	trace, err := tracer.Do(n.tables.Elements, tracer.HostOf(n.tables.Node, n.tables.Fabric), packet)
	if err != nil {
		return []expectation{{why: append(before, err.Error())}}
	}
	var list []expectation
	for _, way := range trace.Ways {
		why := append([]string(nil), before...)
		for _, s := range way.Steps {
			why = append(why, n.name+" "+s)
		}
		m.compare(n, packet, way)
		next := packet
		if way.Backend.IsValid() {
			next.Destination, next.Port = way.Backend.Addr(), way.Backend.Port()
		}
		f := 1
		if packet.Source.Is4() {
			f = 0
		}
		switch way.Rewrite {
		case tracer.Tunnel:
			next.Source = n.tunnel[f]
		case tracer.Uplink:
			next.Source = n.addrs[f]
		}
		list = append(list, m.after(n, packet, next, way, why)...)
	}
	return list
}

// after is what becomes of a packet that a node has dealt with.
func (m *model) after(n *node, was, next tracer.Packet, way tracer.Way, why []string) []expectation {
	switch way.Fate {
	case tracer.Dropped:
		e := expectation{outcomes: []testnet.Outcome{testnet.TimedOut}, why: why}
		if was.Origin == tracer.Process {
			e.outcomes = lost // its socket is told
		}
		return []expectation{e}
	case tracer.Rejected:
		e := expectation{outcomes: lost, why: why}
		if way.Decided == tracer.PartRefuse {
			e.outcomes = []testnet.Outcome{testnet.Refused}
			if was.Origin == tracer.Process && was.Protocol != nodestate.TCP {
				e.outcomes = append(e.outcomes, testnet.Unreachable)
			}
		}
		return []expectation{e}
	case tracer.Delivered:
		for _, b := range m.w.pods {
			if b.node == n && slices.Contains(b.addrs[:], next.Destination) {
				return []expectation{m.serves(b, next, why)}
			}
		}
		return []expectation{m.serves(n.box, next, why)}
	}
	for _, other := range m.w.nodes {
		if other == n {
			continue
		}
		if other.has(next.Destination) {
			next.Origin, next.Link = tracer.Fabric, ""
			return m.at(other, next, why)
		}
		if slices.Contains(other.addrs[:], next.Destination) {
			next.Origin, next.Link = tracer.Underlay, ""
			return m.at(other, next, why)
		}
	}
	for _, b := range []*box{m.w.out, m.w.member} {
		if slices.Contains(b.addrs[:], next.Destination) {
			return []expectation{m.serves(b, next, why)}
		}
	}
	return []expectation{{outcomes: lost, why: why}}
}

// serves is what a box answers.
func (m *model) serves(b *box, p tracer.Packet, why []string) expectation {
	e := expectation{outcomes: []testnet.Outcome{testnet.Refused}, why: why}
	tunnel := b == m.w.member || b.node != nil && b == b.node.box
	if tunnel && p.Protocol == nodestate.UDP && p.Port == tunnelPort && p.Destination.Is4() {
		e.outcomes = lost // the tunnel's ends are IPv4 ones, and what is no tunnel packet is nothing to them
	}
	if p.Protocol == tracer.ICMP || slices.Contains(listening, p.Port) {
		e.outcomes, e.server, e.client = []testnet.Outcome{testnet.Reached}, b.name, p.Source
	}
	return e
}

// compare asks the judge what the tracer has said.
func (m *model) compare(n *node, p tracer.Packet, way tracer.Way) {
	f := judge.Flow{Source: p.Source, Destination: p.Destination, Protocol: p.Protocol, Port: p.Port}
	if way.Backend.IsValid() {
		f.Destination, f.Port = way.Backend.Addr(), way.Backend.Port()
	}
	if p.Origin == tracer.Process {
		f.Sender = judge.OwnNode
	}
	v := m.judges[n].Judge(f)
	var agree bool
	switch passed := way.Fate == tracer.Delivered || way.Fate == tracer.Forwarded; {
	case way.Decided == tracer.PartEgress && !passed:
		agree = !v.Egress.Outcome.Passes()
	case way.Decided == tracer.PartIngress && !passed:
		agree = v.Egress.Outcome.Passes() && !v.Ingress.Outcome.Passes()
	case passed:
		agree = v.Passes()
	default:
		agree = true // something else stopped it
	}
	if !agree {
		m.disagreements = append(m.disagreements, fmt.Sprintf("%s: %+v: the judge says %+v, the tracer\n    %s", n.name, f, v,
			strings.Join(way.Steps, "\n    ")))
	}
}
