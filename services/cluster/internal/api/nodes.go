package api

import (
	"context"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/planner"
)

type node = *objectv1.Node

// Nodes serves podwire.cluster.v1.NodeService.
type Nodes struct {
	clusterv1.UnimplementedNodeServiceServer
	verbs *verbs.Handler[node]
	// agents is for a node that writes itself: what people said of it stays.
	agents *verbs.Handler[node]
}

// NewNodes serves the Nodes of a store.
func NewNodes(st *store.Store) *Nodes {
	rules := verbs.Rules[node]{
		Kind: planner.KindNode, APIVersion: "v1", Noun: "Node", Scope: verbs.ClusterScoped, Name: nodeName,
		Carry: admission.CarryNode, Validate: admission.ValidateNode, ValidateStatus: nodeStatus,
	}
	agents := rules
	agents.Carry = admission.CarryAgentNode
	return &Nodes{verbs: verbs.New(st, rules), agents: verbs.New(st, agents)}
}

// nodeName is the rule of names that a certificate can carry.
func nodeName(name string) string {
	if rule := names.DNSSubdomain(name); rule != "" {
		return rule
	}
	if err := pki.Node(name).Validate(); err != nil {
		return err.Error()
	}
	return ""
}

// nodeStatus judges a status after it has put back what is not the reporter's to say.
func nodeStatus(o, old node) []errs.Violation {
	admission.CarryNodeStatus(o, old)
	return admission.ValidateNodeStatus(o)
}

// writer is the handler for whoever calls, Denied for a node that is not the one named.
func (n *Nodes) writer(ctx context.Context, name string) (*verbs.Handler[node], error) {
	if rpc.FromContext(ctx).Kind != pki.KindNode {
		return n.verbs, nil
	}
	return n.agents, rpc.RequireNode(ctx, name)
}

// Apply implements NodeService.
func (n *Nodes) Apply(ctx context.Context, req *clusterv1.NodeServiceApplyRequest) (*clusterv1.NodeServiceApplyResponse, error) {
	handler, err := n.writer(ctx, req.GetObject().GetMetadata().GetName())
	if err != nil {
		return nil, err
	}
	res, err := handler.Apply(ctx, verbs.ApplyRequest[node]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.NodeServiceApplyResponse{
		Object: res.Object, Revision: int64(res.Revision), Outcome: res.Outcome,
	}, nil
}

// Get implements NodeService.
func (n *Nodes) Get(ctx context.Context, req *clusterv1.NodeServiceGetRequest) (*clusterv1.NodeServiceGetResponse, error) {
	if err := rpc.RequireNodeOr(ctx, req.GetName(), pki.KindUser, pki.KindService); err != nil {
		return nil, err
	}
	found, err := n.verbs.Find(ctx, "", req.GetName())
	if err != nil {
		return nil, err
	}
	return &clusterv1.NodeServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements NodeService.
func (n *Nodes) List(ctx context.Context, req *clusterv1.NodeServiceListRequest) (*clusterv1.NodeServiceListResponse, error) {
	page, err := n.verbs.List(ctx, verbs.ListRequest{
		LabelSelector: req.GetLabelSelector(), Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.NodeServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements NodeService.
func (n *Nodes) Watch(req *clusterv1.NodeServiceWatchRequest, stream grpc.ServerStreamingServer[clusterv1.NodeServiceWatchResponse]) error {
	events := n.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Name: req.GetName(), LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[node]) error {
		return stream.Send(&clusterv1.NodeServiceWatchResponse{
			Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type,
		})
	})
}

// Delete implements NodeService.
func (n *Nodes) Delete(ctx context.Context, req *clusterv1.NodeServiceDeleteRequest) (*clusterv1.NodeServiceDeleteResponse, error) {
	res, err := n.verbs.Delete(ctx, verbs.DeleteRequest{
		Name: req.GetName(), UID: req.GetUid(), Expected: req.ExpectedRevision, GraceSeconds: req.GracePeriodSeconds,
		DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.NodeServiceDeleteResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}

// UpdateStatus implements NodeService.
func (n *Nodes) UpdateStatus(ctx context.Context, req *clusterv1.NodeServiceUpdateStatusRequest) (*clusterv1.NodeServiceUpdateStatusResponse, error) {
	handler, err := n.writer(ctx, req.GetObject().GetMetadata().GetName())
	if err != nil {
		return nil, err
	}
	res, err := handler.UpdateStatus(ctx, verbs.StatusRequest[node]{
		Object: req.GetObject(), Expected: req.ExpectedRevision, DryRun: req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &clusterv1.NodeServiceUpdateStatusResponse{Object: res.Object, Revision: int64(res.Revision)}, nil
}
