package ruleset

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"podwire.dev/internal/nodestate"
)

// Party is one end of a connection. Exactly one of the fields is set.
type Party struct {
	// Pod is a pod of the cluster.
	Pod Ref
	// Address is any address; where a pod has it, the party is that pod.
	Address netip.Addr
	// Node is a node itself.
	Node string
}

// Connection is the first packet of a connection, after any Service translation.
type Connection struct {
	From, To Party
	Protocol nodestate.Protocol
	Port     uint16
}

// Verdict says how one end of a connection is judged.
type Verdict uint8

// The verdicts.
const (
	NotIsolated Verdict = 1 + iota // no policy selects the end, or it is no pod
	Allowed                        // at least one rule allows it
	Denied                         // policies select the pod, and no rule allows it
	OwnNode                        // a node always reaches its own pods
)

// Judgement is the verdict of one end with its reasons.
type Judgement struct {
	Verdict  Verdict
	Policies []Ref    // that isolate the pod
	Rules    []string // that allow the connection, as in Allow.Origins
}

// Holder is the pod that has an address; ok is false where none has it or several claim it.
func (w *World) Holder(a netip.Addr) (pod Ref, ok bool) {
	for p := range w.holders[a] {
		return p.Ref, len(w.holders[a]) == 1
	}
	return Ref{}, false
}

// UnknownParty says that a named pod or node does not exist.
type UnknownParty struct{ What, Name string }

// Error names it.
func (u UnknownParty) Error() string { return u.What + " " + u.Name + " not found" }

// end is a party, looked up.
type end struct {
	pods  []*podState  // usually one; several where they claim one address; none where it is no pod
	addrs []netip.Addr // what IP blocks are held against
	node  string       // set where the end is a node itself, or a pod on its network
}

// Explain judges egress at the source and ingress at the destination, straight from the policies and not from the
// compiled tables, so that the two can be held against each other. Of parties with addresses of both families the first
// family of the destination that the source has too is judged. What a node sends into the fabric bears its tunnel
// address, which is unknown here: no IP block matches a node as the source.
func (w *World) Explain(c Connection) (egress, ingress Judgement, err error) {
	from, err := w.end(c.From)
	if err != nil {
		return Judgement{}, Judgement{}, err
	}
	to, err := w.end(c.To)
	if err != nil {
		return Judgement{}, Judgement{}, err
	}
	from.addrs, to.addrs = sameFamily(from.addrs, to.addrs)
	if from.node != "" {
		from.addrs = nil
	}
	egress = w.judge(from, nodestate.Egress, to, c)
	ingress = w.judge(to, nodestate.Ingress, from, c)
	if len(to.pods) > 0 && from.node != "" && from.node == to.pods[0].Node {
		ingress = Judgement{Verdict: OwnNode}
	}
	return egress, ingress, nil
}

func (w *World) end(p Party) (end, error) {
	switch {
	case p.Address.IsValid():
		e := end{addrs: []netip.Addr{p.Address}, pods: slices.Collect(maps.Keys(w.holders[p.Address]))}
		slices.SortFunc(e.pods, func(a, b *podState) int { return strings.Compare(a.String(), b.String()) })
		for name, addrs := range w.nodes {
			if slices.Contains(addrs, p.Address) {
				e.node = name
			}
		}
		return e, nil
	case p.Node != "":
		addrs, ok := w.nodes[p.Node]
		if !ok {
			return end{}, UnknownParty{"node", p.Node}
		}
		return end{addrs: addrs, node: p.Node}, nil
	}
	pod := w.pods[p.Pod]
	switch {
	case pod == nil:
		return end{}, UnknownParty{"pod", p.Pod.String()}
	case pod.HostNetwork:
		return end{addrs: pod.Addresses, node: pod.Node}, nil
	}
	return end{addrs: pod.Addresses, pods: []*podState{pod}}, nil
}

// sameFamily leaves the addresses of the first family of to that from has too; all of them where there is none.
func sameFamily(from, to []netip.Addr) (fromOnly, toOnly []netip.Addr) {
	for _, t := range to {
		other := func(a netip.Addr) bool { return a.BitLen() != t.BitLen() }
		if f := slices.DeleteFunc(slices.Clone(from), other); len(f) > 0 {
			return f, slices.DeleteFunc(slices.Clone(to), other)
		}
	}
	return from, to
}

// judge holds one direction of the subject's policies against its peer.
func (w *World) judge(subject end, d nodestate.Direction, peer end, c Connection) Judgement {
	if len(subject.pods) == 0 {
		return Judgement{Verdict: NotIsolated}
	}
	policies := subject.pods[0].isolating(d)
	if len(policies) == 0 {
		return Judgement{Verdict: NotIsolated}
	}
	destination := subject.pods[0]
	if d == nodestate.Egress {
		destination = nil
		if len(peer.pods) > 0 {
			destination = peer.pods[0]
		}
	}
	j := Judgement{Verdict: Denied}
	for _, pol := range policies {
		j.Policies = append(j.Policies, pol.Ref)
		for _, r := range pol.Rules {
			if r.Direction == d && w.peerMatches(r, peer) && portMatches(r, destination, c) {
				j.Verdict, j.Rules = Allowed, append(j.Rules, r.origin(pol.Ref))
			}
		}
	}
	return j
}

func (w *World) peerMatches(r Rule, peer end) bool {
	if r.AnyPeer {
		return true
	}
	for _, t := range r.Peers {
		if t.Block.IsValid() {
			if slices.ContainsFunc(peer.addrs, t.contains) {
				return true
			}
			continue
		}
		all := len(peer.pods) > 0
		for _, p := range peer.pods {
			_, ok := w.token(&term{peer: t}, p)
			all = all && ok
		}
		if all {
			return true
		}
	}
	return false
}

func portMatches(r Rule, destination *podState, c Connection) bool {
	if r.AnyPort {
		return true
	}
	for _, p := range r.Ports {
		if p.Protocol != c.Protocol {
			continue
		}
		switch {
		case p.Name != "":
			if destination != nil && slices.Contains(numbers(destination.resolve(portName{p.Name, p.Protocol})), c.Port) {
				return true
			}
		case p.From == 0 || p.From <= c.Port && c.Port <= p.To:
			return true
		}
	}
	return false
}
