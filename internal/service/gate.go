package service

import (
	"context"
	"sync/atomic"

	"podwire.dev/internal/daemon"
)

// Gate is a daemon that becomes ready with the last of several steps, for a service that has more to do than to plan the
// first snapshot before anybody is to find it SERVING. It stands in the daemon's place as the host of a feed, whose first
// plan is one of the steps.
type Gate struct {
	*daemon.Daemon
	left atomic.Int32
}

// NewGate makes a gate of so many steps.
func NewGate(d *daemon.Daemon, steps int32) *Gate {
	g := &Gate{Daemon: d}
	g.left.Store(steps)
	return g
}

// Ready ends one step.
func (g *Gate) Ready() {
	if g.left.Add(-1) == 0 {
		g.Daemon.Ready()
	}
}

// Step is Ready for a step that may have failed with err, or was told to end by ctx. It returns err.
func (g *Gate) Step(ctx context.Context, err error) error {
	if err == nil && ctx.Err() == nil {
		g.Ready()
	}
	return err
}
