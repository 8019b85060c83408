package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// inZones gives the nodes their zones, as an operator does: in the agents' configurations.
func (i *instance) inZones(t *testing.T, zones map[string]string) {
	t.Helper()
	for node, zone := range zones {
		file := filepath.Join(i.state, "config", node+".yaml")
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(f, "zone: %s\n", zone); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		i.kill(t, node)
	}
	i.whole(t)
	for node, zone := range zones {
		await(t, node+" is in zone "+zone, func() error {
			var n struct {
				Metadata struct{ Labels map[string]string }
			}
			i.get(t, &n, "node", node)
			if got := n.Metadata.Labels["topology.kubernetes.io/zone"]; got != zone {
				return fmt.Errorf("it is in zone %q", got)
			}
			return nil
		})
	}
}

// TestTrafficDistribution: clients go to the endpoints of their node or their zone where the Service prefers these and there are
// any, and to all where there are none.
func TestTrafficDistribution(t *testing.T) {
	const ns = "spread"
	i := newInstance(t)
	i.inZones(t, map[string]string{"node-1": "a", "node-2": "a", "node-3": "b"})
	i.namespace(t, ns)
	i.apply(t, echoPod(ns, "e2", "node-2", 80)+echoPod(ns, "e3", "node-3", 80)+
		clientPod(ns, "c1", "node-1")+clientPod(ns, "c2", "node-2")+clientPod(ns, "c3", "node-3")+
		webService(ns, "any", "type: NodePort, ")+
		webService(ns, "close", "type: NodePort, trafficDistribution: PreferClose, ")+
		webService(ns, "zone", "type: NodePort, trafficDistribution: PreferSameZone, ")+
		webService(ns, "node", "type: NodePort, trafficDistribution: PreferSameNode, "))
	// A datagram from a port that was used a moment ago goes on to the endpoint of then, which is still one, as with kube-proxy:
	// datagrams are sent the first time only.
	protocols := []string{"tcp", "udp"}
	check := func(what string, want map[string][3][]string) {
		t.Helper()
		for name, whom := range want {
			s := i.service(t, ns, name)
			for n, want := range whom {
				node := fmt.Sprintf("node-%d", n+1)
				ask := func(from place, protocol, host string, port int) {
					t.Helper()
					who, a := i.answers(from, 24, protocol, host, port)
					if len(who) != 24 || !slices.Equal(slices.Compact(who), want) {
						t.Errorf("%s: %s, %v -> %s %s:%d: from %v, want %v\n%s", what, name, from, protocol, host, port, slices.Compact(who), want, a.text())
					}
				}
				for family, address := range i.nodeAddresses(t, node) {
					for _, protocol := range protocols {
						ask(inPod(ns, fmt.Sprintf("c%d", n+1)), protocol, s.Spec.ClusterIPs[family], 80)
					}
					ask(onNode(node), "tcp", s.Spec.ClusterIPs[family], 80)
					ask(outside(), "tcp", address, s.Spec.Ports[0].NodePort)
				}
			}
		}
		protocols = protocols[:1]
	}
	both, two, three, four := []string{"e2", "e3"}, []string{"e2"}, []string{"e3"}, []string{"e1", "e2"}
	byZone := [3][]string{two, two, three}
	check("an endpoint in each zone", map[string][3][]string{
		"any": {both, both, both}, "close": byZone, "zone": byZone, "node": byZone,
	})
	i.apply(t, echoPod(ns, "e1", "node-1", 80))
	check("two endpoints in zone a", map[string][3][]string{
		"zone": {four, four, three}, "node": {{"e1"}, two, three},
	})
	i.must(t, "delete", "pod", "e3", "-n", ns, "--wait")
	check("none in zone b", map[string][3][]string{
		"zone": {four, four, four}, "node": {{"e1"}, two, four},
	})
}
