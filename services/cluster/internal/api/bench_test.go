package api

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/planner"
	"podwire.dev/services/cluster/internal/receipts"
)

// patience bounds what has to happen, so that what never does fails.
const patience = 30 * time.Second

func kinds() store.Kinds {
	return store.Kinds{
		planner.KindNamespace: func() store.Object { return &objectv1.Namespace{} },
		planner.KindNode:      func() store.Object { return &objectv1.Node{} },
		planner.KindPod:       func() store.Object { return &objectv1.Pod{} },
		planner.KindService:   func() store.Object { return &objectv1.Service{} },
		planner.KindBlock:     func() store.Object { return &objectv1.AddressBlock{} },
	}
}

// bench is the service on a store in memory, without a network.
type bench struct {
	t       *testing.T
	ctx     context.Context
	fake    *storefake.Fake
	plan    *planner.Planner
	running feed.Running
	tracker *receipts.Tracker

	namespaces *Namespaces
	nodes      *Nodes
	pods       *Pods
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b := &bench{t: t, ctx: rpc.WithIdentity(ctx, pki.User("alice")), fake: storefake.New(kinds()), plan: planner.New(time.Now)}
	d := daemon.New(daemon.Options{Name: "cluster", Log: slog.New(slog.DiscardHandler)})
	ended, wired := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- d.Run(ctx, func(context.Context) error {
			hub := push.NewHub(nodestate.SourceCluster, push.Options{Authorize: rpc.RequireNode})
			b.running = feed.Start(d, feed.Parts{
				Store: b.fake.Store, Planner: b.plan, Hub: hub,
				Replica: store.Replica{Service: "cluster", Name: "one", Address: "cluster-1:7443"},
			})
			b.tracker = receipts.NewTracker(b.fake.Store, []string{"cluster", "policy"})
			d.Go("watermarks", b.tracker.Run)
			close(wired)
			return nil
		})
	}()
	<-wired
	t.Cleanup(func() {
		d.Stop()
		if err := <-ended; err != nil {
			t.Errorf("the service ended with: %v", err)
		}
		cancel()
	})
	b.namespaces, b.nodes = NewNamespaces(b.fake.Store), NewNodes(b.fake.Store)
	b.pods = NewPods(b.fake.Store, NewHoldings(b.fake.Store, b.running, b.plan), admission.Rules{ClusterDomain: "cluster.local"})
	if err := b.namespaces.Found(b.ctx, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "default"}}); err != nil {
		t.Fatal(err)
	}
	return b
}

// as is the context of a node's agent.
func (b *bench) as(node string) context.Context { return rpc.WithIdentity(b.ctx, pki.Node(node)) }

// until waits for an object to be as wanted; nil is its absence.
func (b *bench) until(key store.Key, wanted func(store.Object) bool) store.Record {
	b.t.Helper()
	for {
		rec, at, err := b.fake.Get(b.ctx, key)
		if err != nil && !errs.Is(err, errs.NotFound) {
			b.t.Fatal(err)
		}
		if wanted(rec.Object) {
			return rec
		}
		next, stop := context.WithCancel(b.ctx)
		changed := false
		for batch, err := range b.fake.Watch(next, store.WatchQuery{From: at + 1}) {
			if err != nil {
				b.t.Fatalf("%s did not become as wanted, it is %v: %v", key, rec.Object, err)
			}
			if changed = len(batch.Events) > 0; changed {
				break
			}
		}
		stop()
	}
}

// addNode makes a Node as its agent and cluster together do.
func (b *bench) addNode(name string) {
	b.t.Helper()
	_, err := b.nodes.Apply(b.as(name), &clusterv1.NodeServiceApplyRequest{Object: &objectv1.Node{Metadata: &objectv1.ObjectMeta{
		Name: name, Annotations: map[string]string{admission.AnnotationAgentTarget: name + ":7443"},
	}}})
	if err != nil {
		b.t.Fatal(err)
	}
	rec, _, err := b.fake.Get(b.ctx, store.Key{Kind: planner.KindNode, Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	n := rec.Object.(*objectv1.Node)
	n.Status = &objectv1.NodeStatus{
		Addresses:  []*objectv1.NodeAddress{{Type: "InternalIP", Address: "172.30.0.11"}},
		Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "True"}},
	}
	b.commit(b.fake.Txn().Update(rec, n))
}

func (b *bench) commit(tx *store.Txn) {
	b.t.Helper()
	if _, err := tx.Commit(b.ctx); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) addPod(name string) *clusterv1.PodServiceApplyResponse {
	b.t.Helper()
	resp, err := b.pods.Apply(b.ctx, &clusterv1.PodServiceApplyRequest{Object: podNamed(name)})
	if err != nil {
		b.t.Fatal(err)
	}
	return resp
}

func podNamed(name string) *objectv1.Pod {
	return &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name},
		Spec:     &objectv1.PodSpec{Containers: []*objectv1.Container{{Name: "c", Image: "podwire.dev/echo"}}},
	}
}

func podKey(name string) store.Key {
	return store.Key{Kind: planner.KindPod, Namespace: "default", Name: name}
}

func assigned(o store.Object) bool {
	return o != nil && o.(*objectv1.Pod).GetSpec().GetNodeName() != ""
}

func absent(o store.Object) bool { return o == nil }

func (b *bench) refused(what string, err error, kind errs.Kind) {
	b.t.Helper()
	if !errs.Is(err, kind) {
		b.t.Errorf("%s: %v, want %s", what, err, kind)
	}
}
