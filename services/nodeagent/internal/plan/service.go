package plan

import (
	"net/netip"
	"sort"
	"strconv"

	"podwire.dev/internal/nodestate"
)

// planService gives one port of one Service: for each family its frontends, and for each scope that a frontend uses
// (all endpoints, or this node's) a service id with its endpoints.
func (p *Planner) planService(u *unit, k nodestate.ServiceKey) {
	s, ok := p.services[k]
	if !ok {
		return
	}
	for _, f := range Families() {
		b := p.backends(k, f)
		ids := map[nodestate.Locality]uint32{}
		scope := func(l nodestate.Locality) uint32 {
			if ids[l] == 0 {
				ids[l] = p.planScope(u, s, f, l, b)
			}
			return ids[l]
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

// backends are the endpoints of one family that take connections, sorted, by scope.
type backends struct{ all, local []netip.AddrPort }

// backends chooses among endpoints as KEP-1669 says, for each scope by itself: those that are ready or, where none is,
// those that terminate but still serve.
func (p *Planner) backends(k nodestate.ServiceKey, f Family) backends {
	var ready, ending, localReady, localEnding []netip.AddrPort
	for _, e := range p.endpoints[k] {
		if familyOf(e.Address) != f {
			continue
		}
		at := netip.AddrPortFrom(e.Address.Unmap(), e.Backend)
		local := e.Node != "" && e.Node == p.node.Name
		if e.State == nodestate.EndpointReady {
			ready = append(ready, at)
			if local {
				localReady = append(localReady, at)
			}
			continue
		}
		ending = append(ending, at)
		if local {
			localEnding = append(localEnding, at)
		}
	}
	b := backends{all: ready, local: localReady}
	if len(b.all) == 0 {
		b.all = ending
	}
	if len(b.local) == 0 {
		b.local = localEnding
	}
	for _, list := range [][]netip.AddrPort{b.all, b.local} {
		sort.Slice(list, func(i, j int) bool { return list[i].Compare(list[j]) < 0 })
	}
	return b
}

// service is the id of one scope of a service.
func (u *unit) service(s nodestate.ServicePort, f Family, l nodestate.Locality) uint32 {
	scope := "all"
	if l == nodestate.LocalityLocal {
		scope = "local"
	}
	return u.id("s", s.ServiceKey.String(), strconv.Itoa(int(f)), scope)
}

// planScope gives a service id with its endpoints.
func (p *Planner) planScope(u *unit, s nodestate.ServicePort, f Family, l nodestate.Locality, b backends) uint32 {
	list := b.all
	if l == nodestate.LocalityLocal {
		list = b.local
	}
	id := u.service(s, f, l)
	if u.err != nil {
		return 0
	}
	service := Mark(id)
	if len(list) == 0 {
		program := ProgramRefuse
		if len(b.all) > 0 {
			program = ProgramNoLocal
		}
		p.ids.Slots(id, nil)
		u.put(SetServices, Concat(service), Data(Mark(program)))
		return id
	}
	want := make([]uint32, len(list))
	for i, at := range list {
		want[i] = u.id("e", at.String())
		u.put(SetEndpoints.In(f), Concat(Mark(want[i])), Data(Addr(at.Addr()), Port(at.Port())))
		if s.AffinitySeconds > 0 {
			u.put(SetSticky, Concat(service, Mark(want[i])), "")
		}
	}
	for slot, endpoint := range p.ids.Slots(id, want) {
		u.put(SetSlots, Concat(service, Mark(uint32(slot))), Data(Mark(endpoint)))
	}
	n := uint32(len(list))
	p.useProgram(n, Value("jump count-"+strconv.Itoa(len(list))))
	if s.AffinitySeconds == 0 {
		u.put(SetServices, Concat(service), Data(Mark(n)))
		return id
	}
	program := ProgramAffinity + s.AffinitySeconds
	p.useProgram(program, Value("goto affinity-"+strconv.Itoa(int(s.AffinitySeconds))))
	u.put(SetCounts, Concat(service), Data(Mark(n)))
	u.put(SetServices, Concat(service), Data(Mark(program)))
	return id
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
