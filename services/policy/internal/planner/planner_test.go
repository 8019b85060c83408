package planner_test

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/policy/internal/planner"
	"podwire.dev/services/policy/internal/ruleset"
)

func put(p *planner.Planner, kind string, rev store.Revision, o store.Object) {
	p.Put(store.Record{Key: store.KeyOf(kind, o), Object: o, Revision: rev, Traceparent: "trace"})
}

func namespace(name, phase string, ends *timestamppb.Timestamp) *objectv1.Namespace {
	return &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name, DeletionTimestamp: ends}, Status: &objectv1.NamespaceStatus{Phase: phase}}
}

func policy(ns string) *objectv1.NetworkPolicy {
	return &objectv1.NetworkPolicy{
		Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: "p"},
		Spec: &objectv1.NetworkPolicySpec{
			PodSelector: &objectv1.LabelSelector{}, PolicyTypes: []string{"Ingress"},
			Ingress: []*objectv1.NetworkPolicyIngressRule{{Ports: []*objectv1.NetworkPolicyPort{{Port: structpb.NewStringValue("web")}}}},
		},
	}
}

// TestEndings plans the deletion of policies whose Namespace ends, again and again until the World shows them gone,
// because of the change that ended it.
func TestEndings(t *testing.T) {
	t.Parallel()
	p := planner.New()
	writes := func(what string, want int) {
		t.Helper()
		made, err := p.Plan(1)
		if err != nil || len(made.Writes) != want {
			t.Fatalf("%s: %d writes, %v, want %d", what, len(made.Writes), err, want)
		}
		for _, w := range made.Writes {
			if w.Object != nil || w.Base == nil || w.Base.Key != w.Key || w.Key.Namespace != "a" || w.Cause != (store.Cause{Revision: 5, Traceparent: "trace"}) {
				t.Errorf("%s: %+v", what, w)
			}
		}
	}
	put(p, planner.KindNamespace, 1, namespace("a", "Active", nil))
	put(p, planner.KindNamespace, 2, namespace("b", "Active", nil))
	put(p, planner.KindPolicy, 3, policy("a"))
	put(p, planner.KindPolicy, 4, policy("b"))
	writes("both live", 0)
	put(p, planner.KindNamespace, 5, namespace("a", "Terminating", timestamppb.Now()))
	writes("one ends", 1)
	put(p, planner.KindNamespace, 6, namespace("a", "Terminating", timestamppb.Now()))
	writes("and is changed again", 1)
	p.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: store.KeyOf(planner.KindPolicy, policy("a"))}})
	writes("its policy is gone", 0)
	p.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: store.Key{Kind: planner.KindNamespace, Name: "a"}}})
	put(p, planner.KindNamespace, 7, namespace("a", "Active", nil))
	put(p, planner.KindPolicy, 8, policy("a"))
	writes("a new one of the name", 0)
	put(p, planner.KindNamespace, 5, namespace("a", "Terminating", nil))
	writes("by its phase alone", 1)
	p.Reset()
	writes("a new World", 0)
}

// TestPods reads Pods: sidecars serve, other init containers do not; an address that is none belongs to nobody.
func TestPods(t *testing.T) {
	t.Parallel()
	always := "Always"
	port := func(n int32) []*objectv1.ContainerPort {
		return []*objectv1.ContainerPort{{Name: "web", ContainerPort: n}, {ContainerPort: 9}, {Name: "web", ContainerPort: n, Protocol: new("QUIC")}}
	}
	p := planner.New()
	put(p, planner.KindPolicy, 1, policy("a"))
	put(p, "nodes", 1, &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "node-1"}, Status: &objectv1.NodeStatus{Addresses: []*objectv1.NodeAddress{
		{Type: "Hostname", Address: "node-1"}, {Type: "InternalIP", Address: "192.0.2.1"},
	}}})
	put(p, planner.KindPod, 2, &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: "x", Uid: "x"},
		Spec: &objectv1.PodSpec{
			NodeName: "node-1", Containers: []*objectv1.Container{{Ports: port(80)}},
			InitContainers: []*objectv1.Container{{Ports: port(81), RestartPolicy: &always}, {Ports: port(82)}},
		},
		Status: &objectv1.PodStatus{PodIps: []*objectv1.PodIP{{Ip: "10.0.0.1"}, {Ip: "nonsense"}, {Ip: "fd00::1"}}},
	})
	ask := func(from ruleset.Party, number uint16) ruleset.Verdict {
		t.Helper()
		_, ingress, err := p.World().Explain(ruleset.Connection{
			From: from, To: ruleset.Party{Pod: ruleset.Ref{Namespace: "a", Name: "x"}}, Protocol: nodestate.TCP, Port: number,
		})
		if err != nil {
			t.Fatal(err)
		}
		return ingress.Verdict
	}
	outside := ruleset.Party{Address: netip.MustParseAddr("203.0.113.1")}
	for number, want := range map[uint16]ruleset.Verdict{80: ruleset.Allowed, 81: ruleset.Allowed, 82: ruleset.Denied, 9: ruleset.Denied} {
		if got := ask(outside, number); got != want {
			t.Errorf("port %d: %v, want %v", number, got, want)
		}
	}
	if got := ask(ruleset.Party{Node: "node-1"}, 9); got != ruleset.OwnNode {
		t.Errorf("its node: %v", got)
	}
	if got := ask(ruleset.Party{Address: netip.MustParseAddr("192.0.2.1")}, 9); got != ruleset.OwnNode {
		t.Errorf("its node's address: %v", got)
	}
	p.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: store.Key{Kind: "nodes", Name: "node-1"}}})
	if _, _, err := p.World().Explain(ruleset.Connection{From: ruleset.Party{Node: "node-1"}, To: outside}); err == nil {
		t.Error("the node is gone")
	}
	made, err := p.Plan(2)
	if err != nil || made.PerNode["node-1"].Len() == 0 {
		t.Fatalf("%v, %v", made, err)
	}
	p.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: store.Key{Kind: planner.KindPod, Namespace: "a", Name: "x"}}})
	if made, err = p.Plan(3); err != nil || made.PerNode["node-1"] == nil || made.PerNode["node-1"].Len() != 0 {
		t.Errorf("without pods the node holds %v, %v", made.PerNode["node-1"], err)
	}
	if made, err = p.Plan(4); err != nil || len(made.PerNode) != 0 {
		t.Errorf("nothing happened: %v, %v", made.PerNode, err)
	}
}
