// Package daemon is the shell of a process: configuration, logging, goroutines with an
// owner, readiness, and an ordered stop.
//
// In: a configuration file, OTEL_* variables, SIGTERM and SIGINT. Out: a running
// service, an exit status, and one log line for whatever ended it.
//
// Invariants: every goroutine of a service is started by Go and has ended before the
// process does. The first error or panic of any of them stops the process; nothing
// dies silently. A process is NOT_SERVING until Ready, and again from the first moment
// of its stop. Stop hooks run in the order of their stages, each bounded in time.
// The package must not know of gRPC, TLS or the store: a Program brings these in.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/telemetry"
)

// Stage is a place in the order of a stop.
type Stage int

// The stages, in the order in which they stop.
const (
	// StagePush closes push streams with a hint to reconnect elsewhere.
	StagePush Stage = iota
	// StageServer finishes the calls in flight.
	StageServer
	// StageFeed ends what Go started.
	StageFeed
	// StageStore closes the store.
	StageStore
	numStages
)

// String names the stage in logs.
func (s Stage) String() string {
	return [...]string{"push", "server", "feed", "store"}[s]
}

// ServerStopCap bounds the graceful stop of servers; the other stages have stageCap.
const (
	ServerStopCap = 10 * time.Second
	stageCap      = 5 * time.Second
	flushCap      = 3 * time.Second
)

// Health is told whether the process serves. Servers register one.
type Health interface {
	SetServing()
	SetNotServing()
}

// Daemon is one process. Its methods are safe for concurrent use.
type Daemon struct {
	name string
	log  *slog.Logger
	tele *telemetry.Telemetry

	ctx     context.Context // of everything that Go starts
	cancel  context.CancelCauseFunc
	stopped chan struct{} // closed when a stop is asked for

	mu      sync.Mutex
	running map[uint64]string // what Go started and has not ended, by name
	started uint64
	idle    chan struct{} // closed when running becomes empty; nil until somebody waits
	hooks   [numStages][]hook
	health  []Health
	ready   bool
	ending  bool
	cause   error
}

type hook struct {
	name string
	stop func(context.Context) error
}

// Options are what New needs.
type Options struct {
	// Name of the service.
	Name string
	Log  *slog.Logger
	// Telemetry is flushed at the very end; nil for none.
	Telemetry *telemetry.Telemetry
}

// New makes a Daemon; it starts nothing. Main does this for a real process; tests that
// run several services in one process call New and Run themselves.
func New(opts Options) *Daemon {
	d := &Daemon{name: opts.Name, log: opts.Log, tele: opts.Telemetry, stopped: make(chan struct{}), running: map[uint64]string{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	ctx := context.Background()
	if d.tele != nil {
		ctx = d.tele.Context(ctx)
	}
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	return d
}

// Name is the service's name.
func (d *Daemon) Name() string { return d.name }

// Log is the process's logger.
func (d *Daemon) Log() *slog.Logger { return d.log }

// Telemetry is the process's tracing; nil if there is none.
func (d *Daemon) Telemetry() *telemetry.Telemetry { return d.tele }

// Go runs fn in a goroutine that the daemon owns. The context ends at StageFeed, and
// the stop then waits for fn. An error that fn returns before that, and a panic at any
// time, stop the process; after it, the context's error is the expected end.
func (d *Daemon) Go(name string, fn func(context.Context) error) {
	d.mu.Lock()
	d.started++
	id := d.started
	d.running[id] = name
	d.mu.Unlock()
	go func() {
		defer d.ended(id)
		err := guard(name, func() error { return fn(d.ctx) })
		if err == nil || (d.ctx.Err() != nil && isContextError(err)) {
			return
		}
		d.Fail(errs.Wrap(err, "%s", name))
	}()
}

func (d *Daemon) ended(id uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.running, id)
	if len(d.running) == 0 && d.idle != nil {
		close(d.idle)
		d.idle = nil
	}
}

// join waits for what Go started. One that does not end is named and makes the stop a
// failure: the process ends all the same, but not as if all were well.
func (d *Daemon) join(limit time.Duration) {
	d.mu.Lock()
	if len(d.running) == 0 {
		d.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	d.idle = idle
	d.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
		d.mu.Lock()
		names := slices.Sorted(maps.Values(d.running))
		d.mu.Unlock()
		d.Fail(errs.New(errs.Internal, "did not end within %s of being told to: %s", limit, strings.Join(names, ", ")))
	}
}

// isContextError recognises the end of a context in whatever a dependency made of it.
func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errStopping)
}

