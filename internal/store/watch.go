package store

import (
	"context"
	"errors"
	"iter"
	"strings"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store/kv"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// EventType says what happened to an object.
type EventType int

// Types of an Event.
const (
	// Put is an object that was created or changed.
	Put EventType = iota + 1
	// Deleted is an object that is gone.
	Deleted
)

// String is the type in lower case.
func (t EventType) String() string {
	switch t {
	case Put:
		return "put"
	case Deleted:
		return "deleted"
	default:
		return "unknown"
	}
}

// Event is one change of one object.
type Event struct {
	Type EventType
	// Record is the object after the change. Of a Deleted object it carries the deletion's Revision, Cause and
	// Traceparent, and Object is its last state, or nil if etcd had compacted that when the event was read. A sealed
	// object that was put and does not open is Deleted, with a nil Object: see ErrSealed.
	Record
	// UID is metadata.uid of the object. Of a Deleted one it comes from the tombstone, so it is there without Object.
	UID string

	prev  *kv.KeyValue
	store *Store
}

// Previous is the object before a Put; ok is false if it did not exist or its old value was compacted.
func (e Event) Previous() (rec Record, ok bool, err error) {
	if e.Type != Put || e.prev == nil {
		return Record{}, false, nil
	}
	rec, ok, err = e.store.record(*e.prev)
	if errors.Is(err, ErrSealed) {
		return Record{}, false, nil
	}
	return rec, ok, err
}

// Batch is everything that one transaction did to the World.
type Batch struct {
	Revision Revision
	// Events are in the order of etcd; empty in a Batch that only says that everything up to Revision was delivered.
	Events []Event
	// History are the marks of the store, where this revision added one; else nil.
	History nodestate.History
	// idle says that etcd only told how far it is: nothing below the watched root was written at Revision.
	idle bool
}

// WatchQuery selects what a watch follows.
type WatchQuery struct {
	// Kind is the kind to follow; empty follows the whole World. Only the World's watch joins deletions with their
	// tombstones: without it a Deleted event has no Cause and no Traceparent, and its UID is that of the last state.
	Kind string
	// Namespace narrows Kind; empty follows all namespaces.
	Namespace string
	// Name narrows Namespace (or the Kind, if cluster-scoped) to one object; empty follows all.
	Name string
	// From is the first revision delivered.
	From Revision
}

// rangeOf is the range of keys that the query selects.
func (s *Store) rangeOf(q WatchQuery) (key, end string) {
	prefix := root(q.Kind)
	switch {
	case q.Kind == "":
		return objectRoot, s.worldEnd()
	case q.Name != "":
		return Key{Kind: q.Kind, Namespace: q.Namespace, Name: q.Name}.path(), ""
	case q.Namespace != "":
		prefix += q.Kind + "/" + q.Namespace + "/"
	default:
		prefix += q.Kind + "/"
	}
	return prefix, kv.PrefixEnd(prefix)
}

// Watch follows one connection's worth of changes, one Batch per revision, in order, and ends with the error that ended
// it: ErrCompacted if From is no longer kept, Unavailable if etcd went away, and then the caller watches again from
// the last Batch's revision + 1. It does not notice a store that goes backwards between two watches; Follower does.
func (s *Store) Watch(ctx context.Context, q WatchQuery) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		key, end := s.rangeOf(q)
		w, err := s.engine.Watch(ctx, kv.WatchRequest{Key: key, End: end, From: int64(q.From)})
		if err != nil {
			yield(Batch{}, wrap(err, "store: watch from revision %d", q.From))
			return
		}
		defer w.Close()
		last := q.From - 1
		for {
			resp, err := w.Next()
			if err != nil {
				yield(Batch{}, wrap(err, "store: watch at revision %d", last))
				return
			}
			s.note(resp.Header)
			batches, err := s.batches(resp)
			if err != nil {
				yield(Batch{}, err)
				return
			}
			for _, b := range batches {
				if b.Revision <= last {
					continue
				}
				last = b.Revision
				if !yield(b, nil) {
					return
				}
			}
		}
	}
}

