package app

import (
	"context"
	"log/slog"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/api"
	"podwire.dev/services/ingress/internal/planner"
	"podwire.dev/services/ingress/internal/route"
)

// upkeep is what the service owes the store beside planning.
type upkeep struct {
	store   *store.Store
	classes *api.Classes
	class   IngressClass
	leader  *feed.Leader
	asker   asker
	planner *planner.Planner
	log     *slog.Logger
}

// asker runs a question in the goroutine that owns the planner; *feed.Feed is one.
type asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// retryPause is the pause after a failed attempt.
const retryPause = 250 * time.Millisecond

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// found writes the configured IngressClass where it is missing. It waits for the store. One that is there stays as it is.
func (u *upkeep) found(ctx context.Context) error {
	if u.class.Name == "" {
		return nil
	}
	o := &objectv1.IngressClass{
		Metadata: &objectv1.ObjectMeta{Name: u.class.Name}, Spec: &objectv1.IngressClassSpec{Controller: route.Controller},
	}
	if u.class.Default {
		o.Metadata.Annotations = map[string]string{route.AnnotationDefaultClass: "true"}
	}
	for ctx.Err() == nil {
		err := u.classes.Found(ctx, o)
		if err == nil || errs.Is(err, errs.Exists) {
			return nil
		}
		if ctx.Err() == nil && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Conflict) {
			return errs.Wrap(err, "ingress: IngressClass %s", u.class.Name)
		}
		u.log.Warn("IngressClass is not written yet, trying again", "class", u.class.Name, "error", err)
		pause(ctx, retryPause)
	}
	return nil
}

// leadPause is how often a replica that does not lead looks whether it does.
const leadPause = time.Second

// reseal seals the Secrets with the first key, once, where this replica leads: then older keys can be taken out of the file.
func (u *upkeep) reseal(ctx context.Context) error {
	for ctx.Err() == nil {
		if u.leader.Leadership() == nil {
			pause(ctx, leadPause)
			continue
		}
		n, err := u.store.Reseal(ctx)
		if err == nil {
			if n > 0 {
				u.log.Info("sealed Secrets with the first key", "secrets", n)
			}
			return nil
		}
		if ctx.Err() == nil {
			u.log.Warn("Secrets are not sealed with the first key yet, trying again", "error", err)
		}
		pause(ctx, leadPause)
	}
	return nil
}

// clear deletes, where this replica leads, the Secrets that do not open of Namespaces that end: the planner, which does
// not see them, cannot. A replica that begins to lead looks through all Namespaces once.
func (u *upkeep) clear(ctx context.Context) error {
	todo := map[string]bool{}
	var lead *store.Leadership
	for ; ctx.Err() == nil; pause(ctx, leadPause) {
		err := u.asker.Do(ctx, func(store.Revision) {
			for _, ns := range u.planner.TakeEnded() {
				todo[ns] = true
			}
		})
		now := u.leader.Leadership()
		if now == nil || err != nil {
			lead = nil
			clear(todo)
			continue
		}
		if now != lead {
			clear(todo)
			todo[""] = true
		}
		lead = now
		for ns := range todo {
			if !u.clearOne(ctx, lead, ns) {
				break
			}
			delete(todo, ns)
		}
	}
	return nil
}

// clearOne deletes what does not open in one Namespace, or in all where ns is empty, and says whether it is done.
func (u *upkeep) clearOne(ctx context.Context, lead *store.Leadership, ns string) bool {
	n, err := u.store.DeleteUnopened(ctx, lead, ns, func(ns string, written store.Revision) (cause store.Cause, ended bool) {
		// An error: the service stops, and its successor looks again. A World from before the Secret may not know its
		// Namespace yet, and will be told when that ends.
		_ = u.asker.Do(ctx, func(at store.Revision) {
			cause, ended = u.planner.Ended(ns)
			ended = ended && at >= written
		})
		return cause, ended
	})
	if n > 0 {
		u.log.Warn("deleted Secrets that do not open, of a Namespace that ended", "secrets", n, "namespace", ns)
	}
	if err != nil && ctx.Err() == nil {
		u.log.Warn("Secrets that do not open are not deleted yet, trying again", "namespace", ns, "error", err)
	}
	return err == nil
}
