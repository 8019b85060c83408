package e2e

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// place is where a command runs: exec's arguments.
type place []string

func inPod(ns, name string) place { return place{"-n", ns, name} }
func onNode(name string) place    { return place{"--node", name} }
func outside() place              { return place{"--outside"} }

func (i *instance) exec(from place, command ...string) answer {
	return i.run(append(append(append([]string{"exec"}, from...), "--"), command...)...)
}

// answers sends n probes and returns who answered, each name as often as it did, sorted, and the exit status.
func (i *instance) answers(from place, n int, protocol, host string, port int, more ...string) ([]string, answer) {
	a := i.exec(from, append([]string{"probe", protocol, net.JoinHostPort(host, strconv.Itoa(port)),
		"--count", strconv.Itoa(n), "--interval", "1ms", "--timeout", "1s"}, more...)...)
	var who []string
	for line := range strings.Lines(a.out) {
		rest, ok := strings.CutPrefix(line, "reached: ")
		if f := strings.Fields(rest); ok && len(f) > 0 {
			who = append(who, f[0])
		}
	}
	slices.Sort(who)
	return who, a
}

// wantFrom wants every one of n probes answered, and by exactly these pods.
func wantFrom(t *testing.T, from place, protocol, host string, port int, pods ...string) {
	t.Helper()
	n := 12 * len(pods) // a pod of three is missed by all of 36 with a probability of 5e-7
	who, a := shared.answers(from, n, protocol, host, port)
	if len(who) != n || !slices.Equal(slices.Compact(slices.Clone(who)), pods) {
		t.Errorf("%v -> %s %s:%d: %d of %d answers, from %v, want %v\n%s%s",
			from, protocol, host, port, len(who), n, slices.Compact(slices.Clone(who)), pods, a.out, a.err)
	}
}

// wantCode wants a probe to exit so.
func wantCode(t *testing.T, from place, code int, protocol, host string, port int) {
	t.Helper()
	_, a := shared.answers(from, 1, protocol, host, port)
	if a.code != code {
		t.Errorf("%v -> %s %s:%d: exit %d, want %d: %s", from, protocol, host, port, a.code, code, a.text())
	}
}

// echoPod is an echo pod with TCP port tcp, which is called web, and UDP port 90, which is called dgram.
func echoPod(ns, name, node string, tcp int) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s, labels: {app: web}}, spec: {nodeName: %s, "+
		"terminationGracePeriodSeconds: 1, containers: [{name: echo, image: podwire.dev/echo, ports: [{containerPort: %d, name: web}, "+
		"{containerPort: 90, protocol: UDP, name: dgram}]}]}}\n", name, ns, node, tcp)
}

func clientPod(ns, name, node string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s}, spec: {nodeName: %s, "+
		"terminationGracePeriodSeconds: 1, containers: [{name: echo, image: podwire.dev/echo}]}}\n", name, ns, node)
}

// webService is a dual-stack Service over the echo pods; more is added to its spec.
func webService(ns, name, more string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: %s}, spec: {%sipFamilyPolicy: PreferDualStack, "+
		"selector: {app: web}, ports: [{name: t, port: 80, targetPort: web}, {name: u, port: 80, protocol: UDP, targetPort: dgram}]}}\n", name, ns, more)
}

// service is what the tests read of a Service.
type service struct {
	Spec struct {
		ClusterIP  string
		ClusterIPs []string
		Ports      []struct {
			Name           string
			Port, NodePort int
		}
	}
	Status struct {
		LoadBalancer struct{ Ingress []struct{ IP string } }
	}
}

func (i *instance) service(t *testing.T, ns, name string) service {
	t.Helper()
	var s service
	i.get(t, &s, "service", name, "-n", ns)
	return s
}

// nodeAddresses are the InternalIPs of a node, IPv4 first.
func (i *instance) nodeAddresses(t *testing.T, name string) []string {
	t.Helper()
	var n struct {
		Status struct {
			Addresses []struct{ Type, Address string }
		}
	}
	i.get(t, &n, "node", name)
	var out []string
	for _, a := range n.Status.Addresses {
		if a.Type == "InternalIP" {
			out = append(out, a.Address)
		}
	}
	return out
}

