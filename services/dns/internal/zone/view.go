package zone

import (
	"net/netip"
	"slices"
	"strings"
)

// View is the zone at one revision of the store.
type View struct {
	// domain is the cluster's, in lower case, with a final dot.
	domain   string
	revision int64
	// authority is the domain's start of authority, in the domain's own letters.
	authority  Record
	ranges     []netip.Prefix
	services   tree[Ref, *service]
	namespaces tree[string, population]
	pods       tree[podAddr, []string]
	reverse    tree[netip.Addr, []pointer]
}

// Revision is the store's revision of the newest change that the View has.
func (v *View) Revision() int64 { return v.revision }

// maxAliases bounds how many ExternalNames one answer follows.
const maxAliases = 8

// maxRelative is how many labels a name of the schema has before the domain: _port._proto.service.namespace.svc.
const maxRelative = 5

// Ours says whether a name is in one of the zones, which is for the View alone to answer.
func (v *View) Ours(name string) bool {
	name = lower(name)
	if _, ok := v.relative(name); ok {
		return true
	}
	_, ok := v.parseReverse(name)
	return ok
}

// Answer answers a question into a.
func (v *View) Answer(q Question, a *Answer) {
	a.reset()
	name := lower(q.Name)
	rel, ok := v.relative(name)
	if !ok {
		if r, ok := v.parseReverse(name); ok {
			v.answerReverse(q, r, a)
		}
		return
	}
	// What is answered has the letters that were asked for: some resolvers check them (draft-vixie-dnsext-dns0x20).
	h := hunt{View: v, Question: q, answer: a, owner: q.Name, domain: q.Name[len(q.Name)-len(v.domain):]}
	var first Ref
	for range maxAliases {
		alias := h.look(rel)
		if alias == nil {
			h.finish()
			return
		}
		if len(a.Records) == 0 {
			first = alias.ref
		}
		a.Records = append(a.Records, Record{Name: h.owner, Type: TypeCNAME, TTL: TTL, Target: alias.external})
		if q.Type == TypeCNAME {
			a.Outcome = Found
			return
		}
		if rel, ok = v.relative(alias.external); !ok {
			a.Outcome, a.Next = Leads, alias.external
			return
		}
		h.owner, h.domain = alias.external, v.domain
	}
	a.Outcome, a.Reason, a.Records = Endless, Reason{kind: reasonEndless, ref: first}, a.Records[:0]
}

// lower folds a name as DNS does (RFC 4343): A to Z and nothing else, so that no name changes its length.
func lower(name string) string {
	for i := range len(name) {
		if 'A' <= name[i] && name[i] <= 'Z' {
			folded := []byte(name)
			for ; i < len(folded); i++ {
				if 'A' <= folded[i] && folded[i] <= 'Z' {
					folded[i] += 'a' - 'A'
				}
			}
			return string(folded)
		}
	}
	return name
}

// relative is what stands before the domain in a name in lower case, such as "web.default.svc.", and whether the name is of
// the domain at all.
func (v *View) relative(name string) (string, bool) {
	rel, ok := strings.CutSuffix(name, v.domain)
	switch {
	case !ok || rel == "":
		return "", ok
	case rel[len(rel)-1] != '.':
		return "", false
	}
	// "\." is a dot within a label: an even number of backslashes escapes only themselves.
	slashes := 0
	for i := len(rel) - 2; i >= 0 && rel[i] == '\\'; i-- {
		slashes++
	}
	return rel, slashes%2 == 0
}

// hunt is the search for one answer.
type hunt struct {
	*View
	Question
	answer *Answer
	// owner is the name that is looked for, domain the letters of the cluster's domain in it.
	owner, domain string
}

// look looks for a name by what stands before the domain. It gives the Service where that is an alias for another name.
func (h *hunt) look(rel string) *service {
	var labels [maxRelative]string // from the right: "svc", namespace, service, …
	n := 0
	for rest := strings.TrimSuffix(rel, "."); rest != ""; n++ {
		if n == maxRelative {
			h.none(Reason{kind: reasonNotSchema})
			return nil
		}
		dot := strings.LastIndexByte(rest, '.')
		labels[n] = rest[dot+1:]
		rest = rest[:max(dot, 0)]
	}
	switch {
	case n == 0:
		h.apex(h.domain)
	case labels[0] == "svc":
		return h.lookService(labels, n)
	case labels[0] == "pod":
		h.lookPod(labels, n)
	case labels[0] == "dns-version" && n == 1:
		h.answer.Reason = Reason{kind: reasonVersion}
		if h.Type == TypeTXT {
			h.found(Record{Name: h.owner, Type: TypeTXT, TTL: versionTTL, Text: SchemaVersion})
		} else {
			h.answer.Outcome = NoData
		}
	case labels[0] == "dns" && n == 1:
		h.inner()
	case labels[0] == "dns" && n == 2 && labels[1] == "ns":
		h.answer.Reason, h.answer.Outcome = Reason{kind: reasonServer}, NoData
		if s, ok := h.services.get(serverService); ok {
			h.answer.Records = h.appendAddrs(h.answer.Records, h.owner, s.v4, s.v6)
		}
	default:
		h.none(Reason{kind: reasonNotSchema})
	}
	return nil
}

