package push

import (
	"fmt"
	"net/netip"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// RowFromProto reads the wire form of a row. What is malformed or unspecified is Invalid, with the field's name: a
// guess could open what was meant to be closed.
func RowFromProto(r *pushv1.Row) (nodestate.Row, error) {
	d := &decoder{}
	out := d.row(r)
	if d.problem != "" {
		return nil, errs.New(errs.Invalid, "push: decode row: %s", d.problem)
	}
	return out, nil
}

type decoder struct {
	table   nodestate.Table
	problem string
}

func (d *decoder) fail(field, problem string) {
	if d.problem == "" {
		d.problem = fmt.Sprintf("%s: %s: %s", d.table, field, problem)
	}
}

func (d *decoder) row(r *pushv1.Row) nodestate.Row {
	switch v := r.GetRow().(type) {
	case *pushv1.Row_Workload:
		d.table = nodestate.TableWorkloads
		return d.workload(v.Workload)
	case *pushv1.Row_Member:
		d.table = nodestate.TableMembers
		return d.member(v.Member)
	case *pushv1.Row_Range:
		d.table = nodestate.TableRanges
		return nodestate.Range{
			Kind:   state[nodestate.RangeKind](d, "kind", v.Range.GetKind(), rangeKinds),
			Prefix: d.prefix("prefix", v.Range.GetPrefix()),
		}
	case *pushv1.Row_ServicePort:
		d.table = nodestate.TableServicePorts
		return d.servicePort(v.ServicePort)
	case *pushv1.Row_Endpoint:
		d.table = nodestate.TableEndpoints
		return d.endpoint(v.Endpoint)
	case *pushv1.Row_Announcement:
		d.table = nodestate.TableAnnouncements
		a := v.Announcement
		return nodestate.Announcement{Address: d.addr("address", a.GetAddress()), Node: a.GetNode(), Epoch: a.GetEpoch()}
	case *pushv1.Row_Subject:
		d.table = nodestate.TableSubjects
		s := v.Subject
		return nodestate.Subject{
			PodUID: d.name("pod_uid", s.GetPodUid()), Ingress: d.side("ingress", s.GetIngress()), Egress: d.side("egress", s.GetEgress()),
		}
	case *pushv1.Row_Peer:
		d.table = nodestate.TablePeers
		return nodestate.Peer{Address: d.addr("address", v.Peer.GetAddress()), Class: d.class("class", v.Peer.GetClass())}
	case *pushv1.Row_PeerRange:
		d.table = nodestate.TablePeerRanges
		return d.peerRange(v.PeerRange)
	case *pushv1.Row_Allow:
		d.table = nodestate.TableAllows
		return d.allow(v.Allow)
	}
	d.fail("row", "is of a table that this version does not know; update this side")
	return nil
}

func (d *decoder) workload(w *pushv1.Workload) nodestate.Row {
	return nodestate.Workload{
		UID: d.name("uid", w.GetUid()), Namespace: w.GetNamespace(), Name: w.GetName(), Pod: string(w.GetPod()),
	}
}

func (d *decoder) member(m *pushv1.Member) nodestate.Row {
	out := nodestate.Member{
		Name:     d.name("name", m.GetName()),
		Kind:     state[nodestate.MemberKind](d, "kind", m.GetKind(), memberKinds),
		Underlay: d.addrs("underlay", m.GetUnderlay()),
		Tunnel:   d.addrs("tunnel", m.GetTunnel()),
		Blocks:   d.prefixes("blocks", m.GetBlocks()),
	}
	if copy(out.TunnelMAC[:], m.GetTunnelMac()) != len(m.GetTunnelMac()) || len(m.GetTunnelMac()) != len(out.TunnelMAC) {
		d.fail("tunnel_mac", fmt.Sprintf("has %d bytes, not 6", len(m.GetTunnelMac())))
	}
	return out
}

func (d *decoder) servicePort(s *pushv1.ServicePort) nodestate.Row {
	out := nodestate.ServicePort{
		ServiceKey: nodestate.ServiceKey{
			Namespace: s.GetNamespace(), Service: s.GetService(), Port: s.GetPortName(),
			Protocol: state[nodestate.Protocol](d, "protocol", s.GetProtocol(), protocols),
		},
		ClusterAddresses:      d.addrs("cluster_addresses", s.GetClusterAddresses()),
		Port:                  d.port("port", s.GetPort()),
		NodePort:              d.port("node_port", s.GetNodePort()),
		LoadBalancerAddresses: d.addrs("load_balancer_addresses", s.GetLoadBalancerAddresses()),
		ExternalAddresses:     d.addrs("external_addresses", s.GetExternalAddresses()),
		SourceMode:            state[nodestate.SourceMode](d, "source_mode", s.GetSourceMode(), sourceModes),
		SourceRanges:          d.prefixes("source_ranges", s.GetSourceRanges()),
		AffinitySeconds:       s.GetAffinitySeconds(),
		InternalPolicy:        state[nodestate.Locality](d, "internal_policy", s.GetInternalPolicy(), localities),
		ExternalPolicy:        state[nodestate.Locality](d, "external_policy", s.GetExternalPolicy(), localities),
	}
	for _, f := range s.GetNodePortFamilies() {
		if f != 4 && f != 6 {
			d.fail("node_port_families", fmt.Sprintf("%d is neither 4 nor 6", f))
		}
		out.NodePortFamilies = append(out.NodePortFamilies, uint8(f))
	}
	return out
}

func (d *decoder) endpoint(e *pushv1.Endpoint) nodestate.Row {
	return nodestate.Endpoint{
		ServiceKey: nodestate.ServiceKey{
			Namespace: e.GetNamespace(), Service: e.GetService(), Port: e.GetPortName(),
			Protocol: state[nodestate.Protocol](d, "protocol", e.GetProtocol(), protocols),
		},
		Address: d.addr("address", e.GetAddress()),
		Backend: d.port("port", e.GetPort()),
		Node:    e.GetNode(),
		Zone:    e.GetZone(),
		State:   state[nodestate.EndpointState](d, "state", e.GetState(), endpointStates),

		HintZones: e.GetHintZones(), HintNodes: e.GetHintNodes(),
	}
}

func (d *decoder) side(field string, s *pushv1.Subject_Side) nodestate.Side {
	out := nodestate.Side{
		Mode:     state[nodestate.SideMode](d, field+".mode", s.GetMode(), sideModes),
		Policies: s.GetPolicies(),
	}
	if out.Mode == nodestate.SideIsolated {
		out.Class = d.class(field+".class", s.GetClass())
	} else if len(s.GetClass()) != 0 {
		d.fail(field+".class", "set although the direction is open")
	}
	return out
}

func (d *decoder) peerRange(r *pushv1.PeerRange) nodestate.Row {
	out := nodestate.PeerRange{
		AddrRange: nodestate.AddrRange{From: d.addr("from", r.GetFrom()), To: d.addr("to", r.GetTo())},
		Class:     d.class("class", r.GetClass()),
	}
	if problem := rangeProblem(out.AddrRange); problem != "" {
		d.fail("from", problem)
	}
	return out
}

func (d *decoder) allow(a *pushv1.Allow) nodestate.Row {
	out := nodestate.Allow{
		Direction: state[nodestate.Direction](d, "direction", a.GetDirection(), directions),
		Subject:   d.class("subject", a.GetSubject()),
		PeerMode:  state[nodestate.PeerMode](d, "peer_mode", a.GetPeerMode(), peerModes),
		PortMode:  state[nodestate.PortMode](d, "port_mode", a.GetPortMode(), portModes),
		From:      d.port("from", a.GetFrom()),
		To:        d.port("to", a.GetTo()),
		Origins:   a.GetOrigins(),
	}
	if out.PeerMode == nodestate.PeerClass {
		out.Peer = d.class("peer", a.GetPeer())
	} else if len(a.GetPeer()) != 0 {
		d.fail("peer", "set although peer_mode is any")
	}
	if out.PortMode != nodestate.PortAny || a.GetProtocol() != 0 {
		out.Protocol = state[nodestate.Protocol](d, "protocol", a.GetProtocol(), protocols)
	}
	if problem := allowProblem(out); problem != "" {
		d.fail("allow", problem)
	}
	return out
}

func (d *decoder) name(field, s string) string {
	if s == "" {
		d.fail(field, "is empty")
	}
	return s
}

func (d *decoder) port(field string, p uint32) uint16 {
	if p > 65535 {
		d.fail(field, fmt.Sprintf("%d is no port", p))
	}
	return uint16(p)
}

func (d *decoder) class(field string, b []byte) nodestate.Class {
	var c nodestate.Class
	if len(b) != len(c) {
		d.fail(field, fmt.Sprintf("has %d bytes, not 16", len(b)))
		return c
	}
	copy(c[:], b)
	return c
}

func (d *decoder) addr(field string, b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		d.fail(field, fmt.Sprintf("an address has %d bytes, not 4 or 16", len(b)))
	}
	return a
}

func (d *decoder) addrs(field string, bs [][]byte) []netip.Addr {
	var out []netip.Addr
	for _, b := range bs {
		out = append(out, d.addr(field, b))
	}
	return out
}

func (d *decoder) prefix(field string, p *pushv1.Prefix) netip.Prefix {
	a := d.addr(field, p.GetAddress())
	if p.GetBits() > uint32(a.BitLen()) {
		d.fail(field, fmt.Sprintf("%d bits are too many for %s", p.GetBits(), a))
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, int(p.GetBits()))
}

func (d *decoder) prefixes(field string, ps []*pushv1.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, d.prefix(field, p))
	}
	return out
}
