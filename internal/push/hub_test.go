package push_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	"podwire.dev/internal/telemetry"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// TestAnswersToHello tells what a hub answers to what a node holds. The World is 30; the slice changed at 10, 20 and 30.
func TestAnswersToHello(t *testing.T) {
	a, b, c := pod("a", "1"), pod("b", "1"), pod("c", "1")
	for _, test := range []struct {
		name     string
		hello    *pushv1.Hello
		snapshot bool
		base     int64
		version  int64
		rows     int
	}{
		{name: "nothing", hello: nothing(), snapshot: true, version: 30, rows: 3},
		{name: "an older version: what is missing", hello: holding(10, a), base: 10, version: 30, rows: 2},
		{name: "one between two changes", hello: holding(25, a, b), base: 25, version: 30, rows: 1},
		{name: "the newest: confirmed", hello: holding(30, a, b, c), base: 30, version: 30},
		{name: "the newest version with other content", hello: holding(30, a, b), snapshot: true, version: 30, rows: 3},
		{name: "an older version with other content", hello: holding(20, a), snapshot: true, version: 30, rows: 3},
		{name: "older than what is known, with today's content", hello: holding(5, a, b, c), base: 5, version: 30},
		{name: "older than what is known", hello: holding(5, a), snapshot: true, version: 30, rows: 3},
		{name: "another cluster", hello: func() *pushv1.Hello {
			h := holding(30, a, b, c)
			h.ClusterId++
			return h
		}(), snapshot: true, version: 30, rows: 3},
		{name: "newer than this World, which does not catch up", hello: holding(99, a, b, c), snapshot: true, version: 30, rows: 3},
		{name: "no digests asks for a snapshot", hello: &pushv1.Hello{Node: "node-1", ClusterId: cluster, Version: 30}, snapshot: true, version: 30, rows: 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, service := hubFor(t, nodestate.SourceCluster)
				publish(t, hub, nodestate.SourceCluster, 10, upsert(a))
				publish(t, hub, nodestate.SourceCluster, 20, upsert(b))
				publish(t, hub, nodestate.SourceCluster, 30, upsert(c))
				w := dial(t, service, test.hello)
				if test.snapshot {
					begin, rows, end := w.snapshot()
					if begin.GetVersion() != test.version || end.GetVersion() != test.version || len(rows) != test.rows ||
						begin.GetClusterId() != cluster || begin.GetRows() != int64(test.rows) {
						t.Errorf("got %v %v %v", begin, rows, end)
					}
					return
				}
				d := w.delta()
				if d.GetBase() != test.base || d.GetVersion() != test.version || len(d.GetUpserts()) != test.rows || len(d.GetDigests()) != 1 {
					t.Errorf("got %v", d)
				}
			})
		})
	}
}

// TestCatchesUp: a replica that is behind lets a node that is ahead wait, and then has what the node holds.
func TestCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		publish(t, hub, nodestate.SourceCluster, 10, upsert(pod("a", "1")))
		w := dial(t, service, holding(20, pod("a", "1")))
		synctest.Wait()
		publish(t, hub, nodestate.SourceCluster, 20, nodestate.Delta{})
		if d := w.delta(); d.GetBase() != 20 || d.GetVersion() != 20 || len(d.GetUpserts()) != 0 {
			t.Errorf("got %v", d)
		}
	})
}

// TestCoalesces: what happens while a node is busy arrives as one message, which leads from what it holds.
func TestCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		publish(t, hub, nodestate.SourceCluster, 10, upsert(pod("a", "1")))
		w := dial(t, service, holding(10, pod("a", "1")))
		w.delta()
		synctest.Wait()
		publish(t, hub, nodestate.SourceCluster, 11, upsert(pod("b", "1"), pod("c", "1")))
		publish(t, hub, nodestate.SourceCluster, 12, nodestate.Delta{Removes: []nodestate.Ref{{Table: nodestate.TableWorkloads, Key: "c"}}})
		publish(t, hub, nodestate.SourceCluster, 13, upsert(pod("b", "2")))
		w.apply(10)
		d := w.delta()
		if d.GetBase() != 10 || d.GetVersion() != 13 || len(d.GetUpserts()) != 1 || len(d.GetRemoves()) != 1 ||
			string(d.GetUpserts()[0].GetWorkload().GetPod()) != "2" {
			t.Errorf("got %v", d)
		}
	})
}

