package pods

import (
	"context"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/runtime/podstatus"
)

// finished says that the containers have ended for good.
func (w *worker) finished() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.record.Finished
}

// markFinished remembers on disk that the pod is not to be started again, before anything of it is taken away.
func (w *worker) markFinished() {
	w.mu.Lock()
	w.record.Finished, w.unsaved = true, true
	w.mu.Unlock()
	w.save()
}

// giveNetworkBack is what Kubernetes does with the network of a Pod that has finished: its containers and their logs
// stay, its link and its addresses go. The addresses may be used again when everybody knows that it has finished, so the
// revision of its last status is that of its removal.
func (w *worker) giveNetworkBack(ctx context.Context) error {
	if w.current().spec.HostNetwork || w.settled {
		return nil
	}
	if err := w.disconnect(ctx); err != nil {
		return err
	}
	if err := w.s.cfg.Addresses.Release(ctx, w.uid, 0); err != nil {
		return err
	}
	if revision := w.report.finishedAt(); revision > 0 {
		if err := w.s.cfg.Addresses.Release(ctx, w.uid, revision); err != nil {
			return err
		}
		w.settled = true
	}
	return nil
}

// disconnect takes the link away, and then what the tables say about it.
func (w *worker) disconnect(ctx context.Context) error {
	if err := w.s.cfg.Links.Detach(w.uid); err != nil {
		return err
	}
	return w.s.cfg.Dataplane.Remove(ctx, w.uid)
}

// end takes the pod away, whatever there is of it, and returns when nothing is left or ctx ends.
func (w *worker) end(ctx context.Context) {
	w.observe(ctx)
	w.stop(ctx)
	w.observe(ctx)
	if !w.current().spec.HostNetwork {
		w.insist(ctx, "detach", func() error { return w.s.cfg.Links.Detach(w.uid) })
		w.insist(ctx, "remove from the tables", func() error { return w.s.cfg.Dataplane.Remove(ctx, w.uid) })
	}
	w.insist(ctx, "remove the sandbox", func() error { return w.s.cfg.Driver.RemoveSandbox(ctx, w.uid) })
	// In quarantine from now on, for as long as the revision of the removal is not known.
	w.insist(ctx, "release addresses", func() error { return w.s.cfg.Addresses.Release(ctx, w.uid, 0) })
	revision := w.delete(ctx)
	w.insist(ctx, "release addresses", func() error { return w.s.cfg.Addresses.Release(ctx, w.uid, revision) })
	w.insist(ctx, "forget", func() error { return removeRecord(w.s.cfg.Dir, w.uid) })
}

// insist does a step until it succeeds or ctx ends.
func (w *worker) insist(ctx context.Context, what string, step func() error) {
	var pause backoff
	for ctx.Err() == nil {
		err := step()
		if err == nil || ctx.Err() != nil {
			return
		}
		w.s.cfg.Log.ErrorContext(ctx, "end of pod: "+what, "pod", w.current().ref.String(), "uid", w.uid, "error", err)
		select {
		case <-w.s.cfg.Clock.After(pause.next()):
		case <-ctx.Done():
		}
	}
}

// delete removes the Pod for good, and returns the revision at which it was gone; 0 where that is not known yet. Without
// a row there is nothing to delete, and the version in which it was found gone counts.
func (w *worker) delete(ctx context.Context) int64 {
	var pause backoff
	ref := w.current().ref
	for ctx.Err() == nil {
		if version := w.gone(); version > 0 {
			return version
		}
		dctx, cancel := context.WithTimeout(ctx, attempt)
		revision, err := w.s.cfg.Reporter.Delete(dctx, ref.Namespace, ref.Name, ref.UID)
		cancel()
		switch {
		case err == nil:
			return revision
		case errs.Is(err, errs.NotFound):
			return 0 // the next update of the rows tells
		}
		if pause == (backoff{}) {
			w.s.cfg.Log.WarnContext(ctx, "delete pod for good", "pod", ref.String(), "error", err)
		}
		select {
		case <-w.wake:
		case <-w.s.cfg.Clock.After(pause.next()):
		case <-ctx.Done():
		}
	}
	return 0
}

// graceNow is what the containers get by the newest row: nothing where there is none.
func (w *worker) graceNow() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.vanished > 0 {
		return 0
	}
	return w.row.grace
}

// stop ends the containers. While it waits, a shorter grace period counts at once, and each change is reported.
func (w *worker) stop(ctx context.Context) {
	var calls sync.WaitGroup
	defer calls.Wait()
	var pause backoff
	results := make(chan error)
	grace := w.graceNow()
	call := func(grace time.Duration) {
		calls.Go(func() { results <- w.s.cfg.Driver.Stop(ctx, w.uid, grace) })
	}
	call(grace)
	for waiting := 1; waiting > 0; {
		select {
		case err := <-results:
			waiting--
			if err == nil || errs.Is(err, errs.NotFound) || ctx.Err() != nil || waiting > 0 {
				continue
			}
			w.s.cfg.Log.ErrorContext(ctx, "end of pod: stop", "pod", w.current().ref.String(), "error", err)
			select {
			case <-w.s.cfg.Clock.After(pause.next()):
			case <-ctx.Done():
				return
			}
			waiting++
			call(w.graceNow())
		case <-w.wake:
			w.observe(ctx)
			if shorter := w.graceNow(); shorter < grace {
				grace = shorter
				waiting++
				call(grace)
			}
		}
	}
}

// terminal says whether a phase is one that a Pod does not leave.
func terminal(phase string) bool { return phase == podstatus.Succeeded || phase == podstatus.Failed }
