package api

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/liveness"
	"podwire.dev/services/cluster/internal/planner"
)

func nodeKey(name string) store.Key { return store.Key{Kind: planner.KindNode, Name: name} }

func TestNodeWritesItselfOnly(t *testing.T) {
	b := newBench(t)
	b.addNode("node-1")
	_, err := b.nodes.Apply(b.as("node-2"), &clusterv1.NodeServiceApplyRequest{Object: &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "node-1"}}})
	b.refused("another node's Node", err, errs.Denied)
	_, err = b.nodes.UpdateStatus(b.as("node-2"), &clusterv1.NodeServiceUpdateStatusRequest{Object: &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "node-1"}}})
	b.refused("another node's status", err, errs.Denied)
	_, err = b.nodes.Get(b.as("node-2"), &clusterv1.NodeServiceGetRequest{Name: "node-1"})
	b.refused("another node reads", err, errs.Denied)
	_, err = b.nodes.Apply(b.ctx, &clusterv1.NodeServiceApplyRequest{Object: &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "policy"}}})
	b.refused("a node that is called like a service", err, errs.Invalid)

	cordon := &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "node-1"}, Spec: &objectv1.NodeSpec{Unschedulable: true}}
	if _, err := b.nodes.Apply(b.ctx, &clusterv1.NodeServiceApplyRequest{Object: cordon}); err != nil {
		t.Fatal(err)
	}
	b.agentRegisters("node-1")
	resp, err := b.nodes.UpdateStatus(b.as("node-1"), &clusterv1.NodeServiceUpdateStatusRequest{Object: &objectv1.Node{
		Metadata: &objectv1.ObjectMeta{Name: "node-1"},
		Status:   &objectv1.NodeStatus{Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "False"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n := resp.GetObject(); !n.GetSpec().GetUnschedulable() || n.GetStatus().GetConditions()[0].GetStatus() != "True" {
		t.Errorf("Node is %v: the cordon, or cluster's judgement, is the agent's now", n)
	}
}

// agentRegisters is what an agent does at its start.
func (b *bench) agentRegisters(name string) {
	b.t.Helper()
	_, err := b.nodes.Apply(b.as(name), &clusterv1.NodeServiceApplyRequest{Object: &objectv1.Node{Metadata: &objectv1.ObjectMeta{
		Name: name, Annotations: map[string]string{admission.AnnotationAgentTarget: name + ":7443"},
	}}})
	if err != nil {
		b.t.Fatal(err)
	}
}

func TestDirectory(t *testing.T) {
	b := newBench(t)
	b.addNode("node-1")
	b.agentRegisters("node-2")
	want := []*clusterv1.Process{
		{Service: "cluster", Name: "one", Target: "cluster-1:7443", Ready: true},
		{Service: "nodeagent", Name: "node-1", Target: "node-1:7443", Ready: true},
		{Service: "nodeagent", Name: "node-2", Target: "node-2:7443"},
	}
	// The registration is another goroutine's: it is there with the watch of it.
	for list, err := range b.fake.WatchReplicas(b.ctx, "cluster") {
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 0 {
			break
		}
	}
	resp, err := NewDirectory(b.fake.Store).ListProcesses(b.ctx, &clusterv1.ListProcessesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetProcesses()) != len(want) {
		t.Fatalf("processes are %v", resp.GetProcesses())
	}
	for i, p := range resp.GetProcesses() {
		if p.GetService() != want[i].Service || p.GetName() != want[i].Name || p.GetTarget() != want[i].Target || p.GetReady() != want[i].Ready {
			t.Errorf("process %d is %v, want %v", i, p, want[i])
		}
	}
}

// elected waits until the replica leads.
func (b *bench) elected() {
	b.t.Helper()
	for list, err := range b.fake.WatchLeaders(b.ctx) {
		if err != nil {
			b.t.Fatal(err)
		}
		if len(list) > 0 {
			break
		}
	}
	select {
	case <-b.ctx.Done():
		b.t.Fatal("nobody leads")
	default:
	}
}

// A node is heard, falls silent, is declared dead, its Pods turn unready, and it returns: on the store, with a clock of
// the test's.
func TestLivenessIsRecorded(t *testing.T) {
	b := newBench(t)
	b.elected()
	now := time.Now()
	lead := leaders{b.running.Leader}
	monitor := liveness.NewMonitor(liveness.Monitor{
		Store: b.fake.Store, Asker: b.running, Nodes: b.plan, Leader: lead, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
	})
	b.agentRegisters("node-1")
	lead.wait(b)
	record := func() {
		t.Helper()
		if err := monitor.Record(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	readyIs := func(status, reason string) func(store.Object) bool {
		return func(o store.Object) bool {
			for _, c := range o.(*objectv1.Node).GetStatus().GetConditions() {
				if c.GetType() == "Ready" {
					return c.GetStatus() == status && c.GetReason() == reason
				}
			}
			return false
		}
	}
	seen := func(what func(store.Object) bool) {
		t.Helper()
		b.caughtUp(b.until(nodeKey("node-1"), what).Revision)
	}
	b.caughtUp(b.until(nodeKey("node-1"), func(o store.Object) bool { return o != nil }).Revision)
	record() // begins the term
	if !monitor.Beat(liveness.Beat{Node: "node-1", Ready: true}) {
		t.Fatal("the elected replica does not hear")
	}
	record()
	seen(readyIs("True", liveness.ReasonReady))

	b.addPod("web")
	o := b.until(podKey("web"), assigned).Object.(*objectv1.Pod)
	if _, err := b.pods.UpdateStatus(b.as("node-1"), report(o)); err != nil {
		t.Fatal(err)
	}
	now = now.Add(liveness.NotReadyAfter)
	record()
	seen(readyIs("False", liveness.ReasonNotReady))
	now = now.Add(liveness.DeadAfter)
	record()
	seen(readyIs("Unknown", liveness.ReasonDead))
	podReady := func(status string) func(store.Object) bool {
		return func(o store.Object) bool {
			for _, c := range o.(*objectv1.Pod).GetStatus().GetConditions() {
				if c.GetType() == "Ready" {
					return c.GetStatus() == status
				}
			}
			return false
		}
	}
	told := b.until(podKey("web"), podReady("False"))
	if told.Cause.Revision == 0 || told.Cause.Revision >= told.Revision {
		t.Errorf("the Pod turned unready at %d because of %d", told.Revision, told.Cause.Revision)
	}
	if _, err := b.pods.UpdateStatus(b.as("node-1"), report(o)); err != nil {
		t.Fatal(err)
	}
	b.caughtUp(b.until(podKey("web"), podReady("True")).Revision)
	monitor.Beat(liveness.Beat{Node: "node-1", Ready: true})
	record()
	seen(readyIs("True", liveness.ReasonReady))
	if rec, _, err := b.fake.Get(b.ctx, podKey("web")); err != nil || !podReady("True")(rec.Object) {
		t.Errorf("the agent's report did not last: %v, %v", rec.Object, err)
	}
}

// leaders waits for a leadership that the feed's goroutine has noted.
type leaders struct{ liveness.Leader }

func (l leaders) wait(b *bench) {
	b.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for l.Leadership() == nil {
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			b.t.Fatal("the election is never won")
		}
	}
}

// caughtUp waits until the World holds a revision.
func (b *bench) caughtUp(rev store.Revision) {
	b.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		var held bool
		if err := b.running.Do(b.ctx, func(at store.Revision) { held = at >= rev }); err != nil {
			b.t.Fatal(err)
		}
		if held {
			return
		}
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			b.t.Fatalf("the World does not reach revision %d", rev)
		}
	}
}

// ear is a listener of the test's.
type ear struct {
	leads bool
	dead  []bool // what to say of deaths, in order
	heard []liveness.Beat
}

func (e *ear) Dead(string) bool {
	if len(e.dead) == 0 {
		return false
	}
	dead := e.dead[0]
	e.dead = e.dead[1:]
	return dead
}

func (e *ear) Beat(b liveness.Beat) bool {
	e.heard = append(e.heard, b)
	return e.leads
}

type mark store.Revision

func (m mark) Required() store.Revision { return store.Revision(m) }

type elections map[string]store.Leader

func (e elections) GetLeader(_ context.Context, name string) (store.Leader, error) {
	if l, ok := e[name]; ok {
		return l, nil
	}
	return store.Leader{}, errs.New(errs.NotFound, "nobody")
}

func TestHeartbeat(t *testing.T) {
	ctx := rpc.WithIdentity(context.Background(), pki.Node("node-1"))
	cases := []struct {
		name      string
		leads     bool
		elections elections
		want      *clusterv1.HeartbeatResponse
	}{
		{"the elected replica", true, nil, &clusterv1.HeartbeatResponse{Sequence: 7, RequiredWatermark: 42}},
		{"another replica", false, elections{"cluster": {Address: "cluster-2:7443"}},
			&clusterv1.HeartbeatResponse{Sequence: 7, RequiredWatermark: 42, LeaderTarget: "cluster-2:7443"}},
		{"nobody leads", false, nil, &clusterv1.HeartbeatResponse{Sequence: 7, RequiredWatermark: 42}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := &ear{leads: c.leads}
			s := &beats{stream: stream{ctx: ctx}, in: []*clusterv1.HeartbeatRequest{{Node: "node-1", Sequence: 7, Reason: "booting"}}}
			if err := NewLiveness("cluster", e, mark(42), c.elections).Heartbeat(s); err != nil {
				t.Fatal(err)
			}
			if len(s.out) != 1 || s.out[0].String() != c.want.String() {
				t.Errorf("answers are %v, want %v", s.out, c.want)
			}
			if len(e.heard) != 1 || e.heard[0] != (liveness.Beat{Node: "node-1", Reason: "booting"}) {
				t.Errorf("heard is %v", e.heard)
			}
		})
	}
	back := &beats{stream: stream{ctx: ctx}, in: []*clusterv1.HeartbeatRequest{{Node: "node-1", Sequence: 1}, {Node: "node-1", Sequence: 2}, {Node: "node-1", Sequence: 3}}}
	if err := NewLiveness("cluster", &ear{leads: true, dead: []bool{true, true}}, mark(42), nil).Heartbeat(back); err != nil {
		t.Fatal(err)
	}
	if len(back.out) != 1 || back.out[0].GetSequence() != 3 {
		t.Errorf("a node that the World calls dead is answered: %v", back.out)
	}
	s := &beats{stream: stream{ctx: ctx}, in: []*clusterv1.HeartbeatRequest{{Node: "node-2", Ready: true}}}
	e := &ear{leads: true}
	if err := NewLiveness("cluster", e, mark(0), nil).Heartbeat(s); !errs.Is(err, errs.Denied) || len(e.heard) > 0 {
		t.Errorf("a heartbeat in another node's name: %v, heard %v", err, e.heard)
	}
}
