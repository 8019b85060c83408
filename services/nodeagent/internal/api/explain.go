package api

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/judge"
	"podwire.dev/services/nodeagent/internal/tracer"
)

// maxWays bounds the backends whose way is told step by step.
const maxWays = 8

// Explain implements [Inspector]: the packet's way through the tables that the kernel holds, and, where policy decides,
// the names of the policies and rules. Of several backends, Fate and DecidedBy are those of the one that fares worst.
func (n *Node) Explain(ctx context.Context, req *nodeagentv1.ExplainRequest) (*nodeagentv1.ExplainResponse, error) {
	p, err := packetOf(req)
	if err != nil {
		return nil, err
	}
	out := &nodeagentv1.ExplainResponse{}
	var rows map[nodestate.Source]int64
	var failed error
	err = n.Dataplane.Read(ctx, func(t dataplane.Tables, _ dataplane.Stats) {
		rows = rowsOf(t)
		if p.Origin == tracer.Underlay && podAddress(t.Fabric, p.Source) {
			p.Origin = tracer.Fabric // where packets of other nodes' pods come from
		}
		trace, err := tracer.Do(t.Elements, tracer.HostOf(t.Node, t.Fabric), p)
		if err != nil {
			failed = err
			return
		}
		tell(out, t, p, trace)
	})
	if err = errsOr(err, failed); err != nil {
		return nil, errs.Wrap(err, "explain on node %s", n.Name)
	}
	for _, s := range n.Sources {
		st := s.Status()
		out.Slices = append(out.Slices, sliceOf(st, rows[st.Source]))
	}
	return out, nil
}

func errsOr(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// packetOf reads a question.
func packetOf(req *nodeagentv1.ExplainRequest) (tracer.Packet, error) {
	var bad []errs.Violation
	address := func(field, text string) netip.Addr {
		a, err := netip.ParseAddr(text)
		if err != nil {
			bad = append(bad, errs.Violation{Field: field, Value: text, Rule: "must be an IPv4 or IPv6 address"})
		}
		return a.Unmap()
	}
	p := tracer.Packet{Source: address("source", req.GetSource()), Destination: address("destination", req.GetDestination())}
	if p.Source.IsValid() && p.Destination.IsValid() && p.Source.BitLen() != p.Destination.BitLen() {
		bad = append(bad, errs.Violation{Field: "destination", Value: req.GetDestination(), Rule: "must be of the family of source"})
	}
	icmp := req.GetProtocol() == "ICMP"
	protocol, known := nodestate.ParseProtocol(req.GetProtocol())
	switch {
	case icmp:
		p.Protocol = tracer.ICMP
	case known:
		p.Protocol = protocol
	default:
		bad = append(bad, errs.Violation{Field: "protocol", Value: req.GetProtocol(), Rule: "must be TCP, UDP, SCTP or ICMP"})
	}
	switch port := req.GetPort(); {
	case icmp && port != 0:
		bad = append(bad, errs.Violation{Field: "port", Value: fmt.Sprint(port), Rule: "must be 0: ICMP has no ports"})
	case !icmp && (port == 0 || port > 65535):
		bad = append(bad, errs.Violation{Field: "port", Value: fmt.Sprint(port), Rule: "must be between 1 and 65535"})
	}
	p.Port = uint16(req.GetPort())
	switch req.GetOrigin() {
	case "pod":
		p.Origin = tracer.Pod
	case "node":
		p.Origin = tracer.Process
	case "underlay":
		p.Origin = tracer.Underlay
	default:
		bad = append(bad, errs.Violation{Field: "origin", Value: req.GetOrigin(), Rule: "must be pod, node or underlay"})
	}
	return p, errs.InvalidFields("explain", bad)
}

// podAddress says whether an address is one of the cluster's pods.
func podAddress(fabric *nodestate.Slice, a netip.Addr) (is bool) {
	fabric.Each(nodestate.TableRanges, func(r nodestate.Row) {
		row, ok := r.(nodestate.Range)
		is = is || ok && row.Kind == nodestate.RangePod && row.Prefix.Contains(a)
	})
	return is
}

// tell writes the answer.
func tell(out *nodeagentv1.ExplainResponse, t dataplane.Tables, p tracer.Packet, trace tracer.Trace) {
	for _, b := range trace.Backends() {
		out.Backends = append(out.Backends, b.String())
	}
	for i, way := range trace.Ways {
		if i == maxWays {
			out.Steps = append(out.Steps, fmt.Sprintf("and %d more backends", len(trace.Ways)-maxWays))
			break
		}
		about := ""
		if len(trace.Ways) > 1 {
			about = way.Backend.String() + ": "
		}
		for _, s := range way.Steps {
			out.Steps = append(out.Steps, about+s)
		}
	}
	worst := trace.Worst()
	out.Fate = fateOf(worst.Fate)
	out.DecidedBy = string(worst.Decided)
	if names := policyOf(t, p, worst); names != "" {
		out.DecidedBy += ": " + names
	}
}

func fateOf(f tracer.Fate) nodeagentv1.ExplainResponse_Fate {
	switch f {
	case tracer.Delivered:
		return nodeagentv1.ExplainResponse_FATE_DELIVERED
	case tracer.Forwarded:
		return nodeagentv1.ExplainResponse_FATE_FORWARDED
	case tracer.Rejected:
		return nodeagentv1.ExplainResponse_FATE_REJECTED
	case tracer.Dropped:
		return nodeagentv1.ExplainResponse_FATE_DROPPED
	}
	return nodeagentv1.ExplainResponse_FATE_UNSPECIFIED
}

// policyOf names what the policy rows say where policy decided; "" elsewhere.
func policyOf(t dataplane.Tables, p tracer.Packet, way tracer.Way) string {
	if way.Decided != tracer.PartEgress && way.Decided != tracer.PartIngress {
		return ""
	}
	flow := judge.Flow{Source: p.Source, Destination: p.Destination, Protocol: p.Protocol, Port: p.Port}
	if way.Backend.IsValid() {
		flow.Destination, flow.Port = way.Backend.Addr(), way.Backend.Port()
	}
	if p.Origin == tracer.Process {
		flow.Sender = judge.OwnNode
	}
	j := judge.New()
	j.Load(t.Policy, t.Attachments)
	verdict := j.Judge(flow)
	side := verdict.Ingress
	if way.Decided == tracer.PartEgress {
		side = verdict.Egress
	}
	switch side.Outcome {
	case judge.Allowed:
		return "allowed by " + list(side.Origins)
	case judge.Denied:
		return "isolated by " + list(side.Policies) + ", and no rule of theirs allows it"
	case judge.NoPolicy:
		return "the policy of the pod has not come, so nothing passes"
	case judge.Open:
		return "no policy isolates the pod"
	}
	return ""
}

// list is a list of names for people.
func list(names []string) string {
	const most = 8
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
