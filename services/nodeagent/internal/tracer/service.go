package tracer

import (
	"fmt"
	"strconv"
	"strings"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// translate looks for a Service at the packet's destination: at first, for a client outside of the fabric, as one. It
// returns the ways that go on, or the way that ended.
func (w *walk) translate(chain string) (goOn []*walk, ended *Way) {
	service, found := uint32(0), false
	if w.packet.Origin == Underlay {
		service, found = w.frontend("services-outside", plan.SetOutside, plan.SetNodePortsOutside)
	}
	if !found {
		service, found = w.frontend("services", plan.SetFrontends, plan.SetNodePorts)
	}
	if !found {
		w.say(chain, "%s is no Service's", w.target)
		return []*walk{w}, nil
	}
	if end := w.guard(service); end != nil {
		return nil, end
	}
	return w.serve(service)
}

// fields are the destination's protocol and port as they stand in keys.
func (w *walk) fields() (plan.Field, plan.Field) {
	return plan.Proto(w.packet.Protocol), plan.Port(w.packet.Port)
}

// transport says whether the packet has ports, and so may be a Service's.
func transport(p nodestate.Protocol) bool {
	return p == nodestate.TCP || p == nodestate.UDP || p == nodestate.SCTP
}

// frontend is the service id of the destination: by address, or by node port.
func (w *walk) frontend(chain string, frontends, nodePorts plan.SetName) (uint32, bool) {
	if !transport(w.packet.Protocol) {
		return 0, false
	}
	proto, port := w.fields()
	to := plan.Addr(w.packet.Destination)
	if id, ok := w.mark(frontends.In(w.family), to, proto, port); ok {
		w.say(chain, "%s/%s is service %#x", w.target, w.packet.Protocol, id)
		return id, true
	}
	if !w.has(plan.SetNode.In(w.family), to) {
		return 0, false
	}
	id, ok := w.mark(nodePorts.In(w.family), proto, port)
	if ok {
		w.say(chain, "node port %d/%s is service %#x", w.packet.Port, w.packet.Protocol, id)
	}
	return id, ok
}

// guard holds the client against the source ranges of a load balancer address.
func (w *walk) guard(service uint32) *Way {
	proto, port := w.fields()
	if !w.has(plan.SetGuards.In(w.family), plan.Addr(w.packet.Destination), proto, port) {
		return nil
	}
	class := uint32(0)
	if v, ok := w.elements.LookupRange(plan.SetSources.In(w.family), plan.Addr(w.packet.Source)); ok {
		class = plan.MarkOf(v)
	}
	if !w.has(plan.SetAdmitted, plan.Mark(service), plan.Mark(class)) {
		return w.stop("guard", Dropped, PartSources, "%s is in none of the source ranges", w.packet.Source)
	}
	w.say("guard", "%s is in the source ranges", w.packet.Source)
	return nil
}

// serve runs the program of a service.
func (w *walk) serve(service uint32) ([]*walk, *Way) {
	miss := func(what string) ([]*walk, *Way) {
		return nil, w.stop("serve", Dropped, PartMiss, "%s of service %#x is not there", what, service)
	}
	program, ok := w.mark(plan.SetServices, plan.Mark(service))
	if !ok {
		return miss("the program")
	}
	verdict, ok := w.elements.Lookup(plan.SetPrograms, plan.Mark(program))
	if !ok {
		return miss("the chain")
	}
	_, chain, _ := strings.Cut(string(verdict), " ")
	switch chain {
	case "refuse":
		return nil, w.refuse("serve")
	case "no-local":
		return nil, w.stop("serve", Dropped, PartNoLocal, "no endpoint on this node")
	}
	if seconds, sticky := strings.CutPrefix(chain, "affinity-"); sticky {
		w.say("serve", "a client keeps its endpoint for %s s; a new one gets any", seconds)
		count, ok := w.mark(plan.SetCounts, plan.Mark(service))
		if !ok {
			return miss("the number of endpoints")
		}
		verdict, ok := w.elements.Lookup(plan.SetChoices, plan.Mark(count))
		if !ok {
			return miss("the chain")
		}
		_, chain, _ = strings.Cut(string(verdict), " ")
	}
	number, counted := strings.CutPrefix(chain, "count-")
	n, err := strconv.ParseUint(number, 10, 32)
	if !counted || err != nil {
		return miss("a chain that is known, other than " + strconv.Quote(chain) + ",")
	}
	return w.choose(service, uint32(n))
}

// choose goes every way that the random slot may take. One that leads nowhere ends all: the tables are in change.
func (w *walk) choose(service, n uint32) ([]*walk, *Way) {
	var list []*walk
	for slot := range n {
		id, ok := w.mark(plan.SetSlots, plan.Mark(service), plan.Mark(slot))
		if !ok {
			return nil, w.stop(fmt.Sprintf("count-%d", n), Dropped, PartMiss, "slot %d of service %#x is not there", slot, service)
		}
		value, ok := w.elements.Lookup(plan.SetEndpoints.In(w.family), plan.Mark(id))
		at, whole := plan.EndpointOf(value)
		if !ok || !whole {
			return nil, w.stop("translate", Dropped, PartMiss, "endpoint %#x is not there", id)
		}
		c := w.fork(at)
		c.say("translate", "slot %d of %d: to endpoint %#x, %s", slot, n, id, at)
		list = append(list, c)
	}
	return list, nil
}
