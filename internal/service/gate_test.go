package service_test

import (
	"context"
	"errors"
	"testing"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/service"
)

// health remembers what it was told last.
type health struct{ serving bool }

func (h *health) SetServing()    { h.serving = true }
func (h *health) SetNotServing() { h.serving = false }

// TestGate opens with the last step, and not by one that failed or was told to end.
func TestGate(t *testing.T) {
	t.Parallel()
	var seen health
	d := daemon.New(daemon.Options{Name: "gated"})
	d.AddHealth(&seen)
	gate := service.NewGate(d, 3)
	failed := errors.New("no")
	ended, end := context.WithCancel(t.Context())
	end()
	for i, step := range []struct {
		what   string
		do     func() error
		err    error
		serves bool
	}{
		{"the first plan", func() error { gate.Ready(); return nil }, nil, false},
		{"a failure", func() error { return gate.Step(t.Context(), failed) }, failed, false},
		{"an end", func() error { return gate.Step(ended, nil) }, nil, false},
		{"the second step", func() error { return gate.Step(t.Context(), nil) }, nil, false},
		{"the last step", func() error { return gate.Step(t.Context(), nil) }, nil, true},
	} {
		if err := step.do(); !errors.Is(err, step.err) || seen.serving != step.serves {
			t.Errorf("%d, %s: %v, serving %t", i, step.what, err, seen.serving)
		}
	}
}
