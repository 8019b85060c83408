package pods

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// Defaults of Config, and the pace of the package.
const (
	// DefaultStarts is how many pods may be in a step of their start at the same time.
	DefaultStarts = 8
	// DefaultResync is how often a running pod's sandbox and link are looked at.
	DefaultResync = time.Minute
	// reports bounds the calls of the Reporter at the same time.
	reports = 8
	// attempt bounds one attempt to prepare the dataplane or to report, in time.
	attempt = 5 * time.Second
)

// Config is what a Supervisor needs.
type Config struct {
	Driver    Driver
	Links     Links
	Dataplane Dataplane
	Addresses Addresses
	Reporter  Reporter
	// Dir is a directory for one small file per pod; it is made if it is missing.
	Dir string
	// HostIPs are the node's addresses, the primary family first; at most one of each family.
	HostIPs []netip.Addr
	// MTU of pod links, in bytes.
	MTU int
	// Go starts a goroutine that its owner waits for; daemon.Daemon has it.
	Go func(name string, fn func(context.Context) error)
	// Starts is how many pods may be in a step of their start at the same time; 0: DefaultStarts.
	Starts int
	// Resync is how often a running pod's sandbox and link are looked at; 0: DefaultResync.
	Resync time.Duration
	// Clock is nil for the machine's.
	Clock Clock
	Log   *slog.Logger
}

// Update is one step of the workloads, as the service confirmed it: after it, the node's Pods are those with rows.
type Update struct {
	// Version is the revision of the slice after the step.
	Version int64
	// Upserts are the rows that are new or changed, Removes the UIDs of those that went.
	Upserts []nodestate.Workload
	Removes []string
	// Traces gives the traceparent of the last change of a Pod, by "namespace/name", where one is known.
	Traces map[string]string
}

// Supervisor runs the pods of one node. Its methods may be called at the same time.
type Supervisor struct {
	cfg    Config
	starts chan struct{} // one element per pod in a step of its start
	sends  chan struct{} // one element per call of the Reporter
	// confirmed wakes Run.
	confirmed chan struct{}

	mu      sync.Mutex
	workers map[string]*worker
	// rows are the UIDs that have a row.
	rows map[string]bool
	// version is the newest one that the service confirmed; 0 if none was.
	version int64
}

// New makes a Supervisor; it starts nothing. Call Restore with the journal's rows next, then start Run, and the driver's.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Starts == 0 {
		cfg.Starts = DefaultStarts
	}
	if cfg.Resync == 0 {
		cfg.Resync = DefaultResync
	}
	if cfg.Clock == nil {
		cfg.Clock = machineClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "pods: state")
	}
	return &Supervisor{
		cfg: cfg, starts: make(chan struct{}, cfg.Starts), sends: make(chan struct{}, reports),
		confirmed: make(chan struct{}, 1), workers: map[string]*worker{}, rows: map[string]bool{},
	}, nil
}

// Restore takes the rows that the journal kept: their pods are adopted or started. Pods without a row stay as they are
// until the service has confirmed that. Errors name rows that cannot be read; the others are taken.
func (s *Supervisor) Restore(rows []nodestate.Workload) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.upsert(rows, nil)
}

// Update takes one step that the service confirmed; it may be empty. When it returns, the Supervisor holds the step: what
// follows from it happens by itself. Errors name rows that cannot be read; the others are taken.
func (s *Supervisor) Update(u Update) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version = u.Version
	for _, uid := range u.Removes {
		delete(s.rows, uid)
		if w := s.workers[uid]; w != nil {
			w.vanish(u.Version)
		}
	}
	err := s.upsert(u.Upserts, u.Traces)
	s.wakeRun()
	return err
}

func (s *Supervisor) upsert(rows []nodestate.Workload, traces map[string]string) error {
	var bad []error
	for _, r := range rows {
		s.rows[r.UID] = true
		pod := &objectv1.Pod{}
		if err := proto.Unmarshal([]byte(r.Pod), pod); err != nil {
			bad = append(bad, errs.WrapAs(errs.Invalid, err, "pods: row of Pod %s/%s", r.Namespace, r.Name))
			continue
		}
		row := rowOf(r, pod, traces[r.Namespace+"/"+r.Name])
		if w := s.workers[r.UID]; w != nil {
			w.assign(row)
			continue
		}
		s.spawn(newWorker(s, row))
	}
	return errors.Join(bad...)
}

