package ct

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/judge"
)

// fate is what becomes of a flow.
type fate uint8

const (
	keep    fate = iota
	end          // the entry is deleted
	cut          // the entry is marked, and stays until the talk has ended
	release      // the entry's mark is taken away
)

// policy decides about the flows of the node's pods.
type policy struct {
	judge *judge.Judge
	// own are the addresses of the node itself, blocks those of its pods.
	own    map[netip.Addr]bool
	blocks []netip.Prefix
}

// load takes the tables for one pass.
func (p *policy) load(t dataplane.Tables, own map[netip.Addr]bool) {
	p.judge.Load(t.Policy, t.Attachments)
	p.own, p.blocks = own, nil
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

// staysAway says whether a flow of a protocol cannot begin again with anything that its ends still send once its entry is
// deleted: the table lets a TCP flow begin with a bare SYN only, and conntrack takes no answer to a ping for the beginning of one.
// An SCTP association begins again with the next heartbeat of either end, and anything else with any packet.
func staysAway(p nodestate.Protocol) bool {
	return p == nodestate.TCP || p == unix.IPPROTO_ICMP || p == unix.IPPROTO_ICMPV6
}

// fate says what becomes of a flow for the sake of policy.
func (p *policy) fate(e *Entry) fate {
	from, to := e.Original.Source.Addr(), e.Reply.Source.Addr()
	if p.gone(from) || p.gone(to) {
		return end
	}
	if !p.judge.Local(from) && !p.judge.Local(to) {
		return keep
	}
	f := judge.Flow{Source: from, Destination: to, Protocol: e.Protocol, Port: e.Reply.Source.Port()}
	if p.own[from] {
		f.Sender = judge.OwnNode
	}
	switch passes := p.judge.Passes(f); {
	case passes && e.Cut():
		return release
	case passes:
		return keep
	case staysAway(e.Protocol):
		return end
	case e.Cut():
		return keep
	}
	return cut
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
