package stack

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// sources are the services that push.
var sources = []nodestate.Source{nodestate.SourceCluster, nodestate.SourceIPAM, nodestate.SourceSvcproxy, nodestate.SourcePolicy}

// node is an agent without a kernel: what it is sent becomes true at once, and a Pod is Ready once it is assigned.
type node struct {
	c    *control
	name string
	pods clusterv1.PodServiceClient

	subscribers map[nodestate.Source]*push.Subscriber

	mu     sync.Mutex
	kernel map[nodestate.Source]*nodestate.Slice
	block  netip.Prefix
	next   netip.Addr
	given  map[string]netip.Addr // by pod UID
	// refuse makes the kernel refuse what svcproxy sends.
	refuse bool
	// changed is closed and replaced with each update.
	changed chan struct{}
}

// newNode joins a node, and leaves with the test.
func (c *control) newNode(name string, underlay string) *node {
	c.t.Helper()
	creds := c.identity(pki.Node(name))
	n := &node{
		c: c, name: name, subscribers: map[nodestate.Source]*push.Subscriber{}, kernel: map[nodestate.Source]*nodestate.Slice{},
		given: map[string]netip.Addr{}, changed: make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(c.ctx)
	var running sync.WaitGroup
	conns := map[nodestate.Source]*grpc.ClientConn{}
	for _, s := range sources {
		conn, err := rpc.Dial(c.targets[string(s)], pki.Service(string(s)), creds)
		if err != nil {
			c.t.Fatal(err)
		}
		conns[s] = conn
	}
	c.t.Cleanup(func() {
		cancel()
		running.Wait()
		for _, conn := range conns {
			_ = conn.Close()
		}
	})
	n.pods = clusterv1.NewPodServiceClient(conns[nodestate.SourceCluster])
	if err := n.join(ctx, conns, underlay); err != nil {
		c.t.Fatal(err)
	}
	for _, s := range sources {
		n.kernel[s] = nodestate.NewSlice()
		n.subscribers[s] = push.NewSubscriber(push.SubscriberConfig{Source: s, Node: name, Conn: conns[s]})
		running.Go(func() { _ = n.subscribers[s].Run(ctx) })
		running.Go(func() { n.take(ctx, s) })
	}
	running.Go(func() { n.beat(ctx, clusterv1.NewLivenessServiceClient(conns[nodestate.SourceCluster])) })
	return n
}

// join writes the Node and leases a block.
func (n *node) join(ctx context.Context, conns map[nodestate.Source]*grpc.ClientConn, underlay string) error {
	serving := grpc.WaitForReady(true)
	nodes := clusterv1.NewNodeServiceClient(conns[nodestate.SourceCluster])
	made, err := nodes.Apply(ctx, &clusterv1.NodeServiceApplyRequest{Object: &objectv1.Node{
		ApiVersion: "v1", Kind: "Node",
		Metadata: &objectv1.ObjectMeta{Name: n.name, Labels: map[string]string{"kubernetes.io/hostname": n.name}},
	}}, serving)
	if err != nil {
		return err
	}
	object := made.GetObject()
	object.Status = &objectv1.NodeStatus{Addresses: []*objectv1.NodeAddress{{Type: "InternalIP", Address: underlay}}}
	if _, err := nodes.UpdateStatus(ctx, &clusterv1.NodeServiceUpdateStatusRequest{Object: object}); err != nil {
		return err
	}
	leased, err := ipamv1.NewAllocationServiceClient(conns[nodestate.SourceIPAM]).LeaseBlock(ctx, &ipamv1.LeaseBlockRequest{
		Node: n.name, Family: ipamv1.Family_FAMILY_IPV4, RequestId: n.name,
	}, serving)
	if err != nil {
		return err
	}
	if n.block, err = netip.ParsePrefix(leased.GetObject().GetSpec().GetCidr()); err != nil {
		return err
	}
	n.next = n.block.Addr().Next() // the first is the tunnel's
	return nil
}

// beat says that the node lives, as often as cluster answers.
func (n *node) beat(ctx context.Context, liveness clusterv1.LivenessServiceClient) {
	for ctx.Err() == nil {
		stream, err := liveness.Heartbeat(ctx, grpc.WaitForReady(true))
		if err != nil {
			continue
		}
		for sequence := int64(1); ; sequence++ {
			err := stream.Send(&clusterv1.HeartbeatRequest{Node: n.name, Sequence: sequence, Ready: true, AgentTarget: "127.0.0.1:1"})
			if err != nil {
				break
			}
			if _, err := stream.Recv(); err != nil {
				break
			}
			if !n.pause(ctx) {
				break
			}
		}
	}
}

// take puts updates into the map that is the kernel.
func (n *node) take(ctx context.Context, source nodestate.Source) {
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-n.subscribers[source].Updates():
			if !n.commit(source, u.Delta) {
				u.Refused("the kernel says no")
				continue
			}
			u.Applied()
			if source == nodestate.SourceCluster {
				n.startPods(ctx)
			}
		}
	}
}

