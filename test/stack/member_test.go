package stack

import (
	"context"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/fabric"
	"podwire.dev/internal/member"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	cluster "podwire.dev/services/cluster/app"
	ipam "podwire.dev/services/ipam/app"
)

// joinMember runs a process that is a fabric member and nothing else, with a kernel that outlives it.
func (c *control) joinMember(name string, kernel *fabric.Fake, creds *rpc.Credentials) (m *member.Member, stop func()) {
	c.t.Helper()
	joined := make(chan *member.Member, 1)
	stop = c.run("dns", "127.0.0.1:0", creds, func(d *daemon.Daemon, _ *rpc.Server) error {
		ipamConn, err := rpc.Dial(c.targets[ipam.Name], pki.Service(ipam.Name), creds)
		if err != nil {
			return err
		}
		d.OnStop(daemon.StageStore, "ipam", func(context.Context) error { return ipamConn.Close() })
		clusterConn, err := rpc.Dial(c.targets[cluster.Name], pki.Service(cluster.Name), creds)
		if err != nil {
			return err
		}
		d.OnStop(daemon.StageStore, "cluster", func(context.Context) error { return clusterConn.Close() })
		m, err := member.Start(d, member.Parts{
			Name: name, Underlay: []netip.Addr{netip.MustParseAddr("172.30.0.31")}, Fabric: kernel,
			Service:     member.Service{Name: "dns", Ports: []member.Port{{Name: "dns", Port: 53, Protocol: nodestate.UDP}}},
			Allocations: ipamv1.NewAllocationServiceClient(ipamConn), Slices: push.SubscriberConfig{Conn: ipamConn},
			Members: clusterv1.NewMemberServiceClient(clusterConn),
			Dial: func(target string) (clusterv1.MemberServiceClient, io.Closer, error) {
				conn, err := rpc.Dial(target, pki.Service(cluster.Name), creds)
				return clusterv1.NewMemberServiceClient(conn), conn, err
			},
		})
		joined <- m
		return err
	})
	return <-joined, stop
}

// memberReady says whether the member's Pod is Ready.
func (c *control) memberReady(name string) (*objectv1.Pod, bool) {
	resp, err := clusterv1.NewPodServiceClient(c.user[cluster.Name]).Get(c.ctx, &clusterv1.PodServiceGetRequest{Namespace: "kube-system", Name: name})
	if err != nil {
		return nil, false
	}
	o := resp.GetObject()
	return o, slices.ContainsFunc(o.GetStatus().GetConditions(), func(p *objectv1.PodCondition) bool {
		return p.GetType() == "Ready" && p.GetStatus() == "True"
	})
}

// TestMember has a process join the fabric: it gets its addresses, everybody's routes, a Pod and the place of an endpoint,
// and keeps all of it while it or the services are replaced.
func TestMember(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	node := c.newNode("node-1", "172.30.0.11")
	c.joined("node-1")
	creds := c.identity(pki.Service("dns"))
	self := nodestate.ServiceMember("dns-1")
	kernel := fabric.NewFake(self, netip.MustParseAddr("172.30.0.31"))
	m, stop := c.joinMember("dns-1", kernel, creds)
	addresses, err := m.Await(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(addresses) != 2 || !addresses[0].Is4() || addresses[1].Is4() {
		t.Fatalf("its addresses are %v", addresses)
	}
	if _, ready := c.memberReady("dns-1"); ready {
		t.Error("its Pod is Ready before the service is")
	}
	m.Ready()
	c.until("its Pod is Ready", func() bool { _, ready := c.memberReady("dns-1"); return ready })
	o, _ := c.memberReady("dns-1")
	if o.GetSpec().GetNodeName() != "" || o.GetStatus().GetPodIp() != addresses[0].String() || o.GetStatus().GetHostIp() != "172.30.0.31" {
		t.Errorf("its Pod is %v", o)
	}
	dns := netip.AddrPortFrom(netip.MustParseAddr("10.96.0.10"), 53)
	c.until("the node's table leads cluster DNS to it", func() bool {
		return slices.Equal(node.connect(node.underlay, dns).Backends, []netip.AddrPort{netip.AddrPortFrom(addresses[0], 53)})
	})
	hasNode := func() bool {
		return slices.ContainsFunc(kernel.Rows().Rows(nodestate.TableMembers), func(r nodestate.Row) bool { return r.Key() == "node-1" })
	}
	c.until("it has the node's routes", hasNode)

	c.stops[ipam.Name]()
	c.stops[cluster.Name]()
	if !hasNode() {
		t.Error("without the services it lost the node's routes")
	}
	writes := kernel.Writes()
	stop()
	again, stop := c.joinMember("dns-1", kernel, creds)
	select {
	case <-again.Programmed():
	default:
		t.Error("a restarted process waits for services to serve on")
	}
	if got := again.Addresses(); !slices.Equal(got, addresses) {
		t.Errorf("it came back with %v, had %v", got, addresses)
	}
	again.Ready()
	c.start(cluster.Name)
	c.start(ipam.Name)
	c.until("it holds ipam's slice again", func() bool { return again.Status().Slices.Synced })
	c.until("its Pod is as attended", func() bool { return again.Status().PodRevision > 0 })
	if _, ready := c.memberReady("dns-1"); !ready || kernel.Writes() != writes {
		t.Errorf("after the restart: ready %v, kernel writes %d, before %d", ready, kernel.Writes(), writes)
	}
	stop()
	c.until("its Pod turns NotReady with its end", func() bool { _, ready := c.memberReady("dns-1"); return !ready })
	c.until("and leaves cluster DNS", func() bool { return len(node.connect(node.underlay, dns).Backends) == 0 })

	// Whoever comes to a network namespace of another member is refused.
	if err := c.refusedMember("dns-2", kernel, creds); err == nil || !strings.Contains(err.Error(), "another member") {
		t.Errorf("a second member in one network namespace: %v", err)
	}
}

// refusedMember is why a member does not start.
func (c *control) refusedMember(name string, kernel *fabric.Fake, creds *rpc.Credentials) error {
	c.t.Helper()
	failed := make(chan error, 1)
	c.run("dns", "127.0.0.1:0", creds, func(d *daemon.Daemon, _ *rpc.Server) error {
		_, err := member.Start(d, member.Parts{Name: name, Service: member.Service{Name: "dns"}, Fabric: kernel})
		failed <- err
		return nil
	})
	return <-failed
}
