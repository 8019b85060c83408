package verbs_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func TestApplyCreates(t *testing.T) {
	b := newBench(t)
	sent := service("web", func(s *objectv1.Service) {
		s.Metadata.Generation = 9
		s.Metadata.CreationTimestamp = timestamppb.New(noon.AddDate(-1, 0, 0))
		s.Metadata.DeletionTimestamp = timestamppb.New(noon)
		s.Metadata.DeletionGracePeriodSeconds = ptr(int32(3))
		s.Metadata.Uid = "of-another-life"
		s.Status = &objectv1.ServiceStatus{Conditions: []*objectv1.Condition{{Type: "Mine"}}}
	})
	before := proto.Clone(sent)
	res := b.apply(sent)
	if !proto.Equal(sent, before) {
		t.Error("Apply changed the caller's object")
	}
	if res.Outcome != objectv1.Outcome_OUTCOME_CREATED || res.Revision != b.Revision() {
		t.Errorf("outcome %v at %d", res.Outcome, res.Revision)
	}
	if stored := b.get("web"); !proto.Equal(stored, res.Object) {
		t.Errorf("answered %v, stored %v", res.Object, stored)
	}
	meta := res.Object.GetMetadata()
	if meta.GetGeneration() != 1 || meta.GetDeletionTimestamp() != nil || meta.DeletionGracePeriodSeconds != nil ||
		len(meta.GetUid()) != 36 || meta.GetUid()[14] != '4' || meta.GetCreationTimestamp().AsTime() != noon.Truncate(1e9) {
		t.Errorf("metadata is %v", meta)
	}
	if res.Object.GetStatus() != nil || res.Object.GetSpec().GetType() != "ClusterIP" || res.Object.GetSpec().GetClusterIp() != "10.96.0.1" {
		t.Errorf("object is %v", res.Object)
	}
	if res.Object.GetApiVersion() != "v1" || res.Object.GetKind() != "Service" {
		t.Errorf("it calls itself %s %s", res.Object.GetApiVersion(), res.Object.GetKind())
	}
}

func TestApplyReplaces(t *testing.T) {
	b := newBench(t)
	first := b.apply(service("web", labels("l", "1"))).Object
	for _, step := range []struct {
		name       string
		sent       *objectv1.Service
		generation int32
		outcome    objectv1.Outcome
	}{
		{"identical", service("web", labels("l", "1")), 1, objectv1.Outcome_OUTCOME_UNCHANGED},
		{"what was read", first, 1, objectv1.Outcome_OUTCOME_UNCHANGED},
		{"labels", service("web"), 1, objectv1.Outcome_OUTCOME_CONFIGURED},
		{"spec", service("web", externalName("x")), 2, objectv1.Outcome_OUTCOME_CONFIGURED},
		{"spec again", service("web", externalName("x")), 2, objectv1.Outcome_OUTCOME_UNCHANGED},
		{"spec and labels", service("web", labels("l", "2")), 3, objectv1.Outcome_OUTCOME_CONFIGURED},
	} {
		before, held := b.Revision(), b.get("web")
		res := b.apply(step.sent)
		meta := res.Object.GetMetadata()
		if res.Outcome != step.outcome || meta.GetGeneration() != step.generation {
			t.Errorf("%s: %v, generation %d", step.name, res.Outcome, meta.GetGeneration())
		}
		if wrote := b.Revision() != before; wrote != (step.outcome == objectv1.Outcome_OUTCOME_CONFIGURED) {
			t.Errorf("%s: wrote is %v", step.name, wrote)
		}
		if res.Outcome == objectv1.Outcome_OUTCOME_UNCHANGED {
			if want, _ := store.ParseResourceVersion(held.GetMetadata().GetResourceVersion()); res.Revision != want {
				t.Errorf("%s: answered revision %d, the object's is %d", step.name, res.Revision, want)
			}
		}
		if meta.GetUid() != first.GetMetadata().GetUid() || !proto.Equal(meta.GetCreationTimestamp(), first.GetMetadata().GetCreationTimestamp()) {
			t.Errorf("%s: metadata is %v", step.name, meta)
		}
		if got := res.Object.GetSpec().GetClusterIp(); got != "10.96.0.1" {
			t.Errorf("%s: clusterIP is %q", step.name, got)
		}
		if !proto.Equal(b.get("web"), res.Object) {
			t.Errorf("%s: answered %v, stored %v", step.name, res.Object, b.get("web"))
		}
	}
	_, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{
		Object: service("web", func(s *objectv1.Service) { s.Spec.ClusterIp = "10.96.0.99" }),
	})
	wantKind(t, err, errs.Invalid)
	if v := errs.ViolationsOf(err); len(v) != 1 || v[0].Field != "spec.clusterIP" {
		t.Errorf("violations are %v", v)
	}
}

