package ruleset_test

import (
	"net/netip"
	"slices"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// oracle decides by brute force, straight from the objects and Kubernetes' documentation. It shares nothing with the
// package but the objects.
type oracle struct {
	namespaces []*objectv1.Namespace
	pods       []*objectv1.Pod
	policies   []*objectv1.NetworkPolicy
}

// flow is the first packet of a connection. A pod is nil where the end is none.
type flow struct {
	from, to         *objectv1.Pod
	fromAddr, toAddr netip.Addr
	protocol         string
	port             int
}

func (o oracle) egress(f flow) bool {
	if f.from == nil || f.from.GetSpec().GetHostNetwork() {
		return true
	}
	isolated := false
	for _, p := range o.policies {
		if !o.applies(p, f.from, "Egress") {
			continue
		}
		isolated = true
		for _, r := range p.GetSpec().GetEgress() {
			if o.anyPeer(p, r.GetTo(), f.to, f.toAddr) && o.anyPort(r.GetPorts(), f) {
				return true
			}
		}
	}
	return !isolated
}

func (o oracle) ingress(f flow) bool {
	if f.to == nil || f.to.GetSpec().GetHostNetwork() {
		return true
	}
	isolated := false
	for _, p := range o.policies {
		if !o.applies(p, f.to, "Ingress") {
			continue
		}
		isolated = true
		for _, r := range p.GetSpec().GetIngress() {
			if o.anyPeer(p, r.GetFrom(), f.from, f.fromAddr) && o.anyPort(r.GetPorts(), f) {
				return true
			}
		}
	}
	return !isolated
}

func (o oracle) applies(p *objectv1.NetworkPolicy, pod *objectv1.Pod, direction string) bool {
	types := p.GetSpec().GetPolicyTypes()
	if len(types) == 0 {
		types = []string{"Ingress"}
		if len(p.GetSpec().GetEgress()) != 0 {
			types = append(types, "Egress")
		}
	}
	return slices.Contains(types, direction) && p.GetMetadata().GetNamespace() == pod.GetMetadata().GetNamespace() &&
		selected(p.GetSpec().GetPodSelector(), pod.GetMetadata().GetLabels())
}

func (o oracle) anyPeer(p *objectv1.NetworkPolicy, peers []*objectv1.NetworkPolicyPeer, pod *objectv1.Pod, addr netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	for _, peer := range peers {
		if o.isPeer(p, peer, pod, addr) {
			return true
		}
	}
	return false
}

func (o oracle) isPeer(p *objectv1.NetworkPolicy, peer *objectv1.NetworkPolicyPeer, pod *objectv1.Pod, addr netip.Addr) bool {
	if b := peer.GetIpBlock(); b != nil {
		in := addr.IsValid() && netip.MustParsePrefix(b.GetCidr()).Contains(addr)
		for _, e := range b.GetExcept() {
			in = in && !netip.MustParsePrefix(e).Contains(addr)
		}
		return in
	}
	if pod == nil || pod.GetSpec().GetHostNetwork() || len(pod.GetStatus().GetPodIps()) == 0 {
		return false
	}
	if phase := pod.GetStatus().GetPhase(); phase == "Succeeded" || phase == "Failed" {
		return false
	}
	if peer.GetNamespaceSelector() == nil {
		if pod.GetMetadata().GetNamespace() != p.GetMetadata().GetNamespace() {
			return false
		}
	} else {
		found := false
		for _, ns := range o.namespaces {
			found = found || ns.GetMetadata().GetName() == pod.GetMetadata().GetNamespace() &&
				selected(peer.GetNamespaceSelector(), ns.GetMetadata().GetLabels())
		}
		if !found {
			return false
		}
	}
	return peer.GetPodSelector() == nil || selected(peer.GetPodSelector(), pod.GetMetadata().GetLabels())
}

func (o oracle) anyPort(ports []*objectv1.NetworkPolicyPort, f flow) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		protocol := "TCP"
		if p.Protocol != nil {
			protocol = p.GetProtocol()
		}
		if protocol != f.protocol {
			continue
		}
		switch v := p.GetPort().AsInterface().(type) {
		case nil:
			return true
		case float64:
			if int(v) == f.port || p.EndPort != nil && int(v) <= f.port && f.port <= int(p.GetEndPort()) {
				return true
			}
		case string:
			if named(f.to, v, protocol, f.port) {
				return true
			}
		}
	}
	return false
}

func named(pod *objectv1.Pod, name, protocol string, number int) bool {
	if pod == nil || pod.GetSpec().GetHostNetwork() {
		return false
	}
	for _, c := range pod.GetSpec().GetContainers() {
		for _, p := range c.GetPorts() {
			own := p.GetProtocol()
			if own == "" {
				own = "TCP"
			}
			if p.GetName() == name && own == protocol && int(p.GetContainerPort()) == number {
				return true
			}
		}
	}
	return false
}

func selected(s *objectv1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.GetMatchLabels() {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	for _, e := range s.GetMatchExpressions() {
		have, ok := labels[e.GetKey()]
		listed := slices.Contains(e.GetValues(), have)
		switch e.GetOperator() {
		case "In":
			if !ok || !listed {
				return false
			}
		case "NotIn":
			if ok && listed {
				return false
			}
		case "Exists":
			if !ok {
				return false
			}
		case "DoesNotExist":
			if ok {
				return false
			}
		}
	}
	return true
}
