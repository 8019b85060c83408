package feed

import (
	"context"
	"log/slog"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/store"
	"podwire.dev/internal/telemetry"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// KindNode is the store kind of Nodes, which every feed follows for its receipts.
const KindNode = "nodes"

// Publisher gets the plans; *push.Hub is one.
type Publisher interface {
	Publish(ctx context.Context, p push.Publication) error
}

// Options are what a Feed is made of.
type Options struct {
	// Follower delivers the World.
	Follower *store.Follower
	Planner  Planner
	// Publisher is nil for a service that pushes nothing.
	Publisher Publisher
	// AnswersFromWorld says that the service answers from the World itself and has no rows: each change is planned, and leaves
	// its hop. For any other, a change that leaves rows and derived writes as they were leaves none.
	AnswersFromWorld bool
	// Writer commits what is derived; nil for a service that derives nothing.
	Writer *Writer
	// Ready is called once, when the first snapshot is planned and published.
	Ready func()
	Log   *slog.Logger
}

// Feed owns one World.
type Feed struct {
	opts    Options
	queries chan func(store.Revision)

	// Of the goroutine of Run:
	cluster store.ClusterID
	at      store.Revision
	shared  *nodestate.Slice
	perNode map[string]*nodestate.Slice
	nodes   map[string]push.Standing
	pending map[store.Key]lacking
	fresh   bool // the World began anew since the last plan
	back    bool // the store went back since the last publication
	// history are the marks of the store, where they changed since the last publication; else nil.
	history nodestate.History
	ready   bool
}

// lacking is a derived write that the World lacks: the earliest change since which it has, and the wanted state.
type lacking struct {
	since  store.Revision
	object store.Object
}

// New makes a Feed; it starts nothing.
func New(opts Options) *Feed {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Feed{
		opts: opts, queries: make(chan func(store.Revision)),
		shared: nodestate.NewSlice(), perNode: map[string]*nodestate.Slice{},
		nodes: map[string]push.Standing{}, pending: map[store.Key]lacking{},
	}
}

// Do runs fn between two plans, in the goroutine that owns the World, with the World's revision: how a handler asks it.
// fn must not block. Unavailable where ctx ends first or no World is planned yet.
func (f *Feed) Do(ctx context.Context, fn func(at store.Revision)) error {
	done := make(chan struct{})
	select {
	case f.queries <- func(at store.Revision) { defer close(done); fn(at) }:
		<-done
		return nil
	case <-ctx.Done():
		return errs.WrapAs(errs.Unavailable, ctx.Err(), "feed: the World is not there yet")
	}
}

// Run follows until ctx ends. The Follower is run elsewhere. An error is one that waiting does not mend.
func (f *Feed) Run(ctx context.Context) error {
	updates := f.opts.Follower.Updates()
	for {
		var queries chan func(store.Revision)
		if f.ready {
			queries = f.queries
		}
		select {
		case <-ctx.Done():
			return nil
		case q := <-queries:
			q(f.at)
		case u, ok := <-updates:
			if !ok {
				return nil
			}
			if err := f.take(ctx, u, updates); err != nil {
				return err
			}
		}
	}
}

// maxBatches bounds how many revisions are planned together, so that a World under load still moves.
const maxBatches = 512

// take applies one update and all that wait behind it, then plans once.
func (f *Feed) take(ctx context.Context, u store.Update, updates <-chan store.Update) error {
	traced, batch := telemetry.Start(ctx, "feed")
	var changes []change
	moved := stood
	for n := 0; ; n++ {
		moved = max(moved, f.apply(traced, u, &changes))
		if n >= maxBatches {
			break
		}
		var more bool
		select {
		case u, more = <-updates:
		default:
		}
		if !more {
			break
		}
	}
	switch moved {
	case stood:
		return nil // the span is dropped, as nothing was traced to it
	case passed:
		return f.publish(ctx, push.Publication{Settled: f.settled()})
	}
	err := f.plan(traced, changes)
	batch.SetRevision(int64(f.at))
	batch.End(err)
	return err
}

// change is one write that the World took in, with the hop that it leaves here.
type change struct {
	push.Change
	span *telemetry.Span
}

// movement is what an update did to the World, the least first.
type movement uint8

const (
	stood   movement = iota // nothing
	passed                  // its revision rose: what happened is no concern of this service
	changed                 // it has to be planned
)

// apply takes one update in.
func (f *Feed) apply(ctx context.Context, u store.Update, changes *[]change) movement {
	switch u := u.(type) {
	case *store.Snapshot:
		if f.back || u.Cluster != f.cluster || u.Revision < f.at {
			clear(f.pending) // of another history
		}
		f.opts.Planner.Reset()
		f.fresh, f.cluster, f.at, f.history = true, u.Cluster, u.Revision, u.History
		clear(f.nodes)
		*changes = nil
		for _, rec := range u.Records {
			f.put(rec)
		}
		return changed
	case *store.Batch:
		f.at = u.Revision
		f.mark(u.History)
		for _, ev := range u.Events {
			if ev.Type == store.Deleted {
				f.opts.Planner.Delete(ev)
				if ev.Key.Kind == KindNode {
					delete(f.nodes, ev.Key.Name)
				}
			} else {
				f.put(ev.Record)
			}
			*changes = append(*changes, f.changeOf(ctx, ev))
		}
		return changed
	case *store.Progress:
		// A revision of other kinds than this service's is nothing of the World, yet receipts must pass it. Where nothing
		// was written below the World's root, the revision may be that of our own watermark.
		if !u.Idle && u.Revision > f.at {
			f.at = u.Revision
			f.mark(u.History)
			return passed
		}
	case *store.Backwards:
		// The nodes hold what they hold until an admin accepts; what this service plans from now on is the store's.
		f.opts.Log.Error("the store went backwards; planning from what it offers, nodes freeze until `podwire accept`",
			"reason", u.Reason, "held", u.Held, "offered", u.Offered)
		f.back = true
		f.opts.Follower.Accept()
	}
	return stood
}

// mark keeps the marks of the store until they are published.
func (f *Feed) mark(h nodestate.History) {
	if h != nil {
		f.history = h
	}
}

func (f *Feed) put(rec store.Record) {
	f.opts.Planner.Put(rec)
	if node, ok := rec.Object.(*objectv1.Node); ok && rec.Key.Kind == KindNode {
		f.nodes[rec.Key.Name] = StandingOf(node)
	}
}

func (f *Feed) changeOf(ctx context.Context, ev store.Event) change {
	_, span := telemetry.StartCause(ctx, ev.Traceparent, "plan")
	span.SetRevision(int64(ev.Revision))
	span.SetObject(ev.Key.Kind, ev.Key.Namespace, ev.Key.Name)
	ns := ev.Key.Namespace
	if ns == "" {
		ns = "-"
	}
	return change{push.Change{
		Revision: int64(ev.Revision), Object: ev.Key.Kind + "/" + ns + "/" + ev.Key.Name, Traceparent: span.Traceparent(),
	}, span}
}

// StandingOf reads from a Node's Ready condition how it counts for receipts: absent is a Node that was never ready,
// Unknown one that was declared dead, as Kubernetes' node lifecycle controller spells it.
func StandingOf(node *objectv1.Node) push.Standing {
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			if c.GetStatus() == "Unknown" {
				return push.StandingDead
			}
			return push.StandingMember
		}
	}
	return push.StandingNew
}

