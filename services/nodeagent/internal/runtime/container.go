package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"podwire.dev/services/nodeagent/internal/echo"
	"podwire.dev/services/nodeagent/internal/probe"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
	"podwire.dev/services/nodeagent/internal/shim"
)

// container is one container of a pod. pod.mu guards current and attempt; the rest
// belongs to the goroutine of runContainer.
type container struct {
	pod  *pod
	spec podspec.Container
	kind initKind
	plan runPlan
	dir  string

	attempt int // -1 before the first
	current ContainerState
	backoff Backoff
	// nextImage is what Replace asks for, empty if nothing; pod.mu guards it. replaced says so to who waits.
	nextImage string
	replaced  chan struct{}
}

func (c *container) runDir(attempt int) string { return filepath.Join(c.dir, strconv.Itoa(attempt)) }

func (c *container) id(attempt int) string {
	return fmt.Sprintf("process://%s/%s/%d", c.pod.spec.UID, c.spec.Name, attempt)
}

// load finds the last run on disk and the back-off it was under.
func (c *container) load() error {
	runs, err := attempts(c.dir)
	if err != nil || len(runs) == 0 {
		return err
	}
	c.attempt = runs[len(runs)-1]
	c.current.RestartCount = c.attempt
	if c.attempt > 0 {
		previous, err := shim.LastExit(c.runDir(c.attempt - 1))
		if err != nil {
			return err
		}
		if previous != nil {
			c.current.Previous = exitOf(*previous, c.id(c.attempt-1))
		}
	}
	b, err := os.ReadFile(filepath.Join(c.dir, "backoff.json"))
	if err == nil {
		// A file cut short only forgets how often the container ended before.
		_ = json.Unmarshal(b, &c.backoff)
	}
	return nil
}

// shim is the pid of the last run's shim, 0 if there is none.
func (c *container) shim() int {
	if c.attempt < 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	h, _, err := shim.Adopt(ctx, c.runDir(c.attempt))
	if err != nil || h == nil {
		return 0
	}
	record, err := h.Record()
	if err != nil {
		return 0
	}
	return record.Shim.PID
}

// update changes the container's state and tells who listens.
func (d *Process) update(c *container, change func(s *ContainerState)) {
	c.pod.mu.Lock()
	change(&c.current)
	c.pod.mu.Unlock()
	d.changed(c.pod.spec.UID)
}

// runContainer runs one container, again and again as its restart policy asks, and
// says whether it ended well and for good. It calls up once the container has started
// (startup probe included), each time. When ctx ends it returns and the container
// goes on.
func (d *Process) runContainer(ctx context.Context, c *container, up func()) bool {
	handle, exit := d.resume(ctx, c)
	for ctx.Err() == nil {
		if handle == nil && exit == nil {
			d.takeImage(ctx, c)
			if c.pod.stopRequested() || c.plan.program == nothing && !d.waitImage(ctx, c) {
				return false
			}
			if c.replacing() {
				continue
			}
			handle, exit = d.start(ctx, c)
		}
		if handle != nil {
			exit = d.watch(ctx, c, handle, up)
		}
		if exit == nil {
			return false // ctx ended
		}
		replaced := c.replacing() && !c.pod.stopRequested()
		again := replaced || d.restarts(c, *exit)
		d.ended(c, *exit, again)
		if !again {
			return exit.Code == 0
		}
		if !replaced && !d.waitBackoff(ctx, c, *exit) {
			return false
		}
		handle, exit = nil, nil
	}
	return false
}

// waitImage waits until a container that nothing can run gets another image; false if it is not to.
func (d *Process) waitImage(ctx context.Context, c *container) bool {
	d.update(c, func(s *ContainerState) { s.Phase, s.Reason, s.Message = Waiting, c.plan.reason, c.plan.message })
	select {
	case <-c.replaced:
		return true
	case <-c.pod.stop:
	case <-ctx.Done():
	}
	return false
}

