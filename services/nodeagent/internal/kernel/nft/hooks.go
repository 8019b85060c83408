package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"podwire.dev/services/nodeagent/internal/plan"
)

// hooks are the base chains: where packets enter the table. Their policy is accept, and a packet that is neither from
// nor to one of our links or addresses leaves them untouched. Accepting ends one base chain only: what comes later on
// the hook, ours or another table's, still decides.
func hooks() []chain {
	return []chain{
		prerouting(), natPrerouting(), natOutput(), natPostrouting(), input(), forward(), forwardIngress(), output(),
		postrouting(),
	}
}

func hook(name string, kind nftables.ChainType, at *nftables.ChainHook, priority nftables.ChainPriority) chain {
	return chain{name: name, base: &base{kind, at, priority}}
}

// prerouting is before conntrack, so that a forged packet leaves no trace there.
func prerouting() chain {
	c := hook("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw)
	c.add("gate", from(podLinks), jump("from-pod"))
	for _, f := range plan.Families() {
		c.add("a pod's address from elsewhere", notFrom("lo"), notFrom(ourLinks), family(f),
			in(plan.SetPodRanges.In(f), addr(f, source)), count(DropSpoofed), drop())
		c.add("no pod's address from the fabric", from(tunnel), family(f),
			out(plan.SetPodRanges.In(f), addr(f, source)), count(DropSpoofed), drop())
	}
	// Conntrack would look for a flow first: a pod that sent from this port, masqueraded, to a member's would get that
	// member's tunnel packets as the answers.
	c.both("the tunnel is no flow", func(f plan.Family) code {
		return rule(notFrom(ourLinks), toTunnel(), in(plan.SetUnderlays.In(f), addr(f, source)),
			in(plan.SetUnderlays.In(f), addr(f, destination)), code{&expr.Notrack{}})
	})
	return c
}

func natPrerouting() chain {
	c := hook("nat-prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	c.add("client outside", notFrom(ourLinks), jump("services-outside"))
	c.add("any client", jump("services"))
	return c
}

func natOutput() chain {
	c := hook("nat-output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest)
	c.add("own process", jump("services"))
	return c
}

// natPostrouting gives a new flow the source address by which its answers come back: the tunnel address to itself and
// into the fabric, the node's own out of it. It clears the ct mark of flows that translate sent on.
func natPostrouting() chain {
	c := hook("nat-postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	masquerade := leave("masquerade-ports")
	unmark := setCtMark(value(0))
	c.both("a pod to itself", func(f plan.Family) code {
		return rule(in(plan.SetSelf.In(f), addr(f, source), addr(f, destination)), unmark,
			find(plan.SetHairpin.In(f), addr(f, source)),
			code{&expr.NAT{Type: expr.NATTypeSourceNAT, Family: nfproto(f), RegAddrMin: unix.NFT_REG_1}})
	})
	for _, f := range plan.Families() {
		c.add("into the fabric", to(tunnel), family(f), out(plan.SetPodRanges.In(f), addr(f, source)), unmark, masquerade)
	}
	for _, f := range plan.Families() {
		c.add("out of the fabric", notTo("lo"), notTo(ourLinks), family(f), in(plan.SetPodRanges.In(f), addr(f, source)),
			out(plan.SetPodRanges.In(f), addr(f, destination)), unmark, masquerade)
	}
	c.add("not ours", masked(ctMark(), plan.IDMask, expr.CmpOpNeq, plan.IDBase), accept())
	c.add("clear", unmark)
	c.add("to an endpoint on a host's network", notTo("lo"), notTo(ourLinks), masquerade)
	return c
}

// toTunnel matches what a member's tunnel would take for a packet of the fabric, whose source it then believes.
func toTunnel() code {
	return rule(is(l4proto(), unix.IPPROTO_UDP), in(plan.SetTunnelPort, dport()))
}

// isCut matches what belongs to a flow that policy has cut, and that is tracked on, so that no late answer begins it anew. It must
// come before anything that uses the conntrack mark as a variable.
func isCut() code { return masked(ctMark(), plan.IDMask, expr.CmpOpEq, plan.CutMark) }

// input judges what pods send to their own node, and what anybody sends to its tunnel.
func input() chain {
	c := hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter)
	c.add("clear", state(stateNew), masked(ctMark(), plan.IDMask, expr.CmpOpEq, plan.IDBase), setCtMark(value(0)))
	c.add("no pod speaks for the tunnel", from(ourLinks), toTunnel(), count(DropSpoofed), drop())
	c.both("only members do", func(f plan.Family) code {
		return rule(toTunnel(), out(plan.SetUnderlays.In(f), addr(f, source)), count(DropSpoofed), drop())
	})
	c.add("not from a pod", notFrom(podLinks), accept())
	c.add("gate", jump("from-pod"))
	c.add("cut by policy", isCut(), count(DropCut), drop())
	c.add("an error", state(stateRelated), jump("foreign-error"))
	c.add("judged before", state(stateTracked), accept())
	c.add("new flow", jump("opening"))
	c.add("egress policy", leave("judge-egress"))
	return c
}

// forward judges egress; forwardIngress comes after it on the same hook, so both must allow.
func forward() chain {
	c := hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter)
	c.add("not ours", notFrom(ourLinks), notTo(ourLinks), accept())
	c.add("gate", from(podLinks), jump("from-pod"))
	c.add("gate", to(podLinks), jump("to-pod"))
	// It would arrive at another member as this node's own.
	c.add("no pod speaks for the tunnel", from(ourLinks), notTo(ourLinks), toTunnel(), count(DropSpoofed), drop())
	c.add("cut by policy", isCut(), count(DropCut), drop())
	c.add("an error", from(podLinks), state(stateRelated), jump("foreign-error"))
	c.add("judged before", state(stateTracked), accept())
	c.add("new flow", jump("opening"))
	c.both("no such Service", func(f plan.Family) code {
		return rule(in(plan.SetServiceRanges.In(f), addr(f, destination)), leave("refuse"))
	})
	c.add("egress policy", from(podLinks), leave("judge-egress"))
	return c
}

func forwardIngress() chain {
	c := hook("forward-ingress", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter+1)
	c.add("not to a pod", notTo(podLinks), accept())
	c.add("judged before", state(stateTracked), accept())
	c.add("ingress policy", leave("judge-ingress"))
	return c
}

// output sees the link that was chosen before nat-output translated, so postrouting repeats the gate.
func output() chain {
	c := hook("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter)
	c.add("gate", to(podLinks), jump("to-pod"))
	for _, f := range plan.Families() {
		c.add("no such Service", to(ourLinks), family(f), in(plan.SetServiceRanges.In(f), addr(f, destination)),
			leave("refuse"))
	}
	return c
}

// postrouting keeps own processes, whose traffic to the node's pods no policy judges, from answering or opening again a flow that
// a pod was denied.
func postrouting() chain {
	c := hook("postrouting", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, *nftables.ChainPriorityFilter)
	c.add("not to a pod", notTo(podLinks), accept())
	c.add("gate", jump("to-pod"))
	c.add("cut by policy", isCut(), count(DropCut), drop())
	c.add("judged before", state(stateTracked), accept())
	c.add("new flow", jump("opening"))
	return c
}