// plan has the World planned, publishes the difference and hands over what is derived.
func (f *Feed) plan(ctx context.Context, changes []change) error {
	p, err := f.opts.Planner.Plan(f.at)
	if err != nil {
		for _, c := range changes {
			c.span.End(err)
		}
		return errs.Wrap(err, "feed: plan revision %d", f.at)
	}
	first := f.at
	if len(changes) > 0 {
		first = store.Revision(changes[0].Revision)
	}
	asks := f.lack(p.Writes, first)
	pub := push.Publication{
		Settled: f.settled(),
		Nodes:   f.standings(),
		Shared:  f.sharedDelta(p.Shared),
		PerNode: f.nodeDeltas(p.PerNode),
	}
	if asks || f.opts.AnswersFromWorld || !pub.Shared.Empty() || len(pub.PerNode) > 0 {
		for _, c := range changes {
			c.span.End(nil)
			pub.Changes = append(pub.Changes, c.Change)
		}
	} // else the spans are dropped: what was planned is as it was
	f.fresh = false
	if err := f.publish(ctx, pub); err != nil {
		return err
	}
	if f.opts.Writer != nil {
		f.opts.Writer.offer(f.at, p.Writes)
	}
	if !f.ready {
		f.ready = true
		if f.opts.Ready != nil {
			f.opts.Ready()
		}
	}
	return nil
}

