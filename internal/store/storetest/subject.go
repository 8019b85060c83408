// Package storetest holds every engine of internal/store to one behaviour: the conformance suite that runs on an etcd
// in this process and on the fake in memory, and that etcd itself, for other tests that want a real one.
//
// In: a Subject. Out: failed tests. It imports etcd's server and is therefore for tests only.
package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"podwire.dev/internal/store"
	"podwire.dev/internal/store/kv"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Subject is an empty store under test.
type Subject struct {
	Engine kv.Engine
	// Compact forgets history before a revision.
	Compact func(t *testing.T, at store.Revision)
}

// Kinds are the kinds that the suite writes.
func Kinds() store.Kinds {
	return store.Kinds{
		"pods":       func() store.Object { return &objectv1.Pod{} },
		"namespaces": func() store.Object { return &objectv1.Namespace{} },
	}
}

// link is an Engine whose connection breaks on demand, for one client among several.
type link struct {
	kv.Engine
	mu sync.Mutex
	// broken is closed when the connection breaks, and replaced when it is mended.
	broken chan struct{}
	// lose answers that many transactions as if their answer had been lost, after running behind.
	lose   int
	behind func()
}

func newLink(e kv.Engine) *link { return &link{Engine: e, broken: make(chan struct{})} }

func (l *link) state() (broken chan struct{}, down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.broken:
		return l.broken, true
	default:
		return l.broken, false
	}
}

// cut breaks the connection.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.broken)
}

// mend ends cut.
func (l *link) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = make(chan struct{})
}

// loseAnswers loses the answers of the next n transactions, and runs behind after each was executed.
func (l *link) loseAnswers(n int, behind func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lose, l.behind = n, behind
}

func errCut() error { return fmt.Errorf("%w: the test cut the connection", kv.ErrUnavailable) }

func (l *link) Range(ctx context.Context, req kv.RangeRequest) (kv.RangeResponse, error) {
	if _, down := l.state(); down {
		return kv.RangeResponse{}, errCut()
	}
	return l.Engine.Range(ctx, req)
}

func (l *link) Txn(ctx context.Context, req kv.TxnRequest) (kv.TxnResponse, error) {
	if _, down := l.state(); down {
		return kv.TxnResponse{}, errCut()
	}
	resp, err := l.Engine.Txn(ctx, req)
	l.mu.Lock()
	lost, behind := l.lose > 0, l.behind
	if lost {
		l.lose--
	}
	l.mu.Unlock()
	if !lost {
		return resp, err
	}
	if behind != nil {
		behind()
	}
	return kv.TxnResponse{}, errCut()
}

func (l *link) Watch(ctx context.Context, req kv.WatchRequest) (kv.Watcher, error) {
	broken, down := l.state()
	if down {
		return nil, errCut()
	}
	w, err := l.Engine.Watch(ctx, req)
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-broken:
			w.Close()
		case <-ended:
		}
	}()
	return &linkWatcher{Watcher: w, broken: broken, ended: ended}, nil
}

type linkWatcher struct {
	kv.Watcher
	broken <-chan struct{}
	ended  chan struct{}
	once   sync.Once
}

func (w *linkWatcher) Next() (kv.WatchResponse, error) {
	resp, err := w.Watcher.Next()
	select {
	case <-w.broken:
		return kv.WatchResponse{}, errCut()
	default:
		return resp, err
	}
}

func (w *linkWatcher) Close() {
	w.once.Do(func() { close(w.ended) })
	w.Watcher.Close()
}

// endLeases revokes every lease that holds a key with the prefix, as if it had expired.
func endLeases(t *testing.T, e kv.Engine, prefix string) {
	t.Helper()
	resp, err := e.Range(t.Context(), kv.RangeRequest{Key: prefix, End: kv.PrefixEnd(prefix)})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.KVs) == 0 {
		t.Fatalf("nothing below %s hangs on a lease", prefix)
	}
	for _, pair := range resp.KVs {
		if pair.Lease == 0 {
			t.Fatalf("%s hangs on no lease", pair.Key)
		}
		if err := e.Revoke(t.Context(), pair.Lease); err != nil {
			t.Fatal(err)
		}
	}
}
