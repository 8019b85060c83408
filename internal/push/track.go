package push

import (
	"slices"

	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// step is one change of a slice. Steps are never changed after they were made.
type step struct {
	// prev is the World published just before: the old content was true up to here. version is the first with the new.
	prev, version int64
	upserts       []*pushv1.Row
	refs          []nodestate.Ref // of upserts
	removes       []nodestate.Ref
	changes       []Change
	after         digests
}

func (s step) rows() int { return len(s.upserts) + len(s.removes) + 1 }

// track is one slice, and as much of how it came to be as subscribers at older versions need. It is guarded by its
// hub's lock.
type track struct {
	source nodestate.Source
	node   string // empty for a shared slice
	slice  *nodestate.Slice
	// since is the version at which the slice last changed, or the oldest at which it is known to be as it is.
	since int64
	now   digests
	// base is where steps begin, before the digests there.
	base   int64
	before digests
	steps  []step
	rows   int // in steps
	limit  int
	// messages are those built for the present version: one for all subscribers that need the same.
	messages map[messageKey]*message
}

// messageKey is what makes two messages to the present version the same.
type messageKey struct {
	snapshot      bool
	holds, target int64
	content       int64
}

// maxMessages bounds the messages of one version that a track remembers: every subscriber at a version of its own is
// unusual, and costs encoding only.
const maxMessages = 64

func newTrack(source nodestate.Source, node string, version int64, limit int) *track {
	t := &track{source: source, node: node, slice: nodestate.NewSlice(), limit: limit}
	t.restart(version)
	return t
}

// restart forgets the history: the slice is as it is at this version, and nothing is known of before.
func (t *track) restart(version int64) {
	t.since, t.base, t.steps, t.rows = version, version, nil, 0
	t.now = digestsOf(t.source, t.slice)
	t.before = t.now
	t.messages = map[messageKey]*message{}
}

// advance applies a change that the World at version brings.
func (t *track) advance(prev, version int64, enc encodedDelta, changes []Change) {
	t.slice.Apply(enc.delta)
	t.since, t.now = version, digestsOf(t.source, t.slice)
	t.messages = map[messageKey]*message{}
	s := step{prev: prev, version: version, upserts: enc.upserts, removes: enc.delta.Removes, after: t.now}
	for _, r := range enc.delta.Upserts {
		s.refs = append(s.refs, nodestate.RefOf(r))
	}
	for _, c := range changes {
		if t.node == "" || c.Nodes == nil || slices.Contains(c.Nodes, t.node) {
			s.changes = append(s.changes, c)
		}
	}
	t.steps, t.rows = append(t.steps, s), t.rows+s.rows()
	for t.rows > t.limit && len(t.steps) > 0 {
		old := t.steps[0]
		t.steps, t.rows = t.steps[1:], t.rows-old.rows()
		t.base, t.before = old.version, old.after
	}
}

// at is the digests that the slice had at a version, as far as the history knows.
func (t *track) at(version int64) (digests, bool) {
	if version >= t.since {
		return t.now, true
	}
	if version < t.base {
		return nil, false
	}
	ds := t.before
	for _, s := range t.steps {
		if s.version > version {
			break
		}
		ds = s.after
	}
	return ds, true
}

// held is the newest version at which a node with the content of a version held everything planned for it; world is
// the newest version published.
func (t *track) held(content, world int64) int64 {
	if content >= t.since {
		return world
	}
	for _, s := range t.steps {
		if s.version > content {
			if content < t.base {
				return content
			}
			return max(content, s.prev)
		}
	}
	return content
}

// reaches says whether the steps lead from the content of a version to the present one.
func (t *track) reaches(content int64) bool { return content >= t.base }

// message is the way from what a subscriber holds to the present version, whose cluster and marks are the World's; shared by
// all that need the same.
func (t *track) message(cluster uint64, history nodestate.History, key messageKey) *message {
	if m, ok := t.messages[key]; ok {
		return m
	}
	version := nodestate.Version{ClusterID: cluster, Revision: key.target, History: history.At(key.target)}
	m := &message{version: version, snapshot: key.snapshot, since: t.since}
	var steps []step
	for i, s := range t.steps {
		if s.version > key.content {
			steps = slices.Clone(t.steps[i:])
			break
		}
	}
	source, ds := t.source, t.now
	if key.snapshot {
		rows, ancestry := rowsOf(t.source, t.slice), history.IDs()
		m.build = func(emit func(*pushv1.SubscribeResponse) error) error {
			return snapshot(source, m.version, ancestry, rows, ds, changesToProto(changesOf(steps)), emit)
		}
	} else {
		m.build = func(emit func(*pushv1.SubscribeResponse) error) error {
			return emit(deltaOf(coalesce(source, m.version, key.holds, steps, ds)))
		}
	}
	if len(t.messages) >= maxMessages {
		clear(t.messages)
	}
	t.messages[key] = m
	return m
}

func changesOf(steps []step) []Change {
	var out []Change
	for _, s := range steps {
		out = append(out, s.changes...)
	}
	return out
}

// coalesce makes one DELTA of steps: of each row, what the last step that names it says.
func coalesce(source nodestate.Source, v nodestate.Version, base int64, steps []step, ds digests) *pushv1.Delta {
	d := &pushv1.Delta{
		ClusterId: v.ClusterID, Base: base, Version: v.Revision, History: v.History,
		Digests: ds.proto(source), Changes: changesToProto(changesOf(steps)),
	}
	last := map[nodestate.Ref]*pushv1.Row{} // nil: removed
	var order []nodestate.Ref
	put := func(ref nodestate.Ref, r *pushv1.Row) {
		if _, ok := last[ref]; !ok {
			order = append(order, ref)
		}
		last[ref] = r
	}
	for _, s := range steps {
		for _, ref := range s.removes {
			put(ref, nil)
		}
		for i, ref := range s.refs {
			put(ref, s.upserts[i])
		}
	}
	for _, ref := range order {
		if r := last[ref]; r != nil {
			d.Upserts = append(d.Upserts, r)
		} else {
			d.Removes = append(d.Removes, &pushv1.RowKey{Table: string(ref.Table), Key: ref.Key})
		}
	}
	return d
}
