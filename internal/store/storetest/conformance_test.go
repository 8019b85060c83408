package storetest_test

import (
	"testing"

	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/store/storetest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func TestFake(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Subject {
		f := storefake.New(storetest.Kinds())
		return storetest.Subject{
			Engine:  f.Engine(),
			Compact: func(_ *testing.T, at store.Revision) { f.Compact(at) },
		}
	})
}

func TestEtcd(t *testing.T) {
	t.Parallel()
	etcd := storetest.StartEtcd(t)
	storetest.Run(t, etcd.Subject)
}

// A new store has no history before its first write: revisions below it are empty, not an error.
func TestFakeWatchedFromTheBeginning(t *testing.T) {
	f := storefake.New(storetest.Kinds())
	last, err := f.Txn().Create(&objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: "one"}}, "pods").Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for batch, err := range f.Watch(t.Context(), store.WatchQuery{From: 1, Kind: "pods"}) {
		if err != nil || batch.Revision != last || len(batch.Events) != 1 {
			t.Errorf("%v, %v, want the one event of revision %d", batch, err, last)
		}
		break
	}
}
