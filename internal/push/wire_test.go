package push

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// fullRows has, for every table, rows that between them give every field a value that is not zero.
func fullRows() []nodestate.Row {
	v4, v6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::7")
	addrs := []netip.Addr{v4, v6}
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/48"), netip.MustParsePrefix("0.0.0.0/0")}
	class := nodestate.Class{1, 2, 3, 15: 9}
	key := nodestate.ServiceKey{Namespace: "default", Service: "web", Port: "http", Protocol: nodestate.SCTP}
	side := nodestate.Side{Mode: nodestate.SideIsolated, Class: class, Policies: []string{"default/a", "default/b"}}
	return []nodestate.Row{
		nodestate.Workload{UID: "u", Namespace: "default", Name: "web", Pod: "\xff\x00pod"},
		nodestate.Member{
			Name: "node-1", Kind: nodestate.MemberService, Underlay: addrs, TunnelMAC: [6]byte{2, 1, 1, 1, 1, 1}, Tunnel: addrs, Blocks: prefixes,
		},
		nodestate.Range{Kind: nodestate.RangeLoadBalancer, Prefix: prefixes[0]},
		nodestate.ServicePort{
			ServiceKey: key, ClusterAddresses: addrs, Port: 65535, NodePort: 30000, NodePortFamilies: []uint8{4, 6},
			LoadBalancerAddresses: addrs, ExternalAddresses: addrs, SourceMode: nodestate.SourceSome, SourceRanges: prefixes,
			AffinitySeconds: 10800, InternalPolicy: nodestate.LocalityLocal, ExternalPolicy: nodestate.LocalityCluster,
		},
		nodestate.Endpoint{ServiceKey: key, Address: v6, Backend: 8080, Node: "node-1", Zone: "z", State: nodestate.EndpointTerminating,
			HintZones: []string{"y", "z"}, HintNodes: []string{"node-1"}},
		nodestate.Announcement{Address: v4, Node: "node-1", Epoch: -1},
		nodestate.Subject{PodUID: "u", Ingress: side, Egress: side},
		nodestate.Peer{Address: v4, Class: class},
		nodestate.PeerRange{AddrRange: nodestate.AddrRange{From: v4, To: v4.Next()}, Class: class},
		nodestate.Allow{
			Direction: nodestate.Egress, Subject: class, PeerMode: nodestate.PeerClass, Peer: class, PortMode: nodestate.PortRange,
			Protocol: nodestate.UDP, From: 1, To: 65535, Origins: []string{"default/a egress[0]"},
		},
	}
}

