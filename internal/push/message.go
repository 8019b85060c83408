package push

import (
	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

const (
	// MaxMessage bounds a CHUNK or a DELTA on the wire, in bytes. A row that is larger on its own (only a Workload can
	// be: its Pod is bounded by the store's 1.5 MiB) travels alone in its CHUNK.
	MaxMessage = 1 << 20
	// MaxChanges bounds the changes that one message names; older ones are left out first.
	MaxChanges = 1024
	// envelope is room for the fields around a list of rows.
	envelope = 1 << 10
)

// Shared says whether a source's slice is the same for every node.
func Shared(s nodestate.Source) bool {
	return s == nodestate.SourceIPAM || s == nodestate.SourceSvcproxy
}

// digests are the digests of a source's tables, in the order of nodestate.Tables.
type digests []nodestate.Digest

func digestsOf(source nodestate.Source, s *nodestate.Slice) digests {
	tables := nodestate.Tables(source)
	out := make(digests, len(tables))
	for i, t := range tables {
		out[i] = s.Digest(t)
	}
	return out
}

func (d digests) proto(source nodestate.Source) []*pushv1.TableDigest {
	out := make([]*pushv1.TableDigest, len(d))
	for i, t := range nodestate.Tables(source) {
		out[i] = &pushv1.TableDigest{Table: string(t), Rows: d[i].Rows, Digest: d[i].Bytes()}
	}
	return out
}

// agree says whether a message names every table with the digest given here. An unknown table is no agreement: the
// other side knows rows that this one would lose.
func (d digests) agree(source nodestate.Source, wire []*pushv1.TableDigest) bool {
	tables := nodestate.Tables(source)
	if len(wire) != len(tables) {
		return false
	}
	seen := make(map[string]*pushv1.TableDigest, len(wire))
	for _, w := range wire {
		seen[w.GetTable()] = w
	}
	for i, t := range tables {
		w, ok := seen[string(t)]
		if !ok || w.GetRows() != d[i].Rows || string(w.GetDigest()) != string(d[i].Bytes()) {
			return false
		}
	}
	return true
}

func deltaToProto(d nodestate.Delta) ([]*pushv1.Row, []*pushv1.RowKey, error) {
	upserts := make([]*pushv1.Row, len(d.Upserts))
	for i, r := range d.Upserts {
		var err error
		if upserts[i], err = RowToProto(r); err != nil {
			return nil, nil, err
		}
	}
	removes := make([]*pushv1.RowKey, len(d.Removes))
	for i, ref := range d.Removes {
		removes[i] = &pushv1.RowKey{Table: string(ref.Table), Key: ref.Key}
	}
	return upserts, removes, nil
}

func deltaFromProto(source nodestate.Source, m *pushv1.Delta) (nodestate.Delta, error) {
	var d nodestate.Delta
	for _, w := range m.GetUpserts() {
		r, err := rowOf(source, w)
		if err != nil {
			return nodestate.Delta{}, err
		}
		d.Upserts = append(d.Upserts, r)
	}
	for _, k := range m.GetRemoves() {
		ref := nodestate.Ref{Table: nodestate.Table(k.GetTable()), Key: k.GetKey()}
		if !owns(source, ref.Table) {
			return nodestate.Delta{}, errs.New(errs.Invalid, "push: delta of %s removes from table %q, which is not its own", source, ref.Table)
		}
		d.Removes = append(d.Removes, ref)
	}
	return d, nil
}

// rowOf decodes a row and checks that the source may send it.
func rowOf(source nodestate.Source, w *pushv1.Row) (nodestate.Row, error) {
	r, err := RowFromProto(w)
	if err != nil {
		return nil, err
	}
	if !owns(source, r.Table()) {
		return nil, errs.New(errs.Invalid, "push: %s sent a row of table %s, which is not its own", source, r.Table())
	}
	return r, nil
}

func owns(source nodestate.Source, t nodestate.Table) bool {
	for _, own := range nodestate.Tables(source) {
		if own == t {
			return true
		}
	}
	return false
}

func changesToProto(cs []Change) []*pushv1.Change {
	if len(cs) > MaxChanges {
		cs = cs[len(cs)-MaxChanges:]
	}
	out := make([]*pushv1.Change, len(cs))
	for i, c := range cs {
		out[i] = &pushv1.Change{Revision: c.Revision, Traceparent: c.Traceparent, Object: c.Object}
	}
	return out
}

func changesFromProto(cs []*pushv1.Change) []Change {
	out := make([]Change, len(cs))
	for i, c := range cs {
		out[i] = Change{Revision: c.GetRevision(), Object: c.GetObject(), Traceparent: c.GetTraceparent()}
	}
	return out
}

// beginOf is a BEGIN; ancestry are the marks of the store that the version comes from, none where they are not known.
func beginOf(v nodestate.Version, ancestry []uint64, rows int) *pushv1.SubscribeResponse {
	return &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Begin{Begin: &pushv1.Begin{
		ClusterId: v.ClusterID, Version: v.Revision, Rows: int64(rows), History: v.History, Ancestry: ancestry,
	}}}
}

