package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"podwire.dev/internal/store"
)

// watched collects what a watch yields until it has seen a revision.
func (b *bench) watched(t *testing.T, q store.WatchQuery, until store.Revision) []store.Batch {
	t.Helper()
	var out []store.Batch
	for batch, err := range b.Watch(b.ctx, q) {
		if err != nil {
			t.Fatalf("watch: %v, after %v", err, out)
		}
		if len(batch.Events) > 0 {
			out = append(out, batch)
		}
		if batch.Revision >= until {
			break
		}
	}
	return out
}

// story is what batches say, in short.
func story(batches []store.Batch, from store.Revision) []string {
	var out []string
	for _, batch := range batches {
		line := fmt.Sprintf("+%d", batch.Revision-from)
		for _, ev := range batch.Events {
			line += fmt.Sprintf(" %s %s", ev.Type, ev.Key.Name)
			if ev.Revision != batch.Revision {
				line += "?"
			}
		}
		out = append(out, line)
	}
	return out
}

func wantStory(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("watch tells\n  %q\nwant\n  %q", got, want)
	}
}

func testGrouping(t *testing.T, b *bench) {
	st, err := b.State(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.create(t, pod("a", "one"), pod("a", "two"), pod("b", "three"))
	b.label(t, "a", "two", "x")
	tx := b.Txn().Update(b.get(t, "a", "one"), labelled(pod("a", "one"), "y")).
		Delete(b.get(t, "a", "two")).Create(pod("c", "four"), "pods")
	last := commit(t, b.ctx, tx)
	batches := b.watched(t, store.WatchQuery{From: st.Revision + 1}, last)
	wantStory(t, story(batches, st.Revision), []string{
		"+1 put one put two put three", "+2 put two", "+3 put one deleted two put four",
	})
	for i, want := range []struct {
		value string
		ok    bool
	}{{"", false}, {"", true}, {"", true}} {
		ev := batches[i].Events[0]
		prev, ok, err := ev.Previous()
		if err != nil || ok != want.ok {
			t.Fatalf("previous of %s at +%d: %v, %v", ev.Key, i+1, ok, err)
		}
		if ok && prev.Object.GetMetadata().GetLabels()["v"] != want.value {
			t.Errorf("previous of %s at +%d is %v", ev.Key, i+1, prev.Object)
		}
	}
}

func testKindWatch(t *testing.T, b *bench) {
	st, err := b.State(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.create(t, pod("a", "one"), pod("b", "one"), pod("a", "onemore"))
	last := b.delete(t, "a", "one")
	for _, c := range []struct {
		query store.WatchQuery
		want  []string
	}{
		{store.WatchQuery{Kind: "pods"}, []string{"+1 put one put one put onemore", "+2 deleted one"}},
		{store.WatchQuery{Kind: "pods", Namespace: "a"}, []string{"+1 put one put onemore", "+2 deleted one"}},
		{store.WatchQuery{Kind: "pods", Namespace: "a", Name: "one"}, []string{"+1 put one", "+2 deleted one"}},
	} {
		c.query.From = st.Revision + 1
		batches := b.watched(t, c.query, last)
		wantStory(t, story(batches, st.Revision), c.want)
		gone := batches[len(batches)-1].Events[0]
		if gone.UID != "uid-a-one" || gone.Object == nil {
			t.Errorf("%+v: deletion has uid %q and object %v", c.query, gone.UID, gone.Object)
		}
	}
	b.Compact(t, last)
	for _, err := range b.Watch(b.ctx, store.WatchQuery{Kind: "pods", From: st.Revision + 1}) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("watch from a compacted revision: %v", err)
		}
	}
}

func testTombstones(t *testing.T, b *bench) {
	b.create(t, pod("a", "one"))
	before := b.get(t, "a", "one")
	cause := store.Cause{Revision: 7, Traceparent: "00-11111111111111111111111111111111-2222222222222222-01"}
	own := "00-33333333333333333333333333333333-4444444444444444-00"
	gone := b.delete(t, "a", "one", store.CausedBy(cause), store.TracedAs(own))
	endLeases(t, b.Engine, "/podwire/o/~deleted/")
	again := b.create(t, pod("a", "one"))
	batches := b.watched(t, store.WatchQuery{From: before.Revision + 1}, again)
	wantStory(t, story(batches, before.Revision), []string{"+1 deleted one", "+3 put one"})
	ev := batches[0].Events[0]
	if ev.UID != "uid-a-one" || ev.Cause != cause || ev.Traceparent != own {
		t.Errorf("deletion has uid %q, cause %+v, trace %q", ev.UID, ev.Cause, ev.Traceparent)
	}
	if ev.Object == nil || ev.Object.GetMetadata().GetResourceVersion() != fmt.Sprint(gone) || ev.CreateRevision != before.CreateRevision {
		t.Errorf("deletion has the object %v, created at %d", ev.Object, ev.CreateRevision)
	}
	snap, err := b.Snapshot(b.ctx)
	if err != nil || len(snap.Records) != 1 {
		t.Errorf("snapshot holds %v, %v", snap.Records, err)
	}
}

func testTombstoneLease(t *testing.T, b *bench) {
	b.create(t, pod("a", "one"), pod("a", "two"))
	commit(t, b.ctx, b.Txn().Delete(b.get(t, "a", "one")))
	endLeases(t, b.Engine, "/podwire/o/~deleted/")
	// The Store still holds the lease that is gone.
	commit(t, b.ctx, b.Txn().Delete(b.get(t, "a", "two")))
}

