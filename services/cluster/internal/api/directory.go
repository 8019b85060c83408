package api

import (
	"context"

	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/liveness"
	"podwire.dev/services/cluster/internal/planner"
)

// agentService is what the directory calls an agent.
const agentService = "nodeagent"

// Directory serves podwire.cluster.v1.DirectoryService.
type Directory struct {
	clusterv1.UnimplementedDirectoryServiceServer
	store *store.Store
}

// NewDirectory lists the processes that a store knows.
func NewDirectory(st *store.Store) *Directory { return &Directory{store: st} }

// ListProcesses implements DirectoryService: the replicas by service and name, then the agents by node. An agent that has
// not said yet where it is dialled has an empty target.
func (d *Directory) ListProcesses(ctx context.Context, _ *clusterv1.ListProcessesRequest) (*clusterv1.ListProcessesResponse, error) {
	replicas, err := d.store.ListReplicas(ctx, "")
	if err != nil {
		return nil, err
	}
	nodes, err := d.store.List(ctx, store.ListQuery{Kind: planner.KindNode})
	if err != nil {
		return nil, err
	}
	resp := &clusterv1.ListProcessesResponse{}
	for _, r := range replicas {
		resp.Processes = append(resp.Processes, &clusterv1.Process{Service: r.Service, Name: r.Name, Target: r.Address, Ready: true})
	}
	for _, rec := range nodes.Records {
		resp.Processes = append(resp.Processes, &clusterv1.Process{
			Service: agentService, Name: rec.Key.Name, Ready: ready(rec),
			Target: rec.Object.GetMetadata().GetAnnotations()[admission.AnnotationAgentTarget],
		})
	}
	return resp, nil
}

func ready(rec store.Record) bool {
	node, ok := rec.Object.(*objectv1.Node)
	if !ok {
		return false
	}
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == liveness.ConditionReady {
			return c.GetStatus() == "True"
		}
	}
	return false
}
