// Package api answers the cluster service's RPCs. In: requests. Out: writes to the store through internal/verbs and the
// packages that own tokens and liveness, and reads of the store and of the World. It judges only who may touch which
// object; everything else is decided elsewhere.
package api

import (
	"context"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/namespaces"
	"podwire.dev/services/cluster/internal/planner"
)

type namespace = *objectv1.Namespace

// Namespaces serves podwire.cluster.v1.NamespaceService.
type Namespaces struct {
	clusterv1.UnimplementedNamespaceServiceServer
	verbs *verbs.Handler[namespace]
}

// NewNamespaces serves the Namespaces of a store.
func NewNamespaces(st *store.Store) *Namespaces {
	return &Namespaces{verbs: verbs.New(st, verbs.Rules[namespace]{
		Kind: planner.KindNamespace, APIVersion: "v1", Noun: "Namespace", Scope: verbs.ClusterScoped, Name: names.DNSLabel,
		Default:        admission.DefaultNamespace,
		Validate:       func(o, _ namespace) []errs.Violation { return admission.ValidateNamespace(o) },
		ValidateStatus: func(o, _ namespace) []errs.Violation { return admission.ValidateNamespaceStatus(o) },
		Protect:        namespaces.Protect,
		Grace:          func(namespace, *int32) verbs.Grace { return verbs.Grace{Wait: true, Seconds: namespaceGrace} },
		MarkDeleted:    func(o namespace) { o.Status = &objectv1.NamespaceStatus{Phase: admission.Terminating} },
	})}
}

// namespaceGrace is not zero, since an object whose grace is over goes with its last finalizer: a Namespace goes only
// when it is empty as well.
const namespaceGrace = 1

// Found creates a Namespace that is not there yet.
func (n *Namespaces) Found(ctx context.Context, o *objectv1.Namespace) error {
	absent := int64(0)
	_, err := n.verbs.Apply(ctx, verbs.ApplyRequest[namespace]{Object: o, Expected: &absent})
	return err
}

// Apply implements NamespaceService.
func (n *Namespaces) Apply(ctx context.Context, req *clusterv1.NamespaceServiceApplyRequest) (*clusterv1.NamespaceServiceApplyResponse, error) {
	res, err := n.verbs.Apply(ctx, verbs.ApplyRequest[namespace]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.NamespaceServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// Get implements NamespaceService.
func (n *Namespaces) Get(ctx context.Context, req *clusterv1.NamespaceServiceGetRequest) (*clusterv1.NamespaceServiceGetResponse, error) {
	found, err := n.verbs.Find(ctx, "", req.GetName())
	if err != nil {
		return nil, err
	}
	return &clusterv1.NamespaceServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements NamespaceService.
func (n *Namespaces) List(ctx context.Context, req *clusterv1.NamespaceServiceListRequest) (*clusterv1.NamespaceServiceListResponse, error) {
	page, err := n.verbs.List(ctx, verbs.ListRequest{
		LabelSelector: req.GetLabelSelector(), Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.NamespaceServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements NamespaceService.
func (n *Namespaces) Watch(req *clusterv1.NamespaceServiceWatchRequest, stream grpc.ServerStreamingServer[clusterv1.NamespaceServiceWatchResponse]) error {
	events := n.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Name: req.GetName(), LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[namespace]) error {
		return stream.Send(&clusterv1.NamespaceServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements NamespaceService.
func (n *Namespaces) Delete(ctx context.Context, req *clusterv1.NamespaceServiceDeleteRequest) (*clusterv1.NamespaceServiceDeleteResponse, error) {
	res, err := n.verbs.Delete(ctx, verbs.DeleteRequest{
		Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision, GraceSeconds: req.GracePeriodSeconds,
		DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.NamespaceServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}

// UpdateStatus implements NamespaceService.
func (n *Namespaces) UpdateStatus(ctx context.Context, req *clusterv1.NamespaceServiceUpdateStatusRequest) (*clusterv1.NamespaceServiceUpdateStatusResponse, error) {
	res, err := n.verbs.UpdateStatus(ctx, verbs.StatusRequest[namespace]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.NamespaceServiceUpdateStatusResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}
