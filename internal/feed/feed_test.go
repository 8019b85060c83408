package feed_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/telemetry"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// patience bounds what has to happen, so that what never does fails.
const patience = 30 * time.Second

// kinds are those of the service under test; it does not know Services, which somebody else owns.
func kinds() store.Kinds {
	return store.Kinds{
		feed.KindNode: func() store.Object { return &objectv1.Node{} },
		"namespaces":  func() store.Object { return &objectv1.Namespace{} },
		"pods":        func() store.Object { return &objectv1.Pod{} },
	}
}

func otherKinds() store.Kinds {
	all := kinds()
	all["services"] = func() store.Object { return &objectv1.Service{} }
	return all
}

// mirror is a Planner: each Namespace is a row, and wants a Pod of its name with its labels.
type mirror struct {
	namespaces, pods map[string]store.Record
	rows             *nodestate.Slice
	derive           bool
	fail             error
}

func (m *mirror) Reset() {
	m.namespaces, m.pods, m.rows = map[string]store.Record{}, map[string]store.Record{}, nodestate.NewSlice()
}

func (m *mirror) of(kind string) map[string]store.Record {
	switch kind {
	case "namespaces":
		return m.namespaces
	case "pods":
		return m.pods
	}
	return map[string]store.Record{}
}

func (m *mirror) Put(rec store.Record) { m.of(rec.Key.Kind)[rec.Key.Name] = rec }

func (m *mirror) Delete(ev store.Event) { delete(m.of(ev.Key.Kind), ev.Key.Name) }

func (m *mirror) Plan(store.Revision) (feed.Plan, error) {
	next := nodestate.NewSlice()
	var writes []feed.Write
	for name, rec := range m.namespaces {
		next.Upsert(nodestate.Member{Name: name, Kind: nodestate.MemberNode})
		have, ok := m.pods[name]
		want := rec.Object.GetMetadata().GetLabels()["k"]
		w := feed.Write{
			Key:    store.Key{Kind: "pods", Namespace: "derived", Name: name},
			Object: derived(name, want), Cause: store.Cause{Revision: rec.Revision, Traceparent: rec.Traceparent},
		}
		switch {
		case !ok:
			writes = append(writes, w)
		case have.Object.GetMetadata().GetLabels()["k"] != want:
			w.Base = &have
			writes = append(writes, w)
		}
	}
	for name, have := range m.pods {
		if _, ok := m.namespaces[name]; !ok {
			writes = append(writes, feed.Write{Key: have.Key, Base: &have})
		}
	}
	if !m.derive {
		writes = nil
	}
	delta := nodestate.Diff(m.rows, next)
	m.rows = next
	return feed.Plan{Shared: delta, Writes: writes}, m.fail
}

func derived(name, k string) *objectv1.Pod {
	return &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "derived", Name: name, Uid: "uid-" + name, Labels: map[string]string{"k": k}}}
}

func namespace(name, k string) *objectv1.Namespace {
	return &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name, Uid: "uid-" + name, Labels: map[string]string{"k": k}}}
}

// service is a feed at work on a store in memory.
type service struct {
	t       *testing.T
	ctx     context.Context
	fake    *storefake.Fake
	running feed.Running
	hub     *push.Hub
	end     func() error
}

// start runs a replica on st. The service ends with the test.
func start(t *testing.T, fake *storefake.Fake, st *store.Store, replica string, plan *mirror) *service {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s := &service{t: t, ctx: ctx, fake: fake, hub: push.NewHub(nodestate.SourceIPAM, push.Options{Authorize: pushtest.Anybody})}
	d := daemon.New(daemon.Options{Name: "ipam", Log: slog.New(slog.DiscardHandler)})
	ended, wired := make(chan error, 1), make(chan struct{})
	plan.Reset()
	go func() {
		ended <- d.Run(ctx, func(context.Context) error {
			s.running = feed.Start(d, feed.Parts{
				Store: st, Planner: plan, Hub: s.hub, Replica: store.Replica{Service: "ipam", Name: replica, Address: replica + ":7443"},
			})
			close(wired)
			return nil
		})
	}()
	<-wired
	s.end = sync.OnceValue(func() error { d.Stop(); defer cancel(); return <-ended })
	t.Cleanup(func() {
		if err := s.end(); err != nil && plan.fail == nil {
			t.Errorf("the service ended with: %v", err)
		}
	})
	return s
}

