package policytest

import (
	"math/rand/v2"

	"google.golang.org/protobuf/types/known/structpb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Words are what Random makes objects of. They are few, so that what it makes meets.
type Words struct {
	// Namespaces are where policies are.
	Namespaces []string
	// Numbers are ports, PortNames names of container ports.
	Numbers   []int
	PortNames []string
	// Protocols are those of NetworkPolicyPort.
	Protocols []string
	// Blocks are peers by address.
	Blocks []*objectv1.IPBlock
}

// Random makes labels, selectors and policies.
type Random struct {
	*rand.Rand
	Words Words
}

// One chooses one of several.
func (r Random) One(of ...string) string { return of[r.IntN(len(of))] }

// Labels are some of the labels that Selector selects by.
func (r Random) Labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if r.IntN(3) > 0 {
			out[k] = r.One("x", "y")
		}
	}
	return out
}

// Selector is a selector of any form: empty, by label, by expression.
func (r Random) Selector() *objectv1.LabelSelector {
	s := &objectv1.LabelSelector{}
	switch r.IntN(4) {
	case 0:
	case 1:
		s.MatchLabels = map[string]string{r.One("a", "b"): r.One("x", "y")}
	default:
		e := &objectv1.LabelSelectorRequirement{Key: r.One("a", "b"), Operator: r.One("In", "NotIn", "Exists", "DoesNotExist")}
		if e.Operator == "In" || e.Operator == "NotIn" {
			e.Values = [][]string{{"x"}, {"y"}, {"x", "y"}}[r.IntN(3)]
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

// Number is a port.
func (r Random) Number() int { return r.Words.Numbers[r.IntN(len(r.Words.Numbers))] }

// Policy is a valid NetworkPolicy of that name in one of the namespaces.
func (r Random) Policy(name string) *objectv1.NetworkPolicy {
	o := &objectv1.NetworkPolicy{
		Metadata: &objectv1.ObjectMeta{Namespace: r.One(r.Words.Namespaces...), Name: name},
		Spec:     &objectv1.NetworkPolicySpec{PodSelector: r.Selector()},
	}
	o.Spec.PolicyTypes = [][]string{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}[r.IntN(4)]
	for range r.IntN(3) {
		o.Spec.Ingress = append(o.Spec.Ingress, &objectv1.NetworkPolicyIngressRule{From: r.peers(), Ports: r.ports()})
	}
	for range r.IntN(3) {
		o.Spec.Egress = append(o.Spec.Egress, &objectv1.NetworkPolicyEgressRule{To: r.peers(), Ports: r.ports()})
	}
	return o
}

func (r Random) ports() []*objectv1.NetworkPolicyPort {
	var out []*objectv1.NetworkPolicyPort
	for range r.IntN(3) {
		p := &objectv1.NetworkPolicyPort{}
		if r.IntN(2) > 0 {
			p.Protocol = new(r.One(r.Words.Protocols...))
		}
		switch r.IntN(4) {
		case 0:
		case 1:
			p.Port = structpb.NewStringValue(r.One(r.Words.PortNames...))
		default:
			n := r.Number()
			p.Port = structpb.NewNumberValue(float64(n))
			if r.IntN(2) > 0 {
				p.EndPort = new(int32(n + r.IntN(30)))
			}
		}
		out = append(out, p)
	}
	return out
}

func (r Random) peers() []*objectv1.NetworkPolicyPeer {
	var out []*objectv1.NetworkPolicyPeer
	for range r.IntN(3) {
		p := &objectv1.NetworkPolicyPeer{}
		switch r.IntN(4) {
		case 0:
			p.IpBlock = r.Words.Blocks[r.IntN(len(r.Words.Blocks))]
		case 1:
			p.PodSelector = r.Selector()
		case 2:
			p.NamespaceSelector = r.Selector()
		default:
			p.PodSelector, p.NamespaceSelector = r.Selector(), r.Selector()
		}
		out = append(out, p)
	}
	return out
}
