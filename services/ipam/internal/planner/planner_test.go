package planner_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/internal/planner"
	"podwire.dev/services/ipam/internal/pool"
)

func usual() pool.Ranges {
	return pool.Ranges{
		Pods:          []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Services:      []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		LoadBalancers: []pool.AddrRange{{From: netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddr("192.0.2.4")}},
		NodePorts:     pool.PortRange{From: 30000, To: 32767}, BlockBits: map[int]int{4: 26, 6: 122},
	}
}

func node(name string, addrs ...string) *objectv1.Node {
	n := &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: name}, Status: &objectv1.NodeStatus{Addresses: []*objectv1.NodeAddress{
		{Type: "Hostname", Address: name}, {Type: "ExternalIP", Address: "203.0.113.1"},
	}}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, &objectv1.NodeAddress{Type: "InternalIP", Address: a})
	}
	return n
}

func block(cidr, node string) *objectv1.AddressBlock {
	return &objectv1.AddressBlock{
		Metadata: &objectv1.ObjectMeta{Name: pool.BlockName(netip.MustParsePrefix(cidr)), Uid: cidr},
		Spec:     &objectv1.AddressBlockSpec{Cidr: cidr, Node: node},
	}
}

func claim(value, uid string) *objectv1.AddressClaim {
	return &objectv1.AddressClaim{
		Metadata: &objectv1.ObjectMeta{Name: pool.Service.Name(value), Uid: value},
		Spec:     &objectv1.AddressClaimSpec{Pool: "service", Value: value, Owner: &objectv1.AddressOwner{Kind: "services", Namespace: "default", Name: "web", Uid: uid}},
	}
}

func service(uid string) *objectv1.Service {
	return &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "web", Uid: uid}}
}

func kindOf(o store.Object) string {
	switch o.(type) {
	case *objectv1.Node:
		return feed.KindNode
	case *objectv1.AddressBlock:
		return planner.KindBlock
	case *objectv1.AddressClaim:
		return planner.KindClaim
	}
	return planner.KindService
}

// world is a Planner, and what the nodes hold of its plans.
type world struct {
	*planner.Planner
	t    *testing.T
	rev  store.Revision
	held *nodestate.Slice
}

func newWorld(t *testing.T) *world {
	return &world{planner.New(usual()), t, 1, nodestate.NewSlice()}
}

func (w *world) put(o store.Object) {
	w.rev++
	w.Put(store.Record{Key: store.KeyOf(kindOf(o), o), Object: o, Revision: w.rev, CreateRevision: w.rev})
}

func (w *world) remove(o store.Object) {
	w.rev++
	w.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: store.KeyOf(kindOf(o), o), Revision: w.rev}, UID: o.GetMetadata().GetUid()})
}

// plan returns the changes in words.
func (w *world) plan() string {
	w.t.Helper()
	p, err := w.Plan(w.rev)
	if err != nil {
		w.t.Fatal(err)
	}
	w.held.Apply(p.Shared)
	var out []string
	for _, r := range p.Shared.Upserts {
		switch r := r.(type) {
		case nodestate.Range:
			out = append(out, fmt.Sprint("range ", r.Kind, " ", r.Prefix))
		case nodestate.Member:
			if r.Kind != nodestate.MemberNode || r.TunnelMAC[0]&3 != 2 {
				w.t.Errorf("member %+v", r)
			}
			out = append(out, fmt.Sprint(r.Name, " ", r.Underlay, " ", r.Tunnel, " ", r.Blocks))
		}
	}
	for _, r := range p.Shared.Removes {
		out = append(out, "remove "+r.Key)
	}
	return strings.Join(out, "; ")
}

func (w *world) wants(what, want string) {
	w.t.Helper()
	if got := w.plan(); got != want {
		w.t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.wants("the first plan", "range 1 10.244.0.0/16; range 1 fd00:10:244::/48; range 2 10.96.0.0/16; range 3 192.0.2.1/32; range 3 192.0.2.2/31; range 3 192.0.2.4/32")
	w.wants("nothing", "")
	w.put(node("node-1"))
	w.wants("a node without an address", "")
	w.put(node("node-1", "172.30.0.11", "fd00:172::11"))
	w.wants("a node", "node-1 [172.30.0.11 fd00:172::11] [] []")
	w.put(block("10.244.0.64/26", "node-1"))
	w.put(block("fd00:10:244::/122", "node-1"))
	w.put(block("10.244.0.0/26", "node-1"))
	w.wants("its blocks; the tunnel address is of the one held longest",
		"node-1 [172.30.0.11 fd00:172::11] [10.244.0.64 fd00:10:244::] [10.244.0.0/26 10.244.0.64/26 fd00:10:244::/122]")
	w.put(node("node-1", "172.30.0.11", "fd00:172::11"))
	w.wants("the same again", "")
	w.put(block("10.244.0.128/26", "node-2"))
	w.wants("a block of a node that is not there", "")
	w.put(node("node-2", "172.30.0.12"))
	w.wants("the node comes", "node-2 [172.30.0.12] [10.244.0.128] [10.244.0.128/26]")
	w.remove(block("10.244.0.0/26", "node-1"))
	w.wants("a block goes", "node-1 [172.30.0.11 fd00:172::11] [10.244.0.64 fd00:10:244::] [10.244.0.64/26 fd00:10:244::/122]")
	w.remove(node("node-2"))
	w.wants("the node goes", "remove node-2")
	w.put(claim("10.96.0.1", "a"))
	w.put(service("a"))
	w.wants("claims and Services are no rows", "")
	if !w.Tunnel("block-10-244-0-64-26") || w.Tunnel("block-10-244-0-128-27") {
		t.Error("which block carries the tunnel address")
	}
	if macs := []([6]byte){nodestate.TunnelMACOf("node-1"), nodestate.TunnelMACOf("node-2")}; macs[0] == macs[1] {
		t.Error("two nodes share a MAC")
	}
	before := w.held.Clone()
	w.Reset()
	w.held = nodestate.NewSlice()
	w.put(node("node-1", "172.30.0.11", "fd00:172::11"))
	w.put(block("10.244.0.64/26", "node-1"))
	w.put(block("fd00:10:244::/122", "node-1"))
	w.plan()
	if d := nodestate.Diff(before, w.held); !d.Empty() {
		t.Errorf("a new World differs: %+v", d)
	}
}

// TestOutside changes the configuration under what is held: nothing is planned.
func TestOutside(t *testing.T) {
	t.Parallel()
	for _, o := range []store.Object{block("10.1.0.0/26", "node-1"), block("10.244.0.0/25", "node-1"), claim("10.9.0.1", "a")} {
		p := planner.New(usual())
		p.Put(store.Record{Key: store.KeyOf(kindOf(o), o), Object: o, Revision: 1})
		if _, err := p.Plan(1); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "put the old values back") {
			t.Errorf("%v: %v", o, err)
		}
	}
}

