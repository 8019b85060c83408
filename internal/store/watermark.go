package store

import (
	"context"
	"errors"
	"iter"
	"strings"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// Watermark says how far the subscribers of a service have come.
type Watermark struct {
	Service string
	// Replica is empty in the watermark of the whole service, and names the replica in the receipt of one replica.
	Replica string
	// Revision is the newest revision at which every subscriber holds all that was planned for it.
	Revision Revision
	// Laggards are the subscribers that hold it back.
	Laggards []Laggard
}

// Laggard is one subscriber that does not hold everything yet.
type Laggard struct {
	// Node is the subscriber's node.
	Node string
	// Revision is the newest revision that it holds completely.
	Revision Revision
	// Refused is the revision that it refused, 0 for none, and Reason why.
	Refused Revision
	Reason  string
	// Through is the newest revision up to which the refusal speaks: 0 where nothing was refused, and below what is on its way
	// to the subscriber, which may mend it.
	Through Revision
}

// RaiseWatermark writes a service's watermark, which never goes back: a lower revision than the one held writes nothing.
// It is written by the service's elected replica, and only while the election holds. It returns what is held now.
// Errors: Conflict when the election is lost.
func (s *Store) RaiseWatermark(ctx context.Context, leader *Leadership, w Watermark) (Watermark, error) {
	if err := checkSegments(w.Service); err != nil {
		return Watermark{}, err
	}
	w.Replica = ""
	return s.raise(ctx, watermarkRoot+w.Service, w, 0, leader)
}

// RaiseReceipt writes what the subscribers of one replica hold, under the replica's session, and never lowers it. It
// returns what is held now. Watermark.Service and Watermark.Replica name the key.
func (l *Session) RaiseReceipt(ctx context.Context, w Watermark) (Watermark, error) {
	if err := checkSegments(w.Service, w.Replica); err != nil {
		return Watermark{}, err
	}
	return l.store.raise(ctx, receiptRoot+w.Service+"/"+w.Replica, w, l.lease, nil)
}

// raise compares and swaps until the key holds w or something newer.
func (s *Store) raise(ctx context.Context, key string, w Watermark, lease int64, leader *Leadership) (Watermark, error) {
	msg := encodeWatermark(w)
	for {
		held, pair, err := s.readWatermark(ctx, key)
		if err != nil {
			return Watermark{}, err
		}
		if pair != nil {
			same := proto.Equal(encodeWatermark(held), msg) && pair.Lease == lease
			if held.Revision > w.Revision || same {
				return held, nil
			}
		}
		c := kv.Compare{Key: key, Target: kv.CompareMod}
		if pair != nil {
			c.Revision = pair.ModRevision
		}
		t := s.Txn().compare(c).putMessage(key, msg, lease, nil)
		if leader != nil {
			t.RequireLeader(leader)
		}
		_, err = t.Commit(ctx)
		if err == nil {
			return w, nil
		}
		var f *FailedCompare
		if !errors.As(err, &f) || f.Path != key {
			return Watermark{}, errs.Wrap(err, "store: raise %s to %d", key, w.Revision)
		}
	}
}

func (s *Store) readWatermark(ctx context.Context, key string) (Watermark, *kv.KeyValue, error) {
	resp, err := s.engine.Range(ctx, kv.RangeRequest{Key: key})
	if err != nil {
		return Watermark{}, nil, wrap(err, "store: read %s", key)
	}
	s.note(resp.Header)
	if len(resp.KVs) == 0 {
		return Watermark{}, nil, nil
	}
	w, err := decodeWatermark(resp.KVs[0])
	return w, &resp.KVs[0], err
}

// GetWatermark reads a service's watermark; NotFound if it has none yet.
func (s *Store) GetWatermark(ctx context.Context, service string) (Watermark, error) {
	if err := checkSegments(service); err != nil {
		return Watermark{}, err
	}
	w, pair, err := s.readWatermark(ctx, watermarkRoot+service)
	if err == nil && pair == nil {
		err = errs.New(errs.NotFound, "store: service %s has no watermark yet", service)
	}
	return w, err
}

// ListWatermarks lists the watermarks of all services, by name.
func (s *Store) ListWatermarks(ctx context.Context) ([]Watermark, error) {
	list, _, err := listAll(ctx, s, watermarkRoot, decodeWatermark)
	return list, err
}

// WatchWatermarks yields the watermarks of all services, by name, now and after every change, until ctx ends. An outage
// of etcd is waited out. An error is the last thing yielded.
func (s *Store) WatchWatermarks(ctx context.Context) iter.Seq2[[]Watermark, error] {
	return watchAll(ctx, s, watermarkRoot, decodeWatermark)
}

// WatchReceipts is WatchWatermarks for the receipts of one service's replicas, by name.
func (s *Store) WatchReceipts(ctx context.Context, service string) iter.Seq2[[]Watermark, error] {
	if err := checkSegments(service); err != nil {
		return func(yield func([]Watermark, error) bool) { yield(nil, err) }
	}
	return watchAll(ctx, s, receiptRoot+service+"/", decodeWatermark)
}

// Required reads the services whose watermarks hold back the reuse of addresses and the removal of namespaces. NotFound
// means that nobody has said yet, and then everything is to be held back.
func (s *Store) Required(ctx context.Context) ([]string, error) {
	var r storev1.Required
	_, err := s.getMessage(ctx, requiredKey, &r)
	return r.GetServices(), err
}

// WatchRequired yields the list that Required reads, now and after every change, until ctx ends; nil means that nobody
// has said yet. An outage of etcd is waited out. An error is the last thing yielded.
func (s *Store) WatchRequired(ctx context.Context) iter.Seq2[[]string, error] {
	lists := watchAll(ctx, s, requiredKey, func(pair kv.KeyValue) ([]string, error) {
		r := &storev1.Required{}
		_, err := open(pair, messageKind(r), r)
		return append([]string{}, r.GetServices()...), err
	})
	return func(yield func([]string, error) bool) {
		for list, err := range lists {
			var services []string
			if len(list) > 0 {
				services = list[0]
			}
			if !yield(services, err) {
				return
			}
		}
	}
}

// SetRequired writes the list that Required reads. It is `cluster`'s to write, from its configuration.
func (s *Store) SetRequired(ctx context.Context, services []string) error {
	for {
		var held storev1.Required
		rev, err := s.getMessage(ctx, requiredKey, &held)
		if err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
		want := &storev1.Required{Services: services}
		if err == nil && proto.Equal(&held, want) {
			return nil
		}
		t := s.Txn().compare(kv.Compare{Key: requiredKey, Target: kv.CompareMod, Revision: int64(rev)})
		_, err = t.putMessage(requiredKey, want, 0, nil).Commit(ctx)
		if !errs.Is(err, errs.Conflict) {
			return errs.Wrap(err, "store: set the required services")
		}
	}
}

func encodeWatermark(w Watermark) *storev1.Watermark {
	msg := &storev1.Watermark{Revision: int64(w.Revision)}
	for _, l := range w.Laggards {
		msg.Laggards = append(msg.Laggards, &storev1.Laggard{
			Node: l.Node, Revision: int64(l.Revision), RefusedRevision: int64(l.Refused), Reason: l.Reason,
			RefusedThrough: int64(l.Through),
		})
	}
	return msg
}

func decodeWatermark(pair kv.KeyValue) (Watermark, error) {
	var msg storev1.Watermark
	if _, err := open(pair, messageKind(&msg), &msg); err != nil {
		return Watermark{}, err
	}
	w := Watermark{Revision: Revision(msg.GetRevision())}
	if tail, ok := strings.CutPrefix(pair.Key, receiptRoot); ok {
		w.Service, w.Replica, _ = strings.Cut(tail, "/")
	} else {
		w.Service = strings.TrimPrefix(pair.Key, watermarkRoot)
	}
	for _, l := range msg.GetLaggards() {
		w.Laggards = append(w.Laggards, Laggard{
			Node: l.GetNode(), Revision: Revision(l.GetRevision()),
			Refused: Revision(l.GetRefusedRevision()), Reason: l.GetReason(),
			Through: Revision(l.GetRefusedThrough()),
		})
	}
	return w, nil
}
