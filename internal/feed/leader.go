package feed

import (
	"context"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/store"
)

// Leader keeps a replica registered and in the race for its service's election, and knows whether it leads now.
type Leader struct {
	store   *store.Store
	replica store.Replica

	mu      sync.Mutex
	lead    *store.Leadership
	changed chan struct{}
}

// NewLeader makes a Leader of the election that is named after the replica's service; it starts nothing.
func NewLeader(s *store.Store, r store.Replica) *Leader {
	return &Leader{store: s, replica: r, changed: make(chan struct{}, 1)}
}

// Leadership is the election while this replica holds it, else nil.
func (l *Leader) Leadership() *store.Leadership {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lead
}

// Changed gets a value when the leadership was won; one receiver.
func (l *Leader) Changed() <-chan struct{} { return l.changed }

func (l *Leader) set(lead *store.Leadership) {
	l.mu.Lock()
	l.lead = lead
	l.mu.Unlock()
	if lead != nil {
		select {
		case l.changed <- struct{}{}:
		default:
		}
	}
}

// Run campaigns until ctx ends, again after each loss, and gives the election up at the end so that a successor need not
// wait for the lease.
func (l *Leader) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := l.term(ctx); err != nil && ctx.Err() == nil {
			if !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Conflict) {
				return err
			}
			pause(ctx, writerPause)
		}
	}
	return nil
}

// resignTimeout bounds the farewell to etcd.
const resignTimeout = 2 * time.Second

// term is one session: campaign, lead, lose.
func (l *Leader) term(ctx context.Context) error {
	session, err := l.store.NewSession(ctx, store.SessionTTL)
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), resignTimeout)
		defer cancel()
		// Where etcd does not answer the lease expires by itself.
		_ = session.Close(end)
	}()
	lead, err := session.Campaign(ctx, l.replica.Service, l.replica.Name, l.replica.Address)
	if err != nil {
		return err
	}
	l.set(lead)
	defer l.set(nil)
	select {
	case <-ctx.Done():
		return nil
	case <-lead.Lost():
		return errs.WrapAs(errs.Unavailable, store.ErrLost, "feed: election %s", l.replica.Service)
	}
}

// Watermarks is where the hub keeps the service's watermark: written only while this replica leads.
type Watermarks struct {
	store  *store.Store
	leader *Leader
}

// NewWatermarks makes the hub's door to the watermark key.
func NewWatermarks(s *store.Store, l *Leader) *Watermarks { return &Watermarks{s, l} }

// Watermark implements push.WatermarkStore.
func (w *Watermarks) Watermark(ctx context.Context, service nodestate.Source) (push.Watermark, error) {
	held, err := w.store.GetWatermark(ctx, string(service))
	if errs.Is(err, errs.NotFound) {
		return push.Watermark{Service: service}, nil
	}
	return push.Watermark{Service: service, Revision: int64(held.Revision)}, err
}

// PutWatermark implements push.WatermarkStore.
func (w *Watermarks) PutWatermark(ctx context.Context, m push.Watermark) error {
	lead := w.leader.Leadership()
	if lead == nil {
		return errs.WrapAs(errs.Unavailable, push.ErrNotLeading, "feed: watermark of %s", m.Service)
	}
	out := store.Watermark{Service: string(m.Service), Revision: store.Revision(m.Revision)}
	for _, lag := range m.Laggards {
		out.Laggards = append(out.Laggards, store.Laggard{
			Node: lag.Node, Revision: store.Revision(lag.Held), Refused: store.Revision(lag.Refused), Reason: lag.Reason,
			Through: store.Revision(lag.Through),
		})
	}
	_, err := w.store.RaiseWatermark(ctx, lead, out)
	return err
}
