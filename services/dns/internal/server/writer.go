package server

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"podwire.dev/services/dns/internal/zone"
)

// writer puts an answer of the zone on the wire. It is used again and again, so that an answer costs no memory.
type writer struct {
	buf []byte
	// limit is what the answer may have in bytes, less what EDNS takes at its end.
	limit int
	// names are those written, to be pointed at (RFC 1035 section 4.1.4).
	names []written
	full  bool
}

type written struct {
	name string
	at   int
}

const (
	optBytes = 11
	// maxNames bounds the search for a name to point at; with more, messages are larger and still right.
	maxNames = 24
	// maxPointer is the furthest that a pointer reaches.
	maxPointer = 1 << 14
)

// Places of the counts in the header.
const (
	answerCount     = 6
	authorityCount  = 8
	additionalCount = 10
)

// begin writes header and question.
func (w *writer) begin(buf []byte, q *query, rcode int, flags uint16, limit int) {
	w.buf, w.limit, w.full, w.names = buf[:0], limit, false, w.names[:0]
	if q.edns {
		w.limit -= optBytes
	}
	w.buf = binary.BigEndian.AppendUint16(w.buf, q.id)
	w.buf = binary.BigEndian.AppendUint16(w.buf, flagQR|uint16(q.opcode)<<11|flags|q.flags|uint16(rcode&0xf))
	w.buf = append(w.buf, 0, 0, 0, 0, 0, 0, 0, 0)
	if q.question != nil {
		w.buf[5] = 1
		w.buf = append(w.buf, q.question...)
		w.know(q.name, headerBytes)
	}
}

// know notes that a name stands at a place, and with it every name that it ends in.
func (w *writer) know(name string, at int) {
	for name != "." && name != "" && at < maxPointer && len(w.names) < maxNames {
		w.names = append(w.names, written{name, at})
		for i := 0; ; i++ {
			if i >= len(name) || name[i] == '\\' {
				return // an escaped label is rare enough to go without
			}
			if name[i] == '.' {
				name, at = name[i+1:], at+i+1
				break
			}
		}
	}
}

// name appends a name, ending in a pointer where its end was written before. False where it is no name.
func (w *writer) name(name string) bool {
	start, whole := len(w.buf), name
	for name != "." && name != "" {
		for _, k := range w.names {
			if k.name == name {
				w.buf = binary.BigEndian.AppendUint16(w.buf, 0xc000|uint16(k.at))
				w.know(whole, start)
				return true
			}
		}
		end := 0
		for end < len(name) && name[end] != '.' {
			if name[end] == '\\' {
				return w.escaped(whole, start)
			}
			end++
		}
		if end == 0 || end > 63 || end == len(name) {
			return false
		}
		w.buf = append(append(w.buf, byte(end)), name[:end]...)
		name = name[end+1:]
	}
	w.buf = append(w.buf, 0)
	w.know(whole, start)
	return len(w.buf)-start <= 255
}

// escaped appends a name with escaped letters, whole.
func (w *writer) escaped(name string, start int) bool {
	var wire [256]byte
	n, err := dns.PackDomainName(name, wire[:], 0, nil, false)
	if err != nil {
		return false
	}
	w.buf = append(w.buf[:start], wire[:n]...)
	return true
}

// records appends a section. What does not fit is left out, from the first that does not; false says so.
func (w *writer) records(count int, list []zone.Record) bool {
	for i := range list {
		size, names := len(w.buf), len(w.names)
		if w.full || !w.record(&list[i]) || len(w.buf) > w.limit {
			w.buf, w.names, w.full = w.buf[:size], w.names[:names], true
			return false
		}
		n := binary.BigEndian.Uint16(w.buf[count:])
		binary.BigEndian.PutUint16(w.buf[count:], n+1)
	}
	return true
}

func (w *writer) record(r *zone.Record) bool {
	if !w.name(r.Name) {
		return false
	}
	w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(r.Type))
	w.buf = binary.BigEndian.AppendUint16(w.buf, dns.ClassINET)
	w.buf = binary.BigEndian.AppendUint32(w.buf, r.TTL)
	w.buf = append(w.buf, 0, 0)
	start, ok := len(w.buf), true
	switch r.Type {
	case zone.TypeA:
		a := r.Addr.As4()
		w.buf = append(w.buf, a[:]...)
	case zone.TypeAAAA:
		a := r.Addr.As16()
		w.buf = append(w.buf, a[:]...)
	case zone.TypeCNAME, zone.TypePTR, zone.TypeNS:
		ok = w.name(r.Target)
	case zone.TypeSRV:
		w.buf = binary.BigEndian.AppendUint16(w.buf, r.Priority)
		w.buf = binary.BigEndian.AppendUint16(w.buf, r.Weight)
		w.buf = binary.BigEndian.AppendUint16(w.buf, r.Port)
		ok = w.target(r.Target)
	case zone.TypeTXT:
		w.buf = append(append(w.buf, byte(len(r.Text))), r.Text...)
	case zone.TypeSOA:
		ok = w.name(r.SOA.Server) && w.name(r.SOA.Mailbox)
		for _, v := range []uint32{r.SOA.Serial, r.SOA.Refresh, r.SOA.Retry, r.SOA.Expire, r.SOA.Minimum} {
			w.buf = binary.BigEndian.AppendUint32(w.buf, v)
		}
	default:
		return false
	}
	binary.BigEndian.PutUint16(w.buf[start-2:], uint16(len(w.buf)-start))
	return ok
}

// target appends the target of an SRV record, which must not end in a pointer (RFC 2782), but may be pointed at.
func (w *writer) target(name string) bool {
	names := w.names
	w.names = w.names[:0:0]
	start := len(w.buf)
	ok := w.name(name)
	w.names = names
	if ok {
		w.know(name, start)
	}
	return ok
}

// finish appends EDNS where the client speaks it, and gives the message.
func (w *writer) finish(q *query, rcode int, said extended) []byte {
	if !q.edns {
		return w.buf
	}
	n := binary.BigEndian.Uint16(w.buf[additionalCount:])
	binary.BigEndian.PutUint16(w.buf[additionalCount:], n+1)
	w.buf = append(w.buf, 0, 0, byte(dns.TypeOPT), maxPayload>>8, maxPayload&0xff, byte(rcode>>4), 0, 0, 0)
	if q.dnssec {
		w.buf[len(w.buf)-2] = 0x80
	}
	text := said.text
	if room := w.limit + 3 - len(w.buf); len(text) > room {
		text = text[:max(0, room)]
	}
	if said.code == 0 {
		w.buf = append(w.buf, 0, 0)
		return w.buf
	}
	w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(6+len(text)))
	w.buf = binary.BigEndian.AppendUint16(w.buf, dns.EDNS0EDE)
	w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(2+len(text)))
	w.buf = binary.BigEndian.AppendUint16(w.buf, said.code)
	w.buf = append(w.buf, text...)
	return w.buf
}

// extended is why an answer is not what was hoped for (RFC 8914).
type extended struct {
	code uint16
	text string
}
