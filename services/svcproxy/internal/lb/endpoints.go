package lb

import (
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// placement is what a Service's derived slices become.
type placement struct {
	w *World
	s *serviceState
	// free are derived slices of the family that nothing is in (any more), by name; they are used before new ones.
	free   []*Slice
	wanted []Slice
	taken  map[string]bool // names of new slices
}

// derive returns the slices that a Service wants, changed or not, and those derived ones that are to go.
func (w *World) derive(s *serviceState) (wanted []Slice, stale []Ref) {
	taken := map[string]bool{}
	stored := slices.SortedFunc(maps.Values(w.slicesOf[s.Ref]), func(a, b *Slice) int { return strings.Compare(a.Name, b.Name) })
	for _, family := range s.Families {
		p := placement{w: w, s: s, taken: taken}
		p.place(family, slices.DeleteFunc(slices.Clone(stored), func(x *Slice) bool {
			return !x.Derived || x.Family != family || x.Service != s.Name
		}))
		wanted = append(wanted, p.wanted...)
	}
	for _, x := range stored {
		kept := slices.ContainsFunc(wanted, func(y Slice) bool { return y.Ref == x.Ref })
		if !kept && (x.Derived || x.Owner != "" && x.OwnerName == s.Name && x.Owner != s.UID) {
			stale = append(stale, x.Ref)
		}
	}
	return wanted, stale
}

// group are the endpoints that have the same ports.
type group struct {
	ports     []SlicePort
	endpoints map[string]SliceEndpoint // by UID of the Pod
}

// place distributes the endpoints of one family: each stays in its slice while the slice has the right ports, new ones
// go where there is room, and a slice that is changed anyway is preferred.
func (p *placement) place(family Family, stored []*Slice) {
	groups := p.groups(family)
	bins := map[string][]*Slice{}
	for _, x := range stored {
		key := portsKey(x.Ports)
		if groups[key] == nil {
			p.free = append(p.free, x)
			continue
		}
		bins[key] = append(bins[key], x)
	}
	keys := slices.Sorted(maps.Keys(groups))
	placed := map[string][]bin{}
	for _, key := range keys {
		for _, x := range bins[key] {
			b := keep(x, groups[key])
			if len(b.endpoints) == 0 {
				p.free = append(p.free, x)
				continue
			}
			placed[key] = append(placed[key], b)
		}
	}
	slices.SortFunc(p.free, func(a, b *Slice) int { return strings.Compare(a.Name, b.Name) })
	for _, key := range keys {
		p.fill(family, key, groups[key], placed[key])
	}
	if len(keys) == 0 {
		p.add(family, p.name(family, ""), nil, nil)
	}
}

// bin is a slice that is being filled.
type bin struct {
	name      string
	endpoints []SliceEndpoint
	changed   bool
}

// keep takes from a group what a slice holds of it already.
func keep(x *Slice, g *group) bin {
	b := bin{name: x.Name}
	for _, have := range x.Endpoints {
		want, ok := g.endpoints[have.Target.UID]
		if !ok || len(b.endpoints) == maxSliceEndpoints {
			b.changed = true
			continue
		}
		delete(g.endpoints, have.Target.UID)
		b.endpoints = append(b.endpoints, want)
		b.changed = b.changed || want != have
	}
	return b
}

// fill puts what is left of a group into its bins, and opens new ones.
func (p *placement) fill(family Family, key string, g *group, bins []bin) {
	left := slices.SortedFunc(maps.Values(g.endpoints), compareEndpoints)
	for _, changed := range []bool{true, false} {
		for i := range bins {
			if bins[i].changed == changed {
				n := min(len(left), maxSliceEndpoints-len(bins[i].endpoints))
				bins[i].endpoints = append(bins[i].endpoints, left[:n]...)
				left = left[n:]
			}
		}
	}
	for len(left) > 0 {
		n := min(len(left), maxSliceEndpoints)
		bins = append(bins, bin{name: p.name(family, key), endpoints: left[:n]})
		left = left[n:]
	}
	for _, b := range bins {
		p.add(family, b.name, g.ports, b.endpoints)
	}
}

func (p *placement) add(family Family, name string, ports []SlicePort, endpoints []SliceEndpoint) {
	labels := mirrored(p.s.Labels)
	labels[LabelServiceName], labels[LabelManagedBy] = p.s.Name, ManagedBy
	if p.s.Headless {
		labels[LabelHeadless] = ""
	}
	p.wanted = append(p.wanted, Slice{
		Ref: Ref{p.s.Namespace, name}, Service: p.s.Name, Derived: true, Owner: p.s.UID, OwnerName: p.s.Name,
		Labels: labels, Family: family, Ports: ports, Endpoints: endpoints,
	})
}

// name is the name of one more slice: a free one, or a new one. New names follow from what they name, so that every
// replica chooses alike, and are of the form that Kubernetes generates.
func (p *placement) name(family Family, key string) string {
	if len(p.free) > 0 {
		x := p.free[0]
		p.free = p.free[1:]
		return x.Name
	}
	const alphabet, length = "bcdfghjklmnpqrstvwxz2456789", 5
	for n := 0; ; n++ {
		sum := sha256.Sum256([]byte(p.s.UID + "\x02" + string(family) + "\x02" + key + "\x02" + strconv.Itoa(n)))
		var suffix [length]byte
		for i := range suffix {
			suffix[i] = alphabet[int(sum[i])%len(alphabet)]
		}
		name := p.s.Name + "-" + string(suffix[:])
		if p.w.slices[Ref{p.s.Namespace, name}] == nil && !p.taken[name] {
			p.taken[name] = true
			return name
		}
	}
}

// groups are the endpoints of one family, by their ports.
func (p *placement) groups(family Family) map[string]*group {
	out := map[string]*group{}
	for pod := range p.s.pods {
		at := slices.IndexFunc(pod.Addresses, func(a netip.Addr) bool { return FamilyOf(a) == family })
		if at < 0 {
			continue
		}
		ports := p.s.portsOf(&pod.Pod)
		key := portsKey(ports)
		if out[key] == nil {
			out[key] = &group{ports: ports, endpoints: map[string]SliceEndpoint{}}
		}
		out[key].endpoints[pod.UID] = p.endpoint(&pod.Pod, pod.Addresses[at])
	}
	return out
}

// portsOf are the Service's ports as a Pod has them; a named one that the Pod has not is left out.
func (s *Service) portsOf(pod *Pod) []SlicePort {
	var out []SlicePort
	for _, port := range s.Ports {
		if number, ok := pod.resolve(port); ok {
			out = append(out, SlicePort{port.Name, port.Protocol, number, port.AppProtocol})
		}
	}
	return out
}

// endpoint is one Pod's, with the conditions of KEP-1672.
func (p *placement) endpoint(pod *Pod, a netip.Addr) SliceEndpoint {
	e := SliceEndpoint{
		Address: a, Serving: pod.Ready, Terminating: pod.Terminating, Node: pod.Node, Zone: p.w.nodes[pod.Node].Zone,
		Target: Target{"Pod", pod.Namespace, pod.Name, pod.UID},
	}
	e.Ready = p.s.PublishNotReady || pod.Ready && !pod.Terminating
	if pod.Hostname != "" && pod.Subdomain == p.s.Name {
		e.Hostname = pod.Hostname
	}
	if !e.Ready {
		return e
	}
	switch p.s.Distribution {
	case preferClose, preferSameZone:
		e.HintZones = e.Zone
	case preferSameNode:
		e.HintZones, e.HintNodes = e.Zone, e.Node
	}
	return e
}
