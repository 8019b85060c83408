package stack

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"podwire.dev/internal/manifest"
	"podwire.dev/internal/nodestate"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	cluster "podwire.dev/services/cluster/app"
	policy "podwire.dev/services/policy/app"
	svcproxy "podwire.dev/services/svcproxy/app"
)

// apply writes manifests, each through its service, and returns the revision of the last.
func (c *control) apply(text string) int64 {
	c.t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		c.t.Fatal(err)
	}
	objects, err := manifest.Parse(kinds, "in.yaml", strings.NewReader(text), manifest.DefaultLimits())
	if err != nil {
		c.t.Fatal(err)
	}
	last := int64(0)
	for _, o := range objects {
		revision, err := c.applyOne(o.Message)
		if err != nil {
			c.t.Fatalf("apply %s: %v", o, err)
		}
		last = max(last, revision)
	}
	return last
}

func (c *control) applyOne(m manifest.Message) (int64, error) {
	serving := grpc.WaitForReady(true)
	switch o := m.(type) {
	case *objectv1.Namespace:
		r, err := clusterv1.NewNamespaceServiceClient(c.user[cluster.Name]).Apply(c.ctx, &clusterv1.NamespaceServiceApplyRequest{Object: o}, serving)
		return r.GetRevision(), err
	case *objectv1.Pod:
		r, err := clusterv1.NewPodServiceClient(c.user[cluster.Name]).Apply(c.ctx, &clusterv1.PodServiceApplyRequest{Object: o}, serving)
		return r.GetRevision(), err
	case *objectv1.Service:
		r, err := svcproxyv1.NewServiceServiceClient(c.user[svcproxy.Name]).Apply(c.ctx, &svcproxyv1.ServiceServiceApplyRequest{Object: o}, serving)
		return r.GetRevision(), err
	case *objectv1.NetworkPolicy:
		r, err := policyv1.NewNetworkPolicyServiceClient(c.user[policy.Name]).Apply(c.ctx, &policyv1.NetworkPolicyServiceApplyRequest{Object: o}, serving)
		return r.GetRevision(), err
	}
	return 0, fmt.Errorf("no service of %T", m)
}

// wait returns when the watermarks of services have passed the revision; of every required one where none is named. It
// returns what a node refused.
func (c *control) wait(revision int64, services ...string) (refused string) {
	c.t.Helper()
	req := &clusterv1.WaitRequest{Revision: revision, Services: services, AllRequired: len(services) == 0}
	stream, err := clusterv1.NewReceiptServiceClient(c.user[cluster.Name]).Wait(c.ctx, req, grpc.WaitForReady(true))
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) || err != nil {
			c.t.Fatalf("wait for revision %d of %v ended with: %v", revision, services, err)
		}
		if r.GetDone() {
			return ""
		}
		for _, s := range r.GetServices() {
			for _, l := range s.GetLaggards() {
				if l.GetRefused() != "" {
					return s.GetService() + " " + l.GetNode() + ": " + l.GetRefused()
				}
			}
		}
	}
}

// ready waits until a Pod is Ready and every node knows it; it returns its address and UID.
func (c *control) ready(namespace, name string) (addr netip.Addr, uid string) {
	c.t.Helper()
	pods := clusterv1.NewPodServiceClient(c.user[cluster.Name])
	stream, err := pods.Watch(c.ctx, &clusterv1.PodServiceWatchRequest{Namespace: namespace})
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		ev, err := stream.Recv()
		if err != nil {
			c.t.Fatalf("pod %s/%s does not become Ready: %v", namespace, name, err)
		}
		pod := ev.GetObject()
		isReady := slices.ContainsFunc(pod.GetStatus().GetConditions(), func(k *objectv1.PodCondition) bool {
			return k.GetType() == "Ready" && k.GetStatus() == "True"
		})
		if pod.GetMetadata().GetName() == name && isReady {
			c.wait(ev.GetRevision())
			return netip.MustParseAddr(pod.GetStatus().GetPodIp()), pod.GetMetadata().GetUid()
		}
	}
}

func threeNodes(t *testing.T) (*control, []*node) {
	t.Helper()
	c := newControl(t)
	var nodes []*node
	for i := 1; i <= 3; i++ {
		nodes = append(nodes, c.newNode(fmt.Sprintf("node-%d", i), fmt.Sprintf("192.0.2.%d", i)))
	}
	for _, n := range nodes {
		c.joined(n.name)
	}
	return c, nodes
}

// joined waits until a Node is Ready: receipts do not count it before.
func (c *control) joined(name string) {
	c.t.Helper()
	stream, err := clusterv1.NewNodeServiceClient(c.user[cluster.Name]).Watch(c.ctx, &clusterv1.NodeServiceWatchRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		ev, err := stream.Recv()
		if err != nil {
			c.t.Fatalf("node %s does not become Ready: %v", name, err)
		}
		node := ev.GetObject()
		if node.GetMetadata().GetName() == name && slices.ContainsFunc(node.GetStatus().GetConditions(), func(k *objectv1.NodeCondition) bool {
			return k.GetType() == "Ready" && k.GetStatus() == "True"
		}) {
			c.wait(ev.GetRevision())
			return
		}
	}
}

