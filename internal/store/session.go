package store

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/store/kv"
)

// SessionTTL is how long what hangs on a session outlives a process that is gone, or that etcd cannot hear.
const SessionTTL = 10 * time.Second

// Session is a lease that is kept alive. What is written under it (a registration, an election, a receipt) is gone when
// it is.
type Session struct {
	store *Store
	lease int64
	lost  <-chan struct{}
	stop  context.CancelFunc
}

// NewSession grants a lease of ttl (whole seconds; SessionTTL is a good one) and keeps it alive until Close, also after
// ctx ended.
func (s *Store) NewSession(ctx context.Context, ttl time.Duration) (*Session, error) {
	lease, err := s.engine.Grant(ctx, ttl)
	if err != nil {
		return nil, wrap(err, "store: grant a lease")
	}
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	lost, err := s.engine.KeepAlive(alive, lease)
	if err != nil {
		stop() // and the lease expires by itself
		return nil, wrap(err, "store: keep lease %x alive", lease)
	}
	return &Session{store: s, lease: lease, lost: lost, stop: stop}, nil
}

// Lost is closed when the lease is no longer kept alive: it expired or was revoked, or Close was called. What hung on it
// is gone, or goes within the lease's time to live.
func (l *Session) Lost() <-chan struct{} { return l.lost }

// Close revokes the lease, and with it deletes everything that hangs on it.
func (l *Session) Close(ctx context.Context) error {
	l.stop()
	<-l.lost
	return wrap(l.store.engine.Revoke(ctx, l.lease), "store: revoke lease %x", l.lease)
}

// farewell is Close within the little time that a process has left, or that a failed call is worth.
func (l *Session) farewell(ctx context.Context) {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if err := l.Close(end); err != nil {
		l.store.log.Warn("lease not revoked, it expires by itself", "lease", l.lease, "err", err)
	}
}

// graveTTL is the shortest life of a tombstone. Tombstones share leases, so that a deletion does not cost a lease: a
// lease takes new ones for graveShare or maxGraves, whichever ends first. The second bound keeps the transaction small
// in which etcd removes them all at once.
const (
	graveTTL   = time.Hour
	graveShare = 10 * time.Minute
	maxGraves  = 1000
)

// grave returns the lease for n new tombstones.
func (s *Store) grave(ctx context.Context, n int) (int64, error) {
	s.graves.Lock()
	lease := s.graves.lease
	fresh := lease != 0 && s.graves.used+n <= maxGraves && time.Since(s.graves.granted) < graveShare
	if fresh {
		s.graves.used += n
	}
	s.graves.Unlock()
	if fresh {
		return lease, nil
	}
	now := time.Now()
	lease, err := s.engine.Grant(ctx, graveTTL+graveShare)
	if err != nil {
		return 0, err
	}
	// Two callers may have granted one each; the lease that loses here is still good for its own tombstones.
	s.graves.Lock()
	s.graves.lease, s.graves.granted, s.graves.used = lease, now, n
	s.graves.Unlock()
	return lease, nil
}

// forgetGrave makes the next deletion grant a new lease: etcd does not know the old one.
func (s *Store) forgetGrave() {
	s.graves.Lock()
	s.graves.lease = 0
	s.graves.Unlock()
}

// bury gives the transaction's tombstones their lease.
func (t *Txn) bury(ctx context.Context, ops []kv.Op) error {
	n := t.burials()
	if n == 0 {
		return nil
	}
	lease, err := t.store.grave(ctx, n)
	if err != nil {
		return err
	}
	for i := range ops {
		if t.writes[i].grave {
			ops[i].Lease = lease
		}
	}
	return nil
}

// burials counts the transaction's tombstones.
func (t *Txn) burials() int {
	n := 0
	for _, w := range t.writes {
		if w.grave {
			n++
		}
	}
	return n
}

// putLeased writes a message under the session, whatever is there.
func (l *Session) putLeased(ctx context.Context, key string, msg proto.Message) error {
	_, err := l.store.Txn().putMessage(key, msg, l.lease, nil).Commit(ctx)
	return err
}
