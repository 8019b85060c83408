package api_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/store/storetest"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/internal/api"
	"podwire.dev/services/ipam/internal/planner"
	"podwire.dev/services/ipam/internal/pool"
)

// patience bounds what has to happen, so that what never does fails.
const patience = 60 * time.Second

func kinds() store.Kinds {
	return store.Kinds{
		planner.KindBlock:   func() store.Object { return &objectv1.AddressBlock{} },
		planner.KindClaim:   func() store.Object { return &objectv1.AddressClaim{} },
		planner.KindService: func() store.Object { return &objectv1.Service{} },
		planner.KindPod:     func() store.Object { return &objectv1.Pod{} },
		feed.KindNode:       func() store.Object { return &objectv1.Node{} },
	}
}

func usual() pool.Ranges {
	return pool.Ranges{
		Pods:      []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/120")},
		Services:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/24"), netip.MustParsePrefix("fd00:10:96::/120")},
		NodePorts: pool.PortRange{From: 30000, To: 30099}, BlockBits: map[int]int{4: 26, 6: 122},
	}
}

// replica is one ipam process without a network.
type replica struct {
	*api.Allocations
	plan    *planner.Planner
	running feed.Running
}

func start(t *testing.T, st *store.Store, name string) *replica {
	t.Helper()
	return startWith(t, st, name, usual())
}

func startWith(t *testing.T, st *store.Store, name string, ranges pool.Ranges) *replica {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r := &replica{plan: planner.New(ranges)}
	d := daemon.New(daemon.Options{Name: "ipam", Log: slog.New(slog.DiscardHandler)})
	ended, wired := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- d.Run(ctx, func(context.Context) error {
			r.running = feed.Start(d, feed.Parts{Store: st, Planner: r.plan, Replica: store.Replica{Service: "ipam", Name: name, Address: name}})
			close(wired)
			return nil
		})
	}()
	<-wired
	t.Cleanup(func() {
		d.Stop()
		if err := <-ended; err != nil {
			t.Errorf("replica %s ended with: %v", name, err)
		}
		cancel()
	})
	r.Allocations = api.NewAllocations(st, r.running, r.plan)
	return r
}

func as(t *testing.T, id pki.Identity) context.Context {
	ctx, cancel := context.WithTimeout(rpc.WithIdentity(context.Background(), id), patience)
	t.Cleanup(cancel)
	return ctx
}

func ownerOf(uid string) *ipamv1.Owner {
	return &ipamv1.Owner{Kind: "services", Namespace: "default", Name: uid, Uid: uid}
}

func address(value string) *ipamv1.Want {
	return &ipamv1.Want{Pool: ipamv1.Pool_POOL_SERVICE, Family: ipamv1.Family_FAMILY_IPV4, Value: value}
}

func port(value string) *ipamv1.Want {
	return &ipamv1.Want{Pool: ipamv1.Pool_POOL_NODE_PORT, Value: value}
}

func values(resp *ipamv1.AllocateResponse) (out []string) {
	for _, c := range resp.GetClaims() {
		out = append(out, c.GetSpec().GetValue())
	}
	return out
}

