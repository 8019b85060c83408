package runtime

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/services/nodeagent/internal/probe"
	"podwire.dev/services/nodeagent/internal/shim"
)

// minStop is what a stop signal is given at least after a preStop hook that took the whole grace period: "a small, one-off
// grace period extension of 2 seconds" ("Pod Lifecycle", termination, in Kubernetes' documentation).
const minStop = 2 * time.Second

// ending is the end of one run: the time that the container has, and what of it is left.
type ending struct {
	pod *pod
	// own is when SIGKILL is due unless the Pod's end is asked for earlier; grace is how long that was in the beginning.
	own   time.Time
	grace time.Duration
}

func newEnding(p *pod, grace time.Duration) ending {
	e := ending{pod: p, own: time.Now().Add(grace), grace: grace}
	if at, podGrace, stopping, _ := p.deadline(); stopping {
		e.own, e.grace = at, podGrace
	}
	return e
}

// due is when SIGKILL is due as things stand, with how much grace that was given, and what is closed when that changes.
func (e ending) due() (at time.Time, grace time.Duration, moved <-chan struct{}) {
	at, grace, stopping, moved := e.pod.deadline()
	if !stopping || e.own.Before(at) {
		at, grace = e.own, e.grace
	}
	return at, grace, moved
}

// terminate ends a running container: preStop, stop signal, grace, SIGKILL. The grace
// period includes preStop. It returns when the container is gone or ctx ended.
func (d *Process) terminate(ctx context.Context, c *container, h *shim.Handle, gone <-chan struct{}, grace time.Duration) {
	e := newEnding(c.pod, grace)
	hooked := c.spec.PreStop != nil && e.grace > 0 && c.plan.substituted == ""
	if hooked {
		d.preStop(ctx, c, gone, e)
	}
	signalled := time.Now()
	if _, left, _ := e.due(); left > 0 {
		d.signal(ctx, c, h, c.stopSignal())
	}
	for {
		at, left, moved := e.due()
		if least := signalled.Add(minStop); hooked && left > 0 && at.Before(least) {
			at = least
		}
		timer := time.NewTimer(time.Until(at))
		select {
		case <-gone:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		case <-moved:
			timer.Stop()
			continue
		case <-timer.C:
		}
		d.signal(ctx, c, h, unix.SIGKILL)
		select {
		case <-gone:
		case <-ctx.Done():
		}
		return
	}
}

// preStop runs the hook until it ends, the container does, or the time is over.
func (d *Process) preStop(ctx context.Context, c *container, gone <-chan struct{}, e ending) {
	hctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer := make(chan probe.Answer, 1)
	go func() { answer <- d.ask(hctx, c, *c.spec.PreStop) }()
	failed := func(why string) {
		d.cfg.Log.WarnContext(ctx, "preStop failed", "pod", c.pod.spec.Ref(), "container", c.spec.Name, "why", why)
	}
	for {
		at, _, moved := e.due()
		timer := time.NewTimer(time.Until(at))
		select {
		case a := <-answer:
			timer.Stop()
			if !a.OK && ctx.Err() == nil {
				failed(a.Message)
			}
			return
		case <-moved:
			timer.Stop()
			continue
		case <-gone:
			timer.Stop()
		case <-timer.C:
			failed("it was not done when the grace period was over")
		}
		cancel()
		<-answer
		return
	}
}

func (c *container) stopSignal() unix.Signal {
	if s := unix.SignalNum(c.spec.StopSignal); s != 0 {
		return s
	}
	return unix.SIGTERM
}

func (d *Process) signal(ctx context.Context, c *container, h *shim.Handle, sig unix.Signal) {
	if err := h.Signal(sig); err != nil && !errors.Is(err, shim.ErrGone) {
		d.cfg.Log.ErrorContext(ctx, "signal container", "pod", c.pod.spec.Ref(), "container", c.spec.Name, "signal", sig.String(), "error", err)
	}
}
