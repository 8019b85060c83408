package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
)

// Match is what a destination is.
type Match int

// The matches.
const (
	// MatchNone is no address of a Service.
	MatchNone Match = iota + 1
	MatchClusterIP
	MatchNodePort
	MatchBalancer
	MatchExternal
	// MatchHeadless is the name of a Service whose endpoints are resolved instead.
	MatchHeadless
)

// Question is a connection that somebody would open.
type Question struct {
	// Address is the destination; where it is not valid, Service is.
	Address netip.Addr
	Service Ref
	// Port 0 is the Service's only port, where the destination is a Service's name.
	Port     uint16
	Protocol nodestate.Protocol
	// Node is where the connection starts or, from outside, enters; empty: any.
	Node string
}

// Answer is where it would go.
type Answer struct {
	Match     Match
	Service   Ref
	Port      string
	ClusterIP netip.Addr
	Backends  []Backend
	Reason    string
}

// Backend is one endpoint that may be chosen.
type Backend struct {
	Address     netip.Addr
	Port        uint16
	Node        string
	Pod         string
	Ready       bool
	Terminating bool
}

// Lookup answers where a connection would go, by the rows that nodes hold. Errors: NotFound for a Service, or a port of
// it, that does not exist; Invalid where the port is left out and there are several.
func (w *World) Lookup(q Question) (Answer, error) {
	if q.Address.IsValid() {
		return w.lookupAddress(q), nil
	}
	s := w.services[q.Service]
	if s == nil {
		return Answer{}, errs.New(errs.NotFound, "Service %s not found", q.Service)
	}
	port, err := s.portFor(q)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Service: s.Ref, Port: port.Name}
	switch {
	case s.Type == TypeExternalName:
		a.Match, a.Reason = MatchNone, "an ExternalName Service is a name only: it resolves to spec.externalName"
	case s.Headless:
		a.Match, a.Reason = MatchHeadless, "a headless Service: the name resolves to the endpoints themselves"
		a.Backends = w.resolved(s, port)
	default:
		w.choose(&a, s, port, MatchClusterIP, q)
	}
	return a, nil
}

func (s *Service) portFor(q Question) (Port, error) {
	var found []Port
	for _, p := range s.Ports {
		if p.Protocol == q.Protocol && (q.Port == 0 || p.Number == q.Port) {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 1 || len(found) == 0 && len(s.Ports) == 0:
		return append(found, Port{})[0], nil
	case len(found) > 1:
		return Port{}, errs.New(errs.Invalid, "Service %s has several %s ports: name one of %s", s.Ref, q.Protocol, s.portList())
	}
	return Port{}, errs.New(errs.NotFound, "Service %s has no %s port %d: it has %s", s.Ref, q.Protocol, q.Port, s.portList())
}

func (s *Service) portList() string {
	list := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		list[i] = fmt.Sprintf("%d/%s", p.Number, p.Protocol)
	}
	return strings.Join(list, ", ")
}

func (w *World) lookupAddress(q Question) Answer {
	onNode := ""
	for name, n := range w.nodes {
		if slices.Contains(n.Addresses, q.Address) {
			onNode = name
		}
	}
	known := Ref{}
	for _, ref := range w.Services() {
		s := w.services[ref]
		if !s.Served() {
			continue
		}
		match := s.match(q.Address)
		if match != MatchNone {
			known = ref
		}
		for _, p := range s.Ports {
			a := Answer{Service: s.Ref, Port: p.Name}
			switch {
			case p.Protocol != q.Protocol:
			case match != MatchNone && p.Number == q.Port:
				w.choose(&a, s, p, match, q)
				return a
			case onNode != "" && p.NodePort != 0 && p.NodePort == q.Port && slices.Contains(s.Families, FamilyOf(q.Address)):
				if q.Node == "" {
					q.Node = onNode
				}
				w.choose(&a, s, p, MatchNodePort, q)
				return a
			}
		}
	}
	a := Answer{Match: MatchNone, Reason: fmt.Sprintf("%s is no address of a Service", q.Address)}
	switch {
	case known != Ref{}:
		a.Service = known
		a.Reason = fmt.Sprintf("%s belongs to Service %s, which has no %s port %d: refused", q.Address, known, q.Protocol, q.Port)
	case onNode != "":
		a.Reason = fmt.Sprintf("%s is Node %s, and %s %d is no node port of a Service", q.Address, onNode, q.Protocol, q.Port)
	}
	return a
}

