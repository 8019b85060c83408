package secondopinion

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/plan"
	"podwire.dev/services/nodeagent/internal/tracer"
)

// paperWorld is a world without a kernel.
func paperWorld(t *testing.T) *world {
	w := &world{
		t: t, out: &box{name: "outside", addrs: outsideAddr}, member: &box{name: "dns-1", addrs: memberAddr},
	}
	for i := range w.nodes {
		n := &node{
			box:    &box{name: fmt.Sprintf("node-%d", i+1), addrs: both(fmt.Sprintf("172.30.9.%d", i+1), fmt.Sprintf("fd00:172:30:9::%d", i+1))},
			tunnel: both(fmt.Sprintf("10.244.%d.1", i+1), fmt.Sprintf("fd00:10:244:%d::1", i+1)),
		}
		for f, bits := range []int{26, 122} {
			n.blocks = append(n.blocks, netip.PrefixFrom(n.tunnel[f], bits).Masked())
		}
		n.node, w.nodes[i] = n, n
		for j := range 4 {
			w.pods = append(w.pods, &box{
				name: fmt.Sprintf("%c%d", 'a'+i, j+1), link: fmt.Sprintf("pwp%c%d", 'a'+i, j+1), node: n,
				addrs: both(fmt.Sprintf("10.244.%d.%d", i+1, 10+j), fmt.Sprintf("fd00:10:244:%d::%x", i+1, 10+j)),
			})
		}
	}
	return w
}

// write puts rows into a node without a kernel.
func (w *world) write(n *node, services, policy *nodestate.Slice) {
	w.t.Helper()
	n.tables = dataplane.Tables{
		Node: plan.Node{Name: n.name, Addresses: n.addrs[:], TunnelPort: tunnelPort}, Fabric: nodestate.NewSlice(), Services: services, Policy: policy,
	}
	for f := range families {
		n.tables.Fabric.Upsert(nodestate.Range{Kind: nodestate.RangePod, Prefix: podRanges[f]})
		n.tables.Fabric.Upsert(nodestate.Range{Kind: nodestate.RangeService, Prefix: serviceRanges[f]})
	}
	for _, m := range w.members() {
		n.tables.Fabric.Upsert(m)
	}
	for _, p := range w.pods {
		if p.node == n {
			n.tables.Attachments = append(n.tables.Attachments, plan.Attachment{UID: p.name, Link: p.link, Addresses: p.addrs[:]})
		}
	}
	var err error
	n.tables.Elements, err = plan.Plan(plan.Input{
		Node: n.tables.Node, Attachments: n.tables.Attachments, Fabric: n.tables.Fabric, Services: services, Policy: policy,
	}, plan.NewAllocator(), time.Unix(1000, 0))
	if err != nil {
		w.t.Fatal(err)
	}
}

// paperClusters is how many random clusters are judged on paper for each one whose packets are sent.
const paperClusters = 30

// TestJudgeAgreesWithTheTracer asks both about random flows, and sends nothing: what the rows say must be what the
// elements say.
func TestJudgeAgreesWithTheTracer(t *testing.T) {
	s := seed(t)
	w := paperWorld(t)
	fates := map[tracer.Part]int{}
	for i := range *clustersFlag * paperClusters {
		g := newGenerator(s+uint64(i), w)
		services := g.services()
		for _, n := range w.nodes {
			w.write(n, services, g.policy(n))
		}
		m := newModel(w)
		for _, p := range append(g.probes(300, services), g.pings(30)...) {
			source := p.from.addrs[1]
			if p.to.Is4() {
				source = p.from.addrs[0]
			}
			for _, e := range m.predict(p, source) {
				if len(e.outcomes) == 0 {
					t.Errorf("cluster %d: %s has no end: %s", i, p, e)
				}
			}
		}
		for _, n := range w.nodes {
			for _, p := range g.probes(20, services) {
				packet := tracer.Packet{Source: n.tunnel[0], Destination: p.to, Protocol: p.protocol, Port: p.port, Origin: tracer.Fabric}
				if !p.to.Is4() {
					packet.Source = n.tunnel[1]
				}
				trace, err := tracer.Do(n.tables.Elements, tracer.HostOf(n.tables.Node, n.tables.Fabric), packet)
				if err != nil {
					t.Fatal(err)
				}
				fates[trace.Worst().Decided]++
				m.compare(n, packet, trace.Worst())
			}
		}
		for _, d := range m.disagreements {
			t.Errorf("cluster %d: %s", i, d)
		}
		if t.Failed() {
			t.Fatalf("cluster %d of seed %d", i, s)
		}
	}
	t.Logf("what decided for packets of the tunnel: %v", fates)
}
