package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/plan"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// world is everything around a Supervisor. One mutex guards all of it, and one channel says that something happened.
type world struct {
	t       *testing.T
	dir     string
	mu      sync.Mutex
	happens chan struct{}

	events []string
	now    time.Time
	alarms []alarm

	boxes     map[string]*box
	links     map[string]link.Attachment
	prepared  map[string]bool
	addresses map[string]netip.Addr
	next      netip.Addr
	// released are the revisions of releases, by UID, in their order.
	released map[string][]int64

	statuses map[string][]*objectv1.PodStatus
	revision int64
	deleted  map[string]int64
	// fail gives the error of a call, by "call uid" or "call"; nil is none.
	fail map[string]error
	// hold makes Stop wait until the grace period is 0 or the box is let go.
	hold map[string]bool
}

type box struct {
	spec              podspec.Pod
	state             runtime.PodState
	started, stopping bool
	grace             []time.Duration
}

type alarm struct {
	at   time.Time
	ring chan time.Time
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, dir: t.TempDir(), happens: make(chan struct{}), now: time.Unix(1_700_000_000, 0).UTC(),
		boxes: map[string]*box{}, links: map[string]link.Attachment{}, prepared: map[string]bool{},
		addresses: map[string]netip.Addr{}, next: netip.MustParseAddr("10.244.0.1"), released: map[string][]int64{},
		statuses: map[string][]*objectv1.PodStatus{}, revision: 100, deleted: map[string]int64{},
		fail: map[string]error{}, hold: map[string]bool{},
	}
}

// note records a call under w.mu, and gives the error that the test wants.
func (w *world) note(call, uid string) error {
	w.events = append(w.events, call+" "+uid)
	w.happened()
	if err := w.fail[call+" "+uid]; err != nil {
		return err
	}
	return w.fail[call]
}

func (w *world) happened() {
	close(w.happens)
	w.happens = make(chan struct{})
}

// set changes the world.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	w.happened()
}

// until waits for a condition, which is asked under w.mu.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	w.await(what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return ok()
	})
}

// await is until for a condition that asks others, who may want w.mu themselves.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	look := time.NewTicker(5 * time.Millisecond) // files change without an event
	defer look.Stop()
	for {
		w.mu.Lock()
		happens := w.happens
		w.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-happens:
		case <-look.C:
		case <-limit.C:
			w.mu.Lock()
			defer w.mu.Unlock()
			w.t.Fatalf("not: %s\n%s", what, strings.Join(w.events, "\n"))
		}
	}
}

// Now and After are the clock.
func (w *world) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) After(d time.Duration) <-chan time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := alarm{w.now.Add(d), make(chan time.Time, 1)}
	w.alarms = append(w.alarms, a)
	w.happened()
	return a.ring
}

// ticking moves the clock on whenever somebody pauses for at most d, until a condition holds.
func (w *world) ticking(d time.Duration, what string, ok func() bool) {
	w.t.Helper()
	w.until(what, func() bool {
		if ok() {
			return true
		}
		soon := func(a alarm) bool { return !a.at.After(w.now.Add(d)) }
		if slices.ContainsFunc(w.alarms, soon) {
			for _, a := range w.alarms {
				if soon(a) {
					a.ring <- w.now
				}
			}
			w.alarms = slices.DeleteFunc(w.alarms, soon)
			w.now = w.now.Add(d)
		}
		return false
	})
}

// calls are the events so far whose call is one of the given, without the UID.
func (w *world) calls(uid string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.events {
		if call, ok := strings.CutSuffix(e, " "+uid); ok && (len(out) == 0 || out[len(out)-1] != call) {
			out = append(out, call)
		}
	}
	return strings.Join(out, " ")
}

func (w *world) forget() { w.set(func() { w.events = nil }) }

// status is the newest reported status of a pod; it is asked under w.mu.
func (w *world) status(uid string) *objectv1.PodStatus {
	if l := w.statuses[uid]; len(l) > 0 {
		return l[len(l)-1]
	}
	return nil
}

func condition(s *objectv1.PodStatus, kind string) string {
	for _, c := range s.GetConditions() {
		if c.GetType() == kind {
			return c.GetStatus()
		}
	}
	return ""
}

func (w *world) untilReady(uid string) {
	w.t.Helper()
	w.until(uid+" ready", func() bool { return condition(w.status(uid), "Ready") == "True" })
}

