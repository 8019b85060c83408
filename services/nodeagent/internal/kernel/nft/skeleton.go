package nft

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"podwire.dev/services/nodeagent/internal/plan"
)

// Counter names one counter of the table: the packets that a reason stopped.
type Counter string

// The counters.
const (
	DropGate     Counter = "drop-gate"     // not an address of the pod's link
	DropSpoofed  Counter = "drop-spoofed"  // a pod's address from outside the fabric, the reverse, or no member to the tunnel
	DropInvalid  Counter = "drop-invalid"  // conntrack cannot place it
	DropNoSYN    Counter = "drop-no-syn"   // first segment of a flow, and no bare SYN
	DropEgress   Counter = "drop-egress"   // denied by policy at the source
	DropIngress  Counter = "drop-ingress"  // denied by policy at the destination
	DropRefused  Counter = "drop-refused"  // Service without endpoints, or no such port
	DropNoLocal  Counter = "drop-no-local" // traffic policy Local, and no endpoint on this node
	DropMiss     Counter = "drop-miss"     // the Service changed in the middle of a lookup
	DropNoSource Counter = "drop-source"   // outside loadBalancerSourceRanges
	DropCut      Counter = "drop-cut"      // of a flow that policy has cut
	DropError    Counter = "drop-error"    // an ICMP error of a pod about a flow that is not its own
)

// Counters returns all counters.
func Counters() []Counter {
	return []Counter{
		DropGate, DropSpoofed, DropInvalid, DropNoSYN, DropEgress, DropIngress, DropRefused, DropNoLocal, DropMiss,
		DropNoSource, DropCut, DropError,
	}
}

// The links of the fabric: every pod's host side, the tunnel, and both.
const (
	podLinks = "pwp*"
	tunnel   = "pwvx"
	ourLinks = "pw*"
)

const (
	stateInvalid = 1 << 0
	stateRelated = 1 << 2
	stateTracked = 1<<1 | 1<<2 // established, related
	stateNew     = 1 << 3
)

// chain is one chain of the table.
type chain struct {
	name string
	base *base
	// rules, each with the comment that says what it is for.
	rules []commented
}

type base struct {
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
}

type commented struct {
	comment string
	code    code
}

func (c *chain) add(comment string, parts ...code) {
	c.rules = append(c.rules, commented{comment, rule(parts...)})
}

// both adds one rule per family.
func (c *chain) both(comment string, parts func(plan.Family) code) {
	for _, f := range plan.Families() {
		c.add(comment, family(f), parts(f))
	}
}

// chains are the fixed chains, each before what jumps to it.
func chains() []chain {
	list := []chain{
		gate("from-pod", iifname(), source), gate("to-pod", oifname(), destination),
		foreignError(), opening(), masqueradePorts(), refuse(), noLocal(), pass(), judgeRange(), judge(),
		judgeSide("judge-egress", plan.SetEgress, source, destination),
		judgeSide("judge-ingress", plan.SetIngress, destination, source),
		translate(), guard(), serve(),
		lookup("services", plan.SetFrontends, plan.SetNodePorts),
		lookup("services-outside", plan.SetOutside, plan.SetNodePortsOutside),
	}
	return append(list, hooks()...)
}

// gate lets pass what the pod set names for the link, and neighbour discovery. The hop limit keeps a pod from using it
// further than its link.
func gate(name string, link field, e end) chain {
	c := chain{name: name}
	c.both("address of the link", func(f plan.Family) code { return rule(in(plan.SetPods.In(f), link, addr(f, e)), back()) })
	for _, nd := range []byte{135, 136} {
		c.add("neighbour discovery", family(plan.IPv6), is(payload(expr.PayloadBaseNetworkHeader, 7, 1), 255),
			is(l4proto(), unix.IPPROTO_ICMPV6), is(payload(expr.PayloadBaseTransportHeader, 0, 1), nd), accept())
	}
	c.add("any other address", count(DropGate), drop())
	return c
}

// foreignError stops ICMP errors that come from a pod and quote a flow of which it is neither end. Conntrack takes an error
// for part of the flow that it quotes, whoever sent it, and it carries data. Only the ends of a flow and routers on its way have
// reason to report one, and no pod is a router: its address has passed the gate, and so must be one of the flow's two sources.
func foreignError() chain {
	c := chain{name: "foreign-error"}
	for _, d := range []direction{original, reply} {
		for _, f := range plan.Families() {
			c.add("about its own flow", in(plan.SetPods.In(f), iifname(), flowSource(d, f)), back())
		}
	}
	c.add("about a flow of others", count(DropError), drop())
	return c
}

// masqueradePorts gives a flow the address of the link that it leaves by. A port of its own choosing would lend it what arrives at
// that port of the node from the flow's far end: before any socket, and before any node port.
func masqueradePorts() chain {
	c := chain{name: "masquerade-ports"}
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		c.add("to a port that the node serves nobody at", is(l4proto(), proto), masqueradeTo())
	}
	c.add("no ports", code{&expr.Masq{}})
	return c
}

