// Package planner holds the policy service's World and plans from it: it turns records of the store into the terms of
// package ruleset, and compiles the nodes that a change concerns. In: records and events. Out: the slices of those nodes,
// and the deletions of policies whose Namespace ends. It must not judge policies itself.
package planner

import (
	"net/netip"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/policy/internal/ruleset"
)

// The store's kinds that the World is made of.
const (
	KindNamespace = "namespaces"
	KindPod       = "pods"
	KindPolicy    = "networkpolicies.networking.k8s.io"
)

// Planner implements feed.Planner. The feed's goroutine owns it.
type Planner struct {
	world    *ruleset.World
	policies map[store.Key]store.Record
	// ending are the Namespaces that are Terminating, with the change that said so.
	ending map[string]store.Cause
}

// New makes a Planner with an empty World.
func New() *Planner {
	p := &Planner{}
	p.Reset()
	return p
}

// World is what the verdict api asks, inside feed.Do only.
func (p *Planner) World() *ruleset.World { return p.world }

// Reset implements feed.Planner.
func (p *Planner) Reset() {
	*p = Planner{
		world: ruleset.NewWorld(), policies: map[store.Key]store.Record{},
		ending: map[string]store.Cause{},
	}
}

// Put implements feed.Planner.
func (p *Planner) Put(rec store.Record) {
	switch o := rec.Object.(type) {
	case *objectv1.Namespace:
		p.world.SetNamespace(rec.Key.Name, o.GetMetadata().GetLabels())
		_, known := p.ending[rec.Key.Name]
		switch ends := o.GetMetadata().GetDeletionTimestamp() != nil || o.GetStatus().GetPhase() == "Terminating"; {
		case !ends:
			delete(p.ending, rec.Key.Name)
		case !known: // a later change of the Namespace is not why its policies end
			p.ending[rec.Key.Name] = store.Cause{Revision: rec.Revision, Traceparent: rec.Traceparent}
		}
	case *objectv1.Pod:
		p.world.SetPod(podOf(o))
	case *objectv1.NetworkPolicy:
		p.policies[rec.Key] = rec
		p.world.SetPolicy(ruleset.ParsePolicy(o))
	case *objectv1.Node:
		p.world.SetNode(rec.Key.Name, addressesOf(o))
	}
}

// Delete implements feed.Planner.
func (p *Planner) Delete(ev store.Event) {
	ref := ruleset.Ref{Namespace: ev.Key.Namespace, Name: ev.Key.Name}
	switch ev.Key.Kind {
	case KindNamespace:
		p.world.DeleteNamespace(ev.Key.Name)
		delete(p.ending, ev.Key.Name)
	case KindPod:
		p.world.DeletePod(ref)
	case KindPolicy:
		delete(p.policies, ev.Key)
		p.world.DeletePolicy(ref)
	case feed.KindNode:
		p.world.DeleteNode(ev.Key.Name)
	}
}

// Plan implements feed.Planner. A node whose pods are gone, or that never had any, holds an empty slice.
func (p *Planner) Plan(store.Revision) (feed.Plan, error) {
	plan := feed.Plan{PerNode: map[string]*nodestate.Slice{}, Writes: p.endings()}
	for _, node := range p.world.Dirty() {
		plan.PerNode[node] = p.world.Compile(node)
	}
	return plan, nil
}

// endings are the deletions of the policies whose Namespace is Terminating.
func (p *Planner) endings() []feed.Write {
	if len(p.ending) == 0 {
		return nil
	}
	var writes []feed.Write
	for key, rec := range p.policies {
		if cause, ok := p.ending[key.Namespace]; ok {
			writes = append(writes, feed.Write{Key: key, Base: &rec, Cause: cause})
		}
	}
	return writes
}

// podOf reads what policy needs to know of a Pod.
func podOf(o *objectv1.Pod) ruleset.Pod {
	meta, spec, status := o.GetMetadata(), o.GetSpec(), o.GetStatus()
	pod := ruleset.Pod{
		Ref: ruleset.Ref{Namespace: meta.GetNamespace(), Name: meta.GetName()}, UID: meta.GetUid(),
		Node: spec.GetNodeName(), Labels: meta.GetLabels(), HostNetwork: spec.GetHostNetwork(),
		Finished: status.GetPhase() == "Succeeded" || status.GetPhase() == "Failed",
	}
	for _, ip := range status.GetPodIps() {
		// An address that does not parse belongs to nobody: the pod is no peer by it.
		if a, err := netip.ParseAddr(ip.GetIp()); err == nil {
			pod.Addresses = append(pod.Addresses, a)
		}
	}
	for _, c := range spec.GetContainers() {
		pod.Ports = append(pod.Ports, namedPorts(c)...)
	}
	for _, c := range spec.GetInitContainers() {
		if c.GetRestartPolicy() == "Always" { // a sidecar, which serves as long as the pod does (KEP-753)
			pod.Ports = append(pod.Ports, namedPorts(c)...)
		}
	}
	return pod
}

func namedPorts(c *objectv1.Container) []ruleset.NamedPort {
	var out []ruleset.NamedPort
	for _, port := range c.GetPorts() {
		protocol, ok := nodestate.ParseProtocol(port.GetProtocol())
		if ok && port.GetName() != "" {
			out = append(out, ruleset.NamedPort{Name: port.GetName(), Protocol: protocol, Number: uint16(port.GetContainerPort())})
		}
	}
	return out
}

func addressesOf(n *objectv1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.GetStatus().GetAddresses() {
		if addr, err := netip.ParseAddr(a.GetAddress()); err == nil { // others are names
			out = append(out, addr)
		}
	}
	return out
}
