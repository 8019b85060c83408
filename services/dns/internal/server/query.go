package server

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// query is a question as it came.
type query struct {
	id uint16
	// flags are RD and CD as they are handed back.
	flags  uint16
	opcode int
	// question is the question section on the wire; nil where there is none that could be handed back.
	question    []byte
	name        string
	kind, class uint16
	// edns says whether the client speaks EDNS; size is what it takes over UDP, at least 512.
	edns, dnssec bool
	// wantsAD says whether the client looks at AD (RFC 6840 section 5.7).
	wantsAD bool
	size    int
}

const (
	headerBytes = 12
	flagQR      = 1 << 15
	flagAA      = 1 << 10
	flagTC      = 1 << 9
	flagRD      = 1 << 8
	flagRA      = 1 << 7
	flagAD      = 1 << 5
	flagCD      = 1 << 4
	// maxAdditional is how many additional records a query may have: EDNS and a signature.
	maxAdditional = 2
	minPayload    = 512
	// maxPayload is what is sent over UDP at most, in bytes: what passes every path unfragmented (DNS flag day 2020).
	maxPayload = 1232
)

// parse reads a packet. It is for nobody (drop) where it is too short to be answered or is itself an answer; else rcode says
// whether it can be worked on, and q is filled in as far as it could be read.
func parse(p []byte) (q query, rcode int, drop bool) {
	if len(p) < headerBytes {
		return q, 0, true
	}
	word := func(i int) uint16 { return binary.BigEndian.Uint16(p[i:]) }
	flags := word(2)
	if flags&flagQR != 0 {
		return q, 0, true
	}
	q.id, q.flags, q.opcode, q.size = word(0), flags&(flagRD|flagCD), int(flags>>11&0xf), minPayload
	q.wantsAD = flags&flagAD != 0
	if q.opcode != dns.OpcodeQuery {
		return q, dns.RcodeNotImplemented, false
	}
	questions, answers, authorities, additionals := word(4), word(6), word(8), word(10)
	if questions != 1 || answers != 0 || authorities != 0 || additionals > maxAdditional {
		return q, dns.RcodeFormatError, false
	}
	end, ok := skipName(p, headerBytes)
	if !ok || end+4 > len(p) {
		return q, dns.RcodeFormatError, false
	}
	name, _, err := dns.UnpackDomainName(p[:end], headerBytes)
	if err != nil {
		return q, dns.RcodeFormatError, false
	}
	q.name, q.kind, q.class = name, word(end), word(end+2)
	q.question = p[headerBytes : end+4]
	rcode = q.parseAdditional(p, end+4, int(additionals))
	return q, rcode, false
}

// skipName is where the uncompressed name at i ends. That of a question has nothing before it to point at.
func skipName(p []byte, i int) (int, bool) {
	for start := i; i < len(p); {
		n := int(p[i])
		switch {
		case n == 0:
			return i + 1, i+1-start <= 255
		case n > 63:
			return 0, false
		}
		i += n + 1
	}
	return 0, false
}

// parseAdditional looks for EDNS (RFC 6891 section 6.1).
func (q *query) parseAdditional(p []byte, i, n int) int {
	for ; n > 0; n-- {
		start := i
		end, ok := skipName(p, i)
		if !ok || end+10 > len(p) {
			return dns.RcodeFormatError
		}
		kind, class := binary.BigEndian.Uint16(p[end:]), binary.BigEndian.Uint16(p[end+2:])
		ttl, size := binary.BigEndian.Uint32(p[end+4:]), int(binary.BigEndian.Uint16(p[end+8:]))
		if i = end + 10 + size; i > len(p) {
			return dns.RcodeFormatError
		}
		if kind != dns.TypeOPT {
			continue
		}
		if q.edns || end != start+1 { // there is one, and it has the root's name
			return dns.RcodeFormatError
		}
		q.edns, q.size, q.dnssec = true, max(int(class), minPayload), ttl&(1<<15) != 0
		if ttl>>16&0xff != 0 {
			return dns.RcodeBadVers
		}
	}
	return dns.RcodeSuccess
}

// verdict says how a query is answered that is not for the zone or for others, as an rcode; RcodeSuccess goes on.
func (q *query) verdict() (rcode int, reason string) {
	switch {
	case q.kind == dns.TypeAXFR || q.kind == dns.TypeIXFR:
		return dns.RcodeRefused, "zones are not transferred"
	case q.class != dns.ClassINET:
		return dns.RcodeRefused, "only class IN is answered"
	case q.kind == dns.TypeOPT || q.kind == 0:
		return dns.RcodeFormatError, ""
	case q.kind >= 128 && q.kind < dns.TypeANY:
		return dns.RcodeNotImplemented, ""
	}
	return dns.RcodeSuccess, ""
}