// resume finds what an earlier agent left of the container: it runs, or has ended, or
// neither.
func (d *Process) resume(ctx context.Context, c *container) (*shim.Handle, *Exit) {
	if c.attempt < 0 {
		return nil, nil
	}
	handle, exit, err := shim.Adopt(ctx, c.runDir(c.attempt))
	if err != nil {
		return nil, c.failure(reasonCreateError, err)
	}
	if exit == nil && handle == nil {
		c.pod.mu.Lock()
		c.attempt-- // it never began: the number is free
		c.pod.mu.Unlock()
	}
	if exit == nil {
		return handle, nil
	}
	return nil, exitOf(*exit, c.id(c.attempt))
}

func exitOf(e shim.Exit, id string) *Exit {
	return &Exit{
		Code: e.Code, Signal: e.Signal, Reason: e.Reason, Message: e.Message,
		StartedAt: e.StartedAt, FinishedAt: e.FinishedAt, ID: id,
	}
}

// failure is the exit of a run that could not be made.
func (c *container) failure(reason string, err error) *Exit {
	return &Exit{Code: shim.CodeStartError, Reason: reason, Message: err.Error(), FinishedAt: time.Now(), ID: c.id(c.attempt)}
}

// start makes the next run.
func (d *Process) start(ctx context.Context, c *container) (*shim.Handle, *Exit) {
	c.pod.mu.Lock()
	c.attempt++
	attempt := c.attempt
	c.current.RestartCount = attempt
	c.pod.mu.Unlock()
	dir := c.runDir(attempt)
	err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o711))
	if old := attempt - 2; old >= 0 && err == nil {
		err = os.RemoveAll(c.runDir(old)) // the run before this one keeps its log
	}
	if err != nil {
		return nil, c.failure(reasonCreateError, err)
	}
	handle, err := d.cfg.Shim.Start(ctx, dir, d.shimSpec(c))
	var failed *shim.StartFailure
	switch {
	case ctx.Err() != nil:
		return nil, nil
	case errors.As(err, &failed):
		d.cfg.Log.WarnContext(ctx, "container did not start", "pod", c.pod.spec.Ref(), "container", c.spec.Name, "reason", failed.Message)
		return nil, c.failure(shim.ReasonStart, failed)
	case err != nil:
		return nil, c.failure(reasonCreateError, err)
	}
	return handle, nil
}

// shimSpec is the run with nothing left to decide.
func (d *Process) shimSpec(c *container) shim.Spec {
	info := c.pod.info()
	r := c.pod.spec.Resolve(c.spec, podspec.Facts{PodIPs: info.Net.PodIPs, HostIPs: info.Net.HostIPs})
	host, err := d.hostname(c.pod.spec)
	if err != nil { // writeFiles refused it already
		host = c.pod.spec.Name
	}
	etc := filepath.Join(c.pod.dir, "etc")
	s := shim.Spec{
		ID: c.id(c.attempt), Hostname: host, NetNS: c.pod.netns, WorkingDir: c.spec.WorkingDir,
		Env: append([]string{"HOSTNAME=" + host}, r.Env...),
		Binds: []shim.Bind{
			{Source: filepath.Join(etc, "hosts"), Target: "/etc/hosts"},
			{Source: filepath.Join(etc, "resolv.conf"), Target: "/etc/resolv.conf"},
			{Source: filepath.Join(etc, "hostname"), Target: "/etc/hostname", Presence: shim.Optional},
		},
		UID: c.spec.User.UID, GID: c.spec.User.GID, Groups: c.spec.User.Groups,
	}
	switch c.plan.program {
	case echoServer:
		s.Echo = &echo.Config{Name: c.pod.spec.Name, Linger: echo.LingerFor(c.pod.spec.GracePeriod)}
		s.WorkingDir = ""
		for _, p := range c.spec.Ports {
			s.Echo.Ports = append(s.Echo.Ports, echo.Port{Protocol: p.Protocol, Number: p.Number})
		}
	case succeed:
		s.Command, s.WorkingDir = []string{"true"}, ""
	default:
		s.Command = append(r.Command, r.Args...)
	}
	return s
}

