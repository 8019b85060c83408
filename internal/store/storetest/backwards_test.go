package storetest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/store/storetest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// follower runs a follower and hands out its updates; Progress is not counted.
func follower(t *testing.T, st *store.Store, opts store.FollowOptions) (f *store.Follower, next func() store.Update) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	f = st.Follower(opts)
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("follower: %v", err)
		}
	})
	return f, func() store.Update {
		t.Helper()
		for {
			select {
			case u := <-f.Updates():
				if _, progress := u.(*store.Progress); !progress {
					return u
				}
			case <-ctx.Done():
				t.Fatal("the follower delivers nothing")
			}
		}
	}
}

func create(t *testing.T, st *store.Store, names ...string) (last store.Revision) {
	t.Helper()
	for _, name := range names {
		pod := &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: name}}
		var err error
		if last, err = st.Txn().Create(pod, "pods").Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

func TestFollowerFreezesOnAStoreThatWentBackwards(t *testing.T) {
	for _, c := range []struct {
		name   string
		fault  func(f *storefake.Fake)
		reason string
		left   int
	}{
		{"restored", func(f *storefake.Fake) { f.Restore(3) }, "revision was 4 and is 3", 2},
		{"other cluster", (*storefake.Fake).ReplaceCluster, "cluster id was fa4e and is fa4f", 3},
		{"lower term", (*storefake.Fake).ResetTerm, "raft term was 2 and is 1", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := storefake.New(storetest.Kinds())
			create(t, f.Store, "one", "two", "three")
			follow, next := follower(t, f.Store, store.FollowOptions{})
			held := next().(*store.Snapshot)
			c.fault(f)
			back, ok := next().(*store.Backwards)
			if !ok || back.Held != held.State || !strings.Contains(back.Reason, c.reason) {
				t.Fatalf("got %+v, want Backwards from %+v because the %s", back, held.State, c.reason)
			}
			// Even a revision beyond the held one is not delivered before it is accepted.
			create(t, f.Store, "four", "five")
			select {
			case u := <-follow.Updates():
				t.Fatalf("frozen, and yet it delivers %T", u)
			default:
			}
			follow.Accept()
			snap, ok := next().(*store.Snapshot)
			if !ok || len(snap.Records) != c.left+2 || snap.Revision != f.Revision() {
				t.Fatalf("after accepting: %+v", snap)
			}
			last := create(t, f.Store, "six")
			if b, ok := next().(*store.Batch); !ok || b.Revision != last {
				t.Fatalf("after the snapshot: %+v, want revision %d", b, last)
			}
		})
	}
}

func TestFollowerComparesWithWhatItsConsumerHolds(t *testing.T) {
	f := storefake.New(storetest.Kinds())
	create(t, f.Store, "one")
	st, err := f.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st.Revision += 10
	_, next := follower(t, f.Store, store.FollowOptions{Held: st})
	if back, ok := next().(*store.Backwards); !ok || back.Held != st {
		t.Fatalf("got %+v, want Backwards from %+v", back, st)
	}
}

func TestFollowerWaitsOutAnOutage(t *testing.T) {
	f := storefake.New(storetest.Kinds())
	f.Stop()
	_, next := follower(t, f.Store, store.FollowOptions{})
	f.Start()
	if _, ok := next().(*store.Snapshot); !ok {
		t.Fatal("no snapshot after the outage")
	}
	f.Disconnect()
	last := create(t, f.Store, "one")
	if b, ok := next().(*store.Batch); !ok || b.Revision != last {
		t.Fatalf("got %+v, want revision %d", b, last)
	}
}

func TestFollowerEndsWithABrokenValue(t *testing.T) {
	f := storefake.New(storetest.Kinds())
	other := f.Another(store.Kinds{"pods": func() store.Object { return &objectv1.Service{} }})
	svc := &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "b", Name: "x"}, Spec: &objectv1.ServiceSpec{ClusterIp: "\x01"}}
	if _, err := other.Txn().Create(svc, "pods").Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	follow := f.Follower(store.FollowOptions{})
	if err := follow.Run(ctx); err == nil || !strings.Contains(err.Error(), "pods/b/x") {
		t.Errorf("follower ended with %v, want the key that does not decode", err)
	}
	if _, open := <-follow.Updates(); open {
		t.Error("updates are not closed")
	}
	if err := follow.Run(ctx); err == nil {
		t.Error("a follower ran twice")
	}
}

func TestEtcdRestoredFromABackup(t *testing.T) {
	t.Parallel()
	etcd := storetest.StartEtcd(t)
	st := store.New(etcd.Engine(t), storetest.Kinds())
	backedUp := create(t, st, "one", "two")
	etcd.Stop()
	restore := etcd.Backup(t)
	etcd.Start(t)
	reconnected(t, st)
	follow, next := follower(t, st, store.FollowOptions{})
	if snap := next().(*store.Snapshot); len(snap.Records) != 2 {
		t.Fatalf("snapshot: %+v", snap)
	}
	last := create(t, st, "three", "four")
	for seen := store.Revision(0); seen < last; {
		seen = next().(*store.Batch).Revision
	}
	// A restart alone is nothing.
	etcd.Stop()
	etcd.Start(t)
	if last = create(t, reconnected(t, st), "five"); next().(*store.Batch).Revision != last {
		t.Fatal("the batch after the restart is not the one written")
	}
	etcd.Stop()
	restore()
	etcd.Start(t)
	back, ok := next().(*store.Backwards)
	if !ok || back.Held.Revision < last || back.Offered.Revision >= last || back.Offered.Revision < backedUp {
		t.Fatalf("got %+v, want Backwards from at least %d to less", back, last)
	}
	follow.Accept()
	if snap, ok := next().(*store.Snapshot); !ok || len(snap.Records) != 2 {
		t.Fatalf("after accepting: %+v", snap)
	}
}

// reconnected waits until etcd answers again.
func reconnected(t *testing.T, st *store.Store) *store.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := st.State(ctx)
		if err == nil {
			return st
		}
		if ctx.Err() != nil {
			t.Fatal(errors.Join(fmt.Errorf("etcd does not come back"), err))
		}
	}
}
