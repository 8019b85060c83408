package ct

import (
	"net/netip"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/judge"
)

// echoPasses is how many passes end the late answers to a flow that was cut.
const echoPasses = 2

// direction is a flow as one of its ends would begin it.
type direction struct {
	protocol nodestate.Protocol
	tuple    Tuple
}

// policy decides which flows of the node's pods end.
type policy struct {
	judge *judge.Judge
	// own are the addresses of the node itself, blocks those of its pods.
	own    map[netip.Addr]bool
	blocks []netip.Prefix
	// echoes are the directions in which an answer to a flow that was cut would go, with the number of passes since one
	// was last seen. A UDP server that answers a datagram which it got before the cut opens the flow again, from its side.
	echoes map[direction]int
	// cut are those of the list that is under way, of flows and of their echoes.
	cut []direction
}

// load takes the tables for one pass.
func (p *policy) load(t dataplane.Tables, own map[netip.Addr]bool) {
	p.judge.Load(t.Policy, t.Attachments)
	p.own, p.blocks, p.cut = own, nil, nil
	if t.Fabric == nil {
		return
	}
	row, _ := t.Fabric.Get(nodestate.Ref{Table: nodestate.TableMembers, Key: t.Node.Name})
	if m, ok := row.(nodestate.Member); ok {
		p.blocks = m.Blocks
		for _, a := range m.Tunnel {
			own[a.Unmap()] = true // also where the link is not up yet
		}
	}
}

// ends says whether a flow is to end for the sake of policy.
func (p *policy) ends(e *Entry) bool {
	from, to := e.Original.Source.Addr(), e.Reply.Source.Addr()
	if p.gone(from) || p.gone(to) {
		return true
	}
	if !p.judge.Local(from) && !p.judge.Local(to) {
		return false
	}
	way := direction{e.Protocol, Tuple{e.Original.Source, e.Reply.Source}}
	if _, echo := p.echoes[way]; echo {
		p.cut = append(p.cut, way)
		return true
	}
	f := judge.Flow{Source: from, Destination: to, Protocol: e.Protocol, Port: e.Reply.Source.Port()}
	if p.own[from] {
		f.Sender = judge.OwnNode
	}
	if p.judge.Passes(f) {
		return false
	}
	if e.Protocol != nodestate.TCP {
		way.tuple.Source, way.tuple.Destination = way.tuple.Destination, way.tuple.Source
		p.cut = append(p.cut, way)
	}
	return true
}

// gone says whether an address was that of a pod of this node and is nobody's now.
func (p *policy) gone(a netip.Addr) bool {
	if p.judge.Local(a) || p.own[a] {
		return false
	}
	for _, b := range p.blocks {
		if b.Contains(a) {
			return true
		}
	}
	return false
}

// listed makes the cuts of a list echoes, and says whether there were any.
func (p *policy) listed() bool {
	if p.echoes == nil {
		p.echoes = map[direction]int{}
	}
	for _, d := range p.cut {
		p.echoes[d] = 0
	}
	found := len(p.cut) > 0
	p.cut = p.cut[:0]
	return found
}

// passed forgets echoes of which nothing was heard for long enough.
func (p *policy) passed() {
	for d := range p.echoes {
		if p.echoes[d]++; p.echoes[d] > echoPasses {
			delete(p.echoes, d)
		}
	}
	p.cut, p.own = nil, nil
}