func TestAllocate(t *testing.T) {
	t.Parallel()
	fake := storefake.New(kinds())
	r := start(t, fake.Store, "one")
	ctx := as(t, pki.Service("svcproxy"))
	allocate := func(uid string, wants ...*ipamv1.Want) (*ipamv1.AllocateResponse, error) {
		return r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf(uid), Wants: wants})
	}
	six := &ipamv1.Want{Pool: ipamv1.Pool_POOL_SERVICE, Family: ipamv1.Family_FAMILY_IPV6}
	resp, err := allocate("a", address("10.96.0.10"), six, port("030080"), port("30080"), port(""))
	if err != nil {
		t.Fatal(err)
	}
	got := values(resp)
	if got[0] != "10.96.0.10" || !strings.HasPrefix(got[1], "fd00:10:96::") || got[2] != "30080" || got[3] != "30080" || got[4] == "30080" {
		t.Errorf("values: %v", got)
	}
	for _, c := range resp.GetClaims() {
		rec, _, err := fake.Get(ctx, store.Key{Kind: planner.KindClaim, Name: c.GetMetadata().GetName()})
		if err != nil || int64(rec.Revision) != resp.GetRevision() || c.GetMetadata().GetResourceVersion() != fmt.Sprint(resp.GetRevision()) {
			t.Errorf("%s: %v, %v", c.GetMetadata().GetName(), rec.Revision, err)
		}
	}
	again, err := allocate("a", address("10.96.0.10"), port("30080"))
	if err != nil || !slices.Equal(values(again), []string{"10.96.0.10", "30080"}) || again.GetRevision() != resp.GetRevision() {
		t.Errorf("the owner's own again: %v, %v", again, err)
	}
	before := claims(t, fake)
	for _, tt := range []struct {
		what string
		want []*ipamv1.Want
		kind errs.Kind
	}{
		{"another's", []*ipamv1.Want{address(""), address("10.96.0.10")}, errs.Exists},
		{"another's port", []*ipamv1.Want{port("30080")}, errs.Exists},
		{"outside", []*ipamv1.Want{address("10.9.0.1")}, errs.Invalid},
		{"no pool", []*ipamv1.Want{{}}, errs.Invalid},
		{"no family", []*ipamv1.Want{{Pool: ipamv1.Pool_POOL_SERVICE}}, errs.Invalid},
		{"nothing", nil, errs.Invalid},
		{"too much", slices.Repeat([]*ipamv1.Want{port("")}, 65), errs.Invalid},
		{"no such pool here", []*ipamv1.Want{{Pool: ipamv1.Pool_POOL_LOAD_BALANCER, Family: ipamv1.Family_FAMILY_IPV4}}, errs.Exhausted},
	} {
		if _, err := allocate("b", tt.want...); !errs.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %v", tt.what, err, tt.kind)
		}
	}
	if _, err := r.Allocate(ctx, &ipamv1.AllocateRequest{Wants: []*ipamv1.Want{port("")}}); !errs.Is(err, errs.Invalid) {
		t.Errorf("no owner: %v", err)
	}
	dry, err := r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf("b"), Wants: []*ipamv1.Want{address("10.96.0.11")}, DryRun: true})
	if err != nil || values(dry)[0] != "10.96.0.11" || dry.GetRevision() != 0 {
		t.Errorf("dry run: %v, %v", dry, err)
	}
	if after := claims(t, fake); !slices.Equal(after, before) {
		t.Errorf("what is refused or dry left %v, before were %v", after, before)
	}
	if resp, err := allocate("big", slices.Repeat([]*ipamv1.Want{port("")}, 64)...); err != nil || len(resp.GetClaims()) != 64 {
		t.Errorf("64 values: %v", err)
	}

	if _, err := r.Release(ctx, &ipamv1.ReleaseRequest{Owner: ownerOf("b"), Names: []string{"service-10-96-0-10", "service-none"}}); err != nil {
		t.Errorf("another's and nobody's: %v", err)
	}
	if _, err := allocate("c", address("10.96.0.10")); !errs.Is(err, errs.Exists) {
		t.Errorf("another gave it back: %v", err)
	}
	for range 2 {
		if _, err := r.Release(ctx, &ipamv1.ReleaseRequest{Owner: ownerOf("a"), All: true}); err != nil {
			t.Error(err)
		}
	}
	r.sees(t, now(t, fake))
	if resp, err := allocate("c", address("10.96.0.10"), port("30080")); err != nil || len(resp.GetClaims()) != 2 {
		t.Errorf("after the release: %v", err)
	}
	for _, req := range []*ipamv1.ReleaseRequest{{}, {Owner: ownerOf("a")}, {Owner: ownerOf("a"), All: true, Names: []string{"x"}}} {
		if _, err := r.Release(ctx, req); !errs.Is(err, errs.Invalid) {
			t.Errorf("release %v: %v", req, err)
		}
	}
}

// claims are the names of all claims.
func claims(t *testing.T, fake *storefake.Fake) []string {
	t.Helper()
	page, err := fake.List(t.Context(), store.ListQuery{Kind: planner.KindClaim})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, rec := range page.Records {
		names = append(names, rec.Key.Name)
	}
	return names
}

