// Package proxytest is the svcproxy service in one goroutine, for tests: a store in memory, an ipam in memory, and a loop
// that follows the store, plans, and commits what is derived until nothing is lacking.
//
// In: objects and calls of a test. Out: what is stored, what nodes would hold. It must not decide anything of its own.
package proxytest

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	"podwire.dev/services/svcproxy/internal/api"
	"podwire.dev/services/svcproxy/internal/lb"
	"podwire.dev/services/svcproxy/internal/planner"
)

// Bench is the service. One goroutine uses it.
type Bench struct {
	T        testing.TB
	Fake     *storefake.Fake
	IPAM     *IPAM
	Alloc    *api.Allocator
	Services *api.Services
	Slices   *api.Slices
	Planner  *planner.Planner
	// Rows is what every node holds.
	Rows *nodestate.Slice
	// Writes are the derived writes that Settle committed.
	Writes []feed.Write

	at store.Revision
}

// New makes a Bench with the Namespaces default and kube-system.
func New(t testing.TB) *Bench {
	fake := storefake.New(store.Kinds{
		planner.KindNamespace: func() store.Object { return &objectv1.Namespace{} },
		planner.KindService:   func() store.Object { return &objectv1.Service{} },
		planner.KindSlice:     func() store.Object { return &objectv1.EndpointSlice{} },
		planner.KindPod:       func() store.Object { return &objectv1.Pod{} },
		planner.KindClaim:     func() store.Object { return &objectv1.AddressClaim{} },
		feed.KindNode:         func() store.Object { return &objectv1.Node{} },
	})
	b := &Bench{
		T: t, Fake: fake, IPAM: NewIPAM(fake.Store), Rows: nodestate.NewSlice(),
		Planner: planner.New(func() time.Time { return time.Unix(1_700_000_000, 0) }),
	}
	b.Alloc = api.NewAllocator(b.IPAM)
	b.Services = api.NewServices(fake.Store, b.Alloc, lb.Families{lb.IPv4, lb.IPv6}, slog.New(slog.DiscardHandler))
	b.Slices = api.NewSlices(fake.Store)
	for _, name := range []string{"default", "kube-system"} {
		b.Store(&objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name}}, planner.KindNamespace)
	}
	return b
}

// Do implements the Asker of handlers: there is one goroutine.
func (b *Bench) Do(_ context.Context, fn func(store.Revision)) error {
	fn(b.at)
	return nil
}

// Ctx is the test's.
func (b *Bench) Ctx() context.Context { return b.T.Context() }

// Store creates an object, or replaces it, as its own service would.
func (b *Bench) Store(o store.Object, kind string) store.Revision {
	b.T.Helper()
	tx := b.Fake.Txn()
	if rec, _, err := b.Fake.Get(b.Ctx(), store.KeyOf(kind, o)); err == nil {
		tx.Update(rec, o)
	} else {
		tx.Create(o, kind)
	}
	rev, err := tx.Commit(b.Ctx())
	if err != nil {
		b.T.Fatal(err)
	}
	return rev
}

// Remove deletes an object.
func (b *Bench) Remove(key store.Key) {
	b.T.Helper()
	rec, _, err := b.Fake.Get(b.Ctx(), key)
	if err != nil {
		b.T.Fatal(err)
	}
	if _, err := b.Fake.Txn().Delete(rec).Commit(b.Ctx()); err != nil {
		b.T.Fatal(err)
	}
}

// first is the revision of the first write to an empty etcd.
const first = 2

// maxRounds bounds how often writes may ask for more writes.
const maxRounds = 8

// Settle follows the store, plans and commits until nothing is lacking, and checks that no row is removed that is not
// there.
func (b *Bench) Settle() {
	b.T.Helper()
	for range maxRounds {
		b.follow()
		plan, err := b.Planner.Plan(b.at)
		if err != nil {
			b.T.Fatal(err)
		}
		b.apply(plan.Shared)
		if len(plan.Writes) == 0 {
			return
		}
		for _, w := range plan.Writes {
			b.commit(w)
		}
	}
	b.T.Fatal("does not settle")
}

// Replan begins a new World from a snapshot, as after a restart, and returns what its rows change.
func (b *Bench) Replan() nodestate.Delta {
	b.T.Helper()
	fresh := planner.New(time.Now)
	for _, kind := range []string{planner.KindSlice, planner.KindPod, planner.KindService, planner.KindNamespace, feed.KindNode, planner.KindClaim} {
		for _, rec := range b.list(kind) {
			fresh.Put(rec)
		}
	}
	plan, err := fresh.Plan(b.at)
	if err != nil || len(plan.Writes) > 0 || len(plan.Shared.Removes) > 0 {
		b.T.Fatalf("a new World writes %v and removes %v: %v", plan.Writes, plan.Shared.Removes, err)
	}
	return nodestate.Diff(b.Rows, nodestate.NewSlice(plan.Shared.Upserts...))
}

func (b *Bench) list(kind string) []store.Record {
	b.T.Helper()
	var out []store.Record
	for batch, err := range b.Fake.Watch(b.Ctx(), store.WatchQuery{From: first}) {
		if err != nil {
			b.T.Fatal(err)
		}
		for _, ev := range batch.Events {
			out = slices.DeleteFunc(out, func(r store.Record) bool { return r.Key == ev.Key })
			if ev.Type == store.Put && ev.Key.Kind == kind {
				out = append(out, ev.Record)
			}
		}
		if batch.Revision >= b.Fake.Revision() {
			return out
		}
	}
	return out
}

