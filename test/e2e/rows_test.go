package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestLargePayloads sends what fits into no packet: streams of megabytes and datagrams in fragments, to a pod of another
// node and through its Service, in both families; and a packet of exactly the pod's MTU, which nobody may fragment.
func TestLargePayloads(t *testing.T) {
	const (
		ns     = "large"
		stream = 8 << 20
	)
	shared.namespace(t, ns)
	shared.apply(t, partPod(t, ns, "big", "node-2", "app: big", part{Echo: 7})+clientPod(ns, "c1", "node-1")+
		fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: big, namespace: %s}, spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: big}, "+
			"ports: [{name: t, port: 7}, {name: u, port: 7, protocol: UDP}]}}\n", ns))
	s := shared.service(t, ns, "big")
	pod := shared.addressesOfPod(t, ns, "big")
	intact := func(from place, protocol, host string, port, size int) {
		t.Helper()
		p := part{Send: &sending{Protocol: protocol, Target: net.JoinHostPort(host, strconv.Itoa(port)), Bytes: size}}
		if a := shared.exec(from, playing(t, p)...); a.code != 0 || !strings.Contains(a.out, strconv.Itoa(size)+" bytes intact") {
			t.Errorf("%v -> %s %s:%d: %d bytes: exit %d: %s", from, protocol, host, port, size, a.code, a.text())
		}
	}
	for family := range 2 {
		for _, host := range []string{pod[family], s.Spec.ClusterIPs[family]} {
			intact(inPod(ns, "c1"), "tcp", host, 7, stream)
			for _, size := range []int{1400, 2000, 9000, 60000} {
				intact(inPod(ns, "c1"), "udp", host, 7, size)
			}
		}
		for n, protocol := range []string{"tcp", "udp"} {
			intact(outside(), protocol, shared.nodeAddresses(t, "node-1")[family], s.Spec.Ports[n].NodePort, []int{stream, 9000}[n])
			intact(onNode("node-3"), protocol, s.Spec.ClusterIPs[family], 7, []int{stream, 9000}[n])
		}
		var links []struct{ MTU int }
		if a := shared.exec(inPod(ns, "c1"), "ip", "-j", "link", "show", "dev", "eth0"); json.Unmarshal([]byte(a.out), &links) != nil || len(links) == 0 {
			t.Fatalf("the pod's link: %s", a.text())
		}
		whole := links[0].MTU - []int{28, 48}[family] // the headers of IP and ICMP
		ping := func(size int) int {
			return shared.exec(inPod(ns, "c1"), "ping", "-M", "do", "-c", "1", "-W", "2", "-s", strconv.Itoa(size), pod[family]).code
		}
		if ping(whole) != 0 || ping(whole+1) == 0 {
			t.Errorf("to %s a packet of the MTU %d exits %d, one that is larger %d", pod[family], links[0].MTU, ping(whole), ping(whole+1))
		}
	}
}

// datagrams is a flow from one socket with a port of its own, as a client has that never stops.
func datagrams(host string, port, from int) flow {
	return flow{
		Protocol: "udp", Target: net.JoinHostPort(host, strconv.Itoa(port)), Held: true, Port: from,
		Every: 20 * time.Millisecond, Timeout: 200 * time.Millisecond,
	}
}

// answeredBy says that the flow's last request was answered by the pod.
func answeredBy(n int, pod string) func([]counts) bool {
	return func(all []counts) bool { return all[n].Last.who() == pod }
}