func newService(t *testing.T, plan *mirror) *service {
	t.Helper()
	fake := storefake.New(otherKinds())
	return start(t, fake, fake.Another(kinds()), "one", plan)
}

func (s *service) put(kind string, o store.Object) store.Revision {
	s.t.Helper()
	tx := s.fake.Txn()
	rec, _, err := s.fake.Get(s.ctx, store.KeyOf(kind, o))
	if err == nil {
		tx.Update(rec, o)
	} else {
		tx.Create(o, kind)
	}
	rev, err := tx.Commit(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return rev
}

func (s *service) remove(key store.Key) store.Revision {
	s.t.Helper()
	rec, _, err := s.fake.Get(s.ctx, key)
	if err != nil {
		s.t.Fatal(err)
	}
	rev, err := s.fake.Txn().Delete(rec).Commit(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return rev
}

// watermark waits until the service's watermark has passed a revision.
func (s *service) watermark(at store.Revision) {
	s.t.Helper()
	var last []store.Watermark
	for list, err := range s.fake.WatchWatermarks(s.ctx) {
		if err != nil {
			s.t.Fatalf("the watermark does not pass %d: %+v: %v", at, last, err)
		}
		if last = list; len(list) == 1 && list[0].Revision >= at {
			return
		}
	}
	s.t.Fatalf("the watermark does not pass %d: %+v", at, last)
}

// pod waits for a derived Pod with the label; "" is its absence.
func (s *service) pod(name, want string) store.Record {
	s.t.Helper()
	key := store.Key{Kind: "pods", Namespace: "derived", Name: name}
	for {
		rec, at, err := s.fake.Get(s.ctx, key)
		if err != nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Unavailable) {
			s.t.Fatalf("pod %s: %v", name, err)
		}
		if err == nil && rec.Object.GetMetadata().GetLabels()["k"] == want && want != "" || errs.Is(err, errs.NotFound) && want == "" {
			return rec
		}
		if s.ctx.Err() != nil {
			s.t.Fatalf("pod %s is %v, want %q", name, rec.Object, want)
		}
		next, stop := context.WithCancel(s.ctx)
		for batch, err := range s.fake.Watch(next, store.WatchQuery{From: at + 1}) {
			if err != nil || len(batch.Events) > 0 {
				break
			}
		}
		stop()
	}
}

func (s *service) agent(t *testing.T, node string) *pushtest.Agent {
	a := &pushtest.Agent{Source: nodestate.SourceIPAM, Node: node, Conn: pushtest.Serve(t, s.hub).Dial(t, nil)}
	a.Start(t)
	return a
}

// holds waits until an agent holds exactly the members named, at the revision or later.
func holds(t *testing.T, a *pushtest.Agent, at store.Revision, want ...string) {
	t.Helper()
	a.Await(t, func(kernel *nodestate.Slice, held nodestate.Version) bool {
		var got []string
		for _, r := range kernel.Rows(nodestate.TableMembers) {
			got = append(got, r.Key())
		}
		return held.Revision >= int64(at) && slices.Equal(got, want)
	})
}

func ready(name, status string) *objectv1.Node {
	n := &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: name}, Status: &objectv1.NodeStatus{}}
	if status != "" {
		n.Status.Conditions = []*objectv1.NodeCondition{{Type: "Other"}, {Type: "Ready", Status: status}}
	}
	return n
}

func TestFlow(t *testing.T) {
	t.Parallel()
	s := newService(t, &mirror{derive: true})
	s.put(feed.KindNode, ready("node-1", "True"))
	a := s.agent(t, "node-1")
	rev := s.put("namespaces", namespace("a", "1"))
	holds(t, a, rev, "a")
	rec := s.pod("a", "1")
	if rec.Cause.Revision != rev {
		t.Errorf("the derived write says that revision %d caused it, not %d", rec.Cause.Revision, rev)
	}
	s.watermark(rec.Revision)
	s.put("namespaces", namespace("a", "2"))
	s.pod("a", "2")
	s.put("namespaces", namespace("b", "1"))
	s.pod("b", "1")
	rev = s.remove(store.Key{Kind: "namespaces", Name: "a"})
	s.pod("a", "")
	holds(t, a, rev, "b")
	s.watermark(rev)
}

