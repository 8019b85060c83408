package stack

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/store"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	svcproxy "podwire.dev/services/svcproxy/app"
)

// TestRestoredStore: a store that went backwards is followed by the services and by no agent that holds more: those hold
// what they held, and say so, until somebody accepts it.
func TestRestoredStore(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what    string
		restore func(c *control, backup store.Revision)
	}{
		{"the same members", func(c *control, backup store.Revision) { c.fake.Restore(backup) }},
		{"new members", func(c *control, backup store.Revision) { c.fake.Restore(backup); c.fake.ReplaceCluster() }},
		{"services that begin anew", func(c *control, backup store.Revision) {
			for _, name := range names {
				c.stops[name]()
			}
			c.fake.Restore(backup)
			for _, name := range names {
				c.start(name)
			}
		}},
		{"services that begin anew, when the store has overtaken what the nodes hold", func(c *control, backup store.Revision) {
			for _, name := range names {
				c.stops[name]()
			}
			reached := c.fake.Revision()
			c.fake.Restore(backup)
			if err := c.fake.MarkHistory(c.ctx); err != nil { // somebody else's, who writes a lot
				c.t.Fatal(err)
			}
			for at := store.Revision(0); at < reached+10; {
				var err error
				if at, err = c.fake.PutBlob(c.ctx, "busy", timestamppb.Now(), at); err != nil {
					c.t.Fatal(err)
				}
			}
			for _, name := range names {
				c.start(name)
			}
		}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			c, nodes := threeNodes(t)
			c.apply(pod("a", "node-1") + webService)
			a := c.ready("default", "a")
			backup := c.fake.Revision()
			for port := 100; port < 120; port++ {
				c.apply(webOn(port))
			}
			c.apply(pod("b", "node-2"))
			c.serves(nodes, 119, a, c.ready("default", "b"))
			to := c.service("web", 119)

			tt.restore(c, backup)
			revision := c.heldBack(nodes, to)
			for _, n := range nodes { // once: slices whose services hear of it later take it as well
				if took := n.accept(); !slices.Contains(took, svcproxy.Name) {
					t.Errorf("accept on %s took %v, and svcproxy was frozen", n.name, took)
				}
			}
			c.until("what was accepted is taken", func() bool {
				_, err := c.follow(revision, nil, nothing)
				return err == nil
			})
			c.serves(nodes, 87, a)
			c.until("the Pod that the backup does not know has ended", func() bool {
				return len(nodes[1].host.Running())+len(nodes[1].host.Linked()) == 0
			})
			for _, n := range nodes {
				if still := frozen(n.status()); len(still) > 0 {
					t.Errorf("%s is still frozen: %v", n.name, still)
				}
			}
			c.apply(pod("c", "node-3"))
			c.serves(nodes, 87, a, c.ready("default", "c"))
		})
	}
}

// heldBack waits until every node is frozen, and looks whether it holds its last good state, in which a Service has two
// backends. It returns the revision of a change of that Service to port 87, which no node takes.
func (c *control) heldBack(nodes []*node, to netip.AddrPort) (revision int64) {
	c.t.Helper()
	for _, n := range nodes {
		c.until(n.name+" is frozen", func() bool { return slices.Contains(frozen(n.status()), svcproxy.Name) })
	}
	revision = c.apply(webOn(87))
	if got := c.refused(revision).Error(); !strings.Contains(got, "podwire accept") {
		c.t.Errorf("wait says %q, want what to do", got)
	}
	for _, n := range nodes {
		if got := n.connect(n.underlay, to); len(got.Backends) != 2 {
			c.t.Errorf("%s did not hold its last good state: %+v", n.name, got)
		}
		for _, s := range n.status().GetSlices() {
			backwards := s.GetOfferedVersion() < s.GetVersion() || s.GetOfferedClusterId() != s.GetClusterId()
			if s.GetFrozen() && (s.GetOfferedVersion() == 0 || !backwards) {
				c.t.Errorf("%s: %v; what is offered must be told", n.name, s)
			}
		}
	}
	if got := nodes[1].host.Running(); !slices.Equal(got, []string{"default/b"}) {
		c.t.Errorf("node-2 runs %v", got)
	}
	return revision
}

// accept makes the node take what its services offer, and returns those that were frozen.
func (n *node) accept() []string {
	n.c.t.Helper()
	resp, err := n.agent.Accept(n.c.ctx, &nodeagentv1.AcceptRequest{})
	if err != nil {
		n.c.t.Fatalf("accept on %s: %v", n.name, err)
	}
	return resp.GetServices()
}

// frozen are the services whose slices are frozen.
func frozen(st *nodeagentv1.StatusResponse) (out []string) {
	for _, s := range st.GetSlices() {
		if s.GetFrozen() {
			out = append(out, s.GetService())
		}
	}
	return out
}
