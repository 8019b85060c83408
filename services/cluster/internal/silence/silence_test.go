package silence_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/services/cluster/internal/silence"
)

func TestOurOwnSilenceIsNobodyElses(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	c := silence.Clock{Patience: time.Second}
	if _, stalled := c.Tick(now); stalled {
		t.Error("the first tick is late")
	}
	c.Restart(now)
	for _, tt := range []struct {
		what    string
		after   time.Duration // since the tick before
		stalled bool
		fresh   time.Duration // since this tick
	}{
		{"in time", silence.Tick, false, 0},
		{"somewhat late", silence.Tick + 500*time.Millisecond, false, 0},
		{"late", silence.Tick + 501*time.Millisecond, true, 0},
		{"in time again", silence.Tick, false, 0},
		{"later than connections last", 4 * time.Second, true, silence.ReconnectAfter - time.Second},
	} {
		now = now.Add(tt.after)
		fresh, stalled := c.Tick(now)
		if stalled != tt.stalled || stalled && fresh.Sub(now) != tt.fresh {
			t.Errorf("%s: stalled %t, fresh after %v", tt.what, stalled, fresh.Sub(now))
		}
	}
	// The time in which we are to be found has just begun anew.
	if from := c.Unheard(now); from.Sub(now) != silence.ReconnectAfter-time.Second {
		t.Errorf("the silence of one that was not heard counts after %v", from.Sub(now))
	}
	if later := now.Add(silence.ReconnectAfter); !c.Unheard(later).Equal(later) {
		t.Errorf("the silence of one that is new later counts after %v", c.Unheard(later).Sub(later))
	}
}

func TestEveryTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done, news := 0, make(chan struct{}, 1)
		ended := make(chan error, 1)
		go func() { ended <- silence.EveryTick(ctx, news, func() { done++ }) }()
		<-time.After(3*silence.Tick + silence.Tick/2)
		synctest.Wait()
		if done != 3 {
			t.Errorf("%d times after three ticks", done)
		}
		news <- struct{}{}
		synctest.Wait()
		if done != 4 {
			t.Errorf("%d times after news", done)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
