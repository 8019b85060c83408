package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store/kv"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// historyKey is below objectRoot, so that the World's watch tells of each mark in its place among the revisions. It is after
// tombstoneRoot, so no snapshot takes it for an object.
const historyKey = objectRoot + "~history"

// History reads the marks of the store as of a revision; 0 is the newest.
func (s *Store) History(ctx context.Context, at Revision) (nodestate.History, error) {
	resp, err := s.engine.Range(ctx, kv.RangeRequest{Key: historyKey, Revision: int64(at)})
	if err != nil {
		return nil, wrap(err, "store: read %s", historyKey)
	}
	s.note(resp.Header)
	if len(resp.KVs) == 0 {
		return nodestate.History{}, nil
	}
	return historyOf(resp.KVs[0])
}

// historyOf decodes the key's value.
func historyOf(pair kv.KeyValue) (nodestate.History, error) {
	var msg storev1.History
	if _, err := open(pair, messageKind(&msg), &msg); err != nil {
		return nil, err
	}
	out := make(nodestate.History, len(msg.GetMarks()))
	for i, m := range msg.GetMarks() {
		out[i] = nodestate.Mark{ID: m.GetId(), Revision: m.GetRevision()}
	}
	if n := len(out); n > 0 {
		out[n-1].Revision = pair.ModRevision
	}
	return out, nil
}

// MarkHistory adds a mark: what is written from here on belongs to a history that begins with it, should what was before
// have been undone. Whoever begins to follow the store calls it first.
func (s *Store) MarkHistory(ctx context.Context) error {
	for {
		before, err := s.History(ctx, 0)
		if err != nil {
			return err
		}
		last := int64(0)
		if n := len(before); n > 0 {
			last = before[n-1].Revision
		}
		next := &storev1.History{}
		for _, m := range before[max(0, len(before)-nodestate.MaxMarks+1):] {
			next.Marks = append(next.Marks, &storev1.History_Mark{Id: m.ID, Revision: m.Revision})
		}
		next.Marks = append(next.Marks, &storev1.History_Mark{Id: newMark()})
		txn := s.Txn().compare(kv.Compare{Key: historyKey, Target: kv.CompareMod, Revision: last})
		_, err = txn.putMessage(historyKey, next, 0, nil).Commit(ctx)
		if !errs.Is(err, errs.Conflict) {
			return errs.Wrap(err, "store: mark the history")
		}
	}
}

// newMark is a random id.
func newMark() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails: crypto/rand ends the process rather than return an error
		if id := binary.LittleEndian.Uint64(b[:]); id != 0 {
			return id
		}
	}
}
