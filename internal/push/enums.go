package push

import (
	"strconv"

	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// pair is one value of an enumeration, in nodestate and on the wire. Both begin at 1 or above; what no table names is
// refused in either direction, so that a value added on one side only is loud.
type pair[W ~int32] struct {
	state uint8
	wire  W
}

type pairs[W ~int32] []pair[W]

// The tables are small and constant; functions, so that the package has no variable that could change.

func protocols() pairs[pushv1.Protocol] {
	return pairs[pushv1.Protocol]{
		{uint8(nodestate.TCP), pushv1.Protocol_PROTOCOL_TCP},
		{uint8(nodestate.UDP), pushv1.Protocol_PROTOCOL_UDP},
		{uint8(nodestate.SCTP), pushv1.Protocol_PROTOCOL_SCTP},
	}
}

func memberKinds() pairs[pushv1.Member_Kind] {
	return pairs[pushv1.Member_Kind]{
		{uint8(nodestate.MemberNode), pushv1.Member_KIND_NODE},
		{uint8(nodestate.MemberService), pushv1.Member_KIND_SERVICE},
	}
}

func rangeKinds() pairs[pushv1.Range_Kind] {
	return pairs[pushv1.Range_Kind]{
		{uint8(nodestate.RangePod), pushv1.Range_KIND_POD},
		{uint8(nodestate.RangeService), pushv1.Range_KIND_SERVICE},
		{uint8(nodestate.RangeLoadBalancer), pushv1.Range_KIND_LOAD_BALANCER},
	}
}

func sourceModes() pairs[pushv1.ServicePort_SourceMode] {
	return pairs[pushv1.ServicePort_SourceMode]{
		{uint8(nodestate.SourceAll), pushv1.ServicePort_SOURCE_MODE_ALL},
		{uint8(nodestate.SourceSome), pushv1.ServicePort_SOURCE_MODE_SOME},
	}
}

func localities() pairs[pushv1.ServicePort_Policy] {
	return pairs[pushv1.ServicePort_Policy]{
		{uint8(nodestate.LocalityCluster), pushv1.ServicePort_POLICY_CLUSTER},
		{uint8(nodestate.LocalityLocal), pushv1.ServicePort_POLICY_LOCAL},
	}
}

func endpointStates() pairs[pushv1.Endpoint_State] {
	return pairs[pushv1.Endpoint_State]{
		{uint8(nodestate.EndpointReady), pushv1.Endpoint_STATE_READY},
		{uint8(nodestate.EndpointTerminating), pushv1.Endpoint_STATE_TERMINATING},
	}
}

func sideModes() pairs[pushv1.Subject_Side_Mode] {
	return pairs[pushv1.Subject_Side_Mode]{
		{uint8(nodestate.SideOpen), pushv1.Subject_Side_MODE_OPEN},
		{uint8(nodestate.SideIsolated), pushv1.Subject_Side_MODE_ISOLATED},
	}
}

func directions() pairs[pushv1.Direction] {
	return pairs[pushv1.Direction]{
		{uint8(nodestate.Ingress), pushv1.Direction_DIRECTION_INGRESS},
		{uint8(nodestate.Egress), pushv1.Direction_DIRECTION_EGRESS},
	}
}

func peerModes() pairs[pushv1.Allow_PeerMode] {
	return pairs[pushv1.Allow_PeerMode]{
		{uint8(nodestate.PeerAny), pushv1.Allow_PEER_MODE_ANY},
		{uint8(nodestate.PeerClass), pushv1.Allow_PEER_MODE_CLASS},
	}
}

func portModes() pairs[pushv1.Allow_PortMode] {
	return pairs[pushv1.Allow_PortMode]{
		{uint8(nodestate.PortAny), pushv1.Allow_PORT_MODE_ANY},
		{uint8(nodestate.PortProtocol), pushv1.Allow_PORT_MODE_PROTOCOL},
		{uint8(nodestate.PortRange), pushv1.Allow_PORT_MODE_RANGE},
	}
}

func enum[W ~int32](e *encoder, field string, v uint8, table func() pairs[W]) W {
	for _, p := range table() {
		if p.state == v {
			return p.wire
		}
	}
	e.fail(field, strconv.Itoa(int(v))+" is no value of it")
	return 0
}

func state[S ~uint8, W ~int32](d *decoder, field string, v W, table func() pairs[W]) S {
	for _, p := range table() {
		if p.wire == v {
			return S(p.state)
		}
	}
	if v == 0 {
		d.fail(field, "is unspecified")
	} else {
		d.fail(field, strconv.Itoa(int(v))+" is no value that this version knows; update this side")
	}
	return 0
}
