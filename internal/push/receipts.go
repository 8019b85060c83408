package push

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
)

// WatermarkStore is where a service's watermark is kept.
type WatermarkStore interface {
	// Watermark reads it; the zero Watermark where there is none.
	Watermark(ctx context.Context, service nodestate.Source) (Watermark, error)
	// PutWatermark replaces it, unless what is there is newer. ErrNotLeading where that is another replica's to do.
	PutWatermark(ctx context.Context, w Watermark) error
}

// ErrNotLeading says that the service's watermark is kept by another replica, or by none before the first election.
var ErrNotLeading = errors.New("this replica does not lead")

// maxSettlements bounds the Worlds whose settlement is remembered for nodes that lag.
const maxSettlements = 1 << 14

// foldState is what receipts know of the Nodes. It is guarded by the hub's lock.
type foldState struct {
	nodes       map[string]Standing
	settlements []Settlement
	// known is what each node held when it was last known.
	known     map[string]int64
	watermark Watermark
	// adopted says that watermark is not below the stored one.
	adopted bool
	// lowest is the minimum of the last fold, holders the number of nodes that made it.
	lowest  int64
	holders int
}

func newFoldState(source nodestate.Source) foldState {
	return foldState{watermark: Watermark{Service: source}, known: map[string]int64{}, nodes: map[string]Standing{}}
}

func (f *foldState) publish(world, settled int64, nodes map[string]Standing) {
	if n := len(f.settlements); n > 0 && f.settlements[n-1].Version == world {
		f.settlements = f.settlements[:n-1]
	}
	f.settlements = append(f.settlements, Settlement{Version: world, Settled: settled})
	if len(f.settlements) > maxSettlements {
		f.settlements = slices.Delete(f.settlements, 0, maxSettlements/2)
	}
	if nodes != nil {
		f.nodes = maps.Clone(nodes)
		maps.DeleteFunc(f.known, func(node string, _ int64) bool { return nodes[node] == 0 })
	}
}

// restart begins a history, in which no revision of the one before means anything.
func (f *foldState) restart() {
	*f = foldState{nodes: f.nodes, known: map[string]int64{}, watermark: Watermark{Service: f.watermark.Service}}
}

// moved notes that a subscriber holds more, and says whether that can raise the minimum: whether it was the last of
// those at the minimum.
func (f *foldState) moved(s *subscriber, held int64, known bool) bool {
	if !known || s.folded < 0 || held <= s.folded {
		return s.folded < 0
	}
	if s.folded == f.lowest {
		f.holders--
	}
	s.folded = held
	return f.holders <= 0
}

// held is what a subscriber holds, if the hub knows.
func (h *Hub) held(s *subscriber) (int64, bool) {
	if s.hello != nil || !s.verified || s.epoch != h.epoch {
		return 0, false
	}
	return s.track.held(s.content, h.world.Revision), true
}

// remember keeps what a subscriber held, for the time without it.
func (h *Hub) remember(s *subscriber) {
	if held, ok := h.held(s); ok && h.fold.nodes[s.node] != 0 {
		h.fold.known[s.node] = held
	}
}

// refold computes the watermark. ok is false while the stored one has not been read.
func (h *Hub) refold() (w Watermark, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.fold.adopted || !h.started {
		return Watermark{}, false
	}
	claims := h.claims()
	f := &h.fold
	prev := f.watermark
	f.watermark, f.lowest = Fold(prev, h.world.Revision, f.settlements, claims)
	f.holders = 0
	for _, c := range claims {
		if !c.counts() {
			continue
		}
		held := c.held(prev)
		if held <= f.lowest {
			f.holders++
		}
		if s := h.subscribers[c.Node]; s != nil {
			s.folded = held
		}
	}
	f.prune()
	w = f.watermark
	w.Laggards = slices.Clone(w.Laggards)
	return w, true
}

// prune forgets settlements that no fold can ask for.
func (f *foldState) prune() {
	keep := 0
	for i, s := range f.settlements {
		if s.Version <= f.lowest {
			keep = i
		}
	}
	f.settlements = slices.Delete(f.settlements, 0, keep)
}

// silence doubts the streams of Nodes that are declared dead by this World.
func (h *Hub) silence(nodes map[string]Standing) {
	for name, standing := range nodes {
		if s := h.subscribers[name]; s != nil && standing == StandingDead && h.fold.nodes[name] == StandingMember {
			s.silent = true
		}
	}
}

// claims are the Nodes of the store in the order of their names.
func (h *Hub) claims() []Claim {
	claims := make([]Claim, 0, len(h.fold.nodes))
	for _, node := range slices.Sorted(maps.Keys(h.fold.nodes)) {
		c := Claim{Node: node, Standing: h.fold.nodes[node]}
		if s := h.subscribers[node]; s != nil && s.epoch == h.epoch {
			c.Subscribed, c.Refused, c.Reason = !s.silent, s.refused.version, s.refused.reason
			if c.Refused > 0 {
				c.Through = s.track.held(s.refused.since, h.world.Revision)
			}
			h.remember(s)
		}
		c.Held, c.Known = h.fold.known[node]
		claims = append(claims, c)
	}
	return claims
}

