package store

import (
	"bytes"
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
	"podwire.dev/internal/telemetry"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// Limits of one transaction: etcd's defaults. Whoever commits in groups cuts the groups to fit; see Txn.Size.
const (
	// MaxOps bounds the conditions and, separately, the operations. Deleting an object takes two operations.
	MaxOps = 128
	// MaxBytes bounds the request.
	MaxBytes = 1536 << 10
	// opOverhead is what a condition or an operation takes besides its key and value, generously.
	opOverhead = 64
)

// Txn collects conditions and writes that are executed together, at one revision, or not at all. Mistakes in building it
// are kept and returned by Commit. It is not safe for concurrent use.
//
// Where the answer to a commit is lost (a timeout, a broken connection), it is unknown whether etcd executed it. Every
// value carries the transaction's random id, so the same Txn can be committed again: if the first attempt was executed,
// Commit finds its id and returns its revision, and nothing is written twice. This holds for a transaction that
// conditions at least one of the keys it writes (Create, Update and Delete do); Commit then retries on its own as long
// as its context lasts, and only a transaction that is still unknown after that fails with ErrAmbiguous.
type Txn struct {
	store    *Store
	id       []byte
	compares []kv.Compare
	writes   []write
	keys     map[string]int
	size     int
	since    int64
	unsure   bool
	err      error
}

// write is one operation before the commit, when the trace is not known yet.
type write struct {
	op     kv.Op
	encode func(mark) ([]byte, error)
	mark   mark
	grave  bool
}

// WriteOption says more about one write.
type WriteOption func(*mark)

// CausedBy records what a derived write was computed from.
func CausedBy(c Cause) WriteOption { return func(m *mark) { m.cause = c } }

// TracedAs gives one write a trace of its own, where a group of writes is committed in one context. Without it a write
// carries the trace of Commit's context.
func TracedAs(traceparent string) WriteOption { return func(m *mark) { m.traceparent = traceparent } }

// Txn begins a transaction.
func (s *Store) Txn() *Txn {
	return &Txn{store: s, id: writeID(), keys: make(map[string]int)}
}

// RequireRevision makes the commit depend on the object still having the revision; 0 is absence.
func (t *Txn) RequireRevision(key Key, rev Revision) *Txn {
	t.fail(key.check(t.store))
	return t.compare(kv.Compare{Key: key.path(), Target: kv.CompareMod, Revision: int64(rev)})
}

// RequireUnchanged makes the commit depend on the object being as it was read.
func (t *Txn) RequireUnchanged(rec Record) *Txn { return t.RequireRevision(rec.Key, rec.Revision) }

// RequireAbsent makes the commit depend on the object not existing.
func (t *Txn) RequireAbsent(key Key) *Txn { return t.RequireRevision(key, 0) }

// RequirePresent makes the commit depend on the object existing, whatever its state.
func (t *Txn) RequirePresent(key Key) *Txn {
	t.fail(key.check(t.store))
	return t.compare(kv.Compare{Key: key.path(), Target: kv.ComparePresent})
}

// RequireLeader makes the commit depend on the election still being held: the fence of work that one replica does.
func (t *Txn) RequireLeader(l *Leadership) *Txn {
	return t.compare(kv.Compare{Key: l.key, Target: kv.CompareCreate, Revision: l.created})
}

// Create writes an object that must not exist.
func (t *Txn) Create(obj Object, kind string, opts ...WriteOption) *Txn {
	key := KeyOf(kind, obj)
	return t.RequireAbsent(key).put(key, obj, opts)
}

// Update replaces the object of a record, which must be as it was read. The object must keep its name.
func (t *Txn) Update(rec Record, obj Object, opts ...WriteOption) *Txn {
	if got := KeyOf(rec.Key.Kind, obj); got != rec.Key {
		t.fail(errs.New(errs.Internal, "store: update of %s with the object %s", rec.Key, got))
	}
	return t.RequireUnchanged(rec).put(rec.Key, obj, opts)
}

// Delete removes the object of a record, which must be as it was read, and leaves a tombstone for an hour.
func (t *Txn) Delete(rec Record, opts ...WriteOption) *Txn {
	uid := rec.Object.GetMetadata().GetUid()
	t.RequireUnchanged(rec)
	t.add(write{op: kv.Op{Action: kv.Delete, Key: rec.Key.path()}})
	return t.add(write{
		op:     kv.Op{Action: kv.Put, Key: rec.Key.tombstone()},
		encode: func(m mark) ([]byte, error) { return encodeTombstone(uid, m) },
		mark:   t.marked(opts), grave: true,
	})
}

// PutBlob writes a small typed value, which must still have the revision; 0 is absence.
func (t *Txn) PutBlob(path string, msg proto.Message, rev Revision, opts ...WriteOption) *Txn {
	key, err := blobKey(path)
	t.fail(err)
	t.compare(kv.Compare{Key: key, Target: kv.CompareMod, Revision: int64(rev)})
	return t.putMessage(key, msg, 0, opts)
}

// KeyOf is the key of an object of a kind.
func KeyOf(kind string, obj Object) Key {
	meta := obj.GetMetadata()
	return Key{Kind: kind, Namespace: meta.GetNamespace(), Name: meta.GetName()}
}

// Empty says that there is nothing to commit.
func (t *Txn) Empty() bool { return len(t.writes) == 0 }

// Size is what the transaction takes of MaxOps and MaxBytes.
func (t *Txn) Size() (ops, size int) {
	return max(len(t.compares), len(t.writes)), t.size
}

func (t *Txn) put(key Key, obj Object, opts []WriteOption) *Txn {
	t.fail(key.check(t.store))
	stored := proto.Clone(obj).(Object)
	if meta := stored.GetMetadata(); meta != nil {
		meta.ResourceVersion = ""
	}
	t.size += proto.Size(stored)
	w := write{
		op:     kv.Op{Action: kv.Put, Key: key.path()},
		encode: func(m mark) ([]byte, error) { return encode(key.Kind, stored, m) },
		mark:   t.marked(opts),
	}
	if key.Kind == SecretKind {
		w.encode = func(m mark) ([]byte, error) { return t.store.encodeSealed(key, stored, m) }
		t.markSealed()
	}
	return t.add(w)
}

// markSealed makes the revision known to those who do not see Secrets. A deletion's tombstone does so by itself.
func (t *Txn) markSealed() {
	key := objectRoot + sealedMark
	if _, done := t.keys[key]; !done {
		t.add(write{
			op:     kv.Op{Action: kv.Put, Key: key},
			encode: func(m mark) ([]byte, error) { return encode(sealedMark, &storev1.Envelope{}, m) },
			mark:   mark{id: t.id},
		})
	}
}

// putMessage writes a message below /podwire/x/.
func (t *Txn) putMessage(key string, msg proto.Message, lease int64, opts []WriteOption) *Txn {
	stored := proto.Clone(msg)
	t.size += proto.Size(stored)
	return t.add(write{
		op:     kv.Op{Action: kv.Put, Key: key, Lease: lease},
		encode: func(m mark) ([]byte, error) { return encode(messageKind(stored), stored, m) },
		mark:   t.marked(opts),
	})
}

func (t *Txn) remove(key string) *Txn {
	return t.add(write{op: kv.Op{Action: kv.Delete, Key: key}})
}

func (t *Txn) marked(opts []WriteOption) mark {
	m := mark{id: t.id}
	for _, o := range opts {
		o(&m)
	}
	return m
}

func (t *Txn) compare(c kv.Compare) *Txn {
	t.compares = append(t.compares, c)
	t.size += len(c.Key) + opOverhead
	return t
}

func (t *Txn) add(w write) *Txn {
	if _, twice := t.keys[w.op.Key]; twice {
		t.fail(errs.New(errs.Internal, "store: transaction writes %s twice", w.op.Key))
	}
	t.keys[w.op.Key] = len(t.writes)
	t.writes = append(t.writes, w)
	t.size += len(w.op.Key) + opOverhead + len(w.mark.cause.Traceparent)
	return t
}

func (t *Txn) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

// fenced says that executing the transaction makes executing it again impossible.
func (t *Txn) fenced() bool {
	for _, c := range t.compares {
		if _, written := t.keys[c.Key]; written && c.Target == kv.CompareMod {
			return true
		}
	}
	return false
}

// Commit executes the transaction and returns its revision. Errors: Conflict, from which errors.As finds the
// *FailedCompare; Invalid for a transaction beyond MaxOps or MaxBytes; Exhausted if etcd's quota is used up;
// Unavailable if etcd does not answer, and then errors.Is(err, ErrAmbiguous) says that Commit may be called again to
// learn what became of it.
func (t *Txn) Commit(ctx context.Context) (rev Revision, err error) {
	if err := t.ready(); err != nil {
		return 0, err
	}
	if key, ok := t.subject(); ok {
		var span *telemetry.Span
		ctx, span = telemetry.Start(ctx, "store.commit")
		span.SetObject(key.Kind, key.Namespace, key.Name)
		defer func() {
			span.SetRevision(int64(rev))
			span.End(err)
		}()
	}
	if err := t.begin(ctx); err != nil {
		return 0, err
	}
	req := kv.TxnRequest{Compares: t.compares, Ops: make([]kv.Op, len(t.writes))}
	traceparent := telemetry.Traceparent(ctx)
	for i, w := range t.writes {
		req.Ops[i] = w.op
		if w.encode == nil {
			continue
		}
		if w.mark.traceparent == "" {
			w.mark.traceparent = traceparent
		}
		if req.Ops[i].Value, err = w.encode(w.mark); err != nil {
			return 0, err
		}
	}
	return t.attempts(ctx, req)
}

// subject is the first object that the transaction writes. Only writes of objects are hops of a trace: registrations
// and watermarks are written all the time and would push every change out of the ring.
func (t *Txn) subject() (Key, bool) {
	for _, w := range t.writes {
		if key, ok := parsePath(w.op.Key); ok {
			return key, true
		}
	}
	return Key{}, false
}

// ready checks what can be checked without etcd.
func (t *Txn) ready() error {
	if t.err != nil {
		return t.err
	}
	if ops, size := t.Size(); ops > MaxOps || size > MaxBytes {
		return errs.New(errs.Invalid, "store: transaction of %d operations and %d bytes exceeds the limit of %d operations and %d bytes: split it",
			ops, size, MaxOps, MaxBytes)
	}
	return nil
}

// begin notes where in history to look for the transaction, should its answer be lost.
func (t *Txn) begin(ctx context.Context) error {
	if t.since != 0 {
		return nil
	}
	if t.since = t.store.seen.Load(); t.since != 0 {
		return nil
	}
	st, err := t.store.State(ctx)
	if err != nil {
		return err
	}
	t.since = int64(st.Revision)
	return nil
}

// retryPauses are the pauses after which a transaction whose answer was lost is sent again.
func retryPauses() []time.Duration {
	return []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 800 * time.Millisecond, 2 * time.Second}
}

