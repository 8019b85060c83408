package zone

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Ref names an object of a Namespace.
type Ref struct{ Namespace, Name string }

// String is <namespace>/<name>.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// serverService is the Service that clients reach this service by.
var serverService = Ref{"kube-system", "kube-dns"}

// World takes changes in and makes Views. One goroutine owns it.
type World struct {
	view View
	edit *edit
	// What the trees are computed from: only the owner reads it.
	services map[Ref]*source
	pods     map[Ref]podSource
	// owners are the Services of the slices.
	owners map[Ref]Ref
}

// source is a Service as it was read.
type source struct {
	spec   *spec // nil: slices without a Service
	slices map[string]slice
}

type podSource struct{ addrs []netip.Addr }

// podAddr is an address as a Pod of a namespace has it.
type podAddr struct {
	namespace string
	addr      netip.Addr
}

// population is what makes the names <ns>.svc and <ns>.pod exist.
type population struct {
	object         bool
	services, pods int
}

// NewWorld makes an empty World of a cluster domain, such as "cluster.local"; its letters are folded to lower case. seed
// is any number that outsiders do not know.
func NewWorld(domain string, seed uint64) *World {
	domain = strings.ToLower(strings.TrimSuffix(domain, ".")) + "."
	w := &World{edit: new(edit), services: map[Ref]*source{}, pods: map[Ref]podSource{}, owners: map[Ref]Ref{}}
	w.view = View{
		domain:     domain,
		services:   tree[Ref, *service]{hash: hashRef, seed: seed},
		namespaces: tree[string, population]{hash: hashName, seed: seed},
		pods:       tree[podAddr, []string]{hash: hashPodAddr, seed: seed},
		reverse:    tree[netip.Addr, []pointer]{hash: hashAddr, seed: seed},
	}
	return w
}

// Publish is the View of everything so far, at a revision of the store.
func (w *World) Publish(revision int64) *View {
	v := w.view
	v.revision, v.authority = revision, startOf(v.domain, v.domain, revision)
	w.edit = new(edit) // from here on the published nodes are copied, not changed
	return &v
}

// SetRanges says which addresses are the cluster's: the zone answers for their reverse names with authority.
func (w *World) SetRanges(ranges []netip.Prefix) {
	w.view.ranges = nil
	for _, p := range ranges {
		if p.IsValid() {
			w.view.ranges = append(w.view.ranges, p.Masked())
		}
	}
}

// SetNamespace adds a Namespace.
func (w *World) SetNamespace(name string) { w.populate(name, func(p *population) { p.object = true }) }

// DeleteNamespace removes one.
func (w *World) DeleteNamespace(name string) {
	w.populate(name, func(p *population) { p.object = false })
}

func (w *World) populate(name string, change func(*population)) {
	before, _ := w.view.namespaces.get(name)
	after := before
	change(&after)
	switch {
	case after == before:
	case after == population{}:
		w.view.namespaces.remove(w.edit, name)
	default:
		w.view.namespaces.set(w.edit, name, after)
	}
}

// SetPod adds a Pod or replaces it. One that has finished has no address any more.
func (w *World) SetPod(o *objectv1.Pod) {
	ref := refOf(o.GetMetadata())
	var addrs []netip.Addr
	if phase := o.GetStatus().GetPhase(); phase != "Succeeded" && phase != "Failed" {
		for _, ip := range o.GetStatus().GetPodIps() {
			addrs = appendAddr(addrs, ip.GetIp())
		}
		addrs = appendAddr(addrs, o.GetStatus().GetPodIp())
	}
	before := w.pods[ref].addrs
	if slices.Equal(before, addrs) {
		return
	}
	w.setPod(ref, before, addrs)
}

// DeletePod removes one.
func (w *World) DeletePod(ref Ref) { w.setPod(ref, w.pods[ref].addrs, nil) }

func (w *World) setPod(ref Ref, before, after []netip.Addr) {
	for _, a := range before {
		key := podAddr{ref.Namespace, a}
		names, _ := w.view.pods.get(key)
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == ref.Name })
		if len(names) == 0 {
			w.view.pods.remove(w.edit, key)
		} else {
			w.view.pods.set(w.edit, key, names)
		}
	}
	for _, a := range after {
		key := podAddr{ref.Namespace, a}
		names, _ := w.view.pods.get(key)
		names = append(slices.Clone(names), ref.Name)
		slices.Sort(names)
		w.view.pods.set(w.edit, key, names)
	}
	if len(after) == 0 {
		delete(w.pods, ref)
	} else {
		w.pods[ref] = podSource{after}
	}
	w.populate(ref.Namespace, func(p *population) { p.pods += min(len(after), 1) - min(len(before), 1) })
}

