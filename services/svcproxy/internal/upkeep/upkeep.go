// Package upkeep does what the elected replica owes the Services beside planning: it writes the Services that every
// cluster has, gives load balancers an address that had to wait for one, and brings ipam's claims and the Services into
// accord where a failure left them apart.
//
// In: what the World shows, asked now and then. Out: applies of Services and claims and releases of their values, each of
// them harmless when done twice or by two replicas. It must not decide what a Service needs: package lb does.
package upkeep

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
	"podwire.dev/services/svcproxy/internal/planner"
)

const (
	// Grace is how long a claim may disagree with its Service: longer than any Apply that has claimed a value and not
	// yet written the Service that is to have it.
	Grace = 60 * time.Second

	given = 500 * time.Millisecond
	sweep = 10 * time.Second
)

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Leader knows whether this replica does the work; *feed.Leader is one.
type Leader interface{ Leadership() *store.Leadership }

// Services applies Services as a caller would; *api.Services is one.
type Services interface {
	Ensure(ctx context.Context, o *objectv1.Service) error
}

// Allocator is the hop to ipam; *api.Allocator is one.
type Allocator interface {
	ServiceRanges(ctx context.Context) ([]string, error)
	Reclaim(ctx context.Context, o *objectv1.Service, values []lb.Value) error
	ReleaseClaims(ctx context.Context, o *objectv1.Service, names []string) error
}

// Upkeep belongs to one goroutine.
type Upkeep struct {
	Planner   *planner.Planner
	Asker     Asker
	Leader    Leader
	Services  Services
	Allocator Allocator
	// DNS are the addresses of cluster DNS, one of each family, the primary first.
	DNS []netip.Addr
	Log *slog.Logger

	// since is when a disagreement was first seen, by UID of the Service and the claim's name or the value.
	since map[string]time.Time
	// said is the last failure that was logged, so that a lasting one is logged once.
	said string
}

// Run works until ctx ends.
func (u *Upkeep) Run(ctx context.Context) error {
	often, rarely := time.NewTicker(given), time.NewTicker(sweep)
	defer often.Stop()
	defer rarely.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-often.C:
			err = u.Give(ctx)
		case now := <-rarely.C:
			err = u.Sweep(ctx, now)
		}
		u.say(ctx, err)
	}
}

func (u *Upkeep) say(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		u.said = ""
	case err.Error() != u.said:
		u.said = err.Error()
		u.Log.Warn("upkeep of Services failed, trying again", "error", err)
	}
}

// Give writes the Services that every cluster has, once their Namespaces exist.
func (u *Upkeep) Give(ctx context.Context) error {
	if u.Leader.Leadership() == nil {
		return nil
	}
	var missing []lb.Ref
	if err := u.Asker.Do(ctx, func(store.Revision) {
		for _, ref := range []lb.Ref{lb.APIRef(), lb.DNSRef(), lb.IngressRef()} {
			if exists, possible := u.Planner.Has(ref); possible && !exists {
				missing = append(missing, ref)
			}
		}
	}); err != nil {
		return err
	}
	for _, ref := range missing {
		var o *objectv1.Service
		switch ref {
		case lb.APIRef():
			first, err := u.firstAddress(ctx)
			if err != nil {
				return err
			}
			o = lb.APIService(first)
		case lb.DNSRef():
			o = lb.DNSService(u.DNS)
		default:
			o = lb.IngressService()
		}
		switch err := u.Services.Ensure(ctx, o); {
		case errs.Is(err, errs.Exists): // the World will show it
		case err != nil:
			return errs.Wrap(err, "upkeep: Service %s", ref)
		default:
			u.Log.Info("wrote a Service that every cluster has", "service", ref, "address", o.GetSpec().GetClusterIp())
		}
	}
	return nil
}

// firstAddress is the first one of the primary range, which Kubernetes gives to default/kubernetes.
func (u *Upkeep) firstAddress(ctx context.Context) (netip.Addr, error) {
	ranges, err := u.Allocator.ServiceRanges(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, text := range ranges {
		p, err := netip.ParsePrefix(text)
		if err == nil && p.Addr().Is4() == u.DNS[0].Is4() {
			return p.Masked().Addr().Next(), nil
		}
	}
	return netip.Addr{}, errs.New(errs.Unavailable, "ipam: has no %s Service range: it has %v", lb.FamilyOf(u.DNS[0]), ranges)
}

func refOf(o *objectv1.Service) lb.Ref {
	return lb.Ref{Namespace: o.GetMetadata().GetNamespace(), Name: o.GetMetadata().GetName()}
}

// Sweep asks again for addresses that were not to be had, and settles what Services and claims have disagreed about for
// the grace time.
func (u *Upkeep) Sweep(ctx context.Context, now time.Time) error {
	if u.Leader.Leadership() == nil {
		u.since = nil
		return nil
	}
	var pending []*objectv1.Service
	var discords []planner.Discord
	if err := u.Asker.Do(ctx, func(store.Revision) {
		pending, discords = u.Planner.Pending(), u.Planner.Discords()
	}); err != nil {
		return err
	}
	for _, o := range pending {
		err := u.Services.Ensure(ctx, proto.Clone(o).(*objectv1.Service))
		if err != nil && !errs.Is(err, errs.Conflict) && !errs.Is(err, errs.NotFound) {
			return errs.Wrap(err, "upkeep: load balancer address of Service %s", refOf(o))
		}
	}
	return u.settle(ctx, discords, now)
}

func (u *Upkeep) settle(ctx context.Context, discords []planner.Discord, now time.Time) error {
	next := map[string]time.Time{}
	ripe := func(key string) bool {
		at, ok := u.since[key]
		if !ok {
			at = now
		}
		next[key] = at
		return now.Sub(at) >= Grace
	}
	var failed error
	for _, d := range discords {
		uid := d.Service.GetMetadata().GetUid()
		names := slices.DeleteFunc(d.Unused, func(name string) bool { return !ripe(uid + " " + name) })
		values := slices.DeleteFunc(d.Unclaimed, func(v lb.Value) bool { return !ripe(uid + " " + string(v.Pool) + " " + v.Text) })
		if len(names) > 0 {
			if err := u.Allocator.ReleaseClaims(ctx, d.Service, names); err != nil {
				failed = err
			} else {
				u.Log.Info("gave back what a Service does not use", "service", refOf(d.Service), "claims", names)
			}
		}
		if len(values) > 0 {
			if err := u.Allocator.Reclaim(ctx, d.Service, values); err != nil {
				failed = errs.Wrap(err, "upkeep: Service %s uses what ipam does not hold for it", refOf(d.Service))
			} else {
				u.Log.Info("claimed what a Service uses", "service", refOf(d.Service), "values", values)
			}
		}
	}
	u.since = next
	return failed
}
