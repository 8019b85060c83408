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

type secret = *objectv1.Secret

// Secrets serves podwire.ingress.v1.SecretService. Who may read what it returns is the access table's to say.
type Secrets struct {
	ingressv1.UnimplementedSecretServiceServer
	verbs *verbs.Handler[secret]
}

// NewSecrets serves the Secrets of a store with keys.
func NewSecrets(st *store.Store) *Secrets {
	return &Secrets{verbs: verbs.New(st, verbs.Rules[secret]{
		Kind: store.SecretKind, APIVersion: "v1", Noun: "Secret", Scope: verbs.Namespaced,
		NoGeneration: true,
		Carry:        admission.CarrySecret,
		Default:      admission.DefaultSecret,
		Validate:     admission.ValidateSecret,
	})}
}

// Apply implements SecretService.
func (s *Secrets) Apply(ctx context.Context, req *ingressv1.SecretServiceApplyRequest) (*ingressv1.SecretServiceApplyResponse, error) {
	res, err := s.verbs.Apply(ctx, verbs.ApplyRequest[secret]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.SecretServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// Get implements SecretService.
func (s *Secrets) Get(ctx context.Context, req *ingressv1.SecretServiceGetRequest) (*ingressv1.SecretServiceGetResponse, error) {
	found, err := s.verbs.Find(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &ingressv1.SecretServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements SecretService.
func (s *Secrets) List(ctx context.Context, req *ingressv1.SecretServiceListRequest) (*ingressv1.SecretServiceListResponse, error) {
	page, err := s.verbs.List(ctx, verbs.ListRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), LabelSelector: req.GetLabelSelector(),
		Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.SecretServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements SecretService.
func (s *Secrets) Watch(req *ingressv1.SecretServiceWatchRequest, stream grpc.ServerStreamingServer[ingressv1.SecretServiceWatchResponse]) error {
	events := s.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), Name: req.GetName(),
		LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[secret]) error {
		return stream.Send(&ingressv1.SecretServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements SecretService.
func (s *Secrets) Delete(ctx context.Context, req *ingressv1.SecretServiceDeleteRequest) (*ingressv1.SecretServiceDeleteResponse, error) {
	res, err := s.verbs.Delete(ctx, verbs.DeleteRequest{
		Namespace: req.GetNamespace(), Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision,
		GraceSeconds: req.GracePeriodSeconds, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &ingressv1.SecretServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}
