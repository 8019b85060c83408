package push_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	"podwire.dev/internal/telemetry"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

func at(revision int64) nodestate.Version {
	return nodestate.Version{ClusterID: cluster, Revision: revision}
}

func pod(uid, spec string) nodestate.Row { return nodestate.Workload{UID: uid, Pod: spec} }

func hubFor(t *testing.T, source nodestate.Source) (*push.Hub, *pushtest.Service) {
	hub := push.NewHub(source, push.Options{Authorize: pushtest.Anybody})
	return hub, pushtest.Serve(t, hub)
}

// publish publishes rows for node-1, or for all where the source's slice is shared.
func publish(t *testing.T, hub *push.Hub, source nodestate.Source, revision int64, d nodestate.Delta) {
	t.Helper()
	p := push.Publication{Version: at(revision), Settled: revision}
	if push.Shared(source) {
		p.Shared = d
	} else {
		p.PerNode = map[string]nodestate.Delta{"node-1": d}
	}
	if err := hub.Publish(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

func upsert(rows ...nodestate.Row) nodestate.Delta { return nodestate.Delta{Upserts: rows} }

// wire is a subscriber that says and hears messages one by one.
type wire struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[pushv1.SubscribeRequest, pushv1.SubscribeResponse]
}

func dial(t *testing.T, service *pushtest.Service, hello *pushv1.Hello, opts ...grpc.CallOption) *wire {
	t.Helper()
	stream, err := pushv1.NewPushServiceClient(service.Dial(t, nil)).Subscribe(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, stream: stream}
	w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Hello{Hello: hello}})
	return w
}

func (w *wire) say(m *pushv1.SubscribeRequest) {
	w.t.Helper()
	if err := w.stream.Send(m); err != nil && !errors.Is(err, io.EOF) { // EOF: the service has ended it; hear says why
		w.t.Fatal(err)
	}
}

func (w *wire) hear() *pushv1.SubscribeResponse {
	w.t.Helper()
	m, err := w.stream.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// snapshot hears a whole snapshot.
func (w *wire) snapshot() (begin *pushv1.Begin, rows []*pushv1.Row, end *pushv1.End) {
	w.t.Helper()
	begin = w.hear().GetBegin()
	for begin != nil {
		m := w.hear()
		if end = m.GetEnd(); end != nil {
			return begin, rows, end
		}
		rows = append(rows, m.GetChunk().GetRows()...)
	}
	w.t.Fatal("no BEGIN")
	return nil, nil, nil
}

func (w *wire) delta() *pushv1.Delta {
	w.t.Helper()
	m := w.hear()
	if m.GetDelta() == nil {
		w.t.Fatalf("got %v, want a DELTA", m)
	}
	return m.GetDelta()
}

func (w *wire) apply(version int64) {
	w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: &pushv1.Ack{
		Version: version, Outcome: &pushv1.Ack_Applied{Applied: &pushv1.Applied{}},
	}}})
}

func (w *wire) refuse(version, held int64, reason string) {
	w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: &pushv1.Ack{
		Version: version, Outcome: &pushv1.Ack_Refused{Refused: &pushv1.Refused{Reason: reason, HeldVersion: held}},
	}}})
}

// fails hears the error that ends the stream.
func (w *wire) fails(want string) {
	w.t.Helper()
	for {
		if _, err := w.stream.Recv(); err != nil {
			if !strings.Contains(err.Error(), want) {
				w.t.Errorf("got error %v, want %q", err, want)
			}
			return
		}
	}
}

// holding is the Hello of a node that holds rows.
func holding(version int64, rows ...nodestate.Row) *pushv1.Hello {
	d := nodestate.NewSlice(rows...).Digest(nodestate.TableWorkloads)
	return &pushv1.Hello{Node: "node-1", ClusterId: cluster, Version: version, Digests: []*pushv1.TableDigest{
		{Table: string(nodestate.TableWorkloads), Rows: d.Rows, Digest: d.Bytes()},
	}}
}

