package api

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
)

// IPAM is what the allocator asks of ipam; ipamv1.AllocationServiceClient is one.
type IPAM interface {
	Allocate(ctx context.Context, in *ipamv1.AllocateRequest, opts ...grpc.CallOption) (*ipamv1.AllocateResponse, error)
	Release(ctx context.Context, in *ipamv1.ReleaseRequest, opts ...grpc.CallOption) (*ipamv1.ReleaseResponse, error)
	ListPools(ctx context.Context, in *ipamv1.ListPoolsRequest, opts ...grpc.CallOption) (*ipamv1.ListPoolsResponse, error)
}

// maxWants bounds what one Allocate asks for; ipam answers at most this many in one transaction.
const maxWants = 40

// Allocator is the hop to ipam, in the terms of package lb.
type Allocator struct{ ipam IPAM }

// NewAllocator makes an Allocator.
func NewAllocator(ipam IPAM) *Allocator { return &Allocator{ipam: ipam} }

// ServiceRanges are the ranges of Service addresses in CIDR form, in ipam's order.
func (a *Allocator) ServiceRanges(ctx context.Context) ([]string, error) {
	resp, err := a.ipam.ListPools(ctx, &ipamv1.ListPoolsRequest{})
	if err != nil {
		return nil, errs.Wrap(err, "ipam: list pools")
	}
	var out []string
	for _, p := range resp.GetPools() {
		if p.GetPool() == string(lb.PoolService) {
			out = append(out, p.GetRange())
		}
	}
	return out, nil
}

func ownerOf(o *objectv1.Service) *ipamv1.Owner {
	meta := o.GetMetadata()
	return &ipamv1.Owner{Kind: kindService, Namespace: meta.GetNamespace(), Name: meta.GetName(), Uid: meta.GetUid()}
}

func poolOf(p lb.Pool) ipamv1.Pool {
	switch p {
	case lb.PoolService:
		return ipamv1.Pool_POOL_SERVICE
	case lb.PoolNodePort:
		return ipamv1.Pool_POOL_NODE_PORT
	}
	return ipamv1.Pool_POOL_LOAD_BALANCER
}

func familyOf(f lb.Family) ipamv1.Family {
	switch f {
	case lb.IPv4:
		return ipamv1.Family_FAMILY_IPV4
	case lb.IPv6:
		return ipamv1.Family_FAMILY_IPV6
	}
	return ipamv1.Family_FAMILY_UNSPECIFIED
}

func requestOf(o *objectv1.Service, wants []lb.Want) *ipamv1.AllocateRequest {
	req := &ipamv1.AllocateRequest{Owner: ownerOf(o)}
	for _, w := range wants {
		req.Wants = append(req.Wants, &ipamv1.Want{Pool: poolOf(w.Pool), Family: familyOf(w.Family), Value: w.Text})
	}
	return req
}

// mode says whether values are claimed or only looked for.
type mode int

const (
	claim mode = iota + 1
	rehearse
)

// Claim claims the values of a Service. An optional one that is not to be had is left empty. What was claimed before a
// failure stays claimed by the Service's UID.
//
// Errors: Invalid, with the field of each value that another Service holds or that is outside of its pool; Exhausted;
// Unavailable.
func (a *Allocator) Claim(ctx context.Context, o *objectv1.Service, wants []lb.Want) ([]string, error) {
	return a.values(ctx, o, wants, claim)
}

// Rehearse answers what Claim might, and claims nothing.
func (a *Allocator) Rehearse(ctx context.Context, o *objectv1.Service, wants []lb.Want) ([]string, error) {
	return a.values(ctx, o, wants, rehearse)
}

func (a *Allocator) values(ctx context.Context, o *objectv1.Service, wants []lb.Want, m mode) ([]string, error) {
	texts := make([]string, len(wants))
	var firm []int
	for i, w := range wants {
		if !w.Optional {
			firm = append(firm, i)
		}
	}
	for len(firm) > 0 {
		n := min(len(firm), maxWants)
		if err := a.some(ctx, o, wants, firm[:n], texts, m); err != nil {
			return nil, err
		}
		firm = firm[n:]
	}
	for i, w := range wants {
		if !w.Optional {
			continue
		}
		err := a.some(ctx, o, wants, []int{i}, texts, m)
		if err != nil && !errs.Is(err, errs.Exhausted) {
			return nil, err
		}
	}
	return texts, nil
}

