// Package api answers the ingress service's RPCs. In: requests. Out: writes to the store through internal/verbs and reads
// of the store. It judges no object itself: package admission does, and it shows no Secret but to who asks for it.
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

type ingress = *objectv1.Ingress

// Ingresses serves podwire.ingress.v1.IngressService.
type Ingresses struct {
	ingressv1.UnimplementedIngressServiceServer
	store *store.Store
	verbs *verbs.Handler[ingress]
}

// NewIngresses serves the Ingresses of a store.
func NewIngresses(st *store.Store) *Ingresses {
	i := &Ingresses{store: st}
	i.verbs = verbs.New(st, verbs.Rules[ingress]{
		Kind: admission.KindIngress, APIVersion: "networking.k8s.io/v1", Noun: "Ingress", Scope: verbs.Namespaced,
		Carry:          admission.CarryIngress,
		Default:        admission.DefaultIngress,
		Validate:       admission.ValidateIngress,
		ValidateStatus: admission.ValidateIngressStatus,
		Admit:          i.admit,
	})
	return i
}

// admit fills the default class into a new Ingress that names none. The transaction depends on the class being as it was
// read, so that an Ingress never gets a class that has just ceased to be the default.
func (i *Ingresses) admit(ctx context.Context, a verbs.Attempt[ingress]) (verbs.Admission, error) {
	if a.Old != nil || !admission.WantsClass(a.Object) {
		return verbs.Admission{}, nil
	}
	page, err := i.store.List(ctx, store.ListQuery{Kind: admission.KindIngressClass})
	if err != nil {
		return verbs.Admission{}, err
	}
	classes := make([]*objectv1.IngressClass, 0, len(page.Records))
	for _, rec := range page.Records {
		if c, ok := rec.Object.(*objectv1.IngressClass); ok {
			classes = append(classes, c)
		}
	}
	class, err := admission.DefaultClass(classes)
	if err != nil || class == nil {
		return verbs.Admission{}, err
	}
	name := class.GetMetadata().GetName()
	a.Object.Spec.IngressClassName = &name
	return verbs.Admission{Extend: func(tx *store.Txn) {
		for _, rec := range page.Records {
			if rec.Key.Name == name {
				tx.RequireUnchanged(rec)
			}
		}
	}}, nil
}

// Apply implements IngressService.
func (i *Ingresses) Apply(ctx context.Context, req *ingressv1.IngressServiceApplyRequest) (*ingressv1.IngressServiceApplyResponse, error) {
	res, err := i.verbs.Apply(ctx, verbs.ApplyRequest[ingress]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// Get implements IngressService.
func (i *Ingresses) Get(ctx context.Context, req *ingressv1.IngressServiceGetRequest) (*ingressv1.IngressServiceGetResponse, error) {
	found, err := i.verbs.Find(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements IngressService.
func (i *Ingresses) List(ctx context.Context, req *ingressv1.IngressServiceListRequest) (*ingressv1.IngressServiceListResponse, error) {
	page, err := i.verbs.List(ctx, verbs.ListRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), LabelSelector: req.GetLabelSelector(),
		Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements IngressService.
func (i *Ingresses) Watch(req *ingressv1.IngressServiceWatchRequest, stream grpc.ServerStreamingServer[ingressv1.IngressServiceWatchResponse]) error {
	events := i.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), Name: req.GetName(),
		LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[ingress]) error {
		return stream.Send(&ingressv1.IngressServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements IngressService.
func (i *Ingresses) Delete(ctx context.Context, req *ingressv1.IngressServiceDeleteRequest) (*ingressv1.IngressServiceDeleteResponse, error) {
	res, err := i.verbs.Delete(ctx, verbs.DeleteRequest{
		Namespace: req.GetNamespace(), Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision,
		GraceSeconds: req.GracePeriodSeconds, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}

// UpdateStatus implements IngressService.
func (i *Ingresses) UpdateStatus(ctx context.Context, req *ingressv1.IngressServiceUpdateStatusRequest) (*ingressv1.IngressServiceUpdateStatusResponse, error) {
	res, err := i.verbs.UpdateStatus(ctx, verbs.StatusRequest[ingress]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.IngressServiceUpdateStatusResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}