// now is the revision of a write that is made here and means nothing: a World that has it has everything before. The
// store's own revision would not do, since that of a receipt or an election is none of the World's.
func now(t *testing.T, fake *storefake.Fake) store.Revision {
	t.Helper()
	marker := &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "marker-" + rand.Text(), Uid: rand.Text()}}
	rev, err := fake.Another(kinds()).Txn().Create(marker, planner.KindPod).Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// sees waits until the replica's World contains a revision.
func (r *replica) sees(t *testing.T, rev store.Revision) {
	t.Helper()
	ctx := as(t, pki.User("test"))
	again := time.NewTicker(time.Millisecond) // the feed tells nobody how far it is: it is asked
	defer again.Stop()
	for ; ; <-again.C {
		var at store.Revision
		if err := r.running.Do(ctx, func(now store.Revision) { at = now }); err != nil {
			t.Fatal(err)
		}
		if at >= rev {
			return
		}
	}
}

// race is somebody else's claim, made directly before the next transaction, so that the World cannot show it.
func race(t *testing.T, fake *storefake.Fake, kind pool.Kind, value, uid string) {
	t.Helper()
	other := fake.Another(kinds())
	// Once, whichever transaction is next: elections and receipts are transactions, too.
	fake.BeforeTxn(sync.OnceFunc(func() {
		_, err := other.Txn().Create(&objectv1.AddressClaim{
			Metadata: &objectv1.ObjectMeta{Name: kind.Name(value), Uid: "other"},
			Spec:     &objectv1.AddressClaimSpec{Pool: string(kind), Value: value, Owner: &objectv1.AddressOwner{Kind: "services", Uid: uid}},
		}, planner.KindClaim).Commit(context.Background())
		if err != nil {
			t.Error(err)
		}
	}))
}

func TestOvertaken(t *testing.T) {
	t.Parallel()
	fake := storefake.New(kinds())
	r := start(t, fake.Store, "one")
	ctx := as(t, pki.Service("svcproxy"))
	race(t, fake, pool.Service, "10.96.0.20", "somebody")
	if _, err := r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf("a"), Wants: []*ipamv1.Want{port(""), address("10.96.0.20")}}); !errs.Is(err, errs.Exists) {
		t.Errorf("an exact value was lost: %v", err)
	}
	race(t, fake, pool.Service, "10.96.0.21", "a")
	resp, err := r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf("a"), Wants: []*ipamv1.Want{address("10.96.0.21"), port("30001")}})
	if err != nil || !slices.Equal(values(resp), []string{"10.96.0.21", "30001"}) {
		t.Errorf("lost to an earlier try of the same owner: %v, %v", resp, err)
	}
	// All but one port are taken; the last one is lost on the way, and nothing is left.
	if _, err := r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf("b"), Wants: slices.Repeat([]*ipamv1.Want{port("")}, 64)}); err != nil {
		t.Fatal(err)
	}
	r.sees(t, now(t, fake))
	if _, err := r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf("b"), Wants: slices.Repeat([]*ipamv1.Want{port("")}, 34)}); err != nil {
		t.Fatal(err)
	}
	r.sees(t, now(t, fake))
	dry, err := r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf("c"), Wants: []*ipamv1.Want{port("")}, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	race(t, fake, pool.NodePort, values(dry)[0], "somebody")
	if _, err := r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf("c"), Wants: []*ipamv1.Want{port("")}}); !errs.Is(err, errs.Exhausted) {
		t.Errorf("the last one was lost: %v", err)
	}
	fake.LoseAnswers(1)
	resp, err = r.Allocate(ctx, &ipamv1.AllocateRequest{Owner: ownerOf("d"), Wants: []*ipamv1.Want{address("10.96.0.30")}})
	if err != nil || values(resp)[0] != "10.96.0.30" {
		t.Errorf("the answer was lost: %v, %v", resp, err)
	}
}

// TestParallel has 64 callers at two replicas: nobody is given what somebody else has.
func TestParallel(t *testing.T) {
	t.Parallel()
	t.Run("fake", func(t *testing.T) {
		t.Parallel()
		fake := storefake.New(kinds())
		parallel(t, fake.Store, fake.Another(kinds()))
	})
	t.Run("etcd", func(t *testing.T) {
		t.Parallel()
		etcd := storetest.StartEtcd(t)
		parallel(t, store.New(etcd.Engine(t), kinds()), store.New(etcd.Engine(t), kinds()))
	})
}

