package stack

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	cluster "podwire.dev/services/cluster/app"
	nodeagent "podwire.dev/services/nodeagent/app"
	svcproxy "podwire.dev/services/svcproxy/app"
)

// node is the agent of one node, on a host without a kernel, which outlives it.
type node struct {
	c        *control
	name     string
	underlay netip.Addr
	host     *nodeagent.Fake
	creds    *rpc.Credentials
	config   nodeagent.Config
	agent    nodeagentv1.AgentServiceClient
	// joined is when the Node became Ready.
	joined time.Time
	// stop ends the agent.
	stop func()
}

// newNode starts an agent on a host to which nothing was ever done.
func (c *control) newNode(name, underlay string) *node {
	c.t.Helper()
	n := &node{
		c: c, name: name, underlay: netip.MustParseAddr(underlay), creds: c.identity(pki.Node(name)),
		host: nodeagent.NewFake(name, netip.MustParseAddr(underlay)),
	}
	n.config.SetDefaults()
	n.config.Common = daemon.Common{Listen: netip.AddrPortFrom(ownAddress(c.t), 7443).String(), Peers: maps.Clone(c.targets)}
	n.config.Node, n.config.Underlay = name, []string{underlay}
	n.config.State = filepath.Join(c.dir, "state-"+name)
	n.config.ClusterDNS = []string{"10.96.0.10", "fd00:10:96::a"}
	conn, err := rpc.Dial(n.config.Listen, pki.Node(name), c.identity(pki.User("root")))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	n.agent = nodeagentv1.NewAgentServiceClient(conn)
	n.start()
	return n
}

// start begins another life of the agent.
func (n *node) start() {
	n.c.t.Helper()
	n.stop = n.c.run(n.name, n.config.Listen, n.creds, func(d *daemon.Daemon, server *rpc.Server) error {
		return nodeagent.Serve(d, n.host.Doors(), server, n.creds, n.config)
	})
}

// status is what the agent says of itself, as soon as it is SERVING.
func (n *node) status() *nodeagentv1.StatusResponse {
	n.c.t.Helper()
	st, err := n.agent.Status(n.c.ctx, &nodeagentv1.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		n.c.t.Fatalf("status of %s: %v", n.name, err)
	}
	return st
}

// connect is the way of a TCP connection through the host's table.
func (n *node) connect(from netip.Addr, to netip.AddrPort) nodeagent.Way {
	n.c.t.Helper()
	way, err := n.host.Connect(from, to)
	if err != nil {
		n.c.t.Fatalf("%s: %s -> %s: %v", n.name, from, to, err)
	}
	return way
}

// service is an address and port of a Service.
func (c *control) service(name string, port uint16) netip.AddrPort {
	c.t.Helper()
	got, err := svcproxyv1.NewServiceServiceClient(c.user[svcproxy.Name]).Get(c.ctx,
		&svcproxyv1.ServiceServiceGetRequest{Namespace: "default", Name: name}, grpc.WaitForReady(true))
	if err != nil {
		c.t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(got.GetObject().GetSpec().GetClusterIp()), port)
}

// serves fails where a host's table does not send a connection to Service web to port 80 of these pods, and of no others.
func (c *control) serves(nodes []*node, port uint16, want ...netip.Addr) {
	c.t.Helper()
	var backends []netip.AddrPort
	for _, a := range want {
		backends = append(backends, netip.AddrPortFrom(a, 80))
	}
	slices.SortFunc(backends, netip.AddrPort.Compare)
	to := c.service("web", port)
	for _, n := range nodes {
		got := n.connect(n.underlay, to)
		if slices.Equal(got.Backends, backends) {
			continue
		}
		if !c.starved(nodes) {
			c.t.Errorf("%s sends %s to %v (%s, %s), want %v", n.name, to, got.Backends, got.Fate, got.Decided, backends)
			continue
		}
		c.until(fmt.Sprintf("%s sends %s to %v", n.name, to, backends), func() bool {
			return slices.Equal(n.connect(n.underlay, to).Backends, backends)
		})
	}
}

// starved says whether some node was NotReady since it joined. A machine that is so busy that an agent of this process gets
// no turn for a second takes its Pods out of the Services, rightly, and nothing that follows from that is the test's.
func (c *control) starved(nodes []*node) bool {
	c.t.Helper()
	for _, n := range nodes {
		got, err := clusterv1.NewNodeServiceClient(c.user[cluster.Name]).Get(c.ctx, &clusterv1.NodeServiceGetRequest{Name: n.name}, grpc.WaitForReady(true))
		if err != nil {
			c.t.Fatal(err)
		}
		if ready := readiness(got.GetObject()); ready.GetStatus() != "True" || !ready.GetLastTransitionTime().AsTime().Equal(n.joined) {
			c.t.Logf("%s was not Ready all the time: %v", n.name, ready)
			return true
		}
	}
	return false
}

// readiness is the condition Ready of a Node; nil where it has none yet.
func readiness(n *objectv1.Node) *objectv1.NodeCondition {
	for _, k := range n.GetStatus().GetConditions() {
		if k.GetType() == "Ready" {
			return k
		}
	}
	return nil
}

// until waits for something that a host shows and no receipt tells of.
func (c *control) until(what string, ok func() bool) {
	c.t.Helper()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-c.ctx.Done():
			c.t.Fatalf("not: %s", what)
		}
	}
}

// lookEvery is how often a host is looked at.
const lookEvery = 10 * time.Millisecond

// threeNodes is a cluster of three Ready nodes.
func threeNodes(t *testing.T) (*control, []*node) {
	t.Helper()
	c := newControl(t)
	var nodes []*node
	for i := 1; i <= 3; i++ {
		nodes = append(nodes, c.newNode(fmt.Sprintf("node-%d", i), fmt.Sprintf("192.0.2.%d", i)))
	}
	for _, n := range nodes {
		n.joined = c.joined(n.name)
	}
	return c, nodes
}
