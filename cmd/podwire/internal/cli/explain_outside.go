package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"podwire.dev/internal/errs"
)

// assumedAddresses stand for any address that belongs to nobody here (RFC 5737, TEST-NET-3; RFC 3849).
func assumedAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
}

// assume gives the outside its addresses, those that it would send to the nodes from, and says which they are.
func (x *explainer) assume(ctx context.Context) (string, error) {
	if err := x.listNodes(ctx); err != nil {
		return "", err
	}
	var failed error
	for _, n := range x.nodes {
		for _, a := range n.addrs {
			if sameFamily(x.from.addrs, a).IsValid() {
				continue
			}
			route, err := x.OutsideRoute(a)
			if err == nil && route.Source.IsValid() {
				x.from.addrs = append(x.from.addrs, route.Source)
			}
			failed = err
		}
	}
	if len(x.from.addrs) > 0 {
		return texts(x.from.addrs) + ", from where the outside reaches the nodes; `podwire explain ADDRESS …` asks for another client", nil
	}
	why := "there is no node to find out"
	if failed != nil {
		why = failed.Error()
	}
	x.from.addrs, x.from.routed = assumedAddresses(), false
	return fmt.Sprintf("%s for some client, since the outside's own address is not known (%s); `podwire explain ADDRESS …` asks for another",
		texts(x.from.addrs), why), nil
}

func texts(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

// outside says whether the client is none that cluster addresses are for. A fabric member is none: it translates nothing.
func (x *explainer) outside() bool { return x.from.stranger() || x.from.member() != "" }

// memberSource are the addresses that a member sends from: its own in the fabric, to whatever is in it, else those of its
// host.
func (x *explainer) memberSource() []netip.Addr {
	if x.to.pod != nil && !x.to.host() || x.to.service != nil {
		return podParty(x.from.pod).addrs
	}
	var out []netip.Addr
	for _, ip := range x.from.pod.GetStatus().GetHostIps() {
		out = appendAddr(out, ip.GetIp())
	}
	return out
}

// notHere is why a packet comes to no node, in the words of whoever sends it.
func (x *explainer) notHere(why string) string {
	if x.from.member() != "" {
		return "a fabric member translates nothing, and Service addresses are unreachable to it: " + why
	}
	return "from outside: " + why
}

// entryNode is the node whose tables see the packet first, as far as the two ends tell. A client outside may have no way to
// any: then unrouted says so.
func (x *explainer) entryNode(ctx context.Context, dest netip.Addr) (node, unrouted string) {
	switch {
	case x.from.member() != "" && !x.to.host():
		return "", ""
	case x.from.node != nil:
		return x.from.text, ""
	case x.from.pod != nil && x.from.member() == "":
		return x.from.pod.GetSpec().GetNodeName(), ""
	case x.to.node != nil:
		return x.to.text, ""
	case x.to.host():
		return x.to.pod.GetSpec().GetNodeName(), ""
	}
	inside := x.to.pod != nil
	if x.from.routed && dest.IsValid() {
		node, unrouted = x.routed(ctx, dest)
		if inside && node == "" && unrouted == "" {
			unrouted = fmt.Sprintf("its routes lead to %s on the link, where nobody answers for it", dest)
		}
		return node, unrouted
	}
	if inside {
		return "", fmt.Sprintf("no route is known to lead to a node with what %s sends to pod addresses", x.from.text)
	}
	return "", ""
}

// routed is the node that the outside's routes lead to with an address; empty where the address is on the link, and then
// whoever has it answers.
func (x *explainer) routed(ctx context.Context, dest netip.Addr) (node, unrouted string) {
	route, err := x.OutsideRoute(dest)
	switch {
	case errs.Is(err, errs.NotFound):
		return "", fmt.Sprintf("no route leads to %s", dest)
	case err != nil:
		return "", fmt.Sprintf("its route to %s is not known: %v", dest, err)
	case !route.Via.IsValid():
		return "", ""
	}
	if err := x.listNodes(ctx); err != nil {
		return "", err.Error()
	}
	if node := x.nodeWith(route.Via); node != "" {
		return node, ""
	}
	return "", fmt.Sprintf("its route to %s leads to %s, which is no node", dest, route.Via)
}

// nodeWith is the node that has an address; empty where none has.
func (x *explainer) nodeWith(addr netip.Addr) string {
	i := slices.IndexFunc(x.nodes, func(p party) bool { return slices.Contains(p.addrs, addr) })
	if i < 0 {
		return ""
	}
	return x.nodes[i].text
}

// nodeAddress is a node's address of a family.
func (x *explainer) nodeAddress(name string, family netip.Addr) netip.Addr {
	for _, n := range x.nodes {
		if n.text == name {
			return sameFamily(n.addrs, family)
		}
	}
	return netip.Addr{}
}

// seen is the source address as an endpoint, and its policy, see it (docs/dataplane.md, "Who passes which hook"), and why it
// is not the sender's; not valid where it cannot be told.
func (x *explainer) seen(ctx context.Context, e end) (seen netip.Addr, why string) {
	own, entry := sameFamily(x.from.addrs, e.addr), x.entryOf(e)
	onHost := x.nodeWith(e.addr)
	inFabric := onHost == "" && e.party.pod != nil
	switch {
	case entry == "" || x.from.member() != "" && x.entry == "":
		return own, ""
	case x.origin() == "pod" && x.to.service != nil && e.party.text == x.from.text:
		return x.tunnel(ctx, entry, e.addr), "its own connection through the Service comes back with the tunnel address of " + entry
	case x.origin() == "pod" && (inFabric || onHost == entry):
		return own, ""
	case x.origin() == "pod":
		return x.nodeAddress(entry, e.addr), "what leaves the fabric has the address of " + entry
	case inFabric && x.crosses(e):
		if x.outside() {
			return x.tunnel(ctx, entry, e.addr), fmt.Sprintf(
				"the tunnel address of %s, where the client enters, since the endpoint is not there; no ipBlock of clients matches it", entry)
		}
		return x.tunnel(ctx, entry, e.addr), "the tunnel address of " + entry + ", as whatever a node sends into the fabric"
	case x.outside() && !inFabric && onHost != entry:
		return x.nodeAddress(entry, e.addr), "the address of " + entry + ", where the client enters"
	}
	return own, ""
}