func TestApplyConditions(t *testing.T) {
	b := newBench(t)
	held := b.apply(service("web")).Object
	at, _ := store.ParseResourceVersion(held.GetMetadata().GetResourceVersion())
	version := func(v string) func(*objectv1.Service) {
		return func(s *objectv1.Service) { s.Metadata.ResourceVersion = v }
	}
	uid := func(v string) func(*objectv1.Service) { return func(s *objectv1.Service) { s.Metadata.Uid = v } }
	const fine = errs.Kind(-1)
	for _, c := range []struct {
		name     string
		sent     *objectv1.Service
		expected *int64
		want     errs.Kind
	}{
		{"none", service("web"), nil, fine},
		{"revision", service("web"), ptr(int64(at)), fine},
		{"resourceVersion", service("web", version(held.GetMetadata().GetResourceVersion())), nil, fine},
		{"both", service("web", version(held.GetMetadata().GetResourceVersion())), ptr(int64(at)), fine},
		{"resourceVersion 0", service("web", version("0")), nil, fine},
		{"uid", service("web", uid(held.GetMetadata().GetUid())), nil, fine},
		{"must not exist", service("web"), ptr(int64(0)), errs.Exists},
		{"older revision", service("web"), ptr(int64(at - 1)), errs.Conflict},
		{"older resourceVersion", service("web", version("1")), nil, errs.Conflict},
		{"other uid", service("web", uid("x")), nil, errs.Conflict},
		{"expected and absent", service("absent"), ptr(int64(5)), errs.Conflict},
		{"must not exist and does not", service("new"), ptr(int64(0)), fine},
		{"disagreeing", service("web", version("5")), ptr(int64(6)), errs.Invalid},
		{"negative", service("web"), ptr(int64(-1)), errs.Invalid},
		{"no number", service("web", version("abc")), nil, errs.Invalid},
		{"no metadata", &objectv1.Service{}, nil, errs.Invalid},
		{"another kind", service("web", func(s *objectv1.Service) { s.Kind = "Pod" }), nil, errs.Invalid},
		{"another version", service("web", func(s *objectv1.Service) { s.ApiVersion = "v2" }), nil, errs.Invalid},
	} {
		_, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: c.sent, Expected: c.expected})
		if c.want == fine && err != nil || c.want != fine && !errs.Is(err, c.want) {
			t.Errorf("%s: %v of kind %v, want %v", c.name, err, errs.KindOf(err), c.want)
		}
	}
}

func TestApplyRetriesALostRaceUnlessAConditionForbids(t *testing.T) {
	b := newBench(t)
	b.apply(service("web"))
	race := func() { b.apply(service("web", labels("winner", "other"))) }
	b.BeforeTxn(race)
	res := b.apply(service("web", externalName("x")))
	if res.Object.GetMetadata().GetGeneration() != 2 || len(res.Object.GetMetadata().GetLabels()) != 0 {
		t.Errorf("after the race: %v", res.Object)
	}
	at, _ := store.ParseResourceVersion(res.Object.GetMetadata().GetResourceVersion())
	b.BeforeTxn(race)
	_, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{
		Object: service("web", externalName("y")), Expected: ptr(int64(at)),
	})
	wantKind(t, err, errs.Conflict)
	if got := b.get("web").GetMetadata().GetLabels()["winner"]; got != "other" {
		t.Error("a condition that did not hold was overrun")
	}
	b.BeforeTxn(func() { b.apply(service("raced")) })
	_, err = b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: service("raced"), Expected: ptr(int64(0))})
	wantKind(t, err, errs.Exists)
	// The Namespace is no condition of the caller's: a change of it is another try, even under a condition.
	b.BeforeTxn(func() {
		ns := &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "a", Labels: map[string]string{"x": "y"}}}
		if _, err := b.namespaces.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Namespace]{Object: ns}); err != nil {
			t.Error(err)
		}
	})
	if _, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: service("new"), Expected: ptr(int64(0))}); err != nil {
		t.Errorf("after a change of the Namespace: %v", err)
	}
}

