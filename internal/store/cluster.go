package store

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
)

// farewell bounds how long a process that ends takes to revoke its leases; they expire without it.
const farewell = 2 * time.Second

// checkSegments refuses names that would name another key, or none.
func checkSegments(names ...string) error {
	for _, name := range names {
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return errs.New(errs.Invalid, "store: %q cannot be part of a key", name)
		}
	}
	return nil
}

// under is the prefix of one name's keys below a root, of all keys if the name is empty.
func under(root, name string) (string, error) {
	if name == "" {
		return root, nil
	}
	return root + name + "/", checkSegments(name)
}

// listAll reads and decodes everything under a prefix below /podwire/x/, where there is little.
func listAll[T any](ctx context.Context, s *Store, prefix string, decode func(kv.KeyValue) (T, error)) ([]T, Revision, error) {
	resp, err := s.engine.Range(ctx, kv.RangeRequest{Key: prefix, End: kv.PrefixEnd(prefix)})
	if err != nil {
		return nil, 0, wrap(err, "store: list %s", prefix)
	}
	s.note(resp.Header)
	list := make([]T, len(resp.KVs))
	for i, pair := range resp.KVs {
		if list[i], err = decode(pair); err != nil {
			return nil, 0, err
		}
	}
	return list, Revision(resp.Header.Revision), nil
}

// watchAll yields everything under a prefix, in the order of the keys, now and after every change, until ctx ends.
func watchAll[T any](ctx context.Context, s *Store, prefix string, decode func(kv.KeyValue) (T, error)) iter.Seq2[[]T, error] {
	return func(yield func([]T, error) bool) {
		for wait := newBackoff(); ctx.Err() == nil; {
			err := watchOnce(ctx, s, prefix, decode, func(list []T) bool {
				wait = newBackoff()
				return yield(list, nil)
			})
			switch {
			case err == nil || ctx.Err() != nil:
				return
			case errors.Is(err, ErrCompacted):
			case errs.Is(err, errs.Unavailable):
				s.log.Warn("watch broke, trying again", "prefix", prefix, "err", err)
				if wait.pause(ctx) != nil {
					return
				}
			default:
				yield(nil, err)
				return
			}
		}
	}
}

// watchOnce is watchAll on one connection. It returns nil only when yield returned false.
func watchOnce[T any](ctx context.Context, s *Store, prefix string, decode func(kv.KeyValue) (T, error), yield func([]T) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := kv.PrefixEnd(prefix)
	resp, err := s.engine.Range(ctx, kv.RangeRequest{Key: prefix, End: end})
	if err != nil {
		return wrap(err, "store: list %s", prefix)
	}
	s.note(resp.Header)
	values := make(map[string]T)
	for _, pair := range resp.KVs {
		if values[pair.Key], err = decode(pair); err != nil {
			return err
		}
	}
	if !yield(inOrder(values)) {
		return nil
	}
	w, err := s.engine.Watch(ctx, kv.WatchRequest{Key: prefix, End: end, From: resp.Header.Revision + 1})
	if err != nil {
		return wrap(err, "store: watch %s", prefix)
	}
	defer w.Close()
	for {
		piece, err := w.Next()
		if err != nil {
			return wrap(err, "store: watch %s", prefix)
		}
		for _, ev := range piece.Events {
			if ev.Action == kv.Delete {
				delete(values, ev.KV.Key)
			} else if values[ev.KV.Key], err = decode(ev.KV); err != nil {
				return err
			}
		}
		if len(piece.Events) > 0 && !yield(inOrder(values)) {
			return nil
		}
	}
}

func inOrder[T any](values map[string]T) []T {
	list := make([]T, 0, len(values))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		list = append(list, values[key])
	}
	return list
}

// backoff is the growing pause between attempts to reach etcd.
type backoff struct{ next time.Duration }

const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

func newBackoff() *backoff { return &backoff{next: firstPause} }

// pause waits, or returns the context's error.
func (b *backoff) pause(ctx context.Context) error {
	d := b.next
	b.next = min(2*b.next, lastPause)
	return pause(ctx, d)
}
