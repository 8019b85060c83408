package nodestate

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sort"
)

// Version names a state of a slice: an etcd revision of one etcd cluster. The zero Version is "holds nothing".
type Version struct {
	// ClusterID is etcd's cluster id.
	ClusterID uint64
	// Revision is the store revision of the World that the slice was planned from.
	Revision int64
	// History is the id of the store's newest mark at that revision; 0 where it is not known. See [History].
	History uint64
}

// String is "{cluster id, revision}", the id in hexadecimal digits as etcdctl prints it.
func (v Version) String() string { return fmt.Sprintf("{%x, %d}", v.ClusterID, v.Revision) }

// Digest identifies the content of one table: the number of its rows and the sum, modulo 2^64 in each of two lanes,
// of the rows' SHA-256 prefixes. A sum, so that one change costs one row; with equal counts and honest writers a
// collision needs about 2^64 rows.
type Digest struct {
	Rows int64
	Sum  [2]uint64
}

// Bytes is the digest's sum in 16 bytes, big endian.
func (d Digest) Bytes() []byte {
	b := binary.BigEndian.AppendUint64(nil, d.Sum[0])
	return binary.BigEndian.AppendUint64(b, d.Sum[1])
}

// add includes (sign 1) or takes out (sign -1, as two's complement) one row.
func (d *Digest) add(r Row, sign int64) {
	h := sha256.Sum256(r.appendTo(nil))
	d.Rows += sign
	d.Sum[0] += uint64(sign) * binary.BigEndian.Uint64(h[0:8])
	d.Sum[1] += uint64(sign) * binary.BigEndian.Uint64(h[8:16])
}

// Equal says whether two rows are the same row with the same content.
func Equal(a, b Row) bool {
	if a.Table() != b.Table() {
		return false
	}
	return string(a.appendTo(nil)) == string(b.appendTo(nil))
}

// Ref names one row.
type Ref struct {
	Table Table
	Key   string
}

// RefOf returns the name of a row.
func RefOf(r Row) Ref { return Ref{r.Table(), r.Key()} }

// Delta is the difference between two slices.
type Delta struct {
	// Upserts are added, or replace the row of the same key.
	Upserts []Row
	// Removes name rows that go away.
	Removes []Ref
}

// Empty says whether the delta changes nothing.
func (d Delta) Empty() bool { return len(d.Upserts) == 0 && len(d.Removes) == 0 }

// Slice is what one source gives one node: a set of rows. The zero value is not usable; see [NewSlice].
// A Slice is not safe for concurrent use.
type Slice struct {
	rows    map[Table]map[string]Row
	digests map[Table]Digest
}

// NewSlice returns a slice of the given rows; a later row replaces an earlier one of the same key.
func NewSlice(rows ...Row) *Slice {
	s := &Slice{rows: map[Table]map[string]Row{}, digests: map[Table]Digest{}}
	for _, r := range rows {
		s.Upsert(r)
	}
	return s
}

// Upsert puts a row in and says whether that changed the slice.
func (s *Slice) Upsert(r Row) bool {
	t, k := r.Table(), r.Key()
	d := s.digests[t]
	if old, ok := s.rows[t][k]; ok {
		if Equal(old, r) {
			return false
		}
		d.add(old, -1)
	}
	d.add(r, 1)
	if s.rows[t] == nil {
		s.rows[t] = map[string]Row{}
	}
	s.rows[t][k], s.digests[t] = r, d
	return true
}

// Remove takes a row out and says whether it was there.
func (s *Slice) Remove(ref Ref) bool {
	old, ok := s.rows[ref.Table][ref.Key]
	if !ok {
		return false
	}
	d := s.digests[ref.Table]
	d.add(old, -1)
	s.digests[ref.Table] = d
	delete(s.rows[ref.Table], ref.Key)
	return true
}

// Apply changes the slice by a delta: removes first, so that a delta may move a key.
func (s *Slice) Apply(d Delta) {
	for _, ref := range d.Removes {
		s.Remove(ref)
	}
	for _, r := range d.Upserts {
		s.Upsert(r)
	}
}

// Get returns a row.
func (s *Slice) Get(ref Ref) (Row, bool) {
	r, ok := s.rows[ref.Table][ref.Key]
	return r, ok
}

// Len is the number of rows in all tables.
func (s *Slice) Len() int {
	n := 0
	for _, t := range s.rows {
		n += len(t)
	}
	return n
}

// Digest returns the digest of one table; the zero Digest where the table is empty.
func (s *Slice) Digest(t Table) Digest { return s.digests[t] }

// Rows returns the rows of a table, sorted by key.
func (s *Slice) Rows(t Table) []Row {
	rows := make([]Row, 0, len(s.rows[t]))
	for _, r := range s.rows[t] {
		rows = append(rows, r)
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].Key() < rows[j].Key() })
	return rows
}

// Each calls fn for every row of a table, in no particular order.
func (s *Slice) Each(t Table, fn func(Row)) {
	for _, r := range s.rows[t] {
		fn(r)
	}
}

// Clone returns a slice that can be changed on its own; rows are shared, since rows never change.
func (s *Slice) Clone() *Slice {
	c := NewSlice()
	for t, rows := range s.rows {
		c.rows[t] = make(map[string]Row, len(rows))
		for k, r := range rows {
			c.rows[t][k] = r
		}
		c.digests[t] = s.digests[t]
	}
	return c
}

// Diff returns what turns `from` into `to`, sorted by table and key.
func Diff(from, to *Slice) Delta {
	var d Delta
	for t, rows := range to.rows {
		if from.digests[t] == to.digests[t] {
			continue
		}
		for k, r := range rows {
			if old, ok := from.rows[t][k]; !ok || !Equal(old, r) {
				d.Upserts = append(d.Upserts, r)
			}
		}
	}
	for t, rows := range from.rows {
		if from.digests[t] == to.digests[t] {
			continue
		}
		for k := range rows {
			if _, ok := to.rows[t][k]; !ok {
				d.Removes = append(d.Removes, Ref{t, k})
			}
		}
	}
	d.sort()
	return d
}

func (d Delta) sort() {
	sort.Slice(d.Upserts, func(i, j int) bool { return less(RefOf(d.Upserts[i]), RefOf(d.Upserts[j])) })
	sort.Slice(d.Removes, func(i, j int) bool { return less(d.Removes[i], d.Removes[j]) })
}

func less(a, b Ref) bool {
	if a.Table != b.Table {
		return a.Table < b.Table
	}
	return a.Key < b.Key
}
