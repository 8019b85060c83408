package app_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/apptest"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push/pushtest"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
	"podwire.dev/services/policy/app"
)

func newStack(t *testing.T) *apptest.Stack {
	t.Helper()
	s := apptest.New(t, app.Name, app.Kinds())
	serve(s)
	s.Put("nodes", &objectv1.Node{
		Metadata: &objectv1.ObjectMeta{Name: "node-1"},
		Status:   &objectv1.NodeStatus{Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "True"}}},
	})
	s.Put("namespaces", &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "default"}})
	s.Put("pods", runs("web", "10.244.0.1"))
	s.Put("pods", runs("client", "10.244.0.2"))
	return s
}

func serve(s *apptest.Stack) {
	s.T.Helper()
	s.Serve(func(r *service.Replica) error {
		app.Serve(r)
		return nil
	})
}

func runs(name, ip string) *objectv1.Pod {
	return &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name, Uid: "uid-" + name, Labels: map[string]string{"app": name}},
		Spec:     &objectv1.PodSpec{NodeName: "node-1"},
		Status:   &objectv1.PodStatus{PodIps: []*objectv1.PodIP{{Ip: ip}}},
	}
}

func webFromClient() *objectv1.NetworkPolicy {
	return &objectv1.NetworkPolicy{
		Metadata: &objectv1.ObjectMeta{Name: "web-from-client"},
		Spec: &objectv1.NetworkPolicySpec{
			PodSelector: &objectv1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Ingress: []*objectv1.NetworkPolicyIngressRule{{
				From:  []*objectv1.NetworkPolicyPeer{{PodSelector: &objectv1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}},
				Ports: []*objectv1.NetworkPolicyPort{{Port: structpb.NewNumberValue(80)}},
			}},
		},
	}
}

func isolates(kernel *nodestate.Slice, uid string) bool {
	row, ok := kernel.Get(nodestate.Ref{Table: nodestate.TableSubjects, Key: nodestate.Subject{PodUID: uid}.Key()})
	return ok && row.(nodestate.Subject).Ingress.Mode == nodestate.SideIsolated
}

// TestPolicyReachesTheNode applies a policy by gRPC and finds it at the agent, across a restart of both.
func TestPolicyReachesTheNode(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	agent := &pushtest.Agent{Source: nodestate.SourcePolicy, Node: "node-1", Dir: t.TempDir(), Conn: s.Dial(pki.Node("node-1"))}
	agent.Start(t)
	user := s.Dial(pki.User("alice"))
	policies, verdicts := policyv1.NewNetworkPolicyServiceClient(user), policyv1.NewVerdictServiceClient(user)
	applied, err := policies.Apply(s.Ctx, &policyv1.NetworkPolicyServiceApplyRequest{Object: webFromClient()}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if got := applied.GetObject().GetSpec(); !slices.Equal(got.GetPolicyTypes(), []string{"Ingress"}) || got.GetIngress()[0].GetPorts()[0].GetProtocol() != "TCP" {
		t.Errorf("defaults: %v", got)
	}
	agent.Await(t, func(kernel *nodestate.Slice, held nodestate.Version) bool {
		return held.Revision >= applied.GetRevision() && isolates(kernel, "uid-web") && !isolates(kernel, "uid-client")
	})
	s.Passed(store.Revision(applied.GetRevision()))
	explain := func(from string) *policyv1.ExplainResponse {
		t.Helper()
		resp, err := verdicts.Explain(s.Ctx, &policyv1.ExplainRequest{
			From: &policyv1.Party{Party: &policyv1.Party_Pod{Pod: from}}, To: &policyv1.Party{Party: &policyv1.Party_Pod{Pod: "default/web"}},
			Port: 80, Protocol: "TCP",
		})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if r := explain("default/client"); !r.GetAllowed() || r.GetRevision() < applied.GetRevision() ||
		!slices.Equal(r.GetIngress().GetRules(), []string{"default/web-from-client ingress[0]"}) {
		t.Errorf("client to web: %v", r)
	}
	want := "denied: default/web is isolated for ingress (policy default/web-from-client), no rule allows TCP 80 from default/web"
	if r := explain("default/web"); r.GetAllowed() || r.GetIngress().GetReason() != want {
		t.Errorf("web to web: %v", r)
	}

	before := len(agent.Updates())
	s.End()
	serve(s)
	agent.Conn = s.Dial(pki.Node("node-1"))
	agent.Restart(t)
	rev := s.Put("pods", runs("web", "10.244.0.9"))
	agent.Await(t, func(kernel *nodestate.Slice, held nodestate.Version) bool {
		return isolates(kernel, "uid-web")
	})
	deleted, err := policyv1.NewNetworkPolicyServiceClient(s.Dial(pki.User("alice"))).Delete(s.Ctx,
		&policyv1.NetworkPolicyServiceDeleteRequest{Name: "web-from-client"}, grpc.WaitForReady(true))
	if err != nil || deleted.GetRevision() <= int64(rev) {
		t.Fatalf("delete: %v, %v", deleted, err)
	}
	agent.Await(t, func(kernel *nodestate.Slice, held nodestate.Version) bool {
		return held.Revision >= deleted.GetRevision() && !isolates(kernel, "uid-web")
	})
	for _, u := range agent.Updates()[before:] {
		for _, ref := range u.Delta.Removes {
			if ref.Table == nodestate.TableSubjects {
				t.Errorf("a restart of the service took %s away", ref.Key)
			}
		}
	}
}

// TestEmptyNode has a node without pods and waits for its receipt.
func TestEmptyNode(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.Put("nodes", &objectv1.Node{
		Metadata: &objectv1.ObjectMeta{Name: "node-2"},
		Status:   &objectv1.NodeStatus{Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "True"}}},
	})
	for _, name := range []string{"node-1", "node-2"} {
		a := &pushtest.Agent{Source: nodestate.SourcePolicy, Node: name, Conn: s.Dial(pki.Node(name))}
		a.Start(t)
	}
	s.Passed(s.Put("pods", runs("late", "10.244.0.7")))
}

