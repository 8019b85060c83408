package pods

import (
	"context"
	"time"
)

// reasonDeadline is the reason of a Pod that was active for longer than its spec.activeDeadlineSeconds, counted from
// status.startTime ("Pod Lifecycle" and the API reference of PodSpec in Kubernetes' documentation).
const reasonDeadline = "DeadlineExceeded"

// deadlineAt is when the pod is to be ended for its deadline; zero where it has none, or has ended already.
func (w *worker) deadlineAt() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	limit := w.row.spec.ActiveDeadline
	if limit == 0 || w.record.Finished || w.row.deleting || w.vanished > 0 {
		return time.Time{}
	}
	return w.record.Taken.Truncate(time.Second).Add(limit)
}

// overdue says whether the pod is to be ended now.
func (w *worker) overdue() bool {
	at := w.deadlineAt()
	return !at.IsZero() && !w.s.cfg.Clock.Now().Before(at)
}

// expire ends the containers of a pod whose deadline is over, as a deletion would, and marks the pod as finished. That it
// was for the deadline is on disk first: a restart in between must not take its containers' exits for its own.
func (w *worker) expire(ctx context.Context) {
	if w.observe(ctx) {
		w.markFinished() // it has ended by itself, in time
		return
	}
	w.mu.Lock()
	w.record.Expired, w.unsaved = true, true
	ref := w.row.ref
	w.mu.Unlock()
	w.save()
	w.s.cfg.Log.InfoContext(ctx, "pod is ended for its deadline", "pod", ref.String())
	w.stop(ctx)
	w.observe(ctx)
	if !w.ending() && ctx.Err() == nil && terminal(w.report.phase()) {
		w.markFinished()
	}
}

// deadline waits for a pod's deadline, which its spec may bring nearer.
type deadline struct {
	at   time.Time
	ring <-chan time.Time
}

// of is what rings at the pod's deadline, as it is now; nil where there is none.
func (d *deadline) of(w *worker) <-chan time.Time {
	if at := w.deadlineAt(); !at.Equal(d.at) {
		d.at, d.ring = at, nil
		if !at.IsZero() {
			d.ring = w.s.cfg.Clock.After(at.Sub(w.s.cfg.Clock.Now()))
		}
	}
	return d.ring
}
