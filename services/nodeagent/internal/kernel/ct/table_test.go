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