// TestDatagramsFollowTheirService: a client that sends from one port all the time holds on to what conntrack knows of its
// flow. It has to reach the next pod all the same, through every kind of address.
func TestDatagramsFollowTheirService(t *testing.T) {
	const ns = "datagrams"
	shared.namespace(t, ns)
	shared.apply(t, echoPod(ns, "a1", "node-2", 80)+webService(ns, "any", "type: LoadBalancer, ")+
		webService(ns, "near", "internalTrafficPolicy: Local, "))
	s, near := shared.service(t, ns, "any"), shared.service(t, ns, "near").Spec.ClusterIPs
	node := shared.nodeAddresses(t, "node-2")
	u := s.Spec.Ports[1].NodePort
	const anyFlows = 6
	from := shared.send(t, ns, "sender", "node-1", "app: sender",
		datagrams(s.Spec.ClusterIPs[0], 80, 12340), datagrams(s.Spec.ClusterIPs[1], 80, 12341),
		datagrams(node[0], u, 12342), datagrams(node[1], u, 12343),
		datagrams(s.Status.LoadBalancer.Ingress[0].IP, 80, 12344), datagrams(s.Status.LoadBalancer.Ingress[1].IP, 80, 12345),
		datagrams(near[0], 80, 12346), datagrams(near[1], 80, 12347))
	follows := func(pod string, flows ...int) {
		t.Helper()
		for _, n := range flows {
			from.until(fmt.Sprintf("answered by %q on flow %d", pod, n), answeredBy(n, pod))
		}
	}
	all, local := []int{0, 1, 2, 3, 4, 5}, []int{anyFlows, anyFlows + 1}
	follows("a1", all...)
	follows("", local...) // no endpoint on this node: nobody answers
	shared.apply(t, echoPod(ns, "a2", "node-3", 80))
	shared.must(t, "delete", "pod", "a1", "-n", ns, "--wait")
	follows("a2", all...)
	follows("", local...)
	shared.apply(t, echoPod(ns, "a3", "node-1", 80)) // flows that were dropped before must not stay so
	follows("a3", local...)
	shared.must(t, "delete", "pod", "a2", "-n", ns, "--wait")
	follows("a3", all...)
	shared.must(t, "delete", "pod", "a3", "-n", ns, "--wait")
	follows("", append(all, local...)...)
	shared.apply(t, echoPod(ns, "a4", "node-1", 80))
	follows("a4", append(all, local...)...)
}

// gated is an echo pod that is ready while a file of this host is there; more is added to its spec.
func gated(ns, name, node, file, more string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s, labels: {app: web}}, spec: {nodeName: %s, %s"+
		"containers: [{name: echo, image: podwire.dev/echo, ports: [{containerPort: 80, name: web}, {containerPort: 90, protocol: UDP, name: dgram}], "+
		"readinessProbe: {exec: {command: [test, -e, %q]}, periodSeconds: 1, failureThreshold: 1}}]}}\n", name, ns, node, more, file)
}

