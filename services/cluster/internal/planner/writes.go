package planner

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/liveness"
	"podwire.dev/services/cluster/internal/sched"
)

// Conditions of a Pod that are derived here, with their reasons ("Pod Lifecycle").
const (
	conditionScheduled    = "PodScheduled"
	conditionReady        = "Ready"
	reasonUnschedulable   = "Unschedulable"
	reasonSchedulingGated = "SchedulingGated"
	messageGated          = "Scheduling is blocked due to non-empty scheduling gates"
)

// waits says whether a Pod is this scheduler's to place.
func waits(o *objectv1.Pod) bool {
	name := o.GetSpec().GetSchedulerName()
	return !admission.Finished(o) && (name == "" || name == admission.DefaultScheduler)
}

// drafts are the derived writes of a plan: at most one per object, whatever asks for it.
type drafts map[store.Key]*feed.Write

// of returns the Pod to be changed on behalf of a cause.
func (d drafts) of(e *podEntry, cause store.Cause) *objectv1.Pod {
	w := d[e.rec.Key]
	if w == nil {
		w = &feed.Write{Key: e.rec.Key, Object: proto.Clone(e.obj).(*objectv1.Pod), Base: &e.rec, Cause: cause}
		d[e.rec.Key] = w
	}
	if cause.Revision < w.Cause.Revision {
		w.Cause = cause // the watermark waits for the older one, and so for both
	}
	return w.Object.(*objectv1.Pod)
}

func (d drafts) remove(e *podEntry, cause store.Cause) {
	d[e.rec.Key] = &feed.Write{Key: e.rec.Key, Base: &e.rec, Cause: cause}
}