// TestServiceMatrix sends from everywhere, endpoints included, to every kind of Service address in both families and
// protocols. a1 and a3 listen on 80, a2 on 8080 under the same name.
func TestServiceMatrix(t *testing.T) {
	const ns = "matrix"
	shared.namespace(t, ns)
	shared.apply(t, echoPod(ns, "a1", "node-1", 80)+echoPod(ns, "a2", "node-2", 8080)+echoPod(ns, "a3", "node-2", 80)+
		clientPod(ns, "c1", "node-1")+clientPod(ns, "c3", "node-3")+
		webService(ns, "all", "type: NodePort, ")+
		webService(ns, "lb", "type: LoadBalancer, ")+
		webService(ns, "ext", "externalIPs: [203.0.113.250, '2001:db8:113::250'], ")+
		webService(ns, "near", "internalTrafficPolicy: Local, ")+
		webService(ns, "local", "type: NodePort, externalTrafficPolicy: Local, "))
	everybody := []string{"a1", "a2", "a3"}
	all, near, local, lb := shared.service(t, ns, "all"), shared.service(t, ns, "near"), shared.service(t, ns, "local"), shared.service(t, ns, "lb")
	ext := []string{"203.0.113.250", "2001:db8:113::250"}
	inside := []place{inPod(ns, "c1"), inPod(ns, "c3"), inPod(ns, "a1"), onNode("node-1"), onNode("node-3")}
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, protocol := range []string{"tcp", "udp"} {
			t.Run(name+"/"+protocol, func(t *testing.T) {
				for _, from := range inside {
					wantFrom(t, from, protocol, all.Spec.ClusterIPs[family], 80, everybody...)
					wantFrom(t, from, protocol, local.Spec.ClusterIPs[family], 80, everybody...)
					wantFrom(t, from, protocol, lb.Status.LoadBalancer.Ingress[family].IP, 80, everybody...)
				}
				for _, from := range []place{inPod(ns, "c1"), inPod(ns, "a2"), outside()} {
					for _, node := range []string{"node-1", "node-2", "node-3"} {
						wantFrom(t, from, protocol, shared.nodeAddresses(t, node)[family], all.Spec.Ports[0].NodePort*(1-udp(protocol))+all.Spec.Ports[1].NodePort*udp(protocol), everybody...)
					}
				}
				wantFrom(t, outside(), protocol, lb.Status.LoadBalancer.Ingress[family].IP, 80, everybody...)
				wantFrom(t, inPod(ns, "c1"), protocol, ext[family], 80, everybody...)
				wantFrom(t, inPod(ns, "a3"), protocol, ext[family], 80, everybody...)

				wantFrom(t, inPod(ns, "c1"), protocol, near.Spec.ClusterIPs[family], 80, "a1")
				wantFrom(t, onNode("node-2"), protocol, near.Spec.ClusterIPs[family], 80, "a2", "a3")
				wantCode(t, inPod(ns, "c3"), denied, protocol, near.Spec.ClusterIPs[family], 80)

				port := local.Spec.Ports[udp(protocol)].NodePort
				wantFrom(t, outside(), protocol, shared.nodeAddresses(t, "node-1")[family], port, "a1")
				wantFrom(t, outside(), protocol, shared.nodeAddresses(t, "node-2")[family], port, "a2", "a3")
				wantCode(t, outside(), denied, protocol, shared.nodeAddresses(t, "node-3")[family], port)
			})
		}
	}
	t.Run("the client's address is kept by Local", func(t *testing.T) {
		a := shared.exec(outside(), "probe", "tcp", net.JoinHostPort(shared.nodeAddresses(t, "node-1")[0], strconv.Itoa(local.Spec.Ports[0].NodePort)))
		if want := "a1 " + shared.outsideAddress(t); a.code != reached || !strings.HasPrefix(a.out, want) {
			t.Errorf("%s, want %s", a.text(), want)
		}
	})
}

func udp(protocol string) int {
	if protocol == "udp" {
		return 1
	}
	return 0
}

func TestServiceWithoutEndpoints(t *testing.T) {
	const ns = "nobody"
	shared.namespace(t, ns)
	shared.apply(t, clientPod(ns, "c1", "node-1")+webService(ns, "none", "type: NodePort, "))
	s := shared.service(t, ns, "none")
	for family := range 2 {
		for _, protocol := range []string{"tcp", "udp"} {
			wantCode(t, inPod(ns, "c1"), refused, protocol, s.Spec.ClusterIPs[family], 80)
			wantCode(t, onNode("node-2"), refused, protocol, s.Spec.ClusterIPs[family], 80)
			wantCode(t, outside(), refused, protocol, shared.nodeAddresses(t, "node-3")[family], s.Spec.Ports[udp(protocol)].NodePort)
		}
	}
}