func (s *Service) match(a netip.Addr) Match {
	switch {
	case slices.Contains(s.ClusterIPs, a):
		return MatchClusterIP
	case slices.Contains(s.Balancer, a):
		return MatchBalancer
	case slices.Contains(s.Externals, a):
		return MatchExternal
	}
	return MatchNone
}

// choose fills in the endpoints that a node chooses from: ready ones, or where there is none the ending ones that still
// serve (KEP-1669); with policy Local only those of the node.
func (w *World) choose(a *Answer, s *serviceState, port Port, match Match, q Question) {
	a.Match = match
	if len(s.ClusterIPs) > 0 {
		a.ClusterIP = s.ClusterIPs[0]
	}
	field, policy := "internalTrafficPolicy", s.InternalPolicy
	if match != MatchClusterIP {
		field, policy = "externalTrafficPolicy", s.ExternalPolicy
	}
	var all, local []nodestate.Endpoint
	for _, e := range w.merge(s) {
		if e.Port != port.Name || e.Protocol != port.Protocol || q.Address.IsValid() && FamilyOf(e.Address) != FamilyOf(q.Address) {
			continue
		}
		all = append(all, e)
		if e.Node == q.Node {
			local = append(local, e)
		}
	}
	chosen := usable(all)
	a.Reason = fmt.Sprintf("%d of %d endpoints of %s", len(chosen), len(all), s.Ref)
	if policy == nodestate.LocalityLocal && q.Node != "" {
		chosen = usable(local)
		a.Reason = fmt.Sprintf("%s is Local: %d of %d endpoints of %s, those on %s", field, len(chosen), len(all), s.Ref, q.Node)
		if match != MatchClusterIP {
			a.Reason += "; a client within the cluster reaches all"
		}
	}
	switch {
	case len(all) == 0:
		a.Reason = fmt.Sprintf("Service %s has no endpoint that takes connections: refused", s.Ref)
	case len(chosen) > 0 && chosen[0].State == nodestate.EndpointTerminating:
		a.Reason += "; none is ready, so those that are ending still serve"
	}
	pods := w.podsByAddress(s)
	for _, e := range chosen {
		a.Backends = append(a.Backends, Backend{
			Address: e.Address, Port: e.Backend, Node: e.Node, Pod: pods[e.Address],
			Ready: e.State == nodestate.EndpointReady, Terminating: e.State == nodestate.EndpointTerminating,
		})
	}
}

// usable are the ready endpoints or, where there is none, the ending ones.
func usable(list []nodestate.Endpoint) []nodestate.Endpoint {
	var ready []nodestate.Endpoint
	for _, e := range list {
		if e.State == nodestate.EndpointReady {
			ready = append(ready, e)
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return list
}

func (w *World) podsByAddress(s *serviceState) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for _, slice := range w.slicesOf[s.Ref] {
		for _, e := range slice.Endpoints {
			if e.Target.Kind == "Pod" {
				out[e.Address] = e.Target.Namespace + "/" + e.Target.Name
			}
		}
	}
	return out
}

// resolved are the endpoints to which the name of a headless Service resolves.
func (w *World) resolved(s *serviceState, port Port) []Backend {
	var out []Backend
	for _, slice := range w.slicesOf[s.Ref] {
		if slice.Service != s.Name || slice.Family == "" {
			continue
		}
		number := port.Number
		for _, p := range slice.Ports {
			if p.Name == port.Name && p.Protocol == port.Protocol && p.Number != 0 {
				number = p.Number
			}
		}
		for _, e := range slice.Endpoints {
			if !e.Ready {
				continue
			}
			b := Backend{Address: e.Address, Port: number, Node: e.Node, Ready: true, Terminating: e.Terminating}
			if e.Target.Kind == "Pod" {
				b.Pod = e.Target.Namespace + "/" + e.Target.Name
			}
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b Backend) int { return a.Address.Compare(b.Address) })
	return slices.CompactFunc(out, func(a, b Backend) bool { return a.Address == b.Address && a.Port == b.Port })
}