// TestReceiptsPassOtherKinds waits for a change that is no concern of the service.
func TestReceiptsPassOtherKinds(t *testing.T) {
	t.Parallel()
	s := newService(t, &mirror{})
	s.put(feed.KindNode, ready("node-1", "True"))
	a := s.agent(t, "node-1")
	rev := s.put("namespaces", namespace("a", "1"))
	holds(t, a, rev, "a")
	s.watermark(s.put("services", &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "x", Name: "y"}}))
	s.watermark(s.remove(store.Key{Kind: "services", Namespace: "x", Name: "y"}))
	at := s.fake.Revision()
	s.fake.SendProgress()
	s.watermark(s.put("namespaces", namespace("b", "1")))
	if now := s.fake.Revision(); now > at+2 {
		t.Errorf("progress of an idle store was answered with writes: revision %d, then %d", at, now)
	}
}

// TestNobodyHoldsBack has no Node, one that was never ready, and one that is dead.
func TestNobodyHoldsBack(t *testing.T) {
	t.Parallel()
	s := newService(t, &mirror{})
	s.watermark(s.put("namespaces", namespace("a", "1")))
	s.put(feed.KindNode, ready("new", ""))
	s.watermark(s.put(feed.KindNode, ready("dead", "Unknown")))
}

func TestStandingOf(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]push.Standing{
		"": push.StandingNew, "True": push.StandingMember, "False": push.StandingMember, "Unknown": push.StandingDead,
	} {
		if got := feed.StandingOf(ready("n", status)); got != want {
			t.Errorf("Ready %q: %v, want %v", status, got, want)
		}
	}
}

// TestFaults breaks what can break while derived writes are under way; each must be made in the end, once.
func TestFaults(t *testing.T) {
	t.Parallel()
	elections := "/podwire/x/elections/"
	for name, fault := range map[string]func(s *service){
		"disconnected":  func(s *service) { s.fake.Disconnect() },
		"lost answer":   func(s *service) { s.fake.LoseAnswers(1) },
		"lost request":  func(s *service) { s.fake.LoseRequests(1) },
		"lost election": func(s *service) { s.fake.ExpireLeases(elections) },
		"compacted":     func(s *service) { s.fake.Disconnect(); s.fake.Compact(s.fake.Revision()) },
		"away and back": func(s *service) { s.fake.Stop(); s.fake.Start() },
		"somebody first": func(s *service) {
			s.fake.BeforeTxn(func() { s.put("pods", derived("b", "other")) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, &mirror{derive: true})
			s.put(feed.KindNode, ready("node-1", "True"))
			a := s.agent(t, "node-1")
			s.put("namespaces", namespace("a", "1"))
			s.pod("a", "1")
			other := s.fake.Another(otherKinds())
			o := namespace("b", "1")
			if name == "somebody first" {
				rev, err := other.Txn().Create(o, "namespaces").Commit(s.ctx)
				if err != nil {
					t.Fatal(err)
				}
				fault(s)
				s.pod("b", "1")
				holds(t, a, rev, "a", "b")
				return
			}
			rev := s.put("namespaces", o)
			fault(s)
			s.pod("b", "1")
			holds(t, a, rev, "a", "b")
			last := s.put("namespaces", namespace("c", "1"))
			s.pod("c", "1")
			s.watermark(last)
		})
	}
}