// SetService adds a Service or replaces it.
func (w *World) SetService(o *objectv1.Service) {
	ref := refOf(o.GetMetadata())
	s := w.source(ref)
	s.spec = readService(o)
	w.compile(ref, s)
}

// DeleteService removes one.
func (w *World) DeleteService(ref Ref) {
	if s := w.services[ref]; s != nil {
		s.spec = nil
		w.compile(ref, s)
	}
}

// SetSlice adds an EndpointSlice or replaces it. Its label kubernetes.io/service-name says whose it is; a slice without it
// is nobody's.
func (w *World) SetSlice(o *objectv1.EndpointSlice) {
	ref := refOf(o.GetMetadata())
	owner := Ref{ref.Namespace, o.GetMetadata().GetLabels()["kubernetes.io/service-name"]}
	if w.owners[ref] != owner {
		w.DeleteSlice(ref) // of another Service until now
	}
	if owner.Name == "" {
		return
	}
	w.owners[ref] = owner
	s := w.source(owner)
	if s.slices == nil {
		s.slices = map[string]slice{}
	}
	s.slices[ref.Name] = readSlice(o)
	w.compile(owner, s)
}

// DeleteSlice removes an EndpointSlice.
func (w *World) DeleteSlice(ref Ref) {
	owner := w.owners[ref]
	delete(w.owners, ref)
	if s := w.services[owner]; s != nil {
		delete(s.slices, ref.Name)
		w.compile(owner, s)
	}
}

func (w *World) source(ref Ref) *source {
	s := w.services[ref]
	if s == nil {
		s = &source{}
		w.services[ref] = s
	}
	return s
}

// compile computes a Service anew and puts it in the place of what it was.
func (w *World) compile(ref Ref, s *source) {
	if s.spec == nil && len(s.slices) == 0 {
		delete(w.services, ref)
	}
	before, had := w.view.services.get(ref)
	var after *service
	if s.spec != nil {
		after = compile(ref, *s.spec, s.slices, w.view.domain)
	}
	var old, next []pointer
	if had {
		old = before.pointers
	}
	if after != nil {
		next = after.pointers
		w.view.services.set(w.edit, ref, after)
	} else if had {
		w.view.services.remove(w.edit, ref)
	}
	w.repoint(old, next)
	if had != (after != nil) {
		step := 1
		if had {
			step = -1
		}
		w.populate(ref.Namespace, func(p *population) { p.services += step })
	}
}

// pointer is one PTR record: both lists are sorted.
type pointer struct {
	addr netip.Addr
	ref  Ref
	// host is the endpoint's label; empty for the Service itself.
	host string
	// name is the complete target.
	name string
}

func (p pointer) compare(o pointer) int {
	return cmp.Or(p.addr.Compare(o.addr), cmp.Compare(p.name, o.name))
}

// repoint takes the difference of two sorted lists into the reverse tree.
func (w *World) repoint(old, next []pointer) {
	for len(old) > 0 || len(next) > 0 {
		var c int
		switch {
		case len(old) == 0:
			c = 1
		case len(next) == 0:
			c = -1
		default:
			c = old[0].compare(next[0])
		}
		switch {
		case c < 0:
			held, _ := w.view.reverse.get(old[0].addr)
			held = slices.DeleteFunc(slices.Clone(held), func(p pointer) bool { return p == old[0] })
			if len(held) == 0 {
				w.view.reverse.remove(w.edit, old[0].addr)
			} else {
				w.view.reverse.set(w.edit, old[0].addr, held)
			}
			old = old[1:]
		case c > 0:
			held, _ := w.view.reverse.get(next[0].addr)
			held = append(slices.Clone(held), next[0])
			slices.SortFunc(held, pointer.compare)
			w.view.reverse.set(w.edit, next[0].addr, held)
			next = next[1:]
		default:
			old, next = old[1:], next[1:]
		}
	}
}

func refOf(m *objectv1.ObjectMeta) Ref { return Ref{m.GetNamespace(), m.GetName()} }

// appendAddr adds an address that parses and is not there yet.
func appendAddr(to []netip.Addr, text string) []netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return to // an address that does not parse is nobody's
	}
	if a = a.Unmap(); slices.Contains(to, a) {
		return to
	}
	return append(to, a)
}
