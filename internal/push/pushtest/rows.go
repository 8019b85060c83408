package pushtest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"podwire.dev/internal/nodestate"
)

// Row makes a valid row of one of the source's tables, out of few keys, so that rows meet.
func Row(r *rand.Rand, source nodestate.Source) nodestate.Row {
	tables := nodestate.Tables(source)
	return RowOf(r, tables[r.IntN(len(tables))])
}

// RowOf makes a valid row of a table.
func RowOf(r *rand.Rand, table nodestate.Table) nodestate.Row {
	name := fmt.Sprintf("n%d", r.IntN(6))
	switch table {
	case nodestate.TableWorkloads:
		return nodestate.Workload{UID: name, Namespace: "default", Name: word(r), Pod: word(r)}
	case nodestate.TableMembers:
		return nodestate.Member{
			Name: name, Kind: nodestate.MemberKind(1 + r.IntN(2)), Underlay: addrs(r), TunnelMAC: [6]byte{2, 0, 0, 0, 0, byte(r.IntN(9))},
			Tunnel: addrs(r), Blocks: prefixes(r),
		}
	case nodestate.TableRanges:
		return nodestate.Range{Kind: nodestate.RangeKind(1 + r.IntN(3)), Prefix: prefix(r)}
	case nodestate.TableServicePorts:
		return nodestate.ServicePort{
			ServiceKey: key(r), ClusterAddresses: addrs(r), Port: uint16(1 + r.IntN(9)), NodePort: uint16(r.IntN(9)),
			NodePortFamilies: []uint8{4, 6}[:r.IntN(3)], LoadBalancerAddresses: addrs(r), ExternalAddresses: addrs(r),
			SourceMode: nodestate.SourceMode(1 + r.IntN(2)), SourceRanges: prefixes(r), AffinitySeconds: uint32(r.IntN(3)),
			InternalPolicy: nodestate.Locality(1 + r.IntN(2)), ExternalPolicy: nodestate.Locality(1 + r.IntN(2)),
		}
	case nodestate.TableEndpoints:
		return nodestate.Endpoint{
			ServiceKey: key(r), Address: addr(r), Backend: uint16(1 + r.IntN(3)), Node: word(r), Zone: word(r),
			State: nodestate.EndpointState(1 + r.IntN(2)), HintZones: []string{"a", "b"}[:r.IntN(3)], HintNodes: []string{"c"}[:r.IntN(2)],
		}
	case nodestate.TableAnnouncements:
		return nodestate.Announcement{Address: addr(r), Node: word(r), Epoch: int64(r.IntN(5))}
	case nodestate.TableSubjects:
		return nodestate.Subject{PodUID: name, Ingress: side(r), Egress: side(r)}
	case nodestate.TablePeers:
		return nodestate.Peer{Address: addr(r), Class: class(r)}
	case nodestate.TablePeerRanges:
		from := addr(r)
		return nodestate.PeerRange{AddrRange: nodestate.AddrRange{From: from, To: from.Next()}, Class: class(r)}
	case nodestate.TableAllows:
		return allow(r)
	}
	panic("pushtest: no rows for table " + string(table))
}

func allow(r *rand.Rand) nodestate.Row {
	a := nodestate.Allow{
		Direction: nodestate.Direction(1 + r.IntN(2)), Subject: class(r), PeerMode: nodestate.PeerMode(1 + r.IntN(2)),
		PortMode: nodestate.PortMode(1 + r.IntN(3)), Origins: words(r),
	}
	if a.PeerMode == nodestate.PeerClass {
		a.Peer = class(r)
	}
	if a.PortMode != nodestate.PortAny {
		a.Protocol = protocol(r)
	}
	if a.PortMode == nodestate.PortRange {
		a.From = uint16(r.IntN(4))
		a.To = a.From + uint16(r.IntN(4))
	}
	return a
}

func side(r *rand.Rand) nodestate.Side {
	if r.IntN(2) == 0 {
		return nodestate.Side{Mode: nodestate.SideOpen}
	}
	return nodestate.Side{Mode: nodestate.SideIsolated, Class: class(r), Policies: words(r)}
}

func key(r *rand.Rand) nodestate.ServiceKey {
	return nodestate.ServiceKey{Namespace: "default", Service: fmt.Sprintf("s%d", r.IntN(4)), Port: word(r), Protocol: protocol(r)}
}

func protocol(r *rand.Rand) nodestate.Protocol {
	return []nodestate.Protocol{nodestate.TCP, nodestate.UDP, nodestate.SCTP}[r.IntN(3)]
}

func class(r *rand.Rand) nodestate.Class { return nodestate.Class{15: byte(r.IntN(4))} }

func word(r *rand.Rand) string { return []string{"", "a", "web", "ü"}[r.IntN(4)] }

func words(r *rand.Rand) []string { return []string{"a/b ingress[0]", "c/d egress[1]"}[:r.IntN(3)] }

func addr(r *rand.Rand) netip.Addr {
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(5))})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(r.IntN(5))})
}

// Address is the i-th of many addresses.
func Address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func addrs(r *rand.Rand) []netip.Addr {
	var out []netip.Addr
	for range r.IntN(3) {
		out = append(out, addr(r))
	}
	return out
}

func prefix(r *rand.Rand) netip.Prefix {
	a := addr(r)
	return netip.PrefixFrom(a, r.IntN(a.BitLen()+1))
}

func prefixes(r *rand.Rand) []netip.Prefix {
	var out []netip.Prefix
	for range r.IntN(3) {
		out = append(out, prefix(r))
	}
	return out
}
