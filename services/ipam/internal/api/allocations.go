// Package api answers the ipam service's RPCs. In: requests. Out: grants, each a transaction that creates the object named
// after the value. The World only speeds up the choice: a choice that the store refuses is made again.
package api

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/internal/planner"
	"podwire.dev/services/ipam/internal/pool"
)

const apiVersion = "ipam.podwire.dev/v1"

// maxWants bounds one Allocate: a condition and an operation each must fit into a transaction.
const maxWants = 64

// maxTries bounds how often a grant is tried after another replica was faster.
const maxTries = 32

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Allocations serves podwire.ipam.v1.AllocationService.
type Allocations struct {
	ipamv1.UnimplementedAllocationServiceServer
	store *store.Store
	asker Asker
	plan  *planner.Planner
}

// NewAllocations grants from the World that asker guards.
func NewAllocations(st *store.Store, asker Asker, plan *planner.Planner) *Allocations {
	return &Allocations{store: st, asker: asker, plan: plan}
}

// pick is the chance that pool.Choose asks for.
func pick(n uint64) uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process rather than return an error
	return binary.BigEndian.Uint64(b[:]) % n
}

func newMeta(name string) *objectv1.ObjectMeta {
	return &objectv1.ObjectMeta{
		Name: name, Uid: uuid.NewString(), Generation: 1,
		CreationTimestamp: timestamppb.New(time.Now().Truncate(time.Second)),
	}
}

func familyOf(f ipamv1.Family) (fam int, ok bool) {
	switch f {
	case ipamv1.Family_FAMILY_IPV4:
		return 4, true
	case ipamv1.Family_FAMILY_IPV6:
		return 6, true
	}
	return 0, false
}

// grants is one Allocate under way.
type grants struct {
	owner pool.Owner
	wants []pool.Want
	// own are claims that the owner is found to hold, though the World does not show them yet.
	own map[string]store.Record
}

// Allocate implements AllocationService: all claims in one transaction. What the owner holds already and asks for
// exactly is granted again. Errors: Invalid, Exists for a value that another owner holds, Exhausted.
func (a *Allocations) Allocate(ctx context.Context, req *ipamv1.AllocateRequest) (*ipamv1.AllocateResponse, error) {
	owner, wants, err := readWants(req)
	if err != nil {
		return nil, err
	}
	g := grants{owner: owner, wants: wants, own: map[string]store.Record{}}
	for range maxTries {
		var chosen []choice
		var failed error
		if err := a.asker.Do(ctx, func(store.Revision) { chosen, failed = a.choose(g) }); err != nil {
			return nil, err
		}
		if failed != nil {
			return nil, failed
		}
		if req.GetDryRun() {
			return answer(chosen, 0), nil
		}
		resp, taken, err := a.claim(ctx, chosen)
		if taken == nil {
			return resp, err
		}
		if err := a.overtaken(ctx, g, taken); err != nil {
			return nil, err
		}
	}
	return nil, errs.New(errs.Unavailable, "ipam: other replicas were faster %d times: try again", maxTries)
}

// choice is the value for one want; held is the revision of the claim that the owner has already, 0 for a new one.
type choice struct {
	claim *objectv1.AddressClaim
	held  store.Revision
}

// choose runs in the goroutine that owns the World.
func (a *Allocations) choose(g grants) ([]choice, error) {
	var out []choice
	taken := map[string]bool{}
	for _, w := range g.wants {
		value, err := a.plan.Pools().Choose(w, g.owner, taken, pick)
		if err != nil {
			return nil, err
		}
		name := w.Pool.Name(value)
		taken[name] = true
		rec, held := a.plan.Claim(name)
		if !held {
			rec, held = g.own[name]
		}
		if held {
			out = append(out, choice{rec.Object.(*objectv1.AddressClaim), rec.Revision})
			continue
		}
		out = append(out, choice{claim: &objectv1.AddressClaim{
			ApiVersion: apiVersion, Kind: "AddressClaim", Metadata: newMeta(name),
			Spec: &objectv1.AddressClaimSpec{Pool: string(w.Pool), Value: value, Owner: &objectv1.AddressOwner{
				Kind: g.owner.Kind, Namespace: g.owner.Namespace, Name: g.owner.Name, Uid: g.owner.UID,
			}},
		}})
	}
	return out, nil
}

// claim commits what was chosen. taken names the claim that was made first.
func (a *Allocations) claim(ctx context.Context, chosen []choice) (resp *ipamv1.AllocateResponse, taken *store.FailedCompare, err error) {
	txn := a.store.Txn()
	created := map[string]*objectv1.AddressClaim{}
	for i, c := range chosen {
		name := c.claim.GetMetadata().GetName()
		switch {
		case c.held != 0:
		case created[name] != nil: // one node port may be wanted for several protocols
			chosen[i].claim = created[name]
		default:
			created[name] = c.claim
			txn.Create(c.claim, planner.KindClaim)
		}
	}
	if txn.Empty() {
		return answer(chosen, 0), nil, nil
	}
	rev, err := txn.Commit(ctx)
	if errors.As(err, &taken) {
		return nil, taken, nil
	}
	if err != nil {
		return nil, nil, errs.Wrap(err, "ipam: allocate")
	}
	return answer(chosen, rev), nil, nil
}

// overtaken finds out who was faster. It fails where that was somebody else and exactly this value is wanted.
func (a *Allocations) overtaken(ctx context.Context, g grants, taken *store.FailedCompare) error {
	rec, _, err := a.store.Get(ctx, taken.Object)
	if errs.Is(err, errs.NotFound) {
		return nil // and is gone again
	}
	if err != nil {
		return err
	}
	if planner.ClaimOf(rec.Object.(*objectv1.AddressClaim)).Owner.UID == g.owner.UID {
		g.own[taken.Object.Name] = rec
		return nil
	}
	if err := a.lost(ctx, taken, netip.Prefix{}); err != nil {
		return err
	}
	for _, w := range g.wants {
		if w.Value != "" && w.Pool.Name(w.Value) == taken.Object.Name {
			return pool.Taken(w.Pool)
		}
	}
	return nil
}

