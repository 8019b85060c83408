package push_test

import (
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
)

// TestWorldGoesBackUnnoticed: a store that went back goes on, and has soon passed the revision that a node holds, or that the
// hub published last. What the node holds was undone all the same.
func TestWorldGoesBackUnnoticed(t *testing.T) {
	for name, next := range map[string]struct {
		revision int64
		back     bool
	}{
		"below the World before":   {90, false},
		"beyond the World before":  {110, true},
		"exactly as far as it was": {100, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, service := hubFor(t, nodestate.SourceCluster)
				publish(t, hub, nodestate.SourceCluster, 50, upsert(pod("a", "1"), pod("b", "1")))
				agent := &pushtest.Agent{Source: nodestate.SourceCluster, Node: "node-1", Dir: t.TempDir(), Conn: service.Dial(t, nil)}
				agent.Start(t)
				agent.Await(t, func(k *nodestate.Slice, _ nodestate.Version) bool { return k.Len() == 2 })
				publish(t, hub, nodestate.SourceCluster, 100, nodestate.Delta{}) // the node holds 50, which 100 confirms
				undo := push.Publication{
					Version: at(next.revision), Settled: next.revision, Back: next.back,
					PerNode: map[string]nodestate.Delta{"node-1": {Removes: []nodestate.Ref{{Table: nodestate.TableWorkloads, Key: "a"}}}},
				}
				if err := hub.Publish(t.Context(), undo); err != nil {
					t.Fatal(err)
				}
				pass(time.Minute)
				if st := agent.Subscriber().Status(); !st.Frozen || st.Held != at(50) || st.Offered.Revision >= 50 {
					t.Fatalf("not frozen: %+v", st)
				}
				if kernel, _ := agent.Kernel(); kernel.Len() != 2 {
					t.Fatalf("the kernel has %d rows", kernel.Len())
				}
				agent.Restart(t)
				publish(t, hub, nodestate.SourceCluster, 120, upsert(pod("c", "1")))
				pass(time.Minute)
				if st := agent.Subscriber().Status(); !st.Frozen || !agent.Subscriber().Accept() {
					t.Fatalf("thawed by going on: %+v", st)
				}
				agent.Await(t, func(k *nodestate.Slice, v nodestate.Version) bool { return k.Len() == 2 && v == at(120) })
				publish(t, hub, nodestate.SourceCluster, 130, upsert(pod("d", "1")))
				agent.Await(t, func(k *nodestate.Slice, v nodestate.Version) bool { return k.Len() == 3 && v == at(130) })
			})
		})
	}
}

// TestAnotherWorldOfTheSameRevision: a store that was restored, and has come to exactly the revision that a node holds with
// other content, freezes the node; the hub goes on.
func TestAnotherWorldOfTheSameRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		publish(t, hub, nodestate.SourceCluster, 50, upsert(pod("a", "1")))
		agent := &pushtest.Agent{Source: nodestate.SourceCluster, Node: "node-1", Dir: t.TempDir(), Conn: service.Dial(t, nil)}
		agent.Start(t)
		agent.Await(t, func(k *nodestate.Slice, _ nodestate.Version) bool { return k.Len() == 1 })
		again := push.Publication{
			Version: at(50), Settled: 50, PerNode: map[string]nodestate.Delta{"node-1": upsert(pod("a", "2"), pod("b", "1"))},
		}
		if err := hub.Publish(t.Context(), again); !errs.Is(err, errs.Internal) {
			t.Fatalf("a version has two contents, and nobody says that the store went back: %v", err)
		}
		again.Back = true
		if err := hub.Publish(t.Context(), again); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if st := agent.Subscriber().Status(); !st.Frozen || st.Held != at(50) || st.Offered.Revision >= 50 || !agent.Subscriber().Accept() {
			t.Fatalf("not frozen: %+v", st)
		}
		agent.Await(t, func(k *nodestate.Slice, _ nodestate.Version) bool { return k.Len() == 2 })
		publish(t, hub, nodestate.SourceCluster, 51, upsert(pod("c", "1")))
		agent.Await(t, func(k *nodestate.Slice, v nodestate.Version) bool { return k.Len() == 3 && v == at(51) })
	})
}

// TestWorldGoesBack: a hub whose World went backwards asks its subscribers to say again what they hold, and then offers
// what it has.
func TestWorldGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		publish(t, hub, nodestate.SourceCluster, 50, upsert(pod("a", "1"), pod("b", "1")))
		agent := &pushtest.Agent{Source: nodestate.SourceCluster, Node: "node-1", Dir: t.TempDir(), Conn: service.Dial(t, nil)}
		agent.Start(t)
		agent.Await(t, func(k *nodestate.Slice, _ nodestate.Version) bool { return k.Len() == 2 })
		publish(t, hub, nodestate.SourceCluster, 40, nodestate.Delta{Removes: []nodestate.Ref{{Table: nodestate.TableWorkloads, Key: "a"}}})
		frozen := func() push.SubscriberStatus {
			pass(time.Minute) // of the bubble's clock: every pause is over
			return agent.Subscriber().Status()
		}
		if st := frozen(); !st.Frozen || st.Held != at(50) || st.Offered != at(40) {
			t.Fatalf("not frozen: %+v", st)
		}
		publish(t, hub, nodestate.SourceCluster, 60, upsert(pod("c", "1")))
		if st := frozen(); !st.Frozen {
			t.Fatalf("thawed by going on: %+v", st)
		}
		agent.Restart(t)
		if st := frozen(); !st.Frozen || st.Held != at(50) || st.Offered != at(40) {
			t.Fatalf("thawed by a restart: %+v", st)
		}
		if kernel, _ := agent.Kernel(); kernel.Len() != 2 {
			t.Fatalf("the kernel has %d rows", kernel.Len())
		}
		if !agent.Subscriber().Accept() {
			t.Fatal("nothing to accept")
		}
		agent.Await(t, func(k *nodestate.Slice, v nodestate.Version) bool { return k.Len() == 2 && v == at(60) })
		if st := frozen(); st.Frozen || !st.Synced || agent.Subscriber().Accept() {
			t.Fatalf("still frozen: %+v", st)
		}
		agent.Restart(t)
		if st := frozen(); st.Frozen || st.Held != at(60) {
			t.Fatalf("frozen again by a restart: %+v", st)
		}
	})
}
