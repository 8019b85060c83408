package lb

import (
	"maps"
	"slices"

	"podwire.dev/internal/nodestate"
)

// label is one label of objects of one namespace.
type label struct{ namespace, key, value string }

type podState struct {
	Pod
	services map[*serviceState]bool // that select it
}

type serviceState struct {
	Service
	pods map[*podState]bool
}

// World is what svcproxy knows of the cluster. It is not safe for concurrent use.
type World struct {
	services map[Ref]*serviceState
	// slices of a Service, by their names; the Service need not exist.
	slicesOf map[Ref]map[string]*Slice
	slices   map[Ref]*Slice
	pods     map[Ref]*podState
	nodes    map[string]Node
	// podsBy finds the Pods with a label, selecting the Services whose selector begins with it, podsOn the Pods of a
	// Node, and balanced the Services that are ours to announce.
	podsBy    map[label]map[*podState]bool
	selecting map[label]map[*serviceState]bool
	podsOn    map[string]map[*podState]bool
	balanced  map[*serviceState]bool
	dirty     map[Ref]bool
	books     map[Ref]*book
	byUID     map[string]*podState
}

// NewWorld returns an empty World.
func NewWorld() *World {
	return &World{
		services: map[Ref]*serviceState{}, slicesOf: map[Ref]map[string]*Slice{}, slices: map[Ref]*Slice{},
		pods: map[Ref]*podState{}, nodes: map[string]Node{}, podsBy: map[label]map[*podState]bool{},
		selecting: map[label]map[*serviceState]bool{}, podsOn: map[string]map[*podState]bool{},
		balanced: map[*serviceState]bool{}, dirty: map[Ref]bool{},
		books: map[Ref]*book{}, byUID: map[string]*podState{},
	}
}

// Dirty returns the Services whose plan may have changed since the last call, sorted, and forgets them. They need not
// exist (any more).
func (w *World) Dirty() []Ref {
	if len(w.dirty) == 0 {
		return nil
	}
	refs := slices.SortedFunc(maps.Keys(w.dirty), Ref.Compare)
	clear(w.dirty)
	return refs
}

// Services returns the Services, sorted.
func (w *World) Services() []Ref { return slices.SortedFunc(maps.Keys(w.services), Ref.Compare) }

// first is the label by which a Service is found: the first of its selector.
func (s *serviceState) first() label {
	key := slices.Min(slices.Collect(maps.Keys(s.Selector)))
	return label{s.Namespace, key, s.Selector[key]}
}

// SetService adds a Service or replaces what is known of it.
func (w *World) SetService(service Service) {
	w.dirty[service.Ref], w.book(service.Ref).whole = true, true
	old := w.services[service.Ref]
	if old != nil && maps.Equal(old.Selector, service.Selector) && old.derives() == service.derives() {
		old.Service = service // the Pods are the same
		w.balance(old)
		return
	}
	w.DeleteService(service.Ref)
	s := &serviceState{Service: service, pods: map[*podState]bool{}}
	w.services[service.Ref] = s
	w.balance(s)
	if !s.derives() {
		return
	}
	first := s.first()
	put(w.selecting, first, s)
	for p := range w.podsBy[first] {
		if s.selects(p.Labels) {
			p.services[s], s.pods[p] = true, true
		}
	}
}

func (w *World) balance(s *serviceState) {
	if s.Ours {
		w.balanced[s] = true
	} else {
		delete(w.balanced, s)
	}
}

// DeleteService forgets a Service.
func (w *World) DeleteService(ref Ref) {
	s := w.services[ref]
	if s == nil {
		return
	}
	w.dirty[ref], w.book(ref).whole = true, true
	delete(w.services, ref)
	delete(w.balanced, s)
	for p := range s.pods {
		delete(p.services, s)
	}
	if s.derives() {
		drop(w.selecting, s.first(), s)
	}
}

// SetSlice adds an EndpointSlice or replaces what is known of it.
func (w *World) SetSlice(slice Slice) {
	old := w.slices[slice.Ref]
	w.forgetSlice(slice.Ref)
	if old != nil {
		for _, ref := range old.belongs() {
			now := &slice
			if !slices.Contains(slice.belongs(), ref) {
				now = nil
			}
			w.book(ref).restore(ref, old, now)
		}
	}
	w.slices[slice.Ref] = &slice
	for _, ref := range slice.belongs() {
		if old == nil || !slices.Contains(old.belongs(), ref) {
			w.book(ref).restore(ref, nil, &slice)
		}
		if w.slicesOf[ref] == nil {
			w.slicesOf[ref] = map[string]*Slice{}
		}
		w.slicesOf[ref][slice.Name] = &slice
		w.dirty[ref] = true
	}
}

