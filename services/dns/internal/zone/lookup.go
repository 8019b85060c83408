package zone

import (
	"net/netip"
	"strings"
)

// lookService answers for the names of Services. It gives the Service where that is an alias for another name.
func (h *hunt) lookService(labels [maxRelative]string, n int) *service {
	if n == 1 {
		h.inner()
		return nil
	}
	ref := Ref{Namespace: labels[1], Name: labels[2]}
	if p, ok := h.namespaces.get(ref.Namespace); !ok || !p.object && p.services == 0 {
		h.none(Reason{kind: reasonNoNamespace, ref: ref})
		return nil
	}
	if n == 2 {
		h.inner()
		return nil
	}
	s, ok := h.services.get(ref)
	switch {
	case !ok:
		h.none(Reason{kind: reasonNoService, ref: ref})
	case s.external != "" && n == 3:
		h.answer.Reason = Reason{kind: reasonExternal, ref: ref, name: s.external}
		return s
	case n == 3:
		h.service(s)
	case strings.HasPrefix(labels[3], "_"):
		h.port(s, labels[4], labels[3], n)
	case n == 4:
		h.endpoint(s, labels[3])
	default:
		h.none(Reason{kind: reasonNotSchema})
	}
	return nil
}

// service answers for a Service's own name.
func (h *hunt) service(s *service) {
	switch {
	case !s.exists():
		h.none(Reason{kind: reasonNoneReady, ref: s.ref, all: s.all})
		return
	case s.headless:
		h.answer.Reason = Reason{kind: reasonHeadless, ref: s.ref, ready: s.ready, all: s.all}
	default:
		h.answer.Reason = Reason{kind: reasonClusterIP, ref: s.ref}
	}
	h.answer.Outcome = NoData
	switch h.Type {
	case TypeA, TypeAAAA:
		h.answer.Records = h.appendAddrs(h.answer.Records, h.owner, s.v4, s.v6)
		if len(h.answer.Records) == 0 || h.answer.Records[len(h.answer.Records)-1].Type == TypeCNAME {
			h.answer.Reason = Reason{kind: reasonNoFamily, ref: s.ref}
		}
	case TypeSRV: // all the ports at once: beyond the specification, as CoreDNS does
		h.srv(s, s.targets[""])
	default:
		h.answer.Reason = Reason{kind: reasonNoRecord, ref: s.ref}
	}
}

// port answers for _<port>._<protocol> of a Service; the port is empty for the name above the ports of a protocol.
func (h *hunt) port(s *service, name, protocol string, n int) {
	if n == 4 {
		for label := range s.targets {
			if strings.HasSuffix(label, "."+protocol) {
				h.inner()
				return
			}
		}
		h.none(Reason{kind: reasonNoPort, ref: s.ref, name: protocol})
		return
	}
	label := name + "." + protocol
	targets, ok := s.targets[label]
	if !ok {
		h.none(Reason{kind: reasonNoPort, ref: s.ref, name: label})
		return
	}
	h.answer.Outcome, h.answer.Reason = NoData, Reason{kind: reasonPort, ref: s.ref, name: label}
	if h.Type == TypeSRV {
		h.srv(s, targets)
	}
}

// srv adds one record for each target, and the addresses of each.
func (h *hunt) srv(s *service, targets []target) {
	var last *host
	for i, t := range rotated(targets, h.Turn) {
		name, v4, v6 := s.name, s.v4, s.v6
		if t.host != nil {
			name, v4, v6 = t.host.name, t.host.v4, t.host.v6
		}
		name = h.spelled(name)
		h.found(Record{Name: h.owner, Type: TypeSRV, TTL: TTL, Weight: s.weight(), Port: t.port, Target: name})
		if i == 0 || t.host != last {
			h.answer.Extra = h.appendAll(h.answer.Extra, name, v4, v6)
		}
		last = t.host
	}
}

// endpoint answers for one endpoint's name.
func (h *hunt) endpoint(s *service, label string) {
	e, ok := s.hosts[label]
	if !ok {
		h.none(Reason{kind: reasonNoEndpoint, ref: s.ref, name: label})
		return
	}
	h.answer.Outcome, h.answer.Reason = NoData, Reason{kind: reasonEndpoint, ref: s.ref, name: label}
	h.answer.Records = h.appendAddrs(h.answer.Records, h.owner, e.v4, e.v6)
}

// spelled is a complete name with the domain in the letters of the question.
func (h *hunt) spelled(name string) string {
	if h.domain == h.View.domain {
		return name
	}
	return name[:len(name)-len(h.domain)] + h.domain
}

// appendAddrs adds the addresses of the family that is asked for, the one whose turn it is first.
func (h *hunt) appendAddrs(to []Record, name string, v4, v6 []netip.Addr) []Record {
	switch h.Type {
	case TypeA:
		return appendTurned(to, name, TypeA, v4, h.Turn)
	case TypeAAAA:
		return appendTurned(to, name, TypeAAAA, v6, h.Turn)
	}
	return to
}

func (h *hunt) appendAll(to []Record, name string, v4, v6 []netip.Addr) []Record {
	return appendTurned(appendTurned(to, name, TypeA, v4, h.Turn), name, TypeAAAA, v6, h.Turn)
}

func appendTurned(to []Record, name string, t Type, addrs []netip.Addr, turn uint32) []Record {
	for _, a := range rotated(addrs, turn) {
		to = append(to, Record{Name: name, Type: t, TTL: TTL, Addr: a})
	}
	return to
}

// rotated goes around a list once, from the element whose turn it is.
func rotated[T any](list []T, turn uint32) func(func(int, T) bool) {
	return func(yield func(int, T) bool) {
		for i := range list {
			if !yield(i, list[(uint64(turn)+uint64(i))%uint64(len(list))]) {
				return
			}
		}
	}
}
