package stack

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
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

// wait returns when the watermarks of services have passed the revision; of every required one where none is named. A
// refusal fails the test.
func (c *control) wait(revision int64, services ...string) {
	c.t.Helper()
	if _, err := c.follow(revision, services, nothing); err != nil {
		c.t.Fatal(err)
	}
}

func nothing([]*clusterv1.Laggard) bool { return false }

// refused is the error with which a wait for the revision ends: some node refused it.
func (c *control) refused(revision int64) error {
	c.t.Helper()
	_, err := c.follow(revision, nil, nothing)
	if !errs.Is(err, errs.Conflict) {
		c.t.Fatalf("wait for revision %d: %v, want that a node refused", revision, err)
	}
	return err
}

// behind waits until a node, and no other, is named as a laggard of a service, without having refused anything.
func (c *control) behind(revision int64, service, node string) {
	c.t.Helper()
	done, err := c.follow(revision, []string{service}, func(list []*clusterv1.Laggard) bool {
		return len(list) == 1 && list[0].GetNode() == node && list[0].GetRefused() == ""
	})
	if err != nil || done {
		c.t.Fatalf("%s is not named: every node holds revision %d of %s, or: %v", node, revision, service, err)
	}
}

// follow waits for the revision until it is done, enough has seen the laggards of a service that it wants, or the wait ends with an error.
func (c *control) follow(revision int64, services []string, enough func([]*clusterv1.Laggard) bool) (done bool, err error) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	req := &clusterv1.WaitRequest{Revision: revision, Services: services, AllRequired: len(services) == 0}
	stream, err := clusterv1.NewReceiptServiceClient(c.user[cluster.Name]).Wait(ctx, req, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	last := ""
	for {
		r, err := stream.Recv()
		if err != nil {
			return false, fmt.Errorf("wait for revision %d of %v: %w; at last: %s", revision, services, err, last)
		}
		last = r.String()
		if r.GetDone() {
			return true, nil
		}
		for _, s := range r.GetServices() {
			if enough(s.GetLaggards()) {
				return false, nil
			}
		}
	}
}

// ready waits until a Pod is Ready and every node knows it; it returns its address.
func (c *control) ready(namespace, name string) netip.Addr {
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
			return netip.MustParseAddr(pod.GetStatus().GetPodIp())
		}
	}
}

// remove deletes a Pod, and returns when its agent has ended it and every node knows.
func (c *control) remove(namespace, name string) {
	c.t.Helper()
	pods := clusterv1.NewPodServiceClient(c.user[cluster.Name])
	asked, err := pods.Delete(c.ctx, &clusterv1.PodServiceDeleteRequest{Namespace: namespace, Name: name})
	if err != nil {
		c.t.Fatal(err)
	}
	stream, err := pods.Watch(c.ctx, &clusterv1.PodServiceWatchRequest{Namespace: namespace, Name: name, FromRevision: asked.GetRevision()})
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		ev, err := stream.Recv()
		if err != nil {
			c.t.Fatalf("pod %s/%s does not end: %v", namespace, name, err)
		}
		if ev.GetType() == objectv1.EventType_EVENT_TYPE_DELETED {
			c.wait(ev.GetRevision())
			return
		}
	}
}

// joined waits until a Node is Ready, which receipts do not count before, and returns since when it is.
func (c *control) joined(name string) time.Time {
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
		if ready := readiness(ev.GetObject()); ev.GetObject().GetMetadata().GetName() == name && ready.GetStatus() == "True" {
			c.wait(ev.GetRevision())
			return ready.GetLastTransitionTime().AsTime()
		}
	}
}

func pod(name, node string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: web}}, spec: {nodeName: %s, "+
		"containers: [{name: c, image: podwire.dev/echo, ports: [{name: http, containerPort: 80}]}]}}\n", name, node)
}

const webService = "---\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}\n"

// webOn is webService on another port.
func webOn(port int) string {
	return strings.Replace(webService, "port: 80,", fmt.Sprintf("port: %d,", port), 1)
}

const denyAll = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}, policyTypes: [Ingress]}}\n"

