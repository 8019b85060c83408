package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store/kv"
)

// Update is what a Follower delivers: a *Snapshot, a *Batch, a *Progress or a *Backwards.
type Update interface{ update() }

// Progress says that everything up to Revision was delivered, where the newest of it was no change of the World.
type Progress struct {
	Revision Revision
	// Idle says that Revision wrote no object at all, but something else, such as a watermark, or nothing. A consumer must
	// not answer an idle Progress with a write of its own: that write would be the next one. Otherwise Revision wrote
	// objects of kinds that this Store does not know.
	Idle bool
	// History are the marks of the store, where Revision added one; else nil.
	History nodestate.History
}

// Backwards says that the store is not the one that was followed, or that its history was undone: it was restored from
// a backup. Nothing more is delivered until Follower.Accept; then a Snapshot of the offered store follows.
type Backwards struct {
	// Held is the newest state seen before, Offered what the store says now.
	Held, Offered State
	// Reason says in words what gave it away.
	Reason string
}

func (*Snapshot) update()  {}
func (*Batch) update()     {}
func (*Progress) update()  {}
func (*Backwards) update() {}

// FollowOptions say where a Follower begins.
type FollowOptions struct {
	// Held is the newest state that the consumer knows from elsewhere; a store behind it is Backwards. The zero State
	// trusts whatever store answers first.
	Held State
	// Marks says whether the Follower adds a mark to the store's history before its first snapshot. It does so whenever it
	// went on with a store that had gone backwards.
	Marks MarkPolicy
	// Buffer is how many updates wait for a slow consumer; 0 is 256. What does not fit waits in etcd, and a consumer
	// that is slower than etcd's compaction gets a new Snapshot.
	Buffer int
}

// MarkPolicy says when a Follower marks the history of the store; see Store.MarkHistory.
type MarkPolicy uint8

const (
	// MarkBackwards marks a store that went backwards, when it is accepted.
	MarkBackwards MarkPolicy = iota
	// MarkBegin also marks the store before the first snapshot: for those whose snapshots are planned from and published.
	MarkBegin
)

// Follower delivers the World: a Snapshot, then a Batch for each revision that changed it, in order. After etcd
// compacted what was not read yet, a new Snapshot follows, which replaces the World. Each time it connects it compares
// cluster id, revision and raft term with what it has seen, before it trusts what it is told.
type Follower struct {
	store   *Store
	updates chan Update
	accept  chan struct{}

	seen    State    // newest state that any answer showed
	held    Revision // newest revision delivered; 0 asks for a snapshot
	history nodestate.History
	marks   bool // a mark is due before the next snapshot
	started bool

	mu      sync.Mutex
	watcher kv.Watcher
	reached Revision
	changed chan struct{}
}

// Follower makes a Follower, which does nothing before Run.
func (s *Store) Follower(opts FollowOptions) *Follower {
	buffer := opts.Buffer
	if buffer <= 0 {
		buffer = 256
	}
	return &Follower{
		store: s, seen: opts.Held, marks: opts.Marks == MarkBegin,
		updates: make(chan Update, buffer), accept: make(chan struct{}, 1), changed: make(chan struct{}),
	}
}

// Updates is where the World arrives. It is closed when Run returns. A consumer that finds several updates waiting may
// apply them all before it computes anything: that is all the coalescing there is.
func (f *Follower) Updates() <-chan Update { return f.updates }

// Accept lets a Follower that reported Backwards go on with what the store offers now. It has no effect on one that did
// not.
func (f *Follower) Accept() {
	select {
	case f.accept <- struct{}{}:
	default:
	}
}

// Run follows until ctx ends, and then returns nil. An outage of etcd is waited out. Any other error is one that trying
// again would not mend: a value that does not decode, a refused identity. It may be called once.
func (f *Follower) Run(ctx context.Context) error {
	if f.started {
		return errs.New(errs.Internal, "store: follower started twice")
	}
	f.started = true
	defer close(f.updates)
	for wait := newBackoff(); ; {
		before := f.held
		err := f.connect(ctx)
		if f.held != before {
			wait = newBackoff()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrCompacted):
			f.held = 0
			f.store.log.Warn("history was compacted before it was read, taking a new snapshot", "err", err)
		case err == nil:
			continue
		case errs.Is(err, errs.Unavailable):
			f.store.log.Warn("etcd does not answer, trying again", "revision", f.seen.Revision, "err", err)
		default:
			return err
		}
		if wait.pause(ctx) != nil {
			return nil
		}
	}
}

// connect follows for as long as one connection lasts.
func (f *Follower) connect(ctx context.Context) error {
	offered, err := f.store.State(ctx)
	if err != nil {
		return err
	}
	if reason := backwards(f.seen, offered); reason != "" {
		return f.freeze(ctx, offered, reason)
	}
	if f.held > 0 {
		now, err := f.store.History(ctx, 0)
		if err != nil {
			return err
		}
		if at := int64(f.held); !now.Has(at, f.history.At(at)) {
			return f.freeze(ctx, offered, fmt.Sprintf("the mark of its history at revision %d was %x and is %x", at, f.history.At(at), now.At(at)))
		}
	}
	f.seen = newest(f.seen, offered)
	if f.held == 0 {
		if err := f.mark(ctx); err != nil {
			return err
		}
		snap, err := f.store.Snapshot(ctx)
		if err != nil {
			return err
		}
		if reason := backwards(f.seen, snap.State); reason != "" {
			return f.freeze(ctx, snap.State, reason)
		}
		f.seen, f.history = newest(f.seen, snap.State), snap.History
		if err := f.send(ctx, &snap, snap.Revision); err != nil {
			return err
		}
	}
	return f.watch(ctx)
}

