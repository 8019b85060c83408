package app

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/addresses"
	"podwire.dev/services/nodeagent/internal/control"
)

// peers are the services, each on a connection of its own, so that one that is stuck holds up nothing else.
type peers struct {
	nodes       clusterv1.NodeServiceClient
	pods        clusterv1.PodServiceClient
	liveness    clusterv1.LivenessServiceClient
	allocations ipamv1.AllocationServiceClient
	// streams have the connections of the subscribers.
	streams map[nodestate.Source]push.SubscriberConfig
	// replica dials one replica of cluster.
	replica func(target string) (clusterv1.LivenessServiceClient, io.Closer, error)
}

// dial makes the connections; it waits for none.
func dial(d *daemon.Daemon, s settings, creds *rpc.Credentials) (peers, error) {
	p := peers{streams: map[nodestate.Source]push.SubscriberConfig{}}
	for _, source := range sources {
		conn, err := rpc.DialPeer(d, &s.Common, creds, string(source))
		if err != nil {
			return p, err
		}
		p.streams[source] = push.SubscriberConfig{Source: source, Node: s.Node, Conn: conn, Log: d.Log()}
		switch source {
		case nodestate.SourceCluster:
			p.nodes, p.pods = clusterv1.NewNodeServiceClient(conn), clusterv1.NewPodServiceClient(conn)
			p.liveness = clusterv1.NewLivenessServiceClient(conn)
		case nodestate.SourceIPAM:
			p.allocations = ipamv1.NewAllocationServiceClient(conn)
		}
	}
	p.replica = func(target string) (clusterv1.LivenessServiceClient, io.Closer, error) {
		conn, err := rpc.Dial(target, pki.Service("cluster"), creds, rpc.WithTelemetry(d.Telemetry()))
		if err != nil {
			return nil, nil, err
		}
		return clusterv1.NewLivenessServiceClient(conn), conn, nil
	}
	return p, nil
}

// startControl begins to tell the control plane of this node.
func (a *agent) startControl() {
	registrar := &control.Registrar{
		Nodes: a.peers.nodes, Log: a.log, Registered: func() { close(a.registered) },
		Self: control.Self{
			Name: a.set.Node, Underlay: a.set.underlay, Labels: a.set.nodeLabels(), Target: a.set.target, Info: nodeInfo(),
		},
	}
	heart := &control.Heart{
		Service: a.peers.liveness, Dial: a.peers.replica, Node: a.set.Node, Target: a.set.target,
		Health: a.health, Watermark: a.blocks.Watermark, Returned: a.pods.Refresh, Log: a.log,
	}
	a.d.Go("registration", registrar.Run)
	a.d.Go("heartbeat", heart.Run)
}

// health says whether the node can run pods: every source was in the kernel once, and the fabric knows this node.
func (a *agent) health() control.Health {
	var missing []string
	for _, s := range sources {
		if a.subscribers[s].Status().Held == (nodestate.Version{}) {
			missing = append(missing, string(s))
		}
	}
	switch {
	case len(missing) > 0:
		return control.Health{Reason: "waits for the first slice of " + strings.Join(missing, ", ")}
	case !a.own.complete():
		return control.Health{Reason: "waits for ipam to make this node a member with a tunnel address of each family"}
	}
	return control.Health{Ready: true}
}

// nodeInfo is what people want to know of a node. What this host does not tell is empty.
func nodeInfo() *objectv1.NodeSystemInfo {
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			return ""
		}
		return string(bytes.TrimSpace(b))
	}
	info := &objectv1.NodeSystemInfo{
		MachineId: read("/etc/machine-id"), SystemUuid: read("/sys/class/dmi/id/product_uuid"),
		BootId: read("/proc/sys/kernel/random/boot_id"), OsImage: osImage(read("/etc/os-release")),
		ContainerRuntimeVersion: "process://" + daemon.Version(), KubeletVersion: daemon.Version(),
		OperatingSystem: goruntime.GOOS, Architecture: goruntime.GOARCH,
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		info.KernelVersion = unix.ByteSliceToString(uts.Release[:])
	}
	return info
}

// osImage is PRETTY_NAME of an os-release(5).
func osImage(release string) string {
	for line := range strings.Lines(release) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"'`)
		}
	}
	return ""
}

// ownMember is this node's own row of the fabric, as the kernel has it.
type ownMember struct {
	name     string
	families []addresses.Family
	// news wakes follow.
	news chan struct{}

	mu      sync.Mutex
	version nodestate.Version
	row     nodestate.Member
}

func newOwnMember(s settings) *ownMember {
	return &ownMember{name: s.Node, families: s.families, news: make(chan struct{}, 1)}
}

// set takes the members over; it never waits.
func (o *ownMember) set(version nodestate.Version, members []nodestate.Member) {
	o.mu.Lock()
	o.version, o.row = version, nodestate.Member{}
	if i := slices.IndexFunc(members, func(m nodestate.Member) bool { return m.Name == o.name }); i >= 0 {
		o.row = members[i]
	}
	o.mu.Unlock()
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// complete says whether the node has a tunnel address of each family.
func (o *ownMember) complete() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range o.families {
		if !slices.ContainsFunc(o.row.Tunnel, func(t netip.Addr) bool { return t.Is4() == (f == addresses.IPv4) }) {
			return false
		}
	}
	return true
}

// follow tells the addresses what ipam says of this node's blocks, until ctx ends.
func (o *ownMember) follow(ctx context.Context, blocks *addresses.Allocator, log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.news:
		}
		o.mu.Lock()
		known, row := o.version != (nodestate.Version{}), o.row
		o.mu.Unlock()
		if !known {
			continue // ipam has not said anything yet
		}
		if err := blocks.Granted(ctx, row.Blocks, row.Tunnel); err != nil && ctx.Err() == nil {
			log.Error("ipam's word on this node's blocks is not taken over", "error", err)
		}
	}
}

// podOf is the "namespace/name" of a change's object, if that is a Pod.
func podOf(object string) (name string, ok bool) { return strings.CutPrefix(object, "pods/") }
