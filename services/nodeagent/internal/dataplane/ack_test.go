package dataplane_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	"podwire.dev/internal/telemetry"
	pushv1 "podwire.dev/proto/podwire/push/v1"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/plan"
)

// spy notes the acks that a hub gets.
type spy struct {
	*push.Hub
	diary *diary
	acks  chan *pushv1.Ack
}

func (s spy) Subscribe(stream pushtest.Stream) error { return s.Hub.Subscribe(heard{stream, s}) }

type heard struct {
	pushtest.Stream
	spy spy
}

func (h heard) Recv() (*pushv1.SubscribeRequest, error) {
	m, err := h.Stream.Recv()
	if a := m.GetAck(); a != nil {
		what := "applied"
		if a.GetRefused() != nil {
			what = "refused"
		}
		h.spy.diary.note(fmt.Sprintf("ack %d %s", a.GetVersion(), what))
		h.spy.acks <- a
	}
	return m, err
}

// connected is a node whose policy comes from a hub.
type connected struct {
	*kernel
	t    *testing.T
	hub  spy
	tele *telemetry.Telemetry
	sub  *push.Subscriber
}

func connect(t *testing.T) *connected {
	t.Helper()
	tele, err := telemetry.New(t.Context(), telemetry.Process{Service: "nodeagent", Instance: self})
	if err != nil {
		t.Fatal(err)
	}
	c := &connected{kernel: &kernel{diary: &diary{}}, t: t, tele: tele}
	c.hub = spy{
		push.NewHub(nodestate.SourcePolicy, push.Options{Authorize: pushtest.Anybody, Retry: time.Hour}), c.diary, make(chan *pushv1.Ack, 8),
	}
	dir := t.TempDir()
	journal, err := push.OpenJournal(dir, nodestate.SourcePolicy)
	if err != nil {
		t.Fatal(err)
	}
	c.sub = push.NewSubscriber(push.SubscriberConfig{
		Source: nodestate.SourcePolicy, Node: self, Conn: pushtest.Serve(t, c.hub).Dial(t, nil), Journal: journal,
	})
	loop, err := dataplane.New(dataplane.Config{
		Node: plan.Node{Name: self}, Rules: c, Members: members{c.kernel}, Flows: c, Workloads: c,
		IDFile:      filepath.Join(dir, "ids"),
		Attachments: []plan.Attachment{pod("a", "pwpa", "10.244.0.10")},
		Updates:     map[nodestate.Source]<-chan push.Update{nodestate.SourcePolicy: c.sub.Updates()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tele.Context(context.Background()))
	done := make(chan error, 2)
	go func() { done <- loop.Run(ctx) }()
	go func() { done <- c.sub.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

// publish makes the hub's next World, whose change has a trace of its own, and returns the trace.
func (c *connected) publish(revision int64, rows ...nodestate.Row) string {
	c.t.Helper()
	from, err := telemetry.New(c.t.Context(), telemetry.Process{Service: "policy"})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, span := telemetry.Start(from.Context(c.t.Context()), "plan")
	err = c.hub.Publish(ctx, push.Publication{
		Version: nodestate.Version{ClusterID: 1, Revision: revision}, Settled: revision, Nodes: map[string]push.Standing{},
		PerNode: map[string]nodestate.Delta{self: {Upserts: rows}},
		Changes: []push.Change{{Revision: revision, Object: "networkpolicies.networking.k8s.io/default/p", Traceparent: span.Traceparent()}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return span.Traceparent()
}

func TestTheAckComesLast(t *testing.T) {
	c := connect(t)
	c.publish(5, open("b"))
	<-c.hub.acks // whatever the first answer is
	_, from := c.since(0)
	traceparent := c.publish(6, isolated("a", 7))
	ack := <-c.hub.acks
	got, _ := c.since(from)
	if want := []string{"commit", "flows", "ack 6 applied"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var hops []string
	for _, h := range ack.GetApplied().GetHops() {
		hops = append(hops, h.GetHop())
	}
	if want := []string{"receive", "wait", "plan", "kernel"}; !slices.Equal(hops, want) {
		t.Errorf("the ack tells of %v, want %v", hops, want)
	}
	id, err := telemetry.ParseTraceID(strings.Split(traceparent, "-")[1])
	if err != nil {
		t.Fatal(err)
	}
	kept, _ := c.tele.Ring().FromTrace(id)
	var names []string
	for _, h := range kept {
		names = append(names, h.Name)
		if h.Revision != 6 || h.Object.Name != "p" || h.Object.Namespace != "default" {
			t.Errorf("hop %q is about %v at %d", h.Name, h.Object, h.Revision)
		}
	}
	if want := []string{"receive", "kernel commit (policy)"}; !slices.Equal(names, want) {
		t.Errorf("the change's trace has %v, want %v", names, want)
	}
}

func TestARefusalSaysWhy(t *testing.T) {
	c := connect(t)
	c.publish(5, open("a"))
	<-c.hub.acks
	c.mu.Lock()
	c.refuse = func(plan.Change) error { return errs.WrapAs(errs.Conflict, errKernel, "nft") }
	c.mu.Unlock()
	c.publish(6, isolated("a", 7))
	ack := <-c.hub.acks
	if r := ack.GetRefused(); ack.GetVersion() != 6 || r.GetHeldVersion() != 5 || !strings.Contains(r.GetReason(), errKernel.Error()) {
		t.Errorf("got %v", ack)
	}
	if held := c.sub.Status().Held.Revision; held != 5 {
		t.Errorf("holds %d", held)
	}
}
