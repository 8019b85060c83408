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
		{"no pod", party{text: "outside", addrs: outsideAddresses()}, "fd00::2", "", "203.0.113.1"},
	} {
		asked := tt.p.asked(netip.MustParseAddr(tt.as))
		if asked.GetPod() != tt.pod || asked.GetAddress() != tt.addr {
			t.Errorf("%s: asked for %v, want pod %q, address %q", tt.name, asked, tt.pod, tt.addr)
		}
	}
}