// Watermark is the watermark as last folded.
func (h *Hub) Watermark() Watermark {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.fold.watermark
	w.Laggards = slices.Clone(w.Laggards)
	return w
}

// NodeReceipt is what one node holds, for status.
type NodeReceipt struct {
	Laggard
	// Subscribed says whether the node has a stream open to this replica.
	Subscribed bool
	// Hops are the durations that the node reported for the last version that it applied.
	Hops []HopDuration
}

// Receipts are what the Nodes of the store that count hold, sorted by name.
func (h *Hub) Receipts() []NodeReceipt {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []NodeReceipt
	for _, c := range h.claims() {
		if !c.counts() {
			continue
		}
		r := NodeReceipt{
			Laggard:    Laggard{Node: c.Node, Held: c.held(h.fold.watermark), Refused: c.Refused, Reason: c.Reason},
			Subscribed: c.Subscribed,
		}
		if s := h.subscribers[c.Node]; s != nil {
			r.Hops = s.applied
		}
		out = append(out, r)
	}
	return out
}

// WriteWatermarks keeps the service's watermark in the store until ctx is done: a rise or a refusal at once, then at most
// ten writes per second; who lags, where that alone changed, once a second; nothing while nothing changes. It begins by
// reading what the store has, below which it never goes. A store that does not answer is waited out, and so is a lost
// election. Run it as one goroutine of the daemon.
func (h *Hub) WriteWatermarks(ctx context.Context, store WatermarkStore) error {
	w := &writer{hub: h, store: store}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.receipts:
		case <-timer.C:
		}
		wait, err := w.turn(ctx)
		if err != nil {
			return err
		}
		if wait > 0 {
			timer.Reset(wait)
		}
	}
}

// writer paces the writes of one service's watermark.
type writer struct {
	hub     *Hub
	store   WatermarkStore
	last    Watermark // as stored
	at      time.Time // of the last write
	failing bool
}

const (
	writeGap   = 100 * time.Millisecond
	laggardGap = time.Second
	failureGap = time.Second
)

// turn folds and writes what is due. It returns when to come again; 0 where only an event can change anything.
func (w *writer) turn(ctx context.Context) (time.Duration, error) {
	if w.hub.awaitsStored() {
		stored, err := w.store.Watermark(ctx, w.hub.source)
		if err != nil {
			return w.failed(ctx, errs.Wrap(err, "push: read the watermark of %s", w.hub.source))
		}
		w.hub.adopt(stored)
		w.last, w.at = stored, time.Time{}
	}
	now, ok := w.hub.refold()
	if !ok {
		return 0, nil
	}
	wait, due := pace(w.last, now, time.Since(w.at))
	switch {
	case due && wait > 0:
		return wait, nil
	case !due && len(now.Laggards) > 0:
		return laggardGap, nil // an ack that leaves the minimum alone wakes nobody
	case !due:
		return 0, nil
	}
	if err := w.store.PutWatermark(ctx, now); err != nil {
		return w.failed(ctx, errs.Wrap(err, "push: write the watermark of %s", w.hub.source))
	}
	if w.failing {
		w.failing = false
		w.hub.log.Info("watermarks are written again", "revision", now.Revision)
	}
	w.last, w.at = now, time.Now()
	return writeGap, nil
}

// failed waits out what may mend itself.
func (w *writer) failed(ctx context.Context, err error) (time.Duration, error) {
	if ctx.Err() != nil {
		return failureGap, nil
	}
	if !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Conflict) {
		return 0, err
	}
	if !w.failing && !errors.Is(err, ErrNotLeading) {
		w.failing = true
		w.hub.log.Warn("the watermark is not written, trying again", "err", err)
	}
	return failureGap, nil
}

// pace says whether the watermark differs from the one written, and how long its write should wait yet.
func pace(last, now Watermark, since time.Duration) (wait time.Duration, due bool) {
	gap := writeGap
	switch {
	case now.Revision != last.Revision || !slices.Equal(refusals(now), refusals(last)):
	case !slices.Equal(now.Laggards, last.Laggards):
		gap = laggardGap
	default:
		return 0, false
	}
	return max(gap-since, 0), true
}

func refusals(w Watermark) []Laggard {
	var out []Laggard
	for _, l := range w.Laggards {
		if l.Refused > 0 {
			out = append(out, Laggard{Node: l.Node, Refused: l.Refused, Reason: l.Reason, Through: l.Through})
		}
	}
	return out
}

func (h *Hub) awaitsStored() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.started && !h.fold.adopted
}

// adopt begins where the stored watermark is.
func (h *Hub) adopt(stored Watermark) {
	h.mu.Lock()
	defer h.mu.Unlock()
	stored.Service = h.source
	h.fold.watermark, h.fold.adopted = stored, true
}
