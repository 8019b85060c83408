package admission

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// AnnotationAgentTarget is the annotation of a Node with the target at which its agent's gRPC server is dialled. Written
// by the agent.
const AnnotationAgentTarget = "podwire.dev/agent-target"

// restrictedPrefix marks the labels that no agent may set on its own Node (Kubernetes' NodeRestriction).
const restrictedPrefix = "node-restriction.kubernetes.io/"

// CarryNode keeps the agent's target where the user who replaces a Node does not know it.
func CarryNode(o, old *objectv1.Node) {
	target, ok := old.GetMetadata().GetAnnotations()[AnnotationAgentTarget]
	if _, given := o.GetMetadata().GetAnnotations()[AnnotationAgentTarget]; ok && !given {
		o.Metadata.Annotations = with(o.Metadata.Annotations, AnnotationAgentTarget, target)
	}
}

// CarryAgentNode is CarryNode for a Node that its own agent applies: what people added stays (the spec with cordon and
// taints, further labels and annotations), and what the agent may not say is dropped.
func CarryAgentNode(o, old *objectv1.Node) {
	meta := o.Metadata
	labels := maps.Clone(old.GetMetadata().GetLabels())
	for key, value := range meta.GetLabels() {
		if !restricted(key) {
			labels = with(labels, key, value)
		}
	}
	meta.Labels = labels
	annotations := maps.Clone(old.GetMetadata().GetAnnotations())
	for key, value := range meta.GetAnnotations() {
		annotations = with(annotations, key, value)
	}
	meta.Annotations = annotations
	if old != nil {
		meta.Finalizers, meta.OwnerReferences = old.GetMetadata().GetFinalizers(), old.GetMetadata().GetOwnerReferences()
		o.Spec = old.GetSpec()
	}
}

func restricted(key string) bool {
	prefix, _, found := strings.Cut(key, "/")
	return found && (prefix+"/" == restrictedPrefix || strings.HasSuffix(prefix, "."+strings.TrimSuffix(restrictedPrefix, "/")))
}

func with(m map[string]string, key, value string) map[string]string {
	out := maps.Clone(m)
	if out == nil {
		out = map[string]string{}
	}
	out[key] = value
	return out
}

// ValidateNode returns the rules that a Node breaks.
func ValidateNode(o, old *objectv1.Node) []errs.Violation {
	var v violations
	spec := o.GetSpec()
	seen := map[[2]string]bool{}
	for i, t := range spec.GetTaints() {
		at := fmt.Sprintf("spec.taints[%d]", i)
		v.qualified(at+".key", t.GetKey())
		v.named(at+".value", t.GetValue(), names.LabelValue)
		v.oneOf(at+".effect", t.GetEffect(), "NoSchedule", "PreferNoSchedule", "NoExecute")
		id := [2]string{t.GetKey(), t.GetEffect()}
		if seen[id] {
			v.add(at, t.GetKey()+":"+t.GetEffect(), "taints must be unique by key and effect pair")
		}
		seen[id] = true
	}
	v.podCIDRs(spec)
	if was := old.GetSpec().GetProviderId(); was != "" && spec.GetProviderId() != was {
		v.add("spec.providerID", spec.GetProviderId(), "may not be changed once it is set")
	}
	return v
}

func (v *violations) podCIDRs(spec *objectv1.NodeSpec) {
	families := map[bool]bool{}
	for i, text := range spec.GetPodCidrs() {
		at := fmt.Sprintf("spec.podCIDRs[%d]", i)
		p, err := netip.ParsePrefix(text)
		if err != nil {
			v.add(at, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
			continue
		}
		if families[p.Addr().Is4()] {
			v.add(at, text, "may specify no more than one CIDR for each IP family")
		}
		families[p.Addr().Is4()] = true
	}
	if first := spec.GetPodCidr(); first != "" && (len(spec.GetPodCidrs()) == 0 || spec.GetPodCidrs()[0] != first) {
		v.add("spec.podCIDR", first, "must be the first of podCIDRs")
	}
}

// conditionReady is the type of the condition that only cluster writes.
const conditionReady = "Ready"

// CarryNodeStatus keeps the Ready condition in a status that an agent reports: cluster alone judges readiness, and a
// condition that an agent sent would be older than what the heartbeats said.
func CarryNodeStatus(o, old *objectv1.Node) {
	if o.Status == nil {
		o.Status = &objectv1.NodeStatus{}
	}
	var kept []*objectv1.NodeCondition
	for _, c := range o.Status.GetConditions() {
		if c.GetType() != conditionReady {
			kept = append(kept, c)
		}
	}
	for _, c := range old.GetStatus().GetConditions() {
		if c.GetType() == conditionReady {
			kept = append(kept, c)
		}
	}
	o.Status.Conditions = kept
}

// ValidateNodeStatus returns the rules that a reported status breaks.
func ValidateNodeStatus(o *objectv1.Node) []errs.Violation {
	var v violations
	seen := map[string]bool{}
	for i, a := range o.GetStatus().GetAddresses() {
		at := fmt.Sprintf("status.addresses[%d]", i)
		v.oneOf(at+".type", a.GetType(), "Hostname", "InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS")
		if strings.HasSuffix(a.GetType(), "IP") {
			v.address(at+".address", a.GetAddress())
		}
		if id := a.GetType() + "=" + a.GetAddress(); seen[id] {
			v.add(at, id, "must be unique")
		} else {
			seen[id] = true
		}
	}
	types := map[string]bool{}
	for i, c := range o.GetStatus().GetConditions() {
		v.condition(fmt.Sprintf("status.conditions[%d]", i), c.GetType(), c.GetStatus(), types)
	}
	return v
}

// condition checks one condition of a status.
func (v *violations) condition(at, typ, status string, seen map[string]bool) {
	v.qualified(at+".type", typ)
	v.oneOf(at+".status", status, "True", "False", "Unknown")
	if seen[typ] {
		v.add(at+".type", typ, "must be unique")
	}
	seen[typ] = true
}
