package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/telemetry"
	"podwire.dev/services/nodeagent/internal/plan"
)

// step puts updates and asks into the kernel together. If the kernel refuses them, each update is tried alone, so that
// one service's bad slice does not hold back the others'.
func (l *Loop) step(ctx context.Context, updates []push.Update, asks []ask) {
	ctx, batch := telemetry.Start(ctx, "agent batch")
	err := l.try(ctx, updates, asks)
	batch.End(err)
	if err == nil {
		return
	}
	l.log.Error("the kernel refused a step", "updates", len(updates), "asks", len(asks), "error", err)
	if len(updates)+len(asks) > 1 {
		for _, u := range updates {
			l.step(ctx, []push.Update{u}, nil)
		}
		for _, a := range asks {
			l.step(ctx, nil, []ask{a})
		}
		return
	}
	for _, u := range updates {
		u.Refused(err.Error())
	}
	for _, a := range asks {
		a.done <- err
	}
}

// try plans and commits. An error means that nothing of it is planned any more, and nothing was answered.
func (l *Loop) try(ctx context.Context, updates []push.Update, asks []ask) error {
	began := l.cfg.Now()
	attached := make(map[string]plan.Attachment, len(l.attached))
	for uid, a := range l.attached {
		attached[uid] = a
	}
	node := l.cfg.Node
	spans := l.spans(ctx, updates)
	err := l.plan(updates, asks)
	planned := l.cfg.Now()
	if err == nil {
		err = l.commit(planned)
	}
	if err == nil {
		err = l.rest(updates)
	}
	for _, s := range spans {
		s.End(err)
	}
	if err != nil {
		l.attached, l.cfg.Node = attached, node
		l.rollBack()
		return err
	}
	done := l.cfg.Now()
	var concern Concern
	for _, a := range asks {
		concern.Services = concern.Services || a.concern.Services
		concern.Policy = concern.Policy || a.concern.Policy
	}
	fabric := false
	for _, u := range updates {
		fabric = fabric || u.Source == nodestate.SourceIPAM
		h := l.held[u.Source]
		h.Slice.Apply(u.Delta)
		l.held[u.Source] = Held{h.Slice, u.Version}
		concern.Services = concern.Services || u.Source == nodestate.SourceSvcproxy && !u.Delta.Empty()
		concern.Policy = concern.Policy || u.Source == nodestate.SourcePolicy && !u.Delta.Empty()
	}
	l.reconcile(ctx, concern)
	if fabric {
		l.tellFabric()
	}
	for _, u := range updates {
		if u.Source == nodestate.SourceCluster {
			l.handOver(u.Delta, u, true)
		}
		u.Applied(
			push.HopDuration{Hop: "wait", Duration: max(began.Sub(u.Received), 0)},
			push.HopDuration{Hop: "plan", Duration: planned.Sub(began)},
			push.HopDuration{Hop: "kernel", Duration: done.Sub(planned)},
		)
	}
	l.answer(asks)
	return nil
}

// spans begin one hop per change, in the change's own trace.
func (l *Loop) spans(ctx context.Context, updates []push.Update) []*telemetry.Span {
	var spans []*telemetry.Span
	for _, u := range updates {
		for _, c := range u.Changes {
			_, s := telemetry.StartCause(ctx, c.Traceparent, "kernel commit ("+string(u.Source)+")")
			s.SetRevision(c.Revision)
			if kind, name, ok := strings.Cut(c.Object, "/"); ok {
				namespace, name, _ := strings.Cut(name, "/")
				s.SetObject(kind, strings.TrimPrefix(namespace, "-"), name) // "-": cluster-scoped
			}
			spans = append(spans, s)
		}
	}
	return spans
}

func (l *Loop) plan(updates []push.Update, asks []ask) error {
	for _, u := range updates {
		if l.unplanned[u.Source] != nil {
			if err := l.replan(u); err != nil {
				return err
			}
			continue
		}
		if err := l.planner.Apply(u.Delta); err != nil {
			return errs.Wrap(err, "slice of %s at %d", u.Source, u.Version.Revision)
		}
	}
	for _, a := range asks {
		if a.change != nil {
			a.change(l)
		}
	}
	return nil
}

// replan plans an update of a source of which rows are missing in the plan: what is planned of it may be nothing like the
// update's base. It is refused until its rows can all be planned.
func (l *Loop) replan(u push.Update) error {
	after := l.after(u)
	if err := l.planner.Apply(nodestate.Diff(nodestate.NewSlice(), after)); err != nil {
		return errs.Wrap(err, "slice of %s at %d", u.Source, u.Version.Revision)
	}
	var gone nodestate.Delta
	for _, t := range nodestate.Tables(u.Source) {
		for _, r := range l.held[u.Source].Slice.Rows(t) {
			if _, ok := after.Get(nodestate.RefOf(r)); !ok {
				gone.Removes = append(gone.Removes, nodestate.RefOf(r))
			}
		}
	}
	delete(l.unplanned, u.Source) // rollBack finds out anew
	return errs.Wrap(l.planner.Apply(gone), "slice of %s at %d", u.Source, u.Version.Revision)
}

