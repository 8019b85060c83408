package ct

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/plan"
)

// epoch is any time.
var epoch = time.Unix(1000, 0)

// space is a namespace with a table of its own.
func space(t testing.TB) (*testnet.NS, *Table, *netlink.Handle) {
	t.Helper()
	ns := testnet.New(t).AddNS("node")
	table, err := Open(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()), unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return ns, table, h
}

// put makes an entry.
func put(t testing.TB, h *netlink.Handle, p nodestate.Protocol, from, to, backend netip.AddrPort) {
	t.Helper()
	slice := func(a netip.Addr) net.IP { return a.AsSlice() }
	family := netlink.InetFamily(unix.AF_INET6)
	if from.Addr().Is4() {
		family = unix.AF_INET
	}
	f := &netlink.ConntrackFlow{
		FamilyType: uint8(family), TimeOut: 100, Mark: 7,
		Forward: netlink.IPTuple{
			Protocol: uint8(p), SrcIP: slice(from.Addr()), DstIP: slice(to.Addr()), SrcPort: from.Port(), DstPort: to.Port(),
		},
		Reverse: netlink.IPTuple{
			Protocol: uint8(p), SrcIP: slice(backend.Addr()), DstIP: slice(from.Addr()), SrcPort: backend.Port(), DstPort: from.Port(),
		},
	}
	if p == nodestate.TCP {
		f.ProtoInfo = &netlink.ProtoInfoTCP{State: 3}
	}
	if err := h.ConntrackCreate(netlink.ConntrackTable, family, f); err != nil {
		t.Fatalf("make a flow from %s to %s: %v", from, to, err)
	}
}