// TestNamespaceEnds finds policies deleted when their Namespace is Terminating, and that as a derived write.
func TestNamespaceEnds(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	policies := policyv1.NewNetworkPolicyServiceClient(s.Dial(pki.User("alice")))
	s.Put("namespaces", &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief"}})
	for _, ns := range []string{"brief", "default"} {
		np := webFromClient()
		np.Metadata.Namespace = ns
		if _, err := policies.Apply(s.Ctx, &policyv1.NetworkPolicyServiceApplyRequest{Object: np}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
	}
	from := s.Fake.Revision() + 1
	ends := s.Put("namespaces", &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief", DeletionTimestamp: timestamppb.Now()}})
	for batch, err := range s.Fake.Watch(s.Ctx, store.WatchQuery{From: from}) {
		if err != nil {
			t.Fatalf("the policy stays: %v", err)
		}
		if i := slices.IndexFunc(batch.Events, func(ev store.Event) bool { return ev.Type == store.Deleted }); i >= 0 {
			ev := batch.Events[i]
			if ev.Key.Namespace != "brief" || ev.Key.Name != "web-from-client" || ev.Cause.Revision != ends {
				t.Errorf("deleted %s because of %d, want the policy of brief because of %d", ev.Key, ev.Cause.Revision, ends)
			}
			break
		}
	}
	if _, err := policies.Get(s.Ctx, &policyv1.NetworkPolicyServiceGetRequest{Namespace: "default", Name: "web-from-client"}); err != nil {
		t.Errorf("the other namespace's: %v", err)
	}
	np := webFromClient()
	np.Metadata.Namespace = "brief"
	if _, err := policies.Apply(s.Ctx, &policyv1.NetworkPolicyServiceApplyRequest{Object: np}); !errs.Is(err, errs.Denied) {
		t.Errorf("into a terminating namespace: %v", err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.Dial(pki.User("alice"))
	policies, verdicts := policyv1.NewNetworkPolicyServiceClient(user), policyv1.NewVerdictServiceClient(user)
	bad := webFromClient()
	bad.Spec.Ingress[0].Ports[0].Port = structpb.NewNumberValue(70000)
	bad.Spec.PolicyTypes = []string{"Sideways"}
	_, err := policies.Apply(s.Ctx, &policyv1.NetworkPolicyServiceApplyRequest{Object: bad}, grpc.WaitForReady(true))
	var fields []string
	for _, v := range errs.ViolationsOf(err) {
		fields = append(fields, v.Field+"="+v.Value)
	}
	if !errs.Is(err, errs.Invalid) || !slices.Equal(fields, []string{"spec.ingress[0].ports[0].port=70000", "spec.policyTypes[0]=Sideways"}) {
		t.Errorf("an invalid policy: %v %v", err, fields)
	}
	pod := func(name string) *policyv1.Party { return &policyv1.Party{Party: &policyv1.Party_Pod{Pod: name}} }
	for _, tt := range []struct {
		what   string
		req    *policyv1.ExplainRequest
		kind   errs.Kind
		fields string
	}{
		{"nothing", &policyv1.ExplainRequest{}, errs.Invalid, "from to port"},
		{"nonsense", &policyv1.ExplainRequest{
			From: pod("web"), To: &policyv1.Party{Party: &policyv1.Party_Address{Address: "x"}}, Port: 70000, Protocol: "ICMP",
		}, errs.Invalid, "from.pod to.address protocol port"},
		{"no node", &policyv1.ExplainRequest{From: &policyv1.Party{Party: &policyv1.Party_Node{}}, To: pod("default/web"), Port: 1}, errs.Invalid, "from.node"},
		{"an unknown pod", &policyv1.ExplainRequest{From: pod("default/nobody"), To: pod("default/web"), Port: 1}, errs.NotFound, ""},
		{"an unknown node", &policyv1.ExplainRequest{From: pod("default/web"), To: &policyv1.Party{Party: &policyv1.Party_Node{Node: "node-9"}}, Port: 1}, errs.NotFound, ""},
	} {
		_, err := verdicts.Explain(s.Ctx, tt.req)
		var fields []string
		for _, v := range errs.ViolationsOf(err) {
			fields = append(fields, v.Field)
		}
		if !errs.Is(err, tt.kind) || strings.Join(fields, " ") != tt.fields {
			t.Errorf("%s: %v (%v)", tt.what, err, fields)
		}
	}
	if _, err := policyv1.NewVerdictServiceClient(s.Dial(pki.Node("node-1"))).Explain(s.Ctx, &policyv1.ExplainRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node asks for verdicts: %v", err)
	}
}

// TestVerbs reads what was written: Get, List and Watch, up to the revision that is no longer kept.
func TestVerbs(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	policies := policyv1.NewNetworkPolicyServiceClient(s.Dial(pki.User("alice")))
	first, err := policies.Apply(s.Ctx, &policyv1.NetworkPolicyServiceApplyRequest{Object: webFromClient()}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	got, err := policies.Get(s.Ctx, &policyv1.NetworkPolicyServiceGetRequest{Name: "web-from-client"})
	if err != nil || got.GetObject().GetMetadata().GetUid() != first.GetObject().GetMetadata().GetUid() || got.GetTraceparent() == "" {
		t.Errorf("get: %v, %v", got, err)
	}
	if _, err := policies.Get(s.Ctx, &policyv1.NetworkPolicyServiceGetRequest{Name: "x"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("get of nothing: %v", err)
	}
	list, err := policies.List(s.Ctx, &policyv1.NetworkPolicyServiceListRequest{AllNamespaces: true})
	if err != nil || len(list.GetItems()) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
	watch, err := policies.Watch(s.Ctx, &policyv1.NetworkPolicyServiceWatchRequest{Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := watch.Recv(); err != nil || ev.GetType() != objectv1.EventType_EVENT_TYPE_ADDED {
		t.Errorf("watch: %v, %v", ev, err)
	}
	s.Put("pods", runs("more", "10.244.0.3"))
	s.Fake.Compact(s.Fake.Revision())
	late, err := policies.Watch(s.Ctx, &policyv1.NetworkPolicyServiceWatchRequest{Namespace: "default", FromRevision: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Recv(); status.Code(err) != codes.OutOfRange || !errs.Is(err, errs.OutOfRange) {
		t.Errorf("watch from a compacted revision: %v", err)
	}
}
