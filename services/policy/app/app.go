// Package app wires the policy service: its configuration, and what runs when. In: a configuration file. Out: a serving
// process. It must not decide anything about policies.
package app

import (
	"context"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	"podwire.dev/internal/telemetry"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
	pushv1 "podwire.dev/proto/podwire/push/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
	"podwire.dev/services/policy/internal/api"
	"podwire.dev/services/policy/internal/planner"
)

// Name is the service's name.
const Name = "policy"

// Config is the configuration file.
type Config struct {
	daemon.Common `yaml:",inline"`
}

// Kinds are the kinds that the service reads or writes.
func Kinds() store.Kinds {
	return store.Kinds{
		planner.KindNamespace: func() store.Object { return &objectv1.Namespace{} },
		planner.KindPod:       func() store.Object { return &objectv1.Pod{} },
		planner.KindPolicy:    func() store.Object { return &objectv1.NetworkPolicy{} },
		feed.KindNode:         func() store.Object { return &objectv1.Node{} },
	}
}

// Main runs the service; args are those after the program's name.
func Main(args []string) int {
	return daemon.Main(args, daemon.Program[Config]{Service: Name, Run: run, Enrol: rpc.Enrol, Healthcheck: rpc.Healthcheck})
}

func run(_ context.Context, d *daemon.Daemon, cfg Config) error {
	creds, err := rpc.LoadCredentials(cfg.Identity, d.Log())
	if err != nil {
		return err
	}
	st, err := feed.OpenStore(d.Log(), cfg.Etcd.Endpoints, creds.ClientTLS(pki.Service("etcd")), Kinds())
	if err != nil {
		return err
	}
	server, err := rpc.NewServer(rpc.OptionsFor(d, cfg.Common, creds))
	if err != nil {
		return err
	}
	Serve(d, st, server, feed.ReplicaOf(Name, cfg.Reachable()))
	return nil
}

// Serve runs the service on a store and a server that are there already. It starts the server.
func Serve(d *daemon.Daemon, st *store.Store, server *rpc.Server, replica store.Replica) {
	hub := push.NewHub(nodestate.SourcePolicy, push.Options{Authorize: rpc.RequireNode, Log: d.Log()})
	plan := planner.New()
	running := feed.Start(d, feed.Parts{Store: st, Replica: replica, Planner: plan, Hub: hub})
	policyv1.RegisterNetworkPolicyServiceServer(server, api.NewPolicies(st))
	policyv1.RegisterVerdictServiceServer(server, api.NewVerdicts(running, plan))
	pushv1.RegisterPushServiceServer(server, hub)
	tracev1.RegisterTraceServiceServer(server, telemetry.NewService(d.Telemetry()))
	server.Start(d)
}