// TestOneWriter has two replicas: only the elected one writes, and the other goes on when it ends.
func TestOneWriter(t *testing.T) {
	t.Parallel()
	one := newService(t, &mirror{derive: true})
	one.put("namespaces", namespace("a", "1"))
	one.pod("a", "1")
	two := start(t, one.fake, one.fake.Another(kinds()), "two", &mirror{derive: true})
	if err := two.running.Do(two.ctx, func(store.Revision) {}); err != nil {
		t.Fatal(err)
	}
	if two.running.Leader.Leadership() != nil {
		t.Error("two replicas lead")
	}
	two.put("namespaces", namespace("b", "1"))
	two.pod("b", "1")
	if err := one.end(); err != nil {
		t.Error(err)
	}
	two.put("namespaces", namespace("c", "1"))
	two.watermark(two.pod("c", "1").Revision)
	if two.running.Leader.Leadership() == nil {
		t.Error("nobody leads")
	}
}

// TestBackwards restores the store: the service plans from what the store says now.
func TestBackwards(t *testing.T) {
	t.Parallel()
	s := newService(t, &mirror{derive: true})
	// What is derived first shows that the election is held. The fake's leases do not go back with its keys, so that the loss
	// of one that is undone would not be noticed.
	s.put("namespaces", namespace("z", "1"))
	s.pod("z", "1")
	s.remove(store.KeyOf("namespaces", namespace("z", "1")))
	s.pod("z", "")
	rev := s.put("namespaces", namespace("a", "1"))
	s.pod("a", "1")
	s.put("namespaces", namespace("b", "1"))
	s.watermark(s.pod("b", "1").Revision)
	// Without its raft term, a store that has overtaken the held revision by the time of the next look cannot be told from
	// one that went on.
	s.fake.Restore(rev)
	s.fake.ResetTerm()
	s.put("namespaces", namespace("c", "1"))
	s.pod("a", "1")
	s.pod("c", "1")
	s.pod("b", "")
	fresh := s.agent(t, "node-9")
	holds(t, fresh, 0, "a", "c")
}

func TestPlanErrorEnds(t *testing.T) {
	t.Parallel()
	plan := &mirror{fail: errs.New(errs.Invalid, "the World is impossible")}
	fake := storefake.New(kinds())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	follower := fake.Follower(store.FollowOptions{})
	followed := make(chan error, 1)
	go func() { followed <- follower.Run(ctx) }()
	err := feed.New(feed.Options{Follower: follower, Planner: plan}).Run(ctx)
	if !errs.Is(err, errs.Invalid) {
		t.Errorf("ended with %v", err)
	}
	cancel()
	if err := <-followed; err != nil {
		t.Error(err)
	}
}