// TestServiceFollowsItsPods: endpoints come, go and come again; the Service is recreated; ports are added and removed.
func TestServiceFollowsItsPods(t *testing.T) {
	const ns = "follow"
	shared.namespace(t, ns)
	client := inPod(ns, "c3")
	shared.apply(t, clientPod(ns, "c3", "node-3")+webService(ns, "s", ""))
	vip := shared.service(t, ns, "s").Spec.ClusterIP
	wantCode(t, client, refused, "tcp", vip, 80)
	shared.apply(t, echoPod(ns, "a1", "node-1", 80))
	wantFrom(t, client, "tcp", vip, 80, "a1")
	shared.apply(t, echoPod(ns, "a2", "node-2", 8080))
	wantFrom(t, client, "tcp", vip, 80, "a1", "a2")
	shared.must(t, "delete", "pod", "a1", "-n", ns, "--wait")
	wantFrom(t, client, "tcp", vip, 80, "a2")
	shared.apply(t, echoPod(ns, "a1", "node-2", 80)) // the same name on another node
	wantFrom(t, client, "tcp", vip, 80, "a1", "a2")

	shared.must(t, "delete", "service", "s", "-n", ns, "--wait")
	if _, a := shared.answers(client, 1, "tcp", vip, 80); a.code == reached {
		t.Errorf("a deleted Service answers: %s", a.text())
	}
	shared.apply(t, webService(ns, "s", "clusterIP: "+vip+", "))
	wantFrom(t, client, "tcp", vip, 80, "a1", "a2")

	shared.apply(t, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: s, namespace: %s}, spec: {selector: {app: web}, "+
		"ports: [{name: t, port: 81, targetPort: web}, {name: v, port: 82, targetPort: 8080}]}}", ns))
	wantFrom(t, client, "tcp", vip, 81, "a1", "a2")
	wantCode(t, client, refused, "tcp", vip, 80)
	_, a := shared.answers(client, 20, "tcp", vip, 82)
	if !strings.Contains(a.out, "reached: a2") || !strings.Contains(a.out, "refused:") {
		t.Errorf("port 82 goes to 8080 of both pods, where only a2 listens: %s", a.text())
	}
	shared.must(t, "delete", "pod", "a1", "a2", "-n", ns, "--wait")
	wantCode(t, client, refused, "tcp", vip, 81)
}

func TestServiceChangesType(t *testing.T) {
	const ns = "types"
	shared.namespace(t, ns)
	shared.apply(t, echoPod(ns, "a1", "node-1", 80)+webService(ns, "s", ""))
	node := shared.nodeAddresses(t, "node-3")[0]
	vip := shared.service(t, ns, "s").Spec.ClusterIP

	shared.apply(t, webService(ns, "s", "type: NodePort, "))
	port := shared.service(t, ns, "s").Spec.Ports[0].NodePort
	wantFrom(t, outside(), "tcp", node, port, "a1")

	shared.apply(t, webService(ns, "s", "type: LoadBalancer, "))
	s := shared.service(t, ns, "s")
	if s.Spec.ClusterIP != vip || s.Spec.Ports[0].NodePort != port {
		t.Errorf("allocated values changed with the type: %+v, were %s and %d", s.Spec, vip, port)
	}
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		wantFrom(t, outside(), "tcp", ingress.IP, 80, "a1")
	}
	shared.apply(t, webService(ns, "s", "type: ClusterIP, "))
	if left := shared.service(t, ns, "s"); left.Spec.Ports[0].NodePort != 0 || len(left.Status.LoadBalancer.Ingress) != 0 {
		t.Errorf("ClusterIP kept %+v", left)
	}
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if _, a := shared.answers(outside(), 1, "tcp", ingress.IP, 80); a.code == reached {
			t.Errorf("the LoadBalancer address still answers: %s", a.text())
		}
	}
	if _, a := shared.answers(outside(), 1, "tcp", node, port); a.code == reached {
		t.Errorf("the node port still answers: %s", a.text())
	}
	wantFrom(t, onNode("node-2"), "tcp", vip, 80, "a1")

	shared.apply(t, "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: "+ns+"}, spec: {type: ExternalName, externalName: a.example}}")
	if left := shared.service(t, ns, "s"); left.Spec.ClusterIP != "" || len(left.Spec.ClusterIPs) != 0 {
		t.Errorf("ExternalName kept %+v", left.Spec)
	}
	if _, a := shared.answers(onNode("node-2"), 1, "tcp", vip, 80); a.code == reached {
		t.Errorf("the old ClusterIP still answers: %s", a.text())
	}
	shared.apply(t, webService(ns, "s", ""))
	wantFrom(t, onNode("node-2"), "tcp", shared.service(t, ns, "s").Spec.ClusterIP, 80, "a1")
}