// TestFlow: what the watermarks have passed is what the table of every host does, derived writes included.
func TestFlow(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + pod("b", "node-2") + webService)
	a := c.ready("default", "a")
	b := c.ready("default", "b")
	c.serves(nodes, 80, a, b)
	for i, n := range nodes {
		want := [][]string{{"default/a"}, {"default/b"}, nil}[i]
		if got := n.host.Running(); !slices.Equal(got, want) {
			t.Errorf("%s runs %v, want %v", n.name, got, want)
		}
		if got := n.host.Linked(); !slices.Equal(got, want) {
			t.Errorf("%s has links of %v, want %v", n.name, got, want)
		}
	}
	toA := netip.AddrPortFrom(a, 80)
	if got := nodes[1].connect(b, toA); got.Fate != "forwarded" {
		t.Errorf("b leaves node-2 for a: %+v", got)
	}
	if got := nodes[0].connect(b, toA); got.Fate != "delivered" {
		t.Errorf("b reaches a: %+v", got)
	}

	c.wait(c.apply(denyAll))
	if got := nodes[0].connect(b, toA); got.Fate != "dropped" || got.Decided != "ingress policy" {
		t.Errorf("b reaches a, which a policy isolates: %+v", got)
	}
	deleted, err := policyv1.NewNetworkPolicyServiceClient(c.user[policy.Name]).Delete(c.ctx,
		&policyv1.NetworkPolicyServiceDeleteRequest{Namespace: "default", Name: "deny"})
	if err != nil {
		t.Fatal(err)
	}
	c.wait(deleted.GetRevision())
	if got := nodes[0].connect(b, toA); got.Fate != "delivered" {
		t.Errorf("b does not reach a after the policy: %+v", got)
	}

	c.remove("default", "b")
	c.serves(nodes, 80, a)
	if running, linked := nodes[1].host.Running(), nodes[1].host.Linked(); len(running)+len(linked) != 0 {
		t.Errorf("of a deleted Pod node-2 has containers %v, links %v", running, linked)
	}
}

// TestOneServiceDown: with policy down, Services move on; when it is back, it catches up, and no node loses anything.
func TestOneServiceDown(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + webService + denyAll)
	a := c.ready("default", "a")
	c.stops[policy.Name]()
	c.wait(c.apply(webOn(81)), svcproxy.Name, cluster.Name)
	c.serves(nodes, 81, a)
	stranger := netip.AddrPortFrom(a, 80)
	if got := nodes[0].connect(netip.MustParseAddr("10.244.200.1"), stranger); got.Fate != "dropped" {
		t.Errorf("with its policy service node-1 lost the policy: %+v", got)
	}
	c.start(policy.Name)
	c.wait(c.apply(pod("b", "node-2")))
	c.serves(nodes, 81, a, c.ready("default", "b"))
}

// TestRefusal: what one kernel refuses holds the watermark and is told at once; the next change is taken again.
func TestRefusal(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + webService)
	a := c.ready("default", "a")
	nodes[2].host.Refuse(". tcp . 82 ")
	revision := c.apply(webOn(82))
	if got := c.refused(revision).Error(); !strings.Contains(got, "node-3 refused") || !strings.Contains(got, "of svcproxy: the kernel refuses") {
		t.Errorf("wait says %q; the kernel of node-3 refuses", got)
	}
	c.serves(nodes[:2], 82, a)
	c.serves(nodes[2:], 80, a) // what it held
	if st := nodes[2].status(); !slices.ContainsFunc(st.GetSlices(), func(s *nodeagentv1.SliceStatus) bool {
		return s.GetService() == svcproxy.Name && strings.Contains(s.GetRefused(), "the kernel refuses")
	}) {
		t.Errorf("the status of node-3 does not tell: %v", st.GetSlices())
	}
	nodes[2].host.Refuse("")
	c.wait(c.apply(webOn(83)))
	c.serves(nodes, 83, a)
}

// TestStoreBreaks: broken watches and forgotten history change nothing that a node holds.
func TestStoreBreaks(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + webService)
	a := c.ready("default", "a")
	web := c.service("web", 80)
	c.serves(nodes, 80, a)
	c.fake.Stop()
	for _, n := range nodes {
		if got := n.connect(n.underlay, web); len(got.Backends) != 1 || got.Backends[0].Addr() != a {
			t.Errorf("%s without a store: %+v", n.name, got)
		}
	}
	c.fake.Start()
	c.fake.Compact(c.fake.Revision())
	c.fake.Disconnect()
	c.apply(pod("b", "node-3"))
	c.serves(nodes, 80, a, c.ready("default", "b"))
}
