// Package planner holds the ingress service's World and plans from it: it gives package route the objects of the store,
// reads certificates from Secrets, and publishes the table that comes of them.
//
// In: records and events. Out: Snapshots for the proxy, one for each plan that changes anything; and the derived writes:
// the addresses in the status of Ingresses, and the deletions of what belongs to a Namespace that ends. Invariants: a new
// World is published when it is complete, never while it is filled; a Secret's content goes nowhere but into a certificate.
// It must not judge Ingresses itself, nor write anything.
package planner

import (
	"log/slog"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/admission"
	"podwire.dev/services/ingress/internal/proxy"
	"podwire.dev/services/ingress/internal/route"
)

// The store's kinds that the World is made of, beside those of package admission and store.SecretKind.
const (
	KindNamespace = "namespaces"
	KindService   = "services"
	KindSlice     = "endpointslices.discovery.k8s.io"
)

// Door is the Service that exposes the ingress: its addresses are those of every Ingress.
func Door() route.Ref { return route.Ref{Namespace: "kube-system", Name: "podwire-ingress"} }

// Publish takes what requests are judged by from now on.
type Publish func(proxy.Snapshot)

// Planner implements feed.Planner. The feed's goroutine owns it.
type Planner struct {
	publish Publish
	log     *slog.Logger

	world     *route.World
	table     *route.Table
	certs     certificates
	ingresses map[route.Ref]store.Record
	secrets   map[route.Ref]store.Record
	door      door
	// ending are the Namespaces that are Terminating, with the change that said so; present are all, and ended those that
	// nobody took yet with TakeEnded.
	ending  map[string]store.Cause
	present map[string]bool
	ended   map[string]bool
	// told are the problems that were logged.
	told map[route.Problem]bool
}

// door is what Door's status says, and the change that made it say so.
type door struct {
	addresses []*objectv1.IngressLoadBalancerIngress
	cause     store.Cause
}

// New makes a Planner with an empty World, which hands what it plans to publish.
func New(publish Publish, log *slog.Logger) *Planner {
	p := &Planner{publish: publish, log: log, told: map[route.Problem]bool{}}
	p.Reset()
	return p
}

// Table is the one that was published last, inside feed.Do only; nil before the first plan.
func (p *Planner) Table() *route.Table { return p.table }

// Reset implements feed.Planner.
func (p *Planner) Reset() {
	*p = Planner{
		publish: p.publish, log: p.log, told: p.told, table: p.table,
		world: route.NewWorld(), certs: newCertificates(),
		ingresses: map[route.Ref]store.Record{}, secrets: map[route.Ref]store.Record{}, ending: map[string]store.Cause{},
		present: map[string]bool{}, ended: map[string]bool{"": true},
	}
}

// Ended says, inside feed.Do, whether the content of a Namespace is to go, since it is Terminating or gone, and why.
func (p *Planner) Ended(namespace string) (store.Cause, bool) {
	cause, ends := p.ending[namespace]
	return cause, ends || !p.present[namespace]
}

// TakeEnded gives, inside feed.Do, the Namespaces that have begun to end since it was asked last. An empty name stands for
// any: a World that begins anew does not know which ended before.
func (p *Planner) TakeEnded() []string {
	taken := slices.Sorted(maps.Keys(p.ended))
	clear(p.ended)
	return taken
}

func refOf(k store.Key) route.Ref { return route.Ref{Namespace: k.Namespace, Name: k.Name} }

// Put implements feed.Planner.
func (p *Planner) Put(rec store.Record) {
	ref := refOf(rec.Key)
	cause := store.Cause{Revision: rec.Revision, Traceparent: rec.Traceparent}
	switch o := rec.Object.(type) {
	case *objectv1.Namespace:
		p.present[ref.Name] = true
		_, known := p.ending[ref.Name]
		switch ends := o.GetMetadata().GetDeletionTimestamp() != nil || o.GetStatus().GetPhase() == "Terminating"; {
		case !ends:
			delete(p.ending, ref.Name)
		case !known: // a later change of the Namespace is not why its content ends
			p.ending[ref.Name] = cause
			p.ended[ref.Name] = true
		}
	case *objectv1.Ingress:
		p.ingresses[ref] = rec
		p.world.SetIngress(route.ParseIngress(o))
	case *objectv1.IngressClass:
		p.world.SetClass(route.ParseClass(o))
	case *objectv1.Service:
		p.world.SetService(route.ParseService(o))
		if ref == Door() {
			p.door.set(addressesOf(o), cause)
		}
	case *objectv1.EndpointSlice:
		p.world.SetSlice(route.ParseSlice(o))
	case *objectv1.Secret:
		p.secrets[ref] = rec
		p.world.SetSecret(route.Secret{Ref: ref, Problem: p.certs.set(ref, o)})
	}
}

