// Package backoff spaces the attempts of somebody who tries until it works. In: nothing but that another attempt failed.
// Out: pauses, each twice as long as the one before.
//
// Invariants: the first pause is short, as most troubles are over at once; none is longer than a caller that was away may
// take to be back. It must not know what is tried, and never gives up: that is the caller's to decide.
package backoff

import (
	"context"
	"time"
)

// The shortest pause, after a first failure, and the longest.
const (
	First = 100 * time.Millisecond
	Last  = 3 * time.Second
)

// Backoff is what one caller has waited so far. The zero value begins with First.
type Backoff struct{ next time.Duration }

// Wait pauses and says whether to go on, which is until ctx ends. A value of hurry, which may be nil, cuts the pause.
func (b *Backoff) Wait(ctx context.Context, hurry <-chan struct{}) bool {
	if b.next == 0 {
		b.next = First
	}
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	b.next = min(2*b.next, Last)
	select {
	case <-ctx.Done():
		return false
	case <-hurry:
	case <-timer.C:
	}
	return true
}

// Reset begins with First again: an attempt worked.
func (b *Backoff) Reset() { b.next = 0 }