func roundTrip(t *testing.T, r nodestate.Row) nodestate.Row {
	t.Helper()
	w, err := RowToProto(r)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var back pushv1.Row
	if err := proto.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	out, err := RowFromProto(&back)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestEveryFieldSurvives fails for a field added to nodestate that the wire does not carry: the field must not be zero
// in fullRows, and must be the same after a round trip.
func TestEveryFieldSurvives(t *testing.T) {
	tables := map[nodestate.Table]bool{}
	for _, r := range fullRows() {
		tables[r.Table()] = true
		zeroFields(t, reflect.TypeOf(r).Name(), reflect.ValueOf(r))
		if out := roundTrip(t, r); !reflect.DeepEqual(out, r) {
			t.Errorf("%s:\n got %+v\nwant %+v", r.Table(), out, r)
		}
	}
	for _, source := range []nodestate.Source{
		nodestate.SourceCluster, nodestate.SourceIPAM, nodestate.SourceSvcproxy, nodestate.SourcePolicy,
	} {
		for _, table := range nodestate.Tables(source) {
			if !tables[table] {
				t.Errorf("fullRows has no row of table %s", table)
			}
		}
	}
	var row pushv1.Row
	if n := row.ProtoReflect().Descriptor().Oneofs().Get(0).Fields().Len(); n != len(tables) {
		t.Errorf("the wire has %d kinds of rows, nodestate %d tables", n, len(tables))
	}
}

// zeroFields reports fields that are zero, down to the elements of structs.
func zeroFields(t *testing.T, path string, v reflect.Value) {
	if v.Kind() != reflect.Struct || v.Type().PkgPath() == "net/netip" {
		if v.IsZero() {
			t.Errorf("%s is zero in fullRows: a round trip proves nothing about it", path)
		}
		return
	}
	for i := range v.NumField() {
		zeroFields(t, path+"."+v.Type().Field(i).Name, v.Field(i))
	}
}

// TestEveryValueSurvives takes each enumeration through its values.
func TestEveryValueSurvives(t *testing.T) {
	class := nodestate.Class{1}
	open := nodestate.Side{Mode: nodestate.SideOpen}
	rows := []nodestate.Row{
		nodestate.Range{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("::/0")},
		nodestate.Range{Kind: nodestate.RangeService, Prefix: netip.MustParsePrefix("10.0.0.5/8")},
		nodestate.Member{Name: "n", Kind: nodestate.MemberNode},
		nodestate.ServicePort{
			ServiceKey: nodestate.ServiceKey{Protocol: nodestate.TCP}, SourceMode: nodestate.SourceAll,
			InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityLocal,
		},
		nodestate.Endpoint{
			ServiceKey: nodestate.ServiceKey{Protocol: nodestate.UDP}, Address: netip.MustParseAddr("::ffff:10.0.0.1"), State: nodestate.EndpointReady,
		},
		nodestate.Subject{PodUID: "u", Ingress: open, Egress: open},
		nodestate.Allow{Direction: nodestate.Ingress, Subject: class, PeerMode: nodestate.PeerAny, PortMode: nodestate.PortAny},
		nodestate.Allow{Direction: nodestate.Ingress, PeerMode: nodestate.PeerAny, PortMode: nodestate.PortProtocol, Protocol: nodestate.TCP},
	}
	for _, r := range rows {
		if out := roundTrip(t, r); !reflect.DeepEqual(out, r) {
			t.Errorf("%s:\n got %+v\nwant %+v", r.Table(), out, r)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	for want, r := range map[string]nodestate.Row{
		"uid: is empty":                          nodestate.Workload{Name: "x"},
		"name: \"\\xff\" is not UTF-8":           nodestate.Workload{UID: "u", Name: "\xff"},
		"kind: 0 is no value":                    nodestate.Member{Name: "n"},
		"prefix: \"invalid Prefix\"":             nodestate.Range{Kind: nodestate.RangePod},
		"source_mode: 0 is no value":             nodestate.ServicePort{ServiceKey: nodestate.ServiceKey{Protocol: 6}, InternalPolicy: 1, ExternalPolicy: 1},
		"node_port_families: 5 is neither":       nodestate.ServicePort{ServiceKey: nodestate.ServiceKey{Protocol: 6}, SourceMode: 1, InternalPolicy: 1, ExternalPolicy: 1, NodePortFamilies: []uint8{5}},
		"protocol: 1 is no value":                nodestate.Endpoint{ServiceKey: nodestate.ServiceKey{Protocol: 1}, Address: addr, State: 1},
		"address: \"invalid IP\"":                nodestate.Announcement{},
		"address: \"fe80::1%eth0\"":              nodestate.Peer{Address: netip.MustParseAddr("fe80::1%eth0")},
		"ingress.mode: 0 is no value":            nodestate.Subject{PodUID: "u"},
		"ingress.class: set although":            nodestate.Subject{PodUID: "u", Ingress: nodestate.Side{Mode: nodestate.SideOpen, Class: nodestate.Class{1}}},
		"from: 10.0.0.2-10.0.0.1 is empty":       nodestate.PeerRange{AddrRange: nodestate.AddrRange{From: addr.Next(), To: addr}},
		"are not of one family":                  nodestate.PeerRange{AddrRange: nodestate.AddrRange{From: addr, To: netip.IPv6Loopback()}},
		"peer is set although peer_mode is any":  nodestate.Allow{Direction: 1, PeerMode: nodestate.PeerAny, Peer: nodestate.Class{1}, PortMode: nodestate.PortAny},
		"protocol is set although port_mode":     nodestate.Allow{Direction: 1, PeerMode: nodestate.PeerAny, PortMode: nodestate.PortAny, Protocol: 6},
		"ports are set although port_mode":       nodestate.Allow{Direction: 1, PeerMode: nodestate.PeerAny, PortMode: nodestate.PortProtocol, Protocol: 6, To: 1},
		"port range 2-1 is empty":                nodestate.Allow{Direction: 1, PeerMode: nodestate.PeerAny, PortMode: nodestate.PortRange, Protocol: 6, From: 2, To: 1},
		"direction: 0 is no value":               nodestate.Allow{PeerMode: nodestate.PeerAny, PortMode: nodestate.PortAny},
		"peer_mode: 0 is no value":               nodestate.Allow{Direction: 1, PortMode: nodestate.PortAny},
		"egress.mode: 9 is no value":             nodestate.Subject{PodUID: "u", Ingress: nodestate.Side{Mode: 1}, Egress: nodestate.Side{Mode: 9}},
		"internal_policy: 0 is no value":         nodestate.ServicePort{ServiceKey: nodestate.ServiceKey{Protocol: 6}, SourceMode: 1, ExternalPolicy: 1},
		"cluster_addresses: \"invalid IP\"":      nodestate.ServicePort{ServiceKey: nodestate.ServiceKey{Protocol: 6}, ClusterAddresses: make([]netip.Addr, 1), SourceMode: 1, InternalPolicy: 1, ExternalPolicy: 1},
		"port_mode: 0 is no value":               nodestate.Allow{Direction: 1, PeerMode: nodestate.PeerAny},
		"state: 0 is no value":                   nodestate.Endpoint{ServiceKey: nodestate.ServiceKey{Protocol: 6}, Address: addr},
		"blocks: \"invalid Prefix\" is not a pr": nodestate.Member{Name: "n", Kind: 1, Blocks: make([]netip.Prefix, 1)},
	} {
		_, err := RowToProto(r)
		if err == nil || !strings.Contains(err.Error(), want) || !errs.Is(err, errs.Internal) {
			t.Errorf("%+v: got error %v, want %q", r, err, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	ip := []byte{10, 0, 0, 1}
	class := make([]byte, 16)
	allow := func(change func(*pushv1.Allow)) *pushv1.Row {
		a := &pushv1.Allow{Direction: 1, Subject: class, PeerMode: 1, PortMode: 1}
		change(a)
		return &pushv1.Row{Row: &pushv1.Row_Allow{Allow: a}}
	}
	service := func(change func(*pushv1.ServicePort)) *pushv1.Row {
		s := &pushv1.ServicePort{Protocol: 1, SourceMode: 1, InternalPolicy: 1, ExternalPolicy: 1}
		change(s)
		return &pushv1.Row{Row: &pushv1.Row_ServicePort{ServicePort: s}}
	}
	subject := func(s *pushv1.Subject_Side) *pushv1.Row {
		return &pushv1.Row{Row: &pushv1.Row_Subject{Subject: &pushv1.Subject{PodUid: "u", Ingress: s, Egress: &pushv1.Subject_Side{Mode: 1}}}}
	}
	for want, w := range map[string]*pushv1.Row{
		"of a table that this version does not know":       {},
		"workloads: uid: is empty":                         {Row: &pushv1.Row_Workload{Workload: &pushv1.Workload{}}},
		"workloads: uid: is empty ":                        {Row: &pushv1.Row_Workload{}},
		"members: tunnel_mac: has 5 bytes, not 6":          {Row: &pushv1.Row_Member{Member: &pushv1.Member{Name: "n", Kind: 1, TunnelMac: make([]byte, 5)}}},
		"members: kind: is unspecified":                    {Row: &pushv1.Row_Member{Member: &pushv1.Member{Name: "n", TunnelMac: make([]byte, 6)}}},
		"ranges: prefix: an address has 0 bytes":           {Row: &pushv1.Row_Range{Range: &pushv1.Range{Kind: 1}}},
		"ranges: prefix: 33 bits are too many":             {Row: &pushv1.Row_Range{Range: &pushv1.Range{Kind: 1, Prefix: &pushv1.Prefix{Address: ip, Bits: 33}}}},
		"peers: class: has 15 bytes, not 16":               {Row: &pushv1.Row_Peer{Peer: &pushv1.Peer{Address: ip, Class: class[1:]}}},
		"peers: address: an address has 5 bytes":           {Row: &pushv1.Row_Peer{Peer: &pushv1.Peer{Address: make([]byte, 5), Class: class}}},
		"peerranges: from: 10.0.0.1-10.0.0.0 is empty":     {Row: &pushv1.Row_PeerRange{PeerRange: &pushv1.PeerRange{From: ip, To: []byte{10, 0, 0, 0}, Class: class}}},
		"serviceports: port: 65536 is no port":             service(func(s *pushv1.ServicePort) { s.Port = 65536 }),
		"serviceports: source_mode: is unspecified":        service(func(s *pushv1.ServicePort) { s.SourceMode = 0 }),
		"serviceports: source_mode: 7 is no value":         service(func(s *pushv1.ServicePort) { s.SourceMode = 7 }),
		"serviceports: node_port_families: 260 is neither": service(func(s *pushv1.ServicePort) { s.NodePortFamilies = []uint32{260} }),
		"endpoints: state: is unspecified":                 {Row: &pushv1.Row_Endpoint{Endpoint: &pushv1.Endpoint{Protocol: 1, Address: ip}}},
		"announcements: address: an address has 0 bytes":   {Row: &pushv1.Row_Announcement{}},
		"subjects: ingress.mode: is unspecified":           subject(nil),
		"subjects: ingress.class: has 0 bytes":             subject(&pushv1.Subject_Side{Mode: 2}),
		"subjects: ingress.class: set although":            subject(&pushv1.Subject_Side{Mode: 1, Class: class}),
		"allows: peer: set although":                       allow(func(a *pushv1.Allow) { a.Peer = class }),
		"allows: peer: has 0 bytes":                        allow(func(a *pushv1.Allow) { a.PeerMode = 2 }),
		"allows: protocol: is unspecified":                 allow(func(a *pushv1.Allow) { a.PortMode = 2 }),
		"allows: allow: protocol is set":                   allow(func(a *pushv1.Allow) { a.Protocol = 1 }),
		"allows: allow: ports are set":                     allow(func(a *pushv1.Allow) { a.To = 1 }),
		"allows: direction: is unspecified":                allow(func(a *pushv1.Allow) { a.Direction = 0 }),
	} {
		_, err := RowFromProto(w)
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) || !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: got error %v, want %q", w, err, want)
		}
	}
}

// TestChunks cuts a snapshot whose rows do not fit one message, one of them not even alone.
func TestChunks(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	s := nodestate.NewSlice(nodestate.Workload{UID: "huge", Pod: strings.Repeat("x", 3*MaxMessage/2)})
	for i := range 40 {
		s.Upsert(nodestate.Workload{UID: fmt.Sprint(i), Pod: strings.Repeat("y", r.IntN(MaxMessage/4))})
	}
	a := &assembler{source: nodestate.SourceCluster}
	chunks := 0
	v := nodestate.Version{ClusterID: 1, Revision: 5}
	err := snapshot(nodestate.SourceCluster, v, nil, rowsOf(nodestate.SourceCluster, s), digestsOf(nodestate.SourceCluster, s), nil,
		func(m *pushv1.SubscribeResponse) error {
			if c := m.GetChunk(); c != nil {
				chunks++
				if proto.Size(m) > MaxMessage && len(c.GetRows()) != 1 {
					t.Errorf("a chunk of %d rows has %d bytes", len(c.GetRows()), proto.Size(m))
				}
				return a.add(c)
			}
			if b := m.GetBegin(); b != nil {
				return a.open(b)
			}
			return a.close(m.GetEnd())
		})
	if err != nil {
		t.Fatal(err)
	}
	if d := nodestate.Diff(s, a.slice); !d.Empty() || chunks < 5 {
		t.Errorf("%d chunks, difference %v", chunks, d)
	}
}

func TestAssemblerRefuses(t *testing.T) {
	row := func(uid string) *pushv1.Row {
		return &pushv1.Row{Row: &pushv1.Row_Workload{Workload: &pushv1.Workload{Uid: uid}}}
	}
	begin := &pushv1.Begin{ClusterId: 1, Version: 5, Rows: 2}
	chunk := &pushv1.Chunk{Rows: []*pushv1.Row{row("a"), row("b")}}
	good := digestsOf(nodestate.SourceCluster, nodestate.NewSlice(nodestate.Workload{UID: "a"}, nodestate.Workload{UID: "b"})).proto(nodestate.SourceCluster)
	end := &pushv1.End{Version: 5, Digests: good}
	tests := map[string][]proto.Message{
		"":                               {begin, chunk, end},
		"CHUNK without BEGIN":            {chunk},
		"END without BEGIN":              {end},
		"within the snapshot of 5":       {begin, begin},
		"BEGIN without cluster":          {&pushv1.Begin{Version: 1}},
		"announces -1 rows":              {&pushv1.Begin{ClusterId: 1, Version: 1, Rows: -1}},
		"more than the 2 rows":           {begin, chunk, &pushv1.Chunk{Rows: []*pushv1.Row{row("c")}}},
		"has 1 rows, not the 2":          {begin, &pushv1.Chunk{Rows: []*pushv1.Row{row("a")}}, end},
		"row workloads/a twice":          {begin, &pushv1.Chunk{Rows: []*pushv1.Row{row("a"), row("a")}}},
		"END of version 6 after BEGIN":   {begin, chunk, &pushv1.End{Version: 6, Digests: good}},
		"does not have the digests":      {begin, &pushv1.Chunk{Rows: []*pushv1.Row{row("a"), row("c")}}, end},
		"does not have the digests that": {begin, chunk, &pushv1.End{Version: 5}},
		"which is not its own": {begin, &pushv1.Chunk{Rows: []*pushv1.Row{
			{Row: &pushv1.Row_Peer{Peer: &pushv1.Peer{Address: make([]byte, 4), Class: make([]byte, 16)}}},
		}}},
	}
	for want, messages := range tests {
		a := &assembler{source: nodestate.SourceCluster}
		var err error
		for _, m := range messages {
			if err != nil {
				t.Errorf("%q: failed early: %v", want, err)
			}
			switch m := m.(type) {
			case *pushv1.Begin:
				err = a.open(m)
			case *pushv1.Chunk:
				err = a.add(m)
			case *pushv1.End:
				err = a.close(m)
			}
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %q", err, want)
		}
	}
}

// FuzzRowFromProto: what decodes encodes to the same row again, and nothing panics.
func FuzzRowFromProto(f *testing.F) {
	for _, r := range fullRows() {
		w, err := RowToProto(r)
		if err != nil {
			f.Fatal(err)
		}
		raw, err := proto.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var w pushv1.Row
		if proto.Unmarshal(raw, &w) != nil {
			return
		}
		r, err := RowFromProto(&w)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatalf("error of kind %v: %v", errs.KindOf(err), err)
			}
			return
		}
		if out := roundTrip(t, r); !nodestate.Equal(out, r) {
			t.Fatalf("got %+v, want %+v", out, r)
		}
	})
}

// FuzzMessages: no order of messages, and no content, makes an assembler or a delta panic or leave a slice whose digests
// disagree with what it was told.
func FuzzMessages(f *testing.F) {
	s := nodestate.NewSlice(fullRows()[0])
	v := nodestate.Version{ClusterID: 1, Revision: 2}
	var seed []byte
	add := func(m *pushv1.SubscribeResponse) error {
		var err error
		seed, err = record(seed, recordResponse, m)
		return err
	}
	if err := snapshot(nodestate.SourceCluster, v, nil, rowsOf(nodestate.SourceCluster, s), digestsOf(nodestate.SourceCluster, s), nil, add); err != nil {
		f.Fatal(err)
	}
	if err := add(deltaOf(&pushv1.Delta{ClusterId: 1, Base: 2, Version: 3, Digests: digestsOf(nodestate.SourceCluster, s).proto(nodestate.SourceCluster)})); err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte(header(nodestate.SourceCluster)), seed...))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := readJournal(nodestate.SourceCluster, data)
		if p.good > int64(len(data)) || p.head > p.good {
			t.Fatalf("good %d, head %d of %d", p.good, p.head, len(data))
		}
		again := readJournal(nodestate.SourceCluster, data[:p.good])
		if p.good > 0 && (again.version != p.version || !nodestate.Diff(again.slice, p.slice).Empty()) {
			t.Fatalf("the good part gives %v, the whole %v", again.version, p.version)
		}
	})
}
