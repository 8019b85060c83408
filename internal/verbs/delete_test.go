package verbs_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func (b *bench) applyPod(name string, edits ...func(*objectv1.Pod)) *objectv1.Pod {
	b.t.Helper()
	pod := &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: name}, Spec: &objectv1.PodSpec{}}
	for _, edit := range edits {
		edit(pod)
	}
	res, err := b.pods.Apply(b.t.Context(), verbs.ApplyRequest[*objectv1.Pod]{Object: pod})
	if err != nil {
		b.t.Fatal(err)
	}
	return res.Object
}

func finalizers(names ...string) func(*objectv1.Pod) {
	return func(p *objectv1.Pod) { p.Metadata.Finalizers = names }
}

func TestDeleteRemoves(t *testing.T) {
	b := newBench(t)
	held := b.apply(service("web")).Object
	at, _ := store.ParseResourceVersion(held.GetMetadata().GetResourceVersion())
	req := verbs.DeleteRequest{Namespace: "a", Name: "web"}
	for name, c := range map[string]struct {
		edit func(*verbs.DeleteRequest)
		want errs.Kind
	}{
		"other uid":      {func(r *verbs.DeleteRequest) { r.UID = "x" }, errs.Conflict},
		"other revision": {func(r *verbs.DeleteRequest) { r.Expected = ptr(int64(at - 1)) }, errs.Conflict},
		"absent":         {func(r *verbs.DeleteRequest) { r.Name = "absent" }, errs.NotFound},
		"negative grace": {func(r *verbs.DeleteRequest) { r.GraceSeconds = ptr(int32(-1)) }, errs.Invalid},
	} {
		bad := req
		c.edit(&bad)
		if _, err := b.services.Delete(t.Context(), bad); !errs.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	dry := req
	dry.DryRun = true
	if _, err := b.services.Delete(t.Context(), dry); err != nil || b.get("web") == nil {
		t.Errorf("dry run: %v", err)
	}
	// A change meanwhile is another try.
	b.BeforeTxn(func() { b.apply(service("web", labels("x", "y"))) })
	req.UID = held.GetMetadata().GetUid()
	res, err := b.services.Delete(t.Context(), req)
	if err != nil || res.Pending || res.Revision != b.Revision() || res.Object.GetMetadata().GetLabels()["x"] != "y" {
		t.Fatalf("deleted %+v, %v", res, err)
	}
	if want := []string{fmt.Sprintf("10.96.0.1 at %d", res.Revision)}; !slices.Equal(b.removed, want) {
		t.Errorf("released %v, want %v", b.removed, want)
	}
	_, _, err = b.services.Get(t.Context(), "a", "web")
	wantKind(t, err, errs.NotFound)
	_, err = b.namespaces.Delete(t.Context(), verbs.DeleteRequest{Name: "default"})
	wantKind(t, err, errs.Denied)
}

func TestDeleteGracefully(t *testing.T) {
	b := newBench(t)
	b.applyPod("web")
	del := func(grace *int32) verbs.Deletion[*objectv1.Pod] {
		t.Helper()
		res, err := b.pods.Delete(t.Context(), verbs.DeleteRequest{Namespace: "a", Name: "web", GraceSeconds: grace})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	for _, c := range []struct {
		name   string
		grace  *int32
		want   int32
		writes bool
	}{
		{"its own", nil, 30, true},
		{"again", nil, 30, false},
		{"longer", ptr(int32(60)), 30, false},
		{"shorter", ptr(int32(5)), 5, true},
	} {
		before := b.Revision()
		res := del(c.grace)
		meta := res.Object.GetMetadata()
		ends := noon.Add(time.Duration(c.want) * time.Second).Truncate(time.Second)
		if !res.Pending || meta.GetDeletionGracePeriodSeconds() != c.want || !meta.GetDeletionTimestamp().AsTime().Equal(ends) {
			t.Errorf("%s: %+v", c.name, res)
		}
		if wrote := b.Revision() != before; wrote != c.writes || res.Revision != b.Revision() {
			t.Errorf("%s: wrote is %v, answered %d of %d", c.name, wrote, res.Revision, b.Revision())
		}
		if meta.GetGeneration() != 2 {
			t.Errorf("%s: generation %d", c.name, meta.GetGeneration())
		}
	}
	// Apply does not take the mark away.
	if pod := b.applyPod("web", func(p *objectv1.Pod) { p.Metadata.Labels = map[string]string{"x": "y"} }); pod.GetMetadata().GetDeletionTimestamp() == nil {
		t.Error("Apply took the mark away")
	}
	if res := del(ptr(int32(0))); res.Pending {
		t.Error("grace 0 left it there")
	}
	_, _, err := b.pods.Get(t.Context(), "a", "web")
	wantKind(t, err, errs.NotFound)
}

func TestDeleteWaitsForFinalizers(t *testing.T) {
	b := newBench(t)
	b.applyPod("web", finalizers("a.io/x", "a.io/y"))
	res, err := b.pods.Delete(t.Context(), verbs.DeleteRequest{Namespace: "a", Name: "web", GraceSeconds: ptr(int32(0))})
	if err != nil || !res.Pending {
		t.Fatalf("deleted with finalizers: %+v, %v", res, err)
	}
	_, err = b.pods.Apply(t.Context(), verbs.ApplyRequest[*objectv1.Pod]{Object: &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: "web", Finalizers: []string{"a.io/x", "a.io/new"}}, Spec: &objectv1.PodSpec{},
	}})
	if v := errs.ViolationsOf(err); len(v) != 1 || v[0].Field != "metadata.finalizers" || v[0].Value != "a.io/new" {
		t.Errorf("a new finalizer: %v", err)
	}
	b.applyPod("web", finalizers("a.io/y"))
	if _, _, err := b.pods.Get(t.Context(), "a", "web"); err != nil {
		t.Errorf("gone before its last finalizer: %v", err)
	}
	b.applyPod("web", finalizers())
	_, _, err = b.pods.Get(t.Context(), "a", "web")
	wantKind(t, err, errs.NotFound)
}

