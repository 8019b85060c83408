package ct

import (
	"net/netip"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/plan"
)

// frontend is an address and port of a Service; for a node port, the address is unspecified, of the port's family.
type frontend struct {
	protocol nodestate.Protocol
	at       netip.AddrPort
}

// cleanPasses is how many passes look for flows to a frontend that is gone. More than one, since a packet that was on its
// way when the rules changed may leave an entry after the pass that follows.
const cleanPasses = 2

// services decides which flows to Services end.
type services struct {
	digest    nodestate.Digest
	loaded    bool
	frontends map[frontend]nodestate.ServiceKey
	// former are the frontends that were, with the number of passes since.
	former map[frontend]int

	ranges   []netip.Prefix
	rows     *nodestate.Slice
	elements plan.Elements
	// swept says that a pass was made.
	swept bool
	// serving remembers answers within a pass.
	serving map[nodestate.ServiceKey]map[netip.AddrPort]bool
}

// tracked says whether flows of a protocol end with their endpoint. TCP's own end is enough, as in kube-proxy.
func tracked(p nodestate.Protocol) bool { return p == nodestate.UDP || p == nodestate.SCTP }

// load takes the tables for one pass.
func (s *services) load(t dataplane.Tables) {
	s.rows, s.elements, s.ranges = t.Services, t.Elements, nil
	if s.rows == nil {
		s.rows = nodestate.NewSlice()
	}
	s.serving = map[nodestate.ServiceKey]map[netip.AddrPort]bool{}
	if t.Fabric != nil {
		t.Fabric.Each(nodestate.TableRanges, func(r nodestate.Row) {
			if row, ok := r.(nodestate.Range); ok && row.Kind == nodestate.RangeService {
				s.ranges = append(s.ranges, row.Prefix)
			}
		})
	}
	digest := s.rows.Digest(nodestate.TableServicePorts)
	if s.loaded && digest == s.digest {
		return
	}
	old := s.frontends
	s.digest, s.loaded, s.frontends = digest, true, map[frontend]nodestate.ServiceKey{}
	s.rows.Each(nodestate.TableServicePorts, func(r nodestate.Row) {
		if p, ok := r.(nodestate.ServicePort); ok && tracked(p.Protocol) {
			s.add(p)
		}
	})
	if s.former == nil {
		s.former = map[frontend]int{}
	}
	for f := range old {
		if _, still := s.frontends[f]; !still {
			s.former[f] = 0
		}
	}
	for f := range s.frontends {
		delete(s.former, f)
	}
}

func (s *services) add(p nodestate.ServicePort) {
	for _, list := range [][]netip.Addr{p.ClusterAddresses, p.LoadBalancerAddresses, p.ExternalAddresses} {
		for _, a := range list {
			s.put(frontend{p.Protocol, netip.AddrPortFrom(a.Unmap(), p.Port)}, p.ServiceKey)
		}
	}
	if p.NodePort == 0 {
		return
	}
	for _, f := range p.NodePortFamilies {
		wildcard := netip.IPv6Unspecified()
		if plan.Family(f) == plan.IPv4 {
			wildcard = netip.IPv4Unspecified()
		}
		s.put(frontend{p.Protocol, netip.AddrPortFrom(wildcard, p.NodePort)}, p.ServiceKey)
	}
}

// put keeps the first of two Services that claim a frontend, by name, as the plan does.
func (s *services) put(f frontend, k nodestate.ServiceKey) {
	if other, taken := s.frontends[f]; taken && other.String() < k.String() {
		return
	}
	s.frontends[f] = k
}

// names are the frontends that a destination may be, first the one that the table would find.
func (s *services) names(p nodestate.Protocol, at netip.AddrPort) [2]frontend {
	own := frontend{p, at}
	family, wildcard := plan.IPv6, netip.IPv6Unspecified()
	if at.Addr().Is4() {
		family, wildcard = plan.IPv4, netip.IPv4Unspecified()
	}
	if _, isNode := s.elements.Lookup(plan.SetNode.In(family), plan.Addr(at.Addr())); isNode {
		return [2]frontend{own, {p, netip.AddrPortFrom(wildcard, at.Port())}}
	}
	return [2]frontend{own, own}
}

// idle says that no flow can end for the sake of Services.
func (s *services) idle() bool { return s.swept && len(s.frontends) == 0 && len(s.former) == 0 }

// ends says whether a flow is to end for the sake of Services.
func (s *services) ends(e *Entry) bool {
	if !tracked(e.Protocol) {
		return false
	}
	to := e.Original.Destination
	names := s.names(e.Protocol, to)
	for _, f := range names {
		if k, ok := s.frontends[f]; ok {
			return !e.Translated() || !s.serves(k, e.Reply.Source)
		}
	}
	if !e.Translated() {
		return false
	}
	for _, f := range names {
		if _, was := s.former[f]; was {
			return true
		}
	}
	for _, r := range s.ranges {
		if r.Contains(to.Addr()) {
			return true
		}
	}
	return false
}

// serves says whether an address is an endpoint of a service port, in any state that has a row.
func (s *services) serves(k nodestate.ServiceKey, at netip.AddrPort) bool {
	answer, known := s.serving[k][at]
	if known {
		return answer
	}
	key := nodestate.Endpoint{ServiceKey: k, Address: at.Addr(), Backend: at.Port()}.Key()
	_, answer = s.rows.Get(nodestate.Ref{Table: nodestate.TableEndpoints, Key: key})
	if s.serving[k] == nil {
		s.serving[k] = map[netip.AddrPort]bool{}
	}
	s.serving[k][at] = answer
	return answer
}

// unload forgets what one pass needed.
func (s *services) unload() { s.rows, s.elements, s.serving = nil, nil, nil }

// passed forgets frontends that are gone long enough.
func (s *services) passed() {
	s.swept = true
	for f := range s.former {
		if s.former[f]++; s.former[f] >= cleanPasses {
			delete(s.former, f)
		}
	}
}
