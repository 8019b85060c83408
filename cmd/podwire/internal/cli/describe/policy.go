package describe

import (
	"context"
	"fmt"
	"slices"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func (p *page) policy(ctx context.Context, o *objectv1.NetworkPolicy) {
	p.head(o)
	spec, ns := o.GetSpec(), o.GetMetadata().GetNamespace()
	p.line(0, "Spec:")
	p.field(1, "PodSelector", selectorText(spec.GetPodSelector(), "<none> (Allowing the specific traffic to all pods in this namespace)"))
	if slices.Contains(spec.GetPolicyTypes(), "Ingress") {
		p.line(1, "Allowing ingress traffic:")
		if len(spec.GetIngress()) == 0 {
			p.line(2, "<none> (Selected pods are isolated for ingress connectivity)")
		}
		for i, r := range spec.GetIngress() {
			p.rule(ctx, ns, fmt.Sprintf("spec.ingress[%d].from", i), "From", r.GetPorts(), r.GetFrom())
		}
	} else {
		p.line(1, "Not affecting ingress traffic")
	}
	if slices.Contains(spec.GetPolicyTypes(), "Egress") {
		p.line(1, "Allowing egress traffic:")
		if len(spec.GetEgress()) == 0 {
			p.line(2, "<none> (Selected pods are isolated for egress connectivity)")
		}
		for i, r := range spec.GetEgress() {
			p.rule(ctx, ns, fmt.Sprintf("spec.egress[%d].to", i), "To", r.GetPorts(), r.GetTo())
		}
	} else {
		p.line(1, "Not affecting egress traffic")
	}
	p.field(1, "Policy Types", joined(spec.GetPolicyTypes()))
	pods, ok := list[*objectv1.Pod](ctx, p, "Pod", ns)
	if !ok {
		return
	}
	pods = slices.DeleteFunc(pods, func(pod *objectv1.Pod) bool {
		return !live(pod) || !matches(spec.GetPodSelector(), pod.GetMetadata().GetLabels())
	})
	p.field(0, "Selected Pods", joined(podNames(pods)))
	if len(pods) == 0 {
		p.warn("selects no pod of namespace %s: nothing is restricted by it", ns)
	}
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetStatus() != "True" && c.GetMessage() != "" {
			p.warn("not %s: %s", c.GetType(), oneLine(c.GetMessage()))
		}
	}
}

func podNames(pods []*objectv1.Pod) []string {
	var out []string
	for _, pod := range pods {
		out = append(out, pod.GetMetadata().GetName())
	}
	slices.Sort(out)
	return out
}

func (p *page) rule(ctx context.Context, ns, path, direction string, ports []*objectv1.NetworkPolicyPort, peers []*objectv1.NetworkPolicyPeer) {
	if len(ports) == 0 {
		p.line(2, "To Port: <any> (traffic allowed to all ports)")
	}
	for _, port := range ports {
		text := "<any>"
		switch v := port.GetPort().AsInterface().(type) {
		case string:
			text = v
		case float64:
			text = fmt.Sprint(int(v))
		}
		if port.EndPort != nil {
			text += fmt.Sprintf("-%d", port.GetEndPort())
		}
		p.line(2, "To Port: "+text+"/"+or(port.GetProtocol(), "TCP"))
	}
	if len(peers) == 0 {
		p.line(2, direction+": <any> (traffic not restricted by peer)")
	}
	for i, peer := range peers {
		p.line(2, direction+":")
		p.peer(ctx, ns, fmt.Sprintf("%s[%d]", path, i), peer)
	}
	p.line(2, "----------")
}

// peer writes one peer, and warns of one that is nobody.
func (p *page) peer(ctx context.Context, ns, path string, peer *objectv1.NetworkPolicyPeer) {
	if b := peer.GetIpBlock(); b != nil {
		p.line(3, "IPBlock:")
		p.line(4, "CIDR: "+b.GetCidr())
		p.line(4, "Except: "+joined(b.GetExcept()))
		return
	}
	if peer.GetNamespaceSelector() != nil {
		p.line(3, "NamespaceSelector: "+selectorText(peer.GetNamespaceSelector(), "<all>"))
	}
	if peer.GetPodSelector() != nil {
		p.line(3, "PodSelector: "+selectorText(peer.GetPodSelector(), "<all>"))
	}
	in := map[string]bool{ns: true}
	if peer.GetNamespaceSelector() != nil {
		namespaces, ok := list[*objectv1.Namespace](ctx, p, "Namespace", "")
		if !ok {
			return
		}
		clear(in)
		for _, n := range namespaces {
			if matches(peer.GetNamespaceSelector(), n.GetMetadata().GetLabels()) {
				in[n.GetMetadata().GetName()] = true
			}
		}
		if len(in) == 0 {
			p.warn("%s: no namespace is labelled %s", path, selectorText(peer.GetNamespaceSelector(), "<all>"))
			return
		}
	}
	every := ns
	if peer.GetNamespaceSelector() != nil {
		every = ""
	}
	pods, ok := list[*objectv1.Pod](ctx, p, "Pod", every)
	if !ok {
		return
	}
	sel := peer.GetPodSelector()
	if sel == nil {
		sel = &objectv1.LabelSelector{}
	}
	if !slices.ContainsFunc(pods, func(pod *objectv1.Pod) bool {
		return live(pod) && in[pod.GetMetadata().GetNamespace()] && matches(sel, pod.GetMetadata().GetLabels())
	}) {
		p.warn("%s: the peer is no pod that is there now", path)
	}
}
