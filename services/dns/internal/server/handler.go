package server

import (
	"context"

	"github.com/miekg/dns"

	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/resolver"
	"podwire.dev/services/dns/internal/zone"
)

// handler answers the packets of one socket's reader. It is not safe for concurrent use: each reader has its own.
type handler struct {
	resolver *resolver.Resolver
	answer   zone.Answer
	writer   writer
	// stream says that answers may have any size.
	stream bool
	buf    []byte
}

func newHandler(r *resolver.Resolver, stream bool) *handler {
	h := &handler{resolver: r, stream: stream, buf: make([]byte, 0, maxPayload)}
	return h
}

// errand is a question that others have to be asked, taken away from the packet that it came in.
type errand struct {
	query
	// aliases of the zone that led to next.
	aliases []zone.Record
	next    string
}

// handle answers a packet: with a message, which is valid until the next call, or with an errand, or, for what is no query,
// with neither.
func (h *handler) handle(p []byte) ([]byte, *errand) {
	q, rcode, drop := parse(p)
	if drop {
		return nil, nil
	}
	if rcode != dns.RcodeSuccess {
		return h.refuse(&q, rcode, extended{}), nil
	}
	if rcode, reason := q.verdict(); rcode != dns.RcodeSuccess {
		return h.refuse(&q, rcode, extended{dns.ExtendedErrorCodeNotSupported, reason}), nil
	}
	if !h.resolver.Zone(zone.Question{Name: q.name, Type: zone.Type(q.kind)}, &h.answer) {
		return h.refuse(&q, dns.RcodeServerFailure, extended{dns.ExtendedErrorCodeNotReady, "the cluster's objects are not read yet"}), nil
	}
	switch h.answer.Outcome {
	case zone.Outside:
		if q.kind == dns.TypeANY {
			return h.any(&q, 0), nil
		}
		return nil, &errand{query: q.kept(), next: q.name}
	case zone.Leads:
		if q.kind == dns.TypeANY {
			return h.any(&q, flagAA), nil
		}
		return nil, &errand{query: q.kept(), aliases: append([]zone.Record(nil), h.answer.Records...), next: h.answer.Next}
	case zone.Endless:
		return h.refuse(&q, dns.RcodeServerFailure, extended{dns.ExtendedErrorCodeOther, h.answer.Reason.String()}), nil
	case zone.NoName:
		return h.reply(&q, dns.RcodeNameError), nil
	}
	if q.kind == dns.TypeANY {
		return h.any(&q, flagAA), nil
	}
	return h.reply(&q, dns.RcodeSuccess), nil
}

// kept is q apart from its packet.
func (q *query) kept() query {
	k := *q
	k.question = append([]byte(nil), q.question...)
	return k
}

func (q *query) limit(stream bool) int {
	if stream {
		return dns.MaxMsgSize
	}
	return min(q.size, maxPayload)
}

// reply is the zone's answer.
func (h *handler) reply(q *query, rcode int) []byte {
	w := &h.writer
	w.begin(h.buf, q, rcode, flagAA|flagRA, q.limit(h.stream))
	if !w.records(answerCount, h.answer.Records) || !w.records(authorityCount, h.answer.Authority) {
		w.buf[2] |= flagTC >> 8
	} else {
		w.records(additionalCount, h.answer.Extra) // a courtesy: its loss is no truncation (RFC 2181 section 9)
	}
	return h.done(q, rcode, extended{})
}

func (h *handler) done(q *query, rcode int, said extended) []byte {
	out := h.writer.finish(q, rcode, said)
	h.buf = out[:0]
	return out
}

// refuse answers without records.
func (h *handler) refuse(q *query, rcode int, said extended) []byte {
	if said.text == "" {
		said = extended{}
	}
	h.writer.begin(h.buf, q, rcode, flagRA, q.limit(h.stream))
	return h.done(q, rcode, said)
}

// any answers type ANY with as little as there can be, so that nobody is flooded with it (RFC 8482 section 4.2).
func (h *handler) any(q *query, flags uint16) []byte {
	w := &h.writer
	w.begin(h.buf, q, dns.RcodeSuccess, flags|flagRA, q.limit(h.stream))
	w.buf = append(w.buf, 0xc0, headerBytes, 0, byte(dns.TypeHINFO), 0, dns.ClassINET, 0, 0, 0, zone.TTL, 0, 9, 7)
	w.buf = append(append(w.buf, "RFC8482"...), 0)
	w.buf[answerCount+1] = 1
	return h.done(q, dns.RcodeSuccess, extended{})
}

// run does an errand and gives the message.
func run(ctx context.Context, r *resolver.Resolver, e *errand, stream bool) ([]byte, error) {
	effort := resolver.Recursive
	if e.flags&flagRD == 0 {
		effort = resolver.Kept
	}
	result := r.Beyond(ctx, forward.Question{
		Name: e.next, Type: e.kind, DNSSEC: e.dnssec, Unchecked: e.flags&flagCD != 0,
	}, effort)
	return compose(e, &result).pack(e, stream)
}

// busy is the answer to an errand for which there is no room.
func busy(e *errand, stream bool) ([]byte, error) {
	result := forward.Result{Rcode: dns.RcodeServerFailure, Failed: true, Reason: "too many questions are being forwarded"}
	return compose(e, &result).pack(e, stream)
}