func (h *hunt) none(r Reason) { h.answer.Outcome, h.answer.Reason = NoName, r }

// inner is a name that exists only because others are below it.
func (h *hunt) inner() { h.answer.Outcome, h.answer.Reason = NoData, Reason{kind: reasonInner} }

func (h *hunt) found(r Record) { h.answer.Records = append(h.answer.Records, r) }

// finish makes the outcome fit what was found, and gives a negative answer its authority.
func (h *hunt) finish() {
	a := h.answer
	// Aliases that end in nothing are an answer whose outcome is that of its end (RFC 6604).
	if n := len(a.Records); n > 0 && (a.Outcome != NoName && a.Records[n-1].Type != TypeCNAME) {
		a.Outcome = Found
		return
	}
	if a.Outcome != NoName {
		a.Outcome = NoData
	}
	a.Authority = append(a.Authority, h.soa(h.domain))
}

// apex answers for the top of a zone, in the letters of the question.
func (h *hunt) apex(zone string) {
	h.answer.Outcome, h.answer.Reason = NoData, Reason{kind: reasonApex}
	switch h.Type {
	case TypeSOA:
		h.found(h.soa(zone))
	case TypeNS:
		server := "ns.dns." + h.serverDomain(zone)
		h.found(Record{Name: zone, Type: TypeNS, TTL: TTL, Target: server})
		if s, ok := h.services.get(serverService); ok {
			h.answer.Extra = h.appendAll(h.answer.Extra, server, s.v4, s.v6)
		}
	}
}

// serverDomain is where the name of the server is: in the cluster's domain, also for reverse zones.
func (h *hunt) serverDomain(zone string) string {
	if len(zone) == len(h.View.domain) && strings.EqualFold(zone, h.View.domain) {
		return zone
	}
	return h.View.domain
}

func (h *hunt) soa(zone string) Record {
	if zone == h.View.domain {
		return h.authority
	}
	return startOf(zone, h.serverDomain(zone), h.revision)
}

// startOf is a zone's start of authority. Its serial is the revision: serials wrap around (RFC 1982).
func startOf(zone, server string, revision int64) Record {
	return Record{Name: zone, Type: TypeSOA, TTL: TTL, SOA: &SOA{
		Server: "ns.dns." + server, Mailbox: "hostmaster." + server, Serial: uint32(revision),
		Refresh: 7200, Retry: 1800, Expire: 86400, Minimum: TTL,
	}}
}

// lookPod answers for <address>.<namespace>.pod.
func (h *hunt) lookPod(labels [maxRelative]string, n int) {
	if n == 1 {
		h.inner()
		return
	}
	ref := Ref{Namespace: labels[1]}
	if p, ok := h.namespaces.get(labels[1]); !ok || !p.object && p.pods == 0 {
		h.none(Reason{kind: reasonNoNamespace, ref: ref})
		return
	}
	if n == 2 {
		h.inner()
		return
	}
	addr, ok := undashed(labels[2])
	if !ok || n > 3 {
		h.none(Reason{kind: reasonNotAddress})
		return
	}
	names, ok := h.pods.get(podAddr{ref.Namespace, addr})
	if !ok {
		h.none(Reason{kind: reasonNoPod, ref: ref, addr: addr})
		return
	}
	ref.Name = names[0]
	h.answer.Outcome, h.answer.Reason = NoData, Reason{kind: reasonPod, ref: ref, addr: addr}
	if addr.Is4() && h.Type == TypeA || addr.Is6() && h.Type == TypeAAAA {
		h.found(Record{Name: h.owner, Type: h.Type, TTL: TTL, Addr: addr})
	}
}

// undashed reads an address whose dots or colons are dashes: 10-244-0-5, fd00--5.
func undashed(label string) (netip.Addr, bool) {
	if len(label) > 39 { // the longest IPv6 address
		return netip.Addr{}, false
	}
	var text [39]byte
	for _, sep := range []byte{'.', ':'} {
		for i := range len(label) {
			text[i] = label[i]
			switch label[i] {
			case '-':
				text[i] = sep
			case '.', ':', '%': // an escaped one is no dash
				return netip.Addr{}, false
			}
		}
		if a, err := netip.ParseAddr(string(text[:len(label)])); err == nil {
			return a, !a.Is4In6()
		}
	}
	return netip.Addr{}, false
}

// Serves says whether an address is one of the Service that clients reach this service by.
func (v *View) Serves(a netip.Addr) bool {
	s, ok := v.services.get(serverService)
	a = a.Unmap()
	return ok && (slices.Contains(s.v4, a) || slices.Contains(s.v6, a))
}
