package rpc_test

import (
	"slices"
	"strings"
	"testing"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	dnsv1 "podwire.dev/proto/podwire/dns/v1"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
	pushv1 "podwire.dev/proto/podwire/push/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
)

// Naming one file of each package makes sure that all of them are registered.
var _ = []protoreflect.FileDescriptor{
	clusterv1.File_podwire_cluster_v1_enrolment_service_proto, ipamv1.File_podwire_ipam_v1_allocation_service_proto,
	nodeagentv1.File_podwire_nodeagent_v1_agent_service_proto, policyv1.File_podwire_policy_v1_verdict_service_proto,
	dnsv1.File_podwire_dns_v1_resolve_service_proto, ingressv1.File_podwire_ingress_v1_ingress_service_proto,
	pushv1.File_podwire_push_v1_push_proto, svcproxyv1.File_podwire_svcproxy_v1_lookup_service_proto,
	tracev1.File_podwire_trace_v1_trace_proto, healthpb.File_grpc_health_v1_health_proto,
	reflectionpb.File_grpc_reflection_v1_reflection_proto, reflectionalphapb.File_grpc_reflection_v1alpha_reflection_proto,
}

func TestTableIsTheRegisteredRPCs(t *testing.T) {
	t.Parallel()
	methods := map[string]protoreflect.MethodDescriptor{}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(string(f.Package()), "opentelemetry.") {
			return true // the collector's, which we only call
		}
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				methods["/"+string(s.FullName())+"/"+string(m.Name())] = m
			}
		}
		return true
	})
	if len(methods) < 40 {
		t.Fatalf("only %d RPCs are registered: an import is missing", len(methods))
	}
	table := rpc.Table()
	for name, m := range methods {
		rule, ok := table[name]
		if !ok {
			t.Errorf("%s has no row in the access table: nobody may call it", name)
			continue
		}
		if len(rule.Allow) == 0 {
			t.Errorf("%s: its row allows nobody", name)
		}
		streaming := m.IsStreamingClient() || m.IsStreamingServer()
		if streaming != (rule.Effect == rpc.Stream) && rule.Effect != rpc.Probe {
			t.Errorf("%s: effect %d does not fit its descriptor", name, rule.Effect)
		}
		read := slices.ContainsFunc([]string{"Get", "List", "Explain", "Lookup", "Status", "Resolve", "Match"}, func(p string) bool {
			return strings.HasPrefix(string(m.Name()), p)
		})
		if !streaming && rule.Effect != rpc.Probe && read != (rule.Effect == rpc.Read) {
			t.Errorf("%s: effect %d does not fit its name: only reads are repeated", name, rule.Effect)
		}
	}
	for _, name := range table.Methods() {
		if methods[name] == nil {
			t.Errorf("%s is in the access table, but there is no such RPC", name)
		}
	}
}

func TestOnlyEnrollIsOpen(t *testing.T) {
	t.Parallel()
	table := rpc.Table()
	for _, method := range table.Methods() {
		err := table.Check(pki.Anonymous, method)
		if open := err == nil; open != (method == "/podwire.cluster.v1.EnrolmentService/Enroll") {
			t.Errorf("%s without a certificate: %v", method, err)
		}
	}
}

// TestNodesAreConfined lists everything that a stolen node certificate can call.
func TestNodesAreConfined(t *testing.T) {
	t.Parallel()
	table := rpc.Table()
	var got []string
	for _, method := range table.Methods() {
		if table.Check(pki.Node("node-1"), method) == nil {
			got = append(got, method)
		}
	}
	want := []string{
		"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
		"/podwire.cluster.v1.EnrolmentService/Enroll", "/podwire.cluster.v1.LivenessService/Heartbeat",
		"/podwire.cluster.v1.NodeService/Apply", "/podwire.cluster.v1.NodeService/Get", "/podwire.cluster.v1.NodeService/UpdateStatus",
		"/podwire.cluster.v1.PodService/Apply", "/podwire.cluster.v1.PodService/Delete", "/podwire.cluster.v1.PodService/Get", "/podwire.cluster.v1.PodService/UpdateStatus",
		"/podwire.ipam.v1.AllocationService/LeaseBlock", "/podwire.ipam.v1.AllocationService/ReleaseBlock",
		"/podwire.push.v1.PushService/Subscribe",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAccessDeniesByDefault(t *testing.T) {
	t.Parallel()
	a := rpc.Access{
		"/s/anyone": {Effect: rpc.Read, Allow: []rpc.Who{rpc.Anyone}},
		"/s/known":  {Effect: rpc.Read, Allow: []rpc.Who{rpc.Authenticated}},
		"/s/users":  {Effect: rpc.Read, Allow: []rpc.Who{rpc.Users}},
		"/s/ipam":   {Effect: rpc.Read, Allow: []rpc.Who{rpc.IPAM, rpc.Nodes}},
		"/s/nobody": {Effect: rpc.Read},
	}
	for _, tt := range []struct {
		id   pki.Identity
		want string // the methods allowed
	}{
		{pki.Anonymous, "anyone"},
		{pki.User("admin"), "anyone known users"},
		{pki.Service("ipam"), "anyone ipam known"},
		{pki.Service("ipam2"), "anyone known"},
		{pki.Node("ipam"), "anyone ipam known"},
		{pki.Service("policy"), "anyone known"},
	} {
		var got []string
		for _, m := range append(a.Methods(), "/s/unknown", "", "/s/") {
			err := a.Check(tt.id, m)
			if err == nil {
				got = append(got, strings.TrimPrefix(m, "/s/"))
			} else if !errs.Is(err, errs.Denied) {
				t.Errorf("%s %s: %v, want Denied", tt.id, m, err)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s may call %v, want %s", tt.id, got, tt.want)
		}
	}
}

func TestRequireNode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		id         pki.Identity
		only, user bool
	}{
		{pki.Node("node-1"), true, true},
		{pki.Node("node-2"), false, false},
		{pki.User("node-1"), false, true},
		{pki.Service("node-1"), false, false},
		{pki.Anonymous, false, false},
	} {
		ctx := rpc.WithIdentity(t.Context(), tt.id)
		if err := rpc.RequireNode(ctx, "node-1"); (err == nil) != tt.only {
			t.Errorf("RequireNode as %s: %v", tt.id, err)
		}
		if err := rpc.RequireNodeOr(ctx, "node-1", pki.KindUser); (err == nil) != tt.user {
			t.Errorf("RequireNodeOr as %s: %v", tt.id, err)
		}
	}
	if id := rpc.FromContext(t.Context()); id != pki.Anonymous {
		t.Errorf("outside of a call: %s", id)
	}
}
