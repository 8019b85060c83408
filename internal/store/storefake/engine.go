package storefake

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"podwire.dev/internal/store/kv"
)

// Limits of etcd's default configuration.
const (
	maxOps   = 128
	maxBytes = 1536 << 10
)

// version is a key from one revision on.
type version struct {
	revision int64
	deleted  bool
	kv       kv.KeyValue
}

// engine implements kv.Engine.
type engine struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever anything changes

	cluster   uint64
	term      uint64
	revision  int64
	compacted int64
	keys      map[string][]version
	// log holds the keys that each revision changed, in order; log[0] belongs to firstRevision + 1.
	log       [][]string
	leases    map[int64]*lease
	lastLease int64

	down         bool
	generation   int // rises when connections break
	progress     int // rises when progress is announced
	loseAnswers  int
	loseRequests int
	before       func()
}

// change does fn under the lock and wakes everybody who waits.
func (e *engine) change(fn func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	fn()
	e.wake()
}

func (e *engine) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *engine) header() kv.Header {
	return kv.Header{Cluster: e.cluster, Revision: e.revision, Term: e.term}
}

// reach fails as a call that does not get through does.
func (e *engine) reach(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	if e.down {
		return fmt.Errorf("%w: it is stopped", kv.ErrUnavailable)
	}
	return nil
}

// at is the key at a revision; ok is false where it does not exist.
func (e *engine) at(key string, rev int64) (kv.KeyValue, bool) {
	versions := e.keys[key]
	for i := len(versions) - 1; i >= 0; i-- {
		if versions[i].revision <= rev {
			return versions[i].kv, !versions[i].deleted
		}
	}
	return kv.KeyValue{}, false
}

func within(key, start, end string) bool {
	if end == "" {
		return key == start
	}
	return start <= key && key < end
}

// Range implements kv.Engine.
func (e *engine) Range(ctx context.Context, req kv.RangeRequest) (kv.RangeResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.reach(ctx); err != nil {
		return kv.RangeResponse{}, err
	}
	rev := req.Revision
	switch {
	case rev == 0:
		rev = e.revision
	case rev > e.revision:
		return kv.RangeResponse{}, fmt.Errorf("%w: %d", kv.ErrFutureRevision, rev)
	case rev < e.compacted:
		return kv.RangeResponse{}, fmt.Errorf("%w: %d", kv.ErrCompacted, rev)
	}
	out := kv.RangeResponse{Header: e.header()}
	for key := range e.keys {
		if !within(key, req.Key, req.End) {
			continue
		}
		if pair, ok := e.at(key, rev); ok {
			out.KVs = append(out.KVs, pair)
		}
	}
	slices.SortFunc(out.KVs, func(a, b kv.KeyValue) int { return strings.Compare(a.Key, b.Key) })
	if req.Limit > 0 && int64(len(out.KVs)) > req.Limit {
		out.KVs, out.More = out.KVs[:req.Limit], true
	}
	return out, nil
}

