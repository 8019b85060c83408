package lb

import (
	"fmt"
	"maps"
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

// Client is where a client is.
type Client int

// The clients.
const (
	// Inside is a pod or a node.
	Inside Client = iota
	// Outside is everybody else: without a node that it enters, cluster addresses lead nowhere.
	Outside
)

// Outcome is what becomes of a connection.
type Outcome int

// The outcomes.
const (
	// Unchanged goes on as it is: the destination is no Service's.
	Unchanged Outcome = iota + 1
	// Served goes to one of the backends.
	Served
	// Refused is refused at once.
	Refused
	// Dropped is not answered.
	Dropped
	// Unrouted comes to no node.
	Unrouted
)

// Question is a connection that somebody would open.
type Question struct {
	// Address is the destination; where it is not valid, Service is.
	Address netip.Addr
	Service Ref
	// Port 0 is the Service's only port, where the destination is a Service's name.
	Port     uint16
	Protocol nodestate.Protocol
	// Node is where the connection starts or, from outside, enters; empty: any, and from outside the one that the
	// destination leads to.
	Node   string
	Client Client
	// Source is the client's address; not valid: not known, and source ranges are not held against it.
	Source netip.Addr
}

// Answer is where it would go.
type Answer struct {
	Match     Match
	Service   Ref
	Port      string
	ClusterIP netip.Addr
	Backends  []Backend
	Outcome   Outcome
	// Node chooses among the endpoints; empty: any node.
	Node string
	// Dial is what the client has to dial, where it asked for a Service's name.
	Dial   netip.AddrPort
	Reason string
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
	a := Answer{Service: s.Ref, Port: port.Name, Node: q.Node}
	switch {
	case s.Type == TypeExternalName:
		a.Match, a.Outcome, a.Reason = MatchNone, Refused, "an ExternalName Service is a name only: it resolves to spec.externalName"
	case s.Headless:
		a.Match, a.Outcome, a.Reason = MatchHeadless, Served, "a headless Service: the name resolves to the endpoints themselves"
		if a.Backends = w.resolved(s, port); len(a.Backends) == 0 {
			a.Outcome, a.Reason = Refused, fmt.Sprintf("a headless Service: no endpoint of %s is ready, so the name resolves to nothing", s.Ref)
		}
	case q.Client == Outside:
		w.enter(&a, s, port, q)
	default:
		w.choose(&a, s, port, MatchClusterIP, q)
		if len(s.ClusterIPs) > 0 {
			a.Dial = netip.AddrPortFrom(s.ClusterIPs[0], port.Number)
		}
	}
	return a, nil
}

// enter answers for a client outside that has a Service's name only: the way in is its load balancer address, else an
// external one, else a node port.
func (w *World) enter(a *Answer, s *serviceState, port Port, q Question) {
	fits := func(list []netip.Addr) (netip.Addr, bool) {
		for _, addr := range list {
			if !q.Source.IsValid() || FamilyOf(addr) == FamilyOf(q.Source) {
				return addr, true
			}
		}
		return netip.Addr{}, false
	}
	door := func(match Match, addr netip.Addr, number uint16) {
		q.Address, a.Dial = addr, netip.AddrPortFrom(addr, number)
		w.choose(a, s, port, match, q)
	}
	if addr, ok := fits(s.Balancer); ok {
		door(MatchBalancer, addr, port.Number)
		return
	}
	if addr, ok := fits(s.Externals); ok {
		door(MatchExternal, addr, port.Number)
		return
	}
	if node, addr, ok := w.nodeFor(s, port, q, fits); ok {
		q.Node = node
		door(MatchNodePort, addr, port.NodePort)
		return
	}
	q.Node = ""
	w.choose(a, s, port, MatchClusterIP, q)
	a.Reason = fmt.Sprintf("Service %s has neither a load balancer or external address nor a node port for clients outside, "+
		"and its cluster address is not routed from outside", s.Ref)
}

// nodeFor is the Node whose address a client outside would dial for a node port: that of the question or, where the policy
// is Local, the first one with an endpoint, else the first one.
func (w *World) nodeFor(
	s *serviceState, port Port, q Question, fits func([]netip.Addr) (netip.Addr, bool),
) (node string, addr netip.Addr, ok bool) {
	if port.NodePort == 0 {
		return "", netip.Addr{}, false
	}
	serves := map[string]bool{}
	for _, e := range usable(w.merge(s)) {
		serves[e.Node] = true
	}
	best := false
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		var family []netip.Addr
		for _, at := range w.nodes[name].Addresses {
			if slices.Contains(s.Families, FamilyOf(at)) {
				family = append(family, at)
			}
		}
		at, has := fits(family)
		better := !ok || !best && serves[name] && s.ExternalPolicy == nodestate.LocalityLocal
		if has && better && (q.Node == "" || q.Node == name) {
			node, addr, ok, best = name, at, true, serves[name]
		}
	}
	return node, addr, ok
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
				q.Node = or(q.Node, onNode)
				w.choose(&a, s, p, MatchNodePort, q)
				return a
			}
		}
	}
	a := Answer{
		Match: MatchNone, Outcome: Unchanged, Node: q.Node, Reason: fmt.Sprintf("%s is no address of a Service", q.Address),
	}
	switch {
	case known != Ref{}:
		a.Service, a.Outcome = known, Refused
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
// serve (KEP-1669), narrowed by hints; with policy Local only those of the node, where externalTrafficPolicy is one of clients outside.
func (w *World) choose(a *Answer, s *serviceState, port Port, match Match, q Question) {
	a.Match = match
	if len(s.ClusterIPs) > 0 {
		a.ClusterIP = s.ClusterIPs[0]
	}
	if q.Client == Outside && match == MatchBalancer && s.Ours {
		q.Node = or(q.Node, s.Announcer)
	}
	a.Node = q.Node
	if s.halt(a, match, q) {
		return
	}
	field, policy := "internalTrafficPolicy", s.InternalPolicy
	if match != MatchClusterIP {
		field, policy = "externalTrafficPolicy", s.ExternalPolicy
	}
	narrowed := policy == nodestate.LocalityLocal && (match == MatchClusterIP || q.Client == Outside)
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
	switch {
	case narrowed && q.Node != "":
		chosen = usable(local)
		a.Reason = fmt.Sprintf("%s is Local: %d of %d endpoints of %s, those on %s", field, len(chosen), len(all), s.Ref, q.Node)
	case policy == nodestate.LocalityLocal && !narrowed:
		a.Reason += "; " + field + " Local is for clients outside only"
	}
	if !narrowed {
		var by string
		if chosen, by = w.hinted(chosen, q.Node); by != "" {
			a.Reason += fmt.Sprintf("; %d of them are hinted for %s", len(chosen), by)
		}
	}
	switch {
	case len(all) == 0:
		a.Outcome, a.Reason = Refused, fmt.Sprintf("Service %s has no endpoint that takes connections: refused", s.Ref)
	case len(chosen) == 0:
		a.Outcome = Dropped
	default:
		a.Outcome = Served
		if chosen[0].State == nodestate.EndpointTerminating {
			a.Reason += "; none is ready, so those that are ending still serve"
		}
	}
	pods := w.podsByAddress(s)
	for _, e := range chosen {
		a.Backends = append(a.Backends, Backend{
			Address: e.Address, Port: e.Backend, Node: e.Node, Pod: pods[e.Address],
			Ready: e.State == nodestate.EndpointReady, Terminating: e.State == nodestate.EndpointTerminating,
		})
	}
}

// halt says whether the connection ends before any endpoint is chosen, and why.
func (s *serviceState) halt(a *Answer, match Match, q Question) bool {
	switch {
	case q.Client == Outside && q.Node == "" && match == MatchClusterIP:
		a.Outcome = Unrouted
		a.Reason = fmt.Sprintf("a cluster address of %s is not routed from outside", s.Ref)
	case match == MatchBalancer && s.Limited && q.Source.IsValid() &&
		!slices.ContainsFunc(s.Sources, func(p netip.Prefix) bool { return p.Contains(q.Source) }):
		a.Outcome = Dropped
		a.Reason = fmt.Sprintf("%s is in none of the source ranges of %s", q.Source, s.Ref)
	default:
		return false
	}
	return true
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
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
