package api_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/seal"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/kv"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/telemetry"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/admission"
	"podwire.dev/services/ingress/internal/api"
)

// treasure is what no log, error, trace or key of etcd may show.
const treasure = "correct-horse-battery-staple"

type fixture struct {
	fake      *storefake.Fake
	log       *bytes.Buffer
	ingresses *api.Ingresses
	classes   *api.Classes
	secrets   *api.Secrets
}

func kinds() store.Kinds {
	return store.Kinds{
		"namespaces":               func() store.Object { return &objectv1.Namespace{} },
		admission.KindIngress:      func() store.Object { return &objectv1.Ingress{} },
		admission.KindIngressClass: func() store.Object { return &objectv1.IngressClass{} },
		store.SecretKind:           func() store.Object { return &objectv1.Secret{} },
	}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	ring, err := seal.NewKeyring(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{log: &bytes.Buffer{}}
	log := slog.New(slog.NewTextHandler(f.log, nil))
	f.fake = storefake.New(kinds(), store.WithKeys(ring), store.WithLog(log))
	f.ingresses, f.classes, f.secrets = api.NewIngresses(f.fake.Store), api.NewClasses(f.fake.Store), api.NewSecrets(f.fake.Store)
	ns := &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "default"}}
	if _, err := f.fake.Txn().Create(ns, "namespaces").Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

func meta(name string) *objectv1.ObjectMeta {
	return &objectv1.ObjectMeta{Namespace: "default", Name: name}
}

func ingress(name string) *objectv1.Ingress {
	return &objectv1.Ingress{Metadata: meta(name), Spec: &objectv1.IngressSpec{
		DefaultBackend: &objectv1.IngressBackend{Service: &objectv1.IngressServiceBackend{
			Name: "web", Port: &objectv1.ServiceBackendPort{Number: 80},
		}},
	}}
}

func class(name, mark string) *objectv1.IngressClass {
	return &objectv1.IngressClass{
		Metadata: &objectv1.ObjectMeta{Name: name, Annotations: map[string]string{admission.AnnotationDefaultClass: mark}},
		Spec:     &objectv1.IngressClassSpec{Controller: "podwire.dev/ingress"},
	}
}

func (f *fixture) applyIngress(t *testing.T, o *objectv1.Ingress) (*ingressv1.IngressServiceApplyResponse, error) {
	t.Helper()
	return f.ingresses.Apply(t.Context(), &ingressv1.IngressServiceApplyRequest{Object: o})
}

func (f *fixture) applyClass(t *testing.T, o *objectv1.IngressClass) {
	t.Helper()
	if _, err := f.classes.Apply(t.Context(), &ingressv1.IngressClassServiceApplyRequest{Object: o}); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultClassIsFilledInAtCreation(t *testing.T) {
	f := newFixture(t)
	res, err := f.applyIngress(t, ingress("before"))
	if err != nil || res.GetObject().GetSpec().IngressClassName != nil {
		t.Fatalf("without a default class: %v, %v", res, err)
	}
	if err := f.classes.Found(t.Context(), class("nginx-example", "true")); err != nil {
		t.Fatal(err)
	}
	if err := f.classes.Found(t.Context(), class("nginx-example", "false")); !errs.Is(err, errs.Exists) {
		t.Errorf("founded twice: %v", err)
	}
	f.applyClass(t, class("other", "false"))

	dry, err := f.ingresses.Apply(t.Context(), &ingressv1.IngressServiceApplyRequest{Object: ingress("web"), DryRun: true})
	if err != nil || dry.GetObject().GetSpec().GetIngressClassName() != "nginx-example" {
		t.Errorf("dry run: %v, %v", dry, err)
	}
	res, err = f.applyIngress(t, ingress("web"))
	if err != nil || res.GetObject().GetSpec().GetIngressClassName() != "nginx-example" || res.GetObject().GetStatus().GetLoadBalancer() == nil {
		t.Fatalf("created %v, %v", res, err)
	}
	again, err := f.applyIngress(t, ingress("web"))
	if err != nil || again.GetOutcome() != objectv1.Outcome_OUTCOME_UNCHANGED || again.GetRevision() != res.GetRevision() {
		t.Errorf("the same again: %v, %v", again, err)
	}
	// What was created without a class keeps none: the default is for creations.
	if res, err = f.applyIngress(t, ingress("before")); err != nil || res.GetObject().GetSpec().IngressClassName != nil {
		t.Errorf("an update got a class: %v, %v", res, err)
	}

	f.applyClass(t, class("other", "true"))
	if _, err := f.applyIngress(t, ingress("third")); !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), "nginx-example, other") {
		t.Errorf("two default classes: %v", err)
	}
	named := ingress("third")
	other := "other"
	named.Spec.IngressClassName = &other
	if _, err := f.applyIngress(t, named); err != nil {
		t.Errorf("one that names its class: %v", err)
	}
}

