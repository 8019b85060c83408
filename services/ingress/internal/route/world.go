package route

import "maps"

// World holds the objects that routes are made of. It belongs to one goroutine; the Tables that it gives do not.
type World struct {
	classes   map[string]Class
	ingresses map[Ref]*Ingress
	services  map[Ref]Service
	slices    map[Ref]map[Ref]Slice // by Service
	sliceOf   map[Ref]Ref           // slice -> Service
	secrets   map[Ref]Secret

	last *Table
	// rules says that last's rules are to be made anew; stale are the Services whose endpoints are.
	rules bool
	stale map[Ref]bool
}

// NewWorld makes an empty World.
func NewWorld() *World {
	return &World{
		classes: map[string]Class{}, ingresses: map[Ref]*Ingress{}, services: map[Ref]Service{},
		slices: map[Ref]map[Ref]Slice{}, sliceOf: map[Ref]Ref{}, secrets: map[Ref]Secret{},
		rules: true, stale: map[Ref]bool{},
	}
}

// SetClass adds an IngressClass or replaces it.
func (w *World) SetClass(c Class) {
	w.rules = w.rules || w.classes[c.Name] != c
	w.classes[c.Name] = c
}

// DeleteClass removes an IngressClass.
func (w *World) DeleteClass(name string) {
	delete(w.classes, name)
	w.rules = true
}

// SetIngress adds an Ingress or replaces it.
func (w *World) SetIngress(in Ingress) {
	w.ingresses[in.Ref] = &in
	w.rules = true
}

// DeleteIngress removes an Ingress.
func (w *World) DeleteIngress(ref Ref) {
	delete(w.ingresses, ref)
	w.rules = true
}

// SetService adds a Service or replaces it.
func (w *World) SetService(s Service) {
	w.services[s.Ref] = s
	w.stale[s.Ref] = true
}

// DeleteService removes a Service.
func (w *World) DeleteService(ref Ref) {
	delete(w.services, ref)
	w.stale[ref] = true
}

// SetSlice adds an EndpointSlice or replaces it.
func (w *World) SetSlice(s Slice) {
	w.DeleteSlice(s.Ref)
	service := Ref{s.Namespace, s.Service}
	if s.Service == "" {
		return
	}
	if w.slices[service] == nil {
		w.slices[service] = map[Ref]Slice{}
	}
	w.slices[service][s.Ref], w.sliceOf[s.Ref] = s, service
	w.stale[service] = true
}

// DeleteSlice removes an EndpointSlice.
func (w *World) DeleteSlice(ref Ref) {
	service, ok := w.sliceOf[ref]
	if !ok {
		return
	}
	delete(w.sliceOf, ref)
	if delete(w.slices[service], ref); len(w.slices[service]) == 0 {
		delete(w.slices, service)
	}
	w.stale[service] = true
}

// SetSecret adds a Secret or replaces it.
func (w *World) SetSecret(s Secret) {
	old, known := w.secrets[s.Ref]
	w.rules = w.rules || !known || old != s
	w.secrets[s.Ref] = s
}

// DeleteSecret removes a Secret.
func (w *World) DeleteSecret(ref Ref) {
	delete(w.secrets, ref)
	w.rules = true
}

// Ours says whether an Ingress is served: its class is one of ours, or it has none and the one default class is ours.
func (w *World) Ours(ref Ref) bool {
	in, ok := w.ingresses[ref]
	return ok && w.ours(in)
}

func (w *World) ours(in *Ingress) bool {
	if in.Class != "" {
		c, ok := w.classes[in.Class]
		return ok && c.Controller == Controller
	}
	defaults, ours := 0, false
	for _, c := range w.classes {
		if c.Default {
			defaults++
			ours = c.Controller == Controller
		}
	}
	return defaults == 1 && ours
}

// Table is the present table. It is the same one as long as nothing changed that concerns it.
func (w *World) Table() *Table {
	switch {
	case w.rules:
		w.last = w.build()
	case len(w.stale) > 0:
		w.last = w.refresh(w.last)
	}
	w.rules = false
	clear(w.stale)
	return w.last
}

// refresh is a table with the same rules, and the endpoints of the Services that changed.
func (w *World) refresh(old *Table) *Table {
	next, changed := *old, false
	for i := range old.backends {
		if b := &old.backends[i]; w.stale[b.Service] {
			made := w.backend(b.key)
			if made.equal(b) {
				continue
			}
			if !changed {
				next.backends, changed = append([]Backend(nil), old.backends...), true
			}
			next.backends[i] = made
		}
	}
	if !changed {
		return old
	}
	return &next
}

// Ingresses are the Ingresses that are served, in no order.
func (w *World) Ingresses() map[Ref]*Ingress {
	out := maps.Clone(w.ingresses)
	maps.DeleteFunc(out, func(_ Ref, in *Ingress) bool { return !w.ours(in) })
	return out
}