// The driver.

func (w *world) CreateSandbox(_ context.Context, p podspec.Pod) (runtime.Sandbox, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("sandbox", p.UID); err != nil {
		return runtime.Sandbox{}, err
	}
	if w.boxes[p.UID] == nil {
		b := &box{spec: p}
		for _, c := range p.Containers {
			b.state.Containers = append(b.state.Containers, runtime.ContainerState{Name: c.Name, Image: c.Image, Reason: "ContainerCreating"})
		}
		w.boxes[p.UID] = b
	}
	if p.HostNetwork {
		return runtime.Sandbox{PodUID: p.UID}, nil
	}
	return runtime.Sandbox{PodUID: p.UID, NetNS: "/netns/" + p.UID}, nil
}

func (w *world) StartContainers(_ context.Context, p podspec.Pod, net runtime.Attachment) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("start", p.UID); err != nil {
		return err
	}
	b := w.boxes[p.UID]
	if !b.started {
		b.started, b.state.Started, b.state.Net = true, true, net
	}
	return nil
}

func (w *world) Replace(_ context.Context, p podspec.Pod) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.note("replace:"+p.Containers[0].Image, p.UID)
}

func (w *world) Stop(ctx context.Context, uid string, grace time.Duration) error {
	w.mu.Lock()
	err := w.note("stop", uid)
	b := w.boxes[uid]
	if b == nil {
		err = errs.New(errs.NotFound, "no such pod")
	}
	if err != nil {
		w.mu.Unlock()
		return err
	}
	b.stopping, b.state.Stopping = true, true
	b.grace = append(b.grace, grace)
	w.happened()
	for w.hold[uid] && b.grace[len(b.grace)-1] > 0 {
		happens := w.happens
		w.mu.Unlock()
		select {
		case <-happens:
		case <-ctx.Done():
			return ctx.Err()
		}
		w.mu.Lock()
	}
	for i := range b.state.Containers {
		b.state.Containers[i].Phase, b.state.Containers[i].Ready = runtime.Terminated, false
		b.state.Containers[i].Last = &runtime.Exit{Code: 143}
	}
	w.mu.Unlock()
	return nil
}

func (w *world) RemoveSandbox(_ context.Context, uid string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("remove-sandbox", uid); err != nil {
		return err
	}
	delete(w.boxes, uid)
	return nil
}

// State copies, as the real one does.
func (w *world) State(uid string) (runtime.PodState, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.boxes[uid]
	if b == nil {
		return runtime.PodState{}, errs.New(errs.NotFound, "no such pod")
	}
	s := b.state
	s.Containers = slices.Clone(s.Containers)
	return s, nil
}

// The links. List is also the driver's; see driver and links.

func (w *world) Attach(p link.Pod) (link.Attachment, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("attach", p.UID); err != nil {
		return link.Attachment{}, err
	}
	if !w.prepared[p.UID] {
		w.t.Errorf("%s is attached without policy", p.UID)
	}
	w.links[p.UID] = link.Attachment{UID: p.UID, Namespace: p.Namespace, Name: p.Name, Addresses: p.Addresses}
	return w.links[p.UID], nil
}

func (w *world) Detach(uid string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("detach", uid); err != nil {
		return err
	}
	delete(w.links, uid)
	return nil
}

type driver struct{ *world }

func (d driver) List() []runtime.PodInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []runtime.PodInfo
	for _, b := range d.boxes {
		out = append(out, runtime.PodInfo{Pod: b.spec, Started: b.started, Stopping: b.stopping, Net: b.state.Net})
	}
	return out
}

type links struct{ *world }

func (l links) List() ([]link.Attachment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []link.Attachment
	for _, a := range l.links {
		out = append(out, a)
	}
	return out, nil
}

// The dataplane and the addresses.

func (w *world) Prepare(_ context.Context, a plan.Attachment) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.Link != link.Name(a.UID) || len(a.Addresses) == 0 {
		w.t.Errorf("prepare %+v", a)
	}
	if err := w.note("prepare", a.UID); err != nil {
		return err
	}
	w.prepared[a.UID] = true
	return nil
}

func (w *world) Remove(_ context.Context, uid string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("unprepare", uid); err != nil {
		return err
	}
	if _, ok := w.links[uid]; ok {
		w.t.Errorf("%s leaves the tables with its link in place", uid)
	}
	delete(w.prepared, uid)
	return nil
}

