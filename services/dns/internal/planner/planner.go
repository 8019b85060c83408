// Package planner holds the dns service's World and makes Views of it: it hands records of the store to package zone, and
// publishes what came of them.
//
// In: records and events. Out: Views, one for each plan, in the order of revisions. Invariants: a new World is published
// when it is complete, never while it is filled. It pushes nothing and writes nothing. It must not answer anything itself.
package planner

import (
	"net/netip"
	"sync"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/resolvconf"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/dns/internal/zone"
)

// The store's kinds that the World is made of.
const (
	KindNamespace = "namespaces"
	KindService   = "services"
	KindSlice     = "endpointslices.discovery.k8s.io"
	KindPod       = "pods"
)

// Planner implements feed.Planner. The feed's goroutine owns it, but for SetRanges.
type Planner struct {
	domain  string
	seed    uint64
	publish func(*zone.View)
	world   *zone.World
	pods    map[zone.Ref]resolvconf.Pod

	mu     sync.Mutex
	ranges []netip.Prefix
}

// New makes a Planner of a cluster domain, which hands each View to publish. seed is any number that outsiders do not know.
func New(domain string, seed uint64, publish func(*zone.View)) *Planner {
	p := &Planner{domain: domain, seed: seed, publish: publish}
	p.Reset()
	return p
}

// SetRanges says which addresses are the cluster's, from the next plan on.
func (p *Planner) SetRanges(ranges []netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ranges = ranges
}

// Pod is what a Pod's resolver configuration is made from, inside feed.Do only.
func (p *Planner) Pod(ref zone.Ref) (resolvconf.Pod, bool) {
	pod, ok := p.pods[ref]
	return pod, ok
}

// Reset implements feed.Planner.
func (p *Planner) Reset() {
	p.world = zone.NewWorld(p.domain, p.seed)
	p.pods = map[zone.Ref]resolvconf.Pod{}
}

// Put implements feed.Planner.
func (p *Planner) Put(rec store.Record) {
	switch o := rec.Object.(type) {
	case *objectv1.Namespace:
		p.world.SetNamespace(rec.Key.Name)
	case *objectv1.Service:
		p.world.SetService(o)
	case *objectv1.EndpointSlice:
		p.world.SetSlice(o)
	case *objectv1.Pod:
		p.world.SetPod(o)
		p.pods[refOf(rec.Key)] = resolvconf.PodOf(o)
	}
}

// Delete implements feed.Planner.
func (p *Planner) Delete(ev store.Event) {
	ref := refOf(ev.Key)
	switch ev.Key.Kind {
	case KindNamespace:
		p.world.DeleteNamespace(ref.Name)
	case KindService:
		p.world.DeleteService(ref)
	case KindSlice:
		p.world.DeleteSlice(ref)
	case KindPod:
		p.world.DeletePod(ref)
		delete(p.pods, ref)
	}
}

// Plan implements feed.Planner: what is planned is answered from now on.
func (p *Planner) Plan(at store.Revision) (feed.Plan, error) {
	p.mu.Lock()
	p.world.SetRanges(p.ranges)
	p.mu.Unlock()
	p.publish(p.world.Publish(int64(at)))
	return feed.Plan{}, nil
}

func refOf(k store.Key) zone.Ref { return zone.Ref{Namespace: k.Namespace, Name: k.Name} }
