package feed

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	"podwire.dev/internal/telemetry"
)

// Writer commits derived writes while its replica leads. What it is offered replaces what it was offered before: the
// World, not a queue, says what is lacking.
type Writer struct {
	store  *store.Store
	leader *Leader
	log    *slog.Logger

	mu     sync.Mutex
	at     store.Revision
	writes []Write
	bell   chan struct{}
}

// NewWriter makes a Writer; it starts nothing.
func NewWriter(s *store.Store, leader *Leader, log *slog.Logger) *Writer {
	return &Writer{store: s, leader: leader, log: log, bell: make(chan struct{}, 1)}
}

func (w *Writer) offer(at store.Revision, writes []Write) {
	w.mu.Lock()
	w.at, w.writes = at, writes
	w.mu.Unlock()
	w.ring()
}

func (w *Writer) ring() {
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// After a failed attempt the writer pauses, longer each time up to maxWriterPause.
const (
	writerPause    = 100 * time.Millisecond
	maxWriterPause = 5 * time.Second
)

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	// done is, per object, the revision that the World must have reached before a write of it is worth trying again.
	done := map[store.Key]store.Revision{}
	wait := writerPause
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.bell:
		case <-w.leader.Changed():
		}
		lead := w.leader.Leadership()
		if lead == nil {
			continue
		}
		w.mu.Lock()
		at, writes := w.at, w.writes
		w.mu.Unlock()
		for key, rev := range done {
			if rev <= at {
				delete(done, key)
			}
		}
		var todo []Write
		for _, wr := range writes {
			if _, waiting := done[wr.Key]; !waiting {
				todo = append(todo, wr)
			}
		}
		if w.commitAll(ctx, lead, todo, at, done) {
			wait = writerPause
			continue
		}
		pause(ctx, wait)
		wait = min(2*wait, maxWriterPause)
		w.ring()
	}
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// groupOps bounds a group commit; a write takes at most two operations and a condition.
const groupOps = store.MaxOps / 3

// commitAll commits the writes in groups and says whether all went through or were overtaken by newer state.
func (w *Writer) commitAll(ctx context.Context, lead *store.Leadership, todo []Write, at store.Revision, done map[store.Key]store.Revision) bool {
	ok := true
	for len(todo) > 0 {
		group := todo[:min(len(todo), groupOps)]
		todo = todo[len(group):]
		rev, err := w.commit(ctx, lead, group)
		if err == nil {
			for _, wr := range group {
				done[wr.Key] = rev
			}
			continue
		}
		for _, wr := range group { // one write in the way must not hold back the others
			rev, err := w.commit(ctx, lead, []Write{wr})
			var failed *store.FailedCompare
			switch {
			case err == nil:
				done[wr.Key] = rev
			case errors.As(err, &failed) && failed.Object == wr.Key:
				done[wr.Key] = max(failed.Have, at+1) // the World will see what overtook it
			case ctx.Err() != nil:
				return true
			default:
				ok = false
				w.log.Warn("derived write failed, trying again", "object", wr.Key, "error", err)
			}
		}
	}
	return ok
}

func (w *Writer) commit(ctx context.Context, lead *store.Leadership, group []Write) (store.Revision, error) {
	txn := w.store.Txn().RequireLeader(lead)
	spans := make([]*telemetry.Span, len(group))
	for i, wr := range group {
		_, spans[i] = telemetry.StartCause(ctx, wr.Cause.Traceparent, "derive")
		spans[i].SetObject(wr.Key.Kind, wr.Key.Namespace, wr.Key.Name)
		opts := []store.WriteOption{store.CausedBy(wr.Cause), store.TracedAs(spans[i].Traceparent())}
		switch {
		case wr.Object == nil && wr.Base != nil:
			txn.Delete(*wr.Base, opts...)
		case wr.Base != nil:
			txn.Update(*wr.Base, wr.Object, opts...)
		default:
			txn.Create(wr.Object, wr.Key.Kind, opts...)
		}
	}
	rev, err := txn.Commit(ctx)
	for _, s := range spans {
		s.SetRevision(int64(rev))
		s.End(err)
	}
	return rev, errs.Wrap(err, "feed: derived writes")
}