// guard turns a panic into an error that carries the stack.
func guard(name string, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errs.New(errs.Internal, "%s panicked: %v\n%s", name, p, debug.Stack())
		}
	}()
	return fn()
}

// Fail stops the process with an error; the first one is the process's own. It does
// not wait.
func (d *Daemon) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.cause != nil:
		d.log.Error("another failure", "error", err)
	case d.ending:
		d.cause = err
		d.log.Error("failure during the stop", "error", err)
	default:
		d.cause = err // logged where the stop begins
	}
	d.endLocked()
}

// Stop stops the process without an error. It does not wait.
func (d *Daemon) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endLocked()
}

func (d *Daemon) endLocked() {
	if !d.ending {
		d.ending = true
		close(d.stopped)
	}
}

// OnStop registers a hook of a stage. Hooks of one stage run in the reverse order of
// their registration, as deferred calls do.
func (d *Daemon) OnStop(stage Stage, name string, stop func(context.Context) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hooks[stage] = append(d.hooks[stage], hook{name, stop})
}

// AddHealth registers a health server, which is told the state at once.
func (d *Daemon) AddHealth(h Health) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.health = append(d.health, h)
	if d.ready && !d.ending {
		h.SetServing()
	} else {
		h.SetNotServing()
	}
}

// Ready says that the first snapshot is planned: from now on the process is SERVING.
// It has no effect on a process that stops.
func (d *Daemon) Ready() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ready || d.ending {
		return
	}
	d.ready = true
	for _, h := range d.health {
		h.SetServing()
	}
	d.log.Info("serving")
}

// Run calls wire, which builds the service, registers hooks and returns, and then
// waits for the end: a failure, Stop, or the end of ctx. It returns after the ordered
// stop, with the error that ended the process; nil for an end that was asked for.
//
// wire's context ends at StageFeed, as those of Go do; if the stop is asked for while
// wire still works, it ends at once.
func (d *Daemon) Run(ctx context.Context, wire func(context.Context) error) error {
	wired := make(chan error, 1)
	go func() { // Run's own: it receives from wired, or gives up on it and fails
		wired <- guard("start", func() error { return wire(d.ctx) })
	}()
	var err error
	select {
	case err = <-wired:
		if err != nil {
			d.Fail(err)
		}
		select {
		case <-ctx.Done():
		case <-d.stopped:
		}
		d.Stop()
	case <-ctx.Done():
		d.abortWiring(wired)
	case <-d.stopped:
		d.abortWiring(wired)
	}
	d.shutdown()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cause
}

func (d *Daemon) abortWiring(wired <-chan error) {
	d.Stop()
	d.cancel(errStopping)
	timer := time.NewTimer(stageCap)
	defer timer.Stop()
	select {
	case err := <-wired:
		if err != nil && !isContextError(err) {
			d.Fail(err)
		}
	case <-timer.C:
		d.Fail(errs.New(errs.Internal, "start did not end within %s of being told to", stageCap))
	}
}

// errStopping is the cause that contexts end with.
var errStopping = errors.New("the process stops")

// shutdown is the ordered stop.
func (d *Daemon) shutdown() {
	d.mu.Lock()
	for _, h := range d.health {
		h.SetNotServing()
	}
	hooks := d.hooks
	cause := d.cause
	d.mu.Unlock()
	if cause != nil {
		d.log.Error("stopping after a failure", "error", cause)
	} else {
		d.log.Info("stopping")
	}
	for stage := StagePush; stage < numStages; stage++ {
		limit := stageCap
		if stage == StageServer {
			limit = ServerStopCap
		}
		if stage == StageFeed {
			d.cancel(errStopping)
		}
		for _, h := range slices.Backward(hooks[stage]) {
			d.stopOne(stage, h, limit)
		}
		if stage == StageFeed {
			d.join(stageCap)
		}
	}
	if d.tele != nil {
		d.stopOne(numStages-1, hook{"telemetry", d.tele.Shutdown}, flushCap)
	}
}

func (d *Daemon) stopOne(stage Stage, h hook, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), limit)
	defer cancel()
	if err := guard(h.name, func() error { return h.stop(ctx) }); err != nil {
		d.log.Error("stop", "stage", stage.String(), "hook", h.name, "error", err)
	}
}
