package ruleset

import (
	"math"
	"net/netip"
	"strconv"

	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Ref names a namespaced object.
type Ref struct{ Namespace, Name string }

// String is <namespace>/<name>.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Policy is a NetworkPolicy in the terms of this package.
type Policy struct {
	Ref
	// Selects are the pods of the policy's namespace that it isolates.
	Selects Selector
	// Isolates says which directions it isolates.
	Isolates map[nodestate.Direction]bool
	// Rules are its ingress and egress rules in the manifest's order.
	Rules []Rule
}

// Rule allows (peers, ports). AnyPeer and AnyPort say "all" explicitly; both lists empty without them allow nothing.
type Rule struct {
	Direction nodestate.Direction
	// Index is the rule's place in its list, counted from 0.
	Index   int
	AnyPeer bool
	Peers   []PeerTerm
	AnyPort bool
	Ports   []Port
}

// origin names a rule for people: <namespace>/<name> ingress[0].
func (r Rule) origin(p Ref) string {
	return p.String() + " " + r.Direction.String() + "[" + strconv.Itoa(r.Index) + "]"
}

// PeerTerm is one peer of a rule: either pods or a block.
type PeerTerm struct {
	// Namespace restricts pods to one namespace; empty: Namespaces decides.
	Namespace  string
	Namespaces Selector
	Pods       Selector
	// Block is valid where the peer is an ipBlock, and then decides alone.
	Block  netip.Prefix
	Except []netip.Prefix
}

// Port is one port of a rule.
type Port struct {
	Protocol nodestate.Protocol
	// Name is a named port of the destination pod; empty: From..To decide.
	Name string
	// From and To are inclusive; both zero: every port of Protocol.
	From, To uint16
}

// ParsePolicy reads a NetworkPolicy that [ValidatePolicy] accepted. What it would have refused matches nothing.
func ParsePolicy(o *objectv1.NetworkPolicy) Policy {
	spec := o.GetSpec()
	p := Policy{
		Ref:      Ref{o.GetMetadata().GetNamespace(), o.GetMetadata().GetName()},
		Selects:  parseSelector(spec.GetPodSelector()),
		Isolates: map[nodestate.Direction]bool{},
	}
	for _, t := range DefaultPolicyTypes(spec) {
		switch t {
		case typeIngress:
			p.Isolates[nodestate.Ingress] = true
		case typeEgress:
			p.Isolates[nodestate.Egress] = true
		}
	}
	for i, r := range spec.GetIngress() {
		p.Rules = append(p.Rules, parseRule(p.Namespace, nodestate.Ingress, i, r.GetFrom(), r.GetPorts()))
	}
	for i, r := range spec.GetEgress() {
		p.Rules = append(p.Rules, parseRule(p.Namespace, nodestate.Egress, i, r.GetTo(), r.GetPorts()))
	}
	return p
}

const (
	typeIngress = "Ingress"
	typeEgress  = "Egress"
)

// DefaultPolicyTypes returns spec.policyTypes or, where absent, Kubernetes' default: Ingress, and Egress where the
// policy has egress rules.
func DefaultPolicyTypes(spec *objectv1.NetworkPolicySpec) []string {
	if len(spec.GetPolicyTypes()) > 0 {
		return spec.GetPolicyTypes()
	}
	if len(spec.GetEgress()) > 0 {
		return []string{typeIngress, typeEgress}
	}
	return []string{typeIngress}
}

func parseRule(namespace string, d nodestate.Direction, index int, peers []*objectv1.NetworkPolicyPeer, ports []*objectv1.NetworkPolicyPort) Rule {
	r := Rule{Direction: d, Index: index, AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
	for _, p := range peers {
		if t, ok := parsePeer(namespace, p); ok {
			r.Peers = append(r.Peers, t)
		}
	}
	for _, p := range ports {
		if port, ok := parsePort(p); ok {
			r.Ports = append(r.Ports, port)
		}
	}
	return r
}

func parsePeer(namespace string, p *objectv1.NetworkPolicyPeer) (PeerTerm, bool) {
	if b := p.GetIpBlock(); b != nil {
		prefix, err := netip.ParsePrefix(b.GetCidr())
		if err != nil {
			return PeerTerm{}, false
		}
		t := PeerTerm{Block: prefix.Masked()}
		for _, e := range b.GetExcept() {
			except, err := netip.ParsePrefix(e)
			if err != nil {
				return PeerTerm{}, false
			}
			t.Except = append(t.Except, except.Masked())
		}
		return t, true
	}
	if p.GetPodSelector() == nil && p.GetNamespaceSelector() == nil {
		return PeerTerm{}, false
	}
	t := PeerTerm{Pods: parseSelector(p.GetPodSelector())}
	if p.GetNamespaceSelector() == nil {
		t.Namespace = namespace
	} else {
		t.Namespaces = parseSelector(p.GetNamespaceSelector())
	}
	return t, true
}

func parsePort(p *objectv1.NetworkPolicyPort) (Port, bool) {
	protocol, ok := nodestate.ParseProtocol(p.GetProtocol())
	if !ok {
		return Port{}, false
	}
	switch v := p.GetPort().AsInterface().(type) {
	case nil:
		return Port{Protocol: protocol}, true
	case string:
		return Port{Protocol: protocol, Name: v}, true
	case float64:
		if !(v >= 1 && v <= 65535) || v != math.Trunc(v) { // NaN is no port either
			return Port{}, false
		}
		from := uint16(v)
		to := from
		if p.EndPort != nil {
			if p.GetEndPort() < int32(from) || p.GetEndPort() > 65535 {
				return Port{}, false
			}
			to = uint16(p.GetEndPort())
		}
		return Port{Protocol: protocol, From: from, To: to}, true
	}
	return Port{}, false
}
