package cli

import (
	"net/netip"
	"testing"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// TestPolicyIsAskedAboutTheFamilyOfThePacket: of a pod's name the policy service judges the first family only.
func TestPolicyIsAskedAboutTheFamilyOfThePacket(t *testing.T) {
	t.Parallel()
	dual := podParty(&objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "web"},
		Status:   &objectv1.PodStatus{PodIps: []*objectv1.PodIP{{Ip: "10.244.0.1"}, {Ip: "fd00::1"}}},
	})
	byName := &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "endpoint"}}
	for _, tt := range []struct {
		name string
		p    party
		as   string
		pod  string
		addr string
	}{
		{"first family", dual, "10.244.0.2", "default/web", ""},
		{"second family", dual, "fd00::2", "", "fd00::1"},
		{"narrowed to the second family", party{text: dual.text, pod: dual.pod, addrs: dual.addrs[1:]}, "fd00::2", "", "fd00::1"},
		{"a pod known by name only", party{text: "default/endpoint", pod: byName}, "fd00::2", "default/endpoint", ""},
		{"no pod", party{text: "outside", addrs: assumedAddresses()}, "fd00::2", "", "203.0.113.1"},
	} {
		asked := tt.p.asked(netip.MustParseAddr(tt.as))
		if asked.GetPod() != tt.pod || asked.GetAddress() != tt.addr {
			t.Errorf("%s: asked for %v, want pod %q, address %q", tt.name, asked, tt.pod, tt.addr)
		}
	}
}

// TestPolicyIsAskedAboutWhatItSees: what a node sends to another node's pod, and what it lets in for a client outside, has
// its tunnel address; its own pods see it as itself, or the client.
func TestPolicyIsAskedAboutWhatItSees(t *testing.T) {
	t.Parallel()
	nodes := []party{
		{text: "node-1", node: &objectv1.Node{}, addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}},
		{text: "node-2", node: &objectv1.Node{}, addrs: []netip.Addr{netip.MustParseAddr("172.30.0.12")}},
	}
	pod := func(name, node, at string) end {
		o := &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name}, Spec: &objectv1.PodSpec{NodeName: node}}
		return end{party: party{text: "default/" + name, pod: o}, addr: netip.MustParseAddr(at), port: 80}
	}
	client := party{text: "192.0.2.7", addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}
	near, far := pod("near", "node-1", "10.244.0.2"), pod("far", "node-2", "10.244.0.65")
	hosted := end{party: party{text: "172.30.0.12"}, addr: netip.MustParseAddr("172.30.0.12"), port: 80}
	for _, tt := range []struct {
		name string
		from party
		to   end
		want string
		same bool
	}{
		{"a client outside, the node that it enters", client, near, "192.0.2.7", true},
		{"a client outside, another node", client, far, "10.244.0.0", false},
		{"a client outside, a host's network", client, hosted, "172.30.0.11", false},
		{"a node, its own pod", nodes[0], near, "172.30.0.11", true},
		{"a node, another node's pod", nodes[0], far, "10.244.0.0", false},
		{"a pod, another node's pod", party{text: near.party.text, pod: near.party.pod, addrs: []netip.Addr{near.addr}}, far, "10.244.0.2", true},
		{"a pod, another host", party{text: near.party.text, pod: near.party.pod, addrs: []netip.Addr{near.addr}}, hosted, "172.30.0.11", false},
	} {
		x := &explainer{
			from: tt.from, entry: "node-1", nodes: nodes,
			tunnels: map[string][]netip.Addr{"node-1": {netip.MustParseAddr("10.244.0.0")}},
		}
		seen, why := x.seen(t.Context(), tt.to)
		if seen.String() != tt.want || (why == "") != tt.same {
			t.Errorf("%s: sees %s (%s), want %s", tt.name, seen, why, tt.want)
		}
	}
}
