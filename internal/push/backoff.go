package push

import (
	"math/rand/v2"
	"time"
)

const (
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
)

// backoff is the pause before the next stream: jittered, so that the agents of a stopped replica do not come as one,
// and doubling, so that a service that refuses is not asked in a loop. The zero backoff is the one after a stream that
// worked.
type backoff struct{ limit time.Duration }

func (b *backoff) next() time.Duration {
	if b.limit == 0 {
		b.limit = firstPause
		return rand.N(firstPause)
	}
	d := b.limit/2 + rand.N(b.limit/2)
	b.limit = min(2*b.limit, lastPause)
	return d
}
