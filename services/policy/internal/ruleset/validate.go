package ruleset

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// DefaultPolicy fills in what Kubernetes fills in: policyTypes, and the protocol of each port.
func DefaultPolicy(o *objectv1.NetworkPolicy) {
	if o.Spec == nil {
		o.Spec = &objectv1.NetworkPolicySpec{}
	}
	if o.Spec.PodSelector == nil {
		o.Spec.PodSelector = &objectv1.LabelSelector{}
	}
	o.Spec.PolicyTypes = DefaultPolicyTypes(o.Spec)
	for _, r := range o.Spec.Ingress {
		defaultPorts(r.GetPorts())
	}
	for _, r := range o.Spec.Egress {
		defaultPorts(r.GetPorts())
	}
}

func defaultPorts(ports []*objectv1.NetworkPolicyPort) {
	for _, p := range ports {
		if p.Protocol == nil {
			tcp := nodestate.TCP.String()
			p.Protocol = &tcp
		}
	}
}

// violations collects what is wrong under a path.
type violations []errs.Violation

func (v *violations) add(path, value, rule string, args ...any) {
	*v = append(*v, errs.Violation{Field: path, Value: value, Rule: fmt.Sprintf(rule, args...)})
}

// ValidatePolicy returns every rule of networking.k8s.io/v1 that the spec breaks, with Kubernetes' field paths.
// Metadata is not its concern.
func ValidatePolicy(o *objectv1.NetworkPolicy) []errs.Violation {
	var v violations
	spec := o.GetSpec()
	v.selector("spec.podSelector", spec.GetPodSelector())
	for i, r := range spec.GetIngress() {
		path := fmt.Sprintf("spec.ingress[%d]", i)
		v.ports(path+".ports", r.GetPorts())
		v.peers(path+".from", r.GetFrom())
	}
	for i, r := range spec.GetEgress() {
		path := fmt.Sprintf("spec.egress[%d]", i)
		v.ports(path+".ports", r.GetPorts())
		v.peers(path+".to", r.GetTo())
	}
	if n := len(spec.GetPolicyTypes()); n > 2 {
		v.add("spec.policyTypes", "", "may not specify more than two policyTypes, but has %d", n)
		return v
	}
	for i, t := range spec.GetPolicyTypes() {
		if t != typeIngress && t != typeEgress {
			v.add(fmt.Sprintf("spec.policyTypes[%d]", i), t, "must be Ingress or Egress")
		}
	}
	return v
}

func (v *violations) selector(path string, s *objectv1.LabelSelector) {
	for _, key := range slices.Sorted(maps.Keys(s.GetMatchLabels())) {
		v.named(path+".matchLabels", key, names.LabelKey)
		v.named(path+".matchLabels["+key+"]", s.GetMatchLabels()[key], names.LabelValue)
	}
	for i, e := range s.GetMatchExpressions() {
		at := fmt.Sprintf("%s.matchExpressions[%d]", path, i)
		v.named(at+".key", e.GetKey(), names.LabelKey)
		switch operator(e.GetOperator()) {
		case opIn, opNotIn:
			if len(e.GetValues()) == 0 {
				v.add(at+".values", "", "must be specified when operator is In or NotIn")
			}
		case opExists, opDoesNotExist:
			if len(e.GetValues()) > 0 {
				v.add(at+".values", strings.Join(e.GetValues(), ","), "may not be specified when operator is Exists or DoesNotExist")
			}
		default:
			v.add(at+".operator", e.GetOperator(), "must be In, NotIn, Exists or DoesNotExist")
		}
		for j, value := range e.GetValues() {
			v.named(fmt.Sprintf("%s.values[%d]", at, j), value, names.LabelValue)
		}
	}
}

func (v *violations) ports(path string, ports []*objectv1.NetworkPolicyPort) {
	for i, p := range ports {
		at := fmt.Sprintf("%s[%d]", path, i)
		if _, ok := nodestate.ParseProtocol(p.GetProtocol()); !ok || (p.Protocol != nil && *p.Protocol == "") {
			v.add(at+".protocol", p.GetProtocol(), "must be TCP, UDP or SCTP")
		}
		from, numeric := v.port(at+".port", p)
		if p.EndPort == nil {
			continue
		}
		end := strconv.Itoa(int(p.GetEndPort()))
		switch {
		case p.GetPort().AsInterface() == nil:
			v.add(at+".endPort", end, "may not be specified when port is not specified")
		case !numeric:
			v.add(at+".endPort", end, "may not be specified when port is a name")
		case p.GetEndPort() < from:
			v.add(at+".endPort", end, "must be greater than or equal to port")
		case p.GetEndPort() > 65535:
			v.add(at+".endPort", end, "must be between 1 and 65535, inclusive")
		}
	}
}

// port checks one port and returns its number, where it is one.
func (v *violations) port(path string, p *objectv1.NetworkPolicyPort) (number int32, numeric bool) {
	switch value := p.GetPort().AsInterface().(type) {
	case nil:
	case string:
		v.named(path, value, names.Port)
	case float64:
		if value < 1 || value > 65535 || value != float64(int32(value)) {
			v.add(path, strconv.FormatFloat(value, 'f', -1, 64), "must be between 1 and 65535, inclusive")
		}
		return int32(value), true
	default:
		v.add(path, fmt.Sprint(value), "must be a port number or the name of a container port")
	}
	return 0, false
}

func (v *violations) peers(path string, peers []*objectv1.NetworkPolicyPeer) {
	for i, p := range peers {
		at := fmt.Sprintf("%s[%d]", path, i)
		selects := p.GetPodSelector() != nil || p.GetNamespaceSelector() != nil
		switch {
		case p.GetIpBlock() == nil && !selects:
			v.add(at, "", "must specify a peer")
		case p.GetIpBlock() != nil && selects:
			v.add(at, "", "may not specify both ipBlock and another peer")
		}
		v.selector(at+".podSelector", p.GetPodSelector())
		v.selector(at+".namespaceSelector", p.GetNamespaceSelector())
		if b := p.GetIpBlock(); b != nil {
			v.block(at+".ipBlock", b)
		}
	}
}

func (v *violations) block(path string, b *objectv1.IPBlock) {
	if b.GetCidr() == "" {
		v.add(path+".cidr", "", "is required")
		return
	}
	cidr, ok := v.cidr(path+".cidr", b.GetCidr())
	if !ok {
		return
	}
	for i, e := range b.GetExcept() {
		at := fmt.Sprintf("%s.except[%d]", path, i)
		except, ok := v.cidr(at, e)
		if ok && (!cidr.Contains(except.Addr()) || except.Bits() <= cidr.Bits()) {
			v.add(at, e, "must be a strict subset of cidr %s", b.GetCidr())
		}
	}
}

func (v *violations) cidr(path, text string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		v.add(path, text, "must be a CIDR such as 10.9.8.0/24 or 2001:db8::/64")
	case p.Addr().Is4In6():
		v.add(path, text, "must not be an IPv4-mapped IPv6 range; write the IPv4 range")
	default:
		return p.Masked(), true
	}
	return netip.Prefix{}, false
}

// named adds what a rule of package names says.
func (v *violations) named(path, value string, rule func(string) string) {
	if broken := rule(value); broken != "" {
		v.add(path, value, "%s", broken)
	}
}
