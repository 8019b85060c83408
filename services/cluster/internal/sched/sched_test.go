package sched

import (
	"math/rand/v2"
	"slices"
	"testing"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func ready(name string, pods int, taints ...Taint) *Node {
	return &Node{Name: name, Ready: true, Pods: pods, Taints: taints, Labels: map[string]string{"kubernetes.io/hostname": name}}
}

func TestPlace(t *testing.T) {
	gpu := Taint{"dedicated", "gpu", NoSchedule}
	cases := []struct {
		name  string
		pod   Pod
		nodes []*Node
		want  string
		why   string
	}{
		{"no node at all", Pod{}, nil, "", "no nodes available to schedule pods"},
		{"the emptiest", Pod{}, []*Node{ready("a", 3), ready("b", 1), ready("c", 2)}, "b", ""},
		{"ties by name", Pod{}, []*Node{ready("b", 1), ready("a", 1)}, "a", ""},
		{"selector", Pod{NodeSelector: map[string]string{"kubernetes.io/hostname": "b"}}, []*Node{ready("a", 0), ready("b", 9)}, "b", ""},
		{"selector that nothing has", Pod{NodeSelector: map[string]string{"disk": "ssd"}}, []*Node{ready("a", 0), ready("b", 0)}, "",
			"0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."},
		{"untolerated taint", Pod{}, []*Node{ready("a", 0, gpu), ready("b", 9)}, "b", ""},
		{"tolerated by value", Pod{Tolerations: []Toleration{{Key: "dedicated", Value: "gpu", Effect: NoSchedule}}}, []*Node{ready("a", 0, gpu), ready("b", 9)}, "a", ""},
		{"another value is no match", Pod{Tolerations: []Toleration{{Key: "dedicated", Value: "db"}}}, []*Node{ready("a", 0, gpu)}, "",
			"0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: gpu}."},
		{"another effect is no match", Pod{Tolerations: []Toleration{{Key: "dedicated", Value: "gpu", Effect: NoExecute}}}, []*Node{ready("a", 0, gpu)}, "",
			"0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: gpu}."},
		{"empty effect matches every effect", Pod{Tolerations: []Toleration{{Key: "dedicated", Exists: true}}}, []*Node{ready("a", 0, gpu)}, "a", ""},
		{"empty key with Exists matches everything", Pod{Tolerations: []Toleration{{Exists: true}}}, []*Node{ready("a", 0, gpu)}, "a", ""},
		{"empty key without Exists matches nothing", Pod{Tolerations: []Toleration{{}}}, []*Node{ready("a", 0, Taint{"", "", NoSchedule})}, "",
			"0/1 nodes are available: 1 node(s) had untolerated taint {: }."},
		{"NoExecute repels too", Pod{}, []*Node{ready("a", 0, Taint{"k", "", NoExecute})}, "", "0/1 nodes are available: 1 node(s) had untolerated taint {k: }."},
		{"PreferNoSchedule is only disliked", Pod{}, []*Node{ready("a", 0, Taint{"k", "", PreferNoSchedule}), ready("b", 9)}, "b", ""},
		{"and taken where nothing else is", Pod{}, []*Node{ready("a", 0, Taint{"k", "", PreferNoSchedule})}, "a", ""},
		{"cordoned", Pod{}, []*Node{ready("a", 0, Taint{TaintUnschedulable, "", NoSchedule})}, "", "0/1 nodes are available: 1 node(s) were unschedulable."},
		{"host port taken", Pod{Ports: []HostPort{{Protocol: "TCP", Port: 80}}},
			[]*Node{{Name: "a", Ready: true, Ports: []HostPort{{Protocol: "TCP", Port: 80}}}, ready("b", 9)}, "b", ""},
		{"host port of another protocol", Pod{Ports: []HostPort{{Protocol: "UDP", Port: 80}}},
			[]*Node{{Name: "a", Ready: true, Ports: []HostPort{{Protocol: "TCP", Port: 80}}}}, "a", ""},
		{"each reason once, in order", Pod{NodeSelector: map[string]string{"disk": "ssd"}},
			[]*Node{ready("a", 0), ready("b", 0, gpu), ready("c", 0, Taint{TaintUnschedulable, "", NoSchedule}), ready("d", 0)}, "",
			"0/4 nodes are available: 1 node(s) had untolerated taint {dedicated: gpu}, 1 node(s) were unschedulable, 2 node(s) didn't match Pod's node affinity/selector."},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			node, why := Place(c.pod, c.nodes)
			got := ""
			if node != nil {
				got = node.Name
			}
			if got != c.want || why != c.why {
				t.Errorf("placed on %q (%s), want %q (%s)", got, why, c.want, c.why)
			}
		})
	}
}

