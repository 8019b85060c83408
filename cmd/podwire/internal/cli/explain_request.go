package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"podwire.dev/cmd/podwire/internal/cli/explain"
	"podwire.dev/internal/errs"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
)

// The Service that exposes the ingress, and what its members are known by.
const (
	ingressDoor   = "kube-system/podwire-ingress"
	ingressMember = "ingress"
)

// request explains a request over HTTP: the connection to its host and, where that is the ingress, what the ingress makes
// of the request, and the connection from there to the backend.
func (x *explainer) request(ctx context.Context, t explain.Target, out *explain.Answer) error {
	if err := x.host(ctx, t, out); err != nil || out.Verdict != "" {
		return err
	}
	x.port = uint32(t.Port)
	if err := x.connect(ctx, out); err != nil {
		return err
	}
	if (out.Verdict != explain.Allowed && out.Verdict != explain.Partly) || !x.reachesIngress(out) {
		return nil
	}
	r, err := x.match(ctx, t)
	if err != nil {
		return err
	}
	out.Request = r.Request
	switch {
	case r.Unknown != "":
		out.Note = "the verdict is about the way to the ingress only"
		return nil
	case r.Status != 0:
		out.Verdict, out.Reason = explain.Answered, fmt.Sprintf("%d, %s", r.Status, r.Reason)
		return nil
	}
	for i, p := range out.Paths {
		if !p.Passes || x.ends[i].party.member() != ingressMember {
			continue
		}
		paths, err := x.onward(ctx, x.ends[i].party, r.endpoints)
		if err != nil {
			return err
		}
		r.Paths = append(r.Paths, paths...)
	}
	out.Verdict, out.Reason = r.Conclude()
	return nil
}

// host is where the client connects to. A name that leads nowhere is taken as one that its owner points at the ingress.
func (x *explainer) host(ctx context.Context, t explain.Target, out *explain.Answer) (err error) {
	if t.Kind == explain.Address {
		x.to, err = x.holder(ctx, t.Addr)
		return err
	}
	var addrs []netip.Addr
	if out.Name, addrs, err = x.resolve(ctx, t.Name); err != nil {
		return err
	}
	switch {
	case out.Name.Denied != "":
		out.Verdict, out.Reason = explain.Unresolved, out.Name.Denied
		return nil
	case len(addrs) > 0:
		x.to, err = x.addressed(ctx, out.Name, addrs)
		return err
	case out.Name.Rcode == "" && x.from.pod != nil:
		x.to, err = x.service(ctx, explain.End{Name: strings.TrimSuffix(t.Name, ".")})
		if err == nil {
			out.Name.Taken = "service " + x.to.text + ": " + out.Name.Taken
			return nil
		}
	}
	if err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	namespace, name, _ := strings.Cut(ingressDoor, "/")
	x.to, err = x.service(ctx, explain.End{Kind: explain.Service, Namespace: namespace, Name: name})
	if out.Name.Taken != "" {
		out.Name.Taken = ": " + out.Name.Taken
	}
	out.Name.Taken = "a name that leads to the ingress, service " + ingressDoor + out.Name.Taken
	return err
}

// reachesIngress says whether the connection is one to the ingress.
func (x *explainer) reachesIngress(out *explain.Answer) bool {
	return out.Service != nil && out.Service.Name == ingressDoor || x.to.member() == ingressMember
}

// matched is what the ingress makes of a request, and the endpoints that it may choose from.
type matched struct {
	*explain.Request
	endpoints []netip.AddrPort
}

// match asks the ingress. What keeps it from answering is part of the answer.
func (x *explainer) match(ctx context.Context, t explain.Target) (matched, error) {
	out := matched{Request: &explain.Request{URL: t.String()}}
	conn, err := x.c.Dial(ctx, "ingress")
	if err != nil {
		out.Unknown = err.Error()
		return out, nil
	}
	host := t.Name
	if t.Kind == explain.Address {
		host = t.Addr.String()
	}
	resp, err := ingressv1.NewRouteServiceClient(conn).Match(ctx, &ingressv1.MatchRequest{
		Host: strings.TrimSuffix(host, "."), Path: t.Path, Tls: t.Scheme == "https",
	})
	switch {
	case errs.Is(err, errs.Invalid):
		return out, err
	case err != nil:
		out.Unknown = err.Error()
		return out, nil
	}
	r := out.Request
	r.Ingress, r.Rule, r.Path, r.Certificate = resp.GetIngress(), resp.GetRule(), resp.GetBackendPath(), resp.GetCertificate()
	r.Status, r.Reason = resp.GetStatus(), resp.GetReason()
	if resp.GetService() != "" {
		r.Service = resp.GetService() + ":" + resp.GetPort()
	}
	for _, text := range resp.GetEndpoints() {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			return out, errs.WrapAs(errs.Internal, err, "explain: ingress answered with the endpoint %q", text)
		}
		out.endpoints = append(out.endpoints, at)
	}
	return out, nil
}

// onward follows the ingress' own connections to the endpoints: they are never masqueraded, so policies see the member.
func (x *explainer) onward(ctx context.Context, member party, endpoints []netip.AddrPort) ([]explain.Path, error) {
	member.addrs = podParty(member.pod).addrs
	leg := &explainer{
		app: x.app, c: x.c, namespace: x.namespace, protocol: "TCP", from: member,
		tunnels: x.tunnels, nodes: x.nodes, pods: x.pods,
	}
	var ends []end
	for _, at := range endpoints {
		p, err := leg.holder(ctx, at.Addr())
		if err != nil {
			return nil, err
		}
		if sameFamily(member.addrs, at.Addr()).IsValid() {
			ends = append(ends, end{party: p, addr: at.Addr(), port: uint32(at.Port())})
		}
	}
	x.pods, x.nodes = leg.pods, leg.nodes
	return leg.paths(ctx, ends)
}