// commit puts the plan into the table.
func (l *Loop) commit(now time.Time) error {
	change, err := l.planner.Commit(now)
	if err != nil {
		return errs.Wrap(err, "plan")
	}
	change = l.queue.Rebase(change)
	if err := l.ids.save(l.planner.IDs()); err != nil {
		return err
	}
	r, err := l.cfg.Rules.Apply(change)
	l.count(r.Transactions, r.Objects)
	if err != nil {
		l.log.Warn("a transaction failed, comparing the table", "error", err)
		return l.compare(now)
	}
	l.queue.Put(now, change.Late)
	return nil
}

// compare reads the table and brings it to the plan.
func (l *Loop) compare(now time.Time) error {
	st, err := l.cfg.Rules.Read()
	if err != nil {
		return err
	}
	want := l.planner.Desired()
	if !st.Present || !st.Whole {
		if st.Present {
			l.stats.Drift = append(l.stats.Drift, "table: "+st.Damage)
			l.log.Warn("the table is not ours, replacing it", "damage", st.Damage)
		}
		l.queue.Forget()
		if err := l.ids.save(l.planner.IDs()); err != nil {
			return err
		}
		r, err := l.cfg.Rules.Install(want)
		l.count(r.Transactions, r.Objects)
		return err
	}
	l.planner.IDs().Avoid(st.Elements, now)
	if err := l.ids.save(l.planner.IDs()); err != nil {
		return err
	}
	change := l.queue.Rebase(plan.Diff(st.Elements, want))
	late := spare(change.Late)
	change.Late = nil
	if _, waiting := l.queue.Next(); waiting {
		l.drifted(change, nil) // what is late is there on purpose
	} else {
		l.drifted(change, late)
	}
	r, err := l.cfg.Rules.Apply(change)
	l.count(r.Transactions, r.Objects)
	if err != nil {
		return err
	}
	l.queue.Forget()
	l.queue.Put(now, late)
	return nil
}

// maxSpare is how many elements of programs that no Service runs now are left in the table.
const maxSpare = 64

// spare leaves out of late removals the programs of endpoint counts and affinities that an earlier agent met, and that
// will be met again: taking them out would make each restart a change. Only where they have piled up do they go.
func spare(late []plan.Element) []plan.Element {
	programs := func(el plan.Element) bool { return el.Set == plan.SetPrograms || el.Set == plan.SetChoices }
	n := 0
	for _, el := range late {
		if programs(el) {
			n++
		}
	}
	if n > maxSpare {
		return late
	}
	return slices.DeleteFunc(late, programs)
}

// maxDrift bounds how many differences are named.
const maxDrift = 20

func (l *Loop) drifted(c plan.Change, late []plan.Element) {
	for _, part := range []struct {
		what string
		list []plan.Element
	}{{"missing", c.Add}, {"changed", c.Replace}, {"foreign", c.Remove}, {"foreign", late}} {
		for _, el := range part.list {
			if len(l.stats.Drift) >= maxDrift {
				return
			}
			one := plan.Elements{}
			one.Put(el)
			l.stats.Drift = append(l.stats.Drift, part.what+" "+one.Format())
		}
	}
}

// rest applies what is not in the table: routes of members, load balancer addresses.
func (l *Loop) rest(updates []push.Update) error {
	for _, u := range updates {
		if u.Delta.Empty() {
			continue
		}
		switch {
		case u.Source == nodestate.SourceIPAM:
			if err := l.setMembers(l.after(u)); err != nil {
				return err
			}
		case touches(u.Delta, nodestate.TableAnnouncements):
			if err := l.setAnnouncements(l.after(u)); err != nil {
				return err
			}
		}
	}
	return nil
}

// after is what is held once the update is.
func (l *Loop) after(u push.Update) *nodestate.Slice {
	next := l.held[u.Source].Slice.Clone()
	next.Apply(u.Delta)
	return next
}

func touches(d nodestate.Delta, t nodestate.Table) bool {
	return slices.ContainsFunc(d.Upserts, func(r nodestate.Row) bool { return r.Table() == t }) ||
		slices.ContainsFunc(d.Removes, func(r nodestate.Ref) bool { return r.Table == t })
}

func (l *Loop) applyMembers() error { return l.setMembers(l.held[nodestate.SourceIPAM].Slice) }
func (l *Loop) applyAnnouncements() error {
	return l.setAnnouncements(l.held[nodestate.SourceSvcproxy].Slice)
}

