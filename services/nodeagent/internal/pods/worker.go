package pods

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/telemetry"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/plan"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// row is a workload row as read.
type row struct {
	ref        Ref
	spec       podspec.Pod
	generation int32
	// problem says why the Pod cannot be run at all.
	problem     error
	traceparent string
	// deleting says that the Pod has a deletionTimestamp; grace is what its containers get then.
	deleting bool
	grace    time.Duration
	// orphan says that there is no row: only what an earlier agent left is known.
	orphan bool
}

// worker is the one who decides about one pod.
type worker struct {
	s      *Supervisor
	uid    string
	report *report
	wake   chan struct{}

	mu  sync.Mutex
	row row
	// vanished is the version in which the row was found gone; 0 while it is there.
	vanished int64
	// cut ends the step of the start that is under way.
	cut context.CancelFunc
	// net is what the pod has, from the moment when its link is there.
	net runtime.Attachment
	// problem is why the start does not go on.
	problem problem
	// record is what is kept on disk; unsaved says that it differs. The worker's own goroutine writes it.
	record  record
	unsaved bool

	// Of the worker's own goroutine: the release of a finished pod's addresses is bound to a revision.
	settled bool
}

// problem is why a pod cannot start now: a word for programs, and a sentence.
type problem struct{ reason, message string }

// Reasons of a Pod that waits, beside those of the runtime.
const (
	reasonInvalid   = "InvalidPod"
	reasonAddresses = "NoAddress"
	reasonSandbox   = "FailedCreatePodSandBox"
	reasonPolicy    = "NetworkPolicyNotReady"
	reasonLink      = "NetworkNotReady"
	reasonStart     = "FailedStart"
)

func newWorker(s *Supervisor, r row) *worker {
	w := &worker{s: s, uid: r.ref.UID, row: r, wake: make(chan struct{}, 1)}
	if r.problem == nil {
		w.record = readRecord(s.cfg.Dir, w.uid, s.cfg.Log)
	}
	if w.record.Taken.IsZero() {
		w.record.Taken = s.cfg.Clock.Now()
	}
	w.report = newReport(w)
	return w
}

func (w *worker) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// assign takes a newer row.
func (w *worker) assign(r row) {
	w.mu.Lock()
	if r.traceparent == "" {
		r.traceparent = w.row.traceparent
	}
	w.row, w.vanished = r, 0
	if r.deleting && w.cut != nil {
		w.cut()
	}
	w.mu.Unlock()
	w.nudge()
}

// vanish says that the row is gone since version.
func (w *worker) vanish(version int64) {
	w.mu.Lock()
	w.vanished = max(version, 1)
	if w.cut != nil {
		w.cut()
	}
	w.mu.Unlock()
	w.nudge()
}

func (w *worker) current() row {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.row
}

func (w *worker) identity() (ref Ref, ending bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.row.ref, w.row.deleting || w.vanished > 0
}

func (w *worker) ending() bool {
	_, ending := w.identity()
	return ending
}

// wanted says that there is a row, and that it does not ask for the end.
func (w *worker) wanted() bool { return !w.ending() }

// gone is the version in which the row vanished, 0 if it is there.
func (w *worker) gone() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vanished
}

func (w *worker) attachment() runtime.Attachment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.net
}

func (w *worker) blocked() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.problem == (problem{}) {
		return ""
	}
	return "Pod " + w.row.ref.String() + ": " + w.problem.message
}

// run is the pod's life, or lives, if the store brings back what it had taken away.
func (w *worker) run(ctx context.Context) error {
	for {
		if w.wanted() && (w.finished() || w.start(ctx)) {
			w.serve(ctx)
		}
		if ctx.Err() != nil {
			w.save()
			return nil // the pod goes on
		}
		if !w.ending() {
			continue
		}
		w.end(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if w.s.retire(w) {
			w.report.close()
			return nil
		}
		w.reset()
	}
}

// reset forgets what belonged to the life that ended.
func (w *worker) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.net, w.problem, w.settled = runtime.Attachment{}, problem{}, false
	w.record = record{Taken: w.s.cfg.Clock.Now()}
}

// start brings the pod up, however long that takes. It returns false where the pod is to end, or the process does.
func (w *worker) start(ctx context.Context) bool {
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.mu.Lock()
	w.cut = cancel
	if w.row.deleting || w.vanished > 0 {
		cancel()
	}
	w.mu.Unlock()
	row := w.current()
	sctx, span := telemetry.StartFrom(sctx, row.traceparent, "pod.start")
	span.SetObject("pods", row.ref.Namespace, row.ref.Name)
	var pause backoff
	var due deadline
	for {
		if w.overdue() {
			w.expire(ctx)
			span.End(nil)
			return ctx.Err() == nil
		}
		p, err := w.bringUp(sctx)
		if sctx.Err() != nil {
			span.End(sctx.Err())
			return false
		}
		w.hinder(ctx, p, err)
		if err == nil {
			span.End(nil)
			return true
		}
		select {
		case <-w.s.cfg.Clock.After(pause.next()):
		case <-due.of(w):
		case <-sctx.Done():
		}
	}
}

// hinder notes what keeps the pod from starting, nothing if err is nil, and reports it.
func (w *worker) hinder(ctx context.Context, reason string, err error) {
	var p problem
	if err != nil {
		p = problem{reason, err.Error()}
	}
	w.mu.Lock()
	changed := w.problem.reason != p.reason
	w.problem = p
	ref := w.row.ref
	w.mu.Unlock()
	if changed && err != nil {
		w.s.cfg.Log.WarnContext(ctx, "pod waits", "pod", ref.String(), "reason", reason, "error", err)
	}
	w.observe(ctx)
}

