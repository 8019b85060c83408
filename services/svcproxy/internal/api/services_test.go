package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	"podwire.dev/services/svcproxy/internal/api"
	"podwire.dev/services/svcproxy/internal/lb"
	"podwire.dev/services/svcproxy/internal/planner"
	"podwire.dev/services/svcproxy/internal/proxytest"
)

func wantClaims(t *testing.T, b *proxytest.Bench, want ...string) {
	t.Helper()
	if got := b.Claims(); !slices.Equal(got, want) {
		t.Errorf("ipam holds %q, want %q", got, want)
	}
}

func wantPort(t *testing.T, b *proxytest.Bench, what string, check func(nodestate.ServicePort) bool) {
	t.Helper()
	if row, ok := b.ServicePort("web"); !ok || !check(row) {
		t.Errorf("%s: nodes hold %+v (%v)", what, row, ok)
	}
}

// TestTypeDance is svc-121: a Service changes its type and ports in place, and keeps or drops values as Kubernetes does.
func TestTypeDance(t *testing.T) {
	b := proxytest.New(t)
	b.IPAM.Balancers = true
	b.Node("node-1", "True", "172.30.0.2")
	b.Apply("web", `{ports: [{port: 80}]}`)
	wantClaims(t, b, "web service 10.96.1.1")

	b.Apply("web", `{type: NodePort, ports: [{port: 80}]}`)
	wantClaims(t, b, "web node-port 31001", "web service 10.96.1.1")
	wantPort(t, b, "NodePort", func(r nodestate.ServicePort) bool {
		return r.NodePort == 31001 && r.ClusterAddresses[0].String() == "10.96.1.1" && slices.Equal(r.NodePortFamilies, []uint8{4})
	})

	o := b.Apply("web", `{type: LoadBalancer, ports: [{port: 80}]}`)
	if in := o.GetStatus().GetLoadBalancer().GetIngress(); len(in) != 1 || in[0].GetIp() != "198.51.100.1" || in[0].GetIpMode() != "VIP" {
		t.Errorf("ingress %v", in)
	}
	wantClaims(t, b, "web load-balancer 198.51.100.1", "web node-port 31001", "web service 10.96.1.1")
	if _, ok := b.Rows.Get(nodestate.Ref{Table: nodestate.TableAnnouncements, Key: "198.51.100.1"}); !ok {
		t.Error("nobody announces the address")
	}

	b.Apply("web", `{type: LoadBalancer, ports: [{port: 80, nodePort: 30123}]}`)
	wantClaims(t, b, "web load-balancer 198.51.100.1", "web node-port 30123", "web service 10.96.1.1")

	b.Apply("web", `{type: LoadBalancer, ports: [{port: 81}]}`)
	wantPort(t, b, "another port", func(r nodestate.ServicePort) bool { return r.Port == 81 && r.NodePort == 30123 })

	o = b.Apply("web", `{type: ClusterIP, ports: [{port: 81}]}`)
	wantClaims(t, b, "web service 10.96.1.1")
	if len(o.GetStatus().GetLoadBalancer().GetIngress()) > 0 || len(b.Get("web").GetMetadata().GetAnnotations()) > 0 {
		t.Errorf("left behind: %v, %v", o.GetStatus(), b.Get("web").GetMetadata().GetAnnotations())
	}
	wantPort(t, b, "ClusterIP", func(r nodestate.ServicePort) bool {
		return r.NodePort == 0 && len(r.LoadBalancerAddresses) == 0
	})

	o = b.Apply("web", `{type: ExternalName, externalName: example.com, ports: [{port: 81}]}`)
	wantClaims(t, b)
	if o.GetSpec().GetClusterIp() != "" || b.Rows.Len() != 0 {
		t.Errorf("clusterIP %q, %d rows", o.GetSpec().GetClusterIp(), b.Rows.Len())
	}

	b.Apply("web", `{ports: [{port: 80}]}`)
	wantClaims(t, b, "web service 10.96.1.2")
	if _, err := b.Services.Delete(b.Ctx(), &svcproxyv1.ServiceServiceDeleteRequest{Namespace: "default", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	b.Settle()
	wantClaims(t, b)
	if b.Rows.Len() != 0 {
		t.Errorf("%d rows are left", b.Rows.Len())
	}
}

func TestCollisions(t *testing.T) {
	b := proxytest.New(t)
	b.Apply("first", `{type: NodePort, clusterIP: 10.96.0.7, ports: [{port: 80, nodePort: 30007}]}`)
	for _, c := range []struct{ name, spec, want string }{
		{"node port", `{type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81, nodePort: 30007}]}`,
			`spec.ports[1].nodePort: "30007": provided port is already allocated`},
		{"cluster address", `{clusterIP: 10.96.0.7, ports: [{port: 80}]}`,
			`spec.clusterIPs[0]: "10.96.0.7": failed to allocate IP 10.96.0.7: provided IP is already allocated`},
		{"node port out of range", `{type: NodePort, ports: [{port: 80, nodePort: 80}]}`,
			`spec.ports[0].nodePort: "80": provided port is not in the valid range. The range of valid ports is 30000-32767`},
		{"address out of range", `{clusterIP: 192.0.2.1, ports: [{port: 80}]}`,
			`spec.clusterIPs[0]: "192.0.2.1": failed to allocate IP 192.0.2.1: provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16, fd00:10:96::/112`},
	} {
		err := b.ApplyError("second", c.spec)
		if !errs.Is(err, errs.Invalid) || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	wantClaims(t, b, "first node-port 30007", "first service 10.96.0.7")
	if _, err := b.Services.Delete(b.Ctx(), &svcproxyv1.ServiceServiceDeleteRequest{Namespace: "default", Name: "first"}); err != nil {
		t.Fatal(err)
	}
	b.Apply("second", `{type: NodePort, ports: [{port: 80, nodePort: 30007}]}`)
}

func TestDualStack(t *testing.T) {
	b := proxytest.New(t)
	o := b.Apply("web", `{ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}`)
	if got := o.GetSpec().GetClusterIps(); !slices.Equal(got, []string{"fd00:10:96::101", "10.96.1.1"}) || o.GetSpec().GetClusterIp() != got[0] {
		t.Errorf("clusterIPs %v, clusterIP %s", got, o.GetSpec().GetClusterIp())
	}
	o = b.Apply("web", `{ipFamilyPolicy: SingleStack, ports: [{port: 80}]}`)
	if got := o.GetSpec().GetClusterIps(); !slices.Equal(got, []string{"fd00:10:96::101"}) {
		t.Errorf("one stack: %v", got)
	}
	wantClaims(t, b, "web service fd00:10:96::101")
	b.Apply("web", `{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}`)
	wantClaims(t, b, "web service 10.96.1.2", "web service fd00:10:96::101")

	o = b.Apply("dns", `{type: NodePort, ports: [{name: t, port: 53}, {name: u, port: 53, protocol: UDP}]}`)
	if p := o.GetSpec().GetPorts(); p[0].GetNodePort() != 31001 || p[1].GetNodePort() != 31001 {
		t.Errorf("one port, two protocols: %v", p)
	}
}

func TestBalancer(t *testing.T) {
	b := proxytest.New(t)
	o := b.Apply("web", `{type: LoadBalancer, externalTrafficPolicy: Local, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]}`)
	if o.GetSpec().GetPorts()[0].GetNodePort() != 0 || o.GetSpec().GetHealthCheckNodePort() != 31001 || len(o.GetStatus().GetLoadBalancer().GetIngress()) != 0 {
		t.Errorf("without addresses: %v %v", o.GetSpec(), o.GetStatus())
	}
	b.IPAM.Balancers = true
	o = b.Apply("web", `{type: LoadBalancer, loadBalancerIP: 198.51.100.99, ports: [{port: 80}]}`)
	wantClaims(t, b, "web load-balancer 198.51.100.99", "web node-port 31002", "web service 10.96.1.1")
	if o.GetSpec().GetHealthCheckNodePort() != 0 {
		t.Errorf("health check port %d is kept", o.GetSpec().GetHealthCheckNodePort())
	}
	err := b.ApplyError("other", `{type: LoadBalancer, loadBalancerIP: 198.51.100.99, ports: [{port: 80}]}`)
	if !strings.HasSuffix(err.Error(), `spec.loadBalancerIP: "198.51.100.99": failed to allocate IP 198.51.100.99: provided IP is already allocated`) {
		t.Error(err)
	}
	b.Apply("foreign", `{type: LoadBalancer, loadBalancerClass: example.com/x, ports: [{port: 80}]}`)
	status := func(name string) error {
		o := b.Service(name, "{}")
		o.Status = &objectv1.ServiceStatus{LoadBalancer: &objectv1.LoadBalancerStatus{Ingress: []*objectv1.LoadBalancerIngress{{Ip: "203.0.113.1"}}}}
		_, err := b.Services.UpdateStatus(b.Ctx(), &svcproxyv1.ServiceServiceUpdateStatusRequest{Object: o})
		return err
	}
	if err := status("foreign"); err != nil {
		t.Error(err)
	}
	if err := status("web"); !errs.Is(err, errs.Invalid) {
		t.Errorf("the status of ours: %v", err)
	}
}

// TestNoNeedlessHop: what needs nothing new of ipam is applied without it, and an identical Apply writes nothing.
func TestNoNeedlessHop(t *testing.T) {
	b := proxytest.New(t)
	b.Node("node-1", "True", "172.30.0.2")
	b.IPAM.Balancers = true
	before := b.Apply("web", `{type: LoadBalancer, ports: [{port: 80}]}`)
	b.IPAM.Down = true
	resp, err := b.Services.Apply(b.Ctx(), &svcproxyv1.ServiceServiceApplyRequest{Object: b.Service("web", `{type: LoadBalancer, ports: [{port: 80}]}`)})
	if err != nil || resp.GetOutcome() != objectv1.Outcome_OUTCOME_UNCHANGED {
		t.Errorf("again: %v, %v", resp.GetOutcome(), err)
	}
	after := b.Apply("web", `{type: LoadBalancer, selector: {app: x}, ports: [{port: 80}]}`)
	if after.GetMetadata().GetGeneration() != before.GetMetadata().GetGeneration()+1 || after.GetMetadata().GetAnnotations()[lb.AnnotationAnnouncer] != "node-1" {
		t.Errorf("metadata %v", after.GetMetadata())
	}
	if err := b.ApplyError("new", `{ports: [{port: 80}]}`); !errs.Is(err, errs.Unavailable) {
		t.Error(err)
	}
}

func TestDryRun(t *testing.T) {
	b := proxytest.New(t)
	resp, err := b.Services.Apply(b.Ctx(), &svcproxyv1.ServiceServiceApplyRequest{Object: b.Service("web", `{type: NodePort, ports: [{port: 80}]}`), DryRun: true})
	if err != nil || resp.GetObject().GetSpec().GetClusterIp() == "" || resp.GetObject().GetSpec().GetPorts()[0].GetNodePort() == 0 {
		t.Errorf("%v %v", resp, err)
	}
	wantClaims(t, b)
}

// TestLostRace: a Service that another writer creates first, and one whose creation fails, leave no claims behind.
func TestLostRace(t *testing.T) {
	b := proxytest.New(t)
	b.IPAM.Claimed = func() {
		if _, err := b.Services.Apply(t.Context(), &svcproxyv1.ServiceServiceApplyRequest{Object: b.Service("web", `{ports: [{port: 80}]}`)}); err != nil {
			t.Error(err)
		}
	}
	absent := int64(0)
	_, err := b.Services.Apply(t.Context(), &svcproxyv1.ServiceServiceApplyRequest{Object: b.Service("web", `{ports: [{port: 81}]}`), ExpectedRevision: &absent})
	if err == nil {
		t.Fatal("both were created")
	}
	b.Settle()
	if got := b.Claims(); len(got) != 1 || b.Get("web").GetSpec().GetClusterIp() != strings.TrimPrefix(got[0], "web service ") {
		t.Errorf("ipam holds %v for %v", got, b.Get("web").GetSpec())
	}
}

func TestSlicesAPI(t *testing.T) {
	b := proxytest.New(t)
	slice := func(kind string) *objectv1.EndpointSlice {
		return b.Parse(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: x, namespace: default}, addressType: ` + kind + `, endpoints: [], ports: [{port: 80}]}`).(*objectv1.EndpointSlice)
	}
	if _, err := b.Slices.Apply(b.Ctx(), &svcproxyv1.EndpointSliceServiceApplyRequest{Object: slice("IPv4")}); err != nil {
		t.Fatal(err)
	}
	_, err := b.Slices.Apply(b.Ctx(), &svcproxyv1.EndpointSliceServiceApplyRequest{Object: slice("IPv6")})
	if err == nil || !strings.HasSuffix(err.Error(), `addressType: "IPv6": field is immutable`) {
		t.Error(err)
	}
	list, err := b.Slices.List(b.Ctx(), &svcproxyv1.EndpointSliceServiceListRequest{Namespace: "default"})
	if err != nil || len(list.GetItems()) != 1 {
		t.Errorf("%v %v", list, err)
	}
	if _, err := b.Slices.Delete(b.Ctx(), &svcproxyv1.EndpointSliceServiceDeleteRequest{Namespace: "default", Name: "x"}); err != nil {
		t.Error(err)
	}
	if _, err := b.Slices.Get(b.Ctx(), &svcproxyv1.EndpointSliceServiceGetRequest{Namespace: "default", Name: "x"}); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

// TestBasicEndpoint is svc-003 and svc-059: endpoints follow the Pods, and go with the Service.
func TestBasicEndpoint(t *testing.T) {
	b := proxytest.New(t)
	b.Apply("web", `{selector: {app: web}, ports: [{port: 80}]}`)
	endpoints := func() int { return len(b.Rows.Rows(nodestate.TableEndpoints)) }
	slicesOf := func() []*objectv1.EndpointSlice {
		list, err := b.Slices.List(b.Ctx(), &svcproxyv1.EndpointSliceServiceListRequest{
			Namespace: "default", LabelSelector: lb.LabelServiceName + "=web," + lb.LabelManagedBy + "=" + lb.ManagedBy,
		})
		if err != nil {
			t.Fatal(err)
		}
		return list.GetItems()
	}
	if n := endpoints(); n != 0 || len(slicesOf()) != 1 || len(slicesOf()[0].GetEndpoints()) != 0 {
		t.Errorf("no pods: %d rows, slices %v", n, slicesOf())
	}
	for i, step := range []func(){
		func() { b.Pod("a", "web", "10.244.0.1") },
		func() { b.Pod("b", "web", "10.244.0.2") },
		func() { b.Remove(store.Key{Kind: planner.KindPod, Namespace: "default", Name: "a"}) },
		func() { b.Remove(store.Key{Kind: planner.KindPod, Namespace: "default", Name: "b"}) },
	} {
		step()
		b.Settle()
		if want := []int{1, 2, 1, 0}[i]; endpoints() != want {
			t.Errorf("step %d: %d endpoints", i, endpoints())
		}
	}
	owner := slicesOf()[0].GetMetadata().GetOwnerReferences()
	if len(owner) != 1 || owner[0].GetUid() != b.Get("web").GetMetadata().GetUid() || !owner[0].GetController() {
		t.Errorf("owner %v", owner)
	}
	if d := b.Replan(); !d.Empty() {
		t.Errorf("a new World holds other rows: %v", d)
	}
	if _, err := b.Services.Delete(b.Ctx(), &svcproxyv1.ServiceServiceDeleteRequest{Namespace: "default", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	b.Settle()
	if len(slicesOf()) != 0 {
		t.Errorf("left: %v", slicesOf())
	}
}

func TestLookup(t *testing.T) {
	b := proxytest.New(t)
	b.IPAM.Balancers = true
	b.Node("node-1", "True", "172.30.0.2")
	b.Node("node-2", "True", "172.30.0.3")
	b.Pod("a", "web", "10.244.0.1")
	b.Apply("web", `{type: LoadBalancer, externalTrafficPolicy: Local, externalIPs: [203.0.113.250], selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}`)
	b.Apply("head", `{clusterIP: None, selector: {app: web}, ports: [{port: 80}]}`)
	b.Apply("none", `{ports: [{name: a, port: 80}, {name: b, port: 81}]}`)
	b.Apply("name", `{type: ExternalName, externalName: example.com}`)
	lookups := api.NewLookups(b, b.Planner)
	for _, c := range []struct {
		name, destination, ns string
		port                  uint32
		node                  string
		match                 svcproxyv1.LookupResponse_Match
		backends              int
		reason                string
	}{
		{"cluster address", "10.96.1.1", "", 80, "", svcproxyv1.LookupResponse_MATCH_CLUSTER_IP, 1, "1 of 1 endpoints of default/web"},
		{"name", "web.default.svc.cluster.local", "", 0, "node-2", svcproxyv1.LookupResponse_MATCH_CLUSTER_IP, 1, "1 of 1 endpoints of default/web"},
		{"bare name", "web", "default", 80, "", svcproxyv1.LookupResponse_MATCH_CLUSTER_IP, 1, "1 of 1 endpoints of default/web"},
		{"balancer", "198.51.100.1", "", 80, "node-2", svcproxyv1.LookupResponse_MATCH_LOAD_BALANCER, 1,
			"1 of 1 endpoints of default/web; externalTrafficPolicy Local is for clients outside only"},
		{"external", "203.0.113.250", "", 80, "node-1", svcproxyv1.LookupResponse_MATCH_EXTERNAL_IP, 1,
			"1 of 1 endpoints of default/web; externalTrafficPolicy Local is for clients outside only"},
		{"node port", "172.30.0.3", "", 31001, "", svcproxyv1.LookupResponse_MATCH_NODE_PORT, 1,
			"1 of 1 endpoints of default/web; externalTrafficPolicy Local is for clients outside only"},
		{"no node port", "172.30.0.2", "", 31009, "", svcproxyv1.LookupResponse_MATCH_NONE, 0, "172.30.0.2 is Node node-1, and TCP 31009 is no node port of a Service"},
		{"another port", "10.96.1.1", "", 81, "", svcproxyv1.LookupResponse_MATCH_NONE, 0, "10.96.1.1 belongs to Service default/web, which has no TCP port 81: refused"},
		{"nobody's", "192.0.2.1", "", 80, "", svcproxyv1.LookupResponse_MATCH_NONE, 0, "192.0.2.1 is no address of a Service"},
		{"headless", "head.default", "", 80, "", svcproxyv1.LookupResponse_MATCH_HEADLESS, 1, "a headless Service: the name resolves to the endpoints themselves"},
		{"no endpoints", "none.default", "", 81, "", svcproxyv1.LookupResponse_MATCH_CLUSTER_IP, 0, "Service default/none has no endpoint that takes connections: refused"},
		{"ExternalName", "name.default", "", 0, "", svcproxyv1.LookupResponse_MATCH_NONE, 0, "an ExternalName Service is a name only: it resolves to spec.externalName"},
	} {
		resp, err := lookups.Lookup(b.Ctx(), &svcproxyv1.LookupRequest{Destination: c.destination, Namespace: c.ns, Port: c.port, Node: c.node})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if resp.GetMatch() != c.match || len(resp.GetBackends()) != c.backends || resp.GetReason() != c.reason {
			t.Errorf("%s: %v", c.name, resp)
		}
		for _, be := range resp.GetBackends() {
			if be.GetPod() != "default/a" || be.GetNode() != "node-1" || be.GetAddress() != "10.244.0.1" || !be.GetReady() {
				t.Errorf("%s: backend %v", c.name, be)
			}
		}
	}
	for _, c := range []struct {
		req  *svcproxyv1.LookupRequest
		kind errs.Kind
	}{
		{&svcproxyv1.LookupRequest{Destination: "10.96.1.1"}, errs.Invalid},
		{&svcproxyv1.LookupRequest{Destination: "web"}, errs.Invalid},
		{&svcproxyv1.LookupRequest{Destination: "a.b.c"}, errs.Invalid},
		{&svcproxyv1.LookupRequest{Destination: "none.default"}, errs.Invalid},
		{&svcproxyv1.LookupRequest{Destination: "web.default", Port: 70000}, errs.Invalid},
		{&svcproxyv1.LookupRequest{Destination: "web.default", Protocol: "ICMP"}, errs.Invalid},
		{&svcproxyv1.LookupRequest{Destination: "web.default", Port: 99}, errs.NotFound},
		{&svcproxyv1.LookupRequest{Destination: "x.default", Port: 99}, errs.NotFound},
	} {
		if _, err := lookups.Lookup(b.Ctx(), c.req); !errs.Is(err, c.kind) {
			t.Errorf("%v: %v", c.req, err)
		}
	}
}

// TestLookupOfAClientOutside: it reaches the addresses that are for it, as the traffic policy and the source ranges have it.
func TestLookupOfAClientOutside(t *testing.T) {
	b := proxytest.New(t)
	b.IPAM.Balancers = true
	b.Node("node-1", "True", "172.30.0.2")
	b.Node("node-2", "True", "172.30.0.3")
	b.Pod("a", "web", "10.244.0.1")
	b.Apply("web", `{type: LoadBalancer, externalTrafficPolicy: Local, loadBalancerSourceRanges: [192.0.2.0/24], externalIPs: [203.0.113.250], selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}`)
	b.Apply("inner", `{selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}`)
	b.Apply("ported", `{type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}`)
	b.Apply("external", `{externalIPs: [203.0.113.251], selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}`)
	b.Apply("spread", `{type: NodePort, selector: {app: none}, ports: [{port: 80}]}`)
	b.Apply("head", `{clusterIP: None, selector: {app: none}, ports: [{port: 80}]}`)
	lookups := api.NewLookups(b, b.Planner)
	address := func(name string, of func(*objectv1.Service) string) string { return of(b.Get(name)) }
	cluster := func(o *objectv1.Service) string { return o.GetSpec().GetClusterIps()[0] }
	port := func(name string) uint32 { return uint32(b.Get(name).GetSpec().GetPorts()[0].GetNodePort()) }
	balancer := b.Get("web").GetStatus().GetLoadBalancer().GetIngress()[0].GetIp()
	const outside = svcproxyv1.LookupRequest_CLIENT_OUTSIDE
	for _, c := range []struct {
		name    string
		req     *svcproxyv1.LookupRequest
		match   svcproxyv1.LookupResponse_Match
		outcome svcproxyv1.LookupResponse_Outcome
		node    string
		dial    string
		reason  string
	}{
		{"balancer, by the node that announces it",
			&svcproxyv1.LookupRequest{Destination: balancer, Port: 80, ClientAddress: "192.0.2.7"},
			svcproxyv1.LookupResponse_MATCH_LOAD_BALANCER, svcproxyv1.LookupResponse_OUTCOME_SERVED, "node-1", "",
			"externalTrafficPolicy is Local: 1 of 1 endpoints of default/web, those on node-1"},
		{"balancer, by the name",
			&svcproxyv1.LookupRequest{Destination: "web.default", Port: 80, ClientAddress: "192.0.2.7"},
			svcproxyv1.LookupResponse_MATCH_LOAD_BALANCER, svcproxyv1.LookupResponse_OUTCOME_SERVED, "node-1", balancer + ":80",
			"externalTrafficPolicy is Local: 1 of 1 endpoints of default/web, those on node-1"},
		{"another source", &svcproxyv1.LookupRequest{Destination: balancer, Port: 80, ClientAddress: "198.51.100.7"},
			svcproxyv1.LookupResponse_MATCH_LOAD_BALANCER, svcproxyv1.LookupResponse_OUTCOME_DROPPED, "node-1", "",
			"198.51.100.7 is in none of the source ranges of default/web"},
		{"a source that is not known", &svcproxyv1.LookupRequest{Destination: balancer, Port: 80},
			svcproxyv1.LookupResponse_MATCH_LOAD_BALANCER, svcproxyv1.LookupResponse_OUTCOME_SERVED, "node-1", "",
			"externalTrafficPolicy is Local: 1 of 1 endpoints of default/web, those on node-1"},
		{"external", &svcproxyv1.LookupRequest{Destination: "203.0.113.250", Port: 80, Node: "node-2", ClientAddress: "198.51.100.7"},
			svcproxyv1.LookupResponse_MATCH_EXTERNAL_IP, svcproxyv1.LookupResponse_OUTCOME_DROPPED, "node-2", "",
			"externalTrafficPolicy is Local: 0 of 1 endpoints of default/web, those on node-2"},
		{"external, by the name", &svcproxyv1.LookupRequest{Destination: "external.default"},
			svcproxyv1.LookupResponse_MATCH_EXTERNAL_IP, svcproxyv1.LookupResponse_OUTCOME_SERVED, "", "203.0.113.251:80",
			"1 of 1 endpoints of default/external"},
		{"node port without an endpoint", &svcproxyv1.LookupRequest{Destination: "172.30.0.3", Port: port("ported")},
			svcproxyv1.LookupResponse_MATCH_NODE_PORT, svcproxyv1.LookupResponse_OUTCOME_DROPPED, "node-2", "",
			"externalTrafficPolicy is Local: 0 of 1 endpoints of default/ported, those on node-2"},
		{"node port, by the name", &svcproxyv1.LookupRequest{Destination: "ported.default"},
			svcproxyv1.LookupResponse_MATCH_NODE_PORT, svcproxyv1.LookupResponse_OUTCOME_SERVED, "node-1",
			fmt.Sprintf("172.30.0.2:%d", port("ported")), "externalTrafficPolicy is Local: 1 of 1 endpoints of default/ported, those on node-1"},
		{"no endpoints", &svcproxyv1.LookupRequest{Destination: "spread.default"},
			svcproxyv1.LookupResponse_MATCH_NODE_PORT, svcproxyv1.LookupResponse_OUTCOME_REFUSED, "node-1",
			fmt.Sprintf("172.30.0.2:%d", port("spread")), "Service default/spread has no endpoint that takes connections: refused"},
		{"no door", &svcproxyv1.LookupRequest{Destination: "inner.default"},
			svcproxyv1.LookupResponse_MATCH_CLUSTER_IP, svcproxyv1.LookupResponse_OUTCOME_UNROUTED, "", "",
			"Service default/inner has neither a load balancer or external address nor a node port for clients outside, and its cluster address is not routed from outside"},
		{"cluster address", &svcproxyv1.LookupRequest{Destination: address("inner", cluster), Port: 80},
			svcproxyv1.LookupResponse_MATCH_CLUSTER_IP, svcproxyv1.LookupResponse_OUTCOME_UNROUTED, "", "",
			"a cluster address of default/inner is not routed from outside"},
		{"cluster address, routed to a node", &svcproxyv1.LookupRequest{Destination: address("inner", cluster), Port: 80, Node: "node-2"},
			svcproxyv1.LookupResponse_MATCH_CLUSTER_IP, svcproxyv1.LookupResponse_OUTCOME_SERVED, "node-2", "",
			"1 of 1 endpoints of default/inner"},
		{"headless", &svcproxyv1.LookupRequest{Destination: "head.default"},
			svcproxyv1.LookupResponse_MATCH_HEADLESS, svcproxyv1.LookupResponse_OUTCOME_REFUSED, "", "",
			"a headless Service: no endpoint of default/head is ready, so the name resolves to nothing"},
		{"nobody's", &svcproxyv1.LookupRequest{Destination: "192.0.2.1", Port: 80},
			svcproxyv1.LookupResponse_MATCH_NONE, svcproxyv1.LookupResponse_OUTCOME_UNCHANGED, "", "", "192.0.2.1 is no address of a Service"},
	} {
		c.req.Client = outside
		resp, err := lookups.Lookup(b.Ctx(), c.req)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		dial := ""
		if resp.GetAddress() != "" {
			dial = fmt.Sprintf("%s:%d", resp.GetAddress(), resp.GetPort())
		}
		if resp.GetMatch() != c.match || resp.GetOutcome() != c.outcome || resp.GetNode() != c.node || resp.GetReason() != c.reason || dial != c.dial {
			t.Errorf("%s: %v", c.name, resp)
		}
		if (len(resp.GetBackends()) > 0) != (c.outcome == svcproxyv1.LookupResponse_OUTCOME_SERVED) {
			t.Errorf("%s: backends %v", c.name, resp.GetBackends())
		}
	}
	for _, req := range []*svcproxyv1.LookupRequest{
		{Destination: "web.default", Client: 9}, {Destination: "web.default", ClientAddress: "outside"},
	} {
		if _, err := lookups.Lookup(b.Ctx(), req); !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", req, err)
		}
	}
}
