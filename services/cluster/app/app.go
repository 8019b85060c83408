// Package app wires the cluster service: its configuration, and what runs when. In: a configuration file. Out: a serving
// process. It must not decide anything about Namespaces, Nodes or Pods.
package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/names"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	pushv1 "podwire.dev/proto/podwire/push/v1"
	"podwire.dev/services/cluster/internal/admission"
	"podwire.dev/services/cluster/internal/api"
	"podwire.dev/services/cluster/internal/enrolment"
	"podwire.dev/services/cluster/internal/liveness"
	"podwire.dev/services/cluster/internal/members"
	"podwire.dev/services/cluster/internal/namespaces"
	"podwire.dev/services/cluster/internal/planner"
	"podwire.dev/services/cluster/internal/receipts"
)

// Name is the service's name.
const Name = "cluster"

// Config is the configuration file.
type Config struct {
	daemon.Common `yaml:",inline"`
	// Required are the services whose watermarks hold back the reuse of addresses and the removal of Namespaces.
	Required []string `yaml:"required"`
	// CADir is the directory of ca.crt, ca.key and tokens.json, as `podwire pki init` wrote them.
	CADir string `yaml:"caDir"`
	// ClusterDomain is the suffix of the names of Services and Pods.
	ClusterDomain string `yaml:"clusterDomain"`
}

// SetDefaults requires every service that pushes.
func (c *Config) SetDefaults() {
	c.Required = []string{
		string(nodestate.SourceCluster), string(nodestate.SourceIPAM), string(nodestate.SourceSvcproxy), string(nodestate.SourcePolicy),
	}
	c.ClusterDomain = "cluster.local"
}

// Check returns what is wrong with cluster's own part.
func (c *Config) Check() []errs.Violation {
	var out []errs.Violation
	seen := map[string]bool{}
	for i, s := range c.Required {
		field := fmt.Sprintf("required[%d]", i)
		if !receipts.HasWatermark(s) {
			out = append(out, errs.Violation{Field: field, Value: s, Rule: "must be a service with a watermark: " + receipts.Services})
		}
		if seen[s] {
			out = append(out, errs.Violation{Field: field, Value: s, Rule: "must be unique"})
		}
		seen[s] = true
	}
	if c.CADir == "" {
		out = append(out, errs.Violation{Field: "caDir", Rule: "is required: the directory that `podwire pki init` made"})
	}
	if rule := names.DNSSubdomain(c.ClusterDomain); rule != "" {
		out = append(out, errs.Violation{Field: "clusterDomain", Value: c.ClusterDomain, Rule: rule})
	}
	return out
}

// Kinds are the kinds that the service reads or writes.
func Kinds() store.Kinds {
	return store.Kinds{
		planner.KindNamespace:     func() store.Object { return &objectv1.Namespace{} },
		planner.KindNode:          func() store.Object { return &objectv1.Node{} },
		planner.KindPod:           func() store.Object { return &objectv1.Pod{} },
		planner.KindService:       func() store.Object { return &objectv1.Service{} },
		planner.KindEndpointSlice: func() store.Object { return &objectv1.EndpointSlice{} },
		planner.KindPolicy:        func() store.Object { return &objectv1.NetworkPolicy{} },
		planner.KindIngress:       func() store.Object { return &objectv1.Ingress{} },
		planner.KindBlock:         func() store.Object { return &objectv1.AddressBlock{} },
	}
}

// Main runs the service; args are those after the program's name. It enrols nowhere: its identity is made with the CA.
func Main(args []string) int {
	return daemon.Main(args, daemon.Program[Config]{Service: Name, Run: run, Enrol: rpc.Enrol, Healthcheck: rpc.Healthcheck})
}

func run(_ context.Context, d *daemon.Daemon, cfg Config) error {
	authority, err := pki.LoadAuthority(cfg.CADir)
	if err != nil {
		return err
	}
	r, err := service.Open(d, cfg.Common, Kinds())
	if err != nil {
		return err
	}
	Serve(r, cfg, authority)
	return nil
}

