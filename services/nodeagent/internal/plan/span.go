package plan

import (
	"net/netip"
	"sort"
)

// span is an inclusive range of field values, compared as bytes (big endian, one width).
type span struct{ low, high Field }

func (s span) key() Key { return Range(s.low, s.high) }

func (s span) covers(o span) bool { return s.low <= o.low && o.high <= s.high }

func prefixSpan(p netip.Prefix) span {
	p = p.Masked()
	a := p.Addr()
	bits := p.Bits()
	if a.Is4In6() {
		a, bits = a.Unmap(), max(bits-96, 0)
	}
	high := a.AsSlice()
	for i := range high {
		if n := bits - 8*i; n <= 0 {
			high[i] = 0xff
		} else if n < 8 {
			high[i] |= 0xff >> n
		}
	}
	return span{Addr(a), Field(high)}
}

// after is the value that follows; false after the last one.
func (f Field) after() (Field, bool) {
	b := []byte(f)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return Field(b), true
		}
	}
	return "", false
}

// before is the value before; f must not be the first one.
func (f Field) before() Field {
	b := []byte(f)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]--; b[i] != 0xff {
			break
		}
	}
	return Field(b)
}

// union joins spans that overlap or touch.
func union(list []span) []span {
	list = append([]span(nil), list...)
	sort.Slice(list, func(i, j int) bool { return list[i].low < list[j].low })
	var out []span
	for _, s := range list {
		if n := len(out); n > 0 {
			next, more := out[n-1].high.after()
			if !more || s.low <= next {
				out[n-1].high = max(out[n-1].high, s.high)
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// atoms cuts spans of one width into the fewest spans that do not overlap and that each lie wholly inside or wholly
// outside of every given one; what no span covers is in no atom.
func atoms(list []span) []span {
	cuts := map[Field]bool{}
	for _, s := range list {
		cuts[s.low] = true
		if next, ok := s.high.after(); ok {
			cuts[next] = true
		}
	}
	starts := make([]Field, 0, len(cuts))
	for f := range cuts {
		starts = append(starts, f)
	}
	sort.Slice(starts, func(i, j int) bool { return starts[i] < starts[j] })
	var out []span
	for i, low := range starts {
		s := span{low: low}
		if i+1 < len(starts) {
			s.high = starts[i+1].before()
		} else {
			s.high = low
			for _, o := range list {
				s.high = max(s.high, o.high)
			}
		}
		for _, o := range list {
			if o.covers(s) {
				out = append(out, s)
				break
			}
		}
	}
	return out
}
