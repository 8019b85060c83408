package lb_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/svcproxy/internal/lb"
)

// TestHintsInLookup: what is told of a Service is what the node does with its hints.
func TestHintsInLookup(t *testing.T) {
	const text = `
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: a}}
---
apiVersion: v1
kind: Node
metadata: {name: node-3, labels: {topology.kubernetes.io/zone: c}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.1.1, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.0.1], nodeName: node-1, zone: a, hints: {forZones: [{name: b}, {name: a}], forNodes: [{name: node-1}]}}
- {addresses: [10.244.0.2], nodeName: node-2, zone: a, hints: {forZones: [{name: a}], forNodes: [{name: node-2}]}}
- {addresses: [10.244.0.3], nodeName: node-2, zone: a, conditions: {ready: false, serving: true, terminating: true}}
`
	for _, tt := range []struct {
		node, reason string
		drop         string // a part of the text
		want         []string
	}{
		{"node-1", "hinted for this node", "", []string{"10.244.0.1"}},
		{"node-1", "hinted for its zone a", ", forNodes: [{name: node-2}]", []string{"10.244.0.1", "10.244.0.2"}},
		{"node-1", "", ", hints: {forZones: [{name: a}], forNodes: [{name: node-2}]}", []string{"10.244.0.1", "10.244.0.2"}},
		{"node-3", "", "", []string{"10.244.0.1", "10.244.0.2"}},
		{"", "", "", []string{"10.244.0.1", "10.244.0.2"}},
	} {
		s := newSim(t)
		for _, o := range objects(t, strings.Replace(text, tt.drop, "", 1)) {
			s.put(o)
		}
		a, err := s.world.Lookup(lb.Question{Address: netip.MustParseAddr("10.96.1.1"), Port: 80, Protocol: nodestate.TCP, Node: tt.node})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, b := range a.Backends {
			got = append(got, b.Address.String())
		}
		if !slices.Equal(got, tt.want) || !strings.Contains(a.Reason, tt.reason) || tt.reason == "" && strings.Contains(a.Reason, "hinted") {
			t.Errorf("from %q: %v because %q, want %v because %q", tt.node, got, a.Reason, tt.want, tt.reason)
		}
	}
}
