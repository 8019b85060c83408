// Package control is what one node says to the control plane and asks of it: its Node object, its heartbeat, blocks of
// addresses, the status of its pods.
//
// In: what the node is and how it fares. Out: calls to cluster and ipam. Invariants: every call is repeated until it
// succeeds or is pointless; nothing here waits for another; losing a service changes nothing on the node. The node writes
// its own Node and the Pods assigned to it, and of the Node only what it knows: what people and cluster wrote is kept.
// It must not touch the kernel or decide what runs.
package control

import (
	"context"
	"time"
)

// Pauses between attempts.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 3 * time.Second
)

// backoff doubles a pause up to lastPause.
type backoff struct{ next time.Duration }

// wait pauses and says whether to go on.
func (b *backoff) wait(ctx context.Context) bool {
	if b.next == 0 {
		b.next = firstPause
	}
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	b.next = min(2*b.next, lastPause)
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (b *backoff) reset() { b.next = 0 }