// batches groups a piece of history by revision and joins deletions with their tombstones. A revision that did nothing
// to the World (a tombstone expired, a kind that is not ours) yields an empty Batch.
func (s *Store) batches(resp kv.WatchResponse) ([]Batch, error) {
	var out []Batch
	graves := make(map[Key]*storev1.Tombstone)
	flush := func() {
		if len(out) > 0 {
			engrave(out[len(out)-1].Events, graves)
		}
		clear(graves)
	}
	for _, ev := range resp.Events {
		rev := Revision(ev.KV.ModRevision)
		if len(out) == 0 || out[len(out)-1].Revision != rev {
			flush()
			out = append(out, Batch{Revision: rev})
		}
		if tail, ok := strings.CutPrefix(ev.KV.Key, tombstoneRoot); ok {
			if err := collect(graves, tail, ev); err != nil {
				return nil, err
			}
			continue
		}
		if ev.KV.Key == objectRoot+sealedMark {
			continue
		}
		if ev.KV.Key == historyKey {
			if ev.Action == kv.Put {
				var err error
				if out[len(out)-1].History, err = historyOf(ev.KV); err != nil {
					return nil, err
				}
			}
			continue
		}
		event, known, err := s.event(ev)
		if err != nil {
			return nil, err
		}
		if known {
			b := &out[len(out)-1]
			b.Events = append(b.Events, event)
		}
	}
	flush()
	if at := Revision(resp.Header.Revision); resp.Progress && (len(out) == 0 || out[len(out)-1].Revision < at) {
		out = append(out, Batch{Revision: at, idle: true})
	}
	return out, nil
}

// event decodes one change of an object key.
func (s *Store) event(ev kv.Event) (Event, bool, error) {
	if ev.Action == kv.Put {
		rec, known, err := s.record(ev.KV)
		if s.absent(err) {
			return Event{Type: Deleted, Record: rec, store: s}, true, nil
		}
		return Event{Type: Put, Record: rec, UID: rec.UID(), prev: ev.Prev, store: s}, known, err
	}
	key, ok := parsePath(ev.KV.Key)
	if !ok {
		return Event{}, false, errs.New(errs.Internal, "store: %s is not the key of an object", ev.KV.Key)
	}
	if _, known := s.knows(key.Kind); !known {
		return Event{}, false, nil
	}
	out := Event{Type: Deleted, Record: Record{Key: key, Revision: Revision(ev.KV.ModRevision)}, store: s}
	if ev.Prev == nil {
		return out, true, nil
	}
	last, _, err := s.record(*ev.Prev)
	out.CreateRevision = last.CreateRevision
	switch {
	case errors.Is(err, ErrSealed):
		return out, true, nil
	case err != nil:
		return Event{}, true, err
	}
	out.Object, out.UID = last.Object, last.UID()
	out.Object.GetMetadata().ResourceVersion = formatRevision(out.Revision)
	return out, true, nil
}

// collect keeps a tombstone that was put; one that expired is no event of the World.
func collect(graves map[Key]*storev1.Tombstone, tail string, ev kv.Event) error {
	if ev.Action != kv.Put {
		return nil
	}
	key, ok := parseKey(tail)
	if !ok {
		return errs.New(errs.Internal, "store: %s is not the key of a tombstone", ev.KV.Key)
	}
	var grave storev1.Tombstone
	if err := proto.Unmarshal(ev.KV.Value, &grave); err != nil {
		return errs.WrapAs(errs.Internal, err, "store: tombstone %s at revision %d does not decode", ev.KV.Key, ev.KV.ModRevision)
	}
	graves[key] = &grave
	return nil
}

// engrave gives each deletion what its tombstone says.
func engrave(events []Event, graves map[Key]*storev1.Tombstone) {
	for i := range events {
		grave, ok := graves[events[i].Key]
		if !ok || events[i].Type != Deleted {
			continue
		}
		events[i].UID = grave.GetUid()
		events[i].Cause = causeOf(grave.GetCause())
		events[i].Traceparent = grave.GetTraceparent()
	}
}

// UID is metadata.uid of the object; empty where there is none.
func (r Record) UID() string {
	if r.Object == nil {
		return ""
	}
	return r.Object.GetMetadata().GetUid()
}
