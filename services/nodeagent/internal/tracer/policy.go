package tracer

import (
	"net/netip"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// policy judges one side: first allowances for any peer, then those for the peer's class.
func (w *walk) policy(chain string, subjects plan.SetName, subject, peer netip.Addr, part Part) *Way {
	if w.isSelf(subject, peer) {
		w.say(chain, "a pod cannot block itself")
		w.judged = PartSelfPass
		return nil
	}
	class, known := w.mark(subjects.In(w.family), plan.Addr(subject))
	if !known {
		return w.stop(chain, Dropped, part, "the policy of %s is not there", subject)
	}
	if class == plan.Open {
		w.say(chain, "no policy isolates %s", subject)
		w.judged = part
		return nil
	}
	classes := []uint32{plan.AnyPeer}
	if c, ok := w.peerClass(peer); ok {
		classes = append(classes, c)
	}
	for _, c := range classes {
		if how, ok := w.allowed(class, c); ok {
			w.say(chain, "subject %#x and peer %#x: %s allowed", class, c, how)
			w.judged = part
			return nil
		}
	}
	return w.stop(chain, Dropped, part, "subject %#x and peers %#x: nothing allows %s port %d", class, classes, w.packet.Protocol,
		w.target.Port())
}

// peerClass is the class of an address or, where it has none, of the range it is in.
func (w *walk) peerClass(a netip.Addr) (uint32, bool) {
	if c, ok := w.mark(plan.SetPeers.In(w.family), plan.Addr(a)); ok {
		return c, true
	}
	v, ok := w.elements.LookupRange(plan.SetRanges.In(w.family), plan.Addr(a))
	return plan.MarkOf(v), ok
}

// allowed says whether a pair of classes is allowed, and by which kind of allowance. Ports count after translation.
func (w *walk) allowed(subject, peer uint32) (string, bool) {
	s, p := plan.Mark(subject), plan.Mark(peer)
	if w.has(plan.SetAllow, s, p) {
		return "every port is", true
	}
	if !transport(w.packet.Protocol) {
		return "", false
	}
	proto, port := plan.Proto(w.packet.Protocol), plan.Port(w.target.Port())
	switch {
	case w.has(plan.SetAllowProtocol, s, p, proto):
		return "every port of the protocol is", true
	case w.has(plan.SetAllowPort, s, p, proto, port):
		return "the port is", true
	}
	pair, ok := w.mark(plan.SetPairs, s, p)
	if !ok {
		return "", false
	}
	sets := map[nodestate.Protocol]plan.SetName{
		nodestate.TCP: plan.SetPortsTCP, nodestate.UDP: plan.SetPortsUDP, nodestate.SCTP: plan.SetPortsSCTP,
	}
	class, ok := w.elements.LookupRange(sets[w.packet.Protocol], port)
	return "the range of ports is", ok && w.has(plan.SetAllowRange, plan.Mark(pair), plan.Mark(plan.MarkOf(class)))
}
