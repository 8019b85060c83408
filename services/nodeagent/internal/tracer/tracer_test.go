package tracer_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
	"podwire.dev/services/nodeagent/internal/tracer"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var (
	open  = nodestate.Side{Mode: nodestate.SideOpen}
	node  = plan.Node{Name: "node-1", Addresses: []netip.Addr{addr("172.30.0.2")}, TunnelPort: 8472}
	shape = nodestate.NewSlice(
		nodestate.Row(nodestate.Range{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("10.244.0.0/16")}),
		nodestate.Range{Kind: nodestate.RangeService, Prefix: netip.MustParsePrefix("10.96.0.0/16")},
		nodestate.Member{
			Name: "node-1", Kind: nodestate.MemberNode, Tunnel: []netip.Addr{addr("10.244.0.1")},
			Blocks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/26")},
		},
		nodestate.Member{
			Name: "node-2", Kind: nodestate.MemberNode, Tunnel: []netip.Addr{addr("10.244.1.1")},
			Blocks:   []netip.Prefix{netip.MustParsePrefix("10.244.1.0/26")},
			Underlay: []netip.Addr{addr("172.30.0.3")},
		},
	)
)

func isolated(class byte) nodestate.Side {
	return nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{class}}
}

// port is a service port named after itself.
func port(name, cluster string, edit func(*nodestate.ServicePort)) nodestate.ServicePort {
	p := nodestate.ServicePort{
		ServiceKey:       nodestate.ServiceKey{Namespace: "default", Service: name, Protocol: nodestate.TCP},
		ClusterAddresses: []netip.Addr{addr(cluster)}, Port: 80, SourceMode: nodestate.SourceAll,
		InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
	}
	if edit != nil {
		edit(&p)
	}
	return p
}

func endpoint(p nodestate.ServicePort, at, node string) nodestate.Endpoint {
	return nodestate.Endpoint{ServiceKey: p.ServiceKey, Address: addr(at), Backend: 8080, Node: node, State: nodestate.EndpointReady}
}

