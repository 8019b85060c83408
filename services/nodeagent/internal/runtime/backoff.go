package runtime

import "time"

// Restart delays of Kubernetes ("Pod Lifecycle", container restarts).
const (
	firstDelay = 10 * time.Second
	maxDelay   = 5 * time.Minute
	resetAfter = 10 * time.Minute
)

// Backoff is how long a container that ends again and again has to wait. The zero
// value has not been restarted yet: the first restart is immediate.
type Backoff struct {
	// Delay applies from an exit to the next start.
	Delay time.Duration `json:"delay"`
	// Restarted is when the container was last started again.
	Restarted time.Time `json:"restarted"`
}

// Ready is when a container that ended at finished may start again.
func (b Backoff) Ready(finished time.Time) time.Time {
	if b.stale(finished) {
		return finished
	}
	return finished.Add(b.Delay)
}

// Restart is the back-off after the start at now that follows the exit at finished.
func (b Backoff) Restart(finished, now time.Time) Backoff {
	delay := firstDelay
	if !b.stale(finished) {
		delay = min(2*b.Delay, maxDelay)
	}
	return Backoff{Delay: delay, Restarted: now}
}

// stale says that the past does not count: there is none, or the container ran long
// enough since.
func (b Backoff) stale(finished time.Time) bool {
	return b.Delay == 0 || finished.Sub(b.Restarted) > resetAfter
}
