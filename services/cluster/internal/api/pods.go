package api

import (
	"context"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/planner"
)

type pod = *objectv1.Pod

// Pods serves podwire.cluster.v1.PodService.
type Pods struct {
	clusterv1.UnimplementedPodServiceServer
	verbs    *verbs.Handler[pod]
	holdings *Holdings
}

// NewPods serves the Pods of a store.
func NewPods(st *store.Store, holdings *Holdings, rules admission.Rules) *Pods {
	return &Pods{holdings: holdings, verbs: verbs.New(st, verbs.Rules[pod]{
		Kind: planner.KindPod, APIVersion: "v1", Noun: "Pod", Scope: verbs.Namespaced,
		Carry: admission.CarryPod, Default: admission.DefaultPod, Validate: rules.ValidatePod, ValidateStatus: podStatus,
		Grace: func(o pod, asked *int32) verbs.Grace {
			seconds := admission.GracePeriod(o, asked)
			return verbs.Grace{Wait: seconds > 0, Seconds: seconds}
		},
	})}
}

// podStatus judges a status after it has put back what is not the reporter's to say.
func podStatus(o, old pod) []errs.Violation {
	admission.CarryPodStatus(o, old)
	return admission.ValidatePodStatus(o)
}

// assigned reads a Pod on behalf of a node, which must be the Pod's own. The uid must be given: together with it the
// answer stays true, since a Pod never moves.
func (p *Pods) assigned(ctx context.Context, namespace, name, uid string) (pod, error) {
	o, _, err := p.verbs.Get(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	if err := rpc.RequireNode(ctx, o.GetSpec().GetNodeName()); err != nil {
		return nil, errs.Wrap(err, "Pod %s/%s", o.GetMetadata().GetNamespace(), name)
	}
	switch {
	case uid == "":
		return nil, errs.InvalidFields("Pod "+namespace+"/"+name, []errs.Violation{{Field: "metadata.uid", Rule: "is required of a node: it names the Pod that the node holds"}})
	case uid != o.GetMetadata().GetUid():
		return nil, errs.New(errs.Conflict, "Pod %s/%s has the uid %s, not %s: it is another object of the same name",
			namespace, name, o.GetMetadata().GetUid(), uid)
	}
	return o, nil
}

// Apply implements PodService.
func (p *Pods) Apply(ctx context.Context, req *clusterv1.PodServiceApplyRequest) (*clusterv1.PodServiceApplyResponse, error) {
	if id := rpc.FromContext(ctx); id.Kind == pki.KindNode {
		return nil, errs.New(errs.Denied, "Pod %s/%s: %s may not write Pods, only report those assigned to it",
			req.GetObject().GetMetadata().GetNamespace(), req.GetObject().GetMetadata().GetName(), id)
	}
	if err := p.memberOnly(ctx, req.GetObject()); err != nil {
		return nil, err
	}
	res, err := p.verbs.Apply(ctx, verbs.ApplyRequest[pod]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.PodServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// memberOnly refuses to write the Pod of a fabric member, and to make any other one look like it: with the Pod goes the
// member's place in the fabric.
func (p *Pods) memberOnly(ctx context.Context, o pod) error {
	meta := o.GetMetadata()
	if meta.GetNamespace() != planner.MemberNamespace {
		return nil
	}
	if meta.GetAnnotations()[planner.AnnotationMember] != "" {
		return errs.InvalidFields("Pod "+meta.GetNamespace()+"/"+meta.GetName(), []errs.Violation{{
			Field: "metadata.annotations[" + planner.AnnotationMember + "]", Rule: "is cluster's to write, for a member that attends"}})
	}
	found, err := p.verbs.Find(ctx, meta.GetNamespace(), meta.GetName())
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Invalid) {
		return nil // what is wrong with the name, Apply says
	}
	if err == nil && found.Object.GetMetadata().GetAnnotations()[planner.AnnotationMember] != "" {
		err = errs.New(errs.Denied, "Pod %s/%s: is the Pod of a fabric member, which cluster writes; change the member's configuration instead",
			meta.GetNamespace(), meta.GetName())
	}
	return err
}

// Get implements PodService.
func (p *Pods) Get(ctx context.Context, req *clusterv1.PodServiceGetRequest) (*clusterv1.PodServiceGetResponse, error) {
	found, err := p.verbs.Find(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	if err := rpc.RequireNodeOr(ctx, found.Object.GetSpec().GetNodeName(), pki.KindUser, pki.KindService); err != nil {
		return nil, err
	}
	return &clusterv1.PodServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements PodService.
func (p *Pods) List(ctx context.Context, req *clusterv1.PodServiceListRequest) (*clusterv1.PodServiceListResponse, error) {
	page, err := p.verbs.List(ctx, verbs.ListRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), LabelSelector: req.GetLabelSelector(),
		Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.PodServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements PodService.
func (p *Pods) Watch(req *clusterv1.PodServiceWatchRequest, stream grpc.ServerStreamingServer[clusterv1.PodServiceWatchResponse]) error {
	events := p.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Namespace: req.GetNamespace(), AllNamespaces: req.GetAllNamespaces(), Name: req.GetName(),
		LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[pod]) error {
		return stream.Send(&clusterv1.PodServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements PodService.
func (p *Pods) Delete(ctx context.Context, req *clusterv1.PodServiceDeleteRequest) (*clusterv1.PodServiceDeleteResponse, error) {
	if rpc.FromContext(ctx).Kind == pki.KindNode {
		if err := p.mayRemove(ctx, req); err != nil {
			return nil, err
		}
	}
	res, err := p.verbs.Delete(ctx, verbs.DeleteRequest{
		Namespace: req.GetNamespace(), Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision,
		GraceSeconds: req.GracePeriodSeconds, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.PodServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}

// UpdateStatus implements PodService.
func (p *Pods) UpdateStatus(ctx context.Context, req *clusterv1.PodServiceUpdateStatusRequest) (*clusterv1.PodServiceUpdateStatusResponse, error) {
	if rpc.FromContext(ctx).Kind == pki.KindNode {
		if err := p.mayReport(ctx, req.GetObject()); err != nil {
			return nil, err
		}
	}
	res, err := p.verbs.UpdateStatus(ctx, verbs.StatusRequest[pod]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.PodServiceUpdateStatusResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}

// mayRemove is nil where a node removes a Pod of its own for good: one that is being deleted and whose containers it has
// stopped.
func (p *Pods) mayRemove(ctx context.Context, req *clusterv1.PodServiceDeleteRequest) error {
	o, err := p.assigned(ctx, req.GetNamespace(), req.GetName(), req.GetUid())
	if err != nil {
		return err
	}
	if o.GetMetadata().GetDeletionTimestamp() == nil {
		return errs.New(errs.Denied, "Pod %s/%s: is not being deleted: a node may only finish a deletion", req.GetNamespace(), req.GetName())
	}
	if req.GracePeriodSeconds == nil || req.GetGracePeriodSeconds() != 0 {
		return errs.InvalidFields("Pod "+req.GetNamespace()+"/"+req.GetName(), []errs.Violation{{
			Field: "grace_period_seconds", Rule: "must be 0 of a node, which has stopped the containers"}})
	}
	return nil
}

// mayReport is nil where a node reports a Pod of its own, with addresses that are its own to give.
func (p *Pods) mayReport(ctx context.Context, reported pod) error {
	meta := reported.GetMetadata()
	o, err := p.assigned(ctx, meta.GetNamespace(), meta.GetName(), meta.GetUid())
	if err != nil {
		return err
	}
	return p.holdings.check(ctx, o, reported.GetStatus())
}