// opening admits what may begin a flow. A segment in the middle of a flow may not: nf_conntrack_tcp_loose would take
// it up, and so a deleted forbidden connection would come back, even in the other direction.
func opening() chain {
	c := chain{name: "opening"}
	c.add("conntrack cannot place it", state(stateInvalid), count(DropInvalid), drop())
	flags := code{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}},
	}
	c.add("a TCP flow begins with a bare SYN", state(stateNew), is(l4proto(), unix.IPPROTO_TCP), flags,
		cmp(expr.CmpOpNeq, 0x02), count(DropNoSYN), drop())
	return c
}

// refuse answers at once, but not ICMP: a Service address does not answer ping, as in Kubernetes.
func refuse() chain {
	c := chain{name: "refuse"}
	c.add("reset", is(l4proto(), unix.IPPROTO_TCP), count(DropRefused), code{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	c.add("no ping", is(l4proto(), unix.IPPROTO_ICMP), count(DropRefused), drop())
	c.add("no ping", is(l4proto(), unix.IPPROTO_ICMPV6), count(DropRefused), drop())
	c.add("port unreachable", count(DropRefused),
		code{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}})
	return c
}

func noLocal() chain {
	c := chain{name: "no-local"}
	c.add("policy Local, no endpoint here", count(DropNoLocal), drop())
	return c
}

// pass clears both marks before the packet goes on to other tables.
func pass() chain {
	c := chain{name: "pass"}
	c.add("clear", setMark(value(0)), setCtMark(value(0)), accept())
	return c
}

// judge looks for an allowance of (subject class, peer class) = (mark, ct mark).
func judge() chain {
	c := chain{name: "judge"}
	c.add("no policy isolates it", is(mark(), word(plan.Open)...), leave("pass"))
	c.add("every port", in(plan.SetAllow, mark(), ctMark()), leave("pass"))
	c.add("every port of the protocol", in(plan.SetAllowProtocol, mark(), ctMark(), l4proto()), leave("pass"))
	c.add("the port", in(plan.SetAllowPort, mark(), ctMark(), l4proto(), dport()), leave("pass"))
	c.add("wide port ranges", setMark(find(plan.SetPairs, mark(), ctMark())), jump("judge-range"))
	return c
}

// judgeRange has the pair id in mark, and uses ct mark for the port class.
func judgeRange() chain {
	c := chain{name: "judge-range"}
	c.add("no port class", setCtMark(value(0)))
	for _, p := range []struct {
		proto byte
		set   plan.SetName
	}{{unix.IPPROTO_TCP, plan.SetPortsTCP}, {unix.IPPROTO_UDP, plan.SetPortsUDP}, {unix.IPPROTO_SCTP, plan.SetPortsSCTP}} {
		c.add("port class", is(l4proto(), p.proto), setCtMark(find(p.set, dport())))
	}
	c.add("the port class", in(plan.SetAllowRange, mark(), ctMark()), leave("pass"))
	return c
}

// judgeSide judges one side: once for allowances of any peer, once for the peer's class. It ends with a verdict.
func judgeSide(name string, subjects plan.SetName, subject, peer end) chain {
	c := chain{name: name}
	counter := DropEgress
	if subject == destination {
		counter = DropIngress
	}
	c.both("a pod cannot block itself", func(f plan.Family) code {
		return rule(in(plan.SetSelf.In(f), addr(f, source), addr(f, destination)), accept())
	})
	c.add("any peer", setCtMark(value(plan.AnyPeer)))
	c.both("subject", func(f plan.Family) code {
		return rule(setMark(find(subjects.In(f), addr(f, subject))), jump("judge"))
	})
	c.add("no peer class", setCtMark(value(plan.AnyPeer)))
	for _, set := range []plan.SetName{plan.SetRanges, plan.SetPeers} {
		c.both("peer class", func(f plan.Family) code { return setCtMark(find(set.In(f), addr(f, peer))) })
	}
	for _, f := range plan.Families() {
		c.add("subject and peer", load(0, ctMark()), cmp(expr.CmpOpNeq, word(plan.AnyPeer)...), family(f),
			setMark(find(subjects.In(f), addr(f, subject))), jump("judge"))
	}
	c.add("nothing allows it", count(counter), drop())
	return c
}

// lookup finds the service id of a frontend: by address, or by node port.
func lookup(name string, frontends, nodePorts plan.SetName) chain {
	c := chain{name: name}
	c.both("address and port", func(f plan.Family) code {
		return rule(setMark(find(frontends.In(f), addr(f, destination), l4proto(), dport())), leave("serve"))
	})
	c.both("node port", func(f plan.Family) code {
		return rule(in(plan.SetNode.In(f), addr(f, destination)),
			setMark(find(nodePorts.In(f), l4proto(), dport())), leave("serve"))
	})
	return c
}

// serve runs the program of the service id in mark; programs that return left an endpoint id in ct mark. Source ranges
// are looked up after the frontend: a new Service's are then there whenever its frontend is.
func serve() chain {
	c := chain{name: "serve"}
	c.both("source ranges", func(f plan.Family) code {
		return rule(in(plan.SetGuards.In(f), addr(f, destination), l4proto(), dport()), jump("guard"))
	})
	c.add("no endpoint", setCtMark(value(0)))
	c.add("program", setCtMark(find(plan.SetServices, mark())), vmap(plan.SetPrograms, ctMark()))
	c.add("chosen", leave("translate"))
	return c
}

// translate sends the flow to the endpoint id in ct mark, which stays there until the last chain of the hook's path
// (nat-postrouting, input) clears it: those know by it that the flow is ours.
func translate() chain {
	c := chain{name: "translate"}
	c.add("clear", setMark(value(0)))
	// One rule per protocol: nft loads a map of addresses and ports only after a match of one transport protocol.
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		for _, f := range plan.Families() {
			nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: nfproto(f), RegAddrMin: unix.NFT_REG_1}
			nat.RegProtoMin = register(uint32(f.Addr().Width()) / 4)
			c.add("to the endpoint", family(f), is(l4proto(), proto), find(plan.SetEndpoints.In(f), ctMark()), code{nat})
		}
	}
	c.add("the endpoint is gone", count(DropMiss), drop())
	return c
}