// some asks for the wants of the indices, all or none.
func (a *Allocator) some(ctx context.Context, o *objectv1.Service, wants []lb.Want, indices []int, texts []string, m mode) error {
	var asked []lb.Want
	for _, i := range indices {
		asked = append(asked, wants[i])
	}
	req := requestOf(o, asked)
	req.DryRun = m == rehearse
	resp, err := a.ipam.Allocate(ctx, req)
	switch {
	case errs.Is(err, errs.Exists) || errs.Is(err, errs.Invalid):
		return a.blame(ctx, o, asked, err)
	case err != nil:
		return errs.Wrap(err, "Service %s/%s: allocate", o.GetMetadata().GetNamespace(), o.GetMetadata().GetName())
	case len(resp.GetClaims()) != len(asked):
		return errs.New(errs.Internal, "ipam: answered %d claims for %d wants", len(resp.GetClaims()), len(asked))
	}
	for n, i := range indices {
		texts[i] = resp.GetClaims()[n].GetSpec().GetValue()
	}
	return nil
}

// blame finds out which of several values was refused, and says so as Kubernetes does.
func (a *Allocator) blame(ctx context.Context, o *objectv1.Service, asked []lb.Want, cause error) error {
	var bad []errs.Violation
	for _, w := range asked {
		if w.Text == "" {
			continue
		}
		req := requestOf(o, []lb.Want{w})
		req.DryRun = true
		_, err := a.ipam.Allocate(ctx, req)
		switch {
		case err == nil:
		case errs.Is(err, errs.Exists) || errs.Is(err, errs.Invalid):
			bad = append(bad, errs.Violation{Field: w.Field, Value: w.Text, Rule: ruleOf(w, err)})
		default:
			return errs.Wrap(err, "ipam: allocate %s", w.Text)
		}
	}
	noun := "Service " + o.GetMetadata().GetNamespace() + "/" + o.GetMetadata().GetName()
	if len(bad) == 0 { // it was given back between the two calls, or the request as a whole is wrong
		return errs.WrapAs(errs.Conflict, cause, "%s: allocate", noun)
	}
	return errs.InvalidFields(noun, bad)
}

func ruleOf(w lb.Want, err error) string {
	text := err.Error()
	var typed *errs.Error
	if errors.As(err, &typed) {
		text = typed.Message
	}
	if w.Pool == lb.PoolNodePort {
		return text
	}
	return "failed to allocate IP " + w.Text + ": " + text
}

// Reclaim claims values that a stored Service uses and nobody holds. Errors as Claim.
func (a *Allocator) Reclaim(ctx context.Context, o *objectv1.Service, values []lb.Value) error {
	_, err := a.Claim(ctx, o, wantsOf(values))
	return err
}

func wantsOf(values []lb.Value) []lb.Want {
	wants := make([]lb.Want, len(values))
	for i, v := range values {
		wants[i] = lb.Want{Pool: v.Pool, Text: v.Text, Field: string(v.Pool)}
	}
	return wants
}

// Release gives values of a Service back. Values that it does not hold are passed over.
func (a *Allocator) Release(ctx context.Context, o *objectv1.Service, values []lb.Value) error {
	var names []string
	for _, w := range wantsOf(values) {
		// Rehearsing names the claim: how ipam names claims is its own affair.
		req := requestOf(o, []lb.Want{w})
		req.DryRun = true
		resp, err := a.ipam.Allocate(ctx, req)
		if errs.Is(err, errs.Exists) || errs.Is(err, errs.Invalid) {
			continue // another owner's, or of no pool any more
		}
		if err != nil {
			return errs.Wrap(err, "ipam: release %s", w.Text)
		}
		for _, c := range resp.GetClaims() {
			names = append(names, c.GetMetadata().GetName())
		}
	}
	return a.ReleaseClaims(ctx, o, names)
}

// ReleaseClaims gives claims of a Service back, by the names of the AddressClaims.
func (a *Allocator) ReleaseClaims(ctx context.Context, o *objectv1.Service, names []string) error {
	if len(names) == 0 {
		return nil
	}
	_, err := a.ipam.Release(ctx, &ipamv1.ReleaseRequest{Owner: ownerOf(o), Names: names})
	return errs.Wrap(err, "ipam: release")
}
