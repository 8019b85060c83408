package api

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/namespaces"
	"podwire.dev/services/cluster/internal/planner"
)

// stream is a server's end of a stream without a network.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }

type beats struct {
	stream
	in  []*clusterv1.HeartbeatRequest
	out []*clusterv1.HeartbeatResponse
}

func (s *beats) Recv() (*clusterv1.HeartbeatRequest, error) {
	if len(s.in) == 0 {
		return nil, io.EOF
	}
	next := s.in[0]
	s.in = s.in[1:]
	return next, nil
}

func (s *beats) Send(m *clusterv1.HeartbeatResponse) error {
	s.out = append(s.out, m)
	return nil
}

type waits struct {
	stream
	out []*clusterv1.WaitResponse
}

func (s *waits) Send(m *clusterv1.WaitResponse) error {
	s.out = append(s.out, m)
	return nil
}

// script plays watermarks.
type script [][]store.Watermark

func (s script) WatchWatermarks(context.Context) iter.Seq2[[]store.Watermark, error] {
	return func(yield func([]store.Watermark, error) bool) {
		for _, list := range s {
			if !yield(list, nil) {
				return
			}
		}
	}
}

func TestWait(t *testing.T) {
	at := func(service string, rev store.Revision, lags ...store.Laggard) store.Watermark {
		return store.Watermark{Service: service, Revision: rev, Laggards: lags}
	}
	slow := store.Laggard{Node: "n1", Revision: 6}
	no := store.Laggard{Node: "n2", Revision: 6, Refused: 8, Reason: "no room"}
	still := no
	still.Through = 9
	cases := []struct {
		name  string
		req   *clusterv1.WaitRequest
		marks script
		sent  int
		done  bool
		kind  errs.Kind // 0: no error
		text  string
	}{
		{"there already", &clusterv1.WaitRequest{Revision: 9, Services: []string{"policy"}}, script{{at("policy", 9)}}, 1, true, 0, ""},
		{"step by step", &clusterv1.WaitRequest{Revision: 9, Services: []string{"policy"}},
			script{{}, {at("policy", 8, slow)}, {at("policy", 8, slow)}, {at("policy", 10)}}, 3, true, 0, ""},
		{"all required", &clusterv1.WaitRequest{Revision: 9, AllRequired: true}, script{{at("policy", 9)}, {at("cluster", 9), at("policy", 9)}}, 2, true, 0, ""},
		{"a service that was not asked for", &clusterv1.WaitRequest{Revision: 9, Services: []string{"policy"}}, script{{at("policy", 9), at("ipam", 3)}}, 1, true, 0, ""},
		{"only the progress", &clusterv1.WaitRequest{AllRequired: true}, script{{at("policy", 3)}}, 1, true, 0, ""},
		{"refused", &clusterv1.WaitRequest{Revision: 9, Services: []string{"policy"}}, script{{at("policy", 6, slow, still)}}, 1, false, errs.Conflict, "node n2 refused revision 8 of policy: no room"},
		{"refused what was before", &clusterv1.WaitRequest{Revision: 9, Services: []string{"policy"}},
			script{{at("policy", 6, slow, no)}, {at("policy", 9)}}, 2, true, 0, ""},
		{"refused later on", &clusterv1.WaitRequest{Revision: 6, Services: []string{"policy"}}, script{{at("policy", 5, no)}, {at("policy", 6, no)}}, 2, true, 0, ""},
		{"nothing named", &clusterv1.WaitRequest{Revision: 9}, nil, 0, false, errs.Invalid, "services: is required unless all_required is set"},
		{"nobody known", &clusterv1.WaitRequest{Revision: -1, Services: []string{"gateway"}}, nil, 0, false, errs.Invalid, "services[0]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := &waits{stream: stream{ctx: context.Background()}}
			err := NewReceipts(c.marks, []string{"cluster", "policy"}).Wait(c.req, s)
			if c.text == "" && err != nil || c.text != "" && (!errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("ends with %v, want %q", err, c.text)
			}
			if len(s.out) != c.sent {
				t.Fatalf("%d answers, want %d: %v", len(s.out), c.sent, s.out)
			}
			if c.sent > 0 && s.out[c.sent-1].GetDone() != c.done {
				t.Errorf("the last answer is %v", s.out[c.sent-1])
			}
		})
	}
}

