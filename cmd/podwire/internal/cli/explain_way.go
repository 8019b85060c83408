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
	if x.from, err = x.source(ctx, from); err != nil {
		return nil, err
	}
	if x.to, err = x.destination(ctx, to); err != nil {
		return nil, err
	}
	dest := common(x.from.addrs, x.to.addrs)
	headless := x.to.service != nil && len(x.to.addrs) == 0
	if !dest.IsValid() && !headless {
		return nil, errs.New(errs.Invalid, "%s and %s have no address of the same family", x.from.shown(), x.to.shown())
	}
	x.entry = x.entryNode()
	look, err := x.lookup(ctx, dest)
	if err != nil {
		return nil, err
	}
	if x.entry == "" && look.GetMatch() == svcproxyv1.LookupResponse_MATCH_LOAD_BALANCER {
		x.entry = x.announcer(ctx, look)
	}
	out = &explain.Answer{From: x.from.shown(), To: x.to.shown(), Port: x.port, Protocol: x.protocol, Paths: []explain.Path{}}
	if x.entry == "" {
		out.Note = fmt.Sprintf("no node is known to take in what %s sends to %s, so no tables were asked", x.from.text, x.to.text)
	}
	if look.GetMatch() == svcproxyv1.LookupResponse_MATCH_NONE {
		if look.GetService() != "" || x.to.service != nil {
			out.Verdict, out.Reason = explain.Refused, look.GetReason()
			return out, nil
		}
		ends := []end{{party: x.to, addr: dest, port: x.port}}
		return out, x.follow(ctx, out, ends)
	}
	ends := x.translated(ctx, out, look, dest)
	if len(ends) == 0 {
		out.Verdict, out.Reason = explain.Refused, look.GetReason()
		return out, nil
	}
	if t := out.Service.Tables; t != nil && t.Blocks() && len(t.Backends) == 0 {
		out.Verdict, out.Reason = explain.Refused, fmt.Sprintf("the tables of %s: %s", t.Node, t.DecidedBy)
		return out, nil
	}
	return out, x.follow(ctx, out, ends)
}

// entryNode is the node whose tables see the packet first, as far as the two ends tell.
func (x *explainer) entryNode() string {
	switch {
	case x.from.pod != nil:
		return x.from.pod.GetSpec().GetNodeName()
	case x.from.node != nil:
		return x.from.text
	case x.to.node != nil:
		return x.to.text
	case x.to.pod != nil:
		return x.to.pod.GetSpec().GetNodeName()
	}
	return ""
}

// announcer is the node that takes in what is sent to a load balancer address.
func (x *explainer) announcer(ctx context.Context, look *svcproxyv1.LookupResponse) string {
	obj, err := x.get(ctx, "service", look.GetNamespace(), look.GetService())
	if err != nil {
		return ""
	}
	return obj.GetMetadata().GetAnnotations()[announcerAnnotation]
}

// announcerAnnotation is where svcproxy notes the node that announces a Service's load balancer addresses.
const announcerAnnotation = "podwire.dev/announcer"

// lookup asks svcproxy what the destination is.
func (x *explainer) lookup(ctx context.Context, dest netip.Addr) (*svcproxyv1.LookupResponse, error) {
	conn, err := x.c.Dial(ctx, "svcproxy")
	if err != nil {
		return nil, err
	}
	req := &svcproxyv1.LookupRequest{Namespace: x.namespace, Port: x.port, Protocol: x.protocol, Node: x.entry}
	if meta := x.to.service.GetMetadata(); meta != nil {
		req.Destination, req.Namespace = meta.GetName(), meta.GetNamespace()
	} else {
		req.Destination = dest.String()
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
	match := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(look.GetMatch().String(), "MATCH_"), "_", " "))
	out.Service = &explain.Translation{
		Name: look.GetNamespace() + "/" + look.GetService(), Match: match, Port: look.GetPortName(), Backends: []explain.Backend{},
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
			e.party.pod = &objectv1.Pod{
				Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: name}, Spec: &objectv1.PodSpec{NodeName: b.GetNode()},
			}
		}
		ends = append(ends, e)
		out.Service.Backends = append(out.Service.Backends, explain.Backend{Address: e.String(), Pod: b.GetPod(), Node: b.GetNode()})
	}
	if x.entry == "" || look.GetMatch() == svcproxyv1.LookupResponse_MATCH_HEADLESS || !dest.IsValid() {
		return ends
	}
	t := x.tables(ctx, x.entry, sameFamily(x.from.addrs, dest), end{addr: dest, port: x.port}, x.origin())
	out.Service.Tables = &t
	if t.Unknown == "" {
		out.Service.Differs = differentBackends(ends, t)
		// The steps of each endpoint follow with its path.
		t.Steps = nil
	}
	return ends
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
	case x.from.pod != nil:
		return "pod"
	case x.from.node != nil:
		return "node"
	}
	return "underlay"
}

// follow asks policies and tables about each endpoint, and concludes.
func (x *explainer) follow(ctx context.Context, out *explain.Answer, ends []end) error {
	for _, e := range ends {
		p := explain.Path{To: e.String(), Tables: x.way(ctx, e)}
		var err error
		if p.Policy, err = x.policy(ctx, e); err != nil {
			return err
		}
		out.Paths = append(out.Paths, p)
	}
	out.Conclude()
	return nil
}

// crosses says whether the packet goes from its entry node into the fabric, to another node's pod.
func (x *explainer) crosses(e end) bool {
	return x.entry != "" && e.node() != "" && e.node() != x.entry
}

// policy asks the policy service about one endpoint.
func (x *explainer) policy(ctx context.Context, e end) (explain.Policy, error) {
	from := x.from
	if from.pod == nil {
		from.addrs = []netip.Addr{sameFamily(from.addrs, e.addr)}
	}
	asked := from.asked(e.addr)
	if x.from.pod == nil && x.from.node == nil && x.crosses(e) {
		// The entry node gives the packet its tunnel address, and so is the source.
		asked = &policyv1.Party{Party: &policyv1.Party_Node{Node: x.entry}}
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
	return explain.Policy{
		Allowed: v.GetAllowed(), Egress: v.GetEgress().GetReason(), Ingress: v.GetIngress().GetReason(), Revision: v.GetRevision(),
	}, nil
}

// way follows the packet through the tables of its entry node and of the endpoint's node.
func (x *explainer) way(ctx context.Context, e end) []explain.Tables {
	source := sameFamily(x.from.addrs, e.addr)
	if x.entry == "" || !source.IsValid() {
		return []explain.Tables{}
	}
	first := x.tables(ctx, x.entry, source, e, x.origin())
	first.Backends = nil // an endpoint is translated no further
	out := []explain.Tables{first}
	if !x.crosses(e) || first.Blocks() {
		return out
	}
	if x.from.pod == nil {
		if source = x.tunnel(ctx, x.entry, e.addr); !source.IsValid() {
			return append(out, explain.Tables{Node: e.node(), Unknown: "the tunnel address of " + x.entry + " is not known"})
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