func list(t testing.TB, table *Table) map[Tuple]Entry {
	t.Helper()
	got := map[Tuple]Entry{}
	if err := table.Each(context.Background(), func(e *Entry) { got[e.Original] = e.keep() }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestListAndDelete(t *testing.T) {
	ns, table, h := space(t)
	at := netip.MustParseAddrPort
	flows := []Tuple{
		{at("10.244.0.5:4000"), at("10.244.1.2:5353")}, {at("10.244.0.5:4001"), at("10.244.1.2:5353")},
		{at("[fd00::5]:4000"), at("[fd00::6]:53")}, {at("[fd00::5]:4001"), at("[fd00::6]:53")},
	}
	for i, f := range flows {
		put(t, h, []nodestate.Protocol{nodestate.UDP, nodestate.TCP}[i%2], f.Source, f.Destination, f.Destination)
	}
	got := list(t, table)
	if len(got) != len(flows) {
		t.Fatalf("listed %d flows: %v", len(got), got)
	}
	for i, f := range flows {
		if e := got[f]; e.Protocol != []nodestate.Protocol{nodestate.UDP, nodestate.TCP}[i%2] || e.Mark != 7 || e.Translated() {
			t.Errorf("%v: %+v", f, e)
		}
	}
	old := []Entry{got[flows[0]], got[flows[3]]}
	if n, err := table.Delete(context.Background(), old); n != 2 || err != nil {
		t.Fatalf("deleted %d: %v", n, err)
	}
	// The flow begins anew: it is another entry, and stays.
	put(t, h, nodestate.UDP, flows[0].Source, flows[0].Destination, flows[0].Destination)
	if n, err := table.Delete(context.Background(), old); n != 0 || err != nil {
		t.Errorf("deleted %d of those that had ended: %v", n, err)
	}
	if got = list(t, table); len(got) != 3 {
		t.Errorf("%d flows are left: %v", len(got), got)
	}
	ns.AddAddr("lo", netip.MustParsePrefix("192.0.2.7/32"))
	own, err := table.Addresses()
	if err != nil || !own[netip.MustParseAddr("192.0.2.7")] || !own[netip.MustParseAddr("::1")] || own[netip.MustParseAddr("192.0.2.8")] {
		t.Errorf("own addresses %v: %v", own, err)
	}
}

func TestReconcileEndsWhatIsOver(t *testing.T) {
	_, table, h := space(t)
	at := netip.MustParseAddrPort
	f := New(table)
	local := netip.MustParseAddr("10.244.0.5")
	attached := []plan.Attachment{{UID: "a", Link: "pwpa", Addresses: []netip.Addr{local}}}
	rows := []nodestate.Row{
		dnsPort(), dnsEndpoint("10.244.1.2:5353", nodestate.EndpointReady),
		nodestate.Subject{PodUID: "a", Ingress: nodestate.Side{Mode: nodestate.SideOpen}, Egress: nodestate.Side{
			Mode: nodestate.SideIsolated, Class: nodestate.Class{1},
		}},
	}
	put(t, h, nodestate.UDP, at("172.30.0.9:1"), at("10.96.0.10:53"), at("10.244.1.2:5353"))
	put(t, h, nodestate.UDP, at("172.30.0.9:2"), at("10.96.0.10:53"), at("10.244.1.3:5353"))
	put(t, h, nodestate.TCP, at("10.244.0.5:3"), at("8.8.8.8:53"), at("8.8.8.8:53"))
	put(t, h, nodestate.TCP, at("172.30.0.9:4"), at("8.8.8.8:53"), at("8.8.8.8:53"))
	reconcile := func(what dataplane.Concern, want, left int) {
		t.Helper()
		n, err := f.Reconcile(context.Background(), tables(t, attached, rows...), what)
		if err != nil || n != want {
			t.Errorf("%+v: ended %d flows: %v", what, n, err)
		}
		if got := list(t, table); len(got) != left {
			t.Errorf("%+v: %d flows are left: %v", what, len(got), got)
		}
	}
	reconcile(dataplane.Concern{}, 0, 4)
	reconcile(dataplane.Concern{Services: true}, 1, 3)
	reconcile(dataplane.Concern{Policy: true}, 1, 2)
	reconcile(dataplane.Concern{Services: true, Policy: true}, 0, 2)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.Reconcile(ctx, tables(t, nil), dataplane.Concern{Services: true}); err == nil {
		t.Error("a call whose time is up succeeded")
	}
	attached = nil
	put(t, h, nodestate.TCP, at("172.30.0.9:5"), at("10.244.0.5:80"), at("10.244.0.5:80"))
	reconcile(dataplane.Concern{Policy: true}, 1, 2)
}

// TestReconcileCutsAndReleases takes a flow of datagrams through policy's changes. Its entry stays, or an answer would begin it
// anew; what was cut twice is not counted twice.
func TestReconcileCutsAndReleases(t *testing.T) {
	_, table, h := space(t)
	at := netip.MustParseAddrPort
	attached := []plan.Attachment{{UID: "a", Link: "pwpa", Addresses: []netip.Addr{client.Addr()}}}
	open := nodestate.Side{Mode: nodestate.SideOpen}
	subject := func(egress nodestate.Side) nodestate.Subject {
		return nodestate.Subject{PodUID: "a", Ingress: open, Egress: egress}
	}
	closed := subject(nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{1}})
	endpoint := dnsEndpoint("10.244.1.2:5353", nodestate.EndpointReady)
	direct, service := Tuple{client, at("8.8.8.8:53")}, Tuple{client, at("10.96.0.10:53")}
	put(t, h, nodestate.UDP, client, direct.Destination, direct.Destination)
	put(t, h, nodestate.UDP, client, service.Destination, at("10.244.1.2:5353"))
	f := New(table)
	step := func(what string, c dataplane.Concern, ended int, marks map[Tuple]uint32, rows ...nodestate.Row) {
		t.Helper()
		n, err := f.Reconcile(context.Background(), tables(t, attached, rows...), c)
		if err != nil || n != ended {
			t.Errorf("%s: ended %d flows: %v", what, n, err)
		}
		got := list(t, table)
		for tuple, mark := range marks {
			if e, ok := got[tuple]; !ok || e.Mark != mark {
				t.Errorf("%s: %v: there is %v, mark %#x", what, tuple, ok, e.Mark)
			}
		}
		if len(got) != len(marks) {
			t.Errorf("%s: %d flows are left", what, len(got))
		}
	}
	policy, services := dataplane.Concern{Policy: true}, dataplane.Concern{Services: true}
	none := map[Tuple]uint32{direct: 7, service: 7} // put's mark
	both := map[Tuple]uint32{direct: plan.CutMark | 7, service: plan.CutMark | 7}
	step("open", policy, 0, none, subject(open), dnsPort(), endpoint)
	step("closed", policy, 2, both, closed, dnsPort(), endpoint)
	step("closed as before", policy, 0, both, closed, dnsPort(), endpoint)
	step("open again", policy, 0, none, subject(open), dnsPort(), endpoint)
	step("closed again", policy, 2, both, closed, dnsPort(), endpoint)
	step("the endpoint goes", services, 0, both, closed, dnsPort())
	step("open, and the endpoint is gone", policy, 1, map[Tuple]uint32{direct: 7}, subject(open), dnsPort())
	gone := []Entry{{Protocol: nodestate.UDP}}
	for _, e := range list(t, table) {
		gone[0] = e
	}
	if _, err := table.Delete(context.Background(), gone); err != nil {
		t.Fatal(err)
	}
	if n, err := table.SetMark(context.Background(), gone, plan.CutMark, plan.IDMask); n != 0 || err != nil {
		t.Errorf("marked %d flows that are gone: %v", n, err)
	}
	if left := list(t, table); len(left) != 0 {
		t.Errorf("marking a flow that is gone made %v", left)
	}
}

// BenchmarkReconcile judges 100,000 flows of local pods.
func BenchmarkReconcile(b *testing.B) {
	_, table, h := space(b)
	const flows = 100_000
	to := netip.MustParseAddrPort("8.8.8.8:53")
	for i := range flows {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 0, byte(2 + i%50)}), uint16(1+i/50))
		put(b, h, nodestate.UDP, from, to, to)
	}
	all := dataplane.Tables{Node: plan.Node{Name: "node-1"}, Policy: nodestate.NewSlice(), Services: nodestate.NewSlice(nodestate.Row(dnsPort()))}
	open := nodestate.Side{Mode: nodestate.SideOpen}
	for i := range 50 {
		uid := string(rune('a' + i))
		all.Attachments = append(all.Attachments, plan.Attachment{
			UID: uid, Link: "pwp" + uid, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, byte(2 + i)})},
		})
		all.Policy.Upsert(nodestate.Subject{PodUID: uid, Ingress: open, Egress: nodestate.Side{
			Mode: nodestate.SideIsolated, Class: nodestate.Class{byte(i)},
		}})
		for port := range uint16(20) {
			all.Policy.Upsert(nodestate.Allow{
				Direction: nodestate.Egress, Subject: nodestate.Class{byte(i)}, PeerMode: nodestate.PeerAny,
				PortMode: nodestate.PortRange, Protocol: nodestate.UDP, From: 34 + port, To: 34 + port,
			})
		}
	}
	f := New(table)
	for b.Loop() {
		n, err := f.Reconcile(context.Background(), all, dataplane.Concern{Services: true, Policy: true})
		if err != nil || n != 0 {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/flows, "ns/flow")
}
