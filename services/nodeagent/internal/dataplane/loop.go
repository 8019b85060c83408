package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/services/nodeagent/internal/plan"
)

// Config is what a Loop is made of.
type Config struct {
	Node      plan.Node
	Rules     Rules
	Members   Members
	Announcer Announcer
	Flows     Flows
	Workloads Workloads
	// Fabric, where set, gets the rows of ipam's slice each time they have changed in the kernel, first by Restore. It must
	// not block.
	Fabric func(version nodestate.Version, members []nodestate.Member)
	// IDFile is the path of the file that keeps ids.
	IDFile string
	// Held are the slices that the journals gave, with their versions: the last good state.
	Held map[nodestate.Source]Held
	// Attachments are the live links: pods that run already.
	Attachments []plan.Attachment
	// Updates are the subscribers' channels.
	Updates map[nodestate.Source]<-chan push.Update
	// Recheck is how often the kernel is compared with the plan; 0 is 30 s.
	Recheck time.Duration
	Log     *slog.Logger
	Now     func() time.Time
}

// Held is a slice at a version.
type Held struct {
	Slice   *nodestate.Slice
	Version nodestate.Version
}

// Loop owns the node's dataplane.
type Loop struct {
	cfg      Config
	log      *slog.Logger
	ids      *idFile
	planner  *plan.Planner
	queue    plan.Queue
	held     map[nodestate.Source]Held
	attached map[string]plan.Attachment
	asks     chan ask
	waiting  map[string][]ask // Prepare: by UID, until the Subject is in
	advert   []advert
	stats    Stats
	// problems are the fabric's rows that could not be used.
	problems []string
	// broken says that the kernel may differ from the plan, and why; it is compared again at retryAt.
	broken  error
	retryAt time.Time
	// said is the last such reason that was logged.
	said string
	// unplanned are the sources whose slices hold rows that cannot be planned, and why: they came from a journal, and the
	// process died before it could refuse them.
	unplanned map[nodestate.Source]error
}

// ask is a request of another goroutine.
type ask struct {
	// change alters the plan's input, before a commit; nil asks for nothing but read.
	change func(*Loop)
	// read runs between two commits.
	read func(*Loop)
	// concern is what the change means for tracked flows.
	concern Concern
	// uid, where set, answers only when the pod's Subject is in the kernel.
	uid  string
	done chan error
	// gone is closed when nobody waits for the answer any more.
	gone <-chan struct{}
}

// Stats count what the loop wrote since it started.
type Stats struct {
	// Writes are transactions and other steps that changed the kernel; Objects what they changed.
	Writes, Objects int64
	// FlowsEnded are the tracked flows that were deleted.
	FlowsEnded int64
	// Drift are the differences that the last comparison found and mended, for people.
	Drift []string
	// Problems are rows that could not be used, for people.
	Problems []string
}

