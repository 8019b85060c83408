package api

import (
	"context"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	"podwire.dev/services/svcproxy/internal/lb"
	"podwire.dev/services/svcproxy/internal/planner"
)

type endpointSlice = *objectv1.EndpointSlice

// Slices serves podwire.svcproxy.v1.EndpointSliceService.
type Slices struct {
	svcproxyv1.UnimplementedEndpointSliceServiceServer
	verbs *verbs.Handler[endpointSlice]
}

// NewSlices serves the EndpointSlices of a store.
func NewSlices(st *store.Store) *Slices {
	return &Slices{verbs: verbs.New(st, verbs.Rules[endpointSlice]{
		Kind: planner.KindSlice, APIVersion: "discovery.k8s.io/v1", Noun: "EndpointSlice", Scope: verbs.Namespaced,
		Default:  func(o, _ endpointSlice) { lb.DefaultSlice(o) },
		Validate: func(o, old endpointSlice) []errs.Violation { return lb.ValidateSlice(o, old) },
	})}
}

// Apply implements EndpointSliceService.
func (s *Slices) Apply(ctx context.Context, req *svcproxyv1.EndpointSliceServiceApplyRequest) (*svcproxyv1.EndpointSliceServiceApplyResponse, error) {
	res, err := s.verbs.Apply(ctx, verbs.ApplyRequest[endpointSlice]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.EndpointSliceServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// Get implements EndpointSliceService.
func (s *Slices) Get(ctx context.Context, req *svcproxyv1.EndpointSliceServiceGetRequest) (*svcproxyv1.EndpointSliceServiceGetResponse, error) {
	found, err := s.verbs.Find(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.EndpointSliceServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements EndpointSliceService.
func (s *Slices) List(ctx context.Context, req *svcproxyv1.EndpointSliceServiceListRequest) (*svcproxyv1.EndpointSliceServiceListResponse, error) {
	page, err := s.verbs.List(ctx, verbs.ListRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), LabelSelector: req.GetLabelSelector(),
		Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.EndpointSliceServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements EndpointSliceService.
func (s *Slices) Watch(req *svcproxyv1.EndpointSliceServiceWatchRequest, stream grpc.ServerStreamingServer[svcproxyv1.EndpointSliceServiceWatchResponse]) error {
	events := s.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), Name: req.GetName(),
		LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[endpointSlice]) error {
		return stream.Send(&svcproxyv1.EndpointSliceServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements EndpointSliceService.
func (s *Slices) Delete(ctx context.Context, req *svcproxyv1.EndpointSliceServiceDeleteRequest) (*svcproxyv1.EndpointSliceServiceDeleteResponse, error) {
	res, err := s.verbs.Delete(ctx, verbs.DeleteRequest{
		Namespace: req.GetNamespace(), Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision,
		GraceSeconds: req.GracePeriodSeconds, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.EndpointSliceServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}
