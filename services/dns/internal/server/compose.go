package server

import (
	"math/rand/v2"

	"github.com/miekg/dns"

	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/zone"
)

// message is an answer that others gave, with the zone's aliases that led to them.
type message struct {
	dns.Msg
	said extended
}

// compose makes the message of an errand's result.
func compose(e *errand, r *forward.Result) *message {
	m := &message{}
	m.Id, m.Response, m.Opcode, m.RecursionAvailable = e.id, true, dns.OpcodeQuery, true
	m.RecursionDesired, m.CheckingDisabled = e.flags&flagRD != 0, e.flags&flagCD != 0
	m.Question = []dns.Question{{Name: e.name, Qtype: e.kind, Qclass: e.class}}
	m.Rcode = r.Rcode
	m.AuthenticatedData = (e.dnssec || e.wantsAD) && len(e.aliases) == 0 && r.Authenticated()
	for _, a := range e.aliases {
		m.Answer = append(m.Answer, &dns.CNAME{
			Hdr:    dns.RR_Header{Name: a.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: a.TTL},
			Target: a.Target,
		})
	}
	// Where nobody can be asked, the alias is all that there is to say, and it is true.
	if len(e.aliases) > 0 && r.Failed && r.Rcode == dns.RcodeRefused {
		m.Rcode = dns.RcodeSuccess
	}
	answer, authority, extra := r.Records(e.next)
	m.Answer = append(m.Answer, answer...)
	m.Ns, m.Extra = authority, extra
	rotate(m.Answer, rand.IntN)
	switch {
	case r.Stale:
		m.said = extended{dns.ExtendedErrorCodeStaleAnswer, r.Reason}
	case r.Failed && r.Rcode == dns.RcodeRefused:
		m.said = extended{dns.ExtendedErrorCodeProhibited, r.Reason}
	case r.Failed:
		m.said = extended{dns.ExtendedErrorCodeNoReachableAuthority, r.Reason}
	}
	return m
}

// rotate begins each run of addresses of one name with another one than the last time.
func rotate(list []dns.RR, pick func(int) int) {
	for i := 0; i < len(list); {
		h := list[i].Header()
		j := i + 1
		for j < len(list) && list[j].Header().Rrtype == h.Rrtype && list[j].Header().Name == h.Name {
			j++
		}
		if n := j - i; n > 1 && (h.Rrtype == dns.TypeA || h.Rrtype == dns.TypeAAAA) {
			turned := append([]dns.RR(nil), list[i:j]...)
			first := pick(n)
			for k := range turned {
				list[i+k] = turned[(first+k)%n]
			}
		}
		i = j
	}
}

// pack puts the message on the wire, cut to what the client takes.
func (m *message) pack(e *errand, stream bool) ([]byte, error) {
	if e.edns {
		m.SetEdns0(maxPayload, e.dnssec)
		if opt := m.IsEdns0(); m.said.code != 0 {
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: m.said.code, ExtraText: m.said.text})
		}
	}
	m.Compress = true
	m.Truncate(e.limit(stream))
	return m.Pack()
}

// Records puts records of the zone into their presentation form, for who does not speak the wire.
func Records(in []zone.Record) []dns.RR {
	var w writer
	out := make([]dns.RR, 0, len(in))
	for i := range in {
		w.buf, w.names = w.buf[:0], w.names[:0]
		if !w.record(&in[i]) {
			continue
		}
		if rr, _, err := dns.UnpackRR(w.buf, 0); err == nil {
			out = append(out, rr)
		}
	}
	return out
}
