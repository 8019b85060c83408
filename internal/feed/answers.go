package feed

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/push"
	"podwire.dev/internal/store"
)

// Answers is the Publisher of a service that pushes nothing to nodes: one whose replicas answer from their own World, as
// dns and ingress do. A replica's receipt is the newest revision such that its World contains every change up to there,
// with what was derived from it; the service's watermark is the least receipt of its live replicas.
type Answers struct {
	store   *store.Store
	replica store.Replica
	leader  *Leader
	log     *slog.Logger
	// ready is called when the first receipt is in the store: from then on the watermark waits for this replica.
	ready func()

	published, receipts chan struct{}

	mu      sync.Mutex
	settled store.Revision
	history int             // rises when the store goes back: what was written before need not be there any more
	lowest  store.Watermark // of the live receipts; Revision 0 where there are none
}

// NewAnswers makes the receipts of one replica; it starts nothing. ready is called once.
func NewAnswers(s *store.Store, r store.Replica, l *Leader, log *slog.Logger, ready func()) *Answers {
	return &Answers{
		store: s, replica: r, leader: l, log: log, ready: sync.OnceFunc(ready),
		published: make(chan struct{}, 1), receipts: make(chan struct{}, 1),
	}
}

// Publish implements Publisher: what was planned is what the replica answers from now on.
func (a *Answers) Publish(_ context.Context, p push.Publication) error {
	a.mu.Lock()
	a.settled = store.Revision(p.Settled)
	if p.Back {
		a.history++
	}
	a.mu.Unlock()
	wake(a.published)
	return nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// The paces of receipts and watermarks: at most ten writes a second, and a second look where an election or a store that
// does not answer may have been in the way.
const (
	receiptGap = 100 * time.Millisecond
	foldAgain  = time.Second
)

// WriteReceipts keeps this replica's receipt in the store until ctx ends, at most ten times a second, under a session of
// its own: it is gone soon after the replica is, which no watermark then waits for.
func (a *Answers) WriteReceipts(ctx context.Context) error {
	for ctx.Err() == nil {
		err := a.session(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil && !errs.Is(err, errs.Unavailable):
			return err
		case err != nil:
			a.log.Warn("the receipt of this replica is not written, trying again", "error", err)
			pause(ctx, foldAgain)
		}
	}
	return nil
}

// session writes receipts for as long as one session lives.
func (a *Answers) session(ctx context.Context) error {
	session, err := a.store.NewSession(ctx, store.SessionTTL)
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), resignTimeout)
		defer cancel()
		// Where etcd does not answer the lease expires by itself.
		_ = session.Close(end)
	}()
	written, in := store.Revision(0), 0
	for {
		a.mu.Lock()
		settled, history := a.settled, a.history
		a.mu.Unlock()
		if settled != written || history != in { // lower where the store went back: its receipt did, too
			if _, err := session.RaiseReceipt(ctx, store.Watermark{
				Service: a.replica.Service, Replica: a.replica.Name, Revision: settled,
			}); err != nil {
				return errs.Wrap(err, "feed: receipt of %s/%s", a.replica.Service, a.replica.Name)
			}
			written, in = settled, history
			a.ready()
			pause(ctx, receiptGap)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-session.Lost():
			return errs.WrapAs(errs.Unavailable, store.ErrLost, "feed: receipt of %s/%s", a.replica.Service, a.replica.Name)
		case <-a.published:
		}
	}
}

// Follow keeps the least receipt of the service's live replicas until ctx ends.
func (a *Answers) Follow(ctx context.Context) error {
	for list, err := range a.store.WatchReceipts(ctx, a.replica.Service) {
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.lowest = Lowest(a.replica.Service, list)
		a.mu.Unlock()
		wake(a.receipts)
	}
	return nil
}

// Lowest folds the receipts of a service's live replicas into its watermark: the least of them. Replicas that are behind
// the first are its laggards. Without receipts the revision is 0: nobody answers.
func Lowest(service string, receipts []store.Watermark) store.Watermark {
	out := store.Watermark{Service: service}
	var newest store.Revision
	for i, r := range receipts {
		newest = max(newest, r.Revision)
		if i == 0 || r.Revision < out.Revision {
			out.Revision = r.Revision
		}
	}
	for _, r := range receipts {
		if r.Revision < newest && len(out.Laggards) < push.MaxLaggards {
			out.Laggards = append(out.Laggards, store.Laggard{Node: service + "/" + r.Replica, Revision: r.Revision})
		}
	}
	return out
}

// WriteWatermarks keeps the service's watermark in the store while this replica leads, until ctx ends.
func (a *Answers) WriteWatermarks(ctx context.Context) error {
	said := ""
	timer := time.NewTimer(foldAgain)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.receipts:
		case <-timer.C:
		}
		timer.Reset(foldAgain)
		a.mu.Lock()
		lowest := a.lowest
		a.mu.Unlock()
		lead := a.leader.Leadership()
		if lead == nil || lowest.Revision == 0 {
			continue
		}
		_, err := a.store.RaiseWatermark(ctx, lead, lowest)
		switch {
		case err == nil:
			said = ""
		case ctx.Err() != nil:
			return nil
		case !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Conflict):
			return err
		case err.Error() != said:
			said = err.Error()
			a.log.Warn("the watermark is not written, trying again", "error", err)
		}
	}
}
