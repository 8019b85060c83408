// Package planner holds the svcproxy service's World and plans from it: it gives package lb the objects of the store, and
// turns what lb wants into writes and rows. In: records and events. Out: the change of the service table, which is the
// same for every node, and the derived writes: EndpointSlices, the announcers of load balancer addresses, and the
// deletions of what belongs to a Namespace that ends. It must not judge Services itself, nor write anything.
package planner

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
)

// The store's kinds that the World is made of.
const (
	KindNamespace = "namespaces"
	KindService   = "services"
	KindSlice     = "endpointslices.discovery.k8s.io"
	KindPod       = "pods"
	KindClaim     = "addressclaims.ipam.podwire.dev"
)

// Planner implements feed.Planner. The feed's goroutine owns it.
type Planner struct {
	now   func() time.Time
	world *lb.World
	// services and slices are the records that derived writes start from, by namespace and name.
	services, slices records
	namespaces       map[string]bool // those that may get new content
	// ending are the Namespaces that are Terminating, with the change that said so.
	ending map[string]store.Cause
	claims map[string]store.Record // by name
	// causes are, for each Service that lacks a write, the earliest change that asked for it.
	causes map[lb.Ref]store.Cause
	// writes are what each Service lacks.
	writes map[lb.Ref][]feed.Write
	// rows are what each Service has of the table, and owners which Service has a row.
	rows   map[lb.Ref]map[nodestate.Ref]nodestate.Row
	owners map[nodestate.Ref]lb.Ref
}

type records map[string]map[string]store.Record

func (r records) put(rec store.Record) {
	if r[rec.Key.Namespace] == nil {
		r[rec.Key.Namespace] = map[string]store.Record{}
	}
	r[rec.Key.Namespace][rec.Key.Name] = rec
}

func (r records) remove(key store.Key) {
	delete(r[key.Namespace], key.Name)
	if len(r[key.Namespace]) == 0 {
		delete(r, key.Namespace)
	}
}

func (r records) get(ref lb.Ref) (store.Record, bool) {
	rec, ok := r[ref.Namespace][ref.Name]
	return rec, ok
}

// New makes a Planner with an empty World. now is the clock of creationTimestamps.
func New(now func() time.Time) *Planner {
	p := &Planner{now: now}
	p.Reset()
	return p
}

// World is what the lookup api asks, inside feed.Do only.
func (p *Planner) World() *lb.World { return p.world }

// Reset implements feed.Planner.
func (p *Planner) Reset() {
	*p = Planner{
		now: p.now, world: lb.NewWorld(), services: records{}, slices: records{}, namespaces: map[string]bool{},
		ending: map[string]store.Cause{}, claims: map[string]store.Record{}, causes: map[lb.Ref]store.Cause{},
		writes: map[lb.Ref][]feed.Write{}, rows: map[lb.Ref]map[nodestate.Ref]nodestate.Row{},
		owners: map[nodestate.Ref]lb.Ref{},
	}
}

// Put implements feed.Planner.
func (p *Planner) Put(rec store.Record) {
	cause := store.Cause{Revision: rec.Revision, Traceparent: rec.Traceparent}
	switch o := rec.Object.(type) {
	case *objectv1.Namespace:
		name := rec.Key.Name
		delete(p.ending, name)
		open := o.GetMetadata().GetDeletionTimestamp() == nil
		if open && !p.namespaces[name] {
			p.replanAll(name, cause)
		}
		if p.namespaces[name] = open; !open {
			p.ending[name] = cause
		}
	case *objectv1.Service:
		p.services.put(rec)
		p.world.SetService(lb.ParseService(o))
	case *objectv1.EndpointSlice:
		p.slices.put(rec)
		p.world.SetSlice(lb.ParseSlice(o))
	case *objectv1.Pod:
		if pod, ok := lb.ParsePod(o); ok {
			p.world.SetPod(pod)
		} else {
			p.world.DeletePod(lb.Ref{Namespace: rec.Key.Namespace, Name: rec.Key.Name})
		}
	case *objectv1.Node:
		p.world.SetNode(lb.ParseNode(o))
	case *objectv1.AddressClaim:
		p.claims[rec.Key.Name] = rec
	}
	p.blame(cause)
}

