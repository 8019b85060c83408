package planner

import (
	"maps"
	"slices"
	"strings"

	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
)

// Has says whether a Service exists, and whether its Namespace may get it where it does not.
func (p *Planner) Has(ref lb.Ref) (exists, possible bool) {
	_, exists = p.services.get(ref)
	return exists, p.namespaces[ref.Namespace]
}

// Pending are the Services that lack a load balancer address, sorted.
func (p *Planner) Pending() []*objectv1.Service {
	var out []*objectv1.Service
	for _, of := range p.services {
		for _, rec := range of {
			if o, ok := rec.Object.(*objectv1.Service); ok && lb.Pending(o) {
				out = append(out, o)
			}
		}
	}
	slices.SortFunc(out, func(a, b *objectv1.Service) int { return refOf(a).Compare(refOf(b)) })
	return out
}

func refOf(o *objectv1.Service) lb.Ref {
	return lb.Ref{Namespace: o.GetMetadata().GetNamespace(), Name: o.GetMetadata().GetName()}
}

// Discord is where the Services and ipam's claims disagree: what ipam holds for a Service that does not use it, and what
// a Service uses that ipam does not hold.
type Discord struct {
	// Service is the Service as stored.
	Service *objectv1.Service
	// Unused are names of AddressClaims; Unclaimed are values.
	Unused    []string
	Unclaimed []lb.Value
}

// Discords compares every Service with ipam's claims. What names a Service that does not exist is ipam's to collect.
func (p *Planner) Discords() []Discord {
	held := map[string]map[lb.Value]string{} // UID -> value -> name of the claim
	for name, rec := range p.claims {
		spec := rec.Object.(*objectv1.AddressClaim).GetSpec()
		uid := spec.GetOwner().GetUid()
		if held[uid] == nil {
			held[uid] = map[lb.Value]string{}
		}
		held[uid][lb.Value{Pool: lb.Pool(spec.GetPool()), Text: spec.GetValue()}] = name
	}
	var out []Discord
	for _, of := range p.services {
		for _, rec := range of {
			if d, ok := discord(rec, held); ok {
				out = append(out, d)
			}
		}
	}
	slices.SortFunc(out, func(a, b Discord) int { return refOf(a.Service).Compare(refOf(b.Service)) })
	return out
}

func discord(rec store.Record, held map[string]map[lb.Value]string) (Discord, bool) {
	o, ok := rec.Object.(*objectv1.Service)
	if !ok {
		return Discord{}, false
	}
	d := Discord{Service: o}
	claims := maps.Clone(held[o.GetMetadata().GetUid()])
	for _, value := range lb.Values(o) {
		if _, ok := claims[value]; !ok {
			d.Unclaimed = append(d.Unclaimed, value)
		}
		delete(claims, value)
	}
	d.Unused = slices.Sorted(maps.Values(claims))
	slices.SortFunc(d.Unclaimed, func(a, b lb.Value) int { return strings.Compare(string(a.Pool)+a.Text, string(b.Pool)+b.Text) })
	return d, len(d.Unused) > 0 || len(d.Unclaimed) > 0
}
