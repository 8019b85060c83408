package app

import (
	"context"
	"log/slog"

	"podwire.dev/services/nodeagent/internal/addresses"
	"podwire.dev/services/nodeagent/internal/control"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/plan"
	"podwire.dev/services/nodeagent/internal/pods"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/runtime/podfiles"
	"podwire.dev/services/nodeagent/internal/shim"
)

// openPods opens the addresses, the runtime and the supervisor of pods.
func (a *agent) openPods() error {
	live, err := a.doors.Links.List()
	if err != nil {
		return err
	}
	var witness []addresses.Live
	for _, l := range live {
		witness = append(witness, addresses.Live{UID: l.UID, Addresses: l.Addresses})
	}
	a.blocks, err = addresses.Open(addresses.Config{
		Path: a.state(fileAddresses), Families: a.set.families, Log: a.log,
		Lessor: &control.Leaser{Allocations: a.peers.allocations, Node: a.set.Node, Registered: a.registered},
	}, witness)
	if err != nil {
		return err
	}
	images := runtime.SubstituteNever
	if a.set.SubstituteImages {
		images = runtime.SubstituteImages
	}
	a.driver, err = a.doors.Runtime(runtime.Config{
		Root: a.state(dirRuntime), Shim: shim.Launcher{Argv: []string{"podwire", "serve", Name, "shim"}}, NodeName: a.set.Node,
		Cluster: podfiles.Cluster{Domain: a.set.ClusterDomain, DNS: a.set.dns}, Images: images, Log: a.log,
		OnChange: func(uid string) { a.pods.Changed(uid) },
	})
	if err != nil {
		return err
	}
	a.pods, err = pods.New(pods.Config{
		Driver: a.driver, Links: a.doors.Links, Dataplane: gate{a}, Addresses: a.blocks,
		Reporter: &control.Reporter{Pods: a.peers.pods}, Dir: a.state(dirPods), HostIPs: a.set.underlay,
		MTU: a.doors.MTU, Go: a.d.Go, Log: a.log,
	})
	return err
}

// gate is the dataplane as the pods know it: the loop takes the pods, and the pods the loop, so one comes later.
type gate struct{ a *agent }

// Prepare implements pods.Dataplane.
func (g gate) Prepare(ctx context.Context, at plan.Attachment) error {
	return g.a.loop.Prepare(ctx, at)
}

// Remove implements pods.Dataplane.
func (g gate) Remove(ctx context.Context, uid string) error { return g.a.loop.Remove(ctx, uid) }

// workloads hands cluster's slice to the pods.
type workloads struct {
	pods *pods.Supervisor
	log  *slog.Logger
}

// SetWorkloads implements dataplane.Workloads.
func (w workloads) SetWorkloads(u dataplane.WorkloadUpdate) {
	var err error
	if u.Complete {
		traces := map[string]string{}
		for _, c := range u.Changes {
			if name, ok := podOf(c.Object); ok {
				traces[name] = c.Traceparent
			}
		}
		err = w.pods.Update(pods.Update{Version: u.Version.Revision, Upserts: u.Upserts, Removes: u.Removes, Traces: traces})
	} else {
		err = w.pods.Restore(u.Upserts)
	}
	if err != nil {
		w.log.Error("some Pods of this node cannot be read", "version", u.Version.Revision, "error", err)
	}
}