// elements are those of a node with pods a (open), b (isolated both ways) and c (without policy), and some Services.
func elements(t *testing.T) plan.Elements {
	t.Helper()
	web := port("web", "10.96.0.10", func(p *nodestate.ServicePort) {
		p.NodePort, p.NodePortFamilies, p.ExternalPolicy = 30080, []uint8{4}, nodestate.LocalityLocal
	})
	self := port("self", "10.96.0.11", func(p *nodestate.ServicePort) { p.AffinitySeconds = 60 })
	far := port("far", "10.96.0.12", nil)
	empty := port("empty", "10.96.0.13", nil)
	local := port("local", "10.96.0.14", func(p *nodestate.ServicePort) { p.InternalPolicy = nodestate.LocalityLocal })
	guarded := port("guarded", "10.96.0.15", func(p *nodestate.ServicePort) {
		p.LoadBalancerAddresses = []netip.Addr{addr("203.0.113.9")}
		p.SourceMode, p.SourceRanges = nodestate.SourceSome, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	})
	in := plan.Input{
		Node: node, Fabric: shape,
		Attachments: []plan.Attachment{
			{UID: "a", Link: "pwpa", Addresses: []netip.Addr{addr("10.244.0.5")}},
			{UID: "b", Link: "pwpb", Addresses: []netip.Addr{addr("10.244.0.6")}},
			{UID: "c", Link: "pwpc", Addresses: []netip.Addr{addr("10.244.0.7")}},
		},
		Services: nodestate.NewSlice(nodestate.Row(web), self, far, empty, local, guarded,
			endpoint(web, "10.244.0.5", "node-1"), endpoint(web, "10.244.1.5", "node-2"), endpoint(self, "10.244.0.5", "node-1"),
			endpoint(far, "172.30.0.9", ""), endpoint(local, "10.244.1.5", "node-2"), endpoint(guarded, "10.244.0.5", "node-1")),
		Policy: nodestate.NewSlice(
			nodestate.Row(nodestate.Subject{PodUID: "a", Ingress: open, Egress: open}),
			nodestate.Subject{PodUID: "b", Ingress: isolated(1), Egress: isolated(2)},
			nodestate.Peer{Address: addr("10.244.0.5"), Class: nodestate.Class{9}},
			nodestate.PeerRange{AddrRange: nodestate.AddrRange{From: addr("10.244.1.0"), To: addr("10.244.1.63")}, Class: nodestate.Class{8}},
			nodestate.Allow{
				Direction: nodestate.Ingress, Subject: nodestate.Class{1}, PeerMode: nodestate.PeerClass, Peer: nodestate.Class{9},
				PortMode: nodestate.PortRange, Protocol: nodestate.TCP, From: 8080, To: 8080,
			},
			nodestate.Allow{
				Direction: nodestate.Ingress, Subject: nodestate.Class{1}, PeerMode: nodestate.PeerClass, Peer: nodestate.Class{8},
				PortMode: nodestate.PortRange, Protocol: nodestate.UDP, From: 1000, To: 2000,
			},
			nodestate.Allow{
				Direction: nodestate.Egress, Subject: nodestate.Class{2}, PeerMode: nodestate.PeerAny, PortMode: nodestate.PortProtocol,
				Protocol: nodestate.UDP,
			},
			nodestate.Allow{
				Direction: nodestate.Egress, Subject: nodestate.Class{2}, PeerMode: nodestate.PeerClass, Peer: nodestate.Class{8},
				PortMode: nodestate.PortAny,
			},
		),
	}
	e, err := plan.Plan(in, plan.NewAllocator(), time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// parse reads "<origin> <source> > <destination>[:port]/<protocol> [middle]".
func parse(t *testing.T, text string) tracer.Packet {
	t.Helper()
	f := strings.Fields(text)
	to, protocol, _ := strings.Cut(f[3], "/")
	p := tracer.Packet{
		Source: addr(f[1]),
		Origin: map[string]tracer.Origin{
			"pod": tracer.Pod, "node": tracer.Process, "fabric": tracer.Fabric, "underlay": tracer.Underlay,
		}[f[0]],
		Protocol: map[string]nodestate.Protocol{"tcp": nodestate.TCP, "udp": nodestate.UDP, "icmp": tracer.ICMP}[protocol],
	}
	if at, err := netip.ParseAddrPort(to); err == nil {
		p.Destination, p.Port = at.Addr(), at.Port()
	} else {
		p.Destination = addr(to)
	}
	if len(f) > 4 {
		p.Segment = tracer.Middle
	}
	return p
}

func TestTrace(t *testing.T) {
	e, host := elements(t), tracer.HostOf(node, shape)
	for packet, want := range map[string]string{
		"pod 10.244.0.5 > 8.8.8.8:53/udp":              "forwarded by egress policy, source becomes the address of the leaving link",
		"pod 10.244.0.5 > 10.244.1.5:80/tcp":           "forwarded by egress policy, source kept",
		"pod 10.244.0.5 > 10.244.1.5:80/tcp middle":    "dropped by opening",
		"pod 10.244.0.5 > 10.244.0.6:8080/tcp":         "delivered by ingress policy, source kept",
		"pod 10.244.0.5 > 10.244.0.6:8081/tcp":         "dropped by ingress policy",
		"pod 10.244.0.5 > 10.244.0.6/icmp":             "dropped by ingress policy",
		"pod 10.244.0.6 > 10.244.0.5:80/tcp":           "dropped by egress policy",
		"pod 10.244.0.6 > 10.244.0.5:80/udp":           "delivered by ingress policy, source kept",
		"pod 10.244.0.6 > 10.244.1.9/icmp":             "forwarded by egress policy, source kept",
		"pod 10.244.0.6 > 172.30.0.2:22/tcp":           "dropped by egress policy",
		"pod 10.244.0.6 > 172.30.0.2:53/udp":           "delivered by egress policy, source kept",
		"pod 10.244.0.5 > 172.30.0.2:22/tcp":           "delivered by egress policy, source kept",
		"pod 10.244.0.5 > 10.244.0.9:80/tcp":           "rejected by route",
		"pod 10.244.0.7 > 8.8.8.8:53/udp":              "dropped by egress policy",
		"pod 10.244.0.5 > 10.244.0.7:80/tcp":           "dropped by ingress policy",
		"fabric 10.244.1.5 > 10.244.0.6:1500/udp":      "delivered by ingress policy, source kept",
		"fabric 10.244.1.5 > 10.244.0.6:2001/udp":      "dropped by ingress policy",
		"fabric 10.244.1.5 > 10.244.0.5:80/tcp middle": "dropped by opening",
		"fabric 172.30.0.9 > 10.244.0.5:80/tcp":        "dropped by anti-spoofing",
		"underlay 10.244.1.5 > 10.244.0.5:80/tcp":      "dropped by anti-spoofing",
		"underlay 172.30.0.9 > 172.30.0.2:22/tcp":      "delivered by host, source kept",
		"pod 10.244.0.5 > 172.30.0.2:8472/udp":         "dropped by anti-spoofing",
		"pod 10.244.0.5 > 172.30.0.3:8472/udp":         "dropped by anti-spoofing",
		"pod 10.244.0.5 > 10.244.1.5:8472/udp":         "forwarded by egress policy, source kept",
		"fabric 10.244.1.5 > 10.244.0.1:8472/udp":      "dropped by anti-spoofing",
		"underlay 172.30.0.9 > 172.30.0.2:8472/udp":    "dropped by anti-spoofing",
		"underlay 172.30.0.3 > 172.30.0.2:8472/udp":    "delivered by host, source kept",
		"underlay 172.30.0.9 > 8.8.8.8:22/tcp":         "forwarded by host, source kept",
		"underlay 172.30.0.9 > 10.244.0.5:80/tcp":      "delivered by ingress policy, source kept",
		"node 10.244.0.1 > 10.244.0.6:80/tcp":          "delivered by a node reaches its pods, source kept",
		"node 10.244.0.1 > 10.244.0.6:80/tcp middle":   "dropped by opening",
		"node 10.244.0.1 > 10.244.1.5:80/tcp":          "forwarded by host, source kept",
		"node 172.30.0.2 > 10.244.1.5:80/tcp":          "forwarded by host, source becomes the tunnel address",
		"node 172.30.0.2 > 8.8.8.8:53/udp":             "forwarded by host, source kept",
		"node 172.30.0.2 > 10.244.0.9:80/tcp":          "rejected by route",
		"pod 10.244.0.6 > 10.96.0.10:80/tcp":           "to 10.244.0.5:8080 dropped by egress policy; to 10.244.1.5:8080 forwarded by egress policy, source kept",
		"underlay 172.30.0.9 > 172.30.0.2:30080/tcp":   "to 10.244.0.5:8080 delivered by ingress policy, source kept",
		"pod 10.244.0.6 > 172.30.0.2:30080/tcp":        "to 10.244.0.5:8080 dropped by egress policy; to 10.244.1.5:8080 forwarded by egress policy, source kept",
		"pod 10.244.0.5 > 10.96.0.11:80/tcp":           "to 10.244.0.5:8080 delivered by a pod reaches itself, source becomes the tunnel address",
		"pod 10.244.0.5 > 10.96.0.12:80/tcp":           "to 172.30.0.9:8080 forwarded by egress policy, source becomes the address of the leaving link",
		"node 10.244.0.1 > 10.96.0.12:80/tcp":          "to 172.30.0.9:8080 forwarded by host, source becomes the address of the leaving link",
		"pod 10.244.0.5 > 10.96.0.13:80/tcp":           "rejected by no endpoints",
		"node 10.244.0.1 > 10.96.0.13:80/tcp":          "rejected by no endpoints",
		"pod 10.244.0.5 > 10.96.0.14:80/tcp":           "dropped by traffic policy Local",
		"pod 10.244.0.5 > 10.96.0.10:81/tcp":           "rejected by no endpoints",
		"node 10.244.0.1 > 10.96.0.10:81/udp":          "rejected by no endpoints",
		"pod 10.244.0.5 > 10.96.0.10/icmp":             "dropped by no endpoints",
		"underlay 198.51.100.7 > 203.0.113.9:80/tcp":   "to 10.244.0.5:8080 delivered by ingress policy, source kept",
		"underlay 192.0.2.7 > 203.0.113.9:80/tcp":      "dropped by source ranges",
		"underlay 172.30.0.9 > 10.96.0.12:80/tcp":      "to 172.30.0.9:8080 forwarded by host, source becomes the address of the leaving link",
	} {
		got, err := tracer.Do(e, host, parse(t, packet))
		if err != nil {
			t.Errorf("%s: %v", packet, err)
			continue
		}
		var ways []string
		for _, w := range got.Ways {
			text := fmt.Sprintf("%s by %s", w.Fate, w.Decided)
			if w.Backend.IsValid() {
				text = fmt.Sprintf("to %s %s", w.Backend, text)
			}
			if w.Rewrite != 0 {
				text += ", " + w.Rewrite.String()
			}
			ways = append(ways, text)
			if len(w.Steps) == 0 {
				t.Errorf("%s: a way without steps", packet)
			}
		}
		slices.Sort(ways)
		if text := strings.Join(ways, "; "); text != want {
			t.Errorf("%s:\n got %s\nwant %s\n%s", packet, text, want, strings.Join(got.Ways[0].Steps, "\n"))
		}
	}
}

func TestForgedLink(t *testing.T) {
	p := parse(t, "pod 10.244.0.5 > 8.8.8.8:53/udp")
	p.Link = "pwpb"
	got, err := tracer.Do(elements(t), tracer.HostOf(node, shape), p)
	if err != nil || got.Worst().Decided != tracer.PartGate || got.Worst().Fate != tracer.Dropped {
		t.Errorf("%+v %v", got, err)
	}
}

// TestMissesClose takes one element away at a time. Where the packet passed before, it may then be refused, dropped or
// sent elsewhere, but where it did not pass, it must not pass: no missing element opens anything. Two sets restrict by
// what they hold, and their elements are left alone: guards, and the ranges of Services and pods.
func TestMissesClose(t *testing.T) {
	all, host := elements(t), tracer.HostOf(node, shape)
	restricting := []plan.SetName{
		plan.SetGuards.In(plan.IPv4), plan.SetServiceRanges.In(plan.IPv4), plan.SetPodRanges.In(plan.IPv4),
	}
	for _, packet := range []string{
		"pod 10.244.0.5 > 10.244.0.6:8081/tcp", "pod 10.244.0.6 > 10.244.0.5:80/tcp", "fabric 10.244.1.5 > 10.244.0.6:2001/udp",
		"pod 10.244.0.7 > 8.8.8.8:53/udp", "pod 10.244.0.6 > 10.96.0.11:80/tcp", "pod 10.244.0.6 > 172.30.0.2:22/tcp",
		"underlay 192.0.2.7 > 203.0.113.9:80/tcp", "pod 10.244.0.5 > 10.244.0.7:80/tcp",
	} {
		p := parse(t, packet)
		p.Link = map[string]string{"10.244.0.5": "pwpa", "10.244.0.6": "pwpb", "10.244.0.7": "pwpc"}[p.Source.String()]
		for _, el := range all.Sorted() {
			// Without its frontend, the address of a load balancer is the host's own affair.
			if slices.Contains(restricting, el.Set) || el.Set == plan.SetFrontends.In(plan.IPv4) && p.Origin == tracer.Underlay {
				continue
			}
			e := all.Clone()
			e.Delete(el.Set, el.Key)
			got, err := tracer.Do(e, host, p)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range got.Ways {
				if w.Fate == tracer.Delivered || w.Fate == tracer.Forwarded {
					t.Errorf("%s passes without an element of %s:\n%s", packet, el.Set, strings.Join(w.Steps, "\n"))
				}
			}
		}
	}
}

func TestBadPackets(t *testing.T) {
	good := parse(t, "pod 10.244.0.5 > 8.8.8.8:53/udp")
	for what, edit := range map[string]func(*tracer.Packet){
		"two families":    func(p *tracer.Packet) { p.Destination = addr("2001:db8::1") },
		"no origin":       func(p *tracer.Packet) { p.Origin = 0 },
		"no protocol":     func(p *tracer.Packet) { p.Protocol = 0 },
		"no addresses":    func(p *tracer.Packet) { p.Source, p.Destination = netip.Addr{}, netip.Addr{} },
		"ICMP with port":  func(p *tracer.Packet) { p.Protocol = tracer.ICMP },
		"nobody's source": func(p *tracer.Packet) { p.Source = addr("10.244.0.9") },
	} {
		p := good
		edit(&p)
		if _, err := tracer.Do(elements(t), tracer.Host{}, p); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}
