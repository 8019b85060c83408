package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestStoreEmptied takes the store's data away while traffic flows: etcd begins anew, as another cluster. Every node holds what
// it holds, writes nothing and says so, until that is accepted.
func TestStoreEmptied(t *testing.T) {
	i := newInstance(t)
	s := newScene(t, i, "emptied")
	was, before := i.whole(t), i.rulesets(t)
	i.withoutStore(t, func() {
		if err := os.RemoveAll(i.store()); err != nil {
			t.Fatal(err)
		}
	})
	await(t, "every node is frozen, in every slice", func() error {
		now, err := i.tryStatus()
		if err != nil {
			return err
		}
		for _, n := range now.Nodes {
			if got := len(now.frozen()[n.Node]); got != len(n.Status.Slices) || got == 0 {
				return fmt.Errorf("frozen: %v", now.frozen())
			}
		}
		if len(now.Nodes) != len(was.Nodes) {
			return fmt.Errorf("%d nodes have registered again", len(now.Nodes))
		}
		return nil
	})
	s.more(enough)
	s.judge()
	sameRulesets(t, "while frozen", before, i.rulesets(t))
	now := i.status(t)
	for node, n := range was.written() {
		if now.written()[node] != n {
			t.Errorf("the agent of %s wrote %d objects into its kernel", node, now.written()[node]-n)
		}
	}
	for _, n := range now.Nodes {
		for _, v := range n.Status.Slices {
			if v.ClusterID == v.OfferedClusterID || v.OfferedClusterID == "" {
				t.Errorf("%s: %s: cluster %q is held and %q offered", n.Node, v.Service, v.ClusterID, v.OfferedClusterID)
			}
		}
	}
	if a := i.run("status"); !strings.Contains(a.out, "podwire accept") {
		t.Errorf("status does not say what to do: %s", a.out)
	}
	i.must(t, "accept", "--all")
	i.whole(t)
	if left := i.status(t).frozen(); len(left) > 0 {
		t.Errorf("still frozen: %v", left)
	}
	// Nothing that was there is in the new store, and a new beginning works.
	if a := i.run("get", "pods", "-n", s.ns); strings.Contains(a.out, "web-2") {
		t.Errorf("a Pod is there that the store does not have: %s", a.out)
	}
	i.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: anew}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: "+s.ns+"}}")
	i.apply(t, echoPod("anew", "a1", "node-2", 80)+clientPod("anew", "c1", "node-1")+webService("anew", "s", ""))
	for _, vip := range i.service(t, "anew", "s").Spec.ClusterIPs {
		if who, a := i.answers(inPod("anew", "c1"), 12, "tcp", vip, 80); len(who) != 12 {
			t.Errorf("%d of 12 answers: %s", len(who), a.text())
		}
	}
}