// fixedMark stands for services that have all come as far as it says.
type fixedMark struct{ at store.Revision }

func (m *fixedMark) Required() store.Revision { return m.at }

func TestNamespaceEnds(t *testing.T) {
	b := newBench(t)
	b.elected()
	leaders{b.running.Leader}.wait(b)
	passed := &fixedMark{}
	reaper := &namespaces.Reaper{
		Store: b.fake.Store, Asker: b.running, World: b.plan, Leader: b.running.Leader, Watermarks: passed, Log: slog.New(slog.DiscardHandler),
	}
	sweep := func() {
		t.Helper()
		b.caughtUp(b.worldRevision())
		if err := reaper.Sweep(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	key := store.Key{Kind: planner.KindNamespace, Name: "shop"}
	exists := func(when string, want bool) {
		t.Helper()
		_, _, err := b.fake.Get(b.ctx, key)
		if got := err == nil; got != want {
			t.Errorf("%s: the Namespace exists: %t, want %t (%v)", when, got, want, err)
		}
	}
	if _, err := b.namespaces.Apply(b.ctx, &clusterv1.NamespaceServiceApplyRequest{Object: &objectv1.Namespace{
		Metadata: &objectv1.ObjectMeta{Name: "shop", Finalizers: []string{"example.com/x"}}}}); err != nil {
		t.Fatal(err)
	}
	pod := podNamed("web")
	pod.Metadata.Namespace = "shop"
	if _, err := b.pods.Apply(b.ctx, &clusterv1.PodServiceApplyRequest{Object: pod}); err != nil {
		t.Fatal(err)
	}
	svc := &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "shop", Name: "web"}}
	b.commit(b.fake.Txn().Create(svc, planner.KindService))

	resp, err := b.namespaces.Delete(b.ctx, &clusterv1.NamespaceServiceDeleteRequest{Name: "shop"})
	if err != nil || resp.GetObject().GetStatus().GetPhase() != "Terminating" {
		t.Fatalf("deleted is %v: %v", resp, err)
	}
	_, err = b.pods.Apply(b.ctx, &clusterv1.PodServiceApplyRequest{Object: &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "shop", Name: "late"}, Spec: pod.Spec}})
	b.refused("a new Pod in a Namespace that ends", err, errs.Denied)
	b.until(store.Key{Kind: planner.KindPod, Namespace: "shop", Name: "web"}, absent)
	passed.at = 1 << 40
	sweep()
	exists("with a Service in it", true)

	rec, _, err := b.fake.Get(b.ctx, store.Key{Kind: planner.KindService, Namespace: "shop", Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	b.commit(b.fake.Txn().Delete(rec))
	sweep()
	exists("with a finalizer", true)
	open, err := b.namespaces.Apply(b.ctx, &clusterv1.NamespaceServiceApplyRequest{Object: &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "shop"}}})
	if err != nil {
		t.Fatal(err)
	}
	exists("without finalizers", true)
	passed.at = store.Revision(open.GetRevision()) - 1
	sweep()
	exists("while a service has not seen that it ends", true)
	passed.at++
	sweep()
	exists("at last", false)

	_, err = b.namespaces.Delete(b.ctx, &clusterv1.NamespaceServiceDeleteRequest{Name: "default"})
	b.refused("the default namespace", err, errs.Denied)
}

// worldRevision is the newest revision that changed an object.
func (b *bench) worldRevision() store.Revision {
	b.t.Helper()
	var newest store.Revision
	snap, err := b.fake.Snapshot(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, rec := range snap.Records {
		newest = max(newest, rec.Revision)
	}
	return newest
}