// TestUnreadyAndTerminating: unready and terminating pods are reached where addresses are published all the same. A client
// that was there before the first endpoint was ready reaches it.
func TestUnreadyAndTerminating(t *testing.T) {
	const ns = "unready"
	shared.namespace(t, ns)
	file := filepath.Join(t.TempDir(), "ready")
	// A pod that never becomes Ready keeps `apply --wait` waiting, so it is applied without, and the endpoint waited for.
	shared.apply(t, webService(ns, "s", "type: NodePort, ")+webService(ns, "all", "type: NodePort, publishNotReadyAddresses: true, "))
	shared.mustWith(t, gated(ns, "a1", "node-2", file, "terminationGracePeriodSeconds: 1, "), "apply", "-f", "-")
	s, all := shared.service(t, ns, "s"), shared.service(t, ns, "all")
	from := shared.send(t, ns, "sender", "node-1", "app: sender", datagrams(s.Spec.ClusterIP, 80, 12350), datagrams(all.Spec.ClusterIP, 80, 12351))
	from.until("answered by the unready pod", answeredBy(1, "a1"))
	node := shared.nodeAddresses(t, "node-3")
	for family := range 2 {
		wantFrom(t, inPod(ns, "sender"), "tcp", all.Spec.ClusterIPs[family], 80, "a1")
		wantFrom(t, outside(), "tcp", node[family], all.Spec.Ports[0].NodePort, "a1")
		wantCode(t, inPod(ns, "sender"), refused, "tcp", s.Spec.ClusterIPs[family], 80)
	}
	if before := from.more(1)[0]; before.Answered > 0 {
		t.Errorf("an unready pod was reached through the Service that does not publish it: %+v", before)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	from.until("answered once the pod is ready", answeredBy(0, "a1"))

	// A terminating pod leaves a Service, but for the one that publishes it as long as it runs.
	slow := strings.ReplaceAll(gated(ns, "a2", "node-3", file, "terminationGracePeriodSeconds: 60, "),
		"name: echo,", "name: echo, lifecycle: {preStop: {sleep: {seconds: 50}}},")
	shared.apply(t, slow)
	wantFrom(t, inPod(ns, "sender"), "tcp", s.Spec.ClusterIP, 80, "a1", "a2")
	shared.must(t, "delete", "pod", "a2", "-n", ns)
	shared.apply(t, webService(ns, "s", "type: NodePort, externalTrafficPolicy: Cluster, ")) // its receipt is the deletion's, too
	for family := range 2 {
		wantFrom(t, inPod(ns, "sender"), "tcp", s.Spec.ClusterIPs[family], 80, "a1")
		wantFrom(t, inPod(ns, "sender"), "tcp", all.Spec.ClusterIPs[family], 80, "a1", "a2")
		wantFrom(t, outside(), "tcp", node[family], all.Spec.Ports[0].NodePort, "a1", "a2")
	}
	shared.must(t, "delete", "pod", "a2", "-n", ns, "--grace-period", "0", "--wait")
	wantFrom(t, inPod(ns, "sender"), "tcp", all.Spec.ClusterIP, 80, "a1")
}

// TestTheLastEndpointsTerminate: where no endpoint is ready, those that terminate and still serve get the connections: of
// all, or of the node where a policy is Local (KEP-1669).
func TestTheLastEndpointsTerminate(t *testing.T) {
	const ns = "last"
	shared.namespace(t, ns)
	file := filepath.Join(t.TempDir(), "ready")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	slow := func(name, node string) string {
		return strings.ReplaceAll(gated(ns, name, node, file, "terminationGracePeriodSeconds: 600, "),
			"name: echo,", "name: echo, lifecycle: {preStop: {sleep: {seconds: 500}}},")
	}
	shared.apply(t, slow("a1", "node-1")+slow("a2", "node-2")+clientPod(ns, "c1", "node-1")+clientPod(ns, "c2", "node-2")+
		webService(ns, "any", "type: NodePort, ")+webService(ns, "near", "type: NodePort, internalTrafficPolicy: Local, externalTrafficPolicy: Local, "))
	anyone, near := shared.service(t, ns, "any"), shared.service(t, ns, "near")
	both := [][]string{{"a1", "a2"}, {"a1", "a2"}} // who answers a client of node-1, and of node-2
	check := func(what string, all, local [][]string) {
		t.Helper()
		t.Log(what)
		for n, node := range []string{"node-1", "node-2"} {
			for family, address := range shared.nodeAddresses(t, node) {
				for _, protocol := range []string{"tcp", "udp"} {
					for _, from := range []place{inPod(ns, fmt.Sprintf("c%d", n+1)), onNode(node)} {
						// A datagram from a port that was used a moment ago goes on to an endpoint that now terminates, as with kube-proxy.
						if protocol == "tcp" || len(all[n]) == 2 {
							wantFrom(t, from, protocol, anyone.Spec.ClusterIPs[family], 80, all[n]...)
						}
						if local[n] == nil {
							wantCode(t, from, denied, protocol, near.Spec.ClusterIPs[family], 80)
						} else {
							wantFrom(t, from, protocol, near.Spec.ClusterIPs[family], 80, local[n]...)
						}
					}
				}
				wantFrom(t, outside(), "tcp", address, anyone.Spec.Ports[0].NodePort, all[n]...)
				if local[n] != nil {
					wantFrom(t, outside(), "tcp", address, near.Spec.Ports[0].NodePort, local[n]...)
				}
			}
		}
	}
	settle := func() { // its receipt is that of all that was before
		shared.apply(t, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: settle, namespace: %s, annotations: {n: %q}}, spec: {ports: [{port: 1}]}}",
			ns, strconv.FormatInt(time.Now().UnixNano(), 10)))
	}
	check("both are ready", both, [][]string{{"a1"}, {"a2"}})
	shared.must(t, "delete", "pod", "a1", "-n", ns)
	settle()
	check("a1 terminates: only where it is the last of its node", [][]string{{"a2"}, {"a2"}}, [][]string{{"a1"}, {"a2"}})
	shared.must(t, "delete", "pod", "a2", "-n", ns)
	settle()
	check("both terminate", both, [][]string{{"a1"}, {"a2"}})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	await(t, "no endpoint serves", func() error {
		_, a := shared.answers(inPod(ns, "c1"), 1, "tcp", anyone.Spec.ClusterIP, 80)
		if a.code != refused {
			return fmt.Errorf("exit %d: %s", a.code, a.text())
		}
		return nil
	})
	shared.mustWith(t, "", "delete", "pod", "a1", "a2", "-n", ns, "--grace-period", "0", "--wait")
}

