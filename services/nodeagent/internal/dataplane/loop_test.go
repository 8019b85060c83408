package dataplane_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/plan"
)

func TestRulesThenMembersThenFlows(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		_, from := n.since(0)
		n.put(nodestate.SourceIPAM, member(self, "10.244.0.1"), member("node-2", "10.244.1.1"),
			nodestate.Range{Kind: nodestate.RangePod, Prefix: prefix("10.244.0.0/16")})
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"), endpoint("web", "10.244.1.5"))
		n.put(nodestate.SourceCluster, nodestate.Workload{UID: "a", Namespace: "default", Name: "a"})
		got, _ := n.since(from)
		want := []string{"commit", "members", "commit", "flows", "workloads"}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if !n.has("frontends4", "10.96.0.7", "tcp . 80") {
			t.Errorf("the Service is not in the table:\n%s", n.inKernel().Format())
		}
		if w := n.workloads[len(n.workloads)-1]; !w.Complete || len(w.Upserts) != 1 || w.Version.Revision != n.version {
			t.Errorf("the pods got %+v", w)
		}
		n.agree()
	})
}

func TestWhatWaitsIsOneTransaction(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.hold = make(chan struct{})
		n.send(nodestate.SourceSvcproxy, nodestate.Delta{Upserts: []nodestate.Row{service("web", "10.96.0.7")}})
		synctest.Wait() // the loop is in the kernel
		_, from := n.since(0)
		for _, send := range []func(){
			func() {
				n.updates[nodestate.SourcePolicy] <- n.update(nodestate.SourcePolicy, 101, open("a"), open("b"))
			},
			func() {
				n.updates[nodestate.SourceIPAM] <- n.update(nodestate.SourceIPAM, 102, member(self, "10.244.0.1"))
			},
			func() {
				n.updates[nodestate.SourceSvcproxy] <- n.update(nodestate.SourceSvcproxy, 103, service("db", "10.96.0.8"))
			},
			func() { n.prepare(t.Context(), pod("a", "pwpa", "10.244.0.10")) },
			func() { n.prepare(t.Context(), pod("b", "pwpb", "10.244.0.11")) },
		} {
			go send()
		}
		synctest.Wait()
		close(n.hold)
		synctest.Wait()
		lines, _ := n.since(from)
		if commits := count(lines, "commit"); commits != 2 { // the one that was held up, and one for all the others
			t.Errorf("%d transactions: %v", commits, lines)
		}
		n.agree()
	})
}

func TestAnIDIsOnDiskBeforeItIsInTheKernel(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.refuse = func(c plan.Change) error {
			raw, err := os.ReadFile(filepath.Join(n.dir, "ids"))
			if err != nil || !strings.Contains(string(raw), "default/web") {
				t.Errorf("the transaction came before its ids: %q, %v", raw, err)
			}
			return nil
		}
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"), endpoint("web", "10.244.1.5"))
	})
}

func TestPrepareWaitsForThePolicy(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		a := pod("a", "pwpa", "10.244.0.10")
		answer := make(chan error, 1)
		go func() { answer <- n.loop.Prepare(t.Context(), a) }()
		synctest.Wait()
		select {
		case err := <-answer:
			t.Fatalf("prepared without a policy: %v", err)
		default:
		}
		if !n.has("pods4", "pwpa . 10.244.0.10") || n.has("ingress4", "10.244.0.10") {
			t.Errorf("want the gate's entry and no class:\n%s", n.inKernel().Format())
		}
		n.put(nodestate.SourcePolicy, open("b"))
		select {
		case err := <-answer:
			t.Fatalf("prepared with another pod's policy: %v", err)
		default:
		}
		n.put(nodestate.SourcePolicy, isolated("a", 7))
		if err := <-answer; err != nil {
			t.Error(err)
		}
		if !n.has("ingress4", "10.244.0.10") {
			t.Errorf("prepared, and no class is in the table:\n%s", n.inKernel().Format())
		}
		_, from := n.since(0)
		if err := n.loop.Prepare(t.Context(), a); err != nil {
			t.Errorf("again: %v", err)
		}
		if lines, _ := n.since(from); len(lines) != 0 {
			t.Errorf("preparing again did %v", lines)
		}
	})
}