// Delete implements feed.Planner.
func (p *Planner) Delete(ev store.Event) {
	ref := refOf(ev.Key)
	switch ev.Key.Kind {
	case KindNamespace:
		delete(p.ending, ref.Name)
		delete(p.present, ref.Name)
		p.ended[ref.Name] = true
	case admission.KindIngress:
		delete(p.ingresses, ref)
		p.world.DeleteIngress(ref)
	case admission.KindIngressClass:
		p.world.DeleteClass(ref.Name)
	case KindService:
		p.world.DeleteService(ref)
		if ref == Door() {
			p.door.set(nil, store.Cause{Revision: ev.Revision, Traceparent: ev.Traceparent})
		}
	case KindSlice:
		p.world.DeleteSlice(ref)
	case store.SecretKind:
		delete(p.secrets, ref)
		p.certs.remove(ref)
		p.world.DeleteSecret(ref)
	}
}

func (d *door) set(addresses []*objectv1.IngressLoadBalancerIngress, cause store.Cause) {
	if !slices.EqualFunc(d.addresses, addresses, func(a, b *objectv1.IngressLoadBalancerIngress) bool { return proto.Equal(a, b) }) {
		d.addresses, d.cause = addresses, cause
	}
}

func addressesOf(o *objectv1.Service) []*objectv1.IngressLoadBalancerIngress {
	var out []*objectv1.IngressLoadBalancerIngress
	for _, in := range o.GetStatus().GetLoadBalancer().GetIngress() {
		out = append(out, &objectv1.IngressLoadBalancerIngress{Ip: in.GetIp(), Hostname: in.GetHostname()})
	}
	return out
}

// Plan implements feed.Planner: what is planned is what requests are judged by from now on.
func (p *Planner) Plan(store.Revision) (feed.Plan, error) {
	table := p.world.Table()
	if table != p.table || p.certs.changed {
		p.publish(proxy.Snapshot{Table: table, Certificates: p.certs.snapshot()})
		p.tell(table)
	}
	p.table = table
	return feed.Plan{Writes: append(p.endings(), p.statuses()...)}, nil
}

// tell logs what does not work, once as long as it does not.
func (p *Planner) tell(table *route.Table) {
	now := map[route.Problem]bool{}
	for _, problem := range table.Problems() {
		now[problem] = true
		if !p.told[problem] {
			p.log.Warn("an Ingress asks for what does not work", "ingress", problem.Ingress, "field", problem.Field, "reason", problem.Reason)
		}
	}
	p.told = now
}

// endings are the deletions of what is in a Namespace that is Terminating.
func (p *Planner) endings() []feed.Write {
	if len(p.ending) == 0 {
		return nil
	}
	var writes []feed.Write
	for _, of := range []map[route.Ref]store.Record{p.ingresses, p.secrets} {
		for _, ref := range slices.SortedFunc(maps.Keys(of), route.Ref.Compare) {
			if cause, ok := p.ending[ref.Namespace]; ok {
				rec := of[ref]
				writes = append(writes, feed.Write{Key: rec.Key, Base: &rec, Cause: cause})
			}
		}
	}
	return writes
}

// statuses are the Ingresses whose status does not say where they are reached. Those of other classes are not ours to say.
func (p *Planner) statuses() []feed.Write {
	var writes []feed.Write
	for _, ref := range slices.SortedFunc(maps.Keys(p.ingresses), route.Ref.Compare) {
		rec := p.ingresses[ref]
		o, ok := rec.Object.(*objectv1.Ingress)
		if _, ends := p.ending[ref.Namespace]; !ok || ends || !p.world.Ours(ref) {
			continue
		}
		want := &objectv1.IngressStatus{LoadBalancer: &objectv1.IngressLoadBalancerStatus{Ingress: p.door.addresses}}
		if slices.EqualFunc(o.GetStatus().GetLoadBalancer().GetIngress(), p.door.addresses,
			func(a, b *objectv1.IngressLoadBalancerIngress) bool { return proto.Equal(a, b) }) {
			continue
		}
		next := proto.Clone(o).(*objectv1.Ingress)
		next.Status = proto.Clone(want).(*objectv1.IngressStatus)
		cause := p.door.cause
		if rec.Revision > cause.Revision {
			cause = store.Cause{Revision: rec.Revision, Traceparent: rec.Traceparent}
		}
		writes = append(writes, feed.Write{Key: rec.Key, Object: next, Base: &rec, Cause: cause})
	}
	return writes
}
