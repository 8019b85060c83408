// Package api serves the dns service's gRPC.
//
// In: requests. Out: what a DNS client would be told, and why. Invariants: what it answers is what the sockets answer, from
// the same View. It must not decide what names mean.
package api

import (
	"context"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/resolvconf"
	"podwire.dev/internal/store"
	dnsv1 "podwire.dev/proto/podwire/dns/v1"
	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/resolver"
	"podwire.dev/services/dns/internal/server"
	"podwire.dev/services/dns/internal/zone"
)

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Pods gives what a Pod's resolver configuration is made from, inside of Asker.Do.
type Pods interface {
	Pod(ref zone.Ref) (resolvconf.Pod, bool)
}

// Resolve serves podwire.dns.v1.ResolveService.
type Resolve struct {
	dnsv1.UnimplementedResolveServiceServer
	asker    Asker
	pods     Pods
	resolver *resolver.Resolver
	cluster  resolvconf.Cluster
}

// NewResolve answers from r. domain is the cluster's.
func NewResolve(asker Asker, pods Pods, r *resolver.Resolver, domain string) *Resolve {
	return &Resolve{asker: asker, pods: pods, resolver: r, cluster: resolvconf.Cluster{
		// Which servers a Pod asks changes nothing here, but that there are some decides that the cluster's search list is its.
		Domain: domain, DNS: []netip.Addr{netip.IPv6Unspecified()},
	}}
}

// Resolve implements ResolveService. Errors: Invalid, NotFound for a Pod that does not exist.
func (s *Resolve) Resolve(ctx context.Context, req *dnsv1.ResolveRequest) (*dnsv1.ResolveResponse, error) {
	in, err := requestOf(req)
	if err != nil {
		return nil, err
	}
	resp := &dnsv1.ResolveResponse{}
	conf, found := resolvconf.Conf{}, true
	err = s.asker.Do(ctx, func(at store.Revision) {
		resp.Revision = int64(at)
		if in.pod.Name == "" {
			return
		}
		var pod resolvconf.Pod
		if pod, found = s.pods.Pod(in.pod); found {
			conf = resolvconf.For(pod, s.cluster, resolvconf.Conf{})
		}
	})
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, errs.New(errs.NotFound, "Pod %s does not exist", in.pod)
	}
	candidates := []string{dns.Fqdn(in.name)}
	if in.pod.Name != "" {
		candidates = conf.Candidates(in.name)
	}
	for _, name := range candidates {
		if _, ok := dns.IsDomainName(name); !ok {
			continue // too long with this suffix: a resolver passes it over, too
		}
		resp.Tried, resp.Answers = append(resp.Tried, name), nil
		records := 0
		for _, kind := range in.types {
			a := s.ask(ctx, name, kind, in.effort)
			records += len(a.GetRecords())
			resp.Answers = append(resp.Answers, a)
		}
		if records > 0 {
			break
		}
	}
	return resp, nil
}

// question is a request, checked.
type question struct {
	name   string
	types  []uint16
	pod    zone.Ref
	effort resolver.Effort
}

func requestOf(req *dnsv1.ResolveRequest) (question, error) {
	var bad []errs.Violation
	q := question{name: req.GetName(), types: []uint16{dns.TypeA, dns.TypeAAAA}}
	kind := strings.ToUpper(req.GetType())
	if kind != "" {
		t, ok := dns.StringToType[kind]
		if !ok || t == dns.TypeOPT || t >= 128 && t <= dns.TypeANY || t == dns.TypeNone {
			bad = append(bad, errs.Violation{Field: "type", Value: req.GetType(), Rule: "must be the type of a record, such as A, AAAA, SRV, PTR, CNAME, TXT, SOA or NS"})
		}
		q.types = []uint16{t}
	}
	if addr, err := netip.ParseAddr(q.name); err == nil && kind == "PTR" {
		if q.name, err = dns.ReverseAddr(addr.Unmap().WithZone("").String()); err != nil {
			bad = append(bad, errs.Violation{Field: "name", Value: req.GetName(), Rule: "must be an address or a domain name"})
		}
	}
	if _, ok := dns.IsDomainName(q.name); !ok || q.name == "" {
		bad = append(bad, errs.Violation{Field: "name", Value: req.GetName(), Rule: "must be a domain name: labels of 1 to 63 bytes, 255 in all"})
	}
	if req.GetPod() != "" {
		ns, name, ok := strings.Cut(req.GetPod(), "/")
		if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
			bad = append(bad, errs.Violation{Field: "pod", Value: req.GetPod(), Rule: "must be <namespace>/<name>"})
		}
		q.pod = zone.Ref{Namespace: ns, Name: name}
	}
	if req.GetNoForward() {
		q.effort = resolver.Kept
	}
	return q, errs.InvalidFields("resolve", bad)
}

// ask answers one type of one name.
func (s *Resolve) ask(ctx context.Context, name string, kind uint16, effort resolver.Effort) *dnsv1.Answer {
	out := &dnsv1.Answer{Type: dns.TypeToString[kind], Source: dnsv1.Answer_SOURCE_ZONE}
	var a zone.Answer
	if !s.resolver.Zone(zone.Question{Name: name, Type: zone.Type(kind)}, &a) {
		out.Source, out.Rcode, out.Reason = dnsv1.Answer_SOURCE_NONE, "SERVFAIL", "the cluster's objects are not read yet"
		return out
	}
	out.Records = recordsOf(server.Records(a.Records))
	out.Authority, out.Additional = recordsOf(server.Records(a.Authority)), recordsOf(server.Records(a.Extra))
	out.Reason = a.Reason.String()
	next := name
	switch a.Outcome {
	case zone.Found, zone.NoData:
		out.Rcode = "NOERROR"
		return out
	case zone.NoName:
		out.Rcode = "NXDOMAIN"
		return out
	case zone.Endless:
		out.Rcode = "SERVFAIL"
		return out
	case zone.Leads:
		next = a.Next
	}
	r := s.resolver.Beyond(ctx, forward.Question{Name: next, Type: kind}, effort)
	answer, authority, extra := r.Records(next)
	out.Records = append(out.Records, recordsOf(answer)...)
	out.Authority, out.Additional = recordsOf(authority), recordsOf(extra)
	out.Rcode, out.Source = dns.RcodeToString[r.Rcode], sources[r.Source]
	if a.Outcome == zone.Leads {
		out.Reason += ", " + next + ": " + r.Reason
		if r.Failed && r.Rcode == dns.RcodeRefused { // as the sockets answer: the alias is true
			out.Rcode = "NOERROR"
		}
	} else {
		out.Reason = r.Reason
	}
	if r.Server.IsValid() {
		out.Upstream = r.Server.String()
	}
	return out
}

var sources = map[forward.Source]dnsv1.Answer_Source{
	forward.None:     dnsv1.Answer_SOURCE_NONE,
	forward.Upstream: dnsv1.Answer_SOURCE_FORWARDED,
	forward.Cache:    dnsv1.Answer_SOURCE_CACHE,
}

func recordsOf(in []dns.RR) []*dnsv1.Record {
	var out []*dnsv1.Record
	for _, rr := range in {
		h := rr.Header()
		out = append(out, &dnsv1.Record{
			Name: h.Name, Ttl: h.Ttl, Type: dns.TypeToString[h.Rrtype], Data: strings.TrimPrefix(rr.String(), h.String()),
		})
	}
	return out
}