func (l *Loop) setMembers(s *nodestate.Slice) error {
	var members []nodestate.Member
	var ranges []nodestate.Range
	for _, r := range s.Rows(nodestate.TableMembers) {
		members = append(members, r.(nodestate.Member))
	}
	for _, r := range s.Rows(nodestate.TableRanges) {
		ranges = append(ranges, r.(nodestate.Range))
	}
	res, err := l.cfg.Members.Apply(members, ranges)
	l.count(min(res.Writes, 1), res.Writes)
	l.problems = nil
	for _, p := range res.Problems {
		l.problems = append(l.problems, p.String())
	}
	return err
}

// tellFabric hands out the members that the kernel has.
func (l *Loop) tellFabric() {
	if l.cfg.Fabric == nil {
		return
	}
	held := l.held[nodestate.SourceIPAM]
	var members []nodestate.Member
	for _, r := range held.Slice.Rows(nodestate.TableMembers) {
		members = append(members, r.(nodestate.Member))
	}
	l.cfg.Fabric(held.Version, members)
}

func (l *Loop) setAnnouncements(s *nodestate.Slice) error {
	if l.cfg.Announcer == nil {
		return nil
	}
	var own []nodestate.Announcement
	for _, r := range s.Rows(nodestate.TableAnnouncements) {
		if a := r.(nodestate.Announcement); a.Node == l.cfg.Node.Name {
			own = append(own, a)
		}
	}
	fresh, err := l.cfg.Announcer.Apply(own)
	if err != nil {
		return err
	}
	if len(fresh) > 0 {
		l.count(1, len(fresh))
		now := l.cfg.Now()
		for i := range advertRounds {
			l.advert = append(l.advert, advert{now.Add(time.Duration(i) * advertSpace), fresh})
		}
		l.advertise(now)
	}
	return nil
}

// advert is one announcement to make.
type advert struct {
	at    time.Time
	addrs []netip.Addr
}

// Announcements are repeated, since nobody answers one.
const (
	advertRounds = 3
	advertSpace  = 200 * time.Millisecond
)

func (l *Loop) advertise(now time.Time) {
	var later []advert
	for _, a := range l.advert {
		if a.at.After(now) {
			later = append(later, a)
			continue
		}
		if err := l.cfg.Announcer.Advertise(a.addrs); err != nil {
			l.log.Warn("announcing load balancer addresses failed", "addresses", fmt.Sprint(a.addrs), "error", err)
		}
	}
	l.advert = later
}

// rollBack plans what the kernel held before, and brings the kernel back to it.
func (l *Loop) rollBack() {
	now := l.cfg.Now()
	if err := l.rebuild(now); err != nil {
		l.breaks(err, "the last good state cannot be planned")
		return
	}
	l.mend(now)
	l.applyOthers()
}

// reconcile ends tracked flows that the tables no longer carry. A failure is tried again at the next recheck.
func (l *Loop) reconcile(ctx context.Context, c Concern) {
	if l.cfg.Flows == nil || c == (Concern{}) {
		return
	}
	n, err := l.cfg.Flows.Reconcile(ctx, l.tables(), c)
	l.stats.FlowsEnded += int64(n)
	if err != nil {
		l.breaks(err, "tracked flows could not be judged")
	}
}

// handOver gives cluster's rows to the pods.
func (l *Loop) handOver(d nodestate.Delta, u push.Update, confirmed complete) {
	if l.cfg.Workloads == nil {
		return
	}
	w := WorkloadUpdate{Version: u.Version, Changes: u.Changes, Complete: bool(confirmed)}
	for _, r := range d.Upserts {
		if row, ok := r.(nodestate.Workload); ok {
			w.Upserts = append(w.Upserts, row)
		}
	}
	for _, ref := range d.Removes {
		if ref.Table == nodestate.TableWorkloads {
			w.Removes = append(w.Removes, ref.Key)
		}
	}
	l.cfg.Workloads.SetWorkloads(w)
}

type complete bool

// answer replies to what was asked, and to every Prepare whose policy is in.
func (l *Loop) answer(asks []ask) {
	for _, a := range asks {
		switch {
		case a.read != nil:
			a.read(l)
			a.done <- nil
		case a.uid != "":
			l.waiting[a.uid] = append(slices.DeleteFunc(l.waiting[a.uid], ask.given), a)
		default:
			a.done <- nil
		}
	}
	policy := l.held[nodestate.SourcePolicy].Slice
	for uid, list := range l.waiting {
		var err error
		if _, attached := l.attached[uid]; !attached {
			err = errs.New(errs.Conflict, "dataplane: pod %s was removed before its policy came", uid)
		} else if _, ok := policy.Get(nodestate.Ref{Table: nodestate.TableSubjects, Key: uid}); !ok {
			continue
		}
		for _, a := range list {
			a.done <- err
		}
		delete(l.waiting, uid)
	}
}

// given says that nobody waits for the answer any more.
func (a ask) given() bool {
	select {
	case <-a.gone:
		return true
	default:
		return false
	}
}

func (l *Loop) count(transactions, objects int) {
	if transactions > 0 {
		l.stats.Writes++
	}
	l.stats.Objects += int64(objects)
}
