package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podwire.dev/cmd/podwire/internal/cli/explain"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
)

// answer asks everybody who knows something about the connection.
func (x *explainer) answer(ctx context.Context, from explain.End, to explain.Target) (out *explain.Answer, err error) {
	out = &explain.Answer{Protocol: x.protocol, Paths: []explain.Path{}}
	if x.from, err = x.source(ctx, from); err != nil {
		return nil, err
	}
	if x.from.routed {
		if out.Assumed, err = x.assume(ctx); err != nil {
			return nil, err
		}
	}
	out.From = x.from.shown()
	if to.Scheme != "" {
		return out, x.request(ctx, to, out)
	}
	if x.to, err = x.destination(ctx, to, out); err != nil || out.Verdict != "" {
		return out, err
	}
	return out, x.connect(ctx, out)
}

// connect explains the connection from x.from to x.port of x.to.
func (x *explainer) connect(ctx context.Context, out *explain.Answer) error {
	if x.from.member() != "" {
		x.from.addrs = x.memberSource()
	}
	dest := common(x.from.addrs, x.to.addrs)
	headless := x.to.service != nil && len(x.to.addrs) == 0
	if !dest.IsValid() && !headless {
		return errs.New(errs.Invalid, "%s and %s have no address of the same family", x.from.shown(), x.to.shown())
	}
	out.From, out.To, out.Port = x.from.shown(), x.to.shown(), x.port
	look, dest, unrouted, err := x.find(ctx, dest)
	if err != nil {
		return err
	}
	ends := x.translated(ctx, out, look, dest)
	switch look.GetOutcome() {
	case svcproxyv1.LookupResponse_OUTCOME_UNCHANGED:
		if x.to.service != nil {
			out.Verdict, out.Reason = explain.Refused, look.GetReason()
			return nil
		}
		if x.from.stranger() && x.to.stranger() && x.entry == "" {
			unrouted = or(unrouted, "neither end is the cluster's, so no node sees the packet")
		}
		ends = []end{{party: x.to, addr: dest, port: x.port}}
	case svcproxyv1.LookupResponse_OUTCOME_SERVED:
	case svcproxyv1.LookupResponse_OUTCOME_DROPPED:
		out.Verdict, out.Reason = explain.Dropped, look.GetReason()
		return nil
	case svcproxyv1.LookupResponse_OUTCOME_UNROUTED:
		out.Verdict, out.Reason = explain.Unrouted, x.notHere(strings.TrimSuffix(look.GetReason()+"; "+unrouted, "; "))
		return nil
	default:
		out.Verdict, out.Reason = explain.Refused, look.GetReason()
		return nil
	}
	if unrouted != "" {
		out.Verdict, out.Reason = explain.Unrouted, x.notHere(unrouted)
		return nil
	}
	if x.entry == "" && x.from.member() == "" {
		out.Note = fmt.Sprintf("no node is known to take in what %s sends to %s, so no tables were asked", x.from.text, x.to.text)
	}
	if len(ends) == 0 {
		out.Verdict, out.Reason = explain.Refused, look.GetReason()
		return nil
	}
	if s := out.Service; s != nil && s.Tables != nil && s.Tables.Blocks() && len(s.Tables.Backends) == 0 {
		out.Verdict, out.Reason = explain.Refused, fmt.Sprintf("the tables of %s: %s", s.Tables.Node, s.Tables.DecidedBy)
		return nil
	}
	return x.follow(ctx, out, ends)
}

// find asks svcproxy what the destination is, and sets the node where the packet enters. A client outside that has a
// Service's name goes to the Service's way in, whose address is then the destination, unless its routes lead to the cluster
// address only.
func (x *explainer) find(ctx context.Context, dest netip.Addr) (look *svcproxyv1.LookupResponse, to netip.Addr, unrouted string, err error) {
	entry, unrouted := x.entryNode(ctx, dest)
	x.entry = entry
	name := x.to.service.GetMetadata().GetName()
	if name == "" || x.from.member() != "" && dest.IsValid() {
		look, err = x.lookup(ctx, dest.String(), dest)
	} else {
		if x.outside() {
			x.entry = ""
		}
		look, err = x.lookup(ctx, name, dest)
	}
	if err != nil {
		return nil, dest, "", err
	}
	switch {
	case look.GetAddress() != "" && x.outside():
		if dest, err = netip.ParseAddr(look.GetAddress()); err != nil {
			return nil, dest, "", errs.WrapAs(errs.Internal, err, "explain: svcproxy's answer")
		}
		x.entry, unrouted = x.entryNode(ctx, dest)
	case look.GetOutcome() == svcproxyv1.LookupResponse_OUTCOME_UNROUTED && entry != "":
		x.entry = entry
		if look, err = x.lookup(ctx, dest.String(), dest); err != nil {
			return nil, dest, "", err
		}
	}
	x.entry = or(look.GetNode(), x.entry)
	return look, dest, unrouted, nil
}