func TestReadinessOfNodes(t *testing.T) {
	withReady := func(name, status string) *objectv1.Node {
		n := &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: name}}
		if status != "" {
			n.Status = &objectv1.NodeStatus{Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: status}}}
		}
		return n
	}
	nodes := []*Node{ParseNode(withReady("new", "")), ParseNode(withReady("sick", "False")), ParseNode(withReady("dead", "Unknown"))}
	const want = "0/3 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, " +
		"2 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."
	if node, why := Place(Pod{}, nodes); node != nil || why != want {
		t.Errorf("placed on %v (%s), want none (%s)", node, why, want)
	}
	all := Pod{Tolerations: []Toleration{{Exists: true}}}
	if node, _ := Place(all, nodes); node == nil || node.Name != "dead" {
		t.Errorf("a Pod that tolerates everything was placed on %v, want the first by name", node)
	}
	busy := ParseNode(withReady("well", "True"))
	busy.Pods = 50
	if node, _ := Place(all, append(nodes, busy)); node == nil || node.Name != "well" {
		t.Errorf("a Pod that tolerates everything was placed on %v, want the Ready node", node)
	}
}

func TestParse(t *testing.T) {
	exists, op := "Exists", "Gt"
	always := "Always"
	p := ParsePod(&objectv1.Pod{Spec: &objectv1.PodSpec{
		Tolerations: []*objectv1.Toleration{{Key: "k", Operator: &exists}, {Key: "n", Operator: &op, Value: "3"}},
		InitContainers: []*objectv1.Container{
			{Ports: []*objectv1.ContainerPort{{HostPort: 1, ContainerPort: 1}}},
			{RestartPolicy: &always, Ports: []*objectv1.ContainerPort{{HostPort: 2, ContainerPort: 2}}},
		},
		Containers: []*objectv1.Container{{Ports: []*objectv1.ContainerPort{{ContainerPort: 3}, {HostPort: 4, ContainerPort: 4, HostIp: "0.0.0.0"}}}},
	}})
	if !slices.Equal(p.Tolerations, []Toleration{{Key: "k", Exists: true}}) {
		t.Errorf("tolerations are %v: an operator that is not known must match nothing", p.Tolerations)
	}
	if want := []HostPort{{Protocol: "TCP", Port: 2}, {Protocol: "TCP", Port: 4}}; !slices.Equal(p.Ports, want) {
		t.Errorf("host ports are %v, want %v", p.Ports, want)
	}
	n := ParseNode(&objectv1.Node{Spec: &objectv1.NodeSpec{Unschedulable: true, Taints: []*objectv1.Taint{{Key: TaintUnschedulable, Effect: NoSchedule}}}})
	if len(n.Taints) != 2 {
		t.Errorf("taints are %v: what the spec and the state say alike must count once", n.Taints)
	}
}

// The answer must not depend on the order of the nodes, and placing many Pods must spread them.
func TestPlaceSpreads(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	nodes := []*Node{ready("a", 0), ready("b", 4), ready("c", 1)}
	for range 400 {
		rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		node, why := Place(Pod{}, nodes)
		if node == nil {
			t.Fatal(why)
		}
		for _, n := range nodes {
			if n.Pods < node.Pods || n.Pods == node.Pods && n.Name < node.Name {
				t.Fatalf("placed on %s with %d Pods, but %s has %d", node.Name, node.Pods, n.Name, n.Pods)
			}
		}
		node.Add(Pod{})
	}
	for _, n := range nodes {
		if n.Pods != 135 {
			t.Errorf("%s has %d Pods, want 135 on each", n.Name, n.Pods)
		}
	}
}