// bringUp does the steps of a start in their order. Each changes nothing where nothing is to be done, so a pod that runs
// is adopted by the same steps. The reason says which step err comes from.
func (w *worker) bringUp(ctx context.Context) (reason string, err error) {
	row := w.current()
	if row.problem != nil {
		return reasonInvalid, row.problem
	}
	net := runtime.Attachment{PodIPs: w.s.cfg.HostIPs, HostIPs: w.s.cfg.HostIPs}
	if !row.spec.HostNetwork {
		if net.PodIPs, err = w.s.cfg.Addresses.Allocate(ctx, w.uid); err != nil {
			return reasonAddresses, err
		}
	}
	reason, err = w.connect(ctx, row, net.PodIPs)
	if err != nil {
		return reason, err
	}
	w.mu.Lock()
	w.net, w.problem = net, problem{}
	w.mu.Unlock()
	w.observe(ctx) // other nodes are to know the addresses before the pod is ready
	err = w.s.turn(ctx, func() error { return w.s.cfg.Driver.StartContainers(ctx, row.spec, net) })
	return reasonStart, err
}

// connect makes the sandbox and, for a pod with a network of its own, its place in the network: policy first.
func (w *worker) connect(ctx context.Context, row row, addresses []netip.Addr) (reason string, err error) {
	var box runtime.Sandbox
	err = w.s.turn(ctx, func() (err error) {
		box, err = w.s.cfg.Driver.CreateSandbox(ctx, row.spec)
		return err
	})
	if err != nil || box.HostNetwork() {
		return reasonSandbox, err
	}
	ctx, span := telemetry.Start(ctx, "pod.attach")
	span.SetObject("pods", row.ref.Namespace, row.ref.Name)
	reason, err = w.attach(ctx, row, box, addresses)
	span.End(err)
	return reason, err
}

func (w *worker) attach(ctx context.Context, row row, box runtime.Sandbox, addresses []netip.Addr) (reason string, err error) {
	pctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	err = w.s.cfg.Dataplane.Prepare(pctx, plan.Attachment{UID: w.uid, Link: link.Name(w.uid), Addresses: addresses})
	if err != nil {
		return reasonPolicy, err
	}
	err = w.s.turn(ctx, func() error { return w.link(row, box, addresses) })
	return reasonLink, err
}

func (w *worker) link(row row, box runtime.Sandbox, addresses []netip.Addr) error {
	_, err := w.s.cfg.Links.Attach(link.Pod{
		UID: w.uid, Namespace: row.ref.Namespace, Name: row.ref.Name, NetNS: box.NetNS, Addresses: addresses, MTU: w.s.cfg.MTU,
	})
	return err
}

// serve stays with a pod that was brought up until it is to end, or ctx ends.
func (w *worker) serve(ctx context.Context) {
	images := imagesOf(w.current().spec)
	if started, err := w.startedImages(); err == nil {
		images = started
	}
	var retry backoff
	var due deadline
	resync := w.s.cfg.Clock.After(w.s.cfg.Resync)
	for !w.ending() && ctx.Err() == nil {
		var again <-chan time.Time
		if w.overdue() {
			w.expire(ctx)
		}
		if err := w.step(ctx, &images); err != nil && ctx.Err() == nil {
			w.s.cfg.Log.ErrorContext(ctx, "pod", "pod", w.current().ref.String(), "error", err)
			again = w.s.cfg.Clock.After(retry.next())
		} else {
			retry = backoff{}
		}
		select {
		case <-w.wake:
		case <-again:
		case <-due.of(w):
		case <-resync:
			if err := w.repair(ctx); err != nil && ctx.Err() == nil {
				w.s.cfg.Log.ErrorContext(ctx, "repair pod", "pod", w.current().ref.String(), "error", err)
			}
			resync = w.s.cfg.Clock.After(w.s.cfg.Resync)
		case <-ctx.Done():
		}
	}
}

// step does what the newest row and the newest state of the containers ask for.
func (w *worker) step(ctx context.Context, images *[]string) error {
	row := w.current()
	if now := imagesOf(row.spec); row.problem == nil && !slices.Equal(now, *images) && !w.finished() {
		if err := w.s.cfg.Driver.Replace(ctx, row.spec); err != nil {
			return errs.Wrap(err, "replace images")
		}
		*images = now
	}
	if w.observe(ctx) && !w.finished() {
		w.markFinished()
	}
	if w.finished() {
		return w.giveNetworkBack(ctx)
	}
	return nil
}

// repair looks whether the sandbox and the link are as they were made.
func (w *worker) repair(ctx context.Context) error {
	row := w.current()
	if w.finished() || row.problem != nil {
		return nil
	}
	return w.s.turn(ctx, func() error {
		box, err := w.s.cfg.Driver.CreateSandbox(ctx, row.spec)
		if err != nil || box.HostNetwork() {
			return err
		}
		return w.link(row, box, w.attachment().PodIPs)
	})
}

// imagesOf are the images of all containers, in the order of the spec.
func imagesOf(p podspec.Pod) []string {
	var out []string
	for _, list := range [][]podspec.Container{p.Init, p.Containers} {
		for _, c := range list {
			out = append(out, c.Image)
		}
	}
	return out
}

// startedImages are the images that the runtime was given.
func (w *worker) startedImages() ([]string, error) {
	state, err := w.s.cfg.Driver.State(w.uid)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, list := range [][]runtime.ContainerState{state.Init, state.Containers} {
		for _, c := range list {
			out = append(out, c.Image)
		}
	}
	return out, nil
}

// backoff is the pause between two attempts: 100 ms, doubling up to 5 s.
type backoff struct{ last time.Duration }

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, 100*time.Millisecond), 5*time.Second)
	return b.last
}
