package verbs_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/verbs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// noon is when everything in these tests happens.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 987, time.UTC)

// pool hands out one address, and remembers what became of it.
type pool struct {
	next   int
	log    []string
	refuse error
}

func (p *pool) admit(_ context.Context, a verbs.Attempt[*objectv1.Service]) (verbs.Admission, error) {
	if p.refuse != nil {
		return verbs.Admission{}, p.refuse
	}
	if a.Object.GetSpec().GetClusterIp() != "" {
		return verbs.Admission{}, nil
	}
	p.next++
	ip := fmt.Sprintf("10.96.0.%d", p.next)
	a.Object.Spec.ClusterIp = ip
	if a.DryRun {
		p.next--
		return verbs.Admission{}, nil
	}
	p.log = append(p.log, "take "+ip)
	return verbs.Admission{
		Committed: func(_ context.Context, at store.Revision) {
			p.log = append(p.log, fmt.Sprintf("keep %s at %d", ip, at))
		},
		RolledBack: func(context.Context) { p.log = append(p.log, "release "+ip) },
	}, nil
}

// bench is a store with the namespaces `a` and `dying`, and handlers of three kinds.
type bench struct {
	t *testing.T
	*storefake.Fake
	pool       *pool
	removed    []string
	services   *verbs.Handler[*objectv1.Service]
	pods       *verbs.Handler[*objectv1.Pod]
	namespaces *verbs.Handler[*objectv1.Namespace]
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, pool: &pool{}, Fake: storefake.New(store.Kinds{
		"services":   func() store.Object { return &objectv1.Service{} },
		"pods":       func() store.Object { return &objectv1.Pod{} },
		"namespaces": func() store.Object { return &objectv1.Namespace{} },
	})}
	clock := verbs.WithClock(func() time.Time { return noon })
	b.services = verbs.New(b.Store, b.serviceRules(), clock)
	b.pods = verbs.New(b.Store, b.podRules(), clock)
	b.namespaces = verbs.New(b.Store, verbs.Rules[*objectv1.Namespace]{
		Kind: "namespaces", APIVersion: "v1", Noun: "Namespace", Scope: verbs.ClusterScoped, Name: names.DNSLabel,
		Protect: func(ns *objectv1.Namespace) error {
			if ns.GetMetadata().GetName() == "default" {
				return errs.New(errs.Denied, "Namespace default cannot be deleted")
			}
			return nil
		},
		Grace: func(_ *objectv1.Namespace, asked *int32) verbs.Grace { return verbs.Grace{Wait: asked == nil} },
		MarkDeleted: func(ns *objectv1.Namespace) {
			ns.Status = &objectv1.NamespaceStatus{Phase: "Terminating"}
		},
	}, clock)
	for _, name := range []string{"a", "dying", "default"} {
		b.namespace(name)
	}
	if _, err := b.namespaces.Delete(t.Context(), verbs.DeleteRequest{Name: "dying"}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) serviceRules() verbs.Rules[*objectv1.Service] {
	return verbs.Rules[*objectv1.Service]{
		Kind: "services", APIVersion: "v1", Noun: "Service", Scope: verbs.Namespaced, Name: names.DNS1035Label,
		Carry: func(obj, old *objectv1.Service) {
			if old != nil && obj.GetSpec().GetClusterIp() == "" {
				obj.Spec.ClusterIp = old.GetSpec().GetClusterIp()
			}
		},
		Default: func(obj, _ *objectv1.Service) {
			if obj.Spec == nil {
				obj.Spec = &objectv1.ServiceSpec{}
			}
			if obj.Spec.Type == nil {
				obj.Spec.Type = ptr("ClusterIP")
			}
		},
		Validate: func(obj, old *objectv1.Service) []errs.Violation {
			if old != nil && old.GetSpec().GetClusterIp() != obj.GetSpec().GetClusterIp() {
				return []errs.Violation{{Field: "spec.clusterIP", Value: obj.GetSpec().GetClusterIp(), Rule: "field is immutable"}}
			}
			return nil
		},
		ValidateStatus: func(obj, _ *objectv1.Service) []errs.Violation {
			if len(obj.GetStatus().GetConditions()) > 1 {
				return []errs.Violation{{Field: "status.conditions", Rule: "one is enough"}}
			}
			return nil
		},
		Admit: b.pool.admit,
		OnDelete: func(_ context.Context, obj *objectv1.Service, at store.Revision) {
			b.removed = append(b.removed, fmt.Sprintf("%s at %d", obj.GetSpec().GetClusterIp(), at))
		},
	}
}

func (b *bench) podRules() verbs.Rules[*objectv1.Pod] {
	return verbs.Rules[*objectv1.Pod]{
		Kind: "pods", APIVersion: "v1", Noun: "Pod", Scope: verbs.Namespaced,
		Default: func(obj, old *objectv1.Pod) {
			if old == nil {
				obj.Status = &objectv1.PodStatus{Phase: "Pending"}
			}
		},
		Grace: func(_ *objectv1.Pod, asked *int32) verbs.Grace {
			seconds := int32(30)
			if asked != nil {
				seconds = *asked
			}
			return verbs.Grace{Wait: seconds > 0, Seconds: seconds}
		},
	}
}

func (b *bench) namespace(name string) {
	b.t.Helper()
	ns := &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name}}
	if _, err := b.namespaces.Apply(b.t.Context(), verbs.ApplyRequest[*objectv1.Namespace]{Object: ns}); err != nil {
		b.t.Fatal(err)
	}
}

func service(name string, edits ...func(*objectv1.Service)) *objectv1.Service {
	svc := &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: name},
		Spec:     &objectv1.ServiceSpec{},
	}
	for _, edit := range edits {
		edit(svc)
	}
	return svc
}

func externalName(name string) func(*objectv1.Service) {
	return func(s *objectv1.Service) { s.Spec.ExternalName = name }
}

func labels(pairs ...string) func(*objectv1.Service) {
	return func(s *objectv1.Service) {
		s.Metadata.Labels = make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			s.Metadata.Labels[pairs[i]] = pairs[i+1]
		}
	}
}

// apply is an Apply that must succeed.
func (b *bench) apply(svc *objectv1.Service) verbs.Result[*objectv1.Service] {
	b.t.Helper()
	res, err := b.services.Apply(b.t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: svc})
	if err != nil {
		b.t.Fatal(err)
	}
	return res
}

// get is what is stored.
func (b *bench) get(name string) *objectv1.Service {
	b.t.Helper()
	svc, _, err := b.services.Get(b.t.Context(), "a", name)
	if err != nil {
		b.t.Fatal(err)
	}
	return svc
}

func ptr[T any](v T) *T { return &v }

func wantKind(t *testing.T, err error, kind errs.Kind) {
	t.Helper()
	if !errs.Is(err, kind) {
		t.Fatalf("got error %v of kind %v, want %v", err, errs.KindOf(err), kind)
	}
}
