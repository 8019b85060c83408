// Package sched chooses the node of a Pod.
//
// In: a Pod's wishes and the Nodes as they are, both parsed from the stored objects. Out: the name of a node, or why none
// will do, in the words that Kubernetes' scheduler uses. Invariants: the answer depends on the arguments only; of nodes
// that will do equally well the first by name is taken; a Pod that has a node is never asked about, since Pods do not
// move. It must not read the store, nor count anything that it is not given.
package sched

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Effects of taints ("Taints and Tolerations" in Kubernetes' documentation).
const (
	NoSchedule       = "NoSchedule"
	PreferNoSchedule = "PreferNoSchedule"
	NoExecute        = "NoExecute"
)

// Keys of the taints that a Node's state implies ("Taint Nodes by Condition").
const (
	TaintNotReady      = "node.kubernetes.io/not-ready"
	TaintUnreachable   = "node.kubernetes.io/unreachable"
	TaintUnschedulable = "node.kubernetes.io/unschedulable"
)

// Taint repels Pods that do not tolerate it.
type Taint struct{ Key, Value, Effect string }

// Toleration admits to nodes with matching taints. An empty Key matches every key, an empty Effect every effect.
type Toleration struct {
	Key, Value, Effect string
	// Exists matches every value.
	Exists bool
}

// HostPort is a port of the node itself that a Pod occupies. The unspecified address is every address.
type HostPort struct {
	Address  netip.Addr
	Protocol string
	Port     int32
}

// clashes says whether two Pods cannot have the ports on one node.
func (p HostPort) clashes(q HostPort) bool {
	return p.Port == q.Port && p.Protocol == q.Protocol &&
		(p.Address == q.Address || !p.Address.IsValid() || !q.Address.IsValid())
}

// Pod is what a Pod asks of its node.
type Pod struct {
	NodeSelector map[string]string
	Tolerations  []Toleration
	Ports        []HostPort
}

// Node is a candidate.
type Node struct {
	Name   string
	Labels map[string]string
	// Taints are those of the spec and those that its state implies.
	Taints []Taint
	// Ready nodes are preferred to all others, whatever a Pod tolerates.
	Ready bool
	// Pods is the number of Pods on it that have not finished, Ports what they occupy.
	Pods  int
	Ports []HostPort
}

// Add counts a Pod that was given the node.
func (n *Node) Add(p Pod) {
	n.Pods++
	n.Ports = append(n.Ports, p.Ports...)
}

// Place returns the node that suits the Pod best: a Ready one, with the fewest taints that would rather not have it, then
// with the fewest Pods. Where none will do the node is nil, and why is Kubernetes' message.
func Place(p Pod, nodes []*Node) (node *Node, why string) {
	reasons := map[string]int{}
	for _, n := range nodes {
		if reason := p.refusal(n); reason != "" {
			reasons[reason]++
			continue
		}
		if node == nil || p.prefers(n, node) {
			node = n
		}
	}
	if node != nil {
		return node, ""
	}
	return nil, message(len(nodes), reasons)
}

// message is the scheduler's: "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) …".
func message(total int, reasons map[string]int) string {
	if total == 0 {
		return "no nodes available to schedule pods"
	}
	parts := make([]string, 0, len(reasons))
	for _, r := range slices.Sorted(maps.Keys(reasons)) {
		parts = append(parts, fmt.Sprintf("%d node(s) %s", reasons[r], r))
	}
	slices.Sort(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", total, strings.Join(parts, ", "))
}

// refusal is why a node will not do, in the order in which Kubernetes' filters ask; empty if it will.
func (p Pod) refusal(n *Node) string {
	for _, t := range n.Taints {
		if t.Effect == PreferNoSchedule || p.tolerates(t) {
			continue
		}
		if t.Key == TaintUnschedulable {
			return "were unschedulable"
		}
		return fmt.Sprintf("had untolerated taint {%s: %s}", t.Key, t.Value)
	}
	for key, want := range p.NodeSelector {
		if have, ok := n.Labels[key]; !ok || have != want {
			return "didn't match Pod's node affinity/selector"
		}
	}
	for _, want := range p.Ports {
		if slices.ContainsFunc(n.Ports, want.clashes) {
			return "didn't have free ports for the requested pod ports"
		}
	}
	return ""
}

// prefers says whether a suits better than b.
func (p Pod) prefers(a, b *Node) bool {
	if a.Ready != b.Ready {
		return a.Ready
	}
	if x, y := p.disliked(a), p.disliked(b); x != y {
		return x < y
	}
	if a.Pods != b.Pods {
		return a.Pods < b.Pods
	}
	return a.Name < b.Name
}

// disliked counts the taints that would rather not have the Pod.
func (p Pod) disliked(n *Node) int {
	count := 0
	for _, t := range n.Taints {
		if t.Effect == PreferNoSchedule && !p.tolerates(t) {
			count++
		}
	}
	return count
}

func (p Pod) tolerates(t Taint) bool {
	return slices.ContainsFunc(p.Tolerations, func(tol Toleration) bool { return tol.matches(t) })
}

func (tol Toleration) matches(t Taint) bool {
	if tol.Effect != "" && tol.Effect != t.Effect || tol.Key != "" && tol.Key != t.Key {
		return false
	}
	return tol.Exists || tol.Key != "" && tol.Value == t.Value
}

// ParsePod reads what a Pod asks of its node. Other operators of tolerations than Exists and Equal match nothing.
func ParsePod(o *objectv1.Pod) Pod {
	spec := o.GetSpec()
	p := Pod{NodeSelector: spec.GetNodeSelector()}
	for _, t := range spec.GetTolerations() {
		tol := Toleration{Key: t.GetKey(), Value: t.GetValue(), Effect: t.GetEffect()}
		switch t.GetOperator() {
		case "Exists":
			tol.Exists = true
		case "", "Equal":
		default:
			continue
		}
		p.Tolerations = append(p.Tolerations, tol)
	}
	for _, list := range [][]*objectv1.Container{sidecars(spec.GetInitContainers()), spec.GetContainers()} {
		for _, c := range list {
			for _, port := range c.GetPorts() {
				if port.GetHostPort() != 0 {
					p.Ports = append(p.Ports, hostPort(port))
				}
			}
		}
	}
	return p
}

// sidecars are the init containers that keep running.
func sidecars(list []*objectv1.Container) []*objectv1.Container {
	var out []*objectv1.Container
	for _, c := range list {
		if c.GetRestartPolicy() == "Always" {
			out = append(out, c)
		}
	}
	return out
}

func hostPort(port *objectv1.ContainerPort) HostPort {
	out := HostPort{Protocol: port.GetProtocol(), Port: port.GetHostPort()}
	if out.Protocol == "" {
		out.Protocol = "TCP"
	}
	if a, err := netip.ParseAddr(port.GetHostIp()); err == nil && !a.IsUnspecified() {
		out.Address = a.Unmap()
	}
	return out
}

// ParseNode reads a candidate, without its Pods.
func ParseNode(o *objectv1.Node) *Node {
	n := &Node{Name: o.GetMetadata().GetName(), Labels: o.GetMetadata().GetLabels()}
	for _, t := range o.GetSpec().GetTaints() {
		n.Taints = append(n.Taints, Taint{t.GetKey(), t.GetValue(), t.GetEffect()})
	}
	if o.GetSpec().GetUnschedulable() {
		n.imply(TaintUnschedulable)
	}
	switch readiness(o) {
	case "True":
		n.Ready = true
	case "Unknown":
		n.imply(TaintUnreachable)
	default:
		n.imply(TaintNotReady)
	}
	return n
}

// imply adds a taint of the node's state, unless the spec has it already.
func (n *Node) imply(key string) {
	t := Taint{Key: key, Effect: NoSchedule}
	if !slices.Contains(n.Taints, t) {
		n.Taints = append(n.Taints, t)
	}
}

// readiness is the status of the Ready condition; empty where there is none.
func readiness(o *objectv1.Node) string {
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c.GetStatus()
		}
	}
	return ""
}