func TestMarkDeletedChangesStatus(t *testing.T) {
	b := newBench(t)
	ns, _, err := b.namespaces.Get(t.Context(), "", "dying")
	if err != nil || ns.GetStatus().GetPhase() != "Terminating" || ns.GetMetadata().GetDeletionTimestamp() == nil {
		t.Errorf("namespace is %v, %v", ns, err)
	}
	if _, err := b.namespaces.Delete(t.Context(), verbs.DeleteRequest{Name: "dying", GraceSeconds: ptr(int32(0))}); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateStatus(t *testing.T) {
	b := newBench(t)
	held := b.apply(service("web", labels("l", "1"), externalName("x"))).Object
	condition := func(names ...string) *objectv1.ServiceStatus {
		s := &objectv1.ServiceStatus{}
		for _, n := range names {
			s.Conditions = append(s.Conditions, &objectv1.Condition{Type: n})
		}
		return s
	}
	update := func(edit func(*objectv1.Service), expected *int64) (verbs.Result[*objectv1.Service], error) {
		sent := service("web", externalName("ignored"), labels("ignored", "yes"))
		sent.Status = condition("Ready")
		edit(sent)
		return b.services.UpdateStatus(t.Context(), verbs.StatusRequest[*objectv1.Service]{Object: sent, Expected: expected})
	}
	res, err := update(func(*objectv1.Service) {}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := proto.Clone(held).(*objectv1.Service)
	want.Status = condition("Ready")
	want.Metadata.ResourceVersion = fmt.Sprint(res.Revision)
	if got := b.get("web"); !proto.Equal(got, want) || !proto.Equal(res.Object, want) {
		t.Errorf("stored %v, answered %v, want %v", got, res.Object, want)
	}
	at := b.Revision()
	if res, err = update(func(*objectv1.Service) {}, nil); err != nil || res.Revision != at || b.Revision() != at ||
		res.Outcome != objectv1.Outcome_OUTCOME_UNCHANGED {
		t.Errorf("the same status again: %+v, %v", res, err)
	}
	for name, c := range map[string]struct {
		edit     func(*objectv1.Service)
		expected *int64
		want     errs.Kind
	}{
		"other uid":      {func(s *objectv1.Service) { s.Metadata.Uid = "x" }, nil, errs.Conflict},
		"older revision": {func(*objectv1.Service) {}, ptr(int64(at - 1)), errs.Conflict},
		"absent":         {func(s *objectv1.Service) { s.Metadata.Name = "absent" }, nil, errs.NotFound},
		"unnamed":        {func(s *objectv1.Service) { s.Metadata.Name = "" }, nil, errs.Invalid},
		"invalid":        {func(s *objectv1.Service) { s.Status = condition("A", "B") }, nil, errs.Invalid},
	} {
		if _, err := update(c.edit, c.expected); !errs.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	// A race with Apply loses neither side's change.
	b.BeforeTxn(func() { b.apply(service("web", externalName("y"))) })
	if _, err := update(func(s *objectv1.Service) { s.Status = condition("Other") }, nil); err != nil {
		t.Fatal(err)
	}
	got := b.get("web")
	if got.GetSpec().GetExternalName() != "y" || got.GetStatus().GetConditions()[0].GetType() != "Other" {
		t.Errorf("after the race: %v", got)
	}
	// Apply leaves the status alone, and clearing it is a status too.
	b.apply(service("web", externalName("z"), func(s *objectv1.Service) { s.Status = condition("Mine") }))
	if got := b.get("web").GetStatus().GetConditions(); len(got) != 1 || got[0].GetType() != "Other" {
		t.Errorf("Apply changed the status to %v", got)
	}
	if _, err := update(func(s *objectv1.Service) { s.Status = nil }, nil); err != nil || b.get("web").GetStatus() != nil {
		t.Errorf("cleared status is %v, %v", b.get("web").GetStatus(), err)
	}
}