// TestHostNetworkEndpoints: endpoints on a node's own network, from pods, nodes and the outside.
func TestHostNetworkEndpoints(t *testing.T) {
	const ns = "hostnet"
	shared.namespace(t, ns)
	host := strings.ReplaceAll(echoPod(ns, "h2", "node-2", 8088), "spec: {nodeName:", "spec: {hostNetwork: true, nodeName:")
	shared.apply(t, host+clientPod(ns, "c1", "node-1")+clientPod(ns, "c2", "node-2")+webService(ns, "s", "type: NodePort, ")+
		webService(ns, "near", "internalTrafficPolicy: Local, "))
	s, near := shared.service(t, ns, "s"), shared.service(t, ns, "near")
	for family := range 2 {
		for _, from := range []place{inPod(ns, "c1"), inPod(ns, "c2"), onNode("node-1"), onNode("node-2")} {
			wantFrom(t, from, "tcp", s.Spec.ClusterIPs[family], 80, "h2")
			wantFrom(t, from, "udp", s.Spec.ClusterIPs[family], 80, "h2")
		}
		for _, node := range []string{"node-1", "node-2"} {
			wantFrom(t, outside(), "tcp", shared.nodeAddresses(t, node)[family], s.Spec.Ports[0].NodePort, "h2")
		}
		wantFrom(t, inPod(ns, "c2"), "tcp", near.Spec.ClusterIPs[family], 80, "h2")
		wantFrom(t, onNode("node-2"), "tcp", near.Spec.ClusterIPs[family], 80, "h2")
		wantCode(t, inPod(ns, "c1"), denied, "tcp", near.Spec.ClusterIPs[family], 80)
		wantCode(t, onNode("node-1"), denied, "tcp", near.Spec.ClusterIPs[family], 80)
	}
}

