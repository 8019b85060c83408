package api

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/planner"
)

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Owners knows inside of Asker.Do which node holds an address; *planner.Planner is one.
type Owners interface {
	Owns(node string, hostNetwork planner.HostNetwork, addr netip.Addr) bool
}

// Holdings judges whether the addresses of a Pod are its node's to give: a node that reports the address of another would
// get that other's traffic and rights.
type Holdings struct {
	store  *store.Store
	asker  Asker
	owners Owners
}

// NewHoldings judges by the World, and by the store where the World may be behind.
func NewHoldings(st *store.Store, asker Asker, owners Owners) *Holdings {
	return &Holdings{store: st, asker: asker, owners: owners}
}

// check is Denied for an address that the node of a Pod does not hold.
func (h *Holdings) check(ctx context.Context, o *objectv1.Pod, status *objectv1.PodStatus) error {
	node, host := o.GetSpec().GetNodeName(), planner.HostNetwork(o.GetSpec().GetHostNetwork())
	claimed := map[string]netip.Addr{}
	for i, ip := range status.GetPodIps() {
		// What is no address is refused with the status.
		if addr, err := netip.ParseAddr(ip.GetIp()); err == nil {
			claimed[fmt.Sprintf("status.podIPs[%d].ip", i)] = addr
		}
	}
	if len(claimed) == 0 {
		return nil
	}
	err := h.asker.Do(ctx, func(store.Revision) {
		for field, addr := range claimed {
			if h.owners.Owns(node, host, addr) {
				delete(claimed, field)
			}
		}
	})
	if err != nil || len(claimed) == 0 {
		return err
	}
	// The node may hold since a moment ago what the World does not show yet.
	if err := h.read(ctx, node, host, claimed); err != nil || len(claimed) == 0 {
		return err
	}
	rule := "must lie in a block that node " + node + " leases"
	if host {
		rule = "must be an address of node " + node
	}
	var bad []errs.Violation
	for field, addr := range claimed {
		bad = append(bad, errs.Violation{Field: field, Value: addr.String(), Rule: rule})
	}
	slices.SortFunc(bad, func(a, b errs.Violation) int { return strings.Compare(a.Field, b.Field) })
	return &errs.Error{Kind: errs.Denied, Message: "Pod " + o.GetMetadata().GetNamespace() + "/" + o.GetMetadata().GetName() + ":", Violations: bad}
}

// read takes out of claimed what the store shows as the node's.
func (h *Holdings) read(ctx context.Context, node string, host planner.HostNetwork, claimed map[string]netip.Addr) error {
	world := planner.New(nil)
	if host {
		rec, _, err := h.store.Get(ctx, store.Key{Kind: planner.KindNode, Name: node})
		if err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
		if err == nil {
			world.Put(rec)
		}
	} else {
		page, err := h.store.List(ctx, store.ListQuery{Kind: planner.KindBlock})
		if err != nil {
			return err
		}
		for _, rec := range page.Records {
			world.Put(rec)
		}
	}
	for field, addr := range claimed {
		if world.Owns(node, host, addr) {
			delete(claimed, field)
		}
	}
	return nil
}
