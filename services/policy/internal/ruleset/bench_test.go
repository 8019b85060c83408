package ruleset_test

import (
	"fmt"
	"testing"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/policy/internal/planner"
)

// BenchmarkPolicyChange is one policy changed among 3,000, with 3,000 pods on 10 nodes: the time from the event to the
// plan.
func BenchmarkPolicyChange(b *testing.B) {
	plan := large(b)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		put(plan, policyOfMany(17, fmt.Sprintf("a%d", i%300)))
		made, err := plan.Plan(2)
		if err != nil || len(made.PerNode) == 0 {
			b.Fatalf("nothing planned: %v", err)
		}
	}
}

// BenchmarkPodChange is one pod that gets another address in the same cluster.
func BenchmarkPodChange(b *testing.B) {
	plan := large(b)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		put(plan, podOfMany(17, fmt.Sprintf("10.1.%d.%d", i/250%250, i%250)))
		made, err := plan.Plan(2)
		if err != nil || len(made.PerNode) == 0 {
			b.Fatalf("nothing planned: %v", err)
		}
	}
}

func podOfMany(i int, addr string) *objectv1.Pod {
	return &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{
			Namespace: fmt.Sprintf("n%d", i%30), Name: fmt.Sprintf("p%d", i), Uid: fmt.Sprintf("u%d", i),
			Labels: map[string]string{"app": fmt.Sprintf("a%d", i%300), "tier": "x"},
		},
		Spec:   &objectv1.PodSpec{NodeName: fmt.Sprintf("node-%d", i/30%10)},
		Status: &objectv1.PodStatus{PodIps: []*objectv1.PodIP{{Ip: addr}}},
	}
}

func policyOfMany(i int, app string) *objectv1.NetworkPolicy {
	return &objectv1.NetworkPolicy{
		Metadata: &objectv1.ObjectMeta{Namespace: fmt.Sprintf("n%d", i%30), Name: fmt.Sprintf("np%d", i)},
		Spec: &objectv1.NetworkPolicySpec{
			PodSelector: &objectv1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("a%d", i%300)}},
			Ingress: []*objectv1.NetworkPolicyIngressRule{{From: []*objectv1.NetworkPolicyPeer{
				{PodSelector: &objectv1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
				{IpBlock: &objectv1.IPBlock{Cidr: fmt.Sprintf("192.0.%d.0/24", i%50)}},
			}}},
		},
	}
}

// large is a World of 30 namespaces, 3,000 pods on 10 nodes and 3,000 policies, planned.
func large(b *testing.B) *planner.Planner {
	b.Helper()
	plan := planner.New()
	for n := range 30 {
		put(plan, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: fmt.Sprintf("n%d", n)}})
	}
	for i := range 3000 {
		put(plan, podOfMany(i, fmt.Sprintf("10.0.%d.%d", i/250, i%250)))
		put(plan, policyOfMany(i, fmt.Sprintf("a%d", (i*7)%300)))
	}
	if _, err := plan.Plan(1); err != nil {
		b.Fatal(err)
	}
	return plan
}
