package push

import (
	"net/netip"
	"strconv"
	"unicode/utf8"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// RowToProto gives the wire form of a row. It is exact: RowFromProto gives the same row back. A row that the wire
// cannot carry exactly (an invalid address, an enumeration outside its values, a class where none belongs) is Internal:
// our own core made it.
func RowToProto(r nodestate.Row) (*pushv1.Row, error) {
	e := &encoder{}
	out := e.row(r)
	if e.problem != "" {
		return nil, errs.New(errs.Internal, "push: encode row %s/%s: %s", r.Table(), r.Key(), e.problem)
	}
	return out, nil
}

// encoder keeps the first problem, so that the tables below read as tables.
type encoder struct{ problem string }

func (e *encoder) fail(field, problem string) {
	if e.problem == "" {
		e.problem = field + ": " + problem
	}
}

func (e *encoder) row(r nodestate.Row) *pushv1.Row {
	switch r := r.(type) {
	case nodestate.Workload:
		return &pushv1.Row{Row: &pushv1.Row_Workload{Workload: e.workload(r)}}
	case nodestate.Member:
		return &pushv1.Row{Row: &pushv1.Row_Member{Member: e.member(r)}}
	case nodestate.Range:
		return &pushv1.Row{Row: &pushv1.Row_Range{Range: &pushv1.Range{
			Kind:   enum(e, "kind", uint8(r.Kind), rangeKinds),
			Prefix: e.prefix("prefix", r.Prefix),
		}}}
	case nodestate.ServicePort:
		return &pushv1.Row{Row: &pushv1.Row_ServicePort{ServicePort: e.servicePort(r)}}
	case nodestate.Endpoint:
		return &pushv1.Row{Row: &pushv1.Row_Endpoint{Endpoint: e.endpoint(r)}}
	case nodestate.Announcement:
		return &pushv1.Row{Row: &pushv1.Row_Announcement{Announcement: &pushv1.Announcement{
			Address: e.addr("address", r.Address), Node: e.text("node", r.Node), Epoch: r.Epoch,
		}}}
	case nodestate.Subject:
		return &pushv1.Row{Row: &pushv1.Row_Subject{Subject: &pushv1.Subject{
			PodUid: e.name("pod_uid", r.PodUID), Ingress: e.side("ingress", r.Ingress), Egress: e.side("egress", r.Egress),
		}}}
	case nodestate.Peer:
		return &pushv1.Row{Row: &pushv1.Row_Peer{Peer: &pushv1.Peer{Address: e.addr("address", r.Address), Class: r.Class[:]}}}
	case nodestate.PeerRange:
		return &pushv1.Row{Row: &pushv1.Row_PeerRange{PeerRange: e.peerRange(r)}}
	case nodestate.Allow:
		return &pushv1.Row{Row: &pushv1.Row_Allow{Allow: e.allow(r)}}
	}
	e.fail("table", "has no wire form")
	return nil
}

func (e *encoder) workload(r nodestate.Workload) *pushv1.Workload {
	return &pushv1.Workload{
		Uid: e.name("uid", r.UID), Namespace: e.text("namespace", r.Namespace), Name: e.text("name", r.Name),
		Pod: []byte(r.Pod),
	}
}

func (e *encoder) member(r nodestate.Member) *pushv1.Member {
	return &pushv1.Member{
		Name:      e.name("name", r.Name),
		Kind:      enum(e, "kind", uint8(r.Kind), memberKinds),
		Underlay:  e.addrs("underlay", r.Underlay),
		TunnelMac: r.TunnelMAC[:],
		Tunnel:    e.addrs("tunnel", r.Tunnel),
		Blocks:    e.prefixes("blocks", r.Blocks),
	}
}

func (e *encoder) servicePort(r nodestate.ServicePort) *pushv1.ServicePort {
	out := &pushv1.ServicePort{
		Namespace: e.text("namespace", r.Namespace), Service: e.text("service", r.Service),
		PortName:              e.text("port_name", r.ServiceKey.Port),
		Protocol:              enum(e, "protocol", uint8(r.Protocol), protocols),
		ClusterAddresses:      e.addrs("cluster_addresses", r.ClusterAddresses),
		Port:                  uint32(r.Port),
		NodePort:              uint32(r.NodePort),
		LoadBalancerAddresses: e.addrs("load_balancer_addresses", r.LoadBalancerAddresses),
		ExternalAddresses:     e.addrs("external_addresses", r.ExternalAddresses),
		SourceMode:            enum(e, "source_mode", uint8(r.SourceMode), sourceModes),
		SourceRanges:          e.prefixes("source_ranges", r.SourceRanges),
		AffinitySeconds:       r.AffinitySeconds,
		InternalPolicy:        enum(e, "internal_policy", uint8(r.InternalPolicy), localities),
		ExternalPolicy:        enum(e, "external_policy", uint8(r.ExternalPolicy), localities),
	}
	for _, f := range r.NodePortFamilies {
		if f != 4 && f != 6 {
			e.fail("node_port_families", strconv.Itoa(int(f))+" is neither 4 nor 6")
		}
		out.NodePortFamilies = append(out.NodePortFamilies, uint32(f))
	}
	return out
}

func (e *encoder) endpoint(r nodestate.Endpoint) *pushv1.Endpoint {
	return &pushv1.Endpoint{
		Namespace: e.text("namespace", r.Namespace), Service: e.text("service", r.Service),
		PortName: e.text("port_name", r.Port),
		Protocol: enum(e, "protocol", uint8(r.Protocol), protocols),
		Address:  e.addr("address", r.Address),
		Port:     uint32(r.Backend),
		Node:     e.text("node", r.Node),
		Zone:     e.text("zone", r.Zone),
		State:    enum(e, "state", uint8(r.State), endpointStates),

		HintZones: e.texts("hint_zones", r.HintZones), HintNodes: e.texts("hint_nodes", r.HintNodes),
	}
}

func (e *encoder) side(field string, s nodestate.Side) *pushv1.Subject_Side {
	out := &pushv1.Subject_Side{
		Mode:     enum(e, field+".mode", uint8(s.Mode), sideModes),
		Policies: e.texts(field+".policies", s.Policies),
	}
	if s.Mode == nodestate.SideIsolated {
		out.Class = s.Class[:]
	} else if s.Class != (nodestate.Class{}) {
		e.fail(field+".class", "set although the direction is open")
	}
	return out
}

func (e *encoder) peerRange(r nodestate.PeerRange) *pushv1.PeerRange {
	if problem := rangeProblem(r.AddrRange); problem != "" {
		e.fail("from", problem)
	}
	return &pushv1.PeerRange{From: e.addr("from", r.From), To: e.addr("to", r.To), Class: r.Class[:]}
}

func (e *encoder) allow(r nodestate.Allow) *pushv1.Allow {
	if problem := allowProblem(r); problem != "" {
		e.fail("allow", problem)
	}
	out := &pushv1.Allow{
		Direction: enum(e, "direction", uint8(r.Direction), directions),
		Subject:   r.Subject[:],
		PeerMode:  enum(e, "peer_mode", uint8(r.PeerMode), peerModes),
		PortMode:  enum(e, "port_mode", uint8(r.PortMode), portModes),
		From:      uint32(r.From),
		To:        uint32(r.To),
		Origins:   e.texts("origins", r.Origins),
	}
	if r.PeerMode == nodestate.PeerClass {
		out.Peer = r.Peer[:]
	}
	if r.PortMode != nodestate.PortAny {
		out.Protocol = enum(e, "protocol", uint8(r.Protocol), protocols)
	}
	return out
}

// allowProblem is what is wrong between the fields of an Allow, for both directions of the wire.
func allowProblem(r nodestate.Allow) string {
	switch {
	case r.PeerMode == nodestate.PeerAny && r.Peer != (nodestate.Class{}):
		return "peer is set although peer_mode is any"
	case r.PortMode == nodestate.PortAny && r.Protocol != 0:
		return "protocol is set although port_mode is any"
	case r.PortMode != nodestate.PortRange && (r.From != 0 || r.To != 0):
		return "ports are set although port_mode is not range"
	case r.From > r.To:
		return "port range " + strconv.Itoa(int(r.From)) + "-" + strconv.Itoa(int(r.To)) + " is empty"
	}
	return ""
}

// rangeProblem is what is wrong with a range of addresses.
func rangeProblem(r nodestate.AddrRange) string {
	switch {
	case r.From.BitLen() != r.To.BitLen():
		return r.From.String() + " and " + r.To.String() + " are not of one family"
	case r.To.Less(r.From):
		return r.From.String() + "-" + r.To.String() + " is empty"
	}
	return ""
}

func (e *encoder) text(field, s string) string {
	if !utf8.ValidString(s) {
		e.fail(field, strconv.Quote(s)+" is not UTF-8")
	}
	return s
}

// name is text that makes up a row's key.
func (e *encoder) name(field, s string) string {
	if s == "" {
		e.fail(field, "is empty")
	}
	return e.text(field, s)
}

func (e *encoder) texts(field string, ss []string) []string {
	for _, s := range ss {
		e.text(field, s)
	}
	return ss
}

func (e *encoder) addr(field string, a netip.Addr) []byte {
	if !a.IsValid() || a.Zone() != "" {
		e.fail(field, strconv.Quote(a.String())+" is not an IPv4 or IPv6 address without a zone")
	}
	return a.AsSlice()
}

func (e *encoder) addrs(field string, as []netip.Addr) [][]byte {
	var out [][]byte
	for _, a := range as {
		out = append(out, e.addr(field, a))
	}
	return out
}

func (e *encoder) prefix(field string, p netip.Prefix) *pushv1.Prefix {
	if !p.IsValid() {
		e.fail(field, strconv.Quote(p.String())+" is not a prefix")
		return nil
	}
	return &pushv1.Prefix{Address: e.addr(field, p.Addr()), Bits: uint32(p.Bits())}
}

func (e *encoder) prefixes(field string, ps []netip.Prefix) []*pushv1.Prefix {
	var out []*pushv1.Prefix
	for _, p := range ps {
		out = append(out, e.prefix(field, p))
	}
	return out
}