// DeleteSlice forgets an EndpointSlice.
func (w *World) DeleteSlice(ref Ref) {
	if old := w.slices[ref]; old != nil {
		for _, service := range old.belongs() {
			w.book(service).restore(service, old, nil)
		}
	}
	w.forgetSlice(ref)
}

func (w *World) forgetSlice(ref Ref) {
	slice := w.slices[ref]
	if slice == nil {
		return
	}
	delete(w.slices, ref)
	for _, service := range slice.belongs() {
		w.dirty[service] = true
		delete(w.slicesOf[service], ref.Name)
		if len(w.slicesOf[service]) == 0 {
			delete(w.slicesOf, service)
		}
	}
}

// belongs are the Services that a slice concerns: the one that it is labelled for and the one that owns it.
func (s *Slice) belongs() []Ref {
	var out []Ref
	if s.Service != "" {
		out = append(out, Ref{s.Namespace, s.Service})
	}
	if s.Owner != "" && s.OwnerName != s.Service {
		out = append(out, Ref{s.Namespace, s.OwnerName})
	}
	return out
}

// SetPod adds a Pod or replaces what is known of it.
func (w *World) SetPod(pod Pod) {
	old := w.pods[pod.Ref]
	if old != nil && samePod(old.Pod, pod) {
		return
	}
	if old != nil && maps.Equal(old.Labels, pod.Labels) && old.Node == pod.Node {
		w.dirtyServices(old) // by the UID that it had
		w.unnamed(old)
		old.Pod = pod // the Services are the same
		w.byUID[pod.UID] = old
		w.dirtyServices(old)
		return
	}
	w.DeletePod(pod.Ref)
	p := &podState{Pod: pod, services: map[*serviceState]bool{}}
	w.pods[pod.Ref] = p
	w.byUID[pod.UID] = p
	if pod.Node != "" {
		put(w.podsOn, pod.Node, p)
	}
	for key, value := range pod.Labels {
		at := label{pod.Namespace, key, value}
		put(w.podsBy, at, p)
		for s := range w.selecting[at] {
			if s.selects(pod.Labels) {
				p.services[s], s.pods[p] = true, true
			}
		}
	}
	w.dirtyServices(p)
}

func (w *World) dirtyServices(p *podState) {
	for s := range p.services {
		w.dirty[s.Ref] = true
		w.book(s.Ref).touch(p.UID)
	}
}

// unnamed forgets the UID of a Pod.
func (w *World) unnamed(p *podState) {
	if w.byUID[p.UID] == p {
		delete(w.byUID, p.UID)
	}
}

// DeletePod forgets a Pod.
func (w *World) DeletePod(ref Ref) {
	p := w.pods[ref]
	if p == nil {
		return
	}
	w.dirtyServices(p)
	delete(w.pods, ref)
	w.unnamed(p)
	for s := range p.services {
		delete(s.pods, p)
	}
	if p.Node != "" {
		drop(w.podsOn, p.Node, p)
	}
	for key, value := range p.Labels {
		drop(w.podsBy, label{ref.Namespace, key, value}, p)
	}
}

// SetNode adds a Node or replaces what is known of it.
func (w *World) SetNode(node Node) {
	old, known := w.nodes[node.Name]
	if known && sameNode(old, node) {
		return
	}
	w.nodes[node.Name] = node
	if old.Zone != node.Zone {
		w.rezone(node.Name)
	}
	if old.Able != node.Able {
		w.reannounce(node.Name)
	}
}

// DeleteNode forgets a Node.
func (w *World) DeleteNode(name string) {
	old, known := w.nodes[name]
	if !known {
		return
	}
	delete(w.nodes, name)
	if old.Zone != "" {
		w.rezone(name)
	}
	w.reannounce(name)
}

func (w *World) rezone(node string) {
	for p := range w.podsOn[node] {
		w.dirtyServices(p)
	}
}

// reannounce makes dirty what may choose otherwise since a Node became able to announce, or unable: what it announces,
// what no able Node announces, and what only Nodes with an endpoint may, since a ready one goes before one that ends.
func (w *World) reannounce(node string) {
	for s := range w.balanced {
		if s.Announcer == node || !w.nodes[s.Announcer].Able || s.ExternalPolicy == nodestate.LocalityLocal {
			w.dirty[s.Ref] = true
		}
	}
}

func put[K, V comparable](m map[K]map[V]bool, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]bool{}
	}
	m[k][v] = true
}

func drop[K, V comparable](m map[K]map[V]bool, k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}
