package stack

import (
	"slices"
	"testing"

	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	cluster "podwire.dev/services/cluster/app"
	svcproxy "podwire.dev/services/svcproxy/app"
)

// settled waits until every agent has answered for a revision that changes nothing of what it holds, and returns how much
// was ever written on each host.
func (c *control) settled(nodes []*node, name string) []int {
	c.t.Helper()
	c.wait(c.apply("---\n{apiVersion: v1, kind: Namespace, metadata: {name: " + name + "}}\n"))
	var out []int
	for _, n := range nodes {
		out = append(out, n.host.Writes())
	}
	return out
}

// TestServicesRestart: each service in turn stops and starts again. No host is touched, no receipt is lost, and what
// changes afterwards arrives.
func TestServicesRestart(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + webService + denyAll)
	a := c.ready("default", "a")
	c.late(nodes)
	before := c.settled(nodes, "before")
	for i, name := range names {
		c.stops[name]()
		c.start(name)
		if after := c.settled(nodes, "after-"+name); !slices.Equal(after, before) && !c.starved(nodes) {
			t.Errorf("a restart of %s was %v writes on the hosts, were %v", name, after, before)
		}
		for _, n := range nodes {
			c.until(n.name+" follows "+name+" again", func() bool { return n.follows(name) })
		}
		c.wait(c.apply(webOn(90 + i)))
		c.serves(nodes, uint16(90+i), a)
		c.late(nodes)
		before = c.settled(nodes, "again-"+name)
	}
}

// follows says whether the agent has a stream to a service, with nothing frozen or refused.
func (n *node) follows(service string) bool {
	n.c.t.Helper()
	return slices.ContainsFunc(n.status().GetSlices(), func(s *nodeagentv1.SliceStatus) bool {
		return s.GetService() == service && s.GetConnected() && !s.GetFrozen() && s.GetRefused() == ""
	})
}

// late waits until the tables' late removals are done: what a port change leaves.
func (c *control) late(nodes []*node) {
	c.t.Helper()
	for _, n := range nodes {
		c.until(n.name+"'s late removals", func() bool { return !n.host.Late() })
	}
}

// TestAgentRestart: an agent that starts again finds its host as it was, and writes nothing; what changed meanwhile it
// takes then.
func TestAgentRestart(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + pod("b", "node-2") + webService + denyAll)
	a, b := c.ready("default", "a"), c.ready("default", "b")
	c.late(nodes)
	before := c.settled(nodes, "before")
	nodes[0].stop()
	nodes[0].start()
	if after := c.settled(nodes, "after"); !slices.Equal(after, before) && !c.starved(nodes) {
		t.Errorf("a restart of node-1's agent was %v writes on the hosts, were %v", after, before)
	}
	st := nodes[0].status()
	if !c.starved(nodes) && (st.GetKernelWrites() != 0 || st.GetKernelObjectsWritten() != 0 || len(st.GetDrift()) != 0) {
		t.Errorf("node-1 after the restart: %d writes, %d objects, drift %q", st.GetKernelWrites(), st.GetKernelObjectsWritten(), st.GetDrift())
	}
	if got := nodes[0].host.Running(); !slices.Equal(got, []string{"default/a"}) {
		t.Errorf("node-1 runs %v", got)
	}

	nodes[0].stop()
	revision := c.apply(webOn(84))
	c.behind(revision, svcproxy.Name, "node-1")
	nodes[0].start()
	c.wait(revision)
	c.serves(nodes, 84, a, b)
}

// TestSilentNode: a node that says nothing is named as the one behind; when it is declared dead, nobody waits for it, its
// Pods leave the Services, and nothing on it changes. When it is back it catches up.
func TestSilentNode(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + pod("b", "node-3") + webService)
	a, b := c.ready("default", "a"), c.ready("default", "b")
	nodes[2].stop()
	revision := c.apply(webOn(85))
	c.behind(revision, svcproxy.Name, "node-3")
	c.wait(revision)
	c.until("b's node is dead", func() bool {
		got := nodes[0].connect(nodes[0].underlay, c.service("web", 85))
		return len(got.Backends) == 1 && got.Backends[0].Addr() == a
	})
	if got := nodes[2].host.Running(); !slices.Equal(got, []string{"default/b"}) {
		t.Errorf("node-3 runs %v", got)
	}
	nodes[2].start()
	c.until("b is a backend again", func() bool {
		return len(nodes[0].connect(nodes[0].underlay, c.service("web", 85)).Backends) == 2
	})
	c.settled(nodes, "after")
	c.serves(nodes, 85, a, b)
}

// TestHungKernel: a node whose kernel does not answer is alive, and is named until it does.
func TestHungKernel(t *testing.T) {
	t.Parallel()
	c, nodes := threeNodes(t)
	c.apply(pod("a", "node-1") + webService)
	a := c.ready("default", "a")
	resume := nodes[1].host.Hang()
	defer resume()
	revision := c.apply(webOn(86))
	c.behind(revision, svcproxy.Name, "node-2")
	c.wait(revision, cluster.Name)
	c.serves([]*node{nodes[0], nodes[2]}, 86, a)
	resume()
	c.wait(revision)
	c.serves(nodes, 86, a)
}