// lookup asks svcproxy about a Service's name, or an address. Source ranges are held against the client's address of the
// family of dest.
func (x *explainer) lookup(ctx context.Context, destination string, dest netip.Addr) (*svcproxyv1.LookupResponse, error) {
	conn, err := x.c.Dial(ctx, "svcproxy")
	if err != nil {
		return nil, err
	}
	req := &svcproxyv1.LookupRequest{
		Destination: destination, Namespace: or(x.to.service.GetMetadata().GetNamespace(), x.namespace),
		Port: x.port, Protocol: x.protocol, Node: x.entry, Client: svcproxyv1.LookupRequest_CLIENT_INSIDE,
	}
	if x.outside() {
		req.Client = svcproxyv1.LookupRequest_CLIENT_OUTSIDE
	}
	source := sameFamily(x.from.addrs, dest)
	if !dest.IsValid() && len(x.from.addrs) > 0 {
		source = x.from.addrs[0]
	}
	if source.IsValid() {
		req.ClientAddress = source.String()
	}
	return svcproxyv1.NewLookupServiceClient(conn).Lookup(ctx, req)
}

// end is one possible destination after translation.
type end struct {
	party party
	addr  netip.Addr
	port  uint32
}

func (e end) String() string { return netip.AddrPortFrom(e.addr, uint16(e.port)).String() }

// node is the node of the pod that an end is; empty where it is none.
func (e end) node() string { return e.party.pod.GetSpec().GetNodeName() }

// translated fills in the Service of an answer and returns its endpoints.
func (x *explainer) translated(ctx context.Context, out *explain.Answer, look *svcproxyv1.LookupResponse, dest netip.Addr) []end {
	if look.GetMatch() == svcproxyv1.LookupResponse_MATCH_NONE {
		return nil
	}
	match := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(look.GetMatch().String(), "MATCH_"), "_", " "))
	out.Service = &explain.Translation{
		Name: look.GetNamespace() + "/" + look.GetService(), Match: match, Port: look.GetPortName(), Backends: []explain.Backend{},
	}
	if look.GetOutcome() == svcproxyv1.LookupResponse_OUTCOME_SERVED {
		out.Service.Reason = look.GetReason() // else the verdict says it
	}
	if look.GetAddress() != "" && x.outside() {
		out.Service.Address = netip.AddrPortFrom(dest, uint16(look.GetPort())).String()
	}
	var ends []end
	for _, b := range look.GetBackends() {
		addr, err := netip.ParseAddr(b.GetAddress())
		if err != nil || !sameFamily(x.from.addrs, addr).IsValid() {
			continue
		}
		e := end{party: party{text: b.GetAddress(), addrs: []netip.Addr{addr}}, addr: addr, port: b.GetPort()}
		if ns, name, ok := strings.Cut(b.GetPod(), "/"); ok {
			e.party.text = b.GetPod()
			e.party.pod = x.backend(ctx, ns, name, b.GetNode())
		}
		ends = append(ends, e)
		out.Service.Backends = append(out.Service.Backends, explain.Backend{Address: e.String(), Pod: b.GetPod(), Node: b.GetNode()})
	}
	if x.entry == "" || look.GetMatch() == svcproxyv1.LookupResponse_MATCH_HEADLESS || !dest.IsValid() {
		return ends
	}
	port := x.port
	if out.Service.Address != "" {
		port = look.GetPort()
	}
	t := x.tables(ctx, x.entry, sameFamily(x.from.addrs, dest), end{addr: dest, port: port}, x.origin())
	out.Service.Tables = &t
	if t.Unknown == "" {
		out.Service.Differs = differentBackends(ends, t)
		// The steps of each endpoint follow with its path.
		t.Steps = nil
	}
	return ends
}