// steps are what has to be done before anybody finds the service SERVING: the first plan, the Namespaces that every cluster
// has, and the required services.
const steps = 3

// Serve makes a replica that is open serve Namespaces, Nodes and Pods, and sign with authority, and starts it.
func Serve(r *service.Replica, cfg Config, authority *pki.Authority) {
	hub := push.NewHub(nodestate.SourceCluster, push.Options{Authorize: rpc.RequireNode, Log: r.Log()})
	plan := planner.New(time.Now)
	gate := service.NewGate(r.Daemon, steps)
	running := feed.Start(gate, feed.Parts{Store: r.Store, Replica: r.Self, Planner: plan, Hub: hub})

	tracker := receipts.NewTracker(r.Store, cfg.Required)
	r.Go("watermarks", tracker.Run)
	r.Go("required", func(ctx context.Context) error { return gate.Step(ctx, setRequired(ctx, r, cfg.Required)) })

	monitor := liveness.NewMonitor(liveness.Monitor{
		Store: r.Store, Asker: running, Nodes: plan, Leader: running.Leader, Log: r.Log(), Now: time.Now,
	})
	r.Go("clock", monitor.Watch)
	r.Go("liveness", monitor.Run)

	keeper := members.NewKeeper(members.Config{
		Store: r.Store, Asker: running, World: plan, Leader: running.Leader, Log: r.Log(), Now: time.Now,
	})
	r.Go("members' clock", keeper.Watch)
	r.Go("members", keeper.Run)

	ns := api.NewNamespaces(r.Store)
	r.Go("first namespaces", func(ctx context.Context) error { return gate.Step(ctx, namespaces.Found(ctx, ns.Found, r.Log())) })
	reaper := &namespaces.Reaper{
		Store: r.Store, Asker: running, World: plan, Leader: running.Leader, Watermarks: tracker, Log: r.Log(),
	}
	r.Go("namespace reaper", reaper.Run)

	desk := &enrolment.Desk{Store: r.Store, Signer: authority, Initial: cfg.initialTokens, Now: time.Now, Log: r.Log()}
	rules := admission.Rules{ClusterDomain: cfg.ClusterDomain}
	clusterv1.RegisterNamespaceServiceServer(r.Server, ns)
	clusterv1.RegisterNodeServiceServer(r.Server, api.NewNodes(r.Store))
	clusterv1.RegisterPodServiceServer(r.Server, api.NewPods(r.Store, api.NewHoldings(r.Store, running, plan), rules))
	clusterv1.RegisterLivenessServiceServer(r.Server, api.NewLiveness(r.Self.Service, monitor, tracker, r.Store))
	clusterv1.RegisterMemberServiceServer(r.Server, api.NewMembers(r.Self.Service, keeper, r.Store))
	clusterv1.RegisterEnrolmentServiceServer(r.Server, api.NewEnrolment(desk))
	clusterv1.RegisterDirectoryServiceServer(r.Server, api.NewDirectory(r.Store))
	clusterv1.RegisterReceiptServiceServer(r.Server, api.NewReceipts(r.Store, cfg.Required))
	pushv1.RegisterPushServiceServer(r.Server, hub)
	r.Start()
}

// requiredPause is the pause after a failed attempt to write the required services.
const requiredPause = 250 * time.Millisecond

// setRequired writes the configured list. It waits for the store.
func setRequired(ctx context.Context, r *service.Replica, services []string) error {
	for {
		err := r.Store.SetRequired(ctx, services)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !errs.Is(err, errs.Unavailable) {
			return err
		}
		r.Log().Warn("required services are not written yet, trying again", "error", err)
		timer := time.NewTimer(requiredPause)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

// initialTokens reads the tokens that were made with the CA. None made is none.
func (c *Config) initialTokens() ([]pki.TokenRecord, error) {
	path := filepath.Join(c.CADir, pki.TokensFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "join tokens")
	}
	records, err := pki.ParseTokens(data)
	return records, errs.Wrap(err, "%s", path)
}
