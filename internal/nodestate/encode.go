package nodestate

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
)

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendStrings(b []byte, ss []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(ss)))
	for _, s := range ss {
		b = appendString(b, s)
	}
	return b
}

func appendAddr(b []byte, a netip.Addr) []byte {
	raw := a.AsSlice()
	b = append(b, byte(len(raw)))
	return append(b, raw...)
}

func appendAddrs(b []byte, as []netip.Addr) []byte {
	b = binary.AppendUvarint(b, uint64(len(as)))
	for _, a := range as {
		b = appendAddr(b, a)
	}
	return b
}

func appendPrefixes(b []byte, ps []netip.Prefix) []byte {
	b = binary.AppendUvarint(b, uint64(len(ps)))
	for _, p := range ps {
		b = append(appendAddr(b, p.Addr()), byte(p.Bits()))
	}
	return b
}

func appendServiceKey(b []byte, k ServiceKey) []byte {
	b = appendString(b, k.Namespace)
	b = appendString(b, k.Service)
	b = appendString(b, k.Port)
	return append(b, byte(k.Protocol))
}

func appendSide(b []byte, s Side) []byte {
	b = append(b, byte(s.Mode))
	b = append(b, s.Class[:]...)
	return appendStrings(b, s.Policies)
}

// Table implements [Row].
func (Workload) Table() Table { return TableWorkloads }

// Key implements [Row]: the UID, so that a Pod made again under the same name is another row.
func (w Workload) Key() string { return w.UID }

func (w Workload) appendTo(b []byte) []byte {
	return appendStrings(b, []string{w.UID, w.Namespace, w.Name, w.Pod})
}

// Table implements [Row].
func (Member) Table() Table { return TableMembers }

// Key implements [Row].
func (m Member) Key() string { return m.Name }

func (m Member) appendTo(b []byte) []byte {
	b = append(appendString(b, m.Name), byte(m.Kind))
	b = appendAddrs(b, m.Underlay)
	b = append(b, m.TunnelMAC[:]...)
	b = appendAddrs(b, m.Tunnel)
	return appendPrefixes(b, m.Blocks)
}

// Table implements [Row].
func (Range) Table() Table { return TableRanges }

// Key implements [Row].
func (r Range) Key() string { return fmt.Sprintf("%d %s", r.Kind, r.Prefix) }

func (r Range) appendTo(b []byte) []byte {
	return appendPrefixes(append(b, byte(r.Kind)), []netip.Prefix{r.Prefix})
}

// Table implements [Row].
func (ServicePort) Table() Table { return TableServicePorts }

// Key implements [Row].
func (s ServicePort) Key() string { return s.String() }

func (s ServicePort) appendTo(b []byte) []byte {
	b = appendServiceKey(b, s.ServiceKey)
	b = appendAddrs(b, s.ClusterAddresses)
	b = binary.BigEndian.AppendUint16(b, s.Port)
	b = binary.BigEndian.AppendUint16(b, s.NodePort)
	b = appendString(b, string(s.NodePortFamilies))
	b = appendAddrs(b, s.LoadBalancerAddresses)
	b = appendAddrs(b, s.ExternalAddresses)
	b = appendPrefixes(append(b, byte(s.SourceMode)), s.SourceRanges)
	b = binary.BigEndian.AppendUint32(b, s.AffinitySeconds)
	return append(b, byte(s.InternalPolicy), byte(s.ExternalPolicy))
}

// Table implements [Row].
func (Endpoint) Table() Table { return TableEndpoints }

// Key implements [Row].
func (e Endpoint) Key() string {
	return e.String() + " " + netip.AddrPortFrom(e.Address, e.Backend).String()
}

func (e Endpoint) appendTo(b []byte) []byte {
	b = appendServiceKey(b, e.ServiceKey)
	b = binary.BigEndian.AppendUint16(appendAddr(b, e.Address), e.Backend)
	b = appendString(appendString(b, e.Node), e.Zone)
	b = append(b, byte(e.State))
	if len(e.HintZones)+len(e.HintNodes) == 0 {
		return b // the digests of rows without hints are those of agents and services that know of none
	}
	return appendStrings(appendStrings(b, e.HintZones), e.HintNodes)
}

// Table implements [Row].
func (Announcement) Table() Table { return TableAnnouncements }

// Key implements [Row].
func (a Announcement) Key() string { return a.Address.String() }

func (a Announcement) appendTo(b []byte) []byte {
	b = appendString(appendAddr(b, a.Address), a.Node)
	return binary.BigEndian.AppendUint64(b, uint64(a.Epoch))
}

// Table implements [Row].
func (Subject) Table() Table { return TableSubjects }

// Key implements [Row].
func (s Subject) Key() string { return s.PodUID }

func (s Subject) appendTo(b []byte) []byte {
	return appendSide(appendSide(appendString(b, s.PodUID), s.Ingress), s.Egress)
}

// Table implements [Row].
func (Peer) Table() Table { return TablePeers }

// Key implements [Row].
func (p Peer) Key() string { return p.Address.String() }

func (p Peer) appendTo(b []byte) []byte { return append(appendAddr(b, p.Address), p.Class[:]...) }

// Table implements [Row].
func (PeerRange) Table() Table { return TablePeerRanges }

// Key implements [Row].
func (p PeerRange) Key() string { return p.From.String() + "-" + p.To.String() }

func (p PeerRange) appendTo(b []byte) []byte {
	return append(appendAddr(appendAddr(b, p.From), p.To), p.Class[:]...)
}

// Table implements [Row].
func (Allow) Table() Table { return TableAllows }

// Key implements [Row]: everything but the origins.
func (a Allow) Key() string {
	peer, ports := "any", "any"
	if a.PeerMode == PeerClass {
		peer = hex.EncodeToString(a.Peer[:])
	}
	switch a.PortMode {
	case PortProtocol:
		ports = a.Protocol.String()
	case PortRange:
		ports = fmt.Sprintf("%s/%d-%d", a.Protocol, a.From, a.To)
	}
	return fmt.Sprintf("%s %s %s %s", a.Direction, hex.EncodeToString(a.Subject[:]), peer, ports)
}

func (a Allow) appendTo(b []byte) []byte {
	b = append(b, byte(a.Direction))
	b = append(b, a.Subject[:]...)
	b = append(b, byte(a.PeerMode))
	b = append(b, a.Peer[:]...)
	b = append(b, byte(a.PortMode), byte(a.Protocol))
	b = binary.BigEndian.AppendUint16(b, a.From)
	b = binary.BigEndian.AppendUint16(b, a.To)
	return appendStrings(b, a.Origins)
}