func pod(name, node string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: web}}, spec: {nodeName: %s, "+
		"containers: [{name: c, image: podwire.dev/echo, ports: [{name: http, containerPort: 80}]}]}}\n", name, node)
}

const webService = "---\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}\n"

const denyAll = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}, policyTypes: [Ingress]}}\n"

// holds fails where a node's endpoints of Service web are not these.
func holds(t *testing.T, nodes []*node, want ...netip.Addr) {
	t.Helper()
	slices.SortFunc(want, netip.Addr.Compare)
	for _, n := range nodes {
		got := slices.SortedFunc(maps.Keys(n.endpoints("default", "web")), netip.Addr.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("%s: endpoints %v, want %v", n.name, got, want)
		}
	}
}

// TestFlow: what the watermarks have passed is what every node holds, derived writes included.
func TestFlow(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + pod("b", "node-2") + webService)
	a, uidA := c.ready("default", "a")
	b, _ := c.ready("default", "b")
	holds(t, nodes, a, b)
	for i, n := range nodes {
		for _, w := range n.rows(nodestate.SourceCluster, nodestate.TableWorkloads) {
			if want := []string{"a", "b", ""}[i]; w.(nodestate.Workload).Name != want {
				t.Errorf("%s has workload %v, want %q", n.name, w, want)
			}
		}
		if members := n.rows(nodestate.SourceIPAM, nodestate.TableMembers); len(members) != 3 {
			t.Errorf("%s knows members %v", n.name, members)
		}
	}

	c.wait(c.apply(denyAll))
	subject := func() (nodestate.SideMode, bool) {
		for _, row := range nodes[0].rows(nodestate.SourcePolicy, nodestate.TableSubjects) {
			if s := row.(nodestate.Subject); s.PodUID == uidA {
				return s.Ingress.Mode, true
			}
		}
		return 0, false
	}
	if mode, ok := subject(); !ok || mode == nodestate.SideOpen {
		t.Errorf("node-1 has pod a as subject %t, ingress %v; the policy denies it", ok, mode)
	}
	deleted, err := policyv1.NewNetworkPolicyServiceClient(c.user[policy.Name]).Delete(c.ctx,
		&policyv1.NetworkPolicyServiceDeleteRequest{Namespace: "default", Name: "deny"})
	if err != nil {
		t.Fatal(err)
	}
	c.wait(deleted.GetRevision())
	if mode, ok := subject(); !ok || mode != nodestate.SideOpen {
		t.Errorf("node-1 has pod a as subject %t, ingress %v after the policy", ok, mode)
	}
}

// TestOneServiceDown: with policy down, Services move on; when it is back, it catches up, and no node loses anything.
func TestOneServiceDown(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + webService)
	a, _ := c.ready("default", "a")
	c.stops[policy.Name]()
	subjects := nodes[0].rows(nodestate.SourcePolicy, nodestate.TableSubjects)
	revision := c.apply(strings.Replace(webService, "port: 80,", "port: 81,", 1))
	c.wait(revision, svcproxy.Name, cluster.Name)
	for _, n := range nodes {
		ports := n.rows(nodestate.SourceSvcproxy, nodestate.TableServicePorts)
		if !slices.ContainsFunc(ports, func(r nodestate.Row) bool {
			p := r.(nodestate.ServicePort)
			return p.Service == "web" && p.Port == 81
		}) {
			t.Errorf("%s holds %v", n.name, ports)
		}
	}
	holds(t, nodes, a)
	if now := nodes[0].rows(nodestate.SourcePolicy, nodestate.TableSubjects); !slices.EqualFunc(now, subjects, nodestate.Equal) {
		t.Errorf("node-1 lost subjects with its policy service: %v, was %v", now, subjects)
	}
	c.start(policy.Name)
	c.wait(c.apply(denyAll))
}

// TestRefusal: what one kernel refuses holds the watermark and is told at once; the next change is taken again.
func TestRefusal(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + webService)
	a, _ := c.ready("default", "a")
	nodes[2].setRefuse(true)
	revision := c.apply(strings.Replace(webService, "port: 80,", "port: 82,", 1))
	if got, want := c.wait(revision), "svcproxy node-3: the kernel says no"; got != want {
		t.Errorf("wait says %q, want %q", got, want)
	}
	nodes[2].setRefuse(false)
	c.wait(c.apply(strings.Replace(webService, "port: 80,", "port: 83,", 1)))
	holds(t, nodes, a)
}

// TestStoreBreaks: broken watches and forgotten history change nothing that a node holds.
func TestStoreBreaks(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + webService)
	a, _ := c.ready("default", "a")
	c.fake.Stop()
	holds(t, nodes, a)
	c.fake.Start()
	c.fake.Compact(c.fake.Revision())
	c.fake.Disconnect()
	c.apply(pod("b", "node-3"))
	b, _ := c.ready("default", "b")
	holds(t, nodes, a, b)
}
