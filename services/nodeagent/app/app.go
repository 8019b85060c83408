// Package app wires the node agent: its configuration, and what runs when. In: a configuration file, the state
// directory, the kernel of this process's network namespace. Out: a serving process, and after its end a node that goes
// on as it is.
//
// The order of a start is an invariant: the last good state is in the kernel before anything subscribes, since a
// subscriber tells its service that the node holds it; nothing that waits for a service is waited for. The package must
// not decide what the kernel holds.
package app

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/telemetry"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
	"podwire.dev/services/nodeagent/internal/addresses"
	"podwire.dev/services/nodeagent/internal/api"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/plan"
	"podwire.dev/services/nodeagent/internal/pods"
	"podwire.dev/services/nodeagent/internal/probe"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/shim"
)

// Name is the service's name.
const Name = "nodeagent"

// Main runs the agent, or one of its containers' stages; args are those after the program's name, or after
// "serve nodeagent" of the podwire binary.
//
//	--config FILE              run the agent
//	keep --config FILE         run the agent as the child of a process 1 that starts it again, in a container
//	healthcheck --config FILE  exit 0 if the running agent is SERVING
//	remove --config FILE       give the host back as it was: settings, nftables table, links, routes
//	version                    print the version
func Main(args []string) int {
	if handled, code := shim.Main(os.Args[1:]); handled {
		return code
	}
	if len(args) > 0 && args[0] == "remove" {
		return removeMain(args[1:], os.Stderr)
	}
	if len(args) > 0 && args[0] == "keep" {
		return keepMain(args[1:], os.Stderr)
	}
	return daemon.Main(args, daemon.Program[Config]{
		Service: Name, Run: run, Enrol: rpc.Enrol, Healthcheck: rpc.Healthcheck,
		Instance: func(cfg Config) string { return cfg.Node },
	})
}

// Probe is the `probe` tool of every pod, for use elsewhere; see package probe.
func Probe(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return probe.Main(ctx, args, stdout, stderr)
}

func run(_ context.Context, d *daemon.Daemon, cfg Config) error {
	s, violations := cfg.parse()
	if err := errs.InvalidFields("configuration", violations); err != nil {
		return err
	}
	if err := makeState(s); err != nil {
		return err
	}
	var creds *rpc.Credentials
	if s.Identity != "" {
		var err error
		if creds, err = rpc.LoadCredentials(s.Identity, d.Log()); err != nil {
			return err
		}
	}
	opts := rpc.OptionsFor(d, s.Common, creds)
	opts.ConnectionAge = -1
	server, err := rpc.NewServer(opts)
	if err != nil {
		return err
	}
	k, err := openKernel(s)
	if err != nil {
		return err
	}
	d.OnStop(daemon.StageStore, "kernel", func(context.Context) error { k.close(); return nil })
	return serve(d, k.doors(), server, creds, s)
}

// Serve runs the agent behind doors and a server that are there already, as creds. It starts the server.
func Serve(d *daemon.Daemon, doors Doors, server *rpc.Server, creds *rpc.Credentials, cfg Config) error {
	s, violations := cfg.parse()
	if err := errs.InvalidFields("configuration", violations); err != nil {
		return err
	}
	if err := makeState(s); err != nil {
		return err
	}
	return serve(d, doors, server, creds, s)
}

func makeState(s settings) error {
	return errs.WrapAs(errs.Internal, os.MkdirAll(s.State, 0o700), "state")
}

func serve(d *daemon.Daemon, doors Doors, server *rpc.Server, creds *rpc.Credentials, s settings) error {
	peers, err := dial(d, s, creds)
	if err != nil {
		return err
	}
	return newAgent(d, s, doors, peers).serve(server)
}

// agent is everything of one node that runs.
type agent struct {
	d     *daemon.Daemon
	log   *slog.Logger
	set   settings
	doors Doors
	peers peers
	host  *hostSettings

	started     time.Time
	subscribers map[nodestate.Source]*push.Subscriber
	accepted    *push.Accepted
	loop        *dataplane.Loop
	blocks      *addresses.Allocator
	driver      runtime.Driver
	pods        *pods.Supervisor
	own         *ownMember
	registered  chan struct{}
}

func newAgent(d *daemon.Daemon, s settings, doors Doors, p peers) *agent {
	return &agent{
		d: d, log: d.Log(), set: s, doors: doors, peers: p, host: newHostSettings(doors.Host), started: time.Now(),
		subscribers: map[nodestate.Source]*push.Subscriber{}, own: newOwnMember(s), registered: make(chan struct{}),
	}
}

// sources in the order of the flow.
var sources = [...]nodestate.Source{
	nodestate.SourceCluster, nodestate.SourceIPAM, nodestate.SourceSvcproxy, nodestate.SourcePolicy,
}

func (a *agent) state(name string) string { return filepath.Join(a.set.State, name) }