// Delete implements feed.Planner.
func (p *Planner) Delete(ev store.Event) {
	ref := lb.Ref{Namespace: ev.Key.Namespace, Name: ev.Key.Name}
	switch ev.Key.Kind {
	case KindNamespace:
		delete(p.namespaces, ev.Key.Name)
		delete(p.ending, ev.Key.Name)
	case KindService:
		p.services.remove(ev.Key)
		p.world.DeleteService(ref)
	case KindSlice:
		p.slices.remove(ev.Key)
		p.world.DeleteSlice(ref)
	case KindPod:
		p.world.DeletePod(ref)
	case feed.KindNode:
		p.world.DeleteNode(ev.Key.Name)
	case KindClaim:
		delete(p.claims, ev.Key.Name)
	}
	p.blame(store.Cause{Revision: ev.Revision, Traceparent: ev.Traceparent})
}

// blame records what made Services dirty; what lacks a write already keeps its earlier cause.
func (p *Planner) blame(cause store.Cause) {
	for _, ref := range p.world.Dirty() {
		if _, ok := p.causes[ref]; !ok {
			p.causes[ref] = cause
		}
		p.writes[ref] = nil // to be planned
	}
}

// replanAll has the Services of a Namespace planned that may get content now.
func (p *Planner) replanAll(namespace string, cause store.Cause) {
	for name := range p.services[namespace] {
		ref := lb.Ref{Namespace: namespace, Name: name}
		if _, ok := p.causes[ref]; !ok {
			p.causes[ref] = cause
		}
		p.writes[ref] = nil
	}
}

// Plan implements feed.Planner.
func (p *Planner) Plan(at store.Revision) (feed.Plan, error) {
	var plan feed.Plan
	refs := slices.SortedFunc(maps.Keys(p.writes), lb.Ref.Compare)
	gone := map[nodestate.Ref]bool{}
	for _, ref := range refs {
		if p.writes[ref] == nil {
			p.replan(ref, at, &plan.Shared, gone)
		}
		plan.Writes = append(plan.Writes, p.writes[ref]...)
		if len(p.writes[ref]) == 0 {
			delete(p.writes, ref)
			delete(p.causes, ref)
		}
	}
	for ref := range gone {
		if _, taken := p.owners[ref]; !taken {
			plan.Shared.Removes = append(plan.Shared.Removes, ref)
		}
	}
	if len(p.ending) > 0 {
		plan.Writes = p.end(plan.Writes)
	}
	return plan, nil
}

// replan computes one Service anew.
func (p *Planner) replan(ref lb.Ref, at store.Revision, delta *nodestate.Delta, gone map[nodestate.Ref]bool) {
	plan := p.world.Replan(ref)
	p.writes[ref] = p.writesOf(ref, plan, at)
	if plan.Partial {
		p.patch(ref, plan, delta, gone)
		return
	}
	next := make(map[nodestate.Ref]nodestate.Row, len(plan.Rows))
	for _, row := range plan.Rows {
		name := nodestate.RefOf(row)
		next[name] = row
		if old, ok := p.rows[ref][name]; !ok || p.owners[name] != ref || !nodestate.Equal(old, row) {
			delta.Upserts = append(delta.Upserts, row)
			p.owners[name] = ref
		}
	}
	for name := range p.rows[ref] {
		if _, ok := next[name]; !ok && p.owners[name] == ref {
			delete(p.owners, name)
			gone[name] = true
		}
	}
	if p.rows[ref] = next; len(next) == 0 {
		delete(p.rows, ref)
	}
}

