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
	"sync/atomic"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/names"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	"podwire.dev/internal/telemetry"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	pushv1 "podwire.dev/proto/podwire/push/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
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
	creds, err := rpc.LoadCredentials(cfg.Identity, d.Log())
	if err != nil {
		return err
	}
	authority, err := pki.LoadAuthority(cfg.CADir)
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
	Serve(d, st, server, feed.ReplicaOf(Name, cfg.Reachable()), cfg, authority)
	return nil
}

// Serve runs the service on a store and a server that are there already, signing with authority. It starts the server.
func Serve(d *daemon.Daemon, st *store.Store, server *rpc.Server, replica store.Replica, cfg Config, authority *pki.Authority) {
	hub := push.NewHub(nodestate.SourceCluster, push.Options{Authorize: rpc.RequireNode, Log: d.Log()})
	plan := planner.New(time.Now)
	host := &gate{Daemon: d}
	host.steps.Store(gateSteps)
	running := feed.Start(host, feed.Parts{Store: st, Replica: replica, Planner: plan, Hub: hub})

	tracker := receipts.NewTracker(st, cfg.Required)
	d.Go("watermarks", tracker.Run)
	d.Go("required", func(ctx context.Context) error { return host.step(ctx, setRequired(ctx, d, st, cfg.Required)) })

	monitor := liveness.NewMonitor(liveness.Monitor{
		Store: st, Asker: running, Nodes: plan, Leader: running.Leader, Log: d.Log(), Now: time.Now,
	})
	d.Go("clock", monitor.Watch)
	d.Go("liveness", monitor.Run)

	keeper := members.NewKeeper(members.Config{
		Store: st, Asker: running, World: plan, Leader: running.Leader, Log: d.Log(), Now: time.Now,
	})
	d.Go("members' clock", keeper.Watch)
	d.Go("members", keeper.Run)

	ns := api.NewNamespaces(st)
	d.Go("first namespaces", func(ctx context.Context) error { return host.step(ctx, namespaces.Found(ctx, ns.Found, d.Log())) })
	reaper := &namespaces.Reaper{
		Store: st, Asker: running, World: plan, Leader: running.Leader, Watermarks: tracker, Log: d.Log(),
	}
	d.Go("namespace reaper", reaper.Run)

	desk := &enrolment.Desk{Store: st, Signer: authority, Initial: cfg.initialTokens, Now: time.Now, Log: d.Log()}
	rules := admission.Rules{ClusterDomain: cfg.ClusterDomain}
	clusterv1.RegisterNamespaceServiceServer(server, ns)
	clusterv1.RegisterNodeServiceServer(server, api.NewNodes(st))
	clusterv1.RegisterPodServiceServer(server, api.NewPods(st, api.NewHoldings(st, running, plan), rules))
	clusterv1.RegisterLivenessServiceServer(server, api.NewLiveness(replica.Service, monitor, tracker, st))
	clusterv1.RegisterMemberServiceServer(server, api.NewMembers(replica.Service, keeper, st))
	clusterv1.RegisterEnrolmentServiceServer(server, api.NewEnrolment(desk))
	clusterv1.RegisterDirectoryServiceServer(server, api.NewDirectory(st))
	clusterv1.RegisterReceiptServiceServer(server, api.NewReceipts(st, cfg.Required))
	pushv1.RegisterPushServiceServer(server, hub)
	tracev1.RegisterTraceServiceServer(server, telemetry.NewService(d.Telemetry()))
	server.Start(d)
}

// gate is a daemon that becomes ready with the last of several steps: whoever finds the service SERVING finds the
// Namespaces that every cluster has, too.
type gate struct {
	*daemon.Daemon
	steps atomic.Int32
}

// gateSteps are the first snapshot, the first Namespaces and the required services.
const gateSteps = 3

// Ready ends one step.
func (g *gate) Ready() {
	if g.steps.Add(-1) == 0 {
		g.Daemon.Ready()
	}
}

// step is Ready for a step that may have failed, or was told to end.
func (g *gate) step(ctx context.Context, err error) error {
	if err == nil && ctx.Err() == nil {
		g.Ready()
	}
	return err
}

// requiredPause is the pause after a failed attempt to write the required services.
const requiredPause = 250 * time.Millisecond

// setRequired writes the configured list. It waits for the store.
func setRequired(ctx context.Context, d *daemon.Daemon, st *store.Store, services []string) error {
	for {
		err := st.SetRequired(ctx, services)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !errs.Is(err, errs.Unavailable) {
			return err
		}
		d.Log().Warn("required services are not written yet, trying again", "error", err)
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
