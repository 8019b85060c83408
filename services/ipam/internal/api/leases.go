package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/internal/planner"
	"podwire.dev/services/ipam/internal/pool"
)

// lessee is the caller of a lease, or of its end.
func lessee(ctx context.Context, node, member string) (planner.Holder, error) {
	h := planner.Holder{Node: node, Member: member}
	if (node == "") == (member == "") {
		return h, errs.InvalidFields("lease", []errs.Violation{{Field: "node", Value: node, Rule: "either node or member is required"}})
	}
	if member == "" {
		return h, rpc.RequireNodeOr(ctx, node, pki.KindUser)
	}
	if rpc.FromContext(ctx).Kind == pki.KindUser {
		return h, nil
	}
	return h, rpc.RequireMember(ctx, member)
}

// grant is what a lease takes: a block for a node, or a single address for a member, whose block may have to be cut first.
type grant struct {
	prefix netip.Prefix
	cut    netip.Prefix
}

// What one identity may hold of a family: far more than any needs, so that one that is stolen cannot take all addresses.
const (
	maxBlocks  = 64  // of a node
	maxMembers = 128 // of a service, those that are gone and not cleared yet included
)

// next chooses, inside of feed.Do.
func (a *Allocations) next(h planner.Holder, service string, fam int) (grant, error) {
	what, most, held := "node "+h.Node+" holds %d blocks", maxBlocks, a.plan.LeasesOfNode(h.Node, fam)
	if h.Member != "" {
		what, most, held = "replicas of "+service+" hold %d addresses", maxMembers, a.plan.LeasesOfService(service, fam)
	}
	if held >= most {
		return grant{}, errs.New(errs.Exhausted, "ipam: "+what+" of IPv%d, which is the most that they may", held, fam)
	}
	if h.Member == "" {
		block, err := a.plan.Pools().NextBlock(fam)
		return grant{prefix: block}, err
	}
	single, err := a.plan.Pools().NextMember(fam, h.Member)
	if err != nil {
		return grant{}, err
	}
	return grant{netip.PrefixFrom(single.Address, single.Address.BitLen()), single.Cut}, nil
}

// LeaseBlock implements AllocationService. Errors: Invalid, Denied for another node's or another service's member,
// Exhausted.
func (a *Allocations) LeaseBlock(ctx context.Context, req *ipamv1.LeaseBlockRequest) (*ipamv1.LeaseBlockResponse, error) {
	holder, err := lessee(ctx, req.GetNode(), req.GetMember())
	if err != nil {
		return nil, err
	}
	fam, err := readLease(req)
	if err != nil {
		return nil, err
	}
	for range maxTries {
		var rec store.Record
		var known bool
		var chosen grant
		var failed error
		if err := a.asker.Do(ctx, func(store.Revision) {
			if rec, known = a.plan.LeaseOf(holder, req.GetRequestId(), fam); !known {
				chosen, failed = a.next(holder, rpc.FromContext(ctx).Name, fam)
			}
		}); err != nil {
			return nil, err
		}
		if known {
			return &ipamv1.LeaseBlockResponse{Object: rec.Object.(*objectv1.AddressBlock), Revision: int64(rec.Revision)}, nil
		}
		// The World may not show yet what an earlier try of this very request got, perhaps from another replica.
		if resp, err := a.leasedAnywhere(ctx, holder, req.GetRequestId(), fam); resp != nil || err != nil {
			return resp, err
		}
		if failed != nil {
			return nil, failed
		}
		resp, err := a.lease(ctx, holder, req.GetRequestId(), chosen)
		var taken *store.FailedCompare
		if !errors.As(err, &taken) {
			return resp, err
		}
		for _, name := range []string{pool.BlockName(chosen.prefix), taken.Object.Name} {
			if resp, err := a.leasedBefore(ctx, holder, req.GetRequestId(), name); resp != nil || err != nil {
				return resp, err
			}
		}
		if err := a.lost(ctx, taken, chosen.cut); err != nil {
			return nil, err
		}
	}
	return nil, errs.New(errs.Unavailable, "ipam: other replicas were faster %d times: try again", maxTries)
}

func readLease(req *ipamv1.LeaseBlockRequest) (fam int, err error) {
	var bad []errs.Violation
	if req.GetRequestId() == "" {
		bad = append(bad, errs.Violation{Field: "request_id", Rule: "is required: the same on a retry, another for another block"})
	}
	fam, ok := familyOf(req.GetFamily())
	if !ok {
		bad = append(bad, errs.Violation{Field: "family", Rule: "must be FAMILY_IPV4 or FAMILY_IPV6"})
	}
	return fam, errs.InvalidFields("lease", bad)
}

// lost tells the pools of a name that somebody else has, which the World may not show yet. A block that another member's
// lease has cut meanwhile is used as such: it need not be cut again.
func (a *Allocations) lost(ctx context.Context, taken *store.FailedCompare, cut netip.Prefix) error {
	if cut.IsValid() && taken.Object.Name == pool.BlockName(cut) {
		rec, _, err := a.store.Get(ctx, taken.Object)
		if err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
		if block, ok := rec.Object.(*objectv1.AddressBlock); ok && planner.HolderOf(block) == (planner.Holder{}) {
			return a.asker.Do(ctx, func(store.Revision) { a.plan.Pools().HoldCut(cut) })
		}
	}
	return a.asker.Do(ctx, func(store.Revision) { a.plan.Pools().Lost(taken.Object.Name, int64(taken.Have)) })
}