// rowOf reads one row.
func rowOf(r nodestate.Workload, pod *objectv1.Pod, traceparent string) row {
	m := pod.GetMetadata()
	out := row{
		ref: Ref{r.Namespace, r.Name, r.UID}, generation: m.GetGeneration(), traceparent: traceparent,
		deleting: m.GetDeletionTimestamp() != nil,
	}
	out.spec, out.problem = podspec.FromObject(pod)
	if out.problem == nil && m.GetUid() != r.UID {
		out.problem = errs.New(errs.Invalid, "the row of UID %s holds the Pod of UID %s", r.UID, m.GetUid())
	}
	out.grace = out.spec.GracePeriod
	if m.DeletionGracePeriodSeconds != nil {
		out.grace = time.Duration(m.GetDeletionGracePeriodSeconds()) * time.Second
	}
	return out
}

func (s *Supervisor) spawn(w *worker) {
	s.workers[w.uid] = w
	s.cfg.Go("pod "+w.uid, w.run)
	s.cfg.Go("status of pod "+w.uid, w.report.run)
}

// retire forgets a worker whose pod is gone; false where the Pod was assigned again meanwhile.
func (s *Supervisor) retire(w *worker) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.wanted() {
		return false
	}
	delete(s.workers, w.uid)
	if s.version > 0 {
		s.wakeRun() // what the last sweep passed over because of this worker
	}
	return true
}

// Run tears down what has no row any more, each time the service has confirmed the rows, until ctx ends.
func (s *Supervisor) Run(ctx context.Context) error {
	for {
		select {
		case <-s.confirmed:
		case <-ctx.Done():
			return nil
		}
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.ErrorContext(ctx, "pods without a row may be left", "error", err)
			select {
			case <-s.cfg.Clock.After(attempt):
				s.wakeRun()
			case <-ctx.Done():
			}
		}
	}
}

func (s *Supervisor) wakeRun() {
	select {
	case s.confirmed <- struct{}{}:
	default:
	}
}

// sweep finds what is on this node, and neither has a row nor is being ended.
func (s *Supervisor) sweep(ctx context.Context) error {
	local := map[string]Ref{}
	recorded, err := recordedUIDs(s.cfg.Dir)
	for _, uid := range recorded {
		local[uid] = Ref{UID: uid}
	}
	live, lerr := s.cfg.Links.List()
	for _, l := range live {
		local[l.UID] = Ref{l.Namespace, l.Name, l.UID}
	}
	for _, p := range s.cfg.Driver.List() {
		local[p.Pod.UID] = Ref{p.Pod.Namespace, p.Pod.Name, p.Pod.UID}
	}
	s.mu.Lock()
	version := s.version
	for uid, ref := range local {
		if s.rows[uid] || s.workers[uid] != nil {
			continue
		}
		w := newWorker(s, row{ref: ref, orphan: true})
		w.vanish(version)
		s.spawn(w)
	}
	s.mu.Unlock()
	for _, uid := range s.cfg.Addresses.Unresolved() {
		s.mu.Lock()
		// The version again: a pod that vanished after it was read above is not covered by it.
		known, version := s.rows[uid] || s.workers[uid] != nil, s.version
		s.mu.Unlock()
		if !known {
			err = errors.Join(err, s.cfg.Addresses.Release(ctx, uid, version))
		}
	}
	return errors.Join(err, lerr)
}

// Changed says that the runtime knows something new of a pod. It never waits: it is the driver's OnChange.
func (s *Supervisor) Changed(uid string) {
	s.mu.Lock()
	w := s.workers[uid]
	s.mu.Unlock()
	if w != nil {
		w.nudge()
	}
}

// Refresh reports every status again, also those that did not change: others may have overwritten them while this node
// was thought dead.
func (s *Supervisor) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		w.report.again()
	}
}

// Find gives the UID of the Pod of a name on this node; NotFound if there is none. Of two incarnations it is the one
// that is not being ended.
func (s *Supervisor) Find(namespace, name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := ""
	for uid, w := range s.workers {
		ref, ending := w.identity()
		if ref.Namespace == namespace && ref.Name == name && (found == "" || !ending) {
			found = uid
		}
	}
	if found == "" {
		return "", errs.New(errs.NotFound, "Pod %s/%s is not on this node", namespace, name)
	}
	return found, nil
}

// Phases counts the node's Pods by phase.
func (s *Supervisor) Phases() map[string]int {
	s.mu.Lock()
	workers := make([]*worker, 0, len(s.workers))
	for _, w := range s.workers {
		workers = append(workers, w)
	}
	s.mu.Unlock()
	out := map[string]int{}
	for _, w := range workers {
		if phase := w.report.phase(); phase != "" {
			out[phase]++
		}
	}
	return out
}

// Problems are the sentences about pods that cannot start, sorted, each with the Pod's name.
func (s *Supervisor) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, w := range s.workers {
		if p := w.blocked(); p != "" {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// turn takes one of the places of pods that start, does the step, and gives the place back.
func (s *Supervisor) turn(ctx context.Context, step func() error) error {
	select {
	case s.starts <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.starts }()
	return step()
}