func (t *Txn) attempts(ctx context.Context, req kv.TxnRequest) (Revision, error) {
	pauses := retryPauses()
	for try, regranted := 0, false; ; {
		if err := t.bury(ctx, req.Ops); err != nil {
			return 0, t.doubt(err)
		}
		resp, err := t.store.engine.Txn(ctx, req)
		switch {
		case err == nil:
			t.store.note(resp.Header)
			if resp.Succeeded {
				return Revision(resp.Header.Revision), nil
			}
			return t.refused(ctx, req, resp)
		case errors.Is(err, kv.ErrLeaseNotFound) && !regranted && t.burials() > 0:
			regranted = true
			t.store.forgetGrave()
			continue
		case !errors.Is(err, kv.ErrUnavailable):
			return 0, wrap(err, "store: commit")
		}
		t.unsure = true
		if !t.fenced() || try == len(pauses) || pause(ctx, pauses[try]) != nil {
			return 0, t.doubt(err)
		}
		try++
	}
}

// doubt is the error of a commit that gave up.
func (t *Txn) doubt(err error) error {
	if t.unsure {
		err = errors.Join(ErrAmbiguous, err)
	}
	return wrap(err, "store: commit")
}

// refused tells a lost race from an attempt of our own whose answer was lost.
func (t *Txn) refused(ctx context.Context, req kv.TxnRequest, resp kv.TxnResponse) (Revision, error) {
	if t.unsure {
		rev, err := t.find(ctx, resp.Header.Revision)
		if err != nil {
			return 0, t.doubt(err)
		}
		t.unsure = false
		if rev != 0 {
			return rev, nil
		}
	}
	for i, c := range req.Compares {
		if f := failed(c, resp.Current[i]); f != nil {
			return 0, errs.WrapAs(errs.Conflict, f, "store: commit")
		}
	}
	return 0, errs.New(errs.Internal, "store: etcd refused a transaction all of whose conditions hold at revision %d", resp.Header.Revision)
}