// TestRefused: after a refusal the next message leads from the held version; without a change it comes again later.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		publish(t, hub, nodestate.SourceCluster, 10, upsert(pod("a", "1")))
		w := dial(t, service, holding(10, pod("a", "1")))
		w.delta()
		w.apply(10)
		synctest.Wait()
		publish(t, hub, nodestate.SourceCluster, 11, upsert(pod("b", "1")))
		for range 3 { // again and again, though nothing changes
			if d := w.delta(); d.GetBase() != 10 || d.GetVersion() != 11 {
				t.Fatalf("got %v", d)
			}
			w.refuse(11, 10, "no space")
		}
		synctest.Wait()
		publish(t, hub, nodestate.SourceCluster, 12, upsert(pod("c", "1")))
		if d := w.delta(); d.GetBase() != 10 || d.GetVersion() != 12 || len(d.GetUpserts()) != 2 {
			t.Fatalf("got %v", d)
		}
		w.refuse(12, 7, "the disk was replaced")
		if begin, rows, _ := w.snapshot(); begin.GetVersion() != 12 || len(rows) != 3 {
			t.Errorf("a node that holds what nobody knows gets %v", begin)
		}
	})
}

func TestOversizeGoesAsSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		publish(t, hub, nodestate.SourceCluster, 10, upsert(pod("a", "1")))
		w := dial(t, service, holding(10, pod("a", "1")))
		w.delta()
		w.apply(10)
		big := strings.Repeat("x", push.MaxMessage/3)
		publish(t, hub, nodestate.SourceCluster, 11, upsert(pod("b", big), pod("c", big), pod("d", big), pod("e", big)))
		begin, rows, _ := w.snapshot()
		if begin.GetVersion() != 11 || len(rows) != 5 {
			t.Errorf("got %v", begin)
		}
		w.apply(11)
		publish(t, hub, nodestate.SourceCluster, 12, upsert(pod("a", "2")))
		if d := w.delta(); d.GetBase() != 11 || len(d.GetUpserts()) != 1 {
			t.Errorf("after it: %v", d)
		}
	})
}

// TestSharedVersions: subscribers of an unchanged slice hold one version whenever they came, so that the next change is
// the same message for all.
func TestSharedVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceIPAM)
		row := nodestate.Member{Name: "node-1", Kind: nodestate.MemberNode}
		publish(t, hub, nodestate.SourceIPAM, 10, upsert(row))
		var wires []*wire
		for i := range 3 {
			hello := nothing()
			hello.Node = fmt.Sprintf("node-%d", i)
			w := dial(t, service, hello)
			begin, _, _ := w.snapshot()
			w.apply(begin.GetVersion())
			wires = append(wires, w)
			synctest.Wait()
			publish(t, hub, nodestate.SourceIPAM, 11+int64(i), nodestate.Delta{})
		}
		row.Kind = nodestate.MemberService
		publish(t, hub, nodestate.SourceIPAM, 20, upsert(row))
		first := wires[0].delta()
		for _, w := range wires[1:] {
			if d := w.delta(); !proto.Equal(d, first) {
				t.Errorf("got %v and %v", d, first)
			}
		}
		if first.GetBase() != 10 || first.GetVersion() != 20 {
			t.Errorf("got %v", first)
		}
	})
}

// TestClose: a hub that stops says so, ends its streams, also those that wait for its first World, and takes no more.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		early := dial(t, service, nothing())
		synctest.Wait()
		publish(t, hub, nodestate.SourceCluster, 10, nodestate.Delta{})
		early.snapshot()
		if err := hub.Close(t.Context(), "restarting"); err != nil {
			t.Fatal(err)
		}
		if m := early.hear(); m.GetReconnect().GetReason() != "restarting" {
			t.Errorf("got %v", m)
		}
		early.fails("EOF")
		dial(t, service, nothing()).fails("is stopping: restarting")

		unprimed, service := hubFor(t, nodestate.SourceCluster)
		w := dial(t, service, nothing())
		synctest.Wait()
		if err := unprimed.Close(t.Context(), "restarting"); err != nil {
			t.Fatal(err)
		}
		w.fails("is stopping")
	})
}

// TestPublishWaitsForNobody: an agent that reads nothing at all costs the feed nothing.
func TestPublishWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		big := strings.Repeat("x", push.MaxMessage/2)
		for i := range 8 {
			publish(t, hub, nodestate.SourceCluster, 10+int64(i), upsert(pod(fmt.Sprint(i), big)))
		}
		stuck := dial(t, service, nothing())
		synctest.Wait() // the windows of the stream are full
		for i := range 100 {
			publish(t, hub, nodestate.SourceCluster, 20+int64(i), upsert(pod("a", fmt.Sprint(i))))
		}
		begin, rows, _ := stuck.snapshot()
		stuck.apply(begin.GetVersion())
		if d := stuck.delta(); len(rows) != 8 || d.GetBase() != 17 || d.GetVersion() != 119 || len(d.GetUpserts()) != 1 {
			t.Errorf("got %d rows, then %v", len(rows), d)
		}
	})
}