func testTraces(t *testing.T, b *bench) {
	sc := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4, 5}, TraceFlags: trace.FlagsSampled,
	})
	ctx := trace.ContextWithSpanContext(b.ctx, sc)
	cause := store.Cause{Revision: 42, Traceparent: "00-11111111111111111111111111111111-2222222222222222-01"}
	tx := b.Txn().Create(pod("a", "one"), "pods", store.CausedBy(cause)).Create(pod("a", "two"), "pods")
	commit(t, ctx, tx)
	one, two := b.get(t, "a", "one"), b.get(t, "a", "two")
	if one.Cause != cause || two.Cause != (store.Cause{}) {
		t.Errorf("causes are %+v and %+v", one.Cause, two.Cause)
	}
	want := "00-" + sc.TraceID().String() + "-"
	for _, rec := range []store.Record{one, two} {
		if len(rec.Traceparent) < len(want) || rec.Traceparent[:len(want)] != want {
			t.Errorf("%s has the trace %q, want the trace %s", rec.Key, rec.Traceparent, want)
		}
	}
}

// next is the follower's next update.
func next(t *testing.T, ctx context.Context, f *store.Follower) store.Update {
	t.Helper()
	select {
	case u, ok := <-f.Updates():
		if !ok {
			t.Fatal("the follower ended")
		}
		return u
	case <-ctx.Done():
		t.Fatal("the follower delivers nothing")
		return nil
	}
}

// nextOf is the next update, which must be of a type. Progress is not counted: etcd says it when it likes.
func nextOf[U store.Update](t *testing.T, ctx context.Context, f *store.Follower) U {
	t.Helper()
	for {
		u := next(t, ctx, f)
		if want, ok := u.(U); ok {
			return want
		}
		if _, ok := u.(*store.Progress); !ok {
			var want U
			t.Fatalf("follower delivers %T %+v, want %T", u, u, want)
		}
	}
}

// follow runs a follower for the length of the test.
func (b *bench) follow(t *testing.T, opts store.FollowOptions) *store.Follower {
	t.Helper()
	f := b.Follower(opts)
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("follower: %v", err)
		}
	})
	return f
}

func testFollow(t *testing.T, b *bench) {
	first := b.create(t, pod("b", "one"), pod("a", "two"))
	f := b.follow(t, store.FollowOptions{})
	snap := nextOf[*store.Snapshot](t, b.ctx, f)
	if snap.Revision < first || snap.Cluster == 0 || len(snap.Records) != 2 || snap.Records[0].Key != podKey("a", "two") {
		t.Errorf("snapshot of revision %d: %v", snap.Revision, snap.Records)
	}
	second := b.label(t, "b", "one", "x")
	third := b.delete(t, "a", "two")
	got := []store.Batch{*nextOf[*store.Batch](t, b.ctx, f), *nextOf[*store.Batch](t, b.ctx, f)}
	wantStory(t, story(got, second-1), []string{"+1 put one", fmt.Sprintf("+%d deleted two", third-second+1)})
}

func testFollowResumes(t *testing.T, b *bench) {
	b.create(t, pod("a", "one"))
	f := b.follow(t, store.FollowOptions{})
	nextOf[*store.Snapshot](t, b.ctx, f)
	b.link.cut()
	missed := b.create(t, pod("a", "two"))
	b.link.mend()
	if got := nextOf[*store.Batch](t, b.ctx, f); got.Revision != missed {
		t.Errorf("after the outage revision %d came, want %d", got.Revision, missed)
	}
}

func testFollowCompaction(t *testing.T, b *bench) {
	b.create(t, pod("a", "one"), pod("a", "two"))
	f := b.follow(t, store.FollowOptions{})
	before := nextOf[*store.Snapshot](t, b.ctx, f)
	b.link.cut()
	b.delete(t, "a", "one")
	b.create(t, pod("a", "three"))
	last := b.label(t, "a", "two", "x")
	b.Compact(t, last)
	b.link.mend()
	snap := nextOf[*store.Snapshot](t, b.ctx, f)
	if snap.Cluster != before.Cluster || snap.Revision < last || len(snap.Records) != 2 || snap.Records[0].Key.Name != "three" {
		t.Errorf("snapshot after the compaction: %+v", snap)
	}
	after := b.create(t, pod("a", "four"))
	if got := nextOf[*store.Batch](t, b.ctx, f); got.Revision != after {
		t.Errorf("after the snapshot revision %d came, want %d", got.Revision, after)
	}
}

func testCatchUp(t *testing.T, b *bench) {
	f := b.follow(t, store.FollowOptions{})
	nextOf[*store.Snapshot](t, b.ctx, f)
	// A revision that changes nothing in the World.
	silent, err := b.other().PutBlob(b.ctx, "test/silent", &emptyBlob{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	at, err := f.CatchUp(b.ctx)
	if err != nil || at < silent {
		t.Fatalf("caught up with %d, %v, want at least %d", at, err, silent)
	}
	for {
		p, ok := next(t, b.ctx, f).(*store.Progress)
		if !ok {
			t.Fatal("something happened to the World")
		}
		if p.Revision >= silent {
			return
		}
	}
}