func answer(chosen []choice, rev store.Revision) *ipamv1.AllocateResponse {
	resp := &ipamv1.AllocateResponse{}
	for _, c := range chosen {
		if c.held == 0 && rev != 0 {
			c.claim.Metadata.ResourceVersion = fmt.Sprint(int64(rev))
		}
		resp.Claims = append(resp.Claims, c.claim)
		resp.Revision = max(resp.Revision, int64(c.held), int64(rev))
	}
	return resp
}

func readWants(req *ipamv1.AllocateRequest) (pool.Owner, []pool.Want, error) {
	var bad []errs.Violation
	add := func(field, value, rule string) {
		bad = append(bad, errs.Violation{Field: field, Value: value, Rule: rule})
	}
	owner := ownerOf(req.GetOwner())
	if owner.UID == "" || owner.Kind == "" || owner.Name == "" {
		add("owner", "", "kind, name and uid are required")
	}
	if n := len(req.GetWants()); n == 0 || n > maxWants {
		add("wants", fmt.Sprint(n), fmt.Sprintf("must be 1 to %d values", maxWants))
	}
	var wants []pool.Want
	for i, w := range req.GetWants() {
		want := pool.Want{Value: w.GetValue()}
		field := fmt.Sprintf("wants[%d]", i)
		switch w.GetPool() {
		case ipamv1.Pool_POOL_SERVICE:
			want.Pool = pool.Service
		case ipamv1.Pool_POOL_LOAD_BALANCER:
			want.Pool = pool.LoadBalancer
		case ipamv1.Pool_POOL_NODE_PORT:
			want.Pool = pool.NodePort
		default:
			add(field+".pool", w.GetPool().String(), "must be POOL_SERVICE, POOL_NODE_PORT or POOL_LOAD_BALANCER")
		}
		if want.Pool != pool.NodePort && want.Value == "" {
			fam, ok := familyOf(w.GetFamily())
			if !ok {
				add(field+".family", "", "must be FAMILY_IPV4 or FAMILY_IPV6 where no value is given")
			}
			want.Family = fam
		}
		if want.Pool == pool.NodePort && want.Value != "" { // 030080 and 30080 are one port, and one name
			if n, err := strconv.ParseUint(want.Value, 10, 16); err == nil {
				want.Value = strconv.FormatUint(n, 10)
			}
		}
		wants = append(wants, want)
	}
	return owner, wants, errs.InvalidFields("allocate", bad)
}

func ownerOf(o *ipamv1.Owner) pool.Owner {
	return pool.Owner{Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUid()}
}

// Release implements AllocationService. Claims that the owner does not hold are passed over: releasing twice is once.
func (a *Allocations) Release(ctx context.Context, req *ipamv1.ReleaseRequest) (*ipamv1.ReleaseResponse, error) {
	owner := ownerOf(req.GetOwner())
	var bad []errs.Violation
	if owner.UID == "" {
		bad = append(bad, errs.Violation{Field: "owner.uid", Rule: "is required"})
	}
	if (len(req.GetNames()) > 0) == req.GetAll() {
		bad = append(bad, errs.Violation{Field: "names", Rule: "either names, or all and no names, is required"})
	}
	if err := errs.InvalidFields("release", bad); err != nil {
		return nil, err
	}
	recs, err := a.held(ctx, owner, req.GetNames())
	if err != nil {
		return nil, err
	}
	resp := &ipamv1.ReleaseResponse{}
	for _, rec := range recs {
		rev, err := a.store.Txn().Delete(rec).Commit(ctx)
		if err != nil && !errs.Is(err, errs.Conflict) { // a claim changes only by being given back
			return nil, errs.Wrap(err, "ipam: release %s", rec.Key.Name)
		}
		resp.Revision = max(resp.Revision, int64(rev))
	}
	return resp, nil
}

// held reads the claims of an owner: those named, or all. The World would do but for a claim made a moment ago, which
// would stay behind for good where the owner lives on.
func (a *Allocations) held(ctx context.Context, owner pool.Owner, names []string) ([]store.Record, error) {
	own := func(o store.Object) bool {
		claim, ok := o.(*objectv1.AddressClaim)
		return ok && claim.GetSpec().GetOwner().GetUid() == owner.UID
	}
	if len(names) == 0 {
		page, err := a.store.List(ctx, store.ListQuery{Kind: planner.KindClaim, Match: own})
		return page.Records, err
	}
	var out []store.Record
	for _, name := range names {
		rec, _, err := a.store.Get(ctx, store.Key{Kind: planner.KindClaim, Name: name})
		switch {
		case errs.Is(err, errs.NotFound):
		case err != nil:
			return nil, err
		case own(rec.Object):
			out = append(out, rec)
		}
	}
	return out, nil
}

// ListPools implements AllocationService.
func (a *Allocations) ListPools(ctx context.Context, _ *ipamv1.ListPoolsRequest) (*ipamv1.ListPoolsResponse, error) {
	resp := &ipamv1.ListPoolsResponse{}
	err := a.asker.Do(ctx, func(at store.Revision) {
		resp.Revision = int64(at)
		for _, s := range a.plan.Pools().Status() {
			resp.Pools = append(resp.Pools, &ipamv1.PoolStatus{Pool: s.Pool, Range: s.Range, Size: s.Size, Used: s.Used})
		}
	})
	return resp, err
}