// backend is the Pod of an endpoint. One that is on no node is read, since it may be a fabric member.
func (x *explainer) backend(ctx context.Context, namespace, name, node string) *objectv1.Pod {
	if node == "" {
		if p, err := x.pod(ctx, namespace, name); err == nil {
			return p.pod
		}
	}
	return &objectv1.Pod{Metadata: &objectv1.ObjectMeta{Namespace: namespace, Name: name}, Spec: &objectv1.PodSpec{NodeName: node}}
}

// differentBackends says how a node's endpoints are not those that svcproxy named.
func differentBackends(ends []end, t explain.Tables) string {
	want := make([]string, 0, len(ends))
	for _, e := range ends {
		want = append(want, e.String())
	}
	got := slices.Compact(slices.Sorted(slices.Values(t.Backends)))
	slices.Sort(want)
	if slices.Equal(want, got) {
		return ""
	}
	return fmt.Sprintf("svcproxy says %s, the tables of %s say %s",
		or(strings.Join(want, ", "), "no endpoint"), t.Node, or(strings.Join(got, ", "), "no endpoint"))
}

// origin says where the packet starts for the entry node's tables.
func (x *explainer) origin() string {
	switch {
	case x.from.host():
		return "node"
	case x.from.pod != nil && x.from.member() == "":
		return "pod"
	}
	return "underlay"
}

// follow asks policies and tables about each endpoint, and concludes.
func (x *explainer) follow(ctx context.Context, out *explain.Answer, ends []end) error {
	paths, err := x.paths(ctx, ends)
	if err != nil {
		return err
	}
	x.ends, out.Paths = ends, paths
	out.Conclude()
	return nil
}

