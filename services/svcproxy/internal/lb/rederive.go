package lb

import (
	"net/netip"
	"slices"
	"strings"
)

// rederiving brings the derived slices of a Service to what the Pods that its book names want; nothing else can be lacking.
// The result is that of derive, which it leaves the rest to: slices that are to be made, or emptied.
type rederiving struct {
	w    *World
	s    *serviceState
	b    *book
	bins map[string]*rebin // slices that change, by name
}

// rebin is a slice that changes.
type rebin struct {
	stored    *Slice
	endpoints []SliceEndpoint
}

// run computes the bins; false where it gives up.
func (r *rederiving) run() bool {
	for _, family := range r.s.Families {
		left, ok := r.keep(family)
		if !ok {
			return false
		}
		for _, b := range r.bins {
			if len(b.endpoints) == 0 { // it is to go, or free for others
				return false
			}
		}
		for key, list := range left {
			slices.SortFunc(list, compareEndpoints)
			if !r.fill(family, key, list) {
				return false
			}
		}
	}
	return true
}

func (r *rederiving) bin(x *Slice) *rebin {
	if r.bins[x.Name] == nil {
		r.bins[x.Name] = &rebin{x, slices.Clone(x.Endpoints)}
	}
	return r.bins[x.Name]
}

// keep changes the slices that hold the named Pods, and returns the endpoints that need another, by their ports.
func (r *rederiving) keep(family Family) (left map[string][]SliceEndpoint, ok bool) {
	p := placement{w: r.w, s: r.s}
	for uid := range r.b.pods {
		names := r.b.homes[home{family, uid}]
		if len(names) > 1 {
			return nil, false
		}
		want, key, wants := r.wants(&p, family, uid)
		if len(names) == 0 {
			if wants {
				left = put1(left, key, want)
			}
			continue
		}
		x := r.w.slicesOf[r.s.Ref][names[0]]
		if x == nil || len(x.Endpoints) > maxSliceEndpoints {
			return nil, false
		}
		at := slices.IndexFunc(x.Endpoints, func(e SliceEndpoint) bool { return e.Target.UID == uid })
		stays := wants && portsKey(x.Ports) == key
		if at < 0 || stays && x.Endpoints[at] == want {
			continue
		}
		b := r.bin(x)
		at = slices.IndexFunc(b.endpoints, func(e SliceEndpoint) bool { return e.Target.UID == uid })
		if stays {
			b.endpoints[at] = want
			continue
		}
		b.endpoints = slices.Delete(b.endpoints, at, at+1)
		if wants {
			left = put1(left, key, want)
		}
	}
	return left, true
}

func put1(m map[string][]SliceEndpoint, key string, e SliceEndpoint) map[string][]SliceEndpoint {
	if m == nil {
		m = map[string][]SliceEndpoint{}
	}
	m[key] = append(m[key], e)
	return m
}

// wants is the endpoint that a Pod wants, and its ports.
func (r *rederiving) wants(p *placement, family Family, uid string) (e SliceEndpoint, key string, ok bool) {
	pod := r.w.byUID[uid]
	if pod == nil || !r.s.pods[pod] {
		return e, "", false
	}
	at := slices.IndexFunc(pod.Addresses, func(a netip.Addr) bool { return FamilyOf(a) == family })
	if at < 0 {
		return e, "", false
	}
	return p.endpoint(&pod.Pod, pod.Addresses[at]), portsKey(r.s.portsOf(&pod.Pod)), true
}

// fill puts endpoints where there is room, first into slices that change anyway, each kind in the order of names.
func (r *rederiving) fill(family Family, key string, left []SliceEndpoint) bool {
	var names []string
	room := func(x *Slice, n int) bool {
		return x.Derived && x.Family == family && x.Service == r.s.Name && n < maxSliceEndpoints && portsKey(x.Ports) == key
	}
	for name, b := range r.bins {
		if room(b.stored, len(b.endpoints)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		left = r.bins[name].add(left)
	}
	for len(left) > 0 {
		var next *Slice
		for _, x := range r.w.slicesOf[r.s.Ref] {
			if r.bins[x.Name] == nil && room(x, len(x.Endpoints)) && (next == nil || x.Name < next.Name) {
				next = x
			}
		}
		if next == nil {
			return false
		}
		left = r.bin(next).add(left)
	}
	return true
}

func (b *rebin) add(list []SliceEndpoint) (left []SliceEndpoint) {
	n := min(len(list), maxSliceEndpoints-len(b.endpoints))
	b.endpoints = append(b.endpoints, list[:n]...)
	return list[n:]
}

// writes are the slices that are not stored as they are wanted.
func (r *rederiving) writes() []Slice {
	var out []Slice
	for _, b := range r.bins {
		x := *b.stored
		if x.Endpoints = b.endpoints; !slices.Equal(x.Endpoints, b.stored.Endpoints) {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b Slice) int { return strings.Compare(a.Name, b.Name) })
	return out
}