func TestApplyDryRunWritesNothing(t *testing.T) {
	b := newBench(t)
	before := b.Revision()
	for range 2 {
		res, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: service("web"), DryRun: true})
		if err != nil || res.Outcome != objectv1.Outcome_OUTCOME_CREATED || res.Object.GetSpec().GetClusterIp() != "10.96.0.1" {
			t.Errorf("dry run: %+v, %v", res, err)
		}
	}
	if b.Revision() != before || len(b.pool.log) != 0 {
		t.Errorf("a dry run wrote: revision %d then %d, allocations %v", before, b.Revision(), b.pool.log)
	}
	_, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: service("Bad"), DryRun: true})
	wantKind(t, err, errs.Invalid)
}

func TestApplyNeedsTheNamespace(t *testing.T) {
	b := newBench(t)
	in := func(ns string) verbs.ApplyRequest[*objectv1.Service] {
		return verbs.ApplyRequest[*objectv1.Service]{Object: service("web", func(s *objectv1.Service) { s.Metadata.Namespace = ns })}
	}
	_, err := b.services.Apply(t.Context(), in("absent"))
	wantKind(t, err, errs.NotFound)
	_, err = b.services.Apply(t.Context(), in("dying"))
	wantKind(t, err, errs.Denied)
	if res, err := b.services.Apply(t.Context(), in("")); err != nil || res.Object.GetMetadata().GetNamespace() != "default" {
		t.Errorf("without a namespace: %v, %v", res.Object, err)
	}
	// It may begin to end between the check and the write.
	b.BeforeTxn(func() {
		if _, err := b.namespaces.Delete(t.Context(), verbs.DeleteRequest{Name: "a"}); err != nil {
			t.Error(err)
		}
	})
	_, err = b.services.Apply(t.Context(), in("a"))
	wantKind(t, err, errs.Denied)
	if want := []string{"take 10.96.0.2", "release 10.96.0.2"}; !slices.Equal(b.pool.log[len(b.pool.log)-2:], want) {
		t.Errorf("allocations: %v", b.pool.log)
	}
}

func TestApplyChangesObjectsOfATerminatingNamespace(t *testing.T) {
	b := newBench(t)
	b.apply(service("web"))
	if _, err := b.namespaces.Delete(t.Context(), verbs.DeleteRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	b.apply(service("web", labels("x", "y")))
}

func TestApplyGeneratesNames(t *testing.T) {
	b := newBench(t)
	generated := service("", func(s *objectv1.Service) { s.Metadata.GenerateName = "web-" })
	seen := make(map[string]bool)
	for range 20 {
		res, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: generated, Expected: ptr(int64(0))})
		name := res.Object.GetMetadata().GetName()
		if err != nil || !strings.HasPrefix(name, "web-") || len(name) != len("web-")+5 || seen[name] {
			t.Fatalf("generated %q, %v", name, err)
		}
		seen[name] = true
	}
	long := service("", func(s *objectv1.Service) { s.Metadata.GenerateName = strings.Repeat("x", 60) })
	if res := b.apply(long); len(res.Object.GetMetadata().GetName()) != 63 {
		t.Errorf("generated %q", res.Object.GetMetadata().GetName())
	}
}