// Txn implements kv.Engine.
func (e *engine) Txn(ctx context.Context, req kv.TxnRequest) (kv.TxnResponse, error) {
	objects := writesObjects(req)
	if objects {
		e.runBefore()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.reach(ctx); err != nil {
		return kv.TxnResponse{}, err
	}
	if err := limits(req); err != nil {
		return kv.TxnResponse{}, err
	}
	if objects && e.loseRequests > 0 {
		e.loseRequests--
		return kv.TxnResponse{}, fmt.Errorf("%w: the request was lost", kv.ErrUnavailable)
	}
	resp, err := e.execute(req)
	if err == nil && objects && e.loseAnswers > 0 {
		e.loseAnswers--
		return kv.TxnResponse{}, fmt.Errorf("%w: the answer was lost", kv.ErrUnavailable)
	}
	return resp, err
}

// writesObjects tells the transactions that tests are about from elections, registrations and receipts, which goroutines
// of a service commit at moments of their own.
func writesObjects(req kv.TxnRequest) bool {
	return slices.ContainsFunc(req.Ops, func(op kv.Op) bool { return !strings.HasPrefix(op.Key, "/podwire/x/") })
}

func (e *engine) runBefore() {
	e.mu.Lock()
	fn := e.before
	e.before = nil
	e.mu.Unlock()
	if fn != nil {
		fn()
	}
}

func limits(req kv.TxnRequest) error {
	size := 0
	for _, c := range req.Compares {
		size += len(c.Key)
	}
	for _, op := range req.Ops {
		size += len(op.Key) + len(op.Value)
	}
	if len(req.Compares) > maxOps || len(req.Ops) > maxOps || size > maxBytes {
		return fmt.Errorf("%w: %d conditions, %d operations, %d bytes", kv.ErrTooLarge, len(req.Compares), len(req.Ops), size)
	}
	return nil
}

// execute is a transaction under the lock.
func (e *engine) execute(req kv.TxnRequest) (kv.TxnResponse, error) {
	for _, op := range req.Ops {
		if op.Action == kv.Put && op.Lease != 0 && e.leases[op.Lease] == nil {
			return kv.TxnResponse{}, fmt.Errorf("%w: %x", kv.ErrLeaseNotFound, op.Lease)
		}
	}
	holds := true
	current := make([]*kv.KeyValue, len(req.Compares))
	for i, c := range req.Compares {
		pair, ok := e.at(c.Key, e.revision)
		if ok {
			current[i] = &pair
		}
		holds = holds && satisfied(c, current[i])
	}
	if !holds {
		return kv.TxnResponse{Header: e.header(), Current: current}, nil
	}
	var touched []string
	for _, op := range req.Ops {
		if e.apply(op, e.revision+1) {
			touched = append(touched, op.Key)
		}
	}
	e.commit(touched)
	return kv.TxnResponse{Header: e.header(), Succeeded: true}, nil
}

func satisfied(c kv.Compare, have *kv.KeyValue) bool {
	var mod, created int64
	if have != nil {
		mod, created = have.ModRevision, have.CreateRevision
	}
	switch c.Target {
	case kv.CompareMod:
		return mod == c.Revision
	case kv.CompareCreate:
		return created == c.Revision
	default:
		return have != nil
	}
}

// apply executes one operation at a revision; false is a deletion of nothing.
func (e *engine) apply(op kv.Op, rev int64) bool {
	old, exists := e.at(op.Key, rev)
	if op.Action == kv.Delete && !exists {
		return false
	}
	if exists && old.Lease != 0 {
		if l := e.leases[old.Lease]; l != nil {
			delete(l.keys, op.Key)
		}
	}
	if op.Action == kv.Delete {
		e.keys[op.Key] = append(e.keys[op.Key], version{revision: rev, deleted: true, kv: kv.KeyValue{Key: op.Key, ModRevision: rev}})
		return true
	}
	pair := kv.KeyValue{Key: op.Key, Value: slices.Clone(op.Value), CreateRevision: rev, ModRevision: rev, Lease: op.Lease}
	if exists {
		pair.CreateRevision = old.CreateRevision
	}
	if op.Lease != 0 {
		e.leases[op.Lease].keys[op.Key] = struct{}{}
	}
	e.keys[op.Key] = append(e.keys[op.Key], version{revision: rev, kv: pair})
	return true
}

// commit makes the touched keys a revision. Nothing touched is none.
func (e *engine) commit(touched []string) {
	if len(touched) == 0 {
		return
	}
	e.revision++
	e.log = append(e.log, touched)
	e.wake()
}

// truncate undoes everything after a revision.
func (e *engine) truncate(to int64) {
	e.revision = to
	e.log = e.log[:to-firstRevision]
	for key, versions := range e.keys {
		n := 0
		for n < len(versions) && versions[n].revision <= to {
			n++
		}
		if e.keys[key] = versions[:n:n]; n == 0 {
			delete(e.keys, key)
		}
	}
}

// Grant implements kv.Engine.
func (e *engine) Grant(ctx context.Context, _ time.Duration) (int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.reach(ctx); err != nil {
		return 0, err
	}
	e.lastLease++
	e.leases[e.lastLease] = &lease{keys: make(map[string]struct{}), ended: make(chan struct{})}
	return e.lastLease, nil
}

// KeepAlive implements kv.Engine.
func (e *engine) KeepAlive(ctx context.Context, id int64) (<-chan struct{}, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.reach(ctx); err != nil {
		return nil, err
	}
	l := e.leases[id]
	if l == nil {
		return nil, fmt.Errorf("%w: %x", kv.ErrLeaseNotFound, id)
	}
	context.AfterFunc(ctx, l.end)
	return l.ended, nil
}

// Revoke implements kv.Engine.
func (e *engine) Revoke(ctx context.Context, id int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.reach(ctx); err != nil {
		return err
	}
	e.revoke(id)
	return nil
}

// revoke deletes the lease's keys in one revision.
func (e *engine) revoke(id int64) {
	l := e.leases[id]
	if l == nil {
		return
	}
	var touched []string
	for key := range l.keys {
		touched = append(touched, key)
	}
	slices.Sort(touched)
	for _, key := range touched {
		e.apply(kv.Op{Action: kv.Delete, Key: key}, e.revision+1)
	}
	delete(e.leases, id)
	e.commit(touched)
	l.end()
}

// Members implements kv.Engine.
func (e *engine) Members(ctx context.Context) ([]kv.MemberStatus, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.reach(ctx); err != nil {
		return nil, err
	}
	size := int64(0)
	for key, versions := range e.keys {
		for _, v := range versions {
			size += int64(len(key) + len(v.kv.Value))
		}
	}
	return []kv.MemberStatus{{
		Header: e.header(), Endpoint: "memory", Version: "fake",
		DBSize: size, DBSizeInUse: size, Quota: 2 << 30, Leader: true,
	}}, nil
}

// Defragment implements kv.Engine.
func (e *engine) Defragment(ctx context.Context, _ string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reach(ctx)
}

// Close implements kv.Engine.
func (e *engine) Close() error { return nil }
