package storetest

import (
	"context"
	"errors"
	"iter"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
)

// emptyBlob is a value that says nothing.
type emptyBlob = emptypb.Empty

// ttl is the shortest lease that etcd grants with its default timing, so that losses are noticed soon.
const ttl = 2 * time.Second

func (b *bench) session(t *testing.T) *store.Session {
	t.Helper()
	s, err := b.NewSession(b.ctx, ttl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), patience)
		defer cancel()
		if err := s.Close(end); err != nil {
			t.Errorf("close the session: %v", err)
		}
	})
	return s
}

func (b *bench) wait(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-b.ctx.Done():
		t.Fatalf("%s did not happen", what)
	}
}

// pulled reads a watch value by value.
func pulled[T any](t *testing.T, seq iter.Seq2[T, error]) func() T {
	t.Helper()
	pull, stop := iter.Pull2(seq)
	t.Cleanup(stop)
	return func() T {
		t.Helper()
		v, err, ok := pull()
		if err != nil || !ok {
			t.Fatalf("watch ended: %v", err)
		}
		return v
	}
}

// reach reads a watch until it shows a value. What lies between may be shown or not.
func reach[T any](t *testing.T, see func() T, want T) {
	t.Helper()
	for !reflect.DeepEqual(see(), want) {
	}
}

func want[T any](t *testing.T, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func testReplicas(t *testing.T, b *bench) {
	see := pulled(t, b.WatchReplicas(b.ctx, "ipam"))
	reach(t, see, []store.Replica{})
	one := store.Replica{Service: "ipam", Name: "one", Address: "10.0.0.1:7443"}
	two := store.Replica{Service: "ipam", Name: "two", Address: "10.0.0.2:7443"}
	s1, s2 := b.session(t), b.session(t)
	for _, r := range []struct {
		session *store.Session
		replica store.Replica
	}{{s2, two}, {s1, one}, {s1, store.Replica{Service: "policy", Name: "one", Address: "x"}}} {
		if err := r.session.Register(b.ctx, r.replica); err != nil {
			t.Fatal(err)
		}
	}
	reach(t, see, []store.Replica{one, two})
	list, err := b.ListReplicas(b.ctx, "")
	if err != nil || len(list) != 3 {
		t.Fatalf("all replicas: %v, %v", list, err)
	}
	endLeases(t, b.Engine, "/podwire/x/replicas/ipam/one")
	b.wait(t, s1.Lost(), "the loss of the lease")
	reach(t, see, []store.Replica{two})
	if _, err := b.Register(b.ctx, "ipam", "a/b", "x"); !errs.Is(err, errs.Invalid) {
		t.Errorf("registered as a/b: %v", err)
	}
}

func testKeepRegistered(t *testing.T, b *bench) {
	me := store.Replica{Service: "ipam", Name: "one", Address: "10.0.0.1:7443"}
	see := pulled(t, b.other().WatchReplicas(b.ctx, "ipam"))
	reach(t, see, []store.Replica{})
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- b.KeepRegistered(ctx, me) }()
	reach(t, see, []store.Replica{me})
	endLeases(t, b.Engine, "/podwire/x/replicas/ipam/")
	reach(t, see, []store.Replica{})
	reach(t, see, []store.Replica{me})
	cancel()
	reach(t, see, []store.Replica{})
	if err := <-done; err != nil {
		t.Errorf("KeepRegistered: %v", err)
	}
}

func testElection(t *testing.T, b *bench) {
	s1, s2 := b.session(t), b.session(t)
	first, err := s1.Campaign(b.ctx, "endpoints", "one", "10.0.0.1:7443")
	if err != nil {
		t.Fatal(err)
	}
	won := make(chan *store.Leadership, 1)
	go func() {
		l, err := s2.Campaign(b.ctx, "endpoints", "two", "10.0.0.2:7443")
		if err != nil {
			t.Errorf("second campaign: %v", err)
		}
		won <- l
	}()
	commit(t, b.ctx, b.Txn().RequireLeader(first).Create(pod("a", "one"), "pods"))
	leader, err := b.GetLeader(b.ctx, "endpoints")
	if err != nil || leader != first.Leader || leader.Replica != "one" || leader.Address != "10.0.0.1:7443" {
		t.Fatalf("leader is %+v, %v", leader, err)
	}
	endLeases(t, b.Engine, "/podwire/x/elections/endpoints")
	second := <-won
	if second == nil {
		t.Fatal("nobody took over")
	}
	if second.Epoch <= first.Epoch {
		t.Errorf("epoch went from %d to %d", first.Epoch, second.Epoch)
	}
	_, err = b.Txn().RequireLeader(first).Create(pod("a", "two"), "pods").Commit(b.ctx)
	wantKind(t, err, errs.Conflict)
	commit(t, b.ctx, b.Txn().RequireLeader(second).Create(pod("a", "two"), "pods"))
	b.wait(t, first.Lost(), "the loss of the election")
	_, err = s1.Campaign(b.ctx, "endpoints", "one", "10.0.0.1:7443")
	if !errors.Is(err, store.ErrLost) {
		t.Errorf("campaign on a lost session: %v", err)
	}
}

