package plan

import (
	"net/netip"
	"strconv"

	"podwire.dev/internal/nodestate"
)

// planService gives one port of one Service: for each family its frontends, and for each scope that a frontend uses
// (all endpoints, or this node's) a service id with its endpoints.
func (p *Planner) planService(u *unit, k nodestate.ServiceKey) {
	s, ok := p.services[k]
	used := map[place]uint32{}
	if ok {
		for _, f := range Families() {
			p.planFrontends(u, s, f, used)
		}
	}
	steps := p.slotSteps(u, k, s.AffinitySeconds > 0, used)
	if u.err != nil {
		return
	}
	for _, where := range places() {
		if id, ok := used[where]; ok {
			p.planScope(u, s, where, id)
		}
	}
	p.planSlots(u, k, steps)
}

// planFrontends gives the frontends of one family, and the ids of the places that they use.
func (p *Planner) planFrontends(u *unit, s nodestate.ServicePort, f Family, used map[place]uint32) {
	scope := func(l nodestate.Locality) uint32 {
		id, ok := used[place{f, l}]
		if !ok {
			id = u.service(s, f, l)
			used[place{f, l}] = id
		}
		return id
	}
	for _, a := range s.ClusterAddresses {
		if familyOf(a) == f {
			u.put(SetFrontends.In(f), frontend(a, s), Data(Mark(scope(s.InternalPolicy))))
		}
	}
	for _, list := range [][]netip.Addr{s.LoadBalancerAddresses, s.ExternalAddresses} {
		for _, a := range list {
			if familyOf(a) != f {
				continue
			}
			// Clients in the cluster get every endpoint: kube-proxy's short cut for externalTrafficPolicy Local.
			u.put(SetFrontends.In(f), frontend(a, s), Data(Mark(scope(nodestate.LocalityCluster))))
			if s.ExternalPolicy == nodestate.LocalityLocal {
				u.put(SetOutside.In(f), frontend(a, s), Data(Mark(scope(nodestate.LocalityLocal))))
			}
		}
	}
	if s.NodePort != 0 && serves(s.NodePortFamilies, f) {
		key := Concat(Proto(s.Protocol), Port(s.NodePort))
		u.put(SetNodePorts.In(f), key, Data(Mark(scope(nodestate.LocalityCluster))))
		if s.ExternalPolicy == nodestate.LocalityLocal {
			u.put(SetNodePortsOutside.In(f), key, Data(Mark(scope(nodestate.LocalityLocal))))
		}
	}
}

func frontend(a netip.Addr, s nodestate.ServicePort) Key {
	return Concat(Addr(a), Proto(s.Protocol), Port(s.Port))
}

func serves(families []uint8, f Family) bool {
	for _, n := range families {
		if n == uint8(f) {
			return true
		}
	}
	return false
}

// service is the id of one scope of a service.
func (u *unit) service(s nodestate.ServicePort, f Family, l nodestate.Locality) uint32 {
	scope := "all"
	if l == nodestate.LocalityLocal {
		scope = "local"
	}
	return u.id("s", s.ServiceKey.String(), strconv.Itoa(int(f)), scope)
}

// planScope gives the program of a service id.
func (p *Planner) planScope(u *unit, s nodestate.ServicePort, where place, id uint32) {
	service := Mark(id)
	count, _ := p.pool(s.ServiceKey).tallies[where].picks()
	if count == 0 {
		program := ProgramRefuse
		if n, _ := p.pool(s.ServiceKey).tallies[place{where.family, nodestate.LocalityCluster}].picks(); n > 0 {
			program = ProgramNoLocal
		}
		u.put(SetServices, Concat(service), Data(Mark(program)))
		return
	}
	n := uint32(count)
	p.useProgram(n, Value("jump count-"+strconv.Itoa(count)))
	if s.AffinitySeconds == 0 {
		u.put(SetServices, Concat(service), Data(Mark(n)))
		return
	}
	program := ProgramAffinity + s.AffinitySeconds
	p.useProgram(program, Value("goto affinity-"+strconv.Itoa(int(s.AffinitySeconds))))
	u.put(SetCounts, Concat(service), Data(Mark(n)))
	u.put(SetServices, Concat(service), Data(Mark(program)))
}

// planSources gives the source ranges of all load balancer addresses that have any: a client's address is mapped to
// its atom, one of the pieces into which all ranges cut the address space, and (service id, atom) pairs are admitted.
func (p *Planner) planSources(u *unit) {
	var guarded []nodestate.ServicePort
	for _, k := range sortedKeys(p.rows[nodestate.TableServicePorts]) {
		s, ok := p.rows[nodestate.TableServicePorts][k].(nodestate.ServicePort)
		if ok && s.SourceMode == nodestate.SourceSome {
			guarded = append(guarded, s)
		}
	}
	for _, f := range Families() {
		var all []span
		spans := make([][]span, len(guarded))
		for i, s := range guarded {
			for _, r := range s.SourceRanges {
				if r.IsValid() && familyOf(r.Addr()) == f {
					spans[i] = append(spans[i], prefixSpan(r))
				}
			}
			all = append(all, spans[i]...)
		}
		pieces := atoms(all)
		for _, piece := range pieces {
			u.put(SetSources.In(f), piece.key(), Data(Mark(u.source(f, piece))))
		}
		for i, s := range guarded {
			ids := []Field{Mark(u.service(s, f, nodestate.LocalityCluster))}
			if s.ExternalPolicy == nodestate.LocalityLocal {
				ids = append(ids, Mark(u.service(s, f, nodestate.LocalityLocal)))
			}
			for _, a := range s.LoadBalancerAddresses {
				if familyOf(a) == f {
					u.put(SetGuards.In(f), frontend(a, s), "")
				}
			}
			for _, piece := range pieces {
				if !covered(spans[i], piece) {
					continue
				}
				for _, id := range ids {
					u.put(SetAdmitted, Concat(id, Mark(u.source(f, piece))), "")
				}
			}
		}
	}
}

func (u *unit) source(f Family, s span) uint32 {
	return u.id("a", formatField(f.Addr(), string(s.low))+"-"+formatField(f.Addr(), string(s.high)))
}

func covered(list []span, piece span) bool {
	for _, s := range list {
		if s.covers(piece) {
			return true
		}
	}
	return false
}