func TestAdmission(t *testing.T) {
	b := newBench(t)
	b.apply(service("one"))
	b.BeforeTxn(func() { b.namespace("a-neighbour"); b.touch("a") })
	b.apply(service("two"))
	want := []string{"take 10.96.0.1", "keep 10.96.0.1 at 6", "take 10.96.0.2", "release 10.96.0.2", "take 10.96.0.3"}
	if !slices.Equal(b.pool.log[:5], want) {
		t.Errorf("allocations: %v, want %v", b.pool.log, want)
	}

	b.pool.log = nil
	b.LoseAnswers(1)
	b.apply(service("three"))
	if len(b.pool.log) != 2 || !strings.HasPrefix(b.pool.log[1], "keep ") {
		t.Errorf("a lost answer that was found out: %v", b.pool.log)
	}

	b.pool.log = nil
	b.LoseRequests(100)
	_, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: service("four")})
	wantKind(t, err, errs.Unavailable)
	if !errors.Is(err, store.ErrAmbiguous) || len(b.pool.log) != 1 {
		t.Errorf("unknown whether it was written: %v, allocations %v", err, b.pool.log)
	}

	b.LoseRequests(0)
	b.pool.refuse = errs.New(errs.Exhausted, "pool services: no address left")
	_, err = b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: service("five")})
	wantKind(t, err, errs.Exhausted)
}

// touch changes a Namespace.
func (b *bench) touch(name string) {
	b.t.Helper()
	ns := &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name, Annotations: map[string]string{"touched": "yes"}}}
	if _, err := b.namespaces.Apply(b.t.Context(), verbs.ApplyRequest[*objectv1.Namespace]{Object: ns}); err != nil {
		b.t.Fatal(err)
	}
}

func TestWritesCarryTraceAndCause(t *testing.T) {
	b := newBench(t)
	sc := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{9}, SpanID: trace.SpanID{8}, TraceFlags: 1})
	cause := store.Cause{Revision: 3}
	_, err := b.services.Apply(trace.ContextWithSpanContext(t.Context(), sc), verbs.ApplyRequest[*objectv1.Service]{
		Object: service("web"), Options: []store.WriteOption{store.CausedBy(cause)},
	})
	if err != nil {
		t.Fatal(err)
	}
	rec, _, err := b.Get(t.Context(), store.Key{Kind: "services", Namespace: "a", Name: "web"})
	if err != nil || rec.Cause != cause || !strings.Contains(rec.Traceparent, sc.TraceID().String()) {
		t.Errorf("record is %+v, %v", rec, err)
	}
}