func nothing() *pushv1.Hello { return &pushv1.Hello{Node: "node-1"} }

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

// TestRefusesSubscribers: who may not subscribe, and how one may not.
func TestRefusesSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := push.NewHub(nodestate.SourceCluster, push.Options{Authorize: func(_ context.Context, node string) error {
			if node != "node-1" {
				return errs.New(errs.Denied, "node %q: not you", node)
			}
			return nil
		}})
		service := pushtest.Serve(t, hub)
		publish(t, hub, nodestate.SourceCluster, 10, nodestate.Delta{})
		dial(t, service, &pushv1.Hello{Node: "node-2"}).fails("not you")
		dial(t, service, &pushv1.Hello{}).fails("either a node or a member")
		dial(t, service, &pushv1.Hello{Node: "node-1", Member: "dns-1"}).fails("either a node or a member")
		dial(t, service, &pushv1.Hello{Member: "dns-1"}).fails("nobody who may subscribe as member/dns-1")
		dial(t, service, nothing(), grpc.UseCompressor(gzip.Name)).fails("compressed with gzip")

		w := dial(t, service, nothing())
		w.snapshot()
		w.apply(11)
		w.fails("acked version 11, which was not sent")

		w = dial(t, service, nothing())
		w.snapshot()
		w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: &pushv1.Ack{Version: 10}}})
		w.fails("without saying applied or refused")

		w = dial(t, service, nothing())
		w.snapshot()
		w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Hello{Hello: nothing()}})
		w.fails("one Hello, then Acks")

		old := dial(t, service, nothing())
		old.snapshot()
		dial(t, service, nothing()).snapshot()
		old.fails("subscribed again on another stream")

		closed := push.NewHub(nodestate.SourceCluster, push.Options{})
		publish(t, closed, nodestate.SourceCluster, 10, nodestate.Delta{})
		dial(t, pushtest.Serve(t, closed), nothing()).fails("nobody who may subscribe")
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

func TestPublishRefuses(t *testing.T) {
	node := func(rows ...nodestate.Row) map[string]nodestate.Delta {
		return map[string]nodestate.Delta{"node-1": upsert(rows...)}
	}
	peer := nodestate.Range{Kind: nodestate.RangePod}
	for want, p := range map[string]push.Publication{
		"without a version":           {PerNode: node(pod("a", ""))},
		"as settled up to 12":         {Version: at(11), Settled: 12},
		"version 10 again":            {Version: at(10), PerNode: node(pod("b", ""))},
		"but Shared is set":           {Version: at(11), Shared: upsert(pod("b", ""))},
		"uid: is empty":               {Version: at(11), PerNode: node(pod("", ""))},
		"prefix: \"invalid Prefix\"":  {Version: at(11), PerNode: node(peer)},
		"ranges, which is not its ow": {Version: at(11), PerNode: node(pushtest.RowOf(randomness(), nodestate.TableRanges))},
	} {
		hub := push.NewHub(nodestate.SourceCluster, push.Options{})
		if err := hub.Publish(t.Context(), push.Publication{Version: at(10), PerNode: node(pod("a", ""))}); err != nil {
			t.Fatal(err)
		}
		err := hub.Publish(t.Context(), p)
		if err == nil || !strings.Contains(err.Error(), want) || !errs.Is(err, errs.Internal) {
			t.Errorf("got error %v, want %q", err, want)
		}
	}
	err := push.NewHub(nodestate.SourceIPAM, push.Options{}).Publish(t.Context(), push.Publication{Version: at(1), PerNode: node()})
	if err == nil || !strings.Contains(err.Error(), "but PerNode is set") {
		t.Errorf("got error %v", err)
	}
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

// TestWorldGoesBackUnnoticed: a store that went back goes on, and has soon passed the revision that a node holds, or that the
// hub published last. What the node holds was undone all the same.
func TestWorldGoesBackUnnoticed(t *testing.T) {
	for name, next := range map[string]struct {
		revision int64
		back     bool
	}{
		"below the World before":  {90, false},
		"beyond the World before": {110, true},
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
