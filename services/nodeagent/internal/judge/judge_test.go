package judge_test

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/judge"
	"podwire.dev/services/nodeagent/internal/plan"
)

var (
	podA, podB = netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("10.244.0.6")
	podA6      = netip.MustParseAddr("fd00:10:244::5")
	remote     = netip.MustParseAddr("10.244.1.2")
	outside    = netip.MustParseAddr("192.0.2.7")
	attached   = []plan.Attachment{
		{UID: "a", Link: "pwpa", Addresses: []netip.Addr{podA, podA6}}, {UID: "b", Link: "pwpb", Addresses: []netip.Addr{podB}},
		{UID: "unknown", Link: "pwpc", Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.7")}},
	}
	open = nodestate.Side{Mode: nodestate.SideOpen}
)

func isolated(class byte, policies ...string) nodestate.Side {
	return nodestate.Side{Mode: nodestate.SideIsolated, Class: nodestate.Class{class}, Policies: policies}
}

func rows() []nodestate.Row {
	class := func(n byte) nodestate.Class { return nodestate.Class{n} }
	return []nodestate.Row{
		nodestate.Subject{PodUID: "a", Ingress: isolated(1, "default/in"), Egress: isolated(2, "default/out")},
		nodestate.Subject{PodUID: "b", Ingress: open, Egress: open},
		nodestate.Peer{Address: remote, Class: class(9)},
		nodestate.PeerRange{
			AddrRange: nodestate.AddrRange{From: netip.MustParseAddr("10.244.1.0"), To: netip.MustParseAddr("10.244.1.255")},
			Class:     class(8),
		},
		nodestate.PeerRange{
			AddrRange: nodestate.AddrRange{From: netip.MustParseAddr("192.0.2.0"), To: netip.MustParseAddr("192.0.2.7")}, Class: class(7),
		},
		nodestate.Allow{
			Direction: nodestate.Ingress, Subject: class(1), PeerMode: nodestate.PeerClass, Peer: class(9),
			PortMode: nodestate.PortRange, Protocol: nodestate.TCP, From: 80, To: 90, Origins: []string{"default/in ingress[0]"},
		},
		nodestate.Allow{
			Direction: nodestate.Ingress, Subject: class(1), PeerMode: nodestate.PeerAny, PortMode: nodestate.PortProtocol,
			Protocol: nodestate.UDP, Origins: []string{"default/in ingress[1]"},
		},
		nodestate.Allow{
			Direction: nodestate.Egress, Subject: class(2), PeerMode: nodestate.PeerClass, Peer: class(7),
			PortMode: nodestate.PortAny, Origins: []string{"default/out egress[0]"},
		},
		nodestate.Allow{
			Direction: nodestate.Egress, Subject: class(2), PeerMode: nodestate.PeerAny, PortMode: nodestate.PortRange,
			Protocol: nodestate.TCP, From: 53, To: 53, Origins: []string{"default/dns egress[0]", "default/out egress[1]"},
		},
	}
}

func TestJudge(t *testing.T) {
	j := judge.New()
	j.Load(nodestate.NewSlice(rows()...), attached)
	const icmp = nodestate.Protocol(1)
	in, out := []string{"default/in"}, []string{"default/out"}
	none := judge.Side{Outcome: judge.NotSubject}
	for what, c := range map[string]struct {
		flow judge.Flow
		want judge.Verdict
	}{
		"peer's class and port": {
			judge.Flow{Source: remote, Destination: podA, Protocol: nodestate.TCP, Port: 85},
			judge.Verdict{Egress: none, Ingress: judge.Side{Outcome: judge.Allowed, Origins: []string{"default/in ingress[0]"}, Policies: in}},
		},
		"another port": {
			judge.Flow{Source: remote, Destination: podA, Protocol: nodestate.TCP, Port: 91},
			judge.Verdict{Egress: none, Ingress: judge.Side{Outcome: judge.Denied, Policies: in}},
		},
		"an address of its own takes a peer out of its range's class": {
			judge.Flow{Source: remote.Next(), Destination: podA, Protocol: nodestate.TCP, Port: 85},
			judge.Verdict{Egress: none, Ingress: judge.Side{Outcome: judge.Denied, Policies: in}},
		},
		"any peer, protocol": {
			judge.Flow{Source: outside, Destination: podA, Protocol: nodestate.UDP, Port: 1},
			judge.Verdict{Egress: none, Ingress: judge.Side{Outcome: judge.Allowed, Origins: []string{"default/in ingress[1]"}, Policies: in}},
		},
		"IPv6 is the same pod": {
			judge.Flow{Source: netip.MustParseAddr("2001:db8::1"), Destination: podA6, Protocol: nodestate.TCP, Port: 80},
			judge.Verdict{Egress: none, Ingress: judge.Side{Outcome: judge.Denied, Policies: in}},
		},
		"own node": {
			judge.Flow{Source: outside, Destination: podA, Protocol: nodestate.TCP, Port: 1, Sender: judge.OwnNode},
			judge.Verdict{Egress: none, Ingress: none},
		},
		"range, every port, ICMP too": {
			judge.Flow{Source: podA, Destination: outside, Protocol: icmp},
			judge.Verdict{Ingress: none, Egress: judge.Side{Outcome: judge.Allowed, Origins: []string{"default/out egress[0]"}, Policies: out}},
		},
		"past the range": {
			judge.Flow{Source: podA, Destination: outside.Next(), Protocol: icmp},
			judge.Verdict{Ingress: none, Egress: judge.Side{Outcome: judge.Denied, Policies: out}},
		},
		"all origins": {
			judge.Flow{Source: podA, Destination: outside, Protocol: nodestate.TCP, Port: 53},
			judge.Verdict{Ingress: none, Egress: judge.Side{
				Outcome: judge.Allowed, Policies: out,
				Origins: []string{"default/dns egress[0]", "default/out egress[0]", "default/out egress[1]"},
			}},
		},
		"both ends": {
			judge.Flow{Source: podB, Destination: podA, Protocol: nodestate.TCP, Port: 85},
			judge.Verdict{Egress: judge.Side{Outcome: judge.Open}, Ingress: judge.Side{Outcome: judge.Denied, Policies: in}},
		},
		"itself": {
			judge.Flow{Source: podA, Destination: podA, Protocol: nodestate.TCP, Port: 1},
			judge.Verdict{Egress: judge.Side{Outcome: judge.Open}, Ingress: judge.Side{Outcome: judge.Open}},
		},
		"no Subject": {
			judge.Flow{Source: attached[2].Addresses[0], Destination: podB, Protocol: nodestate.TCP, Port: 1},
			judge.Verdict{Egress: judge.Side{Outcome: judge.NoPolicy}, Ingress: judge.Side{Outcome: judge.Open}},
		},
		"neither end is here": {
			judge.Flow{Source: remote, Destination: outside, Protocol: nodestate.TCP, Port: 1},
			judge.Verdict{Egress: none, Ingress: none},
		},
	} {
		got := j.Judge(c.flow)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		}
		if j.Passes(c.flow) != got.Passes() {
			t.Errorf("%s: Passes differs from the verdict %+v", what, got)
		}
	}
	j.Load(nil, attached)
	if f := (judge.Flow{Source: podB, Destination: outside, Protocol: nodestate.TCP, Port: 1}); j.Passes(f) {
		t.Error("a pod passes without any rows")
	}
}

// TestLoadDependsOnTheRowsOnly loads states one after the other into one Judge, and holds it against a fresh one.
func TestLoadDependsOnTheRowsOnly(t *testing.T) {
	all := rows()
	old := judge.New()
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var some []nodestate.Row
		for _, r := range all {
			if random.IntN(4) > 0 {
				some = append(some, r)
			}
		}
		s, pods := nodestate.NewSlice(some...), slices.Clone(attached[:1+random.IntN(3)])
		fresh := judge.New()
		fresh.Load(s, pods)
		old.Load(s, pods)
		for range 50 {
			ends := []netip.Addr{podA, podB, podA6, remote, remote.Next(), outside, attached[2].Addresses[0]}
			f := judge.Flow{
				Source: ends[random.IntN(len(ends))], Destination: ends[random.IntN(len(ends))],
				Protocol: []nodestate.Protocol{1, nodestate.TCP, nodestate.UDP}[random.IntN(3)],
				Port:     []uint16{53, 80, 91}[random.IntN(3)], Sender: judge.Sender(random.IntN(2)),
			}
			if got, want := old.Judge(f), fresh.Judge(f); !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v: %+v, a fresh one says %+v", f, got, want)
			}
		}
	}
}
