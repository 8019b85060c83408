// Package app wires the policy service: its configuration, and what runs when. In: a configuration file. Out: a serving
// process. It must not decide anything about policies.
package app

import (
	"context"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
	pushv1 "podwire.dev/proto/podwire/push/v1"
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
	r, err := service.Open(d, cfg.Common, Kinds())
	if err != nil {
		return err
	}
	Serve(r)
	return nil
}

// Serve makes a replica that is open serve policies, and starts it.
func Serve(r *service.Replica) {
	hub := push.NewHub(nodestate.SourcePolicy, push.Options{Authorize: rpc.RequireNode, Log: r.Log()})
	plan := planner.New()
	running := feed.Start(r, feed.Parts{Store: r.Store, Replica: r.Self, Planner: plan, Hub: hub})
	policyv1.RegisterNetworkPolicyServiceServer(r.Server, api.NewPolicies(r.Store))
	policyv1.RegisterVerdictServiceServer(r.Server, api.NewVerdicts(running, plan))
	pushv1.RegisterPushServiceServer(r.Server, hub)
	r.Start()
}
