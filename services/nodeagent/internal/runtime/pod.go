package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// pod is one Pod under this driver. The goroutine of supervise runs it; mu guards
// what others read.
type pod struct {
	spec       podspec.Pod
	dir        string
	netns      string // empty: the node's
	containers []*container
	// stop is closed by the first request to stop, done when no container is left,
	// mainsDone when the regular containers have ended and sidecars may.
	stop, done, mainsDone chan struct{}

	mu      sync.Mutex
	net     Attachment
	created time.Time
	started bool
	// supervised is set by the one goroutine that runs the Pod.
	supervised bool
	stopping   bool
	// killAt is when SIGKILL is due; moved is closed when it moves.
	killAt time.Time
	grace  time.Duration
	moved  chan struct{}
}

func (d *Process) newPod(s saved) *pod {
	p := &pod{
		spec: s.Pod, dir: d.podDir(s.Pod.UID), netns: d.netns(s.Pod.UID),
		stop: make(chan struct{}), done: make(chan struct{}), mainsDone: make(chan struct{}), moved: make(chan struct{}),
		net: s.Net, created: s.Created, started: s.Started,
	}
	if s.Pod.HostNetwork {
		p.netns = ""
	}
	if s.Stopping {
		p.stopping, p.grace, p.killAt = true, s.Pod.GracePeriod, time.Now().Add(s.Pod.GracePeriod)
		close(p.stop)
	}
	add := func(c podspec.Container, kind initKind) {
		p.containers = append(p.containers, &container{
			pod: p, spec: c, kind: kind, plan: planImage(c, kind, d.cfg.Images),
			dir:     filepath.Join(p.dir, "containers", c.Name),
			attempt: -1, replaced: make(chan struct{}, 1),
			current: ContainerState{Name: c.Name, Image: c.Image, Reason: reasonInitialize},
		})
	}
	for _, c := range s.Pod.Init {
		kind := initStep
		if c.Sidecar() {
			kind = sidecar
		}
		add(c, kind)
	}
	for _, c := range s.Pod.Containers {
		add(c, regular)
	}
	for _, c := range p.containers {
		c.current.Substituted = c.plan.substituted
		if len(s.Pod.Init) == 0 {
			c.current.Reason = reasonCreating
		}
		if c.plan.program == nothing {
			c.current.Reason, c.current.Message = c.plan.reason, c.plan.message
		}
	}
	return p
}

func (p *pod) saved() saved {
	p.mu.Lock()
	defer p.mu.Unlock()
	return saved{Pod: p.specNow(), Net: p.net, Created: p.created, Started: p.started, Stopping: p.stopping}
}

func (p *pod) info() PodInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PodInfo{
		Pod: p.spec, Sandbox: Sandbox{PodUID: p.spec.UID, NetNS: p.netns},
		Net: p.net, Started: p.started, Stopping: p.stopping,
	}
}

func (p *pod) state() PodState {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PodState{Net: p.net, Started: p.started, Stopping: p.stopping, StartedAt: p.created}
	for _, c := range p.containers {
		if c.kind == regular {
			s.Containers = append(s.Containers, c.current)
		} else {
			s.Init = append(s.Init, c.current)
		}
	}
	return s
}

// begin marks the Pod as started; fresh is false if it was.
func (p *pod) begin(net Attachment) (fresh bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.started:
		return false, nil
	case p.stopping:
		return false, errs.New(errs.Conflict, "runtime: start Pod %s: it is being stopped", p.spec.Ref())
	}
	p.started, p.net = true, net
	return true, nil
}

// unbegin takes begin back, unless the Pod is supervised by now.
func (p *pod) unbegin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = p.supervised
}

// requestStop asks for the end of all containers by killAt; a later one is not taken.
func (p *pod) requestStop(killAt time.Time, grace time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.stopping
	if first {
		p.stopping = true
		close(p.stop)
	}
	if first || killAt.Before(p.killAt) {
		p.killAt, p.grace = killAt, grace
		close(p.moved)
		p.moved = make(chan struct{})
	}
	return nil
}

// deadline is when SIGKILL is due if the Pod is being stopped, and what is closed when
// that changes.
func (p *pod) deadline() (at time.Time, grace time.Duration, stopping bool, moved <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killAt, p.grace, p.stopping, p.moved
}

// claim says to one caller that the Pod is its to supervise.
func (p *pod) claim() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.supervised
	p.supervised = true
	return first
}

func (p *pod) isSupervised() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.supervised
}

func (p *pod) stopRequested() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

// repin finds the network namespace of a Pod whose pin is gone (its mount namespace
// died with the agent) through a shim that lives, or makes a new one.
func (p *pod) repin(path string) error {
	for _, c := range p.containers {
		if h := c.shim(); h > 0 {
			if err := pin(filepath.Join("/proc", strconv.Itoa(h), "ns/net"), path); err == nil {
				return nil
			}
		}
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return makeNetNS(path)
}

// supervise runs the Pod from where it stands to its end, or until ctx ends; then the
// containers go on alone.
func (d *Process) supervise(ctx context.Context, p *pod) {
	if !p.claim() {
		return // started while Run was picking up what it found
	}
	var sidecars, mains sync.WaitGroup
	if d.initialize(ctx, p, &sidecars) {
		for _, c := range p.containers {
			if c.kind == regular {
				mains.Go(func() { d.runContainer(ctx, c, func() {}) })
			}
		}
	}
	mains.Wait()
	if ctx.Err() == nil {
		close(p.mainsDone)
	}
	sidecars.Wait()
	if ctx.Err() != nil {
		return
	}
	close(p.done)
	d.changed(p.spec.UID)
}

// initialize runs the init containers in order and says whether all succeeded (a
// sidecar: has started). While the Pod is being stopped nothing begins, but what an
// earlier agent began is found and ended.
func (d *Process) initialize(ctx context.Context, p *pod, sidecars *sync.WaitGroup) bool {
	for _, c := range p.containers {
		switch c.kind {
		case regular:
			continue
		case sidecar:
			up, over := make(chan struct{}), make(chan struct{})
			var once sync.Once
			sidecars.Go(func() {
				defer close(over)
				d.runContainer(ctx, c, func() { once.Do(func() { close(up) }) })
			})
			select {
			case <-up:
			case <-p.stop: // the others have to be found and stopped
			case <-over:
				return false
			}
		default:
			if !d.runContainer(ctx, c, func() {}) {
				return false
			}
		}
		if ctx.Err() != nil {
			return false
		}
	}
	p.mu.Lock()
	for _, c := range p.containers {
		if c.kind == regular && c.current.Reason == reasonInitialize {
			c.current.Reason = reasonCreating
		}
	}
	p.mu.Unlock()
	return true
}
