// Package planner holds the cluster service's World and plans from it. In: records and events of the store. Out: the Pods
// of each node, and the writes that the World lacks: nodes for Pods, the condition of Pods that no node suits, the end of
// Pods whose Namespace ends, and the unreadiness of Pods whose node is dead. It must not choose nodes itself, which is
// package sched's, and it must not judge which nodes are alive: their conditions say so.
package planner

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/liveness"
	"podwire.dev/services/cluster/internal/sched"
)

// The store's kinds that the World is made of. Cluster reads every kind that lives in a Namespace, to know when one is
// empty; but for Secrets, which only ingress sees and deletes.
const (
	KindNamespace     = "namespaces"
	KindNode          = feed.KindNode
	KindPod           = "pods"
	KindService       = "services"
	KindEndpointSlice = "endpointslices.discovery.k8s.io"
	KindPolicy        = "networkpolicies.networking.k8s.io"
	KindIngress       = "ingresses.networking.k8s.io"
	KindBlock         = "addressblocks.ipam.podwire.dev"
)

type podSet map[store.Key]*podEntry

// Planner implements feed.Planner. The feed's goroutine owns it.
type Planner struct {
	now        func() time.Time
	namespaces map[string]store.Record
	nodes      map[string]*nodeEntry
	pods       podSet
	byNode     map[string]podSet
	// unplaced are the Pods that wait for a node, lost those whose node died and whose status is from before, marked those
	// that are being deleted.
	unplaced, lost, marked podSet
	// content are the objects of each Namespace.
	content map[string]map[store.Key]struct{}
	blocks  map[string]block
	// dirty are the nodes whose Pods changed since the last plan.
	dirty map[string]bool
	// fault is what made a Pod no row; Plan returns it.
	fault error
}

// nodeEntry is one Node.
type nodeEntry struct {
	rec store.Record
	obj *objectv1.Node
	// died is the change that declared it dead; zero while it is not.
	died store.Cause
	// view is the node as a candidate, with its Pods counted; nil where it has to be counted anew.
	view *sched.Node
}

// podEntry is one Pod.
type podEntry struct {
	rec  store.Record
	obj  *objectv1.Pod
	asks sched.Pod
	row  nodestate.Workload
}

// block is one AddressBlock.
type block struct {
	prefix netip.Prefix
	// node or member is who holds it, the other is empty; both of a block that is cut for members.
	node, member string
}

// New makes a Planner with an empty World. now stamps the conditions that it derives.
func New(now func() time.Time) *Planner {
	p := &Planner{now: now}
	p.Reset()
	return p
}

// Reset implements feed.Planner.
func (p *Planner) Reset() {
	*p = Planner{
		now: p.now, namespaces: map[string]store.Record{}, nodes: map[string]*nodeEntry{},
		pods: podSet{}, byNode: map[string]podSet{}, unplaced: podSet{}, lost: podSet{}, marked: podSet{},
		content: map[string]map[store.Key]struct{}{}, blocks: map[string]block{}, dirty: map[string]bool{},
	}
}

// Put implements feed.Planner.
func (p *Planner) Put(rec store.Record) {
	if ns := rec.Key.Namespace; ns != "" {
		if p.content[ns] == nil {
			p.content[ns] = map[store.Key]struct{}{}
		}
		p.content[ns][rec.Key] = struct{}{}
	}
	switch o := rec.Object.(type) {
	case *objectv1.Namespace:
		p.namespaces[rec.Key.Name] = rec
	case *objectv1.Node:
		p.putNode(rec, o)
	case *objectv1.Pod:
		p.putPod(rec, o)
	case *objectv1.AddressBlock:
		// One that does not parse holds nothing: ipam is its sole writer, and writes what parses.
		if prefix, err := netip.ParsePrefix(o.GetSpec().GetCidr()); err == nil {
			p.blocks[rec.Key.Name] = block{prefix, o.GetSpec().GetNode(), o.GetSpec().GetMember()}
		}
	}
}

// Delete implements feed.Planner.
func (p *Planner) Delete(ev store.Event) {
	if ns := ev.Key.Namespace; ns != "" {
		delete(p.content[ns], ev.Key)
		if len(p.content[ns]) == 0 {
			delete(p.content, ns)
		}
	}
	switch ev.Key.Kind {
	case KindNamespace:
		delete(p.namespaces, ev.Key.Name)
	case KindNode:
		delete(p.nodes, ev.Key.Name)
	case KindPod:
		p.dropPod(ev.Key)
	case KindBlock:
		delete(p.blocks, ev.Key.Name)
	}
}

func (p *Planner) putNode(rec store.Record, o *objectv1.Node) {
	next := &nodeEntry{rec: rec, obj: o}
	before := p.nodes[rec.Key.Name]
	p.nodes[rec.Key.Name] = next
	pods := p.byNode[rec.Key.Name]
	switch {
	case !isDead(o):
		for key := range pods {
			delete(p.lost, key)
		}
	case before != nil && before.died != (store.Cause{}):
		next.died = before.died
	default:
		next.died = store.Cause{Revision: rec.Revision, Traceparent: rec.Traceparent}
		maps.Copy(p.lost, pods)
	}
}

// readyCondition is the condition by which cluster says whether a node is alive.
func readyCondition(o *objectv1.Node) *objectv1.NodeCondition {
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetType() == liveness.ConditionReady {
			return c
		}
	}
	return nil
}

func isDead(o *objectv1.Node) bool {
	c := readyCondition(o)
	return c.GetStatus() == "Unknown" && c.GetReason() == liveness.ReasonDead
}

