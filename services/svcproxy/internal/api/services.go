// Package api answers the svcproxy service's RPCs. In: requests. Out: writes to the store through internal/verbs, with
// the addresses and node ports that ipam gives on the way; reads of the store; and lookups in the World that the feed
// owns. It judges no Service itself: package lb does.
package api

import (
	"context"
	"log/slog"
	"slices"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	"podwire.dev/services/svcproxy/internal/lb"
	"podwire.dev/services/svcproxy/internal/planner"
)

const kindService = planner.KindService

type service = *objectv1.Service

// Services serves podwire.svcproxy.v1.ServiceService.
type Services struct {
	svcproxyv1.UnimplementedServiceServiceServer
	verbs *verbs.Handler[service]
	alloc *Allocator
	log   *slog.Logger
}

// NewServices serves the Services of a store, with values from alloc. families are the cluster's.
func NewServices(st *store.Store, alloc *Allocator, families lb.Families, log *slog.Logger) *Services {
	s := &Services{alloc: alloc, log: log}
	s.verbs = verbs.New(st, verbs.Rules[service]{
		Kind: kindService, APIVersion: "v1", Noun: "Service", Scope: verbs.Namespaced, Name: names.DNS1035Label,
		Carry:          lb.CarryService,
		Default:        func(o, _ service) { lb.DefaultService(o, families) },
		Validate:       func(o, old service) []errs.Violation { return lb.ValidateService(o, old, families) },
		ValidateStatus: lb.ValidateServiceStatus,
		Admit:          s.admit,
		OnDelete: func(ctx context.Context, o service, _ store.Revision) {
			s.release(ctx, o, lb.Values(o))
		},
	})
	return s
}

// admit gets from ipam what the Service needs and does not hold, and after the commit gives back what it does not need
// any more. An Apply that needs nothing new does not ask.
func (s *Services) admit(ctx context.Context, a verbs.Attempt[service]) (verbs.Admission, error) {
	wants := lb.Wants(a.Object, a.Old)
	var texts []string
	var err error
	switch {
	case len(wants) == 0:
	case a.DryRun:
		texts, err = s.alloc.Rehearse(ctx, a.Object, wants)
	default:
		texts, err = s.alloc.Claim(ctx, a.Object, wants)
	}
	created := a.Old == nil
	rollBack := func(ctx context.Context) {
		// A new UID is this attempt's alone. Of a Service that exists, another Apply may have claimed the same value
		// meanwhile; what is in no use is given back by the upkeep.
		if created && !a.DryRun && len(wants) > 0 {
			s.release(ctx, a.Object, lb.Values(a.Object))
		}
	}
	if err != nil {
		rollBack(ctx)
		return verbs.Admission{}, err
	}
	lb.Grant(a.Object, wants, texts)
	dropped := slices.DeleteFunc(lb.Values(a.Old), func(v lb.Value) bool { return slices.Contains(lb.Values(a.Object), v) })
	return verbs.Admission{
		RolledBack: rollBack,
		Committed:  func(ctx context.Context, _ store.Revision) { s.release(ctx, a.Object, dropped) },
	}, nil
}

// release gives values back as well as it can: the write that freed them stands, and what stays behind is found by the
// upkeep, or by ipam once the Service is gone.
func (s *Services) release(ctx context.Context, o service, values []lb.Value) {
	if len(values) == 0 {
		return
	}
	if err := s.alloc.Release(ctx, o, values); err != nil {
		s.log.Warn("values of a Service are given back later", "service", refOf(o), "error", err)
	}
}

func refOf(o service) lb.Ref {
	return lb.Ref{Namespace: o.GetMetadata().GetNamespace(), Name: o.GetMetadata().GetName()}
}

// Ensure applies a Service as the RPC would, on condition that it is at the revision that o.metadata.resourceVersion
// names, or does not exist where that is empty. Errors as verbs.Handler.Apply.
func (s *Services) Ensure(ctx context.Context, o *objectv1.Service) error {
	req := verbs.ApplyRequest[service]{Object: o}
	if o.GetMetadata().GetResourceVersion() == "" {
		absent := int64(0)
		req.Expected = &absent
	}
	_, err := s.verbs.Apply(ctx, req)
	return err
}

// Apply implements ServiceService.
func (s *Services) Apply(ctx context.Context, req *svcproxyv1.ServiceServiceApplyRequest) (*svcproxyv1.ServiceServiceApplyResponse, error) {
	res, err := s.verbs.Apply(ctx, verbs.ApplyRequest[service]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.ServiceServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// Get implements ServiceService.
func (s *Services) Get(ctx context.Context, req *svcproxyv1.ServiceServiceGetRequest) (*svcproxyv1.ServiceServiceGetResponse, error) {
	found, err := s.verbs.Find(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.ServiceServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements ServiceService.
func (s *Services) List(ctx context.Context, req *svcproxyv1.ServiceServiceListRequest) (*svcproxyv1.ServiceServiceListResponse, error) {
	page, err := s.verbs.List(ctx, verbs.ListRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), LabelSelector: req.GetLabelSelector(),
		Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.ServiceServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements ServiceService.
func (s *Services) Watch(req *svcproxyv1.ServiceServiceWatchRequest, stream grpc.ServerStreamingServer[svcproxyv1.ServiceServiceWatchResponse]) error {
	events := s.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), Name: req.GetName(),
		LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[service]) error {
		return stream.Send(&svcproxyv1.ServiceServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements ServiceService.
func (s *Services) Delete(ctx context.Context, req *svcproxyv1.ServiceServiceDeleteRequest) (*svcproxyv1.ServiceServiceDeleteResponse, error) {
	res, err := s.verbs.Delete(ctx, verbs.DeleteRequest{
		Namespace: req.GetNamespace(), Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision,
		GraceSeconds: req.GracePeriodSeconds, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.ServiceServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}

// UpdateStatus implements ServiceService.
func (s *Services) UpdateStatus(ctx context.Context, req *svcproxyv1.ServiceServiceUpdateStatusRequest) (*svcproxyv1.ServiceServiceUpdateStatusResponse, error) {
	res, err := s.verbs.UpdateStatus(ctx, verbs.StatusRequest[service]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &svcproxyv1.ServiceServiceUpdateStatusResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}