func parallel(t *testing.T, a, b *store.Store) {
	replicas := []*replica{start(t, a, "one"), start(t, b, "two")}
	var mu sync.Mutex
	holders := map[string]string{}
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			uid := fmt.Sprintf("s%d", i)
			resp, err := replicas[i%2].Allocate(as(t, pki.Service("svcproxy")), &ipamv1.AllocateRequest{
				Owner: ownerOf(uid), Wants: []*ipamv1.Want{address(""), port("")},
			})
			if err != nil {
				t.Errorf("%s: %v", uid, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, v := range values(resp) {
				if other, taken := holders[v]; taken {
					t.Errorf("%s was given to %s and %s", v, other, uid)
				}
				holders[v] = uid
			}
		})
	}
	blocks := map[string]string{}
	six := map[netip.Prefix]string{}
	for i := range 4 { // exactly as many as there are
		all.Go(func() {
			node := fmt.Sprintf("node-%d", i)
			resp, err := replicas[i%2].LeaseBlock(as(t, pki.Node(node)), &ipamv1.LeaseBlockRequest{Node: node, Family: ipamv1.Family_FAMILY_IPV4, RequestId: "1"})
			if err != nil {
				t.Errorf("%s: %v", node, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if cidr := resp.GetObject().GetSpec().GetCidr(); blocks[cidr] != "" {
				t.Errorf("%s was leased to %s and %s", cidr, blocks[cidr], node)
			} else {
				blocks[cidr] = node
			}
		})
	}
	for i := range 16 { // a block of IPv6 is cut, once, while nodes lease others
		all.Go(func() {
			member, node := fmt.Sprintf("dns-%d", i), fmt.Sprintf("node-%d", i)
			var lease *ipamv1.LeaseBlockRequest
			id := pki.Service("dns")
			if lease = (&ipamv1.LeaseBlockRequest{Member: member, Family: ipamv1.Family_FAMILY_IPV6, RequestId: "1"}); i >= 13 {
				lease.Member, lease.Node, id = "", node, pki.Node(node)
			}
			resp, err := replicas[i%2].LeaseBlock(as(t, id), lease)
			if err != nil {
				t.Errorf("%s: %v", member, err)
				return
			}
			again, err := replicas[(i+1)%2].LeaseBlock(as(t, id), lease) // whose World may not show it yet
			if err != nil || again.GetObject().GetSpec().GetCidr() != resp.GetObject().GetSpec().GetCidr() {
				t.Errorf("%s leased %v, and by the same request %v, %v", member, resp.GetObject().GetSpec(), again.GetObject().GetSpec(), err)
			}
			mu.Lock()
			defer mu.Unlock()
			prefix := netip.MustParsePrefix(resp.GetObject().GetSpec().GetCidr())
			for other, holder := range six {
				if other.Overlaps(prefix) {
					t.Errorf("%s was leased to %s, and %s to %s", prefix, member, other, holder)
				}
			}
			six[prefix] = member
		})
	}
	all.Wait()
	if len(six) != 16 {
		t.Errorf("%d leases of IPv6", len(six))
	}
	if len(holders) != 128 || len(blocks) != 4 {
		t.Errorf("%d values and %d blocks", len(holders), len(blocks))
	}
}

func TestBlocks(t *testing.T) {
	t.Parallel()
	fake := storefake.New(kinds())
	r := start(t, fake.Store, "one")
	node := as(t, pki.Node("node-1"))
	lease := func(fam ipamv1.Family, request string) (*objectv1.AddressBlock, error) {
		resp, err := r.LeaseBlock(node, &ipamv1.LeaseBlockRequest{Node: "node-1", Family: fam, RequestId: request})
		return resp.GetObject(), err
	}
	first, err := lease(ipamv1.Family_FAMILY_IPV4, "1")
	if err != nil || first.GetSpec().GetCidr() != "10.244.0.0/26" || first.GetSpec().GetNode() != "node-1" {
		t.Fatalf("%v, %v", first, err)
	}
	same, err := lease(ipamv1.Family_FAMILY_IPV4, "1") // perhaps before the World shows the first
	if err != nil || same.GetMetadata().GetUid() != first.GetMetadata().GetUid() {
		t.Errorf("repeated: %v, %v", same, err)
	}
	six, err := lease(ipamv1.Family_FAMILY_IPV6, "1")
	if err != nil || six.GetSpec().GetCidr() != "fd00:10:244::/122" {
		t.Errorf("the other family by the same request: %v, %v", six, err)
	}
	second, err := lease(ipamv1.Family_FAMILY_IPV4, "2")
	if err != nil || second.GetSpec().GetCidr() != "10.244.0.64/26" {
		t.Errorf("another request: %v, %v", second, err)
	}
	for what, req := range map[string]*ipamv1.LeaseBlockRequest{
		"no family":  {Node: "node-1", RequestId: "9"},
		"no request": {Node: "node-1", Family: ipamv1.Family_FAMILY_IPV4},
	} {
		if _, err := r.LeaseBlock(node, req); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := r.LeaseBlock(node, &ipamv1.LeaseBlockRequest{Node: "node-2", Family: ipamv1.Family_FAMILY_IPV4, RequestId: "1"}); !errs.Is(err, errs.Denied) {
		t.Errorf("for another node: %v", err)
	}
	r.sees(t, now(t, fake))
	release := func(ctx context.Context, as, name string) error {
		_, err := r.ReleaseBlock(ctx, &ipamv1.ReleaseBlockRequest{Node: as, Name: name})
		return err
	}
	for _, tt := range []struct {
		what       string
		id         pki.Identity
		node, name string
		kind       errs.Kind
	}{
		{"the tunnel address's", pki.Node("node-1"), "node-1", first.GetMetadata().GetName(), errs.Denied},
		{"another node's", pki.Node("node-2"), "node-2", second.GetMetadata().GetName(), errs.Denied},
		{"as another node", pki.Node("node-2"), "node-1", second.GetMetadata().GetName(), errs.Denied},
		{"nothing", pki.Node("node-1"), "node-1", "block-none", errs.NotFound},
	} {
		if err := release(as(t, tt.id), tt.node, tt.name); !errs.Is(err, tt.kind) {
			t.Errorf("release of %s: %v", tt.what, err)
		}
	}
	if err := release(node, "node-1", second.GetMetadata().GetName()); err != nil {
		t.Errorf("release: %v", err)
	}
	r.sees(t, now(t, fake))
	if next, err := lease(ipamv1.Family_FAMILY_IPV4, "3"); err != nil || next.GetSpec().GetCidr() != "10.244.0.128/26" {
		t.Errorf("a block that came back is leased at once: %v, %v", next, err)
	}
	r.sees(t, now(t, fake))
	pools, err := r.ListPools(node, &ipamv1.ListPoolsRequest{})
	if err != nil || pools.GetPools()[0].GetUsed() != 2 || pools.GetPools()[0].GetSize() != 4 {
		t.Errorf("pools: %v, %v", pools, err)
	}
	race4 := func() { // somebody leases what will be chosen
		other := fake.Another(kinds())
		fake.BeforeTxn(func() {
			_, err := other.Txn().Create(&objectv1.AddressBlock{
				Metadata: &objectv1.ObjectMeta{Name: "block-10-244-0-192-26", Uid: "x"}, Spec: &objectv1.AddressBlockSpec{Cidr: "10.244.0.192/26", Node: "node-7"},
			}, planner.KindBlock).Commit(context.Background())
			if err != nil {
				t.Error(err)
			}
		})
	}
	r.sees(t, now(t, fake))
	race4()
	if next, err := lease(ipamv1.Family_FAMILY_IPV4, "4"); err != nil || next.GetSpec().GetCidr() != "10.244.0.64/26" {
		t.Errorf("overtaken: %v, %v", next, err)
	}
	r.sees(t, now(t, fake))
	if _, err := lease(ipamv1.Family_FAMILY_IPV4, "5"); !errs.Is(err, errs.Exhausted) {
		t.Errorf("none left: %v", err)
	}
}
