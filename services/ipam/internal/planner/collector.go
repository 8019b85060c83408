package planner

import (
	"context"
	"log/slog"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
)

// Grace is how long a grant may be without its owner: longer than any Apply that has claimed an address and not yet
// written the object that it is for.
const Grace = 60 * time.Second

// sweep is how often the World is looked at for orphans.
const sweep = 10 * time.Second

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Leader knows whether this replica does the collecting; *feed.Leader is one.
type Leader interface{ Leadership() *store.Leadership }

// Collector gives back what lost its owner. It belongs to one goroutine.
type Collector struct {
	Store   *store.Store
	Planner *Planner
	Asker   Asker
	Leader  Leader
	Log     *slog.Logger

	seen map[string]sighting
}

// sighting is since when a grant has been without its owner.
type sighting struct {
	since time.Time
	rev   store.Revision
}

// Run sweeps until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweep)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			if err := c.Sweep(ctx, now); err != nil && ctx.Err() == nil {
				c.Log.Warn("orphaned addresses stay held, trying again", "error", err)
			}
		}
	}
}

// Sweep removes the grants that have been orphans for the grace time. A grant that changed in between starts anew.
func (c *Collector) Sweep(ctx context.Context, now time.Time) error {
	lead := c.Leader.Leadership()
	if lead == nil {
		c.seen = nil
		return nil
	}
	var orphans map[string]Orphan
	if err := c.Asker.Do(ctx, func(store.Revision) { orphans = c.Planner.Orphans() }); err != nil {
		return err
	}
	next := map[string]sighting{}
	for name, o := range orphans {
		s, ok := c.seen[name]
		if !ok || s.rev != o.Rec.Revision {
			s = sighting{now, o.Rec.Revision}
		}
		next[name] = s
		if now.Sub(s.since) < Grace {
			continue
		}
		if over, err := (Quarantine{c.Store}).Over(ctx, o.After); err != nil || !over {
			if err != nil {
				c.seen = next
				return errs.Wrap(err, "ipam: collect %s", name)
			}
			continue
		}
		_, err := c.Store.Txn().RequireLeader(lead).Delete(o.Rec).Commit(ctx)
		switch {
		case errs.Is(err, errs.Conflict): // it changed, or the election did
		case err != nil:
			c.seen = next
			return errs.Wrap(err, "ipam: collect %s", name)
		default:
			c.Log.Info("gave back an orphan", "object", o.Rec.Key, "reason", o.Reason)
		}
	}
	c.seen = next
	return nil
}

// Quarantine judges whether everybody has forgotten who had an address.
type Quarantine struct{ Store *store.Store }

// Over says whether the watermarks of all required services have passed a revision, the removal of the address' holder:
// until then a node may let a new holder pass as the old one. Where nobody has said yet which services are required, it
// is not over.
func (q Quarantine) Over(ctx context.Context, after store.Revision) (bool, error) {
	if after == 0 {
		return true, nil
	}
	required, err := q.Store.Required(ctx)
	if errs.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	watermarks, err := q.Store.ListWatermarks(ctx)
	if err != nil {
		return false, err
	}
	passed := map[string]bool{}
	for _, w := range watermarks {
		passed[w.Service] = w.Revision >= after
	}
	for _, service := range required {
		if !passed[service] {
			return false, nil
		}
	}
	return true, nil
}
