package nodestate

import "sort"

// Mark is put into the store by whoever begins to follow it: a random id, and the revision that wrote it.
type Mark struct {
	// ID is never 0.
	ID uint64
	// Revision is the etcd revision of the mark.
	Revision int64
}

// History tells one history of a store from another that was undone, when the store was restored from a backup: the marks
// of the store, oldest first. A history that was undone and the one that took its place differ in their newest mark at any
// revision that both have written, since the one that took its place begins with a mark of its own (docs/adr/0008).
type History []Mark

// MaxMarks is how many marks a store keeps; older ones are forgotten.
const MaxMarks = 256

// At is the id of the newest mark at a revision: what a version of that revision is called by. 0 where none is known.
func (h History) At(revision int64) uint64 {
	n := sort.Search(len(h), func(i int) bool { return h[i].Revision > revision })
	if n == 0 {
		return 0
	}
	return h[n-1].ID
}

// Has says whether a version that was called by id at the revision may be a point of this history. It may where either is
// not known.
func (h History) Has(revision int64, id uint64) bool {
	at := h.At(revision)
	return at == 0 || id == 0 || at == id
}

// IDs are those of all marks, oldest first.
func (h History) IDs() []uint64 {
	out := make([]uint64, len(h))
	for i, m := range h {
		out[i] = m.ID
	}
	return out
}
