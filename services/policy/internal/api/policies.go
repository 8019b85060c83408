// Package api answers the policy service's RPCs. In: requests. Out: writes to the store through internal/verbs, reads of
// the store, and verdicts of the World that the feed owns. It computes nothing itself.
package api

import (
	"context"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
	"podwire.dev/services/policy/internal/planner"
	"podwire.dev/services/policy/internal/ruleset"
)

type policy = *objectv1.NetworkPolicy

// Policies serves podwire.policy.v1.NetworkPolicyService.
type Policies struct {
	policyv1.UnimplementedNetworkPolicyServiceServer
	verbs *verbs.Handler[policy]
}

// NewPolicies serves the NetworkPolicies of a store.
func NewPolicies(st *store.Store) *Policies {
	return &Policies{verbs: verbs.New(st, verbs.Rules[policy]{
		Kind: planner.KindPolicy, APIVersion: "networking.k8s.io/v1", Noun: "NetworkPolicy", Scope: verbs.Namespaced,
		Default:  func(o, _ policy) { ruleset.DefaultPolicy(o) },
		Validate: func(o, _ policy) []errs.Violation { return ruleset.ValidatePolicy(o) },
	})}
}

// Apply implements NetworkPolicyService.
func (p *Policies) Apply(ctx context.Context, req *policyv1.NetworkPolicyServiceApplyRequest) (*policyv1.NetworkPolicyServiceApplyResponse, error) {
	res, err := p.verbs.Apply(ctx, verbs.ApplyRequest[policy]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &policyv1.NetworkPolicyServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// Get implements NetworkPolicyService.
func (p *Policies) Get(ctx context.Context, req *policyv1.NetworkPolicyServiceGetRequest) (*policyv1.NetworkPolicyServiceGetResponse, error) {
	found, err := p.verbs.Find(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &policyv1.NetworkPolicyServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements NetworkPolicyService.
func (p *Policies) List(ctx context.Context, req *policyv1.NetworkPolicyServiceListRequest) (*policyv1.NetworkPolicyServiceListResponse, error) {
	page, err := p.verbs.List(ctx, verbs.ListRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), LabelSelector: req.GetLabelSelector(),
		Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &policyv1.NetworkPolicyServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements NetworkPolicyService.
func (p *Policies) Watch(req *policyv1.NetworkPolicyServiceWatchRequest, stream grpc.ServerStreamingServer[policyv1.NetworkPolicyServiceWatchResponse]) error {
	events := p.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), Name: req.GetName(),
		LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[policy]) error {
		return stream.Send(&policyv1.NetworkPolicyServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements NetworkPolicyService.
func (p *Policies) Delete(ctx context.Context, req *policyv1.NetworkPolicyServiceDeleteRequest) (*policyv1.NetworkPolicyServiceDeleteResponse, error) {
	res, err := p.verbs.Delete(ctx, verbs.DeleteRequest{
		Namespace: req.GetNamespace(), Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision,
		GraceSeconds: req.GracePeriodSeconds, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &policyv1.NetworkPolicyServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}
