package api

import (
	"context"

	"google.golang.org/grpc"

	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/admission"
)

type class = *objectv1.IngressClass

// Classes serves podwire.ingress.v1.IngressClassService.
type Classes struct {
	ingressv1.UnimplementedIngressClassServiceServer
	verbs *verbs.Handler[class]
}

// NewClasses serves the IngressClasses of a store.
func NewClasses(st *store.Store) *Classes {
	return &Classes{verbs: verbs.New(st, verbs.Rules[class]{
		Kind: admission.KindIngressClass, APIVersion: "networking.k8s.io/v1", Noun: "IngressClass", Scope: verbs.ClusterScoped,
		Default:  admission.DefaultIngressClass,
		Validate: admission.ValidateIngressClass,
	})}
}

// Found creates an IngressClass that is not there yet. Errors: Exists; as Apply's otherwise.
func (c *Classes) Found(ctx context.Context, o *objectv1.IngressClass) error {
	absent := int64(0)
	_, err := c.verbs.Apply(ctx, verbs.ApplyRequest[class]{Object: o, Expected: &absent})
	return err
}

// Apply implements IngressClassService.
func (c *Classes) Apply(ctx context.Context, req *ingressv1.IngressClassServiceApplyRequest) (*ingressv1.IngressClassServiceApplyResponse, error) {
	res, err := c.verbs.Apply(ctx, verbs.ApplyRequest[class]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressClassServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// Get implements IngressClassService.
func (c *Classes) Get(ctx context.Context, req *ingressv1.IngressClassServiceGetRequest) (*ingressv1.IngressClassServiceGetResponse, error) {
	found, err := c.verbs.Find(ctx, "", req.GetName())
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressClassServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements IngressClassService.
func (c *Classes) List(ctx context.Context, req *ingressv1.IngressClassServiceListRequest) (*ingressv1.IngressClassServiceListResponse, error) {
	page, err := c.verbs.List(ctx, verbs.ListRequest{
		LabelSelector: req.GetLabelSelector(),
		Limit:         int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressClassServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements IngressClassService.
func (c *Classes) Watch(req *ingressv1.IngressClassServiceWatchRequest, stream grpc.ServerStreamingServer[ingressv1.IngressClassServiceWatchResponse]) error {
	events := c.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Name:          req.GetName(),
		LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[class]) error {
		return stream.Send(&ingressv1.IngressClassServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements IngressClassService.
func (c *Classes) Delete(ctx context.Context, req *ingressv1.IngressClassServiceDeleteRequest) (*ingressv1.IngressClassServiceDeleteResponse, error) {
	res, err := c.verbs.Delete(ctx, verbs.DeleteRequest{
		Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision,
		GraceSeconds: req.GracePeriodSeconds, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressClassServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}