func endOf(v nodestate.Version, ds []*pushv1.TableDigest, changes []*pushv1.Change) *pushv1.SubscribeResponse {
	return &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_End{End: &pushv1.End{
		Version: v.Revision, Digests: ds, Changes: changes,
	}}}
}

func deltaOf(d *pushv1.Delta) *pushv1.SubscribeResponse {
	return &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Delta{Delta: d}}
}

func reconnectOf(reason string) *pushv1.SubscribeResponse {
	return &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Reconnect{Reconnect: &pushv1.Reconnect{Reason: reason}}}
}

// chunker fills CHUNKs of at most MaxMessage bytes and gives each full one to emit.
type chunker struct {
	emit func(*pushv1.SubscribeResponse) error
	rows []*pushv1.Row
	size int
}

func (c *chunker) add(r nodestate.Row) error {
	w, err := RowToProto(r)
	if err != nil {
		return err
	}
	size := proto.Size(w) + 6 // tag and the longest length of a row below 2 GiB
	if c.size+size > MaxMessage-envelope && len(c.rows) > 0 {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.rows, c.size = append(c.rows, w), c.size+size
	return nil
}

func (c *chunker) flush() error {
	if len(c.rows) == 0 {
		return nil
	}
	m := &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Chunk{Chunk: &pushv1.Chunk{Rows: c.rows}}}
	c.rows, c.size = nil, 0
	return c.emit(m)
}

// snapshot emits BEGIN, CHUNKs and END.
func snapshot(source nodestate.Source, v nodestate.Version, ancestry []uint64, rows []nodestate.Row, ds digests, changes []*pushv1.Change,
	emit func(*pushv1.SubscribeResponse) error) error {
	if err := emit(beginOf(v, ancestry, len(rows))); err != nil {
		return err
	}
	c := &chunker{emit: emit}
	for _, r := range rows {
		if err := c.add(r); err != nil {
			return err
		}
	}
	if err := c.flush(); err != nil {
		return err
	}
	return emit(endOf(v, ds.proto(source), changes))
}

// rowsOf collects a slice's rows, table by table.
func rowsOf(source nodestate.Source, s *nodestate.Slice) []nodestate.Row {
	rows := make([]nodestate.Row, 0, s.Len())
	for _, t := range nodestate.Tables(source) {
		s.Each(t, func(r nodestate.Row) { rows = append(rows, r) })
	}
	return rows
}

// undo gives what turns the slice, after it took d, back into what it is now.
func undo(s *nodestate.Slice, d nodestate.Delta) nodestate.Delta {
	var back nodestate.Delta
	seen := make(map[nodestate.Ref]bool, len(d.Upserts)+len(d.Removes))
	note := func(ref nodestate.Ref) {
		if seen[ref] {
			return
		}
		seen[ref] = true
		if old, ok := s.Get(ref); ok {
			back.Upserts = append(back.Upserts, old)
		} else {
			back.Removes = append(back.Removes, ref)
		}
	}
	for _, ref := range d.Removes {
		note(ref)
	}
	for _, r := range d.Upserts {
		note(nodestate.RefOf(r))
	}
	return back
}
