package tracer

import (
	"net/netip"
	"strings"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// The kinds of places that the host routes to. A pod's link is named by itself.
const (
	toHost   = "local"
	toFabric = "pwvx"
	toUplink = "uplink"
	toNobody = ""
)

const podPrefix = "pwp"

// run goes from the first hook to the last.
func (w *walk) run() []Way {
	w.target = netip.AddrPortFrom(w.packet.Destination, w.packet.Port)
	if w.packet.Origin == Process {
		return w.sent()
	}
	return w.received()
}

// ours says whether a place is a link of ours.
func ours(place string) bool { return place == toFabric || isPod(place) }

func isPod(place string) bool { return strings.HasPrefix(place, podPrefix) }

// in is the link that the packet came by.
func (w *walk) in() string {
	switch w.packet.Origin {
	case Pod:
		return w.packet.Link
	case Fabric:
		return toFabric
	case Underlay:
		return toUplink
	}
	return toHost
}

// received is the way of a packet that came by a link.
func (w *walk) received() []Way {
	if end := w.prerouting(); end != nil {
		return []Way{*end}
	}
	return w.translated("nat-prerouting", func(w *walk) *Way {
		place := w.route(w.target.Addr())
		switch place {
		case toHost:
			return w.input()
		case toNobody:
			return w.stop("route", Rejected, PartRoute, "nobody has %s: unreachable", w.target.Addr())
		}
		return w.forward(place)
	})
}

// sent is the way of a packet of a process. The socket chose a route, and the output chain sees its link, before
// nat-output translated.
func (w *walk) sent() []Way {
	first := w.route(w.target.Addr())
	if first == toNobody {
		return []Way{*w.stop("route", Rejected, PartRoute, "nobody has %s: unreachable", w.target.Addr())}
	}
	return w.translated("nat-output", func(w *walk) *Way {
		to := w.target.Addr()
		if isPod(first) && !w.gate(first, to) {
			return w.stop("output", Dropped, PartGate, "%s is not an address of %s", to, first)
		}
		if ours(first) && w.inRange(plan.SetServiceRanges, to) {
			return w.refuse("output")
		}
		place := w.route(to)
		switch place {
		case toNobody:
			return w.stop("route", Rejected, PartRoute, "nobody has %s: unreachable", to)
		case toHost:
			return w.arrive("input", PartHost)
		}
		w.judged = PartHost
		if isPod(place) {
			w.judged = PartOwnNode
		}
		return w.leave(place)
	})
}

// translated lets every backend's way go on.
func (w *walk) translated(chain string, on func(*walk) *Way) []Way {
	backends, ended := w.translate(chain)
	if ended != nil {
		return []Way{*ended}
	}
	var ways []Way
	for _, b := range backends {
		ways = append(ways, *on(b))
	}
	return ways
}

// prerouting is the gate and the anti-spoofing rules.
func (w *walk) prerouting() *Way {
	from, link := w.packet.Source, w.in()
	inside := w.inRange(plan.SetPodRanges, from)
	switch {
	case isPod(link):
		if !w.gate(link, from) {
			return w.stop("prerouting", Dropped, PartGate, "%s is not an address of %s", from, link)
		}
		w.say("prerouting", "%s is the address of %s", from, link)
	case link == toFabric && !inside:
		return w.stop("prerouting", Dropped, PartSpoofed, "%s is no pod's address, but comes from the fabric", from)
	case link == toUplink && inside:
		return w.stop("prerouting", Dropped, PartSpoofed, "%s is a pod's address, but does not come from the fabric", from)
	}
	return nil
}

// route is where the host sends an address.
func (w *walk) route(to netip.Addr) string {
	for _, a := range w.host.Own {
		if a.Unmap() == to {
			return toHost
		}
	}
	if link, ok := w.podLink(to); ok {
		return link
	}
	for _, m := range w.host.Members {
		if m.Contains(to) {
			return toFabric
		}
	}
	switch {
	case to.IsLoopback():
		return toHost
	case w.inRange(plan.SetPodRanges, to):
		return toNobody
	case w.inRange(plan.SetServiceRanges, to):
		return toFabric
	}
	return toUplink
}

// input is what arrives at the node itself.
func (w *walk) input() *Way {
	link := w.in()
	if w.toTunnel() && ours(link) {
		return w.stop("input", Dropped, PartSpoofed, "%s is the tunnel, and no pod speaks for it", w.target)
	}
	if from := plan.Addr(w.packet.Source); w.toTunnel() && !w.has(plan.SetUnderlays.In(w.family), from) {
		return w.stop("input", Dropped, PartSpoofed, "%s is the tunnel, and %s is no member's", w.target, w.packet.Source)
	}
	if !isPod(link) {
		return w.arrive("input", PartHost)
	}
	if end := w.opening("input"); end != nil {
		return end
	}
	if end := w.policy("judge-egress", plan.SetEgress, w.packet.Source, w.target.Addr(), PartEgress); end != nil {
		return end
	}
	return w.arrive("input", w.judged)
}

// toTunnel says whether a member's tunnel would take the packet for one of the fabric.
func (w *walk) toTunnel() bool {
	return w.packet.Protocol == nodestate.UDP && w.has(plan.SetTunnelPort, plan.Port(w.target.Port()))
}

// arrive ends the way at the node itself.
func (w *walk) arrive(chain string, by Part) *Way {
	end := w.stop(chain, Delivered, by, "delivered to the node itself")
	end.Rewrite = Kept
	return end
}

// forward is what goes through the node.
func (w *walk) forward(place string) *Way {
	link, from, to := w.in(), w.packet.Source, w.target.Addr()
	if !ours(link) && !ours(place) {
		w.say("forward", "neither from nor to the fabric: not ours")
		w.judged = PartHost
		return w.rewrite(place)
	}
	if isPod(place) && !w.gate(place, to) {
		return w.stop("forward", Dropped, PartGate, "%s is not an address of %s", to, place)
	}
	if w.toTunnel() && ours(link) && !ours(place) {
		return w.stop("forward", Dropped, PartSpoofed, "%s is a tunnel's port, and no pod speaks for a tunnel", w.target)
	}
	if end := w.opening("forward"); end != nil {
		return end
	}
	if w.inRange(plan.SetServiceRanges, to) {
		return w.refuse("forward")
	}
	w.judged = PartRoute
	if isPod(link) {
		if end := w.policy("judge-egress", plan.SetEgress, from, to, PartEgress); end != nil {
			return end
		}
	}
	if isPod(place) {
		if end := w.policy("judge-ingress", plan.SetIngress, to, from, PartIngress); end != nil {
			return end
		}
	}
	return w.leave(place)
}

// leave is the last filter: what goes to a pod, from whomever, is of the pod's address and begins as a flow may.
func (w *walk) leave(place string) *Way {
	if isPod(place) {
		if !w.gate(place, w.target.Addr()) {
			return w.stop("postrouting", Dropped, PartGate, "%s is not an address of %s", w.target.Addr(), place)
		}
		if end := w.opening("postrouting"); end != nil {
			return end
		}
	}
	return w.rewrite(place)
}

// rewrite gives the flow its source, and ends the way.
func (w *walk) rewrite(place string) *Way {
	from, to := w.packet.Source, w.target.Addr()
	inside := w.inRange(plan.SetPodRanges, from)
	how := Kept
	switch {
	case w.isSelf(from, to) && w.has(plan.SetHairpin.In(w.family), plan.Addr(from)):
		how = Tunnel
	case place == toFabric && !inside:
		how = Tunnel
	case place == toUplink && inside && !w.inRange(plan.SetPodRanges, to):
		how = Uplink
	case place == toUplink && w.backend.IsValid():
		how = Uplink
	}
	w.say("nat-postrouting", "%s", how)
	fate, where := Forwarded, "to "+place
	if isPod(place) {
		fate = Delivered
	}
	end := w.stop("route", fate, w.judged, "%s", where)
	end.Rewrite = how
	return end
}

// opening admits what may begin a flow.
func (w *walk) opening(chain string) *Way {
	if w.packet.Protocol == nodestate.TCP && w.packet.Segment != Opening {
		return w.stop(chain, Dropped, PartOpening, "a TCP flow begins with a bare SYN")
	}
	return nil
}

// refuse answers as Kubernetes does where a Service has no endpoint.
func (w *walk) refuse(chain string) *Way {
	switch w.packet.Protocol {
	case nodestate.TCP:
		return w.stop(chain, Rejected, PartRefuse, "refused: reset")
	case ICMP:
		return w.stop(chain, Dropped, PartRefuse, "a Service address does not answer ping")
	}
	return w.stop(chain, Rejected, PartRefuse, "refused: port unreachable")
}

// gate says whether a link has an address.
func (w *walk) gate(link string, a netip.Addr) bool {
	return w.has(plan.SetPods.In(w.family), plan.Link(link), plan.Addr(a))
}

// podLink is the link of the pod that has an address.
func (w *walk) podLink(a netip.Addr) (string, bool) {
	at := string(plan.Addr(a))
	link := ""
	for k := range w.elements[plan.SetPods.In(w.family)] {
		name, rest := k[:plan.TypeLink.Width()], k[plan.TypeLink.Width():]
		if string(rest) != at {
			continue
		}
		if s := strings.TrimRight(string(name), "\x00"); link == "" || s < link {
			link = s
		}
	}
	return link, link != ""
}

func (w *walk) isSelf(from, to netip.Addr) bool {
	return w.has(plan.SetSelf.In(w.family), plan.Addr(from), plan.Addr(to))
}

func (w *walk) has(set plan.SetName, fields ...plan.Field) bool {
	_, ok := w.elements.Lookup(set, fields...)
	return ok
}

func (w *walk) inRange(set plan.SetName, a netip.Addr) bool {
	_, ok := w.elements.LookupRange(set.In(w.family), plan.Addr(a))
	return ok
}

// mark is the mark that a map holds for a key.
func (w *walk) mark(set plan.SetName, fields ...plan.Field) (uint32, bool) {
	v, ok := w.elements.Lookup(set, fields...)
	return plan.MarkOf(v), ok
}