// TestTrace: a change's trace goes through the hop "push" of the service to the hop "receive" of the agent.
func TestTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tel, err := telemetry.New(t.Context(), telemetry.Process{Service: "cluster"})
		if err != nil {
			t.Fatal(err)
		}
		hub, service := hubFor(t, nodestate.SourceCluster)
		publish(t, hub, nodestate.SourceCluster, 10, nodestate.Delta{})
		w := dial(t, service, nothing())
		w.snapshot()
		w.apply(10)
		synctest.Wait()

		ctx, root := telemetry.Start(tel.Context(t.Context()), "apply")
		changes := []push.Change{
			{Revision: 11, Object: "pods/default/web", Traceparent: telemetry.Traceparent(ctx)},
			{Revision: 12, Object: "pods/default/other", Nodes: []string{"node-2"}},
		}
		err = hub.Publish(ctx, push.Publication{
			Version: at(12), Settled: 12, PerNode: map[string]nodestate.Delta{"node-1": upsert(pod("a", ""))}, Changes: changes,
		})
		if err != nil {
			t.Fatal(err)
		}
		d := w.delta()
		synctest.Wait()
		root.End(nil)
		sent, _ := telemetry.ParseTraceparent(changes[0].Traceparent)
		hops, _ := tel.Ring().FromTrace(sent.TraceID())
		if len(hops) != 2 || hops[0].Name != "push" || hops[0].Revision != 11 || hops[0].Object.String() != "pods/default/web" {
			t.Fatalf("hops %+v", hops)
		}
		if len(d.GetChanges()) != 1 {
			t.Fatalf("changes %v", d.GetChanges())
		}
		got, ok := telemetry.ParseTraceparent(d.GetChanges()[0].GetTraceparent())
		if !ok || got.TraceID() != sent.TraceID() || got.SpanID() != hops[0].SpanID {
			t.Errorf("the change carries %v", d.GetChanges()[0])
		}
	})
}

// TestEmptySnapshot: another store freezes even where it is empty, and an empty snapshot of the same store removes all.
func TestEmptySnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		publish(t, hub, nodestate.SourceCluster, 50, upsert(pod("a", "1")))
		agent := &pushtest.Agent{Source: nodestate.SourceCluster, Node: "node-1", Dir: t.TempDir(), Conn: service.Dial(t, nil)}
		agent.Start(t)
		agent.Await(t, func(k *nodestate.Slice, _ nodestate.Version) bool { return k.Len() == 1 })

		other := push.NewHub(nodestate.SourceCluster, push.Options{Authorize: pushtest.Anybody})
		if err := other.Publish(t.Context(), push.Publication{Version: nodestate.Version{ClusterID: cluster + 1, Revision: 99}}); err != nil {
			t.Fatal(err)
		}
		service.Replace(t, other)
		pass(time.Minute)
		if st := agent.Subscriber().Status(); !st.Frozen || st.Held != at(50) || st.Offered.ClusterID != cluster+1 {
			t.Fatalf("not frozen: %+v", st)
		}
		if kernel, _ := agent.Kernel(); kernel.Len() != 1 {
			t.Fatal("another store's emptiness removed rows")
		}
		agent.Subscriber().Accept()
		agent.Await(t, func(k *nodestate.Slice, v nodestate.Version) bool { return k.Len() == 0 && v.ClusterID == cluster+1 })

		next := push.NewHub(nodestate.SourceCluster, push.Options{Authorize: pushtest.Anybody})
		err := next.Publish(t.Context(), push.Publication{
			Version: nodestate.Version{ClusterID: cluster + 1, Revision: 100}, PerNode: map[string]nodestate.Delta{"node-1": upsert(pod("b", ""))},
		})
		if err != nil {
			t.Fatal(err)
		}
		service.Replace(t, next)
		agent.Await(t, func(k *nodestate.Slice, _ nodestate.Version) bool { return k.Len() == 1 })
		empty := push.NewHub(nodestate.SourceCluster, push.Options{Authorize: pushtest.Anybody})
		if err := empty.Publish(t.Context(), push.Publication{Version: nodestate.Version{ClusterID: cluster + 1, Revision: 101}}); err != nil {
			t.Fatal(err)
		}
		service.Replace(t, empty)
		agent.Await(t, func(k *nodestate.Slice, v nodestate.Version) bool { return k.Len() == 0 && v.Revision == 101 })
	})
}
