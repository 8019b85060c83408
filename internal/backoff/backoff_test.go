package backoff_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/backoff"
)

func TestPausesDouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff.Backoff
		var got []time.Duration
		for range 7 {
			began := time.Now()
			if !b.Wait(t.Context(), nil) {
				t.Fatal("ended")
			}
			got = append(got, time.Since(began))
		}
		const ms = time.Millisecond
		if want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3000 * ms, 3000 * ms}; !slices.Equal(got, want) {
			t.Errorf("pauses are %v, want %v", got, want)
		}
		b.Reset()
		began := time.Now()
		if b.Wait(t.Context(), nil); time.Since(began) != backoff.First {
			t.Errorf("after a success the pause is %v", time.Since(began))
		}
	})
}

func TestPausesAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff.Backoff
		hurry := make(chan struct{}, 1)
		hurry <- struct{}{}
		began := time.Now()
		if !b.Wait(t.Context(), hurry) || time.Since(began) != 0 {
			t.Error("whoever is hurried waits, or gives up")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if b.Wait(ctx, nil) || time.Since(began) != 0 {
			t.Error("goes on after its end")
		}
	})
}
