// Package judge says what policy holds of a flow, from the rows that policy pushed.
//
// In: the slice of `policy` (subjects, peers, peerranges, allows; internal/nodestate says what they mean) and the pods
// attached to the node. Out: for one flow, what its source's egress and its destination's ingress say, with the rules or
// policies that decide.
//
// Invariants: the answer is that of the node's nftables table, but it is computed from the rows and not from the table's
// elements, so that one can be held against the other. What is missing closes: a pod without a Subject row is denied. One
// judgement costs a few map lookups, whatever the number of rows, since every tracked flow of the node is judged again
// after each change of policy.
//
// The package is pure. It must not know of packets, hooks, Services or conntrack.
package judge

import (
	"net/netip"
	"slices"
	"sort"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// Flow is a flow as policy sees it: before any translation of the source, after any of the destination.
type Flow struct {
	Source, Destination netip.Addr
	// Protocol is the IP protocol number; rules with ports hold for TCP, UDP and SCTP only.
	Protocol nodestate.Protocol
	// Port is the destination port; without meaning where the protocol has none.
	Port   uint16
	Sender Sender
}

// Sender says who sent a flow's first packet.
type Sender uint8

// The senders.
const (
	// Network is anything that is not a process of this node: a pod, another host.
	Network Sender = iota
	// OwnNode is a process of this node outside of all pods. Nothing judges what it sends to the node's pods, as in
	// Kubernetes.
	OwnNode
)

// Outcome is what one side says of a flow.
type Outcome uint8

// The outcomes. The zero Outcome is none of them.
const (
	// NotSubject: this end is no pod of the node, or the flow is not judged at it.
	NotSubject Outcome = iota + 1
	// Open: no policy isolates the pod in this direction, or the pod speaks to itself.
	Open
	// Allowed: an allowance of the pod's class holds for the flow.
	Allowed
	// Denied: policies isolate the pod, and nothing allows the flow.
	Denied
	// NoPolicy: the policy of the pod is not known, so it is denied.
	NoPolicy
)

// String is a word for people.
func (o Outcome) String() string {
	switch o {
	case NotSubject:
		return "not subject"
	case Open:
		return "open"
	case Allowed:
		return "allowed"
	case Denied:
		return "denied"
	case NoPolicy:
		return "no policy known"
	}
	return "unknown"
}

// Passes says whether the side lets the flow pass.
func (o Outcome) Passes() bool { return o == NotSubject || o == Open || o == Allowed }

// Side is the judgement at one end.
type Side struct {
	Outcome Outcome
	// Origins are the rules that allow the flow, sorted, where Outcome is Allowed.
	Origins []string
	// Policies are those that isolate the pod, sorted, where Outcome is Allowed or Denied.
	Policies []string
}

// Verdict is the judgement of a flow: of egress at its source and of ingress at its destination. Both must pass.
type Verdict struct{ Egress, Ingress Side }

// Passes says whether policy lets the flow pass.
func (v Verdict) Passes() bool { return v.Egress.Outcome.Passes() && v.Ingress.Outcome.Passes() }

// Judge judges flows by the rows of its last Load. It is not safe for concurrent use.
type Judge struct {
	pods   map[netip.Addr]*pod
	peers  map[netip.Addr]nodestate.Class
	ranges []nodestate.PeerRange // sorted, disjoint
	allows map[subject]*rules

	digests map[nodestate.Table]nodestate.Digest
}

type pod struct {
	known           bool
	ingress, egress nodestate.Side
}

type subject struct {
	direction nodestate.Direction
	class     nodestate.Class
}

// rules are the allowances of one subject class.
type rules struct {
	any   []nodestate.Allow
	peers map[nodestate.Class][]nodestate.Allow
}

// New returns a Judge that knows of no pod.
func New() *Judge {
	return &Judge{
		pods: map[netip.Addr]*pod{}, peers: map[netip.Addr]nodestate.Class{}, allows: map[subject]*rules{},
		digests: map[nodestate.Table]nodestate.Digest{},
	}
}

// Load takes the rows and the attached pods. Tables that did not change since the last Load are not read again. A nil
// slice holds no rows. Of two pods with one address the first counts. The Judge keeps no reference to its arguments.
func (j *Judge) Load(policy *nodestate.Slice, attachments []plan.Attachment) {
	if policy == nil {
		policy = nodestate.NewSlice()
	}
	j.loadPods(policy, attachments)
	if j.changed(policy, nodestate.TablePeers) {
		j.peers = map[netip.Addr]nodestate.Class{}
		policy.Each(nodestate.TablePeers, func(r nodestate.Row) {
			if p, ok := r.(nodestate.Peer); ok {
				j.peers[p.Address.Unmap()] = p.Class
			}
		})
	}
	if j.changed(policy, nodestate.TablePeerRanges) {
		j.ranges = nil
		policy.Each(nodestate.TablePeerRanges, func(r nodestate.Row) {
			if p, ok := r.(nodestate.PeerRange); ok {
				p.From, p.To = p.From.Unmap(), p.To.Unmap()
				j.ranges = append(j.ranges, p)
			}
		})
		sort.Slice(j.ranges, func(a, b int) bool { return j.ranges[a].From.Less(j.ranges[b].From) })
	}
	if j.changed(policy, nodestate.TableAllows) {
		j.loadAllows(policy)
	}
}

// changed says whether a table differs from the one last loaded, and notes it.
func (j *Judge) changed(s *nodestate.Slice, t nodestate.Table) bool {
	now := s.Digest(t)
	was, loaded := j.digests[t]
	j.digests[t] = now
	return !loaded || was != now
}

func (j *Judge) loadPods(policy *nodestate.Slice, attachments []plan.Attachment) {
	j.pods = make(map[netip.Addr]*pod, 2*len(attachments))
	for _, a := range attachments {
		p := &pod{}
		row, _ := policy.Get(nodestate.Ref{Table: nodestate.TableSubjects, Key: a.UID})
		if s, ok := row.(nodestate.Subject); ok {
			p.known, p.ingress, p.egress = true, s.Ingress, s.Egress
		}
		for _, addr := range a.Addresses {
			if addr = addr.Unmap(); addr.IsValid() && j.pods[addr] == nil {
				j.pods[addr] = p
			}
		}
	}
}

func (j *Judge) loadAllows(policy *nodestate.Slice) {
	j.allows = map[subject]*rules{}
	policy.Each(nodestate.TableAllows, func(r nodestate.Row) {
		a, ok := r.(nodestate.Allow)
		if !ok {
			return
		}
		k := subject{a.Direction, a.Subject}
		if j.allows[k] == nil {
			j.allows[k] = &rules{peers: map[nodestate.Class][]nodestate.Allow{}}
		}
		switch a.PeerMode {
		case nodestate.PeerAny:
			j.allows[k].any = append(j.allows[k].any, a)
		case nodestate.PeerClass:
			j.allows[k].peers[a.Peer] = append(j.allows[k].peers[a.Peer], a)
		}
	})
}

// Local says whether an address is that of an attached pod.
func (j *Judge) Local(a netip.Addr) bool { return j.pods[a.Unmap()] != nil }

// Passes says whether policy lets a flow pass, without the reasons.
func (j *Judge) Passes(f Flow) bool {
	e, _ := j.egress(f)
	if !e.Passes() {
		return false
	}
	i, _ := j.ingress(f)
	return i.Passes()
}

// Judge judges a flow at both ends.
func (j *Judge) Judge(f Flow) Verdict {
	var v Verdict
	var p *pod
	if v.Egress.Outcome, p = j.egress(f); p != nil {
		v.Egress = j.reasons(v.Egress.Outcome, nodestate.Egress, p.egress, f.Destination, f)
	}
	if v.Ingress.Outcome, p = j.ingress(f); p != nil {
		v.Ingress = j.reasons(v.Ingress.Outcome, nodestate.Ingress, p.ingress, f.Source, f)
	}
	return v
}

// egress judges at the source; the pod is nil where it is not judged.
func (j *Judge) egress(f Flow) (Outcome, *pod) {
	p := j.pods[f.Source.Unmap()]
	if p == nil || f.Sender == OwnNode {
		return NotSubject, nil
	}
	return j.side(p, nodestate.Egress, p.egress, f.Destination, f), p
}

// ingress judges at the destination; the pod is nil where it is not judged.
func (j *Judge) ingress(f Flow) (Outcome, *pod) {
	p := j.pods[f.Destination.Unmap()]
	if p == nil || f.Sender == OwnNode {
		return NotSubject, nil
	}
	return j.side(p, nodestate.Ingress, p.ingress, f.Source, f), p
}

func (j *Judge) side(p *pod, d nodestate.Direction, s nodestate.Side, peer netip.Addr, f Flow) Outcome {
	switch {
	case f.Source.Unmap() == f.Destination.Unmap():
		return Open // a pod cannot block itself
	case !p.known:
		return NoPolicy
	case s.Mode == nodestate.SideOpen:
		return Open
	case s.Mode != nodestate.SideIsolated:
		return NoPolicy
	}
	for a := range j.candidates(d, s, peer) {
		if covers(a, f) {
			return Allowed
		}
	}
	return Denied
}

// reasons completes a judgement.
func (j *Judge) reasons(o Outcome, d nodestate.Direction, s nodestate.Side, peer netip.Addr, f Flow) Side {
	side := Side{Outcome: o}
	if o != Allowed && o != Denied {
		return side
	}
	side.Policies = slices.Clone(s.Policies)
	if o == Allowed {
		for a := range j.candidates(d, s, peer) {
			if covers(a, f) {
				side.Origins = append(side.Origins, a.Origins...)
			}
		}
		slices.Sort(side.Origins)
		side.Origins = slices.Compact(side.Origins)
	}
	return side
}

// candidates are the allowances for any peer and for the peer's class.
func (j *Judge) candidates(d nodestate.Direction, s nodestate.Side, peer netip.Addr) func(func(nodestate.Allow) bool) {
	return func(yield func(nodestate.Allow) bool) {
		r := j.allows[subject{d, s.Class}]
		if r == nil {
			return
		}
		for _, a := range r.any {
			if !yield(a) {
				return
			}
		}
		class, ok := j.class(peer.Unmap())
		if !ok {
			return
		}
		for _, a := range r.peers[class] {
			if !yield(a) {
				return
			}
		}
	}
}

// class is the class of a peer: that of its address or, where it has none, of its range.
func (j *Judge) class(peer netip.Addr) (nodestate.Class, bool) {
	if c, ok := j.peers[peer]; ok {
		return c, true
	}
	i := sort.Search(len(j.ranges), func(i int) bool { return peer.Less(j.ranges[i].From) }) - 1
	if i < 0 || j.ranges[i].To.Less(peer) {
		return nodestate.Class{}, false
	}
	return j.ranges[i].Class, true
}

func covers(a nodestate.Allow, f Flow) bool {
	switch a.PortMode {
	case nodestate.PortAny:
		return true
	case nodestate.PortProtocol:
		return a.Protocol == f.Protocol
	case nodestate.PortRange:
		return a.Protocol == f.Protocol && a.From <= f.Port && f.Port <= a.To
	}
	return false
}