// publish gives the hub the World's version with what it changes.
func (f *Feed) publish(ctx context.Context, pub push.Publication) error {
	if f.opts.Publisher == nil {
		return nil
	}
	pub.Version, pub.Back = nodestate.Version{ClusterID: uint64(f.cluster), Revision: int64(f.at)}, f.back
	pub.History, f.back, f.history = f.history, false, nil
	return errs.Wrap(f.opts.Publisher.Publish(ctx, pub), "feed: publish revision %d", f.at)
}

func (f *Feed) standings() map[string]push.Standing {
	out := make(map[string]push.Standing, len(f.nodes))
	for name, s := range f.nodes {
		out[name] = s
	}
	return out
}

// sharedDelta turns the rows of a new World into the difference to what was published.
func (f *Feed) sharedDelta(d nodestate.Delta) nodestate.Delta {
	if f.fresh {
		next := nodestate.NewSlice(d.Upserts...)
		d = nodestate.Diff(f.shared, next)
		f.shared = next
		return d
	}
	f.shared.Apply(d)
	return d
}

func (f *Feed) nodeDeltas(slices map[string]*nodestate.Slice) map[string]nodestate.Delta {
	if f.fresh {
		for node := range f.perNode {
			if slices[node] == nil {
				if slices == nil {
					slices = map[string]*nodestate.Slice{}
				}
				slices[node] = nodestate.NewSlice()
			}
		}
	}
	out := map[string]nodestate.Delta{}
	for node, next := range slices {
		held := f.perNode[node]
		if held == nil {
			held = nodestate.NewSlice()
		}
		if d := nodestate.Diff(held, next); !d.Empty() {
			out[node] = d
		}
		f.perNode[node] = next
		if next.Len() == 0 {
			delete(f.perNode, node)
		}
	}
	return out
}

// lack notes which derived writes the World lacks, and says whether one of them is new or asks for something else than
// before. A write counts from the earliest change since which the World has lacked it, so that a busy World still settles.
func (f *Feed) lack(writes []Write, first store.Revision) (asks bool) {
	pending := make(map[store.Key]lacking, len(writes))
	for _, w := range writes {
		now := lacking{w.Cause.Revision, w.Object}
		if now.since == 0 || now.since > first {
			now.since = first
		}
		before, ok := f.pending[w.Key]
		if ok && before.since < now.since {
			now.since = before.since
		}
		asks = asks || !ok || before.object != now.object && !proto.Equal(before.object, now.object)
		pending[w.Key] = now
	}
	f.pending = pending
	return asks
}

// settled is the newest revision R such that every write derived from a change at or below R is part of the World.
func (f *Feed) settled() int64 {
	settled := f.at
	for _, l := range f.pending {
		settled = min(settled, l.since-1)
	}
	return int64(settled)
}
