package store

import (
	"context"
	"iter"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// Leader is who holds an election.
type Leader struct {
	Election string
	// Replica is the holder's name, Address where it serves gRPC.
	Replica string
	Address string
	// Epoch is the revision at which it was elected. It rises from holder to holder.
	Epoch Revision
}

// Leadership is an election won. The work it licenses is fenced by Txn.RequireLeader: whoever lost the election without
// having noticed yet cannot commit.
type Leadership struct {
	Leader
	session *Session
	key     string
	created int64
}

// Campaign waits until the replica holds the election, or ctx ends. The key hangs on the session: several elections may
// share one.
func (l *Session) Campaign(ctx context.Context, election, replica, address string) (*Leadership, error) {
	if err := checkSegments(election, replica); err != nil {
		return nil, err
	}
	key := electionRoot + election
	for wait := newBackoff(); ; {
		won, err := l.tryCampaign(ctx, key, &storev1.Leader{Replica: replica, Address: address})
		if err == nil && won != nil {
			won.Election = election
			return won, nil
		}
		if err == nil {
			err = l.awaitVacancy(ctx, key)
		}
		switch {
		case ctx.Err() != nil:
			return nil, wrap(ctx.Err(), "store: campaign for %s", election)
		case l.over():
			return nil, wrap(ErrLost, "store: campaign for %s", election)
		case err == nil:
			wait = newBackoff()
		case errs.Is(err, errs.Unavailable) || errs.Is(err, errs.Conflict):
			if err := wait.pause(ctx); err != nil {
				return nil, wrap(err, "store: campaign for %s", election)
			}
		default:
			return nil, err
		}
	}
}

func (l *Session) over() bool {
	select {
	case <-l.lost:
		return true
	default:
		return false
	}
}

// tryCampaign takes the election if it is free, and recognises it if this session took it in an attempt whose answer
// was lost. What a replica of the same name holds is its own predecessor's, who is gone: it is taken without waiting for
// that one's lease, and the predecessor, should it live after all, commits nothing more (RequireLeader). Nil is an
// election that somebody else holds.
func (l *Session) tryCampaign(ctx context.Context, key string, me *storev1.Leader) (*Leadership, error) {
	won := func(rev int64) *Leadership {
		return &Leadership{
			Leader:  Leader{Replica: me.GetReplica(), Address: me.GetAddress(), Epoch: Revision(rev)},
			session: l, key: key, created: rev,
		}
	}
	resp, err := l.store.engine.Range(ctx, kv.RangeRequest{Key: key})
	if err != nil {
		return nil, wrap(err, "store: read %s", key)
	}
	if len(resp.KVs) == 1 {
		held := resp.KVs[0]
		if held.Lease == l.lease {
			return won(held.CreateRevision), nil
		}
		leader, err := decodeLeader(held)
		if err != nil || leader.Replica != me.GetReplica() {
			return nil, err
		}
		gone := kv.Compare{Key: key, Target: kv.CompareCreate, Revision: held.CreateRevision}
		if _, err := l.store.Txn().compare(gone).remove(key).Commit(ctx); err != nil {
			return nil, err
		}
	}
	t := l.store.Txn().compare(kv.Compare{Key: key, Target: kv.CompareMod}).putMessage(key, me, l.lease, nil)
	rev, err := t.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return won(int64(rev)), nil
}

// awaitVacancy returns nil when the key is deleted, or was never there.
func (l *Session) awaitVacancy(ctx context.Context, key string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := l.store.engine.Range(ctx, kv.RangeRequest{Key: key})
	if err != nil || len(resp.KVs) == 0 {
		return wrap(err, "store: read %s", key)
	}
	w, err := l.store.engine.Watch(ctx, kv.WatchRequest{Key: key, From: resp.Header.Revision + 1})
	if err != nil {
		return wrap(err, "store: watch %s", key)
	}
	defer w.Close()
	ended := closeWith(l.lost, w)
	defer ended()
	for {
		piece, err := w.Next()
		if err != nil {
			return wrap(err, "store: watch %s", key)
		}
		for _, ev := range piece.Events {
			if ev.Action == kv.Delete {
				return nil
			}
		}
	}
}

// closeWith closes the watcher when done is closed. The returned function ends the wait.
func closeWith(done <-chan struct{}, w kv.Watcher) (end func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-done:
			w.Close()
		case <-stop:
		}
	}()
	return func() {
		close(stop)
		<-stopped
	}
}

// Lost is closed when the session is: the election is lost, or goes to somebody else within the lease's time to live.
func (l *Leadership) Lost() <-chan struct{} { return l.session.lost }

// Resign gives the election up and leaves the session as it is.
func (l *Leadership) Resign(ctx context.Context) error {
	_, err := l.session.store.Txn().RequireLeader(l).remove(l.key).Commit(ctx)
	if errs.Is(err, errs.Conflict) {
		return nil // somebody else's already
	}
	return errs.Wrap(err, "store: resign from %s", l.Election)
}

// GetLeader reads who holds an election; NotFound if nobody does.
func (s *Store) GetLeader(ctx context.Context, election string) (Leader, error) {
	if err := checkSegments(election); err != nil {
		return Leader{}, err
	}
	resp, err := s.engine.Range(ctx, kv.RangeRequest{Key: electionRoot + election})
	if err != nil {
		return Leader{}, wrap(err, "store: read election %s", election)
	}
	s.note(resp.Header)
	if len(resp.KVs) == 0 {
		return Leader{}, errs.New(errs.NotFound, "store: nobody holds the election %s", election)
	}
	return decodeLeader(resp.KVs[0])
}

// WatchLeaders yields who holds which election, by the elections' names, now and after every change, until ctx ends. An
// outage of etcd is waited out. An error is the last thing yielded.
func (s *Store) WatchLeaders(ctx context.Context) iter.Seq2[[]Leader, error] {
	return watchAll(ctx, s, electionRoot, decodeLeader)
}

func decodeLeader(pair kv.KeyValue) (Leader, error) {
	var l storev1.Leader
	if _, err := open(pair, messageKind(&l), &l); err != nil {
		return Leader{}, err
	}
	return Leader{
		Election: pair.Key[len(electionRoot):], Replica: l.GetReplica(), Address: l.GetAddress(),
		Epoch: Revision(pair.CreateRevision),
	}, nil
}
