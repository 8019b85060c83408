package pods

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/telemetry"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// report brings the status of one pod to cluster. What is offered while a call is under way coalesces: the newest wins.
type report struct {
	w    *worker
	wake chan struct{}
	over chan struct{}

	mu sync.Mutex
	// newest is the last status offered, confirmed the last that cluster stored, at revision.
	newest, confirmed *objectv1.PodStatus
	revision          int64
	// force has newest sent although it was confirmed.
	force bool
}

func newReport(w *worker) *report {
	r := &report{w: w, wake: make(chan struct{}, 1), over: make(chan struct{})}
	if known := w.record; len(known.Status) > 0 {
		status := &objectv1.PodStatus{}
		if err := proto.Unmarshal(known.Status, status); err == nil {
			r.newest, r.confirmed, r.revision = status, status, known.Revision
		}
	}
	return r
}

// latest is the newest status, nil if there is none; it must not be changed.
func (r *report) latest() *objectv1.PodStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newest
}

func (r *report) phase() string { return r.latest().GetPhase() }

// offer takes a status, and says whether it differs from the one before.
func (r *report) offer(status *objectv1.PodStatus) bool {
	r.mu.Lock()
	same := proto.Equal(r.newest, status)
	r.newest = status
	r.mu.Unlock()
	if !same {
		r.nudge()
	}
	return !same
}

// again sends the newest status once more.
func (r *report) again() {
	r.mu.Lock()
	r.force = true
	r.mu.Unlock()
	r.nudge()
}

// finishedAt is the revision at which cluster stored that the pod has finished; 0 if it did not yet.
func (r *report) finishedAt() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if terminal(r.confirmed.GetPhase()) {
		return r.revision
	}
	return 0
}

func (r *report) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *report) close() { close(r.over) }

// run reports until ctx or the pod ends.
func (r *report) run(ctx context.Context) error {
	if r.due() {
		r.nudge()
	}
	for {
		select {
		case <-r.wake:
		case <-r.over:
			return nil
		case <-ctx.Done():
			return nil
		}
		r.send(ctx)
	}
}

func (r *report) due() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newest != nil && (r.force || !proto.Equal(r.newest, r.confirmed))
}

// send sends the newest status until there is no newer one.
func (r *report) send(ctx context.Context) {
	var pause backoff
	for r.due() {
		err := r.once(ctx)
		if err == nil {
			pause = backoff{}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if pause == (backoff{}) {
			r.w.s.cfg.Log.WarnContext(ctx, "report the status of a pod", "pod", r.w.current().ref.String(), "error", err)
		}
		select {
		case <-r.w.s.cfg.Clock.After(pause.next()):
		case <-r.over:
			return
		case <-ctx.Done():
			return
		}
	}
}

// once makes one attempt.
func (r *report) once(ctx context.Context) error {
	s := r.w.s
	select {
	case s.sends <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.sends }()
	r.mu.Lock()
	status := r.newest
	r.force = false
	r.mu.Unlock()
	row := r.w.current()
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	ctx, span := telemetry.StartLinked(ctx, row.traceparent, "pod.status")
	span.SetObject("pods", row.ref.Namespace, row.ref.Name)
	revision, err := s.cfg.Reporter.UpdateStatus(ctx, row.ref.Namespace, row.ref.Name, row.ref.UID, status)
	span.SetRevision(revision)
	span.End(err)
	if err != nil && !errs.Is(err, errs.NotFound) { // a Pod that is gone: its row will be, too
		r.mu.Lock()
		r.force = true
		r.mu.Unlock()
		return err
	}
	r.mu.Lock()
	r.confirmed, r.revision = status, revision
	r.mu.Unlock()
	if err == nil {
		r.w.confirm(status, revision)
	}
	return nil
}

// confirm remembers what cluster stored; the worker writes it down.
func (w *worker) confirm(status *objectv1.PodStatus, revision int64) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(status)
	if err != nil {
		w.s.cfg.Log.Error("remember the status of a pod", "pod", w.current().ref.String(), "error", err)
		return
	}
	w.mu.Lock()
	w.record.Status, w.record.Revision, w.unsaved = b, revision, true
	w.mu.Unlock()
	w.nudge()
}
