package probe

import (
	"context"
	"time"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// Kind is one of the three probes of a container.
type Kind int

// The probes. Until Startup has passed the other two are not asked.
const (
	Startup Kind = iota
	Readiness
	Liveness
)

// String is Kubernetes' word for the probe.
func (k Kind) String() string { return [...]string{"Startup", "Readiness", "Liveness"}[k] }

// Judge turns single answers into a verdict: it changes after successThreshold good or
// failureThreshold bad answers in a row. It is a value; Observe gives the next one.
type Judge struct {
	success, failure int
	passing, failed  bool
	last             bool
	run              int
}

// NewJudge begins where Kubernetes does: not started, not ready, but alive.
func NewJudge(kind Kind, p podspec.Probe) Judge {
	return Judge{success: max(p.SuccessThreshold, 1), failure: max(p.FailureThreshold, 1), passing: kind == Liveness}
}

// Observe takes one answer.
func (j Judge) Observe(ok bool) Judge {
	if j.run > 0 && j.last == ok {
		j.run++
	} else {
		j.last, j.run = ok, 1
	}
	if ok && j.run >= j.success {
		j.passing, j.failed = true, false
	}
	if !ok && j.run >= j.failure {
		j.passing, j.failed = false, true
	}
	return j
}

// Passing is the verdict.
func (j Judge) Passing() bool { return j.passing }

// Failed says that the failure threshold was reached; a probe that has not passed yet
// has not failed.
func (j Judge) Failed() bool { return j.failed }

// Answer is what one question came to.
type Answer struct {
	OK bool
	// Message says what came back, for people; one line.
	Message string
}

// Report is a verdict that changed.
type Report struct {
	Kind    Kind
	Passing bool
	Message string
}

// Run asks one probe of a container that started at startedAt, every period from the
// initial delay on, and reports each change of the verdict. It returns when ctx ends,
// when a startup probe has passed, or when a startup or liveness probe has failed:
// what is to happen then is the caller's.
func Run(ctx context.Context, kind Kind, p podspec.Probe, startedAt time.Time, ask func(context.Context) Answer, report func(Report)) {
	delay := time.NewTimer(max(time.Until(startedAt.Add(p.InitialDelay)), 0))
	defer delay.Stop()
	select {
	case <-delay.C:
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(max(p.Period, time.Second))
	defer tick.Stop()
	judge := NewJudge(kind, p)
	for {
		qctx, cancel := context.WithTimeout(ctx, max(p.Timeout, time.Second))
		answer := ask(qctx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		next := judge.Observe(answer.OK)
		if next.Passing() != judge.Passing() || next.Failed() && !judge.Failed() {
			report(Report{Kind: kind, Passing: next.Passing(), Message: answer.Message})
		}
		judge = next
		switch {
		case kind == Startup && judge.Passing():
			return
		case kind != Readiness && judge.Failed():
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