func (w *world) Allocate(_ context.Context, uid string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("address", uid); err != nil {
		return nil, err
	}
	if _, ok := w.addresses[uid]; !ok {
		w.addresses[uid] = w.next
		w.next = w.next.Next()
	}
	return []netip.Addr{w.addresses[uid]}, nil
}

func (w *world) Release(_ context.Context, uid string, removal int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("release", uid); err != nil {
		return err
	}
	delete(w.addresses, uid)
	w.released[uid] = append(w.released[uid], removal)
	return nil
}

func (w *world) Unresolved() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for uid, l := range w.released {
		if l[len(l)-1] == 0 {
			out = append(out, uid)
		}
	}
	return out
}

// The reporter.

func (w *world) UpdateStatus(_ context.Context, _, _, uid string, status *objectv1.PodStatus) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note("status", uid); err != nil {
		return 0, err
	}
	w.statuses[uid] = append(w.statuses[uid], proto.Clone(status).(*objectv1.PodStatus))
	w.revision++
	return w.revision, nil
}

type reporter struct{ *world }

func (r reporter) Delete(_ context.Context, _, _, uid string) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.note("delete", uid); err != nil {
		return 0, err
	}
	r.revision++
	r.deleted[uid] = r.revision
	r.happened()
	return r.revision, nil
}

// agent is one process of the agent in a world.
type agent struct {
	*Supervisor
	stop func()
}

func (w *world) agent() *agent {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var goroutines sync.WaitGroup
	own := func(name string, fn func(context.Context) error) {
		goroutines.Go(func() {
			if err := fn(ctx); err != nil && !errors.Is(err, context.Canceled) {
				w.t.Errorf("%s: %v", name, err)
			}
		})
	}
	s, err := New(Config{
		Driver: driver{w}, Links: links{w}, Dataplane: w, Addresses: w, Reporter: reporter{w}, Dir: w.dir, MTU: 1450,
		HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Go: own, Clock: w, Resync: time.Hour, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	own("run", s.Run)
	a := &agent{Supervisor: s, stop: sync.OnceFunc(func() { cancel(); goroutines.Wait() })}
	w.t.Cleanup(a.stop)
	return a
}

// containers changes the state of a pod's first container, and tells the agent.
func (w *world) container(a *agent, uid string, change func(c *runtime.ContainerState)) {
	w.t.Helper()
	w.until(uid+" started", func() bool { return w.boxes[uid] != nil && w.boxes[uid].started })
	w.set(func() { change(&w.boxes[uid].state.Containers[0]) })
	a.Changed(uid)
}

func running(c *runtime.ContainerState) {
	*c = runtime.ContainerState{
		Name: c.Name, Image: c.Image, ID: "process://" + c.Name + "/0", Phase: runtime.Running, Started: true, Ready: true, Judged: true,
		RestartCount: c.RestartCount, Previous: c.Previous,
	}
}

// object is a Pod with one container.
func object(uid string) *objectv1.Pod {
	return &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "pod-" + uid, Uid: uid, Generation: 1},
		Spec: &objectv1.PodSpec{
			NodeName:   "node-1",
			Containers: []*objectv1.Container{{Name: "main", Image: runtime.EchoImage}},
		},
	}
}

func deleting(p *objectv1.Pod, grace int32) *objectv1.Pod {
	p.Metadata.DeletionTimestamp = timestamppb.New(time.Unix(1_700_000_100, 0))
	p.Metadata.DeletionGracePeriodSeconds = &grace
	return p
}

func rows(pods ...*objectv1.Pod) []nodestate.Workload {
	var out []nodestate.Workload
	for _, p := range pods {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
		if err != nil {
			panic(fmt.Sprint(err)) // a test's own literal
		}
		out = append(out, nodestate.Workload{UID: p.GetMetadata().GetUid(), Namespace: "default", Name: p.GetMetadata().GetName(), Pod: string(b)})
	}
	return out
}

func (a *agent) update(t *testing.T, version int64, pods []*objectv1.Pod, removes ...string) {
	t.Helper()
	if err := a.Update(Update{Version: version, Upserts: rows(pods...), Removes: removes}); err != nil {
		t.Fatal(err)
	}
}

func number(n float64) *structpb.Value { return structpb.NewNumberValue(n) }

func ptr[T any](v T) *T { return &v }