func (n *node) commit(source nodestate.Source, d nodestate.Delta) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse && source == nodestate.SourceSvcproxy {
		return false
	}
	n.kernel[source].Apply(d)
	close(n.changed)
	n.changed = make(chan struct{})
	return true
}

// startPods reports every assigned Pod that has no address yet as Ready.
func (n *node) startPods(ctx context.Context) {
	for _, row := range n.rows(nodestate.SourceCluster, nodestate.TableWorkloads) {
		w := row.(nodestate.Workload)
		addr, isNew := n.addressOf(w.UID)
		if !isNew {
			continue
		}
		var pod objectv1.Pod
		if err := proto.Unmarshal([]byte(w.Pod), &pod); err != nil {
			n.c.t.Errorf("%s: workload %s/%s: %v", n.name, w.Namespace, w.Name, err)
			return
		}
		pod.Status = readyStatus(addr)
		pod.Metadata.ResourceVersion = ""
		_, err := n.pods.UpdateStatus(ctx, &clusterv1.PodServiceUpdateStatusRequest{Object: &pod})
		if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			n.c.t.Errorf("%s: status of %s/%s: %v", n.name, w.Namespace, w.Name, err)
		}
	}
}

func (n *node) addressOf(uid string) (addr netip.Addr, isNew bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr, ok := n.given[uid]; ok {
		return addr, false
	}
	n.given[uid] = n.next
	n.next = n.next.Next()
	return n.given[uid], true
}

func readyStatus(addr netip.Addr) *objectv1.PodStatus {
	var conditions []*objectv1.PodCondition
	for _, kind := range []string{"PodScheduled", "Initialized", "ContainersReady", "Ready"} {
		conditions = append(conditions, &objectv1.PodCondition{Type: kind, Status: "True", LastTransitionTime: timestamppb.Now()})
	}
	return &objectv1.PodStatus{Phase: "Running", PodIp: addr.String(), PodIps: []*objectv1.PodIP{{Ip: addr.String()}}, Conditions: conditions}
}

// rows are what the node's kernel holds of a table.
func (n *node) rows(source nodestate.Source, table nodestate.Table) []nodestate.Row {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.kernel[source].Rows(table)
}

// endpoints are the addresses behind a Service, as this node has them.
func (n *node) endpoints(namespace, name string) map[netip.Addr]nodestate.EndpointState {
	out := map[netip.Addr]nodestate.EndpointState{}
	for _, row := range n.rows(nodestate.SourceSvcproxy, nodestate.TableEndpoints) {
		if e := row.(nodestate.Endpoint); e.Namespace == namespace && e.Service == name {
			out[e.Address] = e.State
		}
	}
	return out
}

// beatEvery is the agents' time between two heartbeats.
const beatEvery = 200 * time.Millisecond

// pause waits for the next heartbeat; false where ctx ended.
func (n *node) pause(ctx context.Context) bool {
	timer := time.NewTimer(beatEvery)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (n *node) setRefuse(refuse bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = refuse
}
