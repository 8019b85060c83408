package zone

import (
	"net/netip"
	"strings"
)

const (
	arpa4 = "in-addr.arpa."
	arpa6 = "ip6.arpa."
)

// reverseName is a name below in-addr.arpa or ip6.arpa that is within a range of the cluster.
type reverseName struct {
	// apex is how many bytes of the name's end are its zone's name.
	apex int
	// size is how many bytes of the name's end spell addr.
	size int
	// addr is the address, with zeros for what the name leaves open.
	addr netip.Addr
	// whole says that nothing is left open.
	whole bool
}

// parseReverse reads a name in lower case. The zones are those whose names a delegation could have: whole octets and whole
// nibbles (RFC 1035 section 3.5, RFC 3596 section 2.5). A range that ends within an octet makes as many zones as it takes to
// cover it and nothing else.
func (v *View) parseReverse(name string) (reverseName, bool) {
	rest, ok := strings.CutSuffix(name, arpa4)
	suffix, step, labels, base := len(arpa4), 8, 4, 10
	if !ok {
		if rest, ok = strings.CutSuffix(name, arpa6); !ok {
			return reverseName{}, false
		}
		suffix, step, labels, base = len(arpa6), 4, 32, 16
	}
	if rest != "" && rest[len(rest)-1] != '.' {
		return reverseName{}, false
	}
	var octets [16]byte
	var ends [33]int // bytes of the name's end after each label
	ends[0] = suffix
	n := 0
	for n < labels && rest != "" {
		dot := strings.LastIndexByte(rest[:len(rest)-1], '.')
		value, ok := digits(rest[dot+1:len(rest)-1], base)
		if !ok {
			break
		}
		ends[n+1] = ends[n] + len(rest) - dot - 1
		rest = rest[:dot+1]
		if step == 8 {
			octets[n] = value
		} else {
			octets[n/2] |= value << (4 - 4*(n%2))
		}
		n++
	}
	r := reverseName{size: ends[n], whole: n == labels}
	if step == 8 {
		r.addr = netip.AddrFrom4([4]byte(octets[:4]))
	} else {
		r.addr = netip.AddrFrom16(octets)
	}
	for _, p := range v.ranges {
		// As many labels as the range fixes, rounded up to whole ones.
		top := (p.Bits() + step - 1) / step
		if p.Addr().BitLen() == r.addr.BitLen() && n >= top && p.Contains(r.addr) {
			if end := ends[top]; r.apex == 0 || end < r.apex {
				r.apex = end
			}
		}
	}
	return r, r.apex > 0
}

// digits reads a number as reverse names have it: decimal without leading zeros, or one hexadecimal digit.
func digits(label string, base int) (byte, bool) {
	if label == "" || len(label) > 3 || base == 16 && len(label) != 1 || len(label) > 1 && label[0] == '0' {
		return 0, false
	}
	value := 0
	for i := range len(label) {
		c := int(label[i])
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f' && base == 16:
			c -= 'a' - 10
		default:
			return 0, false
		}
		value = value*base + c
	}
	return byte(value), value <= 255
}

// answerReverse answers for a name of a reverse zone.
func (v *View) answerReverse(q Question, r reverseName, a *Answer) {
	zone := q.Name[len(q.Name)-r.apex:]
	h := hunt{View: v, Question: q, answer: a, owner: q.Name, domain: zone}
	pointers, known := v.reverse.get(r.addr)
	switch {
	case r.size < len(q.Name):
		h.none(Reason{kind: reasonNotAddress})
	case r.whole && known:
		a.Outcome, a.Reason = NoData, Reason{kind: reasonAddress, ref: pointers[0].ref, addr: r.addr}
		if q.Type == TypePTR {
			for _, p := range pointers {
				h.found(Record{Name: q.Name, Type: TypePTR, TTL: TTL, Target: p.name})
			}
		}
	case r.apex == len(q.Name):
		h.apex(zone)
	case r.whole:
		h.none(Reason{kind: reasonNobody, addr: r.addr})
	default:
		// Whether an address below is held is not kept: that the name exists is never wrong to say, as no resolver concludes
		// from it that anything below exists, and the opposite would be (RFC 8020).
		h.inner()
	}
	h.finish()
}
