package push

import (
	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// assembler puts the messages of a snapshot together. What is out of order or does not add up is an error, after which
// it is to be thrown away.
type assembler struct {
	source nodestate.Source
	begin  *pushv1.Begin
	slice  *nodestate.Slice
	// discard counts the rows and forgets them, for a snapshot that will not be taken.
	discard bool
	rows    int64
}

func versionOf(b *pushv1.Begin) nodestate.Version {
	return nodestate.Version{ClusterID: b.GetClusterId(), Revision: b.GetVersion(), History: b.GetHistory()}
}

func (a *assembler) version() nodestate.Version {
	return versionOf(a.begin)
}

func (a *assembler) open(b *pushv1.Begin) error {
	switch {
	case a.begin != nil:
		return errs.New(errs.Invalid, "push: BEGIN of version %d within the snapshot of %d", b.GetVersion(), a.begin.GetVersion())
	case b.GetClusterId() == 0 || b.GetVersion() <= 0:
		return errs.New(errs.Invalid, "push: BEGIN without cluster and version")
	case b.GetRows() < 0:
		return errs.New(errs.Invalid, "push: BEGIN announces %d rows", b.GetRows())
	}
	a.begin, a.slice = b, nodestate.NewSlice()
	return nil
}

func (a *assembler) add(c *pushv1.Chunk) error {
	if a.begin == nil {
		return errs.New(errs.Invalid, "push: CHUNK without BEGIN")
	}
	if a.rows += int64(len(c.GetRows())); a.rows > a.begin.GetRows() {
		return errs.New(errs.Invalid, "push: snapshot of version %d has more than the %d rows announced", a.begin.GetVersion(), a.begin.GetRows())
	}
	if a.discard {
		return nil
	}
	for _, w := range c.GetRows() {
		r, err := rowOf(a.source, w)
		if err != nil {
			return err
		}
		if _, twice := a.slice.Get(nodestate.RefOf(r)); twice {
			return errs.New(errs.Invalid, "push: snapshot of version %d has row %s/%s twice", a.begin.GetVersion(), r.Table(), r.Key())
		}
		a.slice.Upsert(r)
	}
	return nil
}

func (a *assembler) close(e *pushv1.End) error {
	switch {
	case a.begin == nil:
		return errs.New(errs.Invalid, "push: END without BEGIN")
	case e.GetVersion() != a.begin.GetVersion():
		return errs.New(errs.Invalid, "push: END of version %d after BEGIN of %d", e.GetVersion(), a.begin.GetVersion())
	case a.rows != a.begin.GetRows():
		return errs.New(errs.Invalid, "push: snapshot of version %d has %d rows, not the %d announced", e.GetVersion(), a.rows, a.begin.GetRows())
	case !a.discard && !digestsOf(a.source, a.slice).agree(a.source, e.GetDigests()):
		return errs.New(errs.Invalid, "push: snapshot of version %d does not have the digests that END says", e.GetVersion())
	}
	return nil
}

// applyDelta applies a DELTA in place and gives what undoes it. Where the digests do not agree afterwards, it leaves the
// slice as it was.
func applyDelta(source nodestate.Source, s *nodestate.Slice, m *pushv1.Delta) (d, back nodestate.Delta, err error) {
	if d, err = deltaFromProto(source, m); err != nil {
		return d, back, err
	}
	back = undo(s, d)
	s.Apply(d)
	if !digestsOf(source, s).agree(source, m.GetDigests()) {
		s.Apply(back)
		return d, back, errs.New(errs.Invalid, "push: the slice does not have the digests that the delta to version %d says", m.GetVersion())
	}
	return d, back, nil
}