// guard has the service id in mark.
func guard() chain {
	c := chain{name: "guard"}
	c.add("no source class", setCtMark(value(0)))
	c.both("source class", func(f plan.Family) code { return setCtMark(find(plan.SetSources.In(f), addr(f, source))) })
	c.add("admitted", in(plan.SetAdmitted, mark(), ctMark()), back())
	c.add("outside the source ranges", count(DropNoSource), drop())
	return c
}

// endpointCount is the chain of services with n endpoints: a slot at random, then its endpoint.
func endpointCount(name string, n uint32) chain {
	c := chain{name: name}
	c.add("random slot", setCtMark(code{&expr.Numgen{Register: unix.NFT_REG_1, Modulus: n, Type: unix.NFT_NG_RANDOM}}),
		setCtMark(find(plan.SetSlots, mark(), ctMark())), back())
	c.add("the slot is gone", count(DropMiss), drop())
	return c
}

// affinitySeed is arbitrary; a change makes all clients forget their endpoints once.
const affinitySeed = 0x70770001

// affinity is the chain of services with ClientIP affinity: the remembered endpoint if it still serves, else a new
// one. IPv6 clients are remembered by a 32-bit hash of client and service: nft 1.0.6 aborts on loading a map update
// whose key is longer than 16 bytes. Two clients of one service whose hashes are equal share an endpoint; no client is
// ever sent to another Service's endpoint, since a remembered pair must be in the sticky set.
func affinity(name string, timeout time.Duration) chain {
	c := chain{name: name}
	v4, v6 := plan.SetAffinity.In(plan.IPv4), plan.SetAffinity.In(plan.IPv6)
	client4 := []field{addr(plan.IPv4, source), mark()}
	hash6 := rule(family(plan.IPv6), hashed(affinitySeed, addr(plan.IPv6, source), mark()))
	sticky := in(plan.SetSticky, mark(), ctMark())
	c.add("remembered", family(plan.IPv4), setCtMark(find(v4, client4...)), sticky,
		dynset(v4, unix.NFT_DYNSET_OP_UPDATE, timeout, ctMark(), client4...), leave("translate"))
	c.add("client", setCtMark(hash6))
	c.add("remembered", setCtMark(find(v6, ctMark())), sticky, setMark(hash6),
		dynset(v6, unix.NFT_DYNSET_OP_UPDATE, timeout, ctMark(), mark()), leave("translate"))
	c.add("new choice", setCtMark(find(plan.SetCounts, mark())), vmap(plan.SetChoices, ctMark()))
	// An update of a key that exists leaves its data, so it is deleted first.
	c.add("remember", family(plan.IPv4), dynset(v4, dynsetDelete, 0, ctMark(), client4...),
		dynset(v4, unix.NFT_DYNSET_OP_UPDATE, timeout, ctMark(), client4...), leave("translate"))
	c.add("remember", setMark(hash6), dynset(v6, dynsetDelete, 0, ctMark(), mark()),
		dynset(v6, unix.NFT_DYNSET_OP_UPDATE, timeout, ctMark(), mark()))
	c.add("chosen", leave("translate"))
	return c
}

// dynsetDelete is NFT_DYNSET_OP_DELETE of linux/netfilter/nf_tables.h.
const dynsetDelete = 2