// writes are the derived writes that the World lacks, by key.
func (p *Planner) writes() []feed.Write {
	d := drafts{}
	p.tellLost(d)
	p.place(d)
	p.endPods(d)
	out := make([]feed.Write, 0, len(d))
	for _, w := range d {
		out = append(out, *w)
	}
	slices.SortFunc(out, func(a, b feed.Write) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return out
}

// tellLost makes the Pods of dead nodes unready, so that they leave their endpoints. Until the agent says otherwise.
func (p *Planner) tellLost(d drafts) {
	for _, e := range p.lost {
		node := p.nodes[e.obj.GetSpec().GetNodeName()]
		ready := podCondition(e.obj, conditionReady)
		if node == nil || ready == nil || ready.GetStatus() == "False" || admission.Finished(e.obj) {
			continue
		}
		setCondition(d.of(e, node.died), &objectv1.PodCondition{
			Type: conditionReady, Status: "False", Reason: liveness.ReasonDead,
			Message: "node " + node.rec.Key.Name + " is dead", LastTransitionTime: readyCondition(node.obj).GetLastTransitionTime(),
		})
	}
}

// place gives the Pods that wait a node each, oldest first, or the reason why there is none.
func (p *Planner) place(d drafts) {
	if len(p.unplaced) == 0 {
		return
	}
	waiting := slices.SortedFunc(maps.Values(p.unplaced), func(a, b *podEntry) int {
		return cmp.Or(cmp.Compare(a.rec.CreateRevision, b.rec.CreateRevision), strings.Compare(a.rec.Key.String(), b.rec.Key.String()))
	})
	nodes := p.candidates()
	for _, e := range waiting {
		if e.obj.GetMetadata().GetDeletionTimestamp() != nil || ends(p.namespaces[e.rec.Key.Namespace]) {
			continue
		}
		cause := store.Cause{Revision: e.rec.Revision, Traceparent: e.rec.Traceparent}
		if len(e.obj.GetSpec().GetSchedulingGates()) > 0 {
			p.refuse(d, e, cause, reasonSchedulingGated, messageGated)
			continue
		}
		node, why := sched.Place(e.asks, nodes)
		if node == nil {
			p.refuse(d, e, cause, reasonUnschedulable, why)
			continue
		}
		node.Add(e.asks)
		o := d.of(e, cause)
		o.Spec.NodeName = node.Name
		o.Metadata.Generation++
		setCondition(o, &objectv1.PodCondition{
			Type: conditionScheduled, Status: "True", LastTransitionTime: p.stamp(),
		})
	}
}

// refuse says why a Pod has no node, unless that is said already.
func (p *Planner) refuse(d drafts, e *podEntry, cause store.Cause, reason, message string) {
	c := podCondition(e.obj, conditionScheduled)
	if c.GetStatus() == "False" && c.GetReason() == reason && c.GetMessage() == message {
		return
	}
	setCondition(d.of(e, cause), &objectv1.PodCondition{
		Type: conditionScheduled, Status: "False", Reason: reason, Message: message, LastTransitionTime: p.stamp(),
	})
}

// candidates are the Nodes with their Pods counted, to be changed freely.
func (p *Planner) candidates() []*sched.Node {
	out := make([]*sched.Node, 0, len(p.nodes))
	for _, name := range slices.Sorted(maps.Keys(p.nodes)) {
		n := p.nodes[name]
		if n.obj.GetMetadata().GetDeletionTimestamp() != nil {
			continue
		}
		if n.view == nil {
			n.view = sched.ParseNode(n.obj)
			for _, e := range p.byNode[name] {
				if !admission.Finished(e.obj) {
					n.view.Add(e.asks)
				}
			}
		}
		view := *n.view
		view.Ports = slices.Clip(view.Ports)
		out = append(out, &view)
	}
	return out
}

// endPods deletes the Pods of Namespaces that end, as a caller would, and removes those that nobody is left to stop:
// their node's object is gone, and with it the agent's right to do it.
func (p *Planner) endPods(d drafts) {
	for name, ns := range p.namespaces {
		if !ends(ns) {
			continue
		}
		for key := range p.content[name] {
			if e := p.pods[key]; e != nil && p.marked[key] == nil {
				p.deletePod(d, e, store.Cause{Revision: ns.Revision, Traceparent: ns.Traceparent})
			}
		}
	}
	for _, e := range p.marked {
		if p.nodes[e.obj.GetSpec().GetNodeName()] == nil && len(e.obj.GetMetadata().GetFinalizers()) == 0 {
			d.remove(e, store.Cause{Revision: e.rec.Revision, Traceparent: e.rec.Traceparent})
		}
	}
}

func (p *Planner) deletePod(d drafts, e *podEntry, cause store.Cause) {
	seconds := admission.GracePeriod(e.obj, nil)
	if seconds == 0 && len(e.obj.GetMetadata().GetFinalizers()) == 0 {
		d.remove(e, cause)
		return
	}
	o := d.of(e, cause)
	o.Metadata.DeletionTimestamp = timestamppb.New(p.now().Add(time.Duration(seconds) * time.Second).Truncate(time.Second))
	o.Metadata.DeletionGracePeriodSeconds = &seconds
	o.Metadata.Generation++
}

func (p *Planner) stamp() *timestamppb.Timestamp {
	return timestamppb.New(p.now().Truncate(time.Second))
}

func podCondition(o *objectv1.Pod, typ string) *objectv1.PodCondition {
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetType() == typ {
			return c
		}
	}
	return nil
}

// setCondition puts a condition in the place of the one of its type. The time of the last transition stays where the
// status does.
func setCondition(o *objectv1.Pod, next *objectv1.PodCondition) {
	if o.Status == nil {
		o.Status = &objectv1.PodStatus{Phase: admission.Pending}
	}
	for i, c := range o.Status.Conditions {
		if c.GetType() != next.GetType() {
			continue
		}
		if c.GetStatus() == next.GetStatus() {
			next.LastTransitionTime = c.GetLastTransitionTime()
		}
		o.Status.Conditions[i] = next
		return
	}
	o.Status.Conditions = append(o.Status.Conditions, next)
}
