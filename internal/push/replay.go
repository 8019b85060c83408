package push

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// replay is the state that a journal's records lead to.
type replay struct {
	source  nodestate.Source
	slice   *nodestate.Slice
	version nodestate.Version
	// frozen is the version that froze the state; zero where nothing did.
	frozen nodestate.Version
	// good is where the last record that counts ends, head where the snapshot does; 0 where there is nothing to keep.
	good, head int64
	problem    string

	// back undoes the last delta, which led from prev; valid while undoable.
	undoable   bool
	back       nodestate.Delta
	prev       nodestate.Version
	prevFrozen nodestate.Version
	deltas     bool // one was read
	pending    *assembler
}

// readJournal reads as far as the records are whole and make sense. Every state that it may stop at is one that the
// node held.
func readJournal(source nodestate.Source, data []byte) replay {
	p := replay{source: source, slice: nodestate.NewSlice()}
	if len(data) == 0 {
		return p
	}
	rest, ok := cutHeader(source, data)
	if !ok {
		p.problem = "the file is no journal of this source and format; it is replaced"
		return p
	}
	at := int64(len(data) - len(rest))
	p.good, p.head = at, at
	for len(rest) > 0 {
		kind, body, size, ok := nextRecord(rest)
		if !ok {
			p.problem = fmt.Sprintf("the record at byte %d is torn; what follows is not used", at)
			return p
		}
		if err := p.take(kind, body); err != nil {
			p.problem = fmt.Sprintf("the record at byte %d: %v; it and what follows are not used", at, err)
			return p
		}
		at += int64(size)
		rest = rest[size:]
		if p.pending != nil {
			continue // a snapshot counts when it is complete
		}
		p.good = at
		if !p.deltas {
			p.head = at
		}
	}
	if p.pending != nil {
		p.problem = "the snapshot is not complete"
	}
	return p
}

func (p *replay) take(kind byte, body []byte) error {
	switch kind {
	case recordResponse, recordFrozen:
		var m pushv1.SubscribeResponse
		if err := proto.Unmarshal(body, &m); err != nil {
			return err
		}
		if kind == recordFrozen {
			p.frozen = versionOf(m.GetBegin())
			return nil
		}
		return p.response(&m)
	case recordRollback:
		var m pushv1.SubscribeRequest
		if err := proto.Unmarshal(body, &m); err != nil {
			return err
		}
		return p.rollback(m.GetAck())
	}
	return errs.New(errs.Invalid, "kind %q is not known", kind)
}

func (p *replay) response(m *pushv1.SubscribeResponse) error {
	switch v := m.GetMessage().(type) {
	case *pushv1.SubscribeResponse_Begin:
		if p.version != (nodestate.Version{}) {
			return errs.New(errs.Invalid, "a snapshot after the first record")
		}
		p.pending = &assembler{source: p.source}
		return p.pending.open(v.Begin)
	case *pushv1.SubscribeResponse_Chunk:
		if p.pending == nil {
			return errs.New(errs.Invalid, "CHUNK without BEGIN")
		}
		return p.pending.add(v.Chunk)
	case *pushv1.SubscribeResponse_End:
		if p.pending == nil {
			return errs.New(errs.Invalid, "END without BEGIN")
		}
		if err := p.pending.close(v.End); err != nil {
			return err
		}
		p.slice, p.version, p.pending = p.pending.slice, p.pending.version(), nil
		return nil
	case *pushv1.SubscribeResponse_Delta:
		return p.delta(v.Delta)
	}
	return errs.New(errs.Invalid, "a message that a journal does not have")
}

func (p *replay) delta(m *pushv1.Delta) error {
	if p.pending != nil || m.GetBase() != p.version.Revision || m.GetVersion() <= 0 {
		return errs.New(errs.Invalid, "a delta from version %d to %d after version %d", m.GetBase(), m.GetVersion(), p.version.Revision)
	}
	_, back, err := applyDelta(p.source, p.slice, m)
	if err != nil {
		return err
	}
	p.undoable, p.back, p.prev, p.prevFrozen = true, back, p.version, p.frozen
	p.deltas, p.frozen = true, nodestate.Version{} // only an accepted state follows a frozen one
	p.version = nodestate.Version{ClusterID: m.GetClusterId(), Revision: m.GetVersion(), History: m.GetHistory()}
	return nil
}

func (p *replay) rollback(a *pushv1.Ack) error {
	if !p.undoable || a.GetVersion() != p.version.Revision || a.GetRefused().GetHeldVersion() != p.prev.Revision {
		return errs.New(errs.Invalid, "the rollback of version %d after version %d", a.GetVersion(), p.version.Revision)
	}
	p.slice.Apply(p.back)
	p.version, p.frozen, p.undoable = p.prev, p.prevFrozen, false
	return nil
}