// A class that ceases to be the default while an Ingress is created is not given to it.
func TestDefaultClassIsOfTheSameMoment(t *testing.T) {
	f := newFixture(t)
	f.applyClass(t, class("a", "true"))
	f.fake.BeforeTxn(func() { f.applyClass(t, class("a", "false")) })
	res, err := f.applyIngress(t, ingress("web"))
	if err != nil || res.GetObject().GetSpec().IngressClassName != nil {
		t.Errorf("created %v, %v", res, err)
	}
}

func TestIngressVerbs(t *testing.T) {
	f := newFixture(t)
	if _, err := f.applyIngress(t, &objectv1.Ingress{Metadata: meta("web")}); !errs.Is(err, errs.Invalid) {
		t.Errorf("an empty Ingress: %v", err)
	}
	if _, err := f.applyIngress(t, ingress("web")); err != nil {
		t.Fatal(err)
	}
	status := ingress("web")
	status.Status = &objectv1.IngressStatus{LoadBalancer: &objectv1.IngressLoadBalancerStatus{
		Ingress: []*objectv1.IngressLoadBalancerIngress{{Ip: "10.0.0.1"}},
	}}
	if _, err := f.ingresses.UpdateStatus(t.Context(), &ingressv1.IngressServiceUpdateStatusRequest{Object: status}); err != nil {
		t.Fatal(err)
	}
	got, err := f.ingresses.Get(t.Context(), &ingressv1.IngressServiceGetRequest{Name: "web"})
	if err != nil || got.GetObject().GetStatus().GetLoadBalancer().GetIngress()[0].GetIp() != "10.0.0.1" || got.GetObject().GetMetadata().GetGeneration() != 1 {
		t.Errorf("got %v, %v", got, err)
	}
	list, err := f.ingresses.List(t.Context(), &ingressv1.IngressServiceListRequest{AllNamespaces: true})
	if err != nil || len(list.GetItems()) != 1 {
		t.Errorf("list %v, %v", list, err)
	}
	if _, err := f.ingresses.Delete(t.Context(), &ingressv1.IngressServiceDeleteRequest{Name: "web"}); err != nil {
		t.Error(err)
	}
	if _, err := f.ingresses.Get(t.Context(), &ingressv1.IngressServiceGetRequest{Name: "web"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("deleted: %v", err)
	}
}

func TestSecretVerbs(t *testing.T) {
	f := newFixture(t)
	sent := func() *objectv1.Secret {
		return &objectv1.Secret{Metadata: meta("s"), StringData: map[string]string{"password": treasure}}
	}
	apply := func(o *objectv1.Secret, dry bool) (*ingressv1.SecretServiceApplyResponse, error) {
		return f.secrets.Apply(t.Context(), &ingressv1.SecretServiceApplyRequest{Object: o, DryRun: dry})
	}
	dry, err := apply(sent(), true)
	if err != nil || string(dry.GetObject().GetData()["password"]) != treasure {
		t.Errorf("dry run: %v, %v", dry, err)
	}
	if _, err := f.secrets.Get(t.Context(), &ingressv1.SecretServiceGetRequest{Name: "s"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("a dry run wrote: %v", err)
	}
	res, err := apply(sent(), false)
	if err != nil || res.GetObject().GetType() != "Opaque" || len(res.GetObject().GetStringData()) > 0 {
		t.Fatalf("created %v, %v", res, err)
	}
	if g := res.GetObject().GetMetadata().GetGeneration(); g != 0 {
		t.Errorf("generation %d, a Secret has none", g)
	}
	again, err := apply(sent(), false)
	if err != nil || again.GetOutcome() != objectv1.Outcome_OUTCOME_UNCHANGED || again.GetRevision() != res.GetRevision() {
		t.Errorf("the same again: %v, %v", again, err)
	}
	list, err := f.secrets.List(t.Context(), &ingressv1.SecretServiceListRequest{Namespace: "default"})
	if err != nil || len(list.GetItems()) != 1 || string(list.GetItems()[0].GetData()["password"]) != treasure {
		t.Errorf("list %v, %v", list, err)
	}
	stale := int64(1)
	_, err = f.secrets.Apply(t.Context(), &ingressv1.SecretServiceApplyRequest{Object: sent(), ExpectedRevision: &stale})
	if !errs.Is(err, errs.Conflict) {
		t.Errorf("a lost race: %v", err)
	}
}

// Many large Secrets come in pages that fit into a message.
func TestSecretPagesAreBounded(t *testing.T) {
	f := newFixture(t)
	const each, count = 1 << 20, 6
	for i := range count {
		o := &objectv1.Secret{Metadata: meta(fmt.Sprintf("s%d", i)), Data: map[string][]byte{"a": bytes.Repeat([]byte{1}, each)}}
		if _, err := f.secrets.Apply(t.Context(), &ingressv1.SecretServiceApplyRequest{Object: o}); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for req := (&ingressv1.SecretServiceListRequest{Namespace: "default"}); ; {
		page, err := f.secrets.List(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if size := len(page.GetItems()) * each; size > 5<<20 {
			t.Errorf("a page of %d bytes", size)
		}
		for _, o := range page.GetItems() {
			names = append(names, o.GetMetadata().GetName())
		}
		if req.ContinueToken = page.GetContinueToken(); req.ContinueToken == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"s0", "s1", "s2", "s3", "s4", "s5"}) {
		t.Errorf("pages hold %v", names)
	}
}

// A Secret that does not open is an error to who asks for it, and can be deleted.
func TestSecretThatDoesNotOpen(t *testing.T) {
	f := newFixture(t)
	o := &objectv1.Secret{Metadata: meta("s"), StringData: map[string]string{"password": treasure}}
	if _, err := f.secrets.Apply(t.Context(), &ingressv1.SecretServiceApplyRequest{Object: o}); err != nil {
		t.Fatal(err)
	}
	ring, err := seal.NewKeyring(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	other := api.NewSecrets(f.fake.Another(kinds(), store.WithKeys(ring)))
	if _, err := other.Get(t.Context(), &ingressv1.SecretServiceGetRequest{Name: "s"}); !errs.Is(err, errs.Internal) || !strings.Contains(err.Error(), "secrets/default/s") {
		t.Errorf("get: %v", err)
	}
	if _, err := other.Apply(t.Context(), &ingressv1.SecretServiceApplyRequest{Object: o}); !errs.Is(err, errs.Internal) {
		t.Errorf("apply: %v", err)
	}
	if _, err := other.Delete(t.Context(), &ingressv1.SecretServiceDeleteRequest{Name: "s"}); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := other.Apply(t.Context(), &ingressv1.SecretServiceApplyRequest{Object: o}); err != nil {
		t.Errorf("apply after the deletion: %v", err)
	}
}

// Nothing of a Secret is in errors, logs, traces or etcd.
func TestNothingShowsASecret(t *testing.T) {
	f := newFixture(t)
	spans := tracetest.NewInMemoryExporter()
	tel, err := telemetry.New(t.Context(), telemetry.Process{}, sdktrace.WithSyncer(spans), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	if err != nil {
		t.Fatal(err)
	}
	ctx := tel.Context(t.Context())
	var said strings.Builder
	for _, o := range []*objectv1.Secret{
		{Metadata: meta("good"), StringData: map[string]string{"password": treasure}},
		{Metadata: meta("good"), StringData: map[string]string{"password": treasure + "2"}, Immutable: new(bool)},
		{Metadata: meta("good"), StringData: map[string]string{"password": treasure}, Type: "another"},
		{Metadata: meta("json"), StringData: map[string]string{".dockerconfigjson": treasure}, Type: "kubernetes.io/dockerconfigjson"},
		{Metadata: meta("key"), StringData: map[string]string{"a b": treasure}},
		{Metadata: meta("BAD"), StringData: map[string]string{"a": treasure}},
		{Metadata: &objectv1.ObjectMeta{Namespace: "none", Name: "a"}, StringData: map[string]string{"a": treasure}},
		{Metadata: meta("large"), StringData: map[string]string{"a": strings.Repeat(treasure, 1<<16)}},
		{Kind: "Pod", Metadata: meta("kind"), StringData: map[string]string{"a": treasure}},
	} {
		if _, err := f.secrets.Apply(ctx, &ingressv1.SecretServiceApplyRequest{Object: o}); err != nil {
			fmt.Fprintf(&said, "%v\n%+v\n%#v\n", err, errs.ViolationsOf(err), errs.ViolationsOf(err))
		}
	}
	if n := strings.Count(said.String(), "default/"); n < 5 {
		t.Errorf("few errors:\n%s", &said)
	}
	if _, err := f.secrets.Delete(ctx, &ingressv1.SecretServiceDeleteRequest{Name: "good"}); err != nil {
		t.Fatal(err)
	}
	resp, err := f.fake.Engine().Range(ctx, kv.RangeRequest{Key: "/", End: "0"})
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range resp.KVs {
		fmt.Fprintf(&said, "%s=%s\n", pair.Key, pair.Value)
	}
	if len(spans.GetSpans()) == 0 {
		t.Error("nothing was traced")
	}
	for _, span := range spans.GetSpans() {
		hops, _ := tel.Ring().FromTrace(span.SpanContext.TraceID())
		fmt.Fprintf(&said, "%+v\n%+v\n%+v\n%+v\n", span.Name, span.Attributes, span.Status, hops)
	}
	said.WriteString(f.log.String())
	if strings.Contains(said.String(), treasure) {
		t.Errorf("a Secret was shown:\n%.4000s", &said)
	}
}