func (b *Bench) follow() {
	b.T.Helper()
	if b.at >= b.Fake.Revision() {
		return
	}
	for batch, err := range b.Fake.Watch(b.Ctx(), store.WatchQuery{From: max(b.at+1, first)}) {
		if err != nil {
			b.T.Fatal(err)
		}
		for _, ev := range batch.Events {
			if ev.Type == store.Deleted {
				b.Planner.Delete(ev)
			} else {
				b.Planner.Put(ev.Record)
			}
		}
		if b.at = batch.Revision; b.at >= b.Fake.Revision() {
			return
		}
	}
}

func (b *Bench) apply(d nodestate.Delta) {
	b.T.Helper()
	for _, ref := range d.Removes {
		if _, ok := b.Rows.Get(ref); !ok {
			b.T.Errorf("removes the row %v, which is not there", ref)
		}
	}
	for _, row := range d.Upserts {
		if slices.Contains(d.Removes, nodestate.RefOf(row)) {
			b.T.Errorf("removes and adds the row %v", nodestate.RefOf(row))
		}
	}
	b.Rows.Apply(d)
}

func (b *Bench) commit(w feed.Write) {
	b.T.Helper()
	if w.Cause.Revision == 0 {
		b.T.Errorf("the derived write of %s has no cause", w.Key)
	}
	b.Writes = append(b.Writes, w)
	tx := b.Fake.Txn()
	switch {
	case w.Object == nil:
		tx.Delete(*w.Base)
	case w.Base != nil:
		tx.Update(*w.Base, w.Object)
	default:
		tx.Create(w.Object, w.Key.Kind)
	}
	if _, err := tx.Commit(b.Ctx()); err != nil {
		b.T.Fatalf("derived write of %s: %v", w.Key, err)
	}
}

// Parse reads one manifest; what names no namespace is in default.
func (b *Bench) Parse(text string) store.Object {
	b.T.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		b.T.Fatal(err)
	}
	objects, err := manifest.Parse(kinds, "test.yaml", strings.NewReader(text), manifest.DefaultLimits())
	if err != nil || len(objects) != 1 {
		b.T.Fatalf("%d objects: %v", len(objects), err)
	}
	return objects[0].Message.(store.Object)
}

// Service is a Service called name in default, with the spec of a YAML flow mapping.
func (b *Bench) Service(name, spec string) *objectv1.Service {
	b.T.Helper()
	return b.Parse(fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: default}, spec: %s}", name, spec)).(*objectv1.Service)
}

// Apply applies a Service as a user would, and settles.
func (b *Bench) Apply(name, spec string) *objectv1.Service {
	b.T.Helper()
	resp, err := b.Services.Apply(b.Ctx(), &svcproxyv1.ServiceServiceApplyRequest{Object: b.Service(name, spec)})
	if err != nil {
		b.T.Fatalf("apply %s: %v", name, err)
	}
	b.Settle()
	return resp.GetObject()
}

// ApplyError is the error of an Apply that must fail.
func (b *Bench) ApplyError(name, spec string) error {
	b.T.Helper()
	_, err := b.Services.Apply(b.Ctx(), &svcproxyv1.ServiceServiceApplyRequest{Object: b.Service(name, spec)})
	if err == nil {
		b.T.Fatalf("apply %s %s: accepted", name, spec)
	}
	b.Settle()
	return err
}

// Get reads a Service of default.
func (b *Bench) Get(name string) *objectv1.Service {
	b.T.Helper()
	resp, err := b.Services.Get(b.Ctx(), &svcproxyv1.ServiceServiceGetRequest{Namespace: "default", Name: name})
	if err != nil {
		b.T.Fatal(err)
	}
	return resp.GetObject()
}

// Claims are the values that ipam holds for Services, as pool/value of the owner's name, sorted.
func (b *Bench) Claims() []string {
	b.T.Helper()
	var out []string
	for _, rec := range b.list(planner.KindClaim) {
		spec := rec.Object.(*objectv1.AddressClaim).GetSpec()
		out = append(out, spec.GetOwner().GetName()+" "+spec.GetPool()+" "+spec.GetValue())
	}
	slices.Sort(out)
	return out
}

// Pod stores a Pod of default, ready at an address.
func (b *Bench) Pod(name, app, address string) {
	b.T.Helper()
	b.Store(&objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name, Uid: "uid-" + name, Labels: map[string]string{"app": app}},
		Spec:     &objectv1.PodSpec{NodeName: "node-1"},
		Status: &objectv1.PodStatus{
			PodIp: address, Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}},
		},
	}, planner.KindPod)
}

// Node stores a Node that is Ready, or not, by the status of its condition.
func (b *Bench) Node(name, ready, address string) {
	b.T.Helper()
	b.Store(&objectv1.Node{
		Metadata: &objectv1.ObjectMeta{Name: name},
		Status: &objectv1.NodeStatus{
			Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: ready}},
			Addresses:  []*objectv1.NodeAddress{{Type: "InternalIP", Address: address}},
		},
	}, feed.KindNode)
}

// ServicePort is the row of a Service's only port, as nodes hold it.
func (b *Bench) ServicePort(name string) (nodestate.ServicePort, bool) {
	row, ok := b.Rows.Get(nodestate.Ref{
		Table: nodestate.TableServicePorts, Key: nodestate.ServiceKey{Namespace: "default", Service: name, Protocol: nodestate.TCP}.String(),
	})
	if !ok {
		return nodestate.ServicePort{}, false
	}
	return row.(nodestate.ServicePort), true
}