// New makes a Loop and reads its ids; it writes nothing to the kernel.
func New(cfg Config) (*Loop, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Recheck == 0 {
		cfg.Recheck = 30 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	file, ids, err := openIDs(cfg.IDFile)
	if err != nil {
		return nil, err
	}
	l := &Loop{
		cfg: cfg, log: cfg.Log, ids: file, planner: plan.New(cfg.Node, ids), held: map[nodestate.Source]Held{},
		attached: map[string]plan.Attachment{}, asks: make(chan ask), waiting: map[string][]ask{},
		unplanned: map[nodestate.Source]error{},
	}
	for _, s := range sources {
		h := cfg.Held[s]
		if h.Slice == nil {
			h.Slice = nodestate.NewSlice()
		}
		l.held[s] = Held{h.Slice.Clone(), h.Version}
	}
	for _, a := range cfg.Attachments {
		l.attached[a.UID] = a
	}
	return l, nil
}

// sources are the services, in the order in which their updates are planned.
var sources = [...]nodestate.Source{
	nodestate.SourceIPAM, nodestate.SourcePolicy, nodestate.SourceSvcproxy, nodestate.SourceCluster,
}

// Restore brings the kernel to the last good state, and writes nothing where it is there already. It comes before Run.
// Workloads get cluster's slice as not complete.
func (l *Loop) Restore(ctx context.Context) error {
	now := l.cfg.Now()
	st, err := l.cfg.Rules.Read()
	if err != nil {
		return errs.Wrap(err, "dataplane: restore")
	}
	l.planner.IDs().Avoid(st.Elements, now) // before new ids are given: the file may be gone, and the table not
	if err := l.rebuild(now); err != nil {
		return err
	}
	if err := l.compare(now); err != nil {
		return errs.Wrap(err, "dataplane: restore")
	}
	if len(l.stats.Drift) > 0 {
		l.log.Info("the table differed from the last good state", "differences", l.stats.Drift)
	}
	l.stats.Drift = nil // a table that was empty or older is no drift
	// The gate and the policy are in. What is left is tried again by Run, and must not keep the agent from running.
	l.applyOthers()
	l.reconcile(ctx, Concern{Services: true, Policy: true})
	l.tellFabric()
	l.handOver(nodestate.Diff(nodestate.NewSlice(), l.held[nodestate.SourceCluster].Slice), push.Update{
		Version: l.held[nodestate.SourceCluster].Version,
	}, false)
	return nil
}

// rebuild makes the planner anew from what is held.
func (l *Loop) rebuild(now time.Time) error {
	l.planner = plan.New(l.cfg.Node, l.planner.IDs())
	for _, uid := range slices.Sorted(maps.Keys(l.attached)) {
		l.planner.Attach(l.attached[uid])
	}
	for _, s := range sources {
		l.planAll(s, l.held[s].Slice)
	}
	if _, err := l.planner.Commit(now); err != nil {
		return errs.Wrap(err, "dataplane: plan")
	}
	l.planner.Sweep(now) // of what was refused, or planned before a restart and not held
	return nil
}

// planAll plans a slice of which nothing is planned yet. Rows that cannot be planned are left out, which closes what they
// were to open.
func (l *Loop) planAll(s nodestate.Source, slice *nodestate.Slice) {
	delete(l.unplanned, s)
	whole := nodestate.Diff(nodestate.NewSlice(), slice)
	if l.planner.Apply(whole) == nil {
		return
	}
	var bad []error
	for _, r := range whole.Upserts {
		if err := l.planner.Apply(nodestate.Delta{Upserts: []nodestate.Row{r}}); err != nil {
			bad = append(bad, err)
		}
	}
	l.unplanned[s] = errors.Join(bad...)
	l.log.Error("rows of the last good state cannot be used", "source", string(s), "error", l.unplanned[s])
}

// Run serves until ctx ends. The kernel keeps everything.
func (l *Loop) Run(ctx context.Context) error {
	recheck := time.NewTicker(l.cfg.Recheck)
	defer recheck.Stop()
	glance := time.NewTicker(glancePause)
	defer glance.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	defer func() {
		if err := l.ids.close(); err != nil {
			l.log.Warn("closing the ids failed", "error", err)
		}
	}()
	for {
		due.Reset(l.untilDue())
		var updates []push.Update
		var asks []ask
		select {
		case <-ctx.Done():
			l.abandon(ctx.Err())
			return nil
		case u := <-l.cfg.Updates[nodestate.SourceIPAM]:
			updates = append(updates, u)
		case u := <-l.cfg.Updates[nodestate.SourcePolicy]:
			updates = append(updates, u)
		case u := <-l.cfg.Updates[nodestate.SourceSvcproxy]:
			updates = append(updates, u)
		case u := <-l.cfg.Updates[nodestate.SourceCluster]:
			updates = append(updates, u)
		case a := <-l.asks:
			asks = append(asks, a)
		case <-due.C:
			l.onDue(ctx)
			continue
		case <-glance.C:
			l.glance(ctx)
			continue
		case <-recheck.C:
			l.recheck(ctx)
			continue
		}
		updates, asks = l.gather(updates, asks)
		if len(updates) == 0 && !slices.ContainsFunc(asks, func(a ask) bool { return a.change != nil }) {
			l.answer(asks)
			continue
		}
		l.step(ctx, updates, asks)
	}
}

// gather takes what else waits, so that it goes into the same transaction.
func (l *Loop) gather(updates []push.Update, asks []ask) ([]push.Update, []ask) {
	for _, s := range sources {
		select {
		case u := <-l.cfg.Updates[s]:
			updates = append(updates, u)
		default:
		}
	}
	for {
		select {
		case a := <-l.asks:
			asks = append(asks, a)
			continue
		default:
		}
		return updates, asks
	}
}

func (l *Loop) abandon(err error) {
	for uid, list := range l.waiting {
		for _, a := range list {
			a.done <- errs.WrapAs(errs.Unavailable, err, "dataplane: the agent stops before the policy of pod %s came", uid)
		}
	}
}

// retryPause is how soon a kernel that may differ from the plan is compared again.
const retryPause = time.Second

func (l *Loop) untilDue() time.Duration {
	wait := time.Hour
	now := l.cfg.Now()
	if at, ok := l.queue.Next(); ok {
		wait = min(wait, at.Sub(now))
	}
	for _, a := range l.advert {
		wait = min(wait, a.at.Sub(now))
	}
	if l.broken != nil {
		wait = min(wait, l.retryAt.Sub(now))
	}
	return max(wait, 0)
}

// onDue does what was put off: late removals, repeated announcements, another try.
func (l *Loop) onDue(ctx context.Context) {
	now := l.cfg.Now()
	if l.broken != nil && !l.retryAt.After(now) {
		l.recheck(ctx)
	}
	if c := l.queue.Due(now); !c.Empty() {
		r, err := l.cfg.Rules.Apply(c)
		l.count(r.Transactions, r.Objects)
		if err != nil {
			l.log.Warn("late removals failed, comparing the table", "error", err)
			l.mend(now)
		}
	}
	l.advertise(now)
}

// glancePause is how long a table that somebody else flushed may stay away: while it does, nothing is judged.
const glancePause = 500 * time.Millisecond

// glance puts the table back at once where somebody changed its rules, and ends what passed meanwhile and may not.
func (l *Loop) glance(ctx context.Context) {
	damage, err := l.cfg.Rules.Glance()
	if err != nil {
		l.breaks(err, "the table cannot be looked at")
		return
	}
	if damage == "" {
		return
	}
	l.log.Error("somebody changed our table, putting it back", "damage", damage)
	l.stats.Drift = nil
	l.mend(l.cfg.Now())
	l.reconcile(ctx, Concern{Services: true, Policy: true})
}

// recheck compares the kernel with the plan and mends it.
func (l *Loop) recheck(ctx context.Context) {
	if at, ok := l.queue.Next(); ok && !at.After(l.cfg.Now()) {
		return // removals are due: the table differs on purpose
	}
	l.stats.Drift = nil
	l.broken = nil
	l.mend(l.cfg.Now())
	l.applyOthers()
	l.reconcile(ctx, Concern{Services: true, Policy: true})
	if l.broken == nil {
		l.said = ""
	}
}

// breaks notes that the kernel may differ from the plan; it is compared again soon.
func (l *Loop) breaks(err error, what string) {
	if l.said != err.Error() {
		l.said = err.Error()
		l.log.Error(what+", trying again", "error", err)
	}
	l.broken, l.retryAt = err, l.cfg.Now().Add(retryPause)
}

// applyOthers brings what is not in the table to what is held; a failure is tried again.
func (l *Loop) applyOthers() {
	for _, err := range []error{l.applyMembers(), l.applyAnnouncements()} {
		if err != nil {
			l.breaks(err, "the kernel differs from the plan")
		}
	}
}

// mend brings the table to the plan; a failure is tried again.
func (l *Loop) mend(now time.Time) {
	if err := l.compare(now); err != nil {
		l.breaks(err, "the table differs from the plan")
	}
}

// Prepare puts a pod's gate and policy into the kernel and returns when they are there. It waits for the pod's policy as
// long as ctx allows; the gate passes nothing meanwhile.
func (l *Loop) Prepare(ctx context.Context, a plan.Attachment) error {
	err := l.ask(ctx, ask{change: func(l *Loop) {
		l.attached[a.UID] = a
		l.planner.Attach(a)
	}, uid: a.UID, gone: ctx.Done()})
	if ctx.Err() != nil {
		return errs.WrapAs(errs.Unavailable, ctx.Err(), "dataplane: pod %s waits for its policy, which `policy` has not sent", a.UID)
	}
	return err
}

// Remove takes a pod's gate and policy out of the kernel and returns when they are gone.
func (l *Loop) Remove(ctx context.Context, uid string) error {
	return l.ask(ctx, ask{change: func(l *Loop) {
		delete(l.attached, uid)
		l.planner.Detach(uid)
		// Its tracked flows must not wait for the next pod of this address.
	}, concern: Concern{Policy: true}})
}

// SetNodeAddresses replaces the addresses that serve node ports.
func (l *Loop) SetNodeAddresses(ctx context.Context, addrs []netip.Addr) error {
	return l.ask(ctx, ask{change: func(l *Loop) {
		if !slices.Equal(l.cfg.Node.Addresses, addrs) {
			l.cfg.Node.Addresses = slices.Clone(addrs)
			l.planner.SetNode(l.cfg.Node)
		}
	}, concern: Concern{Services: true}})
}

// Read runs fn with what the kernel holds, between two transactions. fn must not keep or change it, nor block.
func (l *Loop) Read(ctx context.Context, fn func(Tables, Stats)) error {
	return l.ask(ctx, ask{read: func(l *Loop) { fn(l.tables(), l.report()) }})
}

// Wrote is what was written so far; for the goroutine that called Restore, before Run.
func (l *Loop) Wrote() Stats { return l.report() }

func (l *Loop) report() Stats {
	st := l.stats
	st.Drift = slices.Clone(st.Drift)
	st.Problems = slices.Clone(l.problems)
	for _, s := range sources {
		if err := l.unplanned[s]; err != nil {
			st.Problems = append(st.Problems, fmt.Sprintf("slice of %s: %v", s, err))
		}
	}
	if l.broken != nil {
		st.Problems = append(st.Problems, "the kernel may differ from the plan: "+l.broken.Error())
	}
	return st
}

func (l *Loop) ask(ctx context.Context, a ask) error {
	a.done = make(chan error, 1)
	select {
	case l.asks <- a:
	case <-ctx.Done():
		return errs.WrapAs(errs.Unavailable, ctx.Err(), "dataplane")
	}
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
		return errs.WrapAs(errs.Unavailable, ctx.Err(), "dataplane")
	}
}

func (l *Loop) tables() Tables {
	t := Tables{
		Node: l.cfg.Node, Elements: l.planner.Desired(), Versions: map[nodestate.Source]nodestate.Version{},
		Fabric: l.held[nodestate.SourceIPAM].Slice, Services: l.held[nodestate.SourceSvcproxy].Slice,
		Policy: l.held[nodestate.SourcePolicy].Slice, Workloads: l.held[nodestate.SourceCluster].Slice,
	}
	for _, uid := range slices.Sorted(maps.Keys(l.attached)) {
		t.Attachments = append(t.Attachments, l.attached[uid])
	}
	for s, h := range l.held {
		t.Versions[s] = h.Version
	}
	return t
}
