package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"podwire.dev/cmd/podwire/internal/cli/explain"
	"podwire.dev/internal/errs"
	dnsv1 "podwire.dev/proto/podwire/dns/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// named looks a name up: as the client's resolver would, where the client is a pod and dns answers, else as the name of a
// Service or a Pod.
func (x *explainer) named(ctx context.Context, t explain.Target, out *explain.Answer) (party, error) {
	if t.Namespace != "" { // an object's name, which no resolver knows
		return x.object(ctx, t.End)
	}
	name, addrs, err := x.resolve(ctx, t.Name)
	out.Name = name
	switch {
	case err != nil:
		return party{}, err
	case name.Denied != "":
		out.Verdict, out.Reason = explain.Unresolved, name.Denied
		return party{}, nil
	case name.Rcode == "": // nobody was asked
		p, err := x.object(ctx, t.End)
		if err == nil {
			name.Taken = p.shown().Kind + " " + p.text + ": " + name.Taken
		}
		return p, err
	case len(addrs) > 0:
		return x.addressed(ctx, name, addrs)
	}
	p, err := x.pod(ctx, x.namespace, t.Name)
	if err == nil {
		name.Taken = "pod " + p.text + ", which no resolver knows by this name"
		return p, nil
	}
	if !errs.Is(err, errs.NotFound) {
		return p, err
	}
	out.Verdict, out.Reason = explain.Unresolved, name.Rcode+": "+name.Reason
	if s, err := x.service(ctx, t.End); err == nil {
		out.Reason += "; service/" + s.text + " asks for the Service of this name"
	}
	return p, nil
}

// object is the Service or, where there is none, the Pod of a name.
func (x *explainer) object(ctx context.Context, e explain.End) (party, error) {
	e.Name = strings.TrimSuffix(e.Name, ".")
	p, err := x.service(ctx, e)
	if errs.Is(err, errs.NotFound) {
		p, err = x.pod(ctx, or(e.Namespace, x.namespace), e.Name)
	}
	if errs.Is(err, errs.NotFound) {
		return p, errs.New(errs.NotFound, "there is neither a service nor a pod %q", e)
	}
	return p, err
}

// resolveTimeout bounds the question to dns: the explanation does without.
const resolveTimeout = 3 * time.Second

// resolve asks dns what the client's resolver would get for a name. Where it is not asked, Rcode is empty and Taken says why.
func (x *explainer) resolve(ctx context.Context, name string) (*explain.Resolution, []netip.Addr, error) {
	out := &explain.Resolution{Asked: name}
	if x.from.pod == nil || x.from.member() != "" {
		out.Taken = x.from.text + " does not ask the cluster's DNS"
		return out, nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	conn, err := x.c.Dial(ctx, "dns")
	var resp *dnsv1.ResolveResponse
	if err == nil {
		resp, err = dnsv1.NewResolveServiceClient(conn).Resolve(ctx, &dnsv1.ResolveRequest{Name: name, Pod: x.from.text})
	}
	switch {
	case errs.Is(err, errs.Invalid):
		return out, nil, err
	case err != nil:
		out.Taken = "dns cannot be asked: " + err.Error()
		return out, nil, nil
	}
	if tried := resp.GetTried(); len(tried) > 0 {
		out.Name = tried[len(tried)-1]
	}
	var addrs []netip.Addr
	for _, a := range resp.GetAnswers() {
		if out.Rcode == "" || len(a.GetRecords()) > 0 && len(addrs) == 0 {
			out.Rcode, out.Reason = a.GetRcode(), a.GetReason()
		}
		for _, r := range a.GetRecords() {
			text := r.GetType() + " " + r.GetData()
			if slices.Contains(out.Records, text) {
				continue
			}
			out.Records = append(out.Records, text)
			if r.GetType() == "A" || r.GetType() == "AAAA" {
				addrs = appendAddr(addrs, r.GetData())
			}
		}
	}
	if len(addrs) == 0 && out.Rcode == "NOERROR" {
		out.Rcode = "NODATA"
	}
	out.Denied, err = x.queryDenied(ctx)
	return out, addrs, err
}

// What a pod's queries go to.
const (
	dnsNamespace = "kube-system"
	dnsService   = "kube-dns"
	dnsPort      = 53
)

// queryDenied says why policy keeps the client from asking the cluster's DNS, over UDP; empty where it does not.
func (x *explainer) queryDenied(ctx context.Context) (string, error) {
	if policy := x.from.pod.GetSpec().GetDnsPolicy(); policy == "Default" || policy == "None" || x.from.host() {
		return "", nil // its queries go elsewhere
	}
	query := &explainer{
		app: x.app, c: x.c, namespace: dnsNamespace, protocol: "UDP", from: x.from, port: dnsPort,
		entry: x.from.pod.GetSpec().GetNodeName(), tunnels: x.tunnels,
	}
	var err error
	if query.to, err = query.service(ctx, explain.End{Namespace: dnsNamespace, Name: dnsService}); err != nil {
		if errs.Is(err, errs.NotFound) {
			err = nil // dns answered, so somebody else leads to it
		}
		return "", err
	}
	look, err := query.lookup(ctx, dnsService, common(x.from.addrs, query.to.addrs))
	if err != nil {
		return "", err
	}
	denied := ""
	for _, e := range query.translated(ctx, &explain.Answer{}, look, netip.Addr{}) {
		p, err := query.policy(ctx, e)
		if err != nil || p.Allowed {
			return "", err
		}
		denied = fmt.Sprintf("its queries to %s do not pass: egress %s; ingress %s", dnsService, p.Egress, p.Ingress)
	}
	return denied, nil
}

// addressed is what the addresses of a name belong to: the Service that the name is of, a pod, a node, or nobody here.
func (x *explainer) addressed(ctx context.Context, name *explain.Resolution, addrs []netip.Addr) (party, error) {
	if labels := strings.Split(name.Name, "."); len(labels) > 2 && labels[2] == "svc" {
		p, err := x.service(ctx, explain.End{Kind: explain.Service, Namespace: labels[1], Name: labels[0]})
		switch {
		case err != nil && !errs.Is(err, errs.NotFound):
			return p, err
		case err == nil && (isHeadless(p.service) || slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(p.addrs, a) })):
			return p, nil
		}
	}
	dest := common(x.from.addrs, addrs)
	if !dest.IsValid() {
		return party{text: name.Asked, addrs: addrs}, nil
	}
	p, err := x.holder(ctx, dest)
	if err == nil && p.stranger() {
		p.text = name.Asked
	}
	return p, err
}

func isHeadless(o *objectv1.Service) bool {
	return o.GetSpec().GetType() != "ExternalName" && slices.Equal(o.GetSpec().GetClusterIps(), []string{"None"}) ||
		o.GetSpec().GetClusterIp() == "None"
}