// failed is the condition that does not hold, nil if it does.
func failed(c kv.Compare, have *kv.KeyValue) *FailedCompare {
	f := &FailedCompare{Path: c.Key, Want: Revision(c.Revision)}
	f.Object, _ = parsePath(c.Key)
	if have != nil {
		f.Have = Revision(have.ModRevision)
	}
	ok := false
	switch c.Target {
	case kv.CompareMod:
		ok = f.Have == f.Want
	case kv.CompareCreate:
		if have != nil {
			f.Have = Revision(have.CreateRevision)
		}
		ok = f.Have == f.Want
	case kv.ComparePresent:
		f.Want = Present
		ok = have != nil
	}
	if ok {
		return nil
	}
	return f
}

// find replays the history of one written key and returns the revision at which this transaction wrote it, 0 if it
// never did up to and including until.
func (t *Txn) find(ctx context.Context, until int64) (Revision, error) {
	key := ""
	for _, w := range t.writes {
		if w.op.Action == kv.Put {
			key = w.op.Key
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Never after the newest revision: etcd reports no progress to a watch that begins there.
	w, err := t.store.engine.Watch(ctx, kv.WatchRequest{Key: key, From: min(t.since, until)})
	if err != nil {
		return 0, err
	}
	defer w.Close()
	stop := (&asker{watcher: w}).start(ctx)
	defer stop()
	for {
		resp, err := w.Next()
		if err != nil {
			return 0, err
		}
		for _, ev := range resp.Events {
			if ev.Action == kv.Put && bytes.Equal(idOf(ev.KV), t.id) {
				return Revision(ev.KV.ModRevision), nil
			}
		}
		if resp.Progress && resp.Header.Revision >= until {
			return 0, nil
		}
	}
}

// idOf is the id of the transaction that wrote the value.
func idOf(pair kv.KeyValue) []byte {
	if len(pair.Key) > len(tombstoneRoot) && pair.Key[:len(tombstoneRoot)] == tombstoneRoot {
		var grave storev1.Tombstone
		if proto.Unmarshal(pair.Value, &grave) != nil {
			return nil
		}
		return grave.GetWriteId()
	}
	var env storev1.Envelope
	if proto.Unmarshal(pair.Value, &env) != nil {
		return nil
	}
	return env.GetWriteId()
}

func messageKind(msg proto.Message) string { return string(msg.ProtoReflect().Descriptor().FullName()) }

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