// serve restores the node and starts everything.
func (a *agent) serve(server *rpc.Server) error {
	a.host.apply(a.log)
	if err := a.openPods(); err != nil {
		return err
	}
	if err := a.openDataplane(); err != nil {
		return err
	}
	// A restore takes as long as the table is large, and is not cut short by the end of the process half way.
	if err := a.loop.Restore(a.context()); err != nil {
		return err
	}
	wrote := a.loop.Wrote()
	a.log.Info("the last good state is in the kernel", "writes", wrote.Writes, "objects", wrote.Objects)

	a.d.Go("dataplane", a.loop.Run)
	a.d.Go("addresses", a.blocks.Run)
	a.d.Go("own member", func(ctx context.Context) error { return a.own.follow(ctx, a.blocks, a.log) })
	a.d.Go("runtime", a.driver.Run)
	a.d.Go("pods", a.pods.Run)
	a.d.Go("host", a.watchHost)
	a.d.Go("announcements", func(ctx context.Context) error {
		return watchAnnouncements(ctx, a.doors.Announcer, a.state(fileYielded), a.log)
	})
	for _, s := range sources {
		a.d.Go("subscriber "+string(s), a.subscribers[s].Run)
	}
	a.startControl()

	nodeagentv1.RegisterAgentServiceServer(server, a.service())
	tracev1.RegisterTraceServiceServer(server, telemetry.NewService(a.d.Telemetry()))
	server.Start(a.d)
	a.d.Ready()
	return nil
}

// context is that of the start: it ends with nothing, and carries the process's telemetry.
func (a *agent) context() context.Context {
	ctx := context.Background()
	if t := a.d.Telemetry(); t != nil {
		ctx = t.Context(ctx)
	}
	return ctx
}

func (a *agent) service() nodeagentv1.AgentServiceServer {
	var list []api.Source
	for _, s := range sources {
		list = append(list, a.subscribers[s])
	}
	return api.New(api.Config{
		Node: a.set.Node, Pods: a.pods, Runtime: a.driver, Go: a.d.Go, Log: a.log,
		Inspector: &api.Node{
			Name: a.set.Node, Version: daemon.Version(), Started: a.started, Dataplane: a.loop, Sources: list, Accepted: a.accepted,
			Settings: a.host, Blocks: a.blocks, Pods: a.pods,
			Writes: func() int64 { return int64(a.doors.Links.Writes()) + a.host.Writes() },
			Log:    a.log,
		},
	})
}

// openDataplane reads the journals and makes the loop of what they hold. Pods come first: they take the workloads.
func (a *agent) openDataplane() error {
	held := map[nodestate.Source]dataplane.Held{}
	updates := map[nodestate.Source]<-chan push.Update{}
	accepted, err := push.OpenAccepted(a.state(dirJournals))
	if err != nil {
		return err
	}
	a.accepted = accepted
	for _, s := range sources {
		journal, err := push.OpenJournal(a.state(dirJournals), s)
		if err != nil {
			return err
		}
		if problem := journal.Problem(); problem != "" {
			a.log.Warn("the last good state was not read completely", "source", string(s), "problem", problem)
		}
		slice, version := journal.Load()
		held[s] = dataplane.Held{Slice: slice, Version: version}
		cfg := a.peers.streams[s]
		cfg.Journal, cfg.Accepted = journal, accepted
		a.subscribers[s] = push.NewSubscriber(cfg)
		updates[s] = a.subscribers[s].Updates()
	}
	live, err := a.doors.Links.List()
	if err != nil {
		return err
	}
	var attached []plan.Attachment
	for _, l := range live {
		attached = append(attached, plan.Attachment{UID: l.UID, Link: l.Link, Addresses: l.Addresses})
	}
	addrs, err := a.doors.nodeAddresses()
	if err != nil {
		return err
	}
	a.loop, err = dataplane.New(dataplane.Config{
		Node: plan.Node{Name: a.set.Node, Zone: a.set.Zone, Addresses: addrs, TunnelPort: a.set.VXLANPort}, Rules: a.doors.Rules,
		Members: a.doors.Fabric, Announcer: a.doors.Announcer, Flows: a.doors.Flows, Workloads: workloads{a.pods, a.log}, Fabric: a.own.set,
		IDFile: a.state(fileIDs), Held: held, Attachments: attached, Updates: updates, Log: a.log,
	})
	return err
}

// watchHost keeps the host's settings, and tells the dataplane of the host's addresses.
func (a *agent) watchHost(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	last, err := a.doors.nodeAddresses()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.host.apply(a.log)
		before := err
		addrs, lerr := a.doors.nodeAddresses()
		if err = lerr; err != nil {
			if before == nil {
				a.log.Warn("the node's addresses cannot be read, trying again", "error", err)
			}
			continue
		}
		if slices.Equal(addrs, last) && before == nil {
			continue
		}
		if err = a.loop.SetNodeAddresses(ctx, addrs); err == nil {
			last = addrs
		} else if ctx.Err() == nil {
			a.log.Warn("node ports do not follow the node's addresses yet, trying again", "error", err)
		}
	}
}
