package plan

import (
	"net/netip"

	"podwire.dev/internal/nodestate"
)

// planStatic gives the programs that need no parameter.
func planStatic(u *unit) {
	u.put(SetPrograms, Concat(Mark(ProgramRefuse)), "goto refuse")
	u.put(SetPrograms, Concat(Mark(ProgramNoLocal)), "goto no-local")
}

// planNode gives the addresses that serve NodePorts, and the tunnel's port.
func (p *Planner) planNode(u *unit) {
	if p.node.TunnelPort != 0 {
		u.put(SetTunnelPort, Concat(Port(p.node.TunnelPort)), "")
	}
	for _, a := range p.node.Addresses {
		a = a.Unmap().WithZone("")
		if a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified() {
			u.put(SetNode.In(familyOf(a)), Concat(Addr(a)), "")
		}
	}
}

// planMembers gives the addresses from which members send tunnel packets.
func (p *Planner) planMembers(u *unit) {
	for _, k := range sortedKeys(p.rows[nodestate.TableMembers]) {
		m, _ := p.rows[nodestate.TableMembers][k].(nodestate.Member)
		for _, a := range m.Underlay {
			if a = a.Unmap().WithZone(""); a.IsValid() {
				u.put(SetUnderlays.In(familyOf(a)), Concat(Addr(a)), "")
			}
		}
	}
}

// planFabric gives the cluster's ranges, joined so that they do not overlap.
func (p *Planner) planFabric(u *unit) {
	lists := map[SetName][]span{}
	for _, k := range sortedKeys(p.rows[nodestate.TableRanges]) {
		r, ok := p.rows[nodestate.TableRanges][k].(nodestate.Range)
		if !ok || !r.Prefix.IsValid() {
			continue
		}
		f := familyOf(r.Prefix.Addr())
		switch r.Kind {
		case nodestate.RangePod:
			lists[SetPodRanges.In(f)] = append(lists[SetPodRanges.In(f)], prefixSpan(r.Prefix))
		case nodestate.RangeService:
			lists[SetServiceRanges.In(f)] = append(lists[SetServiceRanges.In(f)], prefixSpan(r.Prefix))
		}
	}
	for set, list := range lists {
		for _, s := range union(list) {
			u.put(set, s.key(), "")
		}
	}
}

// planPod gives a local pod's gate, hairpin and subject classes.
func (p *Planner) planPod(u *unit, uid string) {
	a, ok := p.attachments[uid]
	if !ok {
		return
	}
	subject, judged := p.rows[nodestate.TableSubjects][uid].(nodestate.Subject)
	for _, addr := range a.Addresses {
		addr = addr.Unmap()
		if !addr.IsValid() {
			continue
		}
		f, at := familyOf(addr), Addr(addr)
		u.put(SetPods.In(f), Concat(Link(a.Link), at), "")
		u.put(SetSelf.In(f), Concat(at, at), "")
		if tunnel, ok := p.tunnel(f); ok {
			u.put(SetHairpin.In(f), Concat(at), Data(Addr(tunnel)))
		}
		if judged {
			u.put(SetIngress.In(f), Concat(at), Data(Mark(u.subject(nodestate.Ingress, subject.Ingress))))
			u.put(SetEgress.In(f), Concat(at), Data(Mark(u.subject(nodestate.Egress, subject.Egress))))
		}
	}
}

// tunnel is the node's tunnel address of a family.
func (p *Planner) tunnel(f Family) (netip.Addr, bool) {
	m, _ := p.rows[nodestate.TableMembers][p.node.Name].(nodestate.Member)
	for _, a := range m.Tunnel {
		if a.IsValid() && familyOf(a) == f {
			return a.Unmap(), true
		}
	}
	return netip.Addr{}, false
}