func TestDoWithoutWorld(t *testing.T) {
	t.Parallel()
	f := feed.New(feed.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := f.Do(ctx, func(store.Revision) { t.Error("asked a World that is not there") })
	if !errs.Is(err, errs.Unavailable) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// recorder is a Publisher that keeps what it gets, and tells of each.
type recorder struct{ got chan push.Publication }

func (r *recorder) Publish(_ context.Context, p push.Publication) error {
	r.got <- p
	return nil
}

// TestSettled follows what a publication says of derived writes, with nobody who makes them but the test.
func TestSettled(t *testing.T) {
	t.Parallel()
	fake := storefake.New(otherKinds())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	s := &service{t: t, ctx: ctx, fake: fake}
	follower := fake.Another(kinds()).Follower(store.FollowOptions{})
	rec := &recorder{got: make(chan push.Publication)}
	readies := 0
	plan := &mirror{derive: true}
	f := feed.New(feed.Options{Follower: follower, Planner: plan, Publisher: rec, Ready: func() { readies++ }})
	var running sync.WaitGroup
	running.Go(func() {
		if err := follower.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer func() { cancel(); running.Wait() }()
	next := func(what string, version, settled store.Revision) push.Publication {
		t.Helper()
		select {
		case p := <-rec.got:
			if got := fmt.Sprint(p.Version.Revision, p.Settled); got != fmt.Sprint(version, settled) {
				t.Errorf("%s: published and settled %s, want %d %d", what, got, version, settled)
			}
			return p
		case <-ctx.Done():
			t.Fatalf("%s: nothing is published", what)
		}
		return push.Publication{}
	}
	next("the empty World", fake.Revision(), fake.Revision())
	first := s.put("namespaces", namespace("a", "1"))
	p := next("a derived write is lacking", first, first-1)
	if len(p.Changes) != 1 || p.Changes[0].Object != "namespaces/-/a" || p.Changes[0].Revision != int64(first) {
		t.Errorf("changes: %+v", p.Changes)
	}
	other := s.put("services", &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "x", Name: "y"}})
	next("another service's object passes", other, first-1)
	second := s.put("namespaces", namespace("a", "2"))
	next("the cause changes, the write is still lacking since the first", second, first-1)
	made := s.put("pods", derived("a", "2"))
	next("it is made", made, made)
	node := s.put(feed.KindNode, ready("node-1", "True"))
	if p := next("a node", node, node); p.Nodes["node-1"] != push.StandingMember {
		t.Errorf("nodes: %v", p.Nodes)
	}
	gone := s.remove(store.Key{Kind: feed.KindNode, Name: "node-1"})
	if p := next("no node", gone, gone); p.Nodes == nil || len(p.Nodes) != 0 {
		t.Errorf("nodes: %v", p.Nodes)
	}
	lone := s.remove(store.Key{Kind: "namespaces", Name: "a"})
	next("a deletion is lacking, whose cause is not known", lone, lone-1)
	fake.Disconnect()
	fake.Compact(fake.Revision())
	again := s.put("namespaces", namespace("b", "1"))
	for {
		p := <-rec.got
		if p.Settled != int64(lone-1) {
			t.Errorf("after a new snapshot: settled %d, want %d", p.Settled, lone-1)
		}
		if p.Version.Revision == int64(again) {
			break
		}
	}
	if readies != 1 {
		t.Errorf("ready %d times", readies)
	}
}

// TestWhatIsNotTouchedLeavesNoHop: a change leaves a hop where it changed rows or what is to be written, and everywhere in a
// service that answers from the World itself.
func TestWhatIsNotTouchedLeavesNoHop(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name           string
		derive, answer bool
		change         store.Object
		want           bool
	}{
		{"a new row", false, false, namespace("b", "1"), true},
		{"nothing of the rows", false, false, namespace("a", "2"), false},
		{"a derived write", true, false, namespace("a", "2"), true},
		{"nothing, of a service that has no rows", false, true, namespace("a", "2"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fake := storefake.New(kinds())
			tele, err := telemetry.New(t.Context(), telemetry.Process{Service: "ipam"})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(tele.Context(context.Background()), patience)
			s := &service{t: t, ctx: ctx, fake: fake}
			s.put("namespaces", namespace("a", "1"))
			s.put("pods", derived("a", "1"))
			follower := fake.Follower(store.FollowOptions{})
			rec := &recorder{got: make(chan push.Publication)}
			plan := &mirror{derive: tt.derive}
			plan.Reset()
			f := feed.New(feed.Options{Follower: follower, Planner: plan, Publisher: rec, AnswersFromWorld: tt.answer})
			var running sync.WaitGroup
			running.Go(func() {
				if err := follower.Run(ctx); err != nil {
					t.Error(err)
				}
			})
			running.Go(func() {
				if err := f.Run(ctx); err != nil {
					t.Error(err)
				}
			})
			defer func() { cancel(); running.Wait() }()
			published := func(at store.Revision) push.Publication {
				for {
					select {
					case p := <-rec.got:
						if p.Version.Revision >= int64(at) {
							return p
						}
					case <-ctx.Done():
						t.Fatalf("revision %d is not published", at)
					}
				}
			}
			published(fake.Revision())
			at := s.put("namespaces", tt.change)
			p := published(at)
			stored, _, err := fake.Get(ctx, store.KeyOf("namespaces", tt.change))
			if err != nil {
				t.Fatal(err)
			}
			parent, ok := telemetry.ParseTraceparent(stored.Traceparent)
			if !ok {
				t.Fatalf("traceparent %q", stored.Traceparent)
			}
			hops, _ := tele.Ring().FromTrace(parent.TraceID())
			left := slices.ContainsFunc(hops, func(h telemetry.Hop) bool { return h.Name == "plan" && h.Revision == int64(at) })
			if left != tt.want || (len(p.Changes) == 1) != tt.want {
				t.Errorf("left a hop: %t, want %t; hops %v, published %+v", left, tt.want, hops, p)
			}
		})
	}
}
