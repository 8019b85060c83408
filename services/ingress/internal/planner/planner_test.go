package planner_test

import (
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/admission"
	"podwire.dev/services/ingress/internal/planner"
	"podwire.dev/services/ingress/internal/proxy"
	"podwire.dev/services/ingress/internal/route"
)

// fixture is a planner with what it published and logged.
type fixture struct {
	t         *testing.T
	p         *planner.Planner
	published []proxy.Snapshot
	log       strings.Builder
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t}
	f.p = planner.New(func(s proxy.Snapshot) { f.published = append(f.published, s) }, slog.New(slog.NewTextHandler(&f.log, nil)))
	f.put(admission.KindIngressClass, 1, &objectv1.IngressClass{
		Metadata: &objectv1.ObjectMeta{Name: "ours"}, Spec: &objectv1.IngressClassSpec{Controller: route.Controller},
	})
	return f
}

func (f *fixture) put(kind string, rev store.Revision, o store.Object) {
	f.p.Put(store.Record{Key: store.KeyOf(kind, o), Object: o, Revision: rev, Traceparent: "trace"})
}

func (f *fixture) plan() []feed.Write {
	f.t.Helper()
	made, err := f.p.Plan(1)
	if err != nil || len(made.PerNode) != 0 || !made.Shared.Empty() {
		f.t.Fatalf("%+v, %v", made, err)
	}
	return made.Writes
}

func ingress(ns, name string, addresses ...string) *objectv1.Ingress {
	o := &objectv1.Ingress{
		Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: name},
		Spec: &objectv1.IngressSpec{
			IngressClassName: new("ours"), DefaultBackend: &objectv1.IngressBackend{Service: &objectv1.IngressServiceBackend{Name: "s", Port: &objectv1.ServiceBackendPort{Number: 80}}},
			Tls: []*objectv1.IngressTLS{{Hosts: []string{"a"}, SecretName: "tls"}},
		},
		Status: &objectv1.IngressStatus{LoadBalancer: &objectv1.IngressLoadBalancerStatus{}},
	}
	for _, a := range addresses {
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, &objectv1.IngressLoadBalancerIngress{Ip: a})
	}
	return o
}

func exposed(addresses ...string) *objectv1.Service {
	o := &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: planner.Door().Namespace, Name: planner.Door().Name},
		Status:   &objectv1.ServiceStatus{LoadBalancer: &objectv1.LoadBalancerStatus{}},
	}
	for _, a := range addresses {
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, &objectv1.LoadBalancerIngress{Ip: a})
	}
	return o
}

// TestStatuses plans the addresses of Ingresses again and again until the World shows them written.
func TestStatuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	wants := func(what string, cause store.Revision, addresses ...string) {
		t.Helper()
		writes := f.plan()
		if cause == 0 {
			if len(writes) > 0 {
				t.Errorf("%s: %+v", what, writes)
			}
			return
		}
		if len(writes) != 1 || writes[0].Cause != (store.Cause{Revision: cause, Traceparent: "trace"}) || writes[0].Base == nil ||
			!proto.Equal(writes[0].Object.(*objectv1.Ingress).GetStatus(), ingress("", "", addresses...).GetStatus()) {
			t.Errorf("%s: %+v", what, writes)
		}
	}
	f.put(admission.KindIngress, 2, ingress("default", "i"))
	foreign := ingress("default", "foreign", "198.51.100.1")
	foreign.Spec.IngressClassName = new("theirs")
	f.put(admission.KindIngress, 3, foreign)
	wants("nothing is exposed", 0)
	f.put(planner.KindService, 4, exposed("192.0.2.1", "2001:db8::1"))
	wants("an address", 4, "192.0.2.1", "2001:db8::1")
	wants("still", 4, "192.0.2.1", "2001:db8::1")
	f.put(admission.KindIngress, 5, ingress("default", "i", "192.0.2.1", "2001:db8::1"))
	wants("it is written", 0)
	f.put(planner.KindService, 6, exposed("192.0.2.1", "2001:db8::1"))
	wants("a change of something else", 0)
	f.put(admission.KindIngress, 7, ingress("default", "i"))
	wants("somebody takes it away", 7, "192.0.2.1", "2001:db8::1")
	f.put(admission.KindIngress, 8, ingress("default", "i", "192.0.2.1", "2001:db8::1"))
	f.p.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: store.KeyOf(planner.KindService, exposed()), Revision: 9, Traceparent: "trace"}})
	wants("the Service is gone", 9)
}

// TestEndings plans the deletion of what is in a Namespace that ends, and writes no status there.
func TestEndings(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.put(planner.KindService, 2, exposed("192.0.2.1"))
	f.put(admission.KindIngress, 3, ingress("brief", "i"))
	f.put(store.SecretKind, 4, &objectv1.Secret{Metadata: &objectv1.ObjectMeta{Namespace: "brief", Name: "s"}})
	f.put(planner.KindNamespace, 5, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief", DeletionTimestamp: timestamppb.Now()}})
	f.put(planner.KindNamespace, 6, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief"}, Status: &objectv1.NamespaceStatus{Phase: "Terminating"}})
	writes := f.plan()
	if len(writes) != 2 {
		t.Fatalf("%+v", writes)
	}
	for _, w := range writes {
		if w.Object != nil || w.Base == nil || w.Key.Namespace != "brief" || w.Cause.Revision != 5 {
			t.Errorf("%+v", w)
		}
	}
	f.p.Reset()
	if writes := f.plan(); len(writes) != 0 {
		t.Errorf("a new World: %+v", writes)
	}
}

// TestSecrets reads certificates, and shows nothing of a Secret that is none.
func TestSecrets(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.put(admission.KindIngress, 2, ingress("default", "i"))
	f.plan()
	const treasure = "correct-horse-battery-staple"
	for _, data := range []map[string][]byte{
		nil, {"tls.crt": []byte(treasure)}, {"tls.crt": []byte(treasure), "tls.key": []byte(treasure)},
		{"tls.crt": []byte("-----BEGIN " + treasure + "-----\nAAAA\n-----END " + treasure + "-----\n"), "tls.key": []byte(treasure)},
	} {
		f.put(store.SecretKind, 3, &objectv1.Secret{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "tls"}, Data: data})
		f.plan()
		c := f.p.Table().Certificate("a")
		if c == nil || c.Problem == "" || strings.Contains(c.Problem, treasure) {
			t.Errorf("%v: %+v", data, c)
		}
	}
	if log := f.log.String(); !strings.Contains(log, "Secret default/tls") || strings.Contains(log, treasure) {
		t.Errorf("the log: %s", log)
	}
	if got := strings.Count(f.log.String(), "does not exist"); got != 1 {
		t.Errorf("the missing Secret is logged %d times", got)
	}
}

// TestUnchanged publishes nothing where nothing changed that concerns requests.
func TestUnchanged(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.put(admission.KindIngress, 2, ingress("default", "i"))
	f.plan()
	f.put(planner.KindNamespace, 3, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "x"}})
	f.put(planner.KindSlice, 4, &objectv1.EndpointSlice{Metadata: &objectv1.ObjectMeta{Namespace: "x", Name: "y", Labels: map[string]string{"kubernetes.io/service-name": "other"}}})
	f.plan()
	if len(f.published) != 1 {
		t.Errorf("%d snapshots are published", len(f.published))
	}
	f.put(planner.KindService, 5, &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "s"}, Spec: &objectv1.ServiceSpec{Ports: []*objectv1.ServicePort{{Port: 80}}}})
	f.plan()
	if len(f.published) != 2 {
		t.Errorf("%d snapshots after a Service came", len(f.published))
	}
}
