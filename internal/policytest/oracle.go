package policytest

import (
	"net/netip"
	"slices"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Oracle is a cluster, and what follows from it.
type Oracle struct {
	Namespaces []*objectv1.Namespace
	Pods       []*objectv1.Pod
	Policies   []*objectv1.NetworkPolicy
}

// Flow is the first packet of a connection.
type Flow struct {
	// From and To are nil where that end is no pod.
	From, To *objectv1.Pod
	// FromAddr and ToAddr are what that packet bears when it is judged.
	FromAddr, ToAddr netip.Addr
	// Protocol is TCP, UDP or SCTP.
	Protocol string
	Port     int
}

// Allowed says whether both ends let the packet pass. What a pod sends to itself and what a node sends to its own pods is
// not judged at all; that is for the caller to know.
func (o Oracle) Allowed(f Flow) bool { return o.Egress(f) && o.Ingress(f) }

// Egress says whether the source lets the packet go.
func (o Oracle) Egress(f Flow) bool {
	if f.From == nil || f.From.GetSpec().GetHostNetwork() {
		return true
	}
	isolated := false
	for _, p := range o.Policies {
		if !applies(p, f.From, "Egress") {
			continue
		}
		isolated = true
		for _, r := range p.GetSpec().GetEgress() {
			if o.anyPeer(p, r.GetTo(), f.To, f.ToAddr) && anyPort(r.GetPorts(), f) {
				return true
			}
		}
	}
	return !isolated
}

// Ingress says whether the destination lets the packet in.
func (o Oracle) Ingress(f Flow) bool {
	if f.To == nil || f.To.GetSpec().GetHostNetwork() {
		return true
	}
	isolated := false
	for _, p := range o.Policies {
		if !applies(p, f.To, "Ingress") {
			continue
		}
		isolated = true
		for _, r := range p.GetSpec().GetIngress() {
			if o.anyPeer(p, r.GetFrom(), f.From, f.FromAddr) && anyPort(r.GetPorts(), f) {
				return true
			}
		}
	}
	return !isolated
}

func applies(p *objectv1.NetworkPolicy, pod *objectv1.Pod, direction string) bool {
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

func (o Oracle) anyPeer(p *objectv1.NetworkPolicy, peers []*objectv1.NetworkPolicyPeer, pod *objectv1.Pod, addr netip.Addr) bool {
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

func (o Oracle) isPeer(p *objectv1.NetworkPolicy, peer *objectv1.NetworkPolicyPeer, pod *objectv1.Pod, addr netip.Addr) bool {
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
		for _, ns := range o.Namespaces {
			found = found || ns.GetMetadata().GetName() == pod.GetMetadata().GetNamespace() &&
				selected(peer.GetNamespaceSelector(), ns.GetMetadata().GetLabels())
		}
		if !found {
			return false
		}
	}
	return peer.GetPodSelector() == nil || selected(peer.GetPodSelector(), pod.GetMetadata().GetLabels())
}

func anyPort(ports []*objectv1.NetworkPolicyPort, f Flow) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		protocol := "TCP"
		if p.Protocol != nil {
			protocol = p.GetProtocol()
		}
		if protocol != f.Protocol {
			continue
		}
		switch v := p.GetPort().AsInterface().(type) {
		case nil:
			return true
		case float64:
			if int(v) == f.Port || p.EndPort != nil && int(v) <= f.Port && f.Port <= int(p.GetEndPort()) {
				return true
			}
		case string:
			if named(f.To, v, protocol, f.Port) {
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
