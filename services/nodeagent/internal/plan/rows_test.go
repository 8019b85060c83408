package plan_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// state is what a test's text describes, one thing per line:
//
//	node NAME[@ZONE] ADDRESS…
//	pod UID LINK ADDRESS…
//	range pod|service|loadbalancer PREFIX
//	member NAME TUNNEL…
//	service KEY PORT [cluster=…] [nodeport=N/4,6] [lb=…] [external=…] [sources=…] [affinity=S] [internal=local] [outside=local]
//	endpoint KEY ADDRESS:PORT NODE [terminating] [zones=…] [nodes=…]
//	subject UID INGRESS EGRESS          open or a class, one letter
//	peer ADDRESS CLASS
//	peerrange FROM-TO CLASS
//	allow ingress|egress SUBJECT PEER|any any|PROTOCOL|PROTOCOL/FROM-TO
//
// Lists are separated by commas; KEY is namespace/service:port/protocol.
type state struct {
	node plan.Node
	pods []plan.Attachment
	rows []nodestate.Row
}

func parseState(t testing.TB, text string) state {
	t.Helper()
	var s state
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		switch f[0] {
		case "node":
			name, zone, _ := strings.Cut(f[1], "@")
			s.node = plan.Node{Name: name, Zone: zone, Addresses: addrs(f[2:])}
		case "pod":
			s.pods = append(s.pods, plan.Attachment{UID: f[1], Link: f[2], Addresses: addrs(f[3:])})
		default:
			s.rows = append(s.rows, parseRow(t, f))
		}
	}
	return s
}

func parseRow(t testing.TB, f []string) nodestate.Row {
	t.Helper()
	switch f[0] {
	case "range":
		kind := map[string]nodestate.RangeKind{
			"pod": nodestate.RangePod, "service": nodestate.RangeService, "loadbalancer": nodestate.RangeLoadBalancer,
		}[f[1]]
		return nodestate.Range{Kind: kind, Prefix: netip.MustParsePrefix(f[2])}
	case "member":
		return nodestate.Member{Name: f[1], Kind: nodestate.MemberNode, Tunnel: addrs(f[2:])}
	case "underlay":
		return nodestate.Member{Name: f[1], Kind: nodestate.MemberNode, Underlay: addrs(f[2:])}
	case "service":
		return parseService(t, f)
	case "endpoint":
		at := netip.MustParseAddrPort(f[2])
		e := nodestate.Endpoint{
			ServiceKey: parseKey(f[1]), Address: at.Addr(), Backend: at.Port(), Node: f[3], State: nodestate.EndpointReady,
		}
		for _, option := range f[4:] {
			switch name, list, _ := strings.Cut(option, "="); name {
			case "terminating":
				e.State = nodestate.EndpointTerminating
			case "zones":
				e.HintZones = strings.Split(list, ",")
			case "nodes":
				e.HintNodes = strings.Split(list, ",")
			}
		}
		return e
	case "subject":
		return nodestate.Subject{PodUID: f[1], Ingress: parseSide(f[2]), Egress: parseSide(f[3])}
	case "peer":
		return nodestate.Peer{Address: netip.MustParseAddr(f[1]), Class: class(f[2])}
	case "peerrange":
		from, to, _ := strings.Cut(f[1], "-")
		return nodestate.PeerRange{AddrRange: nodestate.AddrRange{
			From: netip.MustParseAddr(from), To: netip.MustParseAddr(to),
		}, Class: class(f[2])}
	case "allow":
		return parseAllow(f)
	}
	t.Fatalf("no such row: %v", f)
	return nil
}

func parseService(t testing.TB, f []string) nodestate.ServicePort {
	t.Helper()
	s := nodestate.ServicePort{
		ServiceKey: parseKey(f[1]), Port: uint16(number(f[2])), SourceMode: nodestate.SourceAll,
		InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
	}
	for _, option := range f[3:] {
		name, value, _ := strings.Cut(option, "=")
		list := strings.Split(value, ",")
		switch name {
		case "cluster":
			s.ClusterAddresses = addrs(list)
		case "lb":
			s.LoadBalancerAddresses = addrs(list)
		case "external":
			s.ExternalAddresses = addrs(list)
		case "nodeport":
			port, families, _ := strings.Cut(value, "/")
			s.NodePort = uint16(number(port))
			for _, n := range strings.Split(families, ",") {
				s.NodePortFamilies = append(s.NodePortFamilies, uint8(number(n)))
			}
		case "sources":
			s.SourceMode = nodestate.SourceSome
			for _, p := range list {
				s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(p))
			}
		case "affinity":
			s.AffinitySeconds = uint32(number(value))
		case "internal":
			s.InternalPolicy = nodestate.LocalityLocal
		case "outside":
			s.ExternalPolicy = nodestate.LocalityLocal
		default:
			t.Fatalf("no such option: %s", option)
		}
	}
	return s
}

func parseAllow(f []string) nodestate.Allow {
	a := nodestate.Allow{
		Direction: nodestate.Ingress, Subject: class(f[2]), PeerMode: nodestate.PeerAny, PortMode: nodestate.PortAny,
	}
	if f[1] == "egress" {
		a.Direction = nodestate.Egress
	}
	if f[3] != "any" {
		a.PeerMode, a.Peer = nodestate.PeerClass, class(f[3])
	}
	if f[4] == "any" {
		return a
	}
	proto, ports, ranged := strings.Cut(f[4], "/")
	a.PortMode = nodestate.PortProtocol
	a.Protocol, _ = nodestate.ParseProtocol(proto)
	if ranged {
		from, to, _ := strings.Cut(ports, "-")
		a.PortMode, a.From, a.To = nodestate.PortRange, uint16(number(from)), uint16(number(to))
	}
	return a
}

func parseKey(s string) nodestate.ServiceKey {
	rest, proto, _ := strings.Cut(s, ":")
	ns, name, _ := strings.Cut(rest, "/")
	port, protocol, _ := strings.Cut(proto, "/")
	p, _ := nodestate.ParseProtocol(protocol)
	return nodestate.ServiceKey{Namespace: ns, Service: name, Port: port, Protocol: p}
}

func parseSide(s string) nodestate.Side {
	if s == "open" {
		return nodestate.Side{Mode: nodestate.SideOpen}
	}
	return nodestate.Side{Mode: nodestate.SideIsolated, Class: class(s)}
}

func class(s string) (c nodestate.Class) {
	copy(c[:], s)
	return c
}

func addrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(fmt.Sprintf("a number is expected: %v", err))
	}
	return n
}
