package runtime

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// Machine is a host on which containers run as entries of a map, for tests. It outlives the drivers that it opens, as
// containers outlive their agent. Its methods may be called at the same time.
type Machine struct {
	mu   sync.Mutex
	pods map[string]*fakePod
	// driver is who hears of changes: the one that was opened last.
	driver *Fake
	starts int
}

type fakePod struct {
	info  PodInfo
	state PodState
}

// NewMachine is a machine on which nothing runs.
func NewMachine() *Machine { return &Machine{pods: map[string]*fakePod{}} }

// Open is [NewProcess] of this machine. Of the configuration only OnChange counts.
func (m *Machine) Open(cfg Config) (Driver, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.driver = &Fake{machine: m, changed: cfg.OnChange}
	return m.driver, nil
}

// Starts is how many containers were started since the beginning.
func (m *Machine) Starts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.starts
}

// Running names the Pods, "namespace/name" and sorted, whose containers run.
func (m *Machine) Running() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, p := range m.pods {
		if slices.ContainsFunc(p.state.Containers, func(c ContainerState) bool { return c.Phase == Running }) {
			out = append(out, p.info.Pod.Ref())
		}
	}
	slices.Sort(out)
	return out
}

// Fake is the driver of a [Machine]: containers run, started and ready, from the moment they are started, whatever their
// image, and end when they are told to; init containers have succeeded by then. Nothing is executed, so Exec is refused
// and logs are empty.
type Fake struct {
	machine *Machine
	changed func(podUID string)
}

var _ Driver = (*Fake)(nil)

// change does something to a Pod and tells of it. NotFound if it is not there.
func (f *Fake) change(uid string, fn func(*fakePod)) error {
	m := f.machine
	m.mu.Lock()
	p := m.pods[uid]
	if p != nil {
		fn(p)
	}
	to := m.driver
	m.mu.Unlock()
	if p == nil {
		return errs.New(errs.NotFound, "runtime: no Pod with uid %s", uid)
	}
	if to.changed != nil {
		to.changed(uid)
	}
	return nil
}

// Run implements [Driver].
func (f *Fake) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// CreateSandbox implements [Driver].
func (f *Fake) CreateSandbox(_ context.Context, pod podspec.Pod) (Sandbox, error) {
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[pod.UID]; p != nil {
		return p.info.Sandbox, nil
	}
	box := Sandbox{PodUID: pod.UID}
	if !pod.HostNetwork {
		box.NetNS = "/netns/" + pod.UID
	}
	m.pods[pod.UID] = &fakePod{
		info:  PodInfo{Pod: pod, Sandbox: box},
		state: PodState{StartedAt: time.Now(), Init: waiting(pod.Init), Containers: waiting(pod.Containers)},
	}
	return box, nil
}

func waiting(list []podspec.Container) []ContainerState {
	var out []ContainerState
	for _, c := range list {
		out = append(out, ContainerState{Name: c.Name, Image: c.Image, Reason: reasonCreating})
	}
	return out
}

// StartContainers implements [Driver].
func (f *Fake) StartContainers(_ context.Context, pod podspec.Pod, net Attachment) error {
	return f.change(pod.UID, func(p *fakePod) {
		if p.info.Started {
			return
		}
		p.info.Started, p.info.Net, p.state.Started, p.state.Net = true, net, true, net
		now := time.Now()
		for i := range p.state.Init {
			c := &p.state.Init[i]
			c.ID = fmt.Sprintf("process://%s/%s/0", pod.UID, c.Name)
			c.Phase, c.Reason, c.Last = Terminated, "", &Exit{Reason: "Completed", StartedAt: now, FinishedAt: now, ID: c.ID}
			f.machine.starts++
		}
		for i := range p.state.Containers {
			f.machine.run(pod.UID, &p.state.Containers[i], now)
		}
	})
}

// run makes a container run anew. It is called under mu.
func (m *Machine) run(uid string, c *ContainerState, now time.Time) {
	c.ID = fmt.Sprintf("process://%s/%s/%d", uid, c.Name, c.RestartCount)
	c.Phase, c.Reason, c.StartedAt = Running, "", now
	c.Started, c.Ready, c.Judged = true, true, true
	m.starts++
}

// Replace implements [Driver].
func (f *Fake) Replace(_ context.Context, pod podspec.Pod) error {
	return f.change(pod.UID, func(p *fakePod) {
		now := time.Now()
		for i := range p.state.Containers {
			c := &p.state.Containers[i]
			if i >= len(pod.Containers) || c.Image == pod.Containers[i].Image {
				continue
			}
			c.Previous = &Exit{Reason: "Completed", StartedAt: c.StartedAt, FinishedAt: now, ID: c.ID}
			c.Image = pod.Containers[i].Image
			c.RestartCount++
			f.machine.run(pod.UID, c, now)
		}
		p.info.Pod = pod
	})
}

// Stop implements [Driver]; no grace is needed.
func (f *Fake) Stop(_ context.Context, uid string, _ time.Duration) error {
	return f.change(uid, func(p *fakePod) {
		p.info.Stopping, p.state.Stopping = true, true
		for i := range p.state.Containers {
			c := &p.state.Containers[i]
			if c.Phase == Running {
				c.Phase, c.Ready, c.Started = Terminated, false, false
				c.Last = &Exit{Code: 143, Signal: 15, Reason: "Error", StartedAt: c.StartedAt, FinishedAt: time.Now(), ID: c.ID}
			}
		}
	})
}

// RemoveSandbox implements [Driver].
func (f *Fake) RemoveSandbox(_ context.Context, uid string) error {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	delete(f.machine.pods, uid)
	return nil
}

// List implements [Driver].
func (f *Fake) List() []PodInfo {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	out := make([]PodInfo, 0, len(f.machine.pods))
	for _, p := range f.machine.pods {
		out = append(out, p.info)
	}
	slices.SortFunc(out, func(a, b PodInfo) int { return strings.Compare(a.Pod.UID, b.Pod.UID) })
	return out
}

// State implements [Driver].
func (f *Fake) State(uid string) (PodState, error) {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	p := f.machine.pods[uid]
	if p == nil {
		return PodState{}, errs.New(errs.NotFound, "runtime: no Pod with uid %s", uid)
	}
	s := p.state
	s.Init, s.Containers = slices.Clone(s.Init), slices.Clone(s.Containers)
	return s, nil
}

// Exec implements [Driver].
func (f *Fake) Exec(context.Context, string, ExecRequest) (int, error) {
	return 0, errs.New(errs.Invalid, "runtime: nothing can be executed on a machine that is a map")
}

// HostExec implements [Driver].
func (f *Fake) HostExec(context.Context, ExecRequest) (int, error) {
	return 0, errs.New(errs.Invalid, "runtime: nothing can be executed on a machine that is a map")
}

// Logs implements [Driver].
func (f *Fake) Logs(context.Context, string, LogRequest, io.Writer) error { return nil }