// restarts applies the restart policy to an exit. An init container ends with its
// first success.
func (d *Process) restarts(c *container, exit Exit) bool {
	policy := c.pod.spec.RestartPolicy
	if c.kind == sidecar {
		policy = podspec.RestartAlways
		select {
		case <-c.pod.mainsDone:
			return false
		default:
		}
	}
	switch {
	case c.pod.stopRequested(), policy == podspec.RestartNever:
		return false
	case policy == podspec.RestartOnFailure, c.kind == initStep:
		return exit.Code != 0
	}
	return true
}

// ended records an exit; a container that will run again waits.
func (d *Process) ended(c *container, exit Exit, again bool) {
	d.update(c, func(s *ContainerState) {
		s.Started, s.Ready = false, false
		if !again {
			s.Phase, s.Reason, s.Message, s.Last = Terminated, exit.Reason, exit.Message, &exit
			return
		}
		s.Phase, s.Reason, s.Message, s.Last, s.Previous = Waiting, reasonCrashLoop, "", nil, &exit
	})
}

// waitBackoff waits until the container may start again; false if it is not to.
func (d *Process) waitBackoff(ctx context.Context, c *container, exit Exit) bool {
	at := c.backoff.Ready(exit.FinishedAt)
	if wait := time.Until(at); wait > 0 {
		d.update(c, func(s *ContainerState) {
			s.Message = fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", c.backoff.Delay, c.spec.Name, c.pod.spec.Ref())
			if exit.Message != "" {
				s.Message += ": " + exit.Message
			}
		})
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.replaced:
			return true
		case <-c.pod.mainsDone:
			return c.kind != sidecar
		case <-c.pod.stop:
			// It ended and will not run again: that is Terminated, not a back-off.
			d.ended(c, exit, false)
			return false
		case <-ctx.Done():
			return false
		}
	}
	c.backoff = c.backoff.Restart(exit.FinishedAt, time.Now())
	if b, err := json.Marshal(c.backoff); err == nil {
		if err := os.WriteFile(filepath.Join(c.dir, "backoff.json"), b, 0o600); err != nil {
			d.cfg.Log.WarnContext(ctx, "back-off is not remembered over a restart of the agent", "pod", c.pod.spec.Ref(), "error", err)
		}
	}
	return true
}

// watch stays with a running container to its end: probes, the request to stop, an
// unhealthy verdict. It returns nil when ctx ends.
func (d *Process) watch(ctx context.Context, c *container, h *shim.Handle, up func()) *Exit {
	record, err := h.Record()
	if err != nil {
		d.cfg.Log.WarnContext(ctx, "start time of container is not known", "pod", c.pod.spec.Ref(), "error", err)
	}
	if record.StartedAt.IsZero() {
		record.StartedAt = time.Now()
	}
	d.update(c, func(s *ContainerState) {
		s.Phase, s.Reason, s.Message, s.Last = Running, "", "", nil
		s.ID, s.StartedAt = c.id(c.attempt), record.StartedAt
		s.Started, s.Ready, s.Judged = false, false, false
	})
	var asides sync.WaitGroup
	defer asides.Wait()
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gone := make(chan struct{})
	var exit shim.Exit
	var waitErr error
	asides.Go(func() {
		defer close(gone)
		exit, waitErr = h.Wait(wctx)
	})
	unhealthy := make(chan verdict, 3)
	asides.Go(func() { d.afterStart(wctx, c, record.StartedAt, up, unhealthy) })

	var sidecarEnd <-chan struct{}
	if c.kind == sidecar {
		sidecarEnd = c.pod.mainsDone
	}
	// Sidecars serve the other containers to their end.
	stop := c.pod.stop
	if c.kind == sidecar {
		stop = nil
	}
	select {
	case <-gone:
	case <-ctx.Done():
	case <-stop:
		d.terminate(ctx, c, h, gone, c.pod.spec.GracePeriod)
	case <-sidecarEnd:
		d.terminate(ctx, c, h, gone, c.pod.spec.GracePeriod)
	case <-c.replaced:
		d.cfg.Log.InfoContext(ctx, "container gets another image and is ended", "pod", c.pod.spec.Ref(), "container", c.spec.Name)
		d.terminate(ctx, c, h, gone, c.pod.spec.GracePeriod)
	case v := <-unhealthy:
		d.cfg.Log.InfoContext(ctx, "container is unhealthy and is ended", "pod", c.pod.spec.Ref(), "container", c.spec.Name, "why", v.message)
		d.terminate(ctx, c, h, gone, v.grace)
	}
	if ctx.Err() != nil {
		return nil
	}
	<-gone
	if waitErr != nil {
		return c.failure(shim.ReasonLost, waitErr)
	}
	return exitOf(exit, c.id(c.attempt))
}

