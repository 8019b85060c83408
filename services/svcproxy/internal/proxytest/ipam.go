package proxytest

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/planner"
)

// IPAM is an ipam in memory that leaves its claims in a store, as the real one does, and chooses the next value.
type IPAM struct {
	mu    sync.Mutex
	store *store.Store
	next  map[string]int
	// Calls counts Allocate and Release calls that may change something.
	Calls int
	// Balancers is whether there are load balancer addresses; Down makes every call fail.
	Balancers, Down bool
	// Claimed is called once, after the next claim and before its answer: the moment for another writer to win a race.
	Claimed func()
}

// NewIPAM makes an IPAM without load balancer addresses.
func NewIPAM(st *store.Store) *IPAM { return &IPAM{store: st, next: map[string]int{}} }

func poolName(p ipamv1.Pool) string {
	return map[ipamv1.Pool]string{
		ipamv1.Pool_POOL_SERVICE: "service", ipamv1.Pool_POOL_NODE_PORT: "node-port", ipamv1.Pool_POOL_LOAD_BALANCER: "load-balancer",
	}[p]
}

func claimName(pool, value string) string {
	return pool + "-" + strings.NewReplacer(".", "-", ":", "-").Replace(value) + "-0"
}

func (i *IPAM) claim(ctx context.Context, name string) (store.Record, bool) {
	rec, _, err := i.store.Get(ctx, store.Key{Kind: planner.KindClaim, Name: name})
	return rec, err == nil
}

func (i *IPAM) any(ctx context.Context, _ string, w *ipamv1.Want) (string, error) {
	pool := poolName(w.GetPool())
	if pool == "load-balancer" && !i.Balancers {
		return "", errs.New(errs.Exhausted, "ipam: pool %s has no free %s address", pool, w.GetFamily())
	}
	for {
		key := pool + w.GetFamily().String()
		i.next[key]++
		n := i.next[key]
		value := map[string]string{
			"serviceFAMILY_IPV4": fmt.Sprintf("10.96.1.%d", n), "serviceFAMILY_IPV6": fmt.Sprintf("fd00:10:96::1%02x", n),
			"load-balancerFAMILY_IPV4": fmt.Sprintf("198.51.100.%d", n), "load-balancerFAMILY_IPV6": fmt.Sprintf("2001:db8::%x", n),
			"node-portFAMILY_UNSPECIFIED": fmt.Sprint(31000 + n),
		}[key]
		if _, held := i.claim(ctx, claimName(pool, value)); !held {
			return value, nil
		}
	}
}

func (i *IPAM) exact(ctx context.Context, uid string, w *ipamv1.Want) (string, error) {
	pool, what := poolName(w.GetPool()), "IP"
	if pool == "node-port" {
		var n int
		if _, err := fmt.Sscan(w.GetValue(), &n); err != nil || n < 30000 || n > 32767 {
			return "", errs.New(errs.Invalid, "provided port is not in the valid range. The range of valid ports is 30000-32767")
		}
		what = "port"
	} else if !inRange(pool, w.GetValue()) {
		return "", errs.New(errs.Invalid, "provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16, fd00:10:96::/112")
	}
	rec, held := i.claim(ctx, claimName(pool, w.GetValue()))
	if held && rec.Object.(*objectv1.AddressClaim).GetSpec().GetOwner().GetUid() != uid {
		return "", errs.New(errs.Exists, "provided %s is already allocated", what)
	}
	return w.GetValue(), nil
}

// inRange says whether an address is one of its pool; every address is one of the load balancers'.
func inRange(pool, text string) bool {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return false
	}
	for _, cidr := range []string{"10.96.0.0/16", "fd00:10:96::/112"} {
		if netip.MustParsePrefix(cidr).Contains(a) {
			return true
		}
	}
	return pool == "load-balancer"
}

// Allocate implements AllocationServiceClient.
func (i *IPAM) Allocate(ctx context.Context, req *ipamv1.AllocateRequest, _ ...grpc.CallOption) (*ipamv1.AllocateResponse, error) {
	resp, err := i.allocate(ctx, req)
	if fn := i.Claimed; fn != nil && err == nil && !req.GetDryRun() {
		i.Claimed = nil
		fn()
	}
	return resp, err
}

func (i *IPAM) allocate(ctx context.Context, req *ipamv1.AllocateRequest) (*ipamv1.AllocateResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.Down {
		return nil, errs.New(errs.Unavailable, "ipam is away")
	}
	owner := req.GetOwner()
	resp := &ipamv1.AllocateResponse{}
	for _, w := range req.GetWants() {
		choose := i.exact
		if w.GetValue() == "" {
			choose = i.any
		}
		value, err := choose(ctx, owner.GetUid(), w)
		if err != nil {
			return nil, err
		}
		pool := poolName(w.GetPool())
		resp.Claims = append(resp.Claims, &objectv1.AddressClaim{
			Metadata: &objectv1.ObjectMeta{Name: claimName(pool, value)},
			Spec: &objectv1.AddressClaimSpec{Pool: pool, Value: value, Owner: &objectv1.AddressOwner{
				Kind: owner.GetKind(), Namespace: owner.GetNamespace(), Name: owner.GetName(), Uid: owner.GetUid(),
			}},
		})
	}
	if req.GetDryRun() {
		return resp, nil
	}
	i.Calls++
	for _, c := range resp.Claims {
		if _, held := i.claim(ctx, c.GetMetadata().GetName()); held {
			continue
		}
		if _, err := i.store.Txn().Create(c, planner.KindClaim).Commit(ctx); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// Release implements AllocationServiceClient.
func (i *IPAM) Release(ctx context.Context, req *ipamv1.ReleaseRequest, _ ...grpc.CallOption) (*ipamv1.ReleaseResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.Down {
		return nil, errs.New(errs.Unavailable, "ipam is away")
	}
	i.Calls++
	for _, name := range req.GetNames() {
		rec, held := i.claim(ctx, name)
		if !held || rec.Object.(*objectv1.AddressClaim).GetSpec().GetOwner().GetUid() != req.GetOwner().GetUid() {
			continue
		}
		if _, err := i.store.Txn().Delete(rec).Commit(ctx); err != nil {
			return nil, err
		}
	}
	return &ipamv1.ReleaseResponse{}, nil
}

// ListPools implements AllocationServiceClient.
func (i *IPAM) ListPools(context.Context, *ipamv1.ListPoolsRequest, ...grpc.CallOption) (*ipamv1.ListPoolsResponse, error) {
	if i.Down {
		return nil, errs.New(errs.Unavailable, "ipam is away")
	}
	return &ipamv1.ListPoolsResponse{Pools: []*ipamv1.PoolStatus{
		{Pool: "pod", Range: "10.244.0.0/16"}, {Pool: "service", Range: "10.96.0.0/16"}, {Pool: "service", Range: "fd00:10:96::/112"},
	}}, nil
}