// patch changes those rows of a Service that a partial plan names.
func (p *Planner) patch(ref lb.Ref, plan lb.Plan, delta *nodestate.Delta, gone map[nodestate.Ref]bool) {
	rows := p.rows[ref]
	for _, name := range plan.Gone {
		if _, had := rows[name]; had && p.owners[name] == ref {
			delete(p.owners, name)
			gone[name] = true
		}
		delete(rows, name)
	}
	for _, row := range plan.Rows {
		name := nodestate.RefOf(row)
		if old, ok := rows[name]; ok && p.owners[name] == ref && nodestate.Equal(old, row) {
			continue
		}
		if rows == nil {
			rows = map[nodestate.Ref]nodestate.Row{}
		}
		delta.Upserts = append(delta.Upserts, row)
		rows[name], p.owners[name] = row, ref
	}
	if p.rows[ref] = rows; len(rows) == 0 {
		delete(p.rows, ref)
	}
}

// writesOf are the derived writes of one Service.
func (p *Planner) writesOf(ref lb.Ref, plan lb.Plan, at store.Revision) []feed.Write {
	cause := p.causes[ref]
	writes := []feed.Write{}
	for _, x := range plan.Stale {
		if rec, ok := p.slices.get(x); ok {
			writes = append(writes, feed.Write{Key: rec.Key, Base: &rec, Cause: cause})
		}
	}
	if !p.namespaces[ref.Namespace] {
		return writes // it ends: nothing is made in it any more
	}
	for i := range plan.Writes {
		writes = append(writes, p.sliceWrite(&plan.Writes[i], cause))
	}
	rec, ok := p.services.get(ref)
	if ok && plan.Move {
		o := proto.Clone(rec.Object).(*objectv1.Service)
		announce(o.GetMetadata(), plan.Announcer, at)
		writes = append(writes, feed.Write{Key: rec.Key, Object: o, Base: &rec, Cause: cause})
	}
	return writes
}

// announce writes the announcer of a Service, and the revision of the choice as its epoch.
func announce(meta *objectv1.ObjectMeta, node string, at store.Revision) {
	if node == "" {
		delete(meta.Annotations, lb.AnnotationAnnouncer)
		delete(meta.Annotations, lb.AnnotationEpoch)
		return
	}
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	meta.Annotations[lb.AnnotationAnnouncer] = node
	meta.Annotations[lb.AnnotationEpoch] = strconv.FormatInt(int64(at), 10)
}

func (p *Planner) sliceWrite(x *lb.Slice, cause store.Cause) feed.Write {
	key := store.Key{Kind: KindSlice, Namespace: x.Namespace, Name: x.Name}
	if rec, ok := p.slices.get(x.Ref); ok {
		o := proto.Clone(rec.Object).(*objectv1.EndpointSlice)
		o.Metadata.Generation++
		x.Fill(o)
		return feed.Write{Key: key, Object: o, Base: &rec, Cause: cause}
	}
	o := &objectv1.EndpointSlice{Metadata: &objectv1.ObjectMeta{
		Namespace: x.Namespace, Name: x.Name, GenerateName: x.Service + "-", Uid: uuid.NewString(), Generation: 1,
		CreationTimestamp: timestamppb.New(p.now().Truncate(time.Second)),
	}}
	x.Fill(o)
	return feed.Write{Key: key, Object: o, Cause: cause}
}

// end adds to the writes the deletions of the Services and slices whose Namespace is Terminating.
func (p *Planner) end(writes []feed.Write) []feed.Write {
	writes = slices.DeleteFunc(writes, func(w feed.Write) bool {
		_, ends := p.ending[w.Key.Namespace]
		return ends
	})
	for _, ns := range slices.Sorted(maps.Keys(p.ending)) {
		for _, of := range []records{p.services, p.slices} {
			for _, name := range slices.Sorted(maps.Keys(of[ns])) {
				rec := of[ns][name]
				writes = append(writes, feed.Write{Key: rec.Key, Base: &rec, Cause: p.ending[ns]})
			}
		}
	}
	return writes
}