// verdict is why a container that runs is to be ended.
type verdict struct {
	message string
	grace   time.Duration
}

// afterStart runs the postStart hook (once per run, also over agents) and the probes.
func (d *Process) afterStart(ctx context.Context, c *container, startedAt time.Time, up func(), unhealthy chan<- verdict) {
	done := filepath.Join(c.runDir(c.attempt), "poststart")
	if c.spec.PostStart != nil && c.plan.substituted == "" {
		if _, err := os.Stat(done); err != nil {
			if a := d.ask(ctx, c, *c.spec.PostStart); !a.OK && ctx.Err() == nil {
				unhealthy <- verdict{"postStart: " + a.Message, c.pod.spec.GracePeriod}
				return
			}
			_ = os.WriteFile(done, nil, 0o600)
		}
	}
	var probes sync.WaitGroup
	defer probes.Wait()
	run := func(kind probe.Kind, p *podspec.Probe) {
		ask := func(ctx context.Context) probe.Answer { return d.ask(ctx, c, p.Handler) }
		probe.Run(ctx, kind, *p, startedAt, ask, func(r probe.Report) { d.report(c, p, r, unhealthy) })
	}
	if c.spec.Startup != nil {
		run(probe.Startup, c.spec.Startup)
	} else {
		d.report(c, nil, probe.Report{Kind: probe.Startup, Passing: true}, unhealthy)
	}
	c.pod.mu.Lock()
	started := c.current.Started
	c.pod.mu.Unlock()
	if !started {
		return
	}
	up()
	if c.spec.Readiness != nil {
		probes.Go(func() { run(probe.Readiness, c.spec.Readiness) })
	} else {
		d.report(c, nil, probe.Report{Kind: probe.Readiness, Passing: true}, unhealthy)
	}
	if c.spec.Liveness != nil {
		probes.Go(func() { run(probe.Liveness, c.spec.Liveness) })
	}
}

// report turns a probe's verdict into the container's state, or its end.
func (d *Process) report(c *container, p *podspec.Probe, r probe.Report, unhealthy chan<- verdict) {
	switch {
	case r.Kind == probe.Startup && r.Passing:
		d.update(c, func(s *ContainerState) { s.Started = true })
	case r.Kind == probe.Readiness:
		d.update(c, func(s *ContainerState) { s.Ready, s.Judged = r.Passing && s.Phase == Running, true })
	case !r.Passing:
		grace := c.pod.spec.GracePeriod
		if p.GracePeriod >= 0 {
			grace = p.GracePeriod
		}
		unhealthy <- verdict{fmt.Sprintf("%s probe failed: %s", r.Kind, r.Message), grace}
	}
}

// ask carries out a probe's or a hook's action.
func (d *Process) ask(ctx context.Context, c *container, h podspec.Handler) probe.Answer {
	if h.Sleep > 0 {
		timer := time.NewTimer(h.Sleep)
		defer timer.Stop()
		select {
		case <-timer.C:
			return probe.Answer{OK: true}
		case <-ctx.Done():
			return probe.Answer{Message: ctx.Err().Error()}
		}
	}
	t := probe.Target{Container: c.spec, Exec: d.execIn(c)}
	if ips := c.pod.info().Net.PodIPs; len(ips) > 0 {
		t.PodIP = ips[0]
	}
	return probe.Ask(ctx, h, t)
}