func TestSessionAffinity(t *testing.T) {
	const ns = "sticky"
	shared.namespace(t, ns)
	shared.apply(t, echoPod(ns, "a1", "node-1", 80)+echoPod(ns, "a2", "node-2", 8080)+echoPod(ns, "a3", "node-3", 80)+
		clientPod(ns, "c1", "node-1")+webService(ns, "s", "type: NodePort, sessionAffinity: ClientIP, "))
	s := shared.service(t, ns, "s")
	one := func(from place, protocol, host string, port int) string {
		t.Helper()
		who, a := shared.answers(from, 24, protocol, host, port)
		if who = slices.Compact(who); len(who) != 1 {
			t.Fatalf("%v -> %s %s:%d: one client, answers from %v: %s", from, protocol, host, port, who, a.text())
		}
		return who[0]
	}
	for family := range 2 {
		for _, protocol := range []string{"tcp", "udp"} {
			one(inPod(ns, "c1"), protocol, s.Spec.ClusterIPs[family], 80)
			one(outside(), protocol, shared.nodeAddresses(t, "node-2")[family], s.Spec.Ports[udp(protocol)].NodePort)
		}
	}
	held := one(inPod(ns, "c1"), "tcp", s.Spec.ClusterIP, 80)
	shared.must(t, "delete", "pod", held, "-n", ns, "--wait")
	if next := one(inPod(ns, "c1"), "tcp", s.Spec.ClusterIP, 80); next == held {
		t.Errorf("%s answers after its deletion", held)
	}
	left := slices.DeleteFunc([]string{"a1", "a2", "a3"}, func(p string) bool { return p == held })
	shared.apply(t, webService(ns, "s", "type: NodePort, sessionAffinity: None, "))
	wantFrom(t, inPod(ns, "c1"), "tcp", s.Spec.ClusterIP, 80, left...)
	shared.apply(t, webService(ns, "s", "type: NodePort, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, "))
	one(inPod(ns, "c1"), "tcp", s.Spec.ClusterIP, 80)
}

// TestHandWrittenSlices: a Service without a selector, over several slices of both families.
func TestHandWrittenSlices(t *testing.T) {
	const ns = "slices"
	shared.namespace(t, ns)
	shared.apply(t, echoPod(ns, "a1", "node-1", 80)+echoPod(ns, "a2", "node-2", 8080)+echoPod(ns, "a3", "node-3", 80)+clientPod(ns, "c1", "node-1")+
		fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: %s}, spec: {ports: [{name: t, port: 80, targetPort: 9}]}}\n", ns))
	vip := shared.service(t, ns, "s").Spec.ClusterIP
	slice := func(name string, port int, endpoints ...string) string {
		return fmt.Sprintf("---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: %s, namespace: %s, labels: {kubernetes.io/service-name: s}}, "+
			"addressType: IPv4, ports: [{name: t, port: %d}], endpoints: [%s]}\n", name, ns, port, strings.Join(endpoints, ", "))
	}
	at := func(pod, more string) string {
		return "{addresses: [" + podAddress(t, ns, pod) + "]" + more + "}"
	}
	wantCode(t, inPod(ns, "c1"), refused, "tcp", vip, 80)
	shared.apply(t, slice("s-1", 80, at("a1", ""))+slice("s-2", 8080, at("a2", "")))
	wantFrom(t, inPod(ns, "c1"), "tcp", vip, 80, "a1", "a2")
	shared.apply(t, slice("s-1", 80, at("a1", ""), at("a3", ""))) // absent ready means true
	wantFrom(t, inPod(ns, "c1"), "tcp", vip, 80, "a1", "a2", "a3")
	shared.apply(t, slice("s-1", 80, at("a1", ", conditions: {ready: false}"), at("a3", "")))
	wantFrom(t, inPod(ns, "c1"), "tcp", vip, 80, "a2", "a3")
	shared.apply(t, slice("s-1", 80, at("a1", ", conditions: {ready: false, serving: true, terminating: true}")))
	wantFrom(t, inPod(ns, "c1"), "tcp", vip, 80, "a2")
	shared.must(t, "delete", "endpointslice", "s-2", "-n", ns, "--wait")
	wantFrom(t, inPod(ns, "c1"), "tcp", vip, 80, "a1") // only terminating ones are left
	shared.must(t, "delete", "endpointslice", "s-1", "-n", ns, "--wait")
	wantCode(t, inPod(ns, "c1"), refused, "tcp", vip, 80)
}

// TestProxyNameLabel: a Service of another proxy is not ours.
func TestProxyNameLabel(t *testing.T) {
	const ns = "proxyname"
	shared.namespace(t, ns)
	labelled := func(label string) string {
		return fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: %s, labels: {%s}}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: web}]}}\n", ns, label)
	}
	shared.apply(t, echoPod(ns, "a1", "node-1", 80)+clientPod(ns, "c2", "node-2")+labelled(""))
	vip := shared.service(t, ns, "s").Spec.ClusterIP
	wantFrom(t, inPod(ns, "c2"), "tcp", vip, 80, "a1")
	shared.apply(t, labelled("service.kubernetes.io/service-proxy-name: foo"))
	if _, a := shared.answers(inPod(ns, "c2"), 1, "tcp", vip, 80); a.code == reached {
		t.Errorf("served in spite of the label: %s", a.text())
	}
	shared.apply(t, labelled(""))
	wantFrom(t, inPod(ns, "c2"), "tcp", vip, 80, "a1")
}
