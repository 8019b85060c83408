package store

import (
	"context"
	"iter"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// Replica is one running process of a service.
type Replica struct {
	Service string
	// Name is unique within the service.
	Name string
	// Address is where it serves gRPC, as a gRPC target.
	Address string
}

// Register makes the replica findable as long as the returned session lives. A replica of the same name is replaced.
func (s *Store) Register(ctx context.Context, service, replica, address string) (*Session, error) {
	if err := checkSegments(service, replica); err != nil {
		return nil, err
	}
	session, err := s.NewSession(ctx, SessionTTL)
	if err != nil {
		return nil, err
	}
	if err := session.Register(ctx, Replica{Service: service, Name: replica, Address: address}); err != nil {
		// What was lost may only be the answer, so the key may be there.
		session.farewell(ctx)
		return nil, err
	}
	return session, nil
}

// Register makes the replica findable under an existing session.
func (l *Session) Register(ctx context.Context, r Replica) error {
	if err := checkSegments(r.Service, r.Name); err != nil {
		return err
	}
	key := replicaRoot + r.Service + "/" + r.Name
	err := l.putLeased(ctx, key, &storev1.Replica{Service: r.Service, Replica: r.Name, Address: r.Address})
	return errs.Wrap(err, "store: register %s/%s", r.Service, r.Name)
}

// KeepRegistered registers the replica and registers it again whenever its lease was lost, until ctx ends; then it
// takes the registration back and returns nil. Losses and repairs are logged.
func (s *Store) KeepRegistered(ctx context.Context, r Replica) error {
	if err := checkSegments(r.Service, r.Name); err != nil {
		return err
	}
	for wait := newBackoff(); ; {
		session, err := s.Register(ctx, r.Service, r.Name, r.Address)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil && !errs.Is(err, errs.Unavailable):
			return err
		case err != nil:
			s.log.Warn("registration failed, trying again", "service", r.Service, "replica", r.Name, "err", err)
			if wait.pause(ctx) != nil {
				return nil
			}
			continue
		}
		wait = newBackoff()
		select {
		case <-session.Lost():
			session.stop()
			s.log.Warn("registration lost, registering again", "service", r.Service, "replica", r.Name)
		case <-ctx.Done():
			session.farewell(ctx)
			return nil
		}
	}
}

// ListReplicas lists a service's live replicas by name, and everybody's if service is empty.
func (s *Store) ListReplicas(ctx context.Context, service string) ([]Replica, error) {
	prefix, err := under(replicaRoot, service)
	if err != nil {
		return nil, err
	}
	list, _, err := listAll(ctx, s, prefix, decodeReplica)
	return list, err
}

// WatchReplicas yields a service's live replicas (everybody's if service is empty), now and after every change, until
// ctx ends. An outage of etcd is waited out. An error is the last thing yielded.
func (s *Store) WatchReplicas(ctx context.Context, service string) iter.Seq2[[]Replica, error] {
	prefix, err := under(replicaRoot, service)
	if err != nil {
		return func(yield func([]Replica, error) bool) { yield(nil, err) }
	}
	return watchAll(ctx, s, prefix, decodeReplica)
}

func decodeReplica(pair kv.KeyValue) (Replica, error) {
	var r storev1.Replica
	if _, err := open(pair, messageKind(&r), &r); err != nil {
		return Replica{}, err
	}
	return Replica{Service: r.GetService(), Name: r.GetReplica(), Address: r.GetAddress()}, nil
}
