package storetest_test

import (
	"context"
	"fmt"
	"testing"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/kv"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/store/storetest"
)

func TestMarks(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(t *testing.T) kv.Engine{
		"fake": func(*testing.T) kv.Engine { return storefake.New(storetest.Kinds()).Engine() },
		"etcd": func(t *testing.T) kv.Engine { return storetest.StartEtcd(t).Engine(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := store.New(make(t), storetest.Kinds())
			first := create(t, st, "one")
			follow := st.Follower(store.FollowOptions{Marks: store.MarkBegin})
			updates := run(t, follow)
			snap, ok := (<-updates).(*store.Snapshot)
			if !ok || len(snap.History) != 1 || len(snap.Records) != 1 || snap.History.At(int64(first)) != 0 {
				t.Fatalf("begins with %+v, want one object and one mark after it", snap)
			}
			known := snap.History
			for n := range nodestate.MaxMarks + 3 {
				if err := st.MarkHistory(t.Context()); err != nil {
					t.Fatal(err)
				}
				at := create(t, st, fmt.Sprintf("p%d", n))
				for {
					var marks nodestate.History
					u := <-updates
					switch u := u.(type) {
					case *store.Progress:
						marks = u.History
					case *store.Batch:
						marks = u.History
					}
					if marks != nil {
						if len(marks) != min(len(known)+1, nodestate.MaxMarks) || !marks.Has(known[len(known)-1].Revision, known[len(known)-1].ID) {
							t.Fatalf("%d marks after %d, and the last %v of before", len(marks), len(known), known[len(known)-1])
						}
						known = marks
					}
					if b, ok := u.(*store.Batch); ok && b.Revision == at {
						break
					}
				}
			}
			read, err := st.History(t.Context(), 0)
			if err != nil || len(read) != nodestate.MaxMarks || read[len(read)-1] != known[len(known)-1] {
				t.Errorf("read %d marks, last %v, %v; followed %v", len(read), read[len(read)-1], err, known[len(known)-1])
			}
		})
	}
}

// A store that was restored and has overtaken what its follower saw is another one all the same.
func TestMarksTellAStoreThatOvertook(t *testing.T) {
	t.Parallel()
	fake := storefake.New(storetest.Kinds())
	backup := create(t, fake.Store, "one")
	_, next := follower(t, fake.Store, store.FollowOptions{Marks: store.MarkBegin})
	next()
	create(t, fake.Store, "two")
	next()
	fake.Restore(backup)
	if err := fake.MarkHistory(t.Context()); err != nil { // another service's
		t.Fatal(err)
	}
	create(t, fake.Store, "three", "four", "five", "six")
	if back, ok := next().(*store.Backwards); !ok {
		t.Fatalf("got %+v, want Backwards", back)
	}
}

// run runs a follower until the test ends.
func run(t *testing.T, f *store.Follower) <-chan store.Update {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("follower: %v", err)
		}
	})
	return f.Updates()
}
