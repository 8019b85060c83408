// Package silence tells the silence of somebody who is to be heard every now and then from a silence that is this
// process's own.
//
// In: a clock that ticks, and when this replica began to lead. Out: from when on the silence of one counts.
//
// Invariants: nobody is judged on a silence that may be ours: a replica that begins to lead gives everybody time to find
// it, and one whose own tick came late gives everybody a fresh period. The package must not know who is to be heard, nor
// what follows from a silence.
package silence

import (
	"context"
	"time"
)

const (
	// ReconnectAfter is what the others get to find a replica that begins to lead: above the longest pause between two
	// attempts to connect.
	ReconnectAfter = 8 * time.Second
	// Tick is how often time is looked at.
	Tick = 100 * time.Millisecond
	// stallAfter is how far a tick may be late before we distrust ourselves, brokenAfter how far before connections may have
	// been given up, so that the others have to find us again.
	stallAfter  = 500 * time.Millisecond
	brokenAfter = 3 * time.Second
)

// Clock is what a process knows of its own silence. Its user guards it against concurrent use.
type Clock struct {
	// Patience is the silence after which somebody is judged.
	Patience time.Duration
	// since is when this replica began to lead, or was found again; ticked the last Tick.
	since, ticked time.Time
}

// Restart begins anew: the replica begins to lead.
func (c *Clock) Restart(now time.Time) { c.since, c.ticked = now, now }

// Tick notes that time is passing for this process, and says whether it had stood still: the tick came so late that signs
// of life may wait unread. Then silence counts from fresh on, and not before.
func (c *Clock) Tick(now time.Time) (fresh time.Time, stalled bool) {
	late := now.Sub(c.ticked) - Tick
	stalled = !c.ticked.IsZero() && late > stallAfter
	c.ticked = now
	switch {
	case !stalled:
		return time.Time{}, false
	case late > brokenAfter:
		c.since = now
		return c.reconnected(), true
	default:
		return now, true
	}
}

// Unheard is from when on silence counts for one who was not heard yet.
func (c *Clock) Unheard(now time.Time) time.Time {
	if now.Sub(c.since) < ReconnectAfter {
		return c.reconnected()
	}
	return now
}

// reconnected is from when on silence counts for one who has to find us first.
func (c *Clock) reconnected() time.Time { return c.since.Add(ReconnectAfter - c.Patience) }

// EveryTick calls do every Tick, and at once on news, which may be nil, until ctx ends.
func EveryTick(ctx context.Context, news <-chan struct{}, do func()) error {
	ticker := time.NewTicker(Tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-news:
		}
		do()
	}
}
