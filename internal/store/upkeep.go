package store

import (
	"context"

	"podwire.dev/internal/errs"
)

// Member is what one etcd member says about itself.
type Member struct {
	State
	// Endpoint is the client URL that was asked.
	Endpoint string
	Version  string
	// DBSize is bytes on disk, DBSizeInUse the bytes of those that hold data, Quota the limit on DBSize.
	DBSize, DBSizeInUse, Quota int64
	Leader                     bool
	// Alarms are standing errors, such as NOSPACE: writes are refused until it is cleared.
	Alarms []string
}

// Members asks every configured endpoint.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	all, err := s.engine.Members(ctx)
	if err != nil {
		return nil, wrap(err, "store: status of etcd")
	}
	members := make([]Member, len(all))
	for i, m := range all {
		members[i] = Member{
			State: stateOf(m.Header), Endpoint: m.Endpoint, Version: m.Version,
			DBSize: m.DBSize, DBSizeInUse: m.DBSizeInUse, Quota: m.Quota, Leader: m.Leader, Alarms: m.Alarms,
		}
	}
	return members, nil
}

// Defragment gives the unused part of each member's database back, one member after the other, followers first, and
// stops at the first that fails: a member answers nothing while it is at it. Members that waste less than a third of
// their database are left alone. It returns the endpoints that were defragmented.
func (s *Store) Defragment(ctx context.Context) ([]string, error) {
	members, err := s.Members(ctx)
	if err != nil {
		return nil, err
	}
	var done []string
	for _, leaders := range []bool{false, true} {
		for _, m := range members {
			if m.Leader != leaders || 3*(m.DBSize-m.DBSizeInUse) < m.DBSize {
				continue
			}
			if err := s.engine.Defragment(ctx, m.Endpoint); err != nil {
				return done, wrap(err, "store: defragment %s", m.Endpoint)
			}
			if _, err := s.State(ctx); err != nil {
				return done, errs.Wrap(err, "store: after defragmenting %s", m.Endpoint)
			}
			done = append(done, m.Endpoint)
		}
	}
	return done, nil
}
