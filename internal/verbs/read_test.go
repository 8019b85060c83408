package verbs_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func TestGetAndList(t *testing.T) {
	b := newBench(t)
	for i := range 5 {
		b.apply(service(fmt.Sprintf("s%d", i), labels("odd", fmt.Sprint(i%2))))
	}
	b.apply(service("s0", func(s *objectv1.Service) { s.Metadata.Namespace = "default" }))
	svc, at, err := b.services.Get(t.Context(), "", "s0")
	if err != nil || svc.GetMetadata().GetNamespace() != "default" || at != b.Revision() {
		t.Errorf("get without a namespace: %v at %d, %v", svc, at, err)
	}
	_, at, err = b.services.Get(t.Context(), "a", "absent")
	wantKind(t, err, errs.NotFound)
	if at != b.Revision() || !strings.Contains(err.Error(), "Service a/absent not found") {
		t.Errorf("absent at %d: %v", at, err)
	}
	for _, c := range []struct {
		name string
		req  verbs.ListRequest
		want []string
	}{
		{"namespace", verbs.ListRequest{Namespace: "a"}, []string{"a/s0 a/s1 a/s2 a/s3 a/s4"}},
		{"all", verbs.ListRequest{AllNamespaces: true}, []string{"a/s0 a/s1 a/s2 a/s3 a/s4 default/s0"}},
		{"pages", verbs.ListRequest{Namespace: "a", Limit: 2}, []string{"a/s0 a/s1", "a/s2 a/s3", "a/s4"}},
		{"selected", verbs.ListRequest{Namespace: "a", LabelSelector: "odd=1"}, []string{"a/s1 a/s3"}},
		{"selected pages", verbs.ListRequest{AllNamespaces: true, LabelSelector: "odd in (0)", Limit: 1}, []string{"a/s0", "a/s2", "a/s4", ""}},
	} {
		var got []string
		for first := true; first || c.req.Continue != ""; first = false {
			page, err := b.services.List(t.Context(), c.req)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			var names []string
			for _, s := range page.Items {
				names = append(names, s.GetMetadata().GetNamespace()+"/"+s.GetMetadata().GetName())
			}
			got = append(got, strings.Join(names, " "))
			c.req.Continue = page.Continue
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for name, req := range map[string]verbs.ListRequest{
		"no namespace":   {},
		"both":           {Namespace: "a", AllNamespaces: true},
		"bad namespace":  {Namespace: "a/b"},
		"bad selector":   {Namespace: "a", LabelSelector: "a="},
		"negative limit": {Namespace: "a", Limit: -1},
		"bad token":      {Namespace: "a", Continue: "x"},
	} {
		if name == "bad selector" {
			req.LabelSelector = "a in b"
		}
		if _, err := b.services.List(t.Context(), req); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := b.namespaces.List(t.Context(), verbs.ListRequest{}); err != nil || len(list.Items) != 3 {
		t.Errorf("namespaces: %v, %v", list.Items, err)
	}
}

// told reads a watch, event by event, in short.
func told[O store.Object](t *testing.T, seq iter.Seq2[verbs.WatchEvent[O], error]) func() string {
	t.Helper()
	pull, stop := iter.Pull2(seq)
	t.Cleanup(stop)
	return func() string {
		t.Helper()
		ev, err, ok := pull()
		if err != nil || !ok {
			t.Fatalf("watch ended: %v", err)
		}
		return strings.TrimSpace(strings.TrimPrefix(ev.Type.String(), "EVENT_TYPE_") + " " + ev.Name)
	}
}

func TestWatch(t *testing.T) {
	b := newBench(t)
	b.apply(service("one", labels("app", "web")))
	b.apply(service("two"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all := told(t, b.services.Watch(ctx, verbs.WatchRequest{Namespace: "a"}))
	web := told(t, b.services.Watch(ctx, verbs.WatchRequest{AllNamespaces: true, LabelSelector: "app=web"}))
	two := told(t, b.services.Watch(ctx, verbs.WatchRequest{Namespace: "a", Name: "two"}))
	since := told(t, b.services.Watch(ctx, verbs.WatchRequest{Namespace: "a", From: b.Revision()}))
	see := func(what string, next func() string, want ...string) {
		t.Helper()
		for _, w := range want {
			if got := next(); got != w {
				t.Fatalf("%s: told %q, want %q", what, got, w)
			}
		}
	}
	see("all", all, "ADDED one", "ADDED two", "BOOKMARK")
	see("web", web, "ADDED one", "BOOKMARK")
	see("two", two, "ADDED two", "BOOKMARK")
	see("since", since, "ADDED two")

	b.apply(service("two", labels("app", "web")))
	b.apply(service("two", labels("app", "web", "x", "y")))
	b.apply(service("two"))
	b.apply(service("three"))
	if _, err := b.services.Delete(ctx, verbs.DeleteRequest{Namespace: "a", Name: "one"}); err != nil {
		t.Fatal(err)
	}
	see("all", all, "MODIFIED two", "MODIFIED two", "MODIFIED two", "ADDED three", "DELETED one")
	see("web", web, "ADDED two", "MODIFIED two", "DELETED two", "DELETED one")
	see("two", two, "MODIFIED two", "MODIFIED two", "MODIFIED two")
	see("since", since, "MODIFIED two")
	b.SendProgress()
	see("two", two, "BOOKMARK")
}

func TestWatchEnds(t *testing.T) {
	b := newBench(t)
	first := b.apply(service("one")).Revision
	b.apply(service("one", labels("x", "y")))
	watch := func(req verbs.WatchRequest) error {
		return verbs.Pump(b.services.Watch(t.Context(), req), func(verbs.WatchEvent[*objectv1.Service]) error { return nil })
	}
	b.Compact(b.Revision())
	if err := watch(verbs.WatchRequest{Namespace: "a", From: first}); !errors.Is(err, store.ErrCompacted) || !errs.Is(err, errs.OutOfRange) {
		t.Errorf("from a compacted revision: %v", err)
	}
	for name, req := range map[string]verbs.WatchRequest{
		"negative":          {Namespace: "a", From: -1},
		"no namespace":      {},
		"name and all":      {AllNamespaces: true, Name: "x"},
		"bad selector":      {Namespace: "a", LabelSelector: "!"},
		"bad namespace":     {Namespace: "A"},
		"namespace and all": {Namespace: "a", AllNamespaces: true},
	} {
		if err := watch(req); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	enough := errors.New("enough")
	err := verbs.Pump(b.services.Watch(t.Context(), verbs.WatchRequest{Namespace: "a"}), func(verbs.WatchEvent[*objectv1.Service]) error { return enough })
	if !errors.Is(err, enough) {
		t.Errorf("a consumer that fails: %v", err)
	}
	b.Stop()
	if err := watch(verbs.WatchRequest{Namespace: "a"}); !errs.Is(err, errs.Unavailable) {
		t.Errorf("while etcd is gone: %v", err)
	}
}

// A last state that etcd has compacted is still a deletion.
func TestWatchOfADeletionWithoutItsLastState(t *testing.T) {
	b := newBench(t)
	b.apply(service("one", labels("app", "web")))
	from := b.Revision() + 1
	if _, err := b.services.Delete(t.Context(), verbs.DeleteRequest{Namespace: "a", Name: "one"}); err != nil {
		t.Fatal(err)
	}
	b.Compact(b.Revision())
	next := told(t, b.services.Watch(t.Context(), verbs.WatchRequest{Namespace: "a", LabelSelector: "app=web", From: from}))
	if got := next(); got != "DELETED one" {
		t.Errorf("told %q", got)
	}
}
