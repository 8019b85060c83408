package lb

import (
	"maps"
	"net/netip"
	"slices"

	"podwire.dev/internal/nodestate"
)

// book is what changed of one Service since its last plan, and where its endpoints are: a change of one endpoint is planned
// from it at its own cost and that of its slice, not that of the Service.
type book struct {
	// whole says that the Service is to be planned as a whole: it changed itself, or what is stored was not as it is wanted
	// when it was last planned as a whole.
	whole bool
	// rows name what may have become of rows, pods the UIDs of the Pods whose endpoints may not be stored as they are wanted.
	rows map[backend]bool
	pods map[string]bool
	// holders are the names of the slices that have an address, one for each time; homes those of the derived slices that have
	// a Pod.
	holders map[netip.Addr][]string
	homes   map[home][]string
}

// backend names a row of an endpoint.
type backend struct {
	address netip.Addr
	port    SlicePort
}

// home is a Pod in the slices of one family.
type home struct {
	family Family
	uid    string
}

func (w *World) book(ref Ref) *book {
	b := w.books[ref]
	if b == nil {
		b = &book{whole: true, holders: map[netip.Addr][]string{}, homes: map[home][]string{}}
		w.books[ref] = b
	}
	return b
}

// touch notes that a Pod of a Service may want another endpoint.
func (b *book) touch(uid string) {
	if uid == "" { // nothing tells it from another
		b.whole = true
	}
	if b.pods == nil {
		b.pods = map[string]bool{}
	}
	b.pods[uid] = true
}

// restore notes what becomes of the slices of a Service as one is replaced; either may be nil.
func (b *book) restore(ref Ref, old, now *Slice) {
	for _, x := range []*Slice{old, now} {
		if x != nil && !x.Derived && x.Owner != "" {
			b.whole = true // it may have to go
		}
	}
	left := map[SliceEndpoint]int{}
	same := old != nil && now != nil && old.Service == now.Service && old.Derived == now.Derived && old.Family == now.Family &&
		old.Owner == now.Owner && old.OwnerName == now.OwnerName && maps.Equal(old.Labels, now.Labels) && slices.Equal(old.Ports, now.Ports)
	if !same && (old != nil && old.Derived || now != nil && now.Derived) {
		b.whole = true
	}
	if now != nil && now.Derived && len(now.Endpoints) == 0 {
		b.whole = true // no Pod tells of it
	}
	if same {
		for _, e := range now.Endpoints {
			left[e]++
		}
	}
	if old != nil {
		for i := range old.Endpoints {
			if e := &old.Endpoints[i]; left[*e] > 0 {
				left[*e]--
			} else {
				b.note(ref, old, e, drop1)
			}
		}
	}
	if now == nil {
		return
	}
	for i := range now.Endpoints {
		e := &now.Endpoints[i]
		if n, known := left[*e]; same && known {
			if n == 0 {
				continue // as before
			}
			left[*e]--
		}
		b.note(ref, now, e, add1)
	}
}

// note takes an endpoint into the book or out of it.
func (b *book) note(ref Ref, x *Slice, e *SliceEndpoint, change func([]string, string) []string) {
	if x.Service != ref.Name {
		return
	}
	if b.rows == nil {
		b.rows = map[backend]bool{}
	}
	for _, port := range x.Ports {
		b.rows[backend{e.Address, SlicePort{Name: port.Name, Protocol: port.Protocol, Number: port.Number}}] = true
	}
	set(b.holders, e.Address, change(b.holders[e.Address], x.Name))
	if x.Derived {
		b.touch(e.Target.UID)
		at := home{x.Family, e.Target.UID}
		set(b.homes, at, change(b.homes[at], x.Name))
	}
}

func add1(list []string, name string) []string { return append(list, name) }

func drop1(list []string, name string) []string {
	if i := slices.Index(list, name); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

func set[K comparable](m map[K][]string, k K, list []string) {
	if m[k] = list; len(list) == 0 {
		delete(m, k)
	}
}

// Replan is Plan for one who has what the plans before asked for: where it can, it computes only what may have changed since
// the last Replan, and says so in Plan.Partial.
func (w *World) Replan(ref Ref) Plan {
	b, s := w.book(ref), w.services[ref]
	if !b.whole && s != nil {
		if p, ok := w.partial(s, b); ok {
			b.rows = nil
			if len(p.Writes) == 0 {
				b.pods = nil
			}
			return p
		}
	}
	p := w.Plan(ref)
	b.rows, b.pods = nil, nil
	// What Nodes may announce an address of policy Local follows from all endpoints.
	b.whole = s == nil || len(p.Writes)+len(p.Stale) > 0 || s.Ours && s.ExternalPolicy == nodestate.LocalityLocal
	if s == nil && len(w.slicesOf[ref]) == 0 {
		delete(w.books, ref)
	}
	return p
}

// partial plans what the book names. It gives up where more than slices that exist would change.
func (w *World) partial(s *serviceState, b *book) (Plan, bool) {
	p := Plan{Partial: true, Announcer: w.announcer(s, nil)}
	p.Move = p.Announcer != s.Announcer
	if s.derives() {
		r := rederiving{w: w, s: s, b: b, bins: map[string]*rebin{}}
		if !r.run() {
			return Plan{}, false
		}
		p.Writes = r.writes()
	}
	if !s.Served() {
		return p, true
	}
	for at := range b.rows {
		row, ok := w.row(s, b, at)
		if ok {
			p.Rows = append(p.Rows, row)
		} else {
			p.Gone = append(p.Gone, nodestate.RefOf(row))
		}
	}
	return p, true
}

// row is the row of a backend; ok is false where there is none.
func (w *World) row(s *serviceState, b *book, at backend) (best nodestate.Endpoint, ok bool) {
	best = nodestate.Endpoint{
		ServiceKey: nodestate.ServiceKey{Namespace: s.Namespace, Service: s.Name, Port: at.port.Name, Protocol: at.port.Protocol},
		Address:    at.address, Backend: at.port.Number,
	}
	for _, name := range b.holders[at.address] {
		x := w.slicesOf[s.Ref][name]
		if x == nil || !slices.ContainsFunc(x.Ports, func(p SlicePort) bool {
			return p.Name == at.port.Name && p.Protocol == at.port.Protocol && p.Number == at.port.Number
		}) {
			continue
		}
		for i := range x.Endpoints {
			if x.Endpoints[i].Address != at.address {
				continue
			}
			for _, row := range w.backends(s, x, &x.Endpoints[i]) {
				if row.Port == at.port.Name && row.Protocol == at.port.Protocol && row.Backend == at.port.Number && (!ok || better(row, best)) {
					best, ok = row, true
				}
			}
		}
	}
	return best, ok
}
