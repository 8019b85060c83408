package member

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
)

const (
	defaultRecheck = 30 * time.Second
	// kernelPause is the pause before the kernel is tried again.
	kernelPause = time.Second
	// stays is how long a row may be unusable before anybody is warned: a replica in a container that was made anew finds
	// the row of its predecessor, at its own underlay address, until cluster has seen it and deleted that one's Pod.
	stays = 10 * time.Second
)

// loop is what the goroutine of program knows.
type loop struct {
	*Member
	// slice is what ipam pushed last; nil before.
	slice *nodestate.Slice
	said  string
	// unusable are the rows that could not be used the last time, and since when they are the same.
	unusable string
	since    time.Time
}

// program keeps the kernel as ipam says, until ctx ends. An error is one that only a new process mends.
func (m *Member) program(ctx context.Context) error {
	l := &loop{Member: m}
	recheck := m.parts.Recheck
	if recheck == 0 {
		recheck = defaultRecheck
	}
	timer := time.NewTimer(recheck)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case u := <-m.subscriber.Updates():
			l.take(ctx, u)
			continue
		case <-m.leased:
		case <-timer.C:
		}
		if err := l.compare(); err != nil {
			return err
		}
		next := recheck
		if err := l.settle(); err != nil {
			l.broken(err)
			next = kernelPause
		}
		timer.Reset(next)
	}
}

// take brings one update into the kernel, where the member has its addresses by then. Receipts do not wait for members: an
// update is applied also while there is no address yet to program.
func (l *loop) take(ctx context.Context, u push.Update) {
	began := time.Now()
	before := l.slice
	next := nodestate.NewSlice()
	if before != nil {
		next = before.Clone()
	}
	next.Apply(u.Delta)
	l.slice = next
	spans := spansOf(ctx, u)
	l.want()
	err := l.settle()
	for _, s := range spans {
		s.End(err)
	}
	if err != nil {
		l.slice = before
		l.broken(err)
		u.Refused(err.Error())
		return
	}
	u.Applied(
		push.HopDuration{Hop: "wait", Duration: max(began.Sub(u.Received), 0)},
		push.HopDuration{Hop: "kernel", Duration: time.Since(began)},
	)
}

// spansOf begin one hop per change, in the change's own trace.
func spansOf(ctx context.Context, u push.Update) []*telemetry.Span {
	spans := make([]*telemetry.Span, 0, len(u.Changes))
	for _, c := range u.Changes {
		_, s := telemetry.StartCause(ctx, c.Traceparent, "kernel commit ("+string(u.Source)+")")
		s.SetRevision(c.Revision)
		kind, rest, _ := strings.Cut(c.Object, "/")
		namespace, name, _ := strings.Cut(rest, "/")
		s.SetObject(kind, strings.TrimPrefix(namespace, "-"), name) // "-": cluster-scoped
		spans = append(spans, s)
	}
	return spans
}

// want asks for addresses of the families that ipam's ranges have.
func (l *loop) want() {
	list := families(l.ranges())
	l.mu.Lock()
	changed := !slices.Equal(list, l.families)
	l.families = list
	l.mu.Unlock()
	if changed {
		l.hampered("waits for ipam's lease of an address of each family")
		nudge(l.wanted)
	}
}

func (l *loop) ranges() []nodestate.Range {
	var out []nodestate.Range
	l.slice.Each(nodestate.TableRanges, func(r nodestate.Row) {
		if r, ok := r.(nodestate.Range); ok {
			out = append(out, r)
		}
	})
	return out
}

// compare takes the granted addresses into use. Where others are in use already, sockets are bound to them and clients
// know them: the kernel's state goes, since the process that starts next would adopt it, and this process ends.
func (l *loop) compare() error {
	l.mu.Lock()
	used, granted := l.addresses, l.granted
	if len(used) == 0 {
		l.addresses = granted
	}
	l.mu.Unlock()
	if len(granted) == 0 || len(used) == 0 || slices.Equal(used, granted) {
		return nil
	}
	select {
	case <-l.programmed:
	default: // nobody knows them yet
		l.mu.Lock()
		l.addresses = granted
		l.mu.Unlock()
		return nil
	}
	err := errs.New(errs.Conflict, "member %s: ipam gives it %v, but it serves on %v: a new process has to take over", l.parts.Name, granted, used)
	if rerr := l.parts.Fabric.Remove(); rerr != nil {
		return errs.Wrap(rerr, "%v", err)
	}
	return err
}

// settle makes the kernel agree, as far as the member's addresses and the others are known.
func (l *loop) settle() error {
	l.mu.Lock()
	own := l.addresses
	l.mu.Unlock()
	if l.slice == nil || len(own) == 0 {
		return nil
	}
	row := nodestate.Member{
		Name: nodestate.ServiceMember(l.parts.Name), Kind: nodestate.MemberService, Underlay: l.parts.Underlay, Tunnel: own,
	}
	row.TunnelMAC = nodestate.TunnelMACOf(row.Name)
	for _, a := range own {
		row.Blocks = append(row.Blocks, netip.PrefixFrom(a, a.BitLen()))
	}
	members := []nodestate.Member{row}
	l.slice.Each(nodestate.TableMembers, func(r nodestate.Row) {
		if r, ok := r.(nodestate.Member); ok && r.Name != row.Name {
			members = append(members, r)
		}
	})
	result, err := l.parts.Fabric.Apply(members, l.ranges())
	if err != nil {
		return errs.Wrap(err, "member %s", l.parts.Name)
	}
	l.done(fmt.Sprint(result.Problems), len(result.Problems))
	return nil
}

// done says that the fabric is programmed, and logs rows that cannot be used, once, when they stay.
func (l *loop) done(problems string, count int) {
	if count == 0 {
		problems = ""
	}
	switch {
	case problems != l.unusable || count == 0:
		l.unusable, l.since, l.said = problems, time.Now(), ""
	case problems != l.said && time.Since(l.since) >= stays:
		l.log.Warn("rows of the fabric are not in the kernel", "problems", problems)
		l.said = problems
	}
	l.mu.Lock()
	l.trouble = ""
	l.mu.Unlock()
	select {
	case <-l.programmed:
	default:
		l.log.Info("the fabric is programmed", "addresses", fmt.Sprint(l.Status().Addresses))
		close(l.programmed)
		nudge(l.news)
	}
}

// broken logs why the kernel may differ, once, and says it while the fabric was never programmed.
func (l *loop) broken(err error) {
	if text := err.Error(); text != l.said {
		l.said = text
		l.log.Error("the fabric is not in the kernel, trying again", "error", err)
	}
	l.hampered(err.Error())
}