// TestServiceFields: node ports that change and are given back, Services that share their pods, source ranges, and load
// balancers without node ports.
func TestServiceFields(t *testing.T) {
	const ns = "fields"
	shared.namespace(t, ns)
	shared.apply(t, echoPod(ns, "a1", "node-1", 80)+echoPod(ns, "a2", "node-2", 80)+clientPod(ns, "c3", "node-3")+
		webService(ns, "one", "type: NodePort, ")+webService(ns, "two", ""))
	one := shared.service(t, ns, "one")
	node := shared.nodeAddresses(t, "node-3")[0]
	port := func(n int) string {
		return fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: one, namespace: %s}, spec: {type: NodePort, selector: {app: web}, ports: [{name: t, port: 80, targetPort: web, nodePort: %d}]}}\n", ns, n)
	}
	before := one.Spec.Ports[0].NodePort
	next := 30000 + (before-30000+1717)%2700
	shared.apply(t, port(next))
	wantFrom(t, outside(), "tcp", node, next, "a1", "a2")
	if _, a := shared.answers(outside(), 1, "tcp", node, before); a.code == reached {
		t.Errorf("the node port before still answers: %s", a.text())
	}
	taken := strings.ReplaceAll(port(next), "name: one", "name: three")
	if a := shared.runWith(taken, "apply", "-f", "-"); a.code == 0 || !strings.Contains(a.err, strconv.Itoa(next)) {
		t.Errorf("a node port is given twice: exit %d: %s", a.code, a.text())
	}
	shared.must(t, "delete", "service", "one", "-n", ns, "--wait")
	wantFrom(t, inPod(ns, "c3"), "tcp", shared.service(t, ns, "two").Spec.ClusterIP, 80, "a1", "a2")
	shared.apply(t, taken)
	wantFrom(t, outside(), "tcp", node, next, "a1", "a2")

	shared.must(t, "delete", "pod", "a1", "-n", ns, "--wait")
	lb := func(more string) service {
		shared.apply(t, webService(ns, "lb", "type: LoadBalancer, "+more))
		return shared.service(t, ns, "lb")
	}
	bare := lb("allocateLoadBalancerNodePorts: false, ")
	for _, p := range bare.Spec.Ports {
		if p.NodePort != 0 {
			t.Errorf("a node port was allocated: %+v", p)
		}
	}
	ingress := bare.Status.LoadBalancer.Ingress[0].IP
	wantFrom(t, outside(), "tcp", ingress, 80, "a2")
	lb("loadBalancerSourceRanges: [192.0.2.0/24, '2001:db8::/32'], ")
	wantCode(t, outside(), denied, "tcp", ingress, 80)
	lb("loadBalancerSourceRanges: [" + shared.outsideAddress(t) + "/32, '2001:db8::/32'], ")
	wantFrom(t, outside(), "tcp", ingress, 80, "a2")
	if n := slices.IndexFunc(lb("").Spec.Ports, func(p struct {
		Name           string
		Port, NodePort int
	}) bool {
		return p.NodePort == 0
	}); n >= 0 {
		t.Errorf("port %d has no node port", n)
	}
}

// TestFirstPacketAtTheNewBackend measures how long a change takes until a packet sees it. It prints and asserts no time.
func TestFirstPacketAtTheNewBackend(t *testing.T) {
	const ns = "first"
	shared.namespace(t, ns)
	selecting := func(app string) string {
		return fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: %s}, spec: {selector: {app: %s}, ports: [{port: 80}]}}\n", ns, app)
	}
	manifests := selecting("b0")
	const backends = 8
	for n := range backends {
		name := fmt.Sprintf("b%d", n)
		manifests += strings.ReplaceAll(echoPod(ns, name, fmt.Sprintf("node-%d", n%3+1), 80), "app: web", "app: "+name)
	}
	shared.apply(t, manifests)
	from := shared.send(t, ns, "sender", "node-1", "app: sender",
		flow{Protocol: "tcp", Target: net.JoinHostPort(shared.service(t, ns, "s").Spec.ClusterIP, "80"), Every: time.Millisecond})
	var packets, receipts []time.Duration
	for n := 1; n < backends; n++ {
		name := fmt.Sprintf("b%d", n)
		began := time.Now()
		shared.apply(t, selecting(name))
		receipts = append(receipts, time.Since(began))
		all := from.until("answered by "+name, func(all []counts) bool { return !all[0].First[name].IsZero() })
		packets = append(packets, all[0].First[name].Sub(began))
	}
	slices.Sort(packets)
	slices.Sort(receipts)
	t.Logf("from the start of `podwire apply` to the first packet at the new backend: %s; to its receipt: %s", packets, receipts)
	from.judge(nil)
}