// paths asks policies and tables about each endpoint.
func (x *explainer) paths(ctx context.Context, ends []end) ([]explain.Path, error) {
	if err := x.listNodes(ctx); err != nil {
		return nil, err
	}
	out := make([]explain.Path, 0, len(ends))
	for _, e := range ends {
		p := explain.Path{From: x.from.text, To: e.String(), Tables: x.way(ctx, e)}
		if seen, why := x.seen(ctx, e); seen.IsValid() && (why != "" || x.outside() && x.entryOf(e) != "") {
			p.Seen, p.Masquerade = seen.String(), why
		}
		var err error
		if p.Policy, err = x.policy(ctx, e); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// entryOf is the node whose tables see the packet to an endpoint first: for a fabric member, that of the endpoint.
func (x *explainer) entryOf(e end) string {
	if x.from.member() != "" && x.entry == "" {
		return e.node()
	}
	return x.entry
}

// crosses says whether the packet goes from its entry node into the fabric, to another node's pod or a member.
func (x *explainer) crosses(e end) bool {
	entry := x.entryOf(e)
	return entry != "" && (e.node() != "" && e.node() != entry || e.party.member() != "")
}

// policy asks the policy service about one endpoint.
func (x *explainer) policy(ctx context.Context, e end) (explain.Policy, error) {
	from := x.from
	if from.pod == nil {
		from.addrs = []netip.Addr{sameFamily(from.addrs, e.addr)}
	}
	asked := from.asked(e.addr)
	if x.origin() != "pod" && x.crosses(e) {
		// What policy sees is the address that the entry node gives the packet.
		asked = &policyv1.Party{Party: &policyv1.Party_Node{Node: x.entry}}
		if seen, _ := x.seen(ctx, e); seen.IsValid() {
			asked = &policyv1.Party{Party: &policyv1.Party_Address{Address: seen.String()}}
		}
	}
	conn, err := x.c.Dial(ctx, "policy")
	if err != nil {
		return explain.Policy{}, err
	}
	v, err := policyv1.NewVerdictServiceClient(conn).Explain(ctx, &policyv1.ExplainRequest{
		From: asked, To: e.party.asked(e.addr), Port: e.port, Protocol: x.protocol,
	})
	if err != nil {
		return explain.Policy{}, err
	}
	out := explain.Policy{
		Allowed: v.GetAllowed(), Egress: v.GetEgress().GetReason(), Ingress: v.GetIngress().GetReason(), Revision: v.GetRevision(),
	}
	if x.from.pod != nil && e.party.pod != nil && x.from.text == e.party.text {
		const open = "open: a pod always reaches itself"
		out.Allowed, out.Egress, out.Ingress = true, open, open
		return out, nil
	}
	// A policy that selects a member isolates nothing.
	if x.from.member() != "" && v.GetEgress().GetVerdict() == policyv1.Side_VERDICT_DENIED {
		out.Egress, out.Allowed = notIsolated(x.from, v.GetEgress()), v.GetIngress().GetVerdict() != policyv1.Side_VERDICT_DENIED || e.party.member() != ""
	}
	if e.party.member() != "" && v.GetIngress().GetVerdict() == policyv1.Side_VERDICT_DENIED {
		out.Ingress, out.Allowed = notIsolated(e.party, v.GetIngress()), v.GetEgress().GetVerdict() != policyv1.Side_VERDICT_DENIED || x.from.member() != ""
	}
	return out, nil
}

// notIsolated says why a policy that denies does not matter to a member.
func notIsolated(p party, side *policyv1.Side) string {
	return fmt.Sprintf("open: no agent stands before the fabric member %s, so %s does not isolate it", p.text, strings.Join(side.GetPolicies(), ", "))
}

// way follows the packet through the tables of its entry node and of the endpoint's node.
func (x *explainer) way(ctx context.Context, e end) []explain.Tables {
	source, entry := sameFamily(x.from.addrs, e.addr), x.entryOf(e)
	if entry == "" || !source.IsValid() {
		return []explain.Tables{}
	}
	first := x.tables(ctx, entry, source, e, x.origin())
	first.Backends = nil // an endpoint is translated no further
	out := []explain.Tables{first}
	if !x.crosses(e) || first.Blocks() || e.node() == "" {
		return out
	}
	if x.origin() != "pod" {
		if source, _ = x.seen(ctx, e); !source.IsValid() {
			return append(out, explain.Tables{Node: e.node(), Unknown: "the tunnel address of " + entry + " is not known"})
		}
	}
	return append(out, x.tables(ctx, e.node(), source, e, "underlay"))
}

// tables asks one agent. What keeps it from answering is part of the answer.
func (x *explainer) tables(ctx context.Context, node string, source netip.Addr, to end, origin string) explain.Tables {
	out := explain.Tables{Node: node, Source: source.String()}
	conn, err := x.DialAgent(ctx, node)
	if err != nil {
		out.Unknown = err.Error()
		return out
	}
	defer conn.Close()
	resp, err := nodeagentv1.NewAgentServiceClient(conn).Explain(ctx, &nodeagentv1.ExplainRequest{
		Source: source.String(), Destination: to.addr.String(), Protocol: x.protocol, Port: to.port, Origin: origin,
	})
	if err != nil {
		out.Unknown = err.Error()
		return out
	}
	out.Steps, out.DecidedBy, out.Backends = resp.GetSteps(), resp.GetDecidedBy(), resp.GetBackends()
	out.Fate = strings.ToLower(strings.TrimPrefix(resp.GetFate().String(), "FATE_"))
	return out
}

// tunnel is the tunnel address of a node: the first address of the block that it has held longest, of each family.
func (x *explainer) tunnel(ctx context.Context, node string, family netip.Addr) netip.Addr {
	if known, ok := x.tunnels[node]; ok {
		return sameFamily(known, family)
	}
	blocks, err := x.list(ctx, "addressblock")
	if err != nil {
		return netip.Addr{}
	}
	slices.SortStableFunc(blocks, func(a, b manifest.Message) int {
		return cmp.Compare(revisionOf(a.GetMetadata()), revisionOf(b.GetMetadata()))
	})
	x.tunnels[node] = nil
	for _, m := range blocks {
		spec := m.(*objectv1.AddressBlock).GetSpec()
		if prefix, err := netip.ParsePrefix(spec.GetCidr()); err == nil && spec.GetNode() == node {
			x.tunnels[node] = append(x.tunnels[node], prefix.Masked().Addr())
		}
	}
	return sameFamily(x.tunnels[node], family)
}

// revisionOf is an object's revision; 0 where it has none.
func revisionOf(meta *objectv1.ObjectMeta) int64 {
	n, err := strconv.ParseInt(meta.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