func TestPrepareSaysWhatIsMissing(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := n.loop.Prepare(ctx, pod("a", "pwpa", "10.244.0.10"))
		if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "policy") {
			t.Errorf("got %v", err)
		}
		n.put(nodestate.SourcePolicy, open("a")) // nobody waits any more
		n.agree()
	})
}

func TestAPodThatIsRemovedIsNotPrepared(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		answer := make(chan error, 1)
		go func() { answer <- n.loop.Prepare(t.Context(), pod("a", "pwpa", "10.244.0.10")) }()
		synctest.Wait()
		var concern dataplane.Concern
		n.flows = func(_ dataplane.Tables, c dataplane.Concern) { concern = c }
		if err := n.loop.Remove(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := <-answer; !errs.Is(err, errs.Conflict) {
			t.Errorf("got %v", err)
		}
		if n.has("pwpa") {
			t.Error("the gate's entry is still there")
		}
		if !concern.Policy {
			t.Error("the flows of the pod were left to the next one with its address")
		}
		if err := n.loop.Remove(t.Context(), "a"); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

func TestLateRemovals(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		web, one := service("web", "10.96.0.7"), endpoint("web", "10.244.1.5")
		n.put(nodestate.SourceSvcproxy, web, one)
		n.drop(nodestate.SourceSvcproxy, web, one)
		if n.has("frontends4", "10.96.0.7") {
			t.Error("the frontend is what stops at once")
		}
		if !n.has("endpoints4", "10.244.1.5") {
			t.Error("a packet may have looked up what led to the endpoint: it must still be there")
		}
		elapse(plan.Grace - time.Millisecond)
		if !n.has("endpoints4", "10.244.1.5") {
			t.Error("the grace time was not over")
		}
		elapse(time.Millisecond)
		if n.has("endpoints4", "10.244.1.5") {
			t.Error("the grace time is over")
		}
		n.agree()
	})
}

func TestAnEndpointComesBackWhileItsRemovalWaits(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		web, one := service("web", "10.96.0.7"), endpoint("web", "10.244.1.5")
		n.put(nodestate.SourceSvcproxy, web, one)
		n.drop(nodestate.SourceSvcproxy, one)
		n.put(nodestate.SourceSvcproxy, one)
		n.agree()
		if !n.has("endpoints4", "10.244.1.5") {
			t.Error("the endpoint was removed although it is wanted")
		}
	})
}

func TestNodePortsFollowTheAddresses(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		if err := n.loop.SetNodeAddresses(t.Context(), addrs("172.30.0.9")); err != nil {
			t.Fatal(err)
		}
		if !n.has("node4", "172.30.0.9") || n.has("node4", "172.30.0.2") {
			t.Errorf("got\n%s", n.inKernel().Format())
		}
	})
}

func TestAnnouncementsAreRepeated(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		_, from := n.since(0)
		own := nodestate.Announcement{Address: addrs("172.30.0.200")[0], Node: self, Epoch: 1}
		other := nodestate.Announcement{Address: addrs("172.30.0.201")[0], Node: "node-2", Epoch: 1}
		n.put(nodestate.SourceSvcproxy, own, other)
		elapse(time.Second)
		lines, _ := n.since(from)
		if got := count(lines, "advertise"); got != 3 {
			t.Errorf("announced %d times: %v", got, lines)
		}
		if len(n.announced) != 1 || n.announced[0] != own {
			t.Errorf("held: %v", n.announced)
		}
	})
}

func count(lines []string, what string) (n int) {
	for _, l := range lines {
		if l == what {
			n++
		}
	}
	return n
}