func orphans(p *planner.Planner) string {
	var names []string
	for name := range p.Orphans() {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestOrphans(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(claim("10.96.0.1", "a"))
	w.put(block("10.244.0.0/26", "node-1"))
	if got := orphans(w.Planner); got != "block-10-244-0-0-26 service-10-96-0-1" {
		t.Errorf("neither owner: %s", got)
	}
	w.put(node("node-1"))
	w.put(service("a"))
	if got := orphans(w.Planner); got != "" {
		t.Errorf("both owners: %s", got)
	}
	w.remove(service("a"))
	w.put(service("b")) // of the same name
	w.remove(node("node-1"))
	if got := orphans(w.Planner); got != "block-10-244-0-0-26 service-10-96-0-1" {
		t.Errorf("another Service of the name: %s", got)
	}
}

// asker asks a Planner that nobody else uses.
type asker struct{}

func (asker) Do(_ context.Context, fn func(store.Revision)) error { fn(1); return nil }

type leader struct{ lead *store.Leadership }

func (l *leader) Leadership() *store.Leadership { return l.lead }

// TestCollector sweeps by a clock of the test's own.
func TestCollector(t *testing.T) {
	t.Parallel()
	fake := storefake.New(store.Kinds{
		planner.KindBlock: func() store.Object { return &objectv1.AddressBlock{} },
		planner.KindClaim: func() store.Object { return &objectv1.AddressClaim{} },
	})
	ctx := t.Context()
	session, err := fake.NewSession(ctx, store.SessionTTL)
	if err != nil {
		t.Fatal(err)
	}
	lead, err := session.Campaign(ctx, "ipam", "one", "one")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	create := func(o store.Object) {
		t.Helper()
		if _, err := fake.Txn().Create(o, kindOf(o)).Commit(ctx); err != nil {
			t.Fatal(err)
		}
		rec, _, err := fake.Get(ctx, store.KeyOf(kindOf(o), o))
		if err != nil {
			t.Fatal(err)
		}
		w.Put(rec)
	}
	exists := func(o store.Object) bool {
		_, _, err := fake.Get(ctx, store.KeyOf(kindOf(o), o))
		return err == nil
	}
	l := &leader{lead}
	c := &planner.Collector{Store: fake.Store, Planner: w.Planner, Asker: asker{}, Leader: l, Log: slog.New(slog.DiscardHandler)}
	clock := time.Unix(1_000_000, 0)
	sweep := func(after time.Duration) {
		t.Helper()
		clock = clock.Add(after)
		if err := c.Sweep(ctx, clock); err != nil {
			t.Fatal(err)
		}
	}
	lone, kept, ownerless := claim("10.96.0.1", "gone"), claim("10.96.0.2", "late"), block("10.244.0.0/26", "node-1")
	create(lone)
	create(kept)
	create(ownerless)
	sweep(0)
	sweep(planner.Grace - time.Second)
	if !exists(lone) || !exists(kept) || !exists(ownerless) {
		t.Fatal("collected within the grace time")
	}
	w.put(service("late")) // its owner comes
	sweep(time.Second)
	if exists(lone) || !exists(kept) || exists(ownerless) {
		t.Fatalf("after the grace time: claim %v, claim with owner %v, block %v", exists(lone), exists(kept), exists(ownerless))
	}
	w.remove(lone)
	w.remove(ownerless)
	w.remove(service("late")) // and goes: the grace time begins anew
	sweep(planner.Grace)
	if !exists(kept) {
		t.Fatal("the owner was there a moment ago")
	}
	l.lead = nil
	sweep(planner.Grace)
	l.lead = lead
	sweep(planner.Grace)
	if !exists(kept) {
		t.Fatal("what was seen under another leader counts")
	}
	fake.ExpireLeases("/podwire/x/elections/") // the election is lost, and this replica does not know
	sweep(planner.Grace)
	if !exists(kept) {
		t.Fatal("collected by a replica that leads no more")
	}
}