func testResign(t *testing.T, b *bench) {
	_, err := b.GetLeader(b.ctx, "scheduler")
	wantKind(t, err, errs.NotFound)
	s1, s2 := b.session(t), b.session(t)
	first, err := s1.Campaign(b.ctx, "scheduler", "one", "x")
	if err != nil {
		t.Fatal(err)
	}
	see := pulled(t, b.WatchLeaders(b.ctx))
	reach(t, see, []store.Leader{first.Leader})
	again, err := s1.Campaign(b.ctx, "scheduler", "one", "x")
	if err != nil || again.Epoch != first.Epoch {
		t.Fatalf("a holder that campaigns again gets %+v, %v", again, err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if _, err := s2.Campaign(ctx, "scheduler", "two", "y"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled campaign: %v", err)
	}
	for range 2 { // resigning twice is no error
		if err := first.Resign(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	reach(t, see, []store.Leader{})
	second, err := s2.Campaign(b.ctx, "scheduler", "two", "y")
	if err != nil {
		t.Fatal(err)
	}
	reach(t, see, []store.Leader{second.Leader})
	if err := first.Resign(b.ctx); err != nil {
		t.Fatal(err)
	}
	if leader, err := b.GetLeader(b.ctx, "scheduler"); err != nil || leader.Replica != "two" {
		t.Errorf("a resignation of the old leader left %+v, %v", leader, err)
	}
}

func testWatermark(t *testing.T, b *bench) {
	leader, err := b.session(t).Campaign(b.ctx, "policy", "one", "x")
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.GetWatermark(b.ctx, "policy")
	wantKind(t, err, errs.NotFound)
	see := pulled(t, b.WatchWatermarks(b.ctx))
	reach(t, see, []store.Watermark{})
	raise := func(rev store.Revision, laggards ...store.Laggard) store.Watermark {
		t.Helper()
		held, err := b.RaiseWatermark(b.ctx, leader, store.Watermark{Service: "policy", Revision: rev, Laggards: laggards})
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	at10 := store.Watermark{Service: "policy", Revision: 10}
	lagging := store.Watermark{Service: "policy", Revision: 10, Laggards: []store.Laggard{
		{Node: "node-1", Revision: 10, Refused: 11, Reason: "no such chain"},
	}}
	want(t, raise(10), at10)
	reach(t, see, []store.Watermark{at10})
	before, err := b.State(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	want(t, raise(9), at10)
	want(t, raise(10), at10)
	if after, err := b.State(b.ctx); err != nil || after.Revision != before.Revision {
		t.Errorf("raising to what is held wrote: revision %d, then %d, %v", before.Revision, after.Revision, err)
	}
	want(t, raise(10, lagging.Laggards...), lagging)
	reach(t, see, []store.Watermark{lagging})
	want(t, raise(9), lagging)
	want(t, raise(12), store.Watermark{Service: "policy", Revision: 12})
	reach(t, see, []store.Watermark{{Service: "policy", Revision: 12}})
	if err := leader.Resign(b.ctx); err != nil {
		t.Fatal(err)
	}
	_, err = b.RaiseWatermark(b.ctx, leader, store.Watermark{Service: "policy", Revision: 13})
	wantKind(t, err, errs.Conflict)
	list, err := b.ListWatermarks(b.ctx)
	if err != nil || len(list) != 1 || list[0].Revision != 12 {
		t.Errorf("watermarks are %v, %v", list, err)
	}
}

func testReceipts(t *testing.T, b *bench) {
	s := b.session(t)
	see := pulled(t, b.WatchReceipts(b.ctx, "policy"))
	reach(t, see, []store.Watermark{})
	r := store.Watermark{Service: "policy", Replica: "one", Revision: 5}
	for _, rev := range []store.Revision{5, 4, 5} {
		w := r
		w.Revision = rev
		held, err := s.RaiseReceipt(b.ctx, w)
		if err != nil {
			t.Fatal(err)
		}
		want(t, held, r)
	}
	reach(t, see, []store.Watermark{r})
	endLeases(t, b.Engine, "/podwire/x/receipts/")
	reach(t, see, []store.Watermark{})
	_, err := s.RaiseReceipt(b.ctx, r)
	wantKind(t, err, errs.Unavailable)
}

func testRequired(t *testing.T, b *bench) {
	_, err := b.Required(b.ctx)
	wantKind(t, err, errs.NotFound)
	see := pulled(t, b.WatchRequired(b.ctx))
	reach(t, see, []string(nil))
	for _, services := range [][]string{{"cluster", "policy"}, {"cluster", "policy"}, {}} {
		if err := b.SetRequired(b.ctx, services); err != nil {
			t.Fatal(err)
		}
		reach(t, see, services)
		see = pulled(t, b.WatchRequired(b.ctx))
	}
	got, err := b.Required(b.ctx)
	if err != nil || len(got) != 0 {
		t.Errorf("required is %v, %v", got, err)
	}
}

func testBlobs(t *testing.T, b *bench) {
	value := func(s string) proto.Message { return wrapperspb.String(s) }
	var got wrapperspb.StringValue
	_, err := b.GetBlob(b.ctx, "tokens/used/a", &got)
	wantKind(t, err, errs.NotFound)
	first, err := b.PutBlob(b.ctx, "tokens/used/a", value("one"), 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.PutBlob(b.ctx, "tokens/used/a", value("two"), 0)
	wantKind(t, err, errs.Conflict)
	second, err := b.PutBlob(b.ctx, "tokens/used/a", value("two"), first)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := b.GetBlob(b.ctx, "tokens/used/a", &got)
	if err != nil || rev != second || got.GetValue() != "two" {
		t.Errorf("blob is %q at %d, %v", got.GetValue(), rev, err)
	}
	if _, err := b.GetBlob(b.ctx, "tokens/used/a", &emptyBlob{}); !errs.Is(err, errs.Internal) {
		t.Errorf("read as another type: %v", err)
	}
	if _, err := b.PutBlob(b.ctx, "tokens//a", value("x"), 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("path with an empty part: %v", err)
	}
	if _, err := b.PutBlob(b.ctx, "tokens/usedmore", value("x"), 0); err != nil {
		t.Fatal(err)
	}
	list, err := b.ListBlobs(b.ctx, "tokens/used", func() proto.Message { return &wrapperspb.StringValue{} })
	if err != nil || len(list) != 1 || list[0].Path != "tokens/used/a" || !proto.Equal(list[0].Message, value("two")) {
		t.Errorf("blobs are %v, %v", list, err)
	}
	if err := b.DeleteBlob(b.ctx, "tokens/used/a", first); !errs.Is(err, errs.Conflict) {
		t.Errorf("deleted what had changed: %v", err)
	}
	if err := b.DeleteBlob(b.ctx, "tokens/used/a", second); err != nil {
		t.Fatal(err)
	}
	_, err = b.GetBlob(b.ctx, "tokens/used/a", &got)
	wantKind(t, err, errs.NotFound)
}

func testUpkeep(t *testing.T, b *bench) {
	st, err := b.State(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	members, err := b.Members(b.ctx)
	if err != nil || len(members) != 1 {
		t.Fatalf("members are %v, %v", members, err)
	}
	if m := members[0]; m.Cluster != st.Cluster || m.Revision < st.Revision || !m.Leader || m.Quota == 0 || m.Version == "" {
		t.Errorf("member is %+v", m)
	}
	if _, err := b.Defragment(b.ctx); err != nil {
		t.Error(err)
	}
}

// testSuccessor restarts a leader without a farewell: the process after it, of the same name, does not wait for its lease,
// and what is left of it commits nothing more.
func testSuccessor(t *testing.T, b *bench) {
	s1, s2 := b.session(t), b.session(t)
	first, err := s1.Campaign(b.ctx, "successor", "one", "10.0.0.1:7443")
	if err != nil {
		t.Fatal(err)
	}
	second, err := s2.Campaign(b.ctx, "successor", "one", "10.0.0.1:7443")
	if err != nil {
		t.Fatal(err)
	}
	if second.Epoch <= first.Epoch {
		t.Errorf("epoch %d after %d", second.Epoch, first.Epoch)
	}
	_, err = b.Txn().RequireLeader(first).Create(pod("a", "by-the-dead"), "pods").Commit(b.ctx)
	wantKind(t, err, errs.Conflict)
	commit(t, b.ctx, b.Txn().RequireLeader(second).Create(pod("a", "by-the-living"), "pods"))
}
