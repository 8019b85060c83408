// Package storefake is an etcd in memory, with a store.Store on it, for tests.
//
// In: the kinds of a test. Out: a Store that behaves as on etcd (the conformance suite of internal/store/storetest runs on
// both), and the faults that are hard to provoke in a real one: history compacted under a watch, connections that
// break, answers that are lost, leases that expire, a store that was restored from a backup.
//
// Invariants: nothing happens by itself. There is no clock: leases live until they are revoked or expired by a call.
package storefake

import (
	"strings"
	"sync"

	"podwire.dev/internal/store"
	"podwire.dev/internal/store/kv"
)

// firstRevision is that of an empty etcd.
const firstRevision = 1

// Fake is a store in memory. Its faults may be provoked concurrently with its use.
type Fake struct {
	*store.Store
	engine *engine
}

// New makes an empty store.
func New(kinds store.Kinds, opts ...store.Option) *Fake {
	e := &engine{
		cluster: 0xfa4e, term: 2, revision: firstRevision,
		keys: make(map[string][]version), leases: make(map[int64]*lease), changed: make(chan struct{}),
	}
	return &Fake{Store: store.New(e, kinds, opts...), engine: e}
}

// Another makes a second Store on the same data, as a second replica has it, perhaps with other kinds.
func (f *Fake) Another(kinds store.Kinds, opts ...store.Option) *store.Store {
	return store.New(f.engine, kinds, opts...)
}

// Engine is the data below the Store.
func (f *Fake) Engine() kv.Engine { return f.engine }

// Revision is the newest revision.
func (f *Fake) Revision() store.Revision {
	f.engine.mu.Lock()
	defer f.engine.mu.Unlock()
	return store.Revision(f.engine.revision)
}

// Compact forgets what was before the revision. Watches that have not read so far end with store.ErrCompacted.
func (f *Fake) Compact(at store.Revision) {
	f.engine.change(func() { f.engine.compacted = max(f.engine.compacted, int64(at)) })
}

// Disconnect breaks every watch.
func (f *Fake) Disconnect() {
	f.engine.change(func() { f.engine.generation++ })
}

// Stop makes every call fail as if etcd were gone, and breaks every watch, until Start. No lease expires meanwhile.
func (f *Fake) Stop() {
	f.engine.change(func() {
		f.engine.down = true
		f.engine.generation++
	})
}

// Start ends Stop.
func (f *Fake) Start() {
	f.engine.change(func() { f.engine.down = false })
}

// Restore puts the store back to what it was at a revision, as an etcd restored from a backup, with a broken connection
// for everybody. Leases are kept.
func (f *Fake) Restore(to store.Revision) {
	f.engine.change(func() {
		f.engine.truncate(int64(to))
		f.engine.generation++
	})
}

// ReplaceCluster makes the same data answer as another cluster, as etcd restored with new members, with a broken
// connection for everybody.
func (f *Fake) ReplaceCluster() {
	f.engine.change(func() {
		f.engine.cluster++
		f.engine.generation++
	})
}

// ResetTerm puts the raft term back, as restoring does even where revision and cluster id look right, with a broken
// connection for everybody.
func (f *Fake) ResetTerm() {
	f.engine.change(func() {
		f.engine.term = 1
		f.engine.generation++
	})
}

// LoseAnswers executes the next n transactions that write objects and answers each as if the connection had broken.
func (f *Fake) LoseAnswers(n int) {
	f.engine.change(func() { f.engine.loseAnswers = n })
}

// LoseRequests answers the next n transactions that would write objects as if the connection had broken, and executes none of them.
func (f *Fake) LoseRequests(n int) {
	f.engine.change(func() { f.engine.loseRequests = n })
}

// BeforeTxn runs fn before the next transaction that writes objects is executed, once: the moment for another writer to win a race.
func (f *Fake) BeforeTxn(fn func()) {
	f.engine.change(func() { f.engine.before = fn })
}

// ExpireLeases ends every lease that holds a key with the prefix, such as "/podwire/x/replicas/" or
// "/podwire/o/~deleted/".
func (f *Fake) ExpireLeases(prefix string) {
	f.engine.change(func() {
		for id, l := range f.engine.leases {
			for key := range l.keys {
				if strings.HasPrefix(key, prefix) {
					f.engine.revoke(id)
					break
				}
			}
		}
	})
}

// SendProgress makes every watch that has read everything say so, as etcd does every now and then.
func (f *Fake) SendProgress() {
	f.engine.change(func() { f.engine.progress++ })
}

// lease is one lease and what hangs on it.
type lease struct {
	keys map[string]struct{}
	// ended is closed with the lease.
	ended chan struct{}
	once  sync.Once
}

func (l *lease) end() { l.once.Do(func() { close(l.ended) }) }