// lease commits what was chosen. Of a block that is cut, the transaction creates the block's own object, too, so that
// no node can lease it.
func (a *Allocations) lease(ctx context.Context, h planner.Holder, request string, g grant) (*ipamv1.LeaseBlockResponse, error) {
	txn := a.store.Txn()
	if g.cut.IsValid() {
		txn.Create(newBlock(g.cut, planner.Holder{}), planner.KindBlock)
	}
	block := newBlock(g.prefix, h)
	block.Metadata.Annotations = map[string]string{planner.AnnotationRequest: request}
	rev, err := txn.Create(block, planner.KindBlock).Commit(ctx)
	if err != nil {
		return nil, errs.Wrap(err, "ipam: lease %s", g.prefix)
	}
	block.Metadata.ResourceVersion = fmt.Sprint(int64(rev))
	return &ipamv1.LeaseBlockResponse{Object: block, Revision: int64(rev)}, nil
}

func newBlock(prefix netip.Prefix, h planner.Holder) *objectv1.AddressBlock {
	return &objectv1.AddressBlock{
		ApiVersion: apiVersion, Kind: "AddressBlock", Metadata: newMeta(pool.BlockName(prefix)),
		Spec: &objectv1.AddressBlockSpec{Cidr: prefix.String(), Node: h.Node, Member: h.Member},
	}
}

// leasedBefore finds out whether the block in the way is the answer to an earlier try of the same request.
func (a *Allocations) leasedBefore(ctx context.Context, h planner.Holder, request, name string) (*ipamv1.LeaseBlockResponse, error) {
	rec, _, err := a.store.Get(ctx, store.Key{Kind: planner.KindBlock, Name: name})
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return answers(rec, h, request), nil
}

// leasedAnywhere is leasedBefore for a block whose name is not known: it reads them all.
func (a *Allocations) leasedAnywhere(ctx context.Context, h planner.Holder, request string, fam int) (*ipamv1.LeaseBlockResponse, error) {
	for query := (store.ListQuery{Kind: planner.KindBlock}); ; {
		page, err := a.store.List(ctx, query)
		if err != nil {
			return nil, err
		}
		for _, rec := range page.Records {
			prefix, err := netip.ParsePrefix(rec.Object.(*objectv1.AddressBlock).GetSpec().GetCidr())
			if resp := answers(rec, h, request); err == nil && resp != nil && prefix.Addr().Is4() == (fam == 4) {
				return resp, nil
			}
		}
		if query.Continue = page.Continue; query.Continue == "" {
			return nil, nil
		}
	}
}

// answers is the response to a request if a block is what it was given; nil if not.
func answers(rec store.Record, h planner.Holder, request string) *ipamv1.LeaseBlockResponse {
	block := rec.Object.(*objectv1.AddressBlock)
	if planner.HolderOf(block) != h || h.Member == "" && block.GetMetadata().GetAnnotations()[planner.AnnotationRequest] != request {
		return nil
	}
	return &ipamv1.LeaseBlockResponse{Object: block, Revision: int64(rec.Revision)}
}

// ReleaseBlock implements AllocationService. Errors: NotFound; Denied for another's block, for the one that carries the
// tunnel address of a node or member that exists, and for one that is still in quarantine.
func (a *Allocations) ReleaseBlock(ctx context.Context, req *ipamv1.ReleaseBlockRequest) (*ipamv1.ReleaseBlockResponse, error) {
	caller, err := lessee(ctx, req.GetNode(), req.GetMember())
	if err != nil {
		return nil, err
	}
	rec, _, err := a.store.Get(ctx, store.Key{Kind: planner.KindBlock, Name: req.GetName()})
	if err != nil {
		return nil, err
	}
	if holder := planner.HolderOf(rec.Object.(*objectv1.AddressBlock)); holder != caller {
		return nil, errs.New(errs.Denied, "%s belongs to %s", req.GetName(), holder)
	}
	known, tunnel := false, false
	var orphan planner.Orphan
	if err := a.asker.Do(ctx, func(store.Revision) {
		_, known = a.plan.Block(req.GetName())
		tunnel = a.plan.Tunnel(req.GetName()) && (caller.Member == "" || a.plan.Attends(caller.Member))
		orphan = a.plan.Orphans()[req.GetName()]
	}); err != nil {
		return nil, err
	}
	if !known {
		return nil, errs.New(errs.Unavailable, "%s was leased just now and is not known here yet: try again", req.GetName())
	}
	if tunnel {
		return nil, errs.New(errs.Denied, "%s carries the tunnel address of %s: it ends with it", req.GetName(), caller)
	}
	over, err := (planner.Quarantine{Store: a.store}).Over(ctx, orphan.After)
	if err != nil {
		return nil, err
	}
	if !over {
		return nil, errs.New(errs.Denied, "%s is in quarantine until every node has forgotten %s: ipam gives it back by itself", req.GetName(), caller)
	}
	rev, err := a.store.Txn().Delete(rec).Commit(ctx)
	if err != nil {
		return nil, errs.Wrap(err, "ipam: release %s", req.GetName())
	}
	return &ipamv1.ReleaseBlockResponse{Revision: int64(rev)}, nil
}
