package ct

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/judge"
	"podwire.dev/services/nodeagent/internal/plan"
)

var (
	dns    = nodestate.ServiceKey{Namespace: "kube-system", Service: "kube-dns", Port: "dns", Protocol: nodestate.UDP}
	client = netip.MustParseAddrPort("10.244.0.5:4000")
)

func dnsPort() nodestate.ServicePort {
	return nodestate.ServicePort{
		ServiceKey: dns, ClusterAddresses: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Port: 53,
		NodePort: 30053, NodePortFamilies: []uint8{4}, SourceMode: nodestate.SourceAll,
		LoadBalancerAddresses: []netip.Addr{netip.MustParseAddr("203.0.113.9")},
		InternalPolicy:        nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
	}
}

func dnsEndpoint(at string, state nodestate.EndpointState) nodestate.Endpoint {
	a := netip.MustParseAddrPort(at)
	return nodestate.Endpoint{ServiceKey: dns, Address: a.Addr(), Backend: a.Port(), State: state}
}

// tables are those of a node whose plan has taken the rows.
func tables(t *testing.T, attachments []plan.Attachment, rows ...nodestate.Row) dataplane.Tables {
	t.Helper()
	node := plan.Node{Name: "node-1", Addresses: []netip.Addr{netip.MustParseAddr("172.30.0.2")}}
	all := dataplane.Tables{
		Node: node, Attachments: attachments,
		Fabric: nodestate.NewSlice(), Services: nodestate.NewSlice(), Policy: nodestate.NewSlice(),
	}
	prefix := netip.MustParsePrefix
	rows = append(rows,
		nodestate.Range{Kind: nodestate.RangeService, Prefix: prefix("10.96.0.0/16")},
		nodestate.Range{Kind: nodestate.RangePod, Prefix: prefix("10.244.0.0/16")},
		nodestate.Member{
			Name: "node-1", Kind: nodestate.MemberNode, Blocks: []netip.Prefix{prefix("10.244.0.0/26")},
			Tunnel: []netip.Addr{netip.MustParseAddr("10.244.0.1")},
		})
	for _, r := range rows {
		switch r.(type) {
		case nodestate.Range, nodestate.Member:
			all.Fabric.Upsert(r)
		case nodestate.ServicePort, nodestate.Endpoint:
			all.Services.Upsert(r)
		default:
			all.Policy.Upsert(r)
		}
	}
	p := plan.New(node, plan.NewAllocator())
	for _, s := range []*nodestate.Slice{all.Fabric, all.Services, all.Policy} {
		if err := p.Apply(nodestate.Diff(nodestate.NewSlice(), s)); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range attachments {
		p.Attach(a)
	}
	if _, err := p.Commit(epoch); err != nil {
		t.Fatal(err)
	}
	all.Elements = p.Desired()
	return all
}

// flow is an entry from one address to another, sent on to a backend.
func flow(p nodestate.Protocol, from netip.AddrPort, to, backend string) *Entry {
	at := netip.MustParseAddrPort
	return &Entry{Protocol: p, Original: Tuple{from, at(to)}, Reply: Tuple{at(backend), from}}
}

func TestServiceFlows(t *testing.T) {
	ready := dnsEndpoint("10.244.1.2:5353", nodestate.EndpointReady)
	ending := dnsEndpoint("10.244.1.3:5353", nodestate.EndpointTerminating)
	var s services
	s.load(tables(t, nil, dnsPort(), ready, ending))
	udp, tcp := nodestate.UDP, nodestate.TCP
	for what, c := range map[string]struct {
		flow *Entry
		ends bool
	}{
		"to an endpoint":                      {flow(udp, client, "10.96.0.10:53", "10.244.1.2:5353"), false},
		"to one that terminates":              {flow(udp, client, "10.96.0.10:53", "10.244.1.3:5353"), false},
		"to one that is gone":                 {flow(udp, client, "10.96.0.10:53", "10.244.1.4:5353"), true},
		"to another port of the endpoint":     {flow(udp, client, "10.96.0.10:53", "10.244.1.2:53"), true},
		"TCP to one that is gone":             {flow(tcp, client, "10.96.0.10:53", "10.244.1.4:5353"), false},
		"never translated":                    {flow(udp, client, "10.96.0.10:53", "10.96.0.10:53"), true},
		"node port to an endpoint":            {flow(udp, client, "172.30.0.2:30053", "10.244.1.2:5353"), false},
		"node port to one that is gone":       {flow(udp, client, "172.30.0.2:30053", "10.244.1.4:5353"), true},
		"node port, never translated":         {flow(udp, client, "172.30.0.2:30053", "172.30.0.2:30053"), true},
		"the port on another host":            {flow(udp, client, "172.30.0.3:30053", "172.30.0.3:30053"), false},
		"load balancer, gone":                 {flow(udp, client, "203.0.113.9:53", "10.244.1.4:5353"), true},
		"a Service address that has no port":  {flow(udp, client, "10.96.0.11:53", "10.244.1.2:5353"), true},
		"somebody else's translation":         {flow(udp, client, "172.30.0.2:8053", "172.17.0.2:53"), false},
		"somebody else's, to a pod":           {flow(udp, client, "172.30.0.2:8053", "10.244.0.5:53"), false},
		"no Service at all":                   {flow(udp, client, "8.8.8.8:53", "8.8.8.8:53"), false},
		"another protocol on the same number": {flow(nodestate.SCTP, client, "10.96.0.10:53", "10.96.0.10:53"), false},
	} {
		if got := s.ends(c.flow); got != c.ends {
			t.Errorf("%s: ends is %v", what, got)
		}
	}
}

func TestServiceFlowsEndWithTheService(t *testing.T) {
	ready := dnsEndpoint("10.244.1.2:5353", nodestate.EndpointReady)
	node := flow(nodestate.UDP, client, "172.30.0.2:30053", "10.244.1.2:5353")
	balancer := flow(nodestate.UDP, client, "203.0.113.9:53", "10.244.1.2:5353")
	var s services
	pass := func(want bool, rows ...nodestate.Row) {
		t.Helper()
		s.load(tables(t, nil, rows...))
		for _, f := range []*Entry{node, balancer} {
			if s.ends(f) != want {
				t.Errorf("%v: ends is %v", f.Original, !want)
			}
		}
		s.unload()
		s.passed()
	}
	pass(false, dnsPort(), ready)
	pass(true)
	pass(true) // a packet on its way may have left an entry after the first pass
	pass(false)

	pass(false, dnsPort(), ready)
	other := dnsPort()
	other.Service = "other"
	pass(true, other, ready) // the addresses are used again, by a Service with other endpoints
}

func TestPolicyFlows(t *testing.T) {
	local, other := netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("10.244.0.6")
	attached := []plan.Attachment{
		{UID: "a", Link: "pwpa", Addresses: []netip.Addr{local}}, {UID: "b", Link: "pwpb", Addresses: []netip.Addr{other}},
	}
	open := nodestate.Side{Mode: nodestate.SideOpen}
	isolated := nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{1}}
	rows := []nodestate.Row{
		nodestate.Subject{PodUID: "a", Ingress: isolated, Egress: open},
		nodestate.Subject{PodUID: "b", Ingress: open, Egress: open},
		nodestate.Allow{
			Direction: nodestate.Ingress, Subject: nodestate.Class{1}, PeerMode: nodestate.PeerAny,
			PortMode: nodestate.PortRange, Protocol: nodestate.TCP, From: 80, To: 80,
		},
	}
	p := policy{judge: judge.New()}
	own := func() map[netip.Addr]bool { return map[netip.Addr]bool{netip.MustParseAddr("172.30.0.2"): true} }
	p.load(tables(t, attached, rows...), own())
	at := netip.MustParseAddrPort
	peer, node := at("10.244.1.2:5000"), at("172.30.0.2:5000")
	for what, c := range map[string]struct {
		flow *Entry
		fate fate
	}{
		"allowed":                         {flow(nodestate.TCP, peer, "10.244.0.5:80", "10.244.0.5:80"), keep},
		"denied":                          {flow(nodestate.TCP, peer, "10.244.0.5:81", "10.244.0.5:81"), end},
		"allowed after translation":       {flow(nodestate.TCP, peer, "10.96.0.7:81", "10.244.0.5:80"), keep},
		"denied after translation":        {flow(nodestate.TCP, peer, "10.96.0.7:80", "10.244.0.5:81"), end},
		"another protocol":                {flow(nodestate.UDP, peer, "10.244.0.5:80", "10.244.0.5:80"), cut},
		"from the node itself":            {flow(nodestate.TCP, node, "10.244.0.5:81", "10.244.0.5:81"), keep},
		"from the tunnel address":         {flow(nodestate.TCP, at("10.244.0.1:9"), "10.244.0.5:81", "10.244.0.5:81"), keep},
		"from the pod":                    {flow(nodestate.TCP, client, "8.8.8.8:53", "8.8.8.8:53"), keep},
		"from another local pod":          {flow(nodestate.TCP, at("10.244.0.6:9"), "10.244.0.5:81", "10.244.0.5:81"), end},
		"to itself":                       {flow(nodestate.TCP, client, "10.96.0.7:80", "10.244.0.5:81"), keep},
		"to a pod that is gone":           {flow(nodestate.TCP, peer, "10.244.0.7:80", "10.244.0.7:80"), end},
		"from a pod that is gone":         {flow(nodestate.TCP, at("10.244.0.7:9"), "8.8.8.8:53", "8.8.8.8:53"), end},
		"between others":                  {flow(nodestate.TCP, peer, "10.244.2.2:80", "10.244.2.2:80"), keep},
		"the host's own, to the world":    {flow(nodestate.TCP, node, "8.8.8.8:53", "8.8.8.8:53"), keep},
		"the host's, from tunnel address": {flow(nodestate.TCP, at("10.244.0.1:9"), "10.244.2.2:80", "10.244.2.2:80"), keep},
		"SCTP":                            {flow(nodestate.SCTP, peer, "10.244.0.5:80", "10.244.0.5:80"), cut},
		"ping":                            {flow(unix.IPPROTO_ICMP, at("10.244.1.2:0"), "10.244.0.5:0", "10.244.0.5:0"), end},
		"no transport":                    {flow(unix.IPPROTO_GRE, at("10.244.1.2:0"), "10.244.0.5:0", "10.244.0.5:0"), cut},
		"cut, and still denied":           {marked(flow(nodestate.UDP, peer, "10.244.0.5:80", "10.244.0.5:80")), keep},
		"cut, and allowed now":            {marked(flow(nodestate.UDP, client, "8.8.8.8:53", "8.8.8.8:53")), release},
		"cut, and its pod is gone":        {marked(flow(nodestate.UDP, peer, "10.244.0.7:80", "10.244.0.7:80")), end},
	} {
		if got := p.fate(c.flow); got != c.fate {
			t.Errorf("%s: fate %d, want %d", what, got, c.fate)
		}
	}
}

// marked is a flow that was cut before; other software's bits of the mark are its own.
func marked(e *Entry) *Entry {
	e.Mark = plan.CutMark | 5
	return e
}
