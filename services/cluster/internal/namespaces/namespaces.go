// Package namespaces begins and ends Namespaces. In: the World's Namespaces, the watermarks of the required services.
// Out: the Namespaces that every cluster has, and the removal of a Terminating one once nothing is left in it.
//
// Invariants: a Namespace goes only when it holds no object of any kind, no finalizer but Kubernetes' own is left, and
// every required service has seen that it ends: until then one of them may still be writing into it. Only the elected
// replica removes. The removal is no derived write of the plan: it waits for watermarks, which wait for derived writes.
// The package must not delete what a Namespace holds; each kind's owner does.
package namespaces

import (
	"context"
	"log/slog"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/planner"
)

// The Namespaces that every cluster has. They cannot be deleted.
const (
	Default = "default"
	System  = "kube-system"
)

// Protect is Denied for the Namespaces that Kubernetes does not let anybody delete.
func Protect(o *objectv1.Namespace) error {
	switch name := o.GetMetadata().GetName(); name {
	case Default, System:
		return errs.New(errs.Denied, "Namespace %s: this namespace may not be deleted", name)
	}
	return nil
}

// retryPause is the pause after a failed attempt.
const retryPause = 250 * time.Millisecond

// Applier writes a Namespace; the api's handler is one.
type Applier func(ctx context.Context, o *objectv1.Namespace) error

// Found writes the Namespaces that every cluster has, where they are missing. It waits for the store.
func Found(ctx context.Context, apply Applier, log *slog.Logger) error {
	for _, name := range []string{Default, System} {
		for {
			err := apply(ctx, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name}})
			if err == nil || errs.Is(err, errs.Exists) {
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			if !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Conflict) {
				return errs.Wrap(err, "namespaces: %s", name)
			}
			log.Warn("namespace is not written yet, trying again", "namespace", name, "error", err)
			timer := time.NewTimer(retryPause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
		}
	}
	return nil
}

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// World gives the Terminating Namespaces inside of Asker.Do; *planner.Planner is one.
type World interface{ Endings() []planner.Ending }

// Leader knows whether this replica does the removing; *feed.Leader is one.
type Leader interface{ Leadership() *store.Leadership }

// Watermarks knows up to where every required service has come.
type Watermarks interface{ Required() store.Revision }

// Reaper removes Namespaces. It belongs to one goroutine.
type Reaper struct {
	Store      *store.Store
	Asker      Asker
	World      World
	Leader     Leader
	Watermarks Watermarks
	Log        *slog.Logger
}

// sweep is how often the World is asked for Namespaces that end.
const sweep = 250 * time.Millisecond

// Run sweeps until ctx ends.
func (r *Reaper) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweep)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := r.Sweep(ctx); err != nil && ctx.Err() == nil {
				r.Log.Warn("terminating namespaces stay, trying again", "error", err)
			}
		}
	}
}

// Sweep removes the Namespaces that nothing keeps any more.
func (r *Reaper) Sweep(ctx context.Context) error {
	lead := r.Leader.Leadership()
	if lead == nil {
		return nil
	}
	var endings []planner.Ending
	if err := r.Asker.Do(ctx, func(store.Revision) { endings = r.World.Endings() }); err != nil {
		return err
	}
	passed := r.Watermarks.Required()
	for _, e := range endings {
		o, ok := e.Rec.Object.(*objectv1.Namespace)
		// The revision of the record is that of its last change, at or after the one that began the end.
		if !ok || e.Content > 0 || !admission.Removable(o) || passed < e.Rec.Revision {
			continue
		}
		cause := store.Cause{Revision: e.Rec.Revision, Traceparent: e.Rec.Traceparent}
		_, err := r.Store.Txn().RequireLeader(lead).Delete(e.Rec, store.CausedBy(cause)).Commit(ctx)
		switch {
		case errs.Is(err, errs.Conflict): // it changed, or the election did
		case err != nil:
			return errs.Wrap(err, "namespaces: remove %s", e.Rec.Key.Name)
		default:
			r.Log.Info("namespace removed", "namespace", e.Rec.Key.Name)
		}
	}
	return nil
}
