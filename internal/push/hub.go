package push

import (
	"context"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/telemetry"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// Change names one write in the store that a publication carries to nodes.
type Change struct {
	// Revision is the etcd revision of the write.
	Revision int64
	// Object is <kind>/<namespace>/<name>, with "-" as namespace where the kind is cluster-scoped.
	Object string
	// Traceparent is the W3C trace context of the write; at the agent, that of the hop that brought it there.
	Traceparent string
	// Nodes are the nodes that the change is sent to, of those whose slice the publication changes; nil means all of
	// them. A shared slice ignores it.
	Nodes []string
}

// Standing says how a Node counts for receipts.
type Standing uint8

// The standings of a Node of the store.
const (
	// StandingNew is a Node that has never been Ready: nothing waits for it.
	StandingNew Standing = 1
	// StandingMember is a Node that is or was Ready and was not declared dead.
	StandingMember Standing = 2
	// StandingDead is a Node declared dead: nothing waits for it unless it subscribes.
	StandingDead Standing = 3
)

// Publication is what one World changes.
type Publication struct {
	// Version is the World's. Publish it for every World that object events or a fresh snapshot made, also where nothing
	// of the slices changed: receipts follow it. Never publish for the revision of a watermark's own write, which
	// would answer each write with another.
	Version nodestate.Version
	// Back says that the store went back since the publication before, although it may have passed that revision again.
	Back bool
	// History are the marks of the store up to Version; nil means that they are as in the publication before.
	History nodestate.History
	// Settled is the newest revision R such that every write derived from a change at or below R is part of this World.
	// A service that derives nothing passes Version.Revision.
	Settled int64
	// Nodes are the Nodes of the store, all of them; nil means that they are as in the publication before.
	Nodes map[string]Standing
	// Shared is the change of the slice that all nodes have in common (svcproxy, ipam).
	Shared nodestate.Delta
	// PerNode are the changes of the nodes' own slices (cluster, policy), by node.
	PerNode map[string]nodestate.Delta
	// Changes are the writes that this World adds to the one published before.
	Changes []Change
}

// Options are a hub's dependencies and limits; zero limits take the defaults.
type Options struct {
	// Authorize says whether the caller in ctx may subscribe as the node (rpc.RequireNode). Nil refuses everybody.
	Authorize func(ctx context.Context, node string) error
	// AuthorizeMember says the same of a fabric member (rpc.RequireMember). Nil refuses them: only ipam has members, which
	// hold the slice that all nodes share and count for no receipt.
	AuthorizeMember func(ctx context.Context, member string) error
	// Log gets what an operator should know of subscribers; nil is silent.
	Log *slog.Logger
	// CatchUp is how long a subscriber that holds a newer version than this replica's World is kept waiting for the
	// World to catch up, before it is told what the replica has. Default 5 s.
	CatchUp time.Duration
	// Retry is the pause before a refused state is sent again although nothing changed; it doubles up to 30 s. A change
	// is sent after a fifth of it. Default 1 s.
	Retry time.Duration
	// History is the number of rows that the deltas kept for subscribers at older versions may have, per slice.
	// Default 65,536 for a shared slice and 4,096 for one of a node.
	History int
}

const (
	defaultCatchUp       = 5 * time.Second
	defaultRetry         = time.Second
	defaultSharedHistory = 1 << 16
	defaultNodeHistory   = 1 << 12
)

// Hub serves the slices of one source to every subscriber. It implements pushv1.PushServiceServer.
type Hub struct {
	pushv1.UnimplementedPushServiceServer
	source nodestate.Source
	opts   Options
	log    *slog.Logger

	streams sync.WaitGroup
	// primed is closed by the first Publish; closing by Close.
	primed, closing chan struct{}
	// receipts wakes the writer of watermarks.
	receipts chan struct{}

	mu      sync.Mutex
	world   nodestate.Version
	started bool
	// epoch counts the histories: it rises when the World went backwards or to another cluster.
	epoch int
	// history are the marks of the store up to the World: a version that a subscriber holds under another mark than was the
	// newest then is of a history that was undone, whatever this replica remembers.
	history nodestate.History
	// undone is the newest revision of a history that this cluster went back from; 0 where none is known. Below it a version
	// says nothing of the content that a subscriber holds, also when the World has long passed it again.
	undone      int64
	closed      bool
	reason      string            // of closing
	tracks      map[string]*track // by node; "" for the shared slice
	subscribers map[string]*subscriber
	fold        foldState
}

// NewHub makes the hub of a source. Which slices are shared follows from the source: see [Shared]. It starts nothing,
// and holds back subscribers until the first Publish.
func NewHub(source nodestate.Source, opts Options) *Hub {
	if opts.CatchUp <= 0 {
		opts.CatchUp = defaultCatchUp
	}
	if opts.Retry <= 0 {
		opts.Retry = defaultRetry
	}
	if opts.History <= 0 {
		opts.History = defaultNodeHistory
		if Shared(source) {
			opts.History = defaultSharedHistory
		}
	}
	h := &Hub{
		source: source, opts: opts, log: opts.Log,
		primed: make(chan struct{}), closing: make(chan struct{}), receipts: make(chan struct{}, 1),
		tracks: map[string]*track{}, subscribers: map[string]*subscriber{},
		fold: newFoldState(source),
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.log = h.log.With("source", string(source))
	return h
}

// encodedDelta is a delta with the wire form of its rows, made once, when it is published.
type encodedDelta struct {
	delta   nodestate.Delta
	upserts []*pushv1.Row
}

// Publish makes a World's changes known. It is called by one goroutine and waits for no subscriber. The first one, and
// the first of another cluster or of a lower revision, carries the difference to what was published before, like any
// other; subscribers then get what the rules of the package allow. ctx carries the span of the batch: each change with
// a trace gets a hop "push" in it, which ends when the last subscriber that was ready for it has been sent it. An error
// is a row or a version that cannot be right: nothing was published.
func (h *Hub) Publish(ctx context.Context, p Publication) error {
	deltas, err := h.encode(p)
	if err != nil {
		return err
	}
	hop := &pushHop{}
	if len(deltas) > 0 {
		p.Changes = hop.begin(ctx, p.Changes)
	}
	h.mu.Lock()
	if err := h.check(p, len(deltas) > 0); err != nil {
		h.mu.Unlock()
		hop.end(err)
		return err
	}
	h.advance(p, deltas, hop)
	ready := hop.waiting == 0
	h.mu.Unlock()
	if ready {
		hop.end(nil)
	}
	h.wakeWriter()
	return nil
}

// encode gives the deltas that change something, by track.
func (h *Hub) encode(p Publication) (map[string]encodedDelta, error) {
	given := p.PerNode
	if Shared(h.source) {
		if len(p.PerNode) > 0 {
			return nil, errs.New(errs.Internal, "push: %s has one slice for all nodes, but PerNode is set", h.source)
		}
		given = map[string]nodestate.Delta{"": p.Shared}
	} else if !p.Shared.Empty() {
		return nil, errs.New(errs.Internal, "push: %s has a slice per node, but Shared is set", h.source)
	}
	out := make(map[string]encodedDelta, len(given))
	for node, d := range given {
		if d.Empty() {
			continue
		}
		upserts, _, err := deltaToProto(d)
		if err != nil {
			return nil, err
		}
		for _, r := range d.Upserts {
			if !owns(h.source, r.Table()) {
				return nil, errs.New(errs.Internal, "push: %s publishes a row of table %s, which is not its own", h.source, r.Table())
			}
		}
		out[node] = encodedDelta{delta: d, upserts: upserts}
	}
	return out, nil
}

func (h *Hub) check(p Publication, changed bool) error {
	switch {
	case p.Version.ClusterID == 0 || p.Version.Revision <= 0:
		return errs.New(errs.Internal, "push: %s publishes without a version", h.source)
	case p.Settled > p.Version.Revision:
		return errs.New(errs.Internal, "push: %s publishes version %d as settled up to %d", h.source, p.Version.Revision, p.Settled)
	case changed && h.started && p.Version.ClusterID == h.world.ClusterID && p.Version.Revision == h.world.Revision && !p.Back:
		return errs.New(errs.Internal, "push: %s publishes version %d again with other content", h.source, p.Version.Revision)
	}
	return nil
}

// advance takes a publication in and wakes whom it concerns.
func (h *Hub) advance(p Publication, deltas map[string]encodedDelta, hop *pushHop) {
	prev := h.world
	fresh := !h.started || p.Back || prev.ClusterID != p.Version.ClusterID || p.Version.Revision < prev.Revision
	if p.History != nil {
		h.history = p.History
		for _, t := range h.tracks {
			t.messages = map[messageKey]*message{} // each names the marks
		}
	}
	p.Version.History = h.history.At(p.Version.Revision)
	h.world = p.Version
	for node, d := range deltas {
		t := h.track(node, prev.Revision)
		t.advance(prev.Revision, p.Version.Revision, d, p.Changes)
	}
	if fresh {
		h.undone = max(h.undone, prev.Revision)
		if prev.ClusterID != p.Version.ClusterID {
			h.undone = 0
		}
		h.restart()
	}
	h.silence(p.Nodes)
	h.fold.publish(p.Version.Revision, p.Settled, p.Nodes)
	h.forget()
	for _, s := range h.subscribers {
		_, changed := deltas[s.track.node]
		if changed && s.ready() {
			hop.waiting++
			s.hops = append(s.hops, hop)
		}
		if changed || fresh || s.hello != nil {
			s.nudge()
		}
	}
	if !h.started {
		h.started = true
		close(h.primed)
	}
}

// restart begins a history: what subscribers and receipts know of the one before does not count in it.
func (h *Hub) restart() {
	if h.started {
		h.log.Warn("the World went backwards or to another store; subscribers decide whether they follow",
			"cluster", h.world.ClusterID, "revision", h.world.Revision)
	}
	h.epoch++
	for _, t := range h.tracks {
		t.restart(h.world.Revision)
	}
	h.fold.restart()
}

// track is the slice of a node, which a node without one has been holding empty.
func (h *Hub) track(node string, version int64) *track {
	if Shared(h.source) {
		node = ""
	}
	t, ok := h.tracks[node]
	if !ok {
		t = newTrack(h.source, node, version, h.opts.History)
		h.tracks[node] = t
	}
	return t
}

// forget drops the slices of nodes that are gone: empty, not in the store, not subscribed.
func (h *Hub) forget() {
	maps.DeleteFunc(h.tracks, func(node string, t *track) bool {
		return node != "" && t.slice.Len() == 0 && h.fold.nodes[node] == 0 && h.subscribers[node] == nil
	})
}

// Close asks every subscriber to subscribe elsewhere, ends the streams and waits for them, at most until ctx is done.
// New subscribers are refused with UNAVAILABLE. Publish remains allowed.
func (h *Hub) Close(ctx context.Context, reason string) error {
	h.mu.Lock()
	if !h.closed {
		h.closed, h.reason = true, reason
		close(h.closing)
	}
	h.mu.Unlock()
	done := make(chan struct{})
	go func() { h.streams.Wait(); close(done) }() // ends with the streams, at the latest when the server cuts them
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errs.New(errs.Unavailable, "push: streams of %s did not end in the time for it", h.source)
	}
}

func (h *Hub) wakeWriter() {
	select {
	case h.receipts <- struct{}{}:
	default:
	}
}

// pushHop is the hop of a publication's changes, one span per change; it ends when everybody who was ready for the
// publication has been sent it. waiting is guarded by the hub's lock.
type pushHop struct {
	spans   []*telemetry.Span
	waiting int
}

// begin starts the spans and gives the changes with the spans' traceparents.
func (p *pushHop) begin(ctx context.Context, changes []Change) []Change {
	if len(changes) > MaxChanges {
		changes = changes[len(changes)-MaxChanges:]
	}
	out := make([]Change, len(changes))
	for i, c := range changes {
		if c.Traceparent != "" {
			_, span := telemetry.StartCause(ctx, c.Traceparent, "push")
			span.SetRevision(c.Revision)
			span.SetObject(splitObject(c.Object))
			c.Traceparent = span.Traceparent()
			p.spans = append(p.spans, span)
		}
		out[i] = c
	}
	return out
}

func (p *pushHop) end(err error) {
	for _, span := range p.spans {
		span.End(err)
	}
}

func splitObject(object string) (kind, namespace, name string) {
	kind, rest, _ := strings.Cut(object, "/")
	namespace, name, _ = strings.Cut(rest, "/")
	if namespace == "-" {
		namespace = ""
	}
	return kind, namespace, name
}