// mark adds the mark that is due.
func (f *Follower) mark(ctx context.Context) error {
	if !f.marks {
		return nil
	}
	if err := f.store.MarkHistory(ctx); err != nil {
		return err
	}
	f.marks = false
	return nil
}

// watch delivers batches until the watch ends.
func (f *Follower) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := f.store.engine.Watch(ctx, kv.WatchRequest{
		Key: objectRoot, End: f.store.worldEnd(), From: int64(f.held) + 1,
	})
	if err != nil {
		return wrap(err, "store: follow from revision %d", f.held+1)
	}
	defer w.Close()
	if err := f.trust(ctx, w.Created()); err != nil {
		return err
	}
	f.attach(w)
	defer f.attach(nil)
	for {
		resp, err := w.Next()
		if err != nil {
			return wrap(err, "store: follow at revision %d", f.held)
		}
		f.store.note(resp.Header)
		f.seen.Revision = max(f.seen.Revision, Revision(resp.Header.Revision))
		batches, err := f.store.batches(resp)
		if err != nil {
			return err
		}
		for i := range batches {
			if err := f.deliver(ctx, &batches[i]); err != nil {
				return err
			}
		}
	}
}

// trust checks the connection that the watch lives on, which need not be the one that State was read on. A member that
// lags behind is no store that went backwards: only another linearizable read tells.
func (f *Follower) trust(ctx context.Context, created kv.Header) error {
	if ClusterID(created.Cluster) == f.seen.Cluster && Revision(created.Revision) >= f.seen.Revision {
		return nil
	}
	again, err := f.store.State(ctx)
	if err != nil {
		return err
	}
	if ClusterID(created.Cluster) != f.seen.Cluster || backwards(f.seen, again) != "" {
		return errs.New(errs.Unavailable, "store: follow: the connection changed to another store")
	}
	return nil
}

func (f *Follower) deliver(ctx context.Context, b *Batch) error {
	if b.Revision <= f.held {
		return nil
	}
	if b.History != nil {
		f.history = b.History
	}
	if len(b.Events) == 0 {
		return f.send(ctx, &Progress{Revision: b.Revision, Idle: b.idle, History: b.History}, b.Revision)
	}
	return f.send(ctx, b, b.Revision)
}

func (f *Follower) send(ctx context.Context, u Update, at Revision) error {
	select {
	case f.updates <- u:
	case <-ctx.Done():
		return wrap(ctx.Err(), "store: follow")
	}
	f.held = at
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reached = at
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

// freeze reports the store and waits to be told to accept it. What the store does meanwhile is nobody's affair: when the
// wait ends it is read afresh.
func (f *Follower) freeze(ctx context.Context, offered State, reason string) error {
	select {
	case <-f.accept: // from before, when there was nothing to accept
	default:
	}
	f.store.log.Error("the store went backwards, holding the last good state", "reason", reason,
		"held", f.seen, "offered", offered)
	select {
	case f.updates <- &Backwards{Held: f.seen, Offered: offered, Reason: reason}:
	case <-ctx.Done():
		return wrap(ctx.Err(), "store: follow")
	}
	select {
	case <-f.accept:
		f.seen, f.held, f.history, f.marks = State{}, 0, nil, true
		f.store.seen.Store(0)
		return nil
	case <-ctx.Done():
		return wrap(ctx.Err(), "store: follow")
	}
}

func (f *Follower) attach(w kv.Watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watcher = w
}

// catchUpPause is how long CatchUp waits for an answer before it asks again: etcd drops the question while the watch is
// behind.
const catchUpPause = 50 * time.Millisecond

// CatchUp returns a revision at which no write answered before the call is missing, once everything up to it was put
// into Updates. The consumer holds it when it has taken an update of that revision or a later one. It waits as long as
// ctx allows.
func (f *Follower) CatchUp(ctx context.Context) (Revision, error) {
	st, err := f.store.State(ctx)
	if err != nil {
		return 0, err
	}
	for {
		f.mu.Lock()
		w, reached, changed := f.watcher, f.reached, f.changed
		f.mu.Unlock()
		if reached >= st.Revision {
			return st.Revision, nil
		}
		if w != nil {
			// A failure also ends the watch; Run then connects again, and this loop asks its next watcher.
			_ = w.RequestProgress(ctx)
		}
		timer := time.NewTimer(catchUpPause)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, wrap(ctx.Err(), "store: catch up with revision %d, at %d", st.Revision, reached)
		}
		timer.Stop()
	}
}

// backwards says why the offered state is no later point of the seen one's history; empty if it may be.
func backwards(seen, offered State) string {
	switch {
	case seen == State{}:
		return ""
	case seen.Cluster != offered.Cluster:
		return fmt.Sprintf("the cluster id was %s and is %s", seen.Cluster, offered.Cluster)
	case offered.Revision < seen.Revision:
		return fmt.Sprintf("the revision was %d and is %d", seen.Revision, offered.Revision)
	case offered.Term < seen.Term:
		return fmt.Sprintf("the raft term was %d and is %d", seen.Term, offered.Term)
	default:
		return ""
	}
}

func newest(a, b State) State {
	return State{Cluster: b.Cluster, Revision: max(a.Revision, b.Revision), Term: max(a.Term, b.Term)}
}

// asker asks a watcher for progress, again and again, from start to stop.
type asker struct {
	watcher kv.Watcher
	done    chan struct{}
}

// start begins asking. The function it returns ends it and waits for the end.
func (a *asker) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	a.done = make(chan struct{})
	go func() {
		defer close(a.done)
		for a.watcher.RequestProgress(ctx) == nil && pause(ctx, catchUpPause) == nil {
		}
	}()
	return func() {
		cancel()
		<-a.done
	}
}