func TestMetadataRules(t *testing.T) {
	b := newBench(t)
	meta := func(edit func(*objectv1.ObjectMeta)) *objectv1.Service {
		return service("web", func(s *objectv1.Service) { edit(s.Metadata) })
	}
	owner := &objectv1.OwnerReference{ApiVersion: "v1", Kind: "Pod", Name: "x", Uid: "u", Controller: ptr(true)}
	for _, c := range []struct {
		name string
		sent *objectv1.Service
		want []string
	}{
		{"no name", meta(func(m *objectv1.ObjectMeta) { m.Name = "" }), []string{"metadata.name"}},
		{"digit first", meta(func(m *objectv1.ObjectMeta) { m.Name = "1web" }), []string{"metadata.name"}},
		{"upper case", meta(func(m *objectv1.ObjectMeta) { m.Name = "Web" }), []string{"metadata.name"}},
		{"too long", meta(func(m *objectv1.ObjectMeta) { m.Name = strings.Repeat("x", 64) }), []string{"metadata.name"}},
		{"bad prefix", meta(func(m *objectv1.ObjectMeta) { m.Name, m.GenerateName = "", "-x" }), []string{"metadata.generateName"}},
		{"bad prefix and name", meta(func(m *objectv1.ObjectMeta) { m.Name, m.GenerateName = "x!", "x" }), []string{"metadata.name"}},
		{"namespace", meta(func(m *objectv1.ObjectMeta) { m.Namespace = "a.b" }), []string{"metadata.namespace"}},
		{"label key", meta(func(m *objectv1.ObjectMeta) { m.Labels = map[string]string{"a/b/c": "x", "/x": ""} }), []string{"metadata.labels", "metadata.labels"}},
		{"label value", meta(func(m *objectv1.ObjectMeta) { m.Labels = map[string]string{"app": "-x"} }), []string{"metadata.labels[app]"}},
		{"annotation key", meta(func(m *objectv1.ObjectMeta) { m.Annotations = map[string]string{"a b": "x"} }), []string{"metadata.annotations"}},
		{"annotations too big", meta(func(m *objectv1.ObjectMeta) {
			m.Annotations = map[string]string{"a": strings.Repeat("x", 256<<10)}
		}), []string{"metadata.annotations"}},
		{"owner", meta(func(m *objectv1.ObjectMeta) { m.OwnerReferences = []*objectv1.OwnerReference{{Kind: "Pod"}} }), []string{
			"metadata.ownerReferences[0].apiVersion", "metadata.ownerReferences[0].name", "metadata.ownerReferences[0].uid",
		}},
		{"two controllers", meta(func(m *objectv1.ObjectMeta) { m.OwnerReferences = []*objectv1.OwnerReference{owner, owner} }), []string{"metadata.ownerReferences[1].controller"}},
		{"finalizer", meta(func(m *objectv1.ObjectMeta) { m.Finalizers = []string{"ok.io/x", ""} }), []string{"metadata.finalizers[1]"}},
		{"everything at once", meta(func(m *objectv1.ObjectMeta) { m.Name, m.Namespace = "", "A" }), []string{"metadata.name", "metadata.namespace"}},
		{"good", meta(func(m *objectv1.ObjectMeta) {
			m.Labels = map[string]string{"app.kubernetes.io/name": "Web_1.x", "empty": ""}
			m.Annotations = map[string]string{"Example.com/A": strings.Repeat("x", 1000)}
			m.OwnerReferences = []*objectv1.OwnerReference{owner}
			m.Finalizers = []string{"example.com/x"}
		}), nil},
	} {
		_, err := b.services.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Service]{Object: c.sent})
		var got []string
		for _, v := range errs.ViolationsOf(err) {
			got = append(got, v.Field)
		}
		if !slices.Equal(got, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v (%v), want %v", c.name, got, err, c.want)
		}
	}
	_, err := b.namespaces.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Namespace]{
		Object: &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "x", Namespace: "y"}},
	})
	wantKind(t, err, errs.Invalid)
}

func TestNameRules(t *testing.T) {
	for _, c := range []struct {
		name                        string
		subdomain, label, label1035 bool
	}{
		{"web", true, true, true},
		{"1web", true, true, false},
		{"web-1", true, true, true},
		{"web.example", true, false, false},
		{"", false, false, false},
		{"-web", false, false, false},
		{"web-", false, false, false},
		{"web..x", false, false, false},
		{"Web", false, false, false},
		{"wéb", false, false, false},
		{strings.Repeat("x", 63), true, true, true},
		{strings.Repeat("x", 64), true, false, false},
		{strings.Repeat("x.", 126) + "x", true, false, false},
		{strings.Repeat("x.", 127) + "x", false, false, false},
	} {
		got := [3]bool{names.DNSSubdomain(c.name) == "", names.DNSLabel(c.name) == "", names.DNS1035Label(c.name) == ""}
		if want := [3]bool{c.subdomain, c.label, c.label1035}; got != want {
			t.Errorf("%q: subdomain, label, 1035 are %v, want %v", c.name, got, want)
		}
	}
}

// TestNoGeneration: a kind that has none never gets one, whatever the caller says.
func TestNoGeneration(t *testing.T) {
	b := newBench(t)
	rules := b.podRules()
	rules.NoGeneration = true
	pods := verbs.New(b.Store, rules)
	pod := &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: "web", Generation: 3}, Spec: &objectv1.PodSpec{}}
	check := func(what string, got *objectv1.Pod, err error) {
		t.Helper()
		if err != nil || got.GetMetadata().GetGeneration() != 0 {
			t.Errorf("%s: %v, %v", what, got.GetMetadata(), err)
		}
	}
	created, err := pods.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Pod]{Object: pod})
	check("created", created.Object, err)
	pod.Spec.NodeName = "node-1"
	changed, err := pods.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Pod]{Object: pod})
	check("changed", changed.Object, err)
	ending, err := pods.Delete(t.Context(), verbs.DeleteRequest{Namespace: "a", Name: "web", GraceSeconds: ptr(int32(9))})
	check("ending", ending.Object, err)
}
