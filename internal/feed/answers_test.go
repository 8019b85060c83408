package feed_test

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/push"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
)

// stuck is a planner that may be held up: what it has planned before is what its replica goes on answering.
type stuck struct {
	*mirror
	// gate is received from before each plan; nil never holds it up.
	gate chan struct{}
	ctx  context.Context
}

func (s *stuck) Plan(at store.Revision) (feed.Plan, error) {
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-s.ctx.Done():
		}
	}
	return s.mirror.Plan(at)
}

// answering is a replica without a hub. ready is closed when the process serves.
type answering struct {
	ready chan struct{}
	end   func()
}

func (a *answering) SetServing()    { close(a.ready) }
func (a *answering) SetNotServing() {}

func answer(t *testing.T, st *store.Store, replica string, plan *stuck) *answering {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	plan.ctx = ctx
	plan.mirror.Reset()
	a := &answering{ready: make(chan struct{})}
	d := daemon.New(daemon.Options{Name: "dns", Log: slog.New(slog.DiscardHandler)})
	d.AddHealth(a)
	ended, wired := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- d.Run(ctx, func(context.Context) error {
			feed.Start(d, feed.Parts{Store: st, Planner: plan, Replica: store.Replica{Service: "dns", Name: replica, Address: replica}})
			close(wired)
			return nil
		})
	}()
	<-wired
	var once bool
	a.end = func() {
		if once {
			return
		}
		once = true
		d.Stop()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("replica %s ended with: %v", replica, err)
		}
	}
	t.Cleanup(a.end)
	return a
}

// TestAnswers: the watermark of a service without a hub is the World that all of its live replicas answer from.
func TestAnswers(t *testing.T) {
	t.Parallel()
	fake := storefake.New(otherKinds())
	s := &service{t: t, ctx: t.Context(), fake: fake}
	one := answer(t, fake.Another(kinds()), "one", &stuck{mirror: &mirror{derive: true}})
	<-one.ready
	rev := s.put("namespaces", namespace("a", "1"))
	s.watermark(rev)
	if rec := s.pod("a", "1"); rec.Cause.Revision != rev {
		t.Errorf("derived because of %d, not %d", rec.Cause.Revision, rev)
	}
	list, err := fake.ListWatermarks(s.ctx)
	if err != nil || len(list) != 1 || list[0].Service != "dns" {
		t.Fatalf("watermarks: %+v, %v", list, err)
	}

	gate := make(chan struct{})
	two := answer(t, fake.Another(kinds()), "two", &stuck{mirror: &mirror{derive: true}, gate: gate})
	gate <- struct{}{} // the first World
	<-two.ready
	late := s.put("namespaces", namespace("b", "1"))
	// The first replica answers from the new World; the watermark waits for the second.
	for list, err := range fake.WatchReceipts(s.ctx, "dns") {
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(list, func(w store.Watermark) bool { return w.Replica == "one" }); i >= 0 && list[i].Revision >= late {
			break
		}
	}
	list, err = fake.ListWatermarks(s.ctx)
	if err != nil || list[0].Revision >= late {
		t.Errorf("the watermark passed %d, which one replica does not answer from: %+v, %v", late, list, err)
	}
	two.end() // and is not waited for any more
	s.watermark(late)
}

// TestAnswersOfAStoreThatWentBack: the receipt and the watermark are what the World of the restored store says, and rise with it.
func TestAnswersOfAStoreThatWentBack(t *testing.T) {
	t.Parallel()
	fake := storefake.New(otherKinds())
	s := &service{t: t, ctx: t.Context(), fake: fake}
	one := answer(t, fake.Another(kinds()), "one", &stuck{mirror: &mirror{derive: true}})
	<-one.ready
	backup := s.put("namespaces", namespace("a", "1"))
	s.watermark(backup)
	s.pod("a", "1")
	lost := s.put("namespaces", namespace("b", "1"))
	s.watermark(s.pod("b", "1").Revision)
	fake.Restore(backup)
	fake.ResetTerm()
	s.pod("a", "1") // made again, if it had not been in the backup
	for {
		next := s.put("namespaces", namespace("c", strconv.FormatInt(int64(fake.Revision()), 10)))
		s.watermark(next)
		if next > lost { // below it, at it and beyond it
			break
		}
	}
	for list, err := range fake.WatchReceipts(s.ctx, "dns") {
		if err != nil {
			t.Fatal(err)
		}
		if mark, err := fake.GetWatermark(s.ctx, "dns"); err == nil && len(list) == 1 && list[0].Revision >= mark.Revision {
			return
		}
	}
}

// TestReceiptOfTheSameRevisionInAnotherHistory: the store lost a receipt, and the World has come to the same revision again.
func TestReceiptOfTheSameRevisionInAnotherHistory(t *testing.T) {
	t.Parallel()
	fake := storefake.New(kinds())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	replica := store.Replica{Service: "dns", Name: "one", Address: "one"}
	a := feed.NewAnswers(fake.Store, replica, feed.NewLeader(fake.Store, replica), slog.New(slog.DiscardHandler), func() {})
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.WriteReceipts(ctx); err != nil {
			t.Error(err)
		}
	})
	defer func() { cancel(); running.Wait() }()
	written := func(what string, want store.Revision) store.Revision {
		t.Helper()
		for list, err := range fake.WatchReceipts(ctx, "dns") {
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if len(list) == 1 && list[0].Revision == want {
				return fake.Revision()
			}
		}
		t.Fatalf("%s: no receipt of %d", what, want)
		return 0
	}
	publish := func(p push.Publication) {
		if err := a.Publish(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	publish(push.Publication{Settled: 7})
	at := written("the first", 7)
	publish(push.Publication{Settled: 9})
	written("the second", 9)
	fake.Restore(at)
	publish(push.Publication{Settled: 9, Back: true})
	written("the second again", 9)
}

func TestLowest(t *testing.T) {
	t.Parallel()
	receipt := func(replica string, at store.Revision) store.Watermark {
		return store.Watermark{Service: "dns", Replica: replica, Revision: at}
	}
	for what, tt := range map[string]struct {
		receipts []store.Watermark
		revision store.Revision
		laggards []store.Laggard
	}{
		"nobody":         {nil, 0, nil},
		"one":            {[]store.Watermark{receipt("a", 7)}, 7, nil},
		"equals":         {[]store.Watermark{receipt("a", 7), receipt("b", 7)}, 7, nil},
		"one is behind":  {[]store.Watermark{receipt("a", 9), receipt("b", 7)}, 7, []store.Laggard{{Node: "dns/b", Revision: 7}}},
		"the last leads": {[]store.Watermark{receipt("a", 7), receipt("b", 8)}, 7, []store.Laggard{{Node: "dns/a", Revision: 7}}},
	} {
		if got := feed.Lowest("dns", tt.receipts); got.Service != "dns" || got.Revision != tt.revision || !slices.Equal(got.Laggards, tt.laggards) {
			t.Errorf("%s: %+v", what, got)
		}
	}
}