func (p *Planner) putPod(rec store.Record, o *objectv1.Pod) {
	row, err := workloadOf(o)
	if err != nil {
		p.fault = errs.Wrap(err, "planner: %s", rec.Key)
		return
	}
	next := &podEntry{rec: rec, obj: o, asks: sched.ParsePod(o), row: row}
	before, lost := p.pods[rec.Key], false
	node := p.nodes[o.GetSpec().GetNodeName()]
	switch {
	case before != nil && p.lost[rec.Key] != nil:
		// A new status is the agent's own, or the one that was derived here: both end the matter.
		lost = before.rec.UID() == rec.UID() && proto.Equal(before.obj.GetStatus(), o.GetStatus())
	case before == nil && node != nil:
		lost = rec.Revision < node.died.Revision
	}
	if before == nil || before.row != row {
		p.dirty[o.GetSpec().GetNodeName()] = true
	}
	p.dropIndex(rec.Key, before)
	p.pods[rec.Key] = next
	if lost {
		p.lost[rec.Key] = next
	}
	if o.GetMetadata().GetDeletionTimestamp() != nil {
		p.marked[rec.Key] = next
	}
	name := o.GetSpec().GetNodeName()
	if name == "" {
		if waits(o) {
			p.unplaced[rec.Key] = next
		}
		return
	}
	if p.byNode[name] == nil {
		p.byNode[name] = podSet{}
	}
	p.byNode[name][rec.Key] = next
	p.recount(name)
}

func (p *Planner) dropPod(key store.Key) {
	if e := p.pods[key]; e != nil {
		p.dropIndex(key, e)
		delete(p.pods, key)
		p.dirty[e.obj.GetSpec().GetNodeName()] = true
	}
}

// dropIndex takes a Pod out of every set but that of all Pods.
func (p *Planner) dropIndex(key store.Key, e *podEntry) {
	delete(p.unplaced, key)
	delete(p.lost, key)
	delete(p.marked, key)
	if e == nil {
		return
	}
	name := e.obj.GetSpec().GetNodeName()
	delete(p.byNode[name], key)
	if len(p.byNode[name]) == 0 {
		delete(p.byNode, name)
	}
	p.recount(name)
}

func (p *Planner) recount(node string) {
	if n := p.nodes[node]; n != nil {
		n.view = nil
	}
}

// workloadOf is the row of a Pod: what its agent needs to know, without what changes with every status.
func workloadOf(o *objectv1.Pod) (nodestate.Workload, error) {
	meta := o.GetMetadata()
	wanted := proto.Clone(o).(*objectv1.Pod)
	wanted.Status = nil
	wanted.Metadata.ResourceVersion, wanted.Metadata.ManagedFields = "", nil
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(wanted)
	if err != nil {
		return nodestate.Workload{}, errs.WrapAs(errs.Internal, err, "encode")
	}
	return nodestate.Workload{UID: meta.GetUid(), Namespace: meta.GetNamespace(), Name: meta.GetName(), Pod: string(body)}, nil
}

// Plan implements feed.Planner.
func (p *Planner) Plan(store.Revision) (feed.Plan, error) {
	if p.fault != nil {
		return feed.Plan{}, p.fault
	}
	plan := feed.Plan{PerNode: map[string]*nodestate.Slice{}, Writes: p.writes()}
	for node := range p.dirty {
		if node == "" {
			continue
		}
		slice := nodestate.NewSlice()
		for _, e := range p.byNode[node] {
			slice.Upsert(e.row)
		}
		plan.PerNode[node] = slice
	}
	clear(p.dirty)
	return plan, nil
}

// Nodes are the Nodes of the World by name. Inside of feed.Do only.
func (p *Planner) Nodes() []store.Record {
	out := make([]store.Record, 0, len(p.nodes))
	for _, name := range slices.Sorted(maps.Keys(p.nodes)) {
		out = append(out, p.nodes[name].rec)
	}
	return out
}

// Ending is a Namespace that is being deleted.
type Ending struct {
	Rec store.Record
	// Content is how many objects it still has.
	Content int
}

// Endings are the Namespaces that are Terminating, by name. Inside of feed.Do only.
func (p *Planner) Endings() []Ending {
	var out []Ending
	for _, name := range slices.Sorted(maps.Keys(p.namespaces)) {
		if rec := p.namespaces[name]; ends(rec) {
			out = append(out, Ending{rec, len(p.content[name])})
		}
	}
	return out
}

func ends(rec store.Record) bool {
	return rec.Object != nil && rec.Object.GetMetadata().GetDeletionTimestamp() != nil
}

// Owns says whether an address is one that a node may report: in a block that it leases, for a Pod with hostNetwork one
// of its own. Inside of feed.Do only.
func (p *Planner) Owns(node string, hostNetwork HostNetwork, addr netip.Addr) bool {
	if hostNetwork {
		return slices.Contains(NodeAddresses(p.nodes[node].object()), addr)
	}
	for _, b := range p.blocks {
		if b.node == node && node != "" && b.prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// HostNetwork says that a Pod lives in the network namespace of its node.
type HostNetwork bool

func (n *nodeEntry) object() *objectv1.Node {
	if n == nil {
		return nil
	}
	return n.obj
}

// NodeAddresses are the IP addresses that a Node reports.
func NodeAddresses(o *objectv1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range o.GetStatus().GetAddresses() {
		if addr, err := netip.ParseAddr(a.GetAddress()); err == nil {
			out = append(out, addr)
		}
	}
	return out
}
