package planner_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/internal/planner"
)

func memberBlock(cidr, member string) *objectv1.AddressBlock {
	b := block(cidr, "")
	b.Spec.Member = member
	return b
}

func memberPod(name string, underlay ...string) *objectv1.Pod {
	o := &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{
			Namespace: planner.MemberNamespace, Name: name, Annotations: map[string]string{planner.AnnotationMember: "dns"},
		},
		Status: &objectv1.PodStatus{},
	}
	for _, a := range underlay {
		o.Status.HostIps = append(o.Status.HostIps, &objectv1.HostIP{Ip: a})
	}
	return o
}

// putPod is put for a Pod, whose kind the other tests do not know.
func (w *world) putPod(o *objectv1.Pod) {
	w.rev++
	w.Put(store.Record{Key: store.KeyOf(planner.KindPod, o), Object: o, Revision: w.rev, CreateRevision: w.rev})
}

func (w *world) removePod(o *objectv1.Pod) {
	w.rev++
	w.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: store.KeyOf(planner.KindPod, o), Revision: w.rev}})
}

// members plans and returns the rows of members that are no nodes.
func (w *world) members() string {
	w.t.Helper()
	p, err := w.Plan(w.rev)
	if err != nil {
		w.t.Fatal(err)
	}
	w.held.Apply(p.Shared)
	var out []string
	for _, r := range w.held.Rows(nodestate.TableMembers) {
		if m := r.(nodestate.Member); m.Kind == nodestate.MemberService {
			if m.TunnelMAC != nodestate.TunnelMACOf(m.Name) {
				w.t.Errorf("%s has the MAC %x", m.Name, m.TunnelMAC)
			}
			out = append(out, fmt.Sprint(m.Name, " ", m.Underlay, " ", m.Tunnel, " ", m.Blocks))
		}
	}
	return strings.Join(out, "; ")
}

func TestServiceMembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wants := func(what, want string) {
		t.Helper()
		if got := w.members(); got != want {
			t.Errorf("%s:\n got %s\nwant %s", what, got, want)
		}
	}
	w.put(block("10.244.0.0/26", "")) // cut
	w.put(memberBlock("10.244.0.1/32", "dns-1"))
	w.put(memberBlock("fd00:10:244::1/128", "dns-1"))
	wants("leased, and no Pod yet", "")
	w.putPod(memberPod("dns-1", "172.30.0.31"))
	wants("its Pod", "kube-system/dns-1 [172.30.0.31] [10.244.0.1 fd00:10:244::1] [10.244.0.1/32 fd00:10:244::1/128]")
	w.put(node("dns-1", "172.30.0.9"))
	w.put(block("10.244.0.64/26", "dns-1"))
	wants("a Node of the same name is another", "kube-system/dns-1 [172.30.0.31] [10.244.0.1 fd00:10:244::1] [10.244.0.1/32 fd00:10:244::1/128]")
	forged := memberPod("dns-2", "172.30.0.66")
	w.putPod(forged)
	wants("a Pod that leased nothing", "kube-system/dns-1 [172.30.0.31] [10.244.0.1 fd00:10:244::1] [10.244.0.1/32 fd00:10:244::1/128]")
	forged = memberPod("dns-1", "172.30.0.66")
	forged.Metadata.Namespace = "default"
	w.putPod(forged)
	wants("a Pod elsewhere", "kube-system/dns-1 [172.30.0.31] [10.244.0.1 fd00:10:244::1] [10.244.0.1/32 fd00:10:244::1/128]")
	if !w.Tunnel("block-10-244-0-1-32") || !w.Attends("dns-1") || w.Attends("dns-3") {
		t.Error("what the member holds is its tunnel address")
	}
	if got := orphans(w.Planner); got != "" {
		t.Errorf("orphans: %s", got)
	}
	w.removePod(memberPod("dns-1"))
	gone := w.rev
	wants("its Pod goes", "")
	if o := w.Orphans(); len(o) != 2 || o["block-10-244-0-1-32"].After != gone {
		t.Errorf("orphans: %+v", o)
	}
	w.putPod(memberPod("dns-1", "172.30.0.32"))
	wants("and comes back elsewhere", "kube-system/dns-1 [172.30.0.32] [10.244.0.1 fd00:10:244::1] [10.244.0.1/32 fd00:10:244::1/128]")
	plain := memberPod("dns-1", "172.30.0.32")
	plain.Metadata.Annotations = nil
	w.putPod(plain)
	wants("another's Pod of that name", "")
}

// TestMemberQuarantine gives the address of a member back only when every required service has seen that its Pod is gone.
func TestMemberQuarantine(t *testing.T) {
	t.Parallel()
	fake := storefake.New(store.Kinds{
		planner.KindBlock: func() store.Object { return &objectv1.AddressBlock{} },
		planner.KindClaim: func() store.Object { return &objectv1.AddressClaim{} },
	})
	ctx := t.Context()
	lead := func(service string) *store.Leadership {
		session, err := fake.NewSession(ctx, store.SessionTTL)
		if err != nil {
			t.Fatal(err)
		}
		l, err := session.Campaign(ctx, service, "one", "one")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	own, policy := lead("ipam"), lead("policy")
	w := newWorld(t)
	held := memberBlock("10.244.0.1/32", "dns-1")
	if _, err := fake.Txn().Create(held, planner.KindBlock).Commit(ctx); err != nil {
		t.Fatal(err)
	}
	rec, _, err := fake.Get(ctx, store.KeyOf(planner.KindBlock, held))
	if err != nil {
		t.Fatal(err)
	}
	w.Put(rec)
	w.rev = rec.Revision
	w.putPod(memberPod("dns-1", "172.30.0.31"))
	w.rev = 1000
	w.removePod(memberPod("dns-1"))
	c := &planner.Collector{
		Store: fake.Store, Planner: w.Planner, Asker: asker{}, Leader: &leader{own}, Log: slog.New(slog.DiscardHandler),
	}
	clock := time.Unix(1_000_000, 0)
	sweep := func(what string, after time.Duration, want bool) {
		t.Helper()
		clock = clock.Add(after)
		if err := c.Sweep(ctx, clock); err != nil {
			t.Fatal(err)
		}
		if _, _, err := fake.Get(ctx, rec.Key); (err == nil) != want {
			t.Errorf("%s: held %v, want %v", what, err == nil, want)
		}
	}
	raise := func(to store.Revision) {
		t.Helper()
		if _, err := fake.RaiseWatermark(ctx, policy, store.Watermark{Service: "policy", Revision: to}); err != nil {
			t.Fatal(err)
		}
	}
	sweep("seen", 0, true)
	sweep("nobody has said what is required", planner.Grace, true)
	if err := fake.SetRequired(ctx, []string{"policy"}); err != nil {
		t.Fatal(err)
	}
	sweep("no watermark", planner.Grace, true)
	raise(w.rev - 1)
	sweep("a watermark before the removal", planner.Grace, true)
	raise(w.rev)
	sweep("everybody has seen it", 0, false)
}
