package api

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	"podwire.dev/services/svcproxy/internal/lb"
)

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Worlds gives the World inside of Asker.Do.
type Worlds interface{ World() *lb.World }

// Lookups serves podwire.svcproxy.v1.LookupService.
type Lookups struct {
	svcproxyv1.UnimplementedLookupServiceServer
	asker  Asker
	worlds Worlds
}

// NewLookups answers from the World that asker guards.
func NewLookups(asker Asker, worlds Worlds) *Lookups {
	return &Lookups{asker: asker, worlds: worlds}
}

// Lookup implements LookupService. Errors: Invalid, NotFound for a Service or a port of it that does not exist.
func (l *Lookups) Lookup(ctx context.Context, req *svcproxyv1.LookupRequest) (*svcproxyv1.LookupResponse, error) {
	q, err := questionOf(req)
	if err != nil {
		return nil, err
	}
	var resp *svcproxyv1.LookupResponse
	var failed error
	err = l.asker.Do(ctx, func(at store.Revision) {
		var a lb.Answer
		if a, failed = l.worlds.World().Lookup(q); failed == nil {
			resp = responseOf(a, at)
		}
	})
	if err != nil {
		return nil, err
	}
	return resp, failed
}

// maxLabels is how many labels of a Service's name tell it: <service>.<namespace>.
const maxLabels = 2

func questionOf(req *svcproxyv1.LookupRequest) (lb.Question, error) {
	var bad []errs.Violation
	add := func(field, value, rule string) {
		bad = append(bad, errs.Violation{Field: field, Value: value, Rule: rule})
	}
	q := lb.Question{Node: req.GetNode(), Port: uint16(req.GetPort())}
	protocol, ok := nodestate.ParseProtocol(req.GetProtocol())
	if !ok {
		add("protocol", req.GetProtocol(), "must be TCP, UDP or SCTP")
	}
	q.Protocol = protocol
	switch req.GetClient() {
	case svcproxyv1.LookupRequest_CLIENT_UNSPECIFIED, svcproxyv1.LookupRequest_CLIENT_INSIDE:
	case svcproxyv1.LookupRequest_CLIENT_OUTSIDE:
		q.Client = lb.Outside
	default:
		add("client", req.GetClient().String(), "must be inside or outside")
	}
	if text := req.GetClientAddress(); text != "" {
		a, err := netip.ParseAddr(text)
		if err != nil {
			add("client_address", text, "must be an IPv4 or IPv6 address")
		}
		q.Source = a.Unmap().WithZone("")
	}
	if req.GetPort() > 65535 {
		add("port", fmt.Sprint(req.GetPort()), "must be between 1 and 65535, inclusive, or 0 for a Service's only port")
	}
	destination := req.GetDestination()
	if a, err := netip.ParseAddr(destination); err == nil {
		q.Address = a.Unmap()
		if req.GetPort() == 0 {
			add("port", "", "is required together with an address")
		}
		return q, errs.InvalidFields("lookup", bad)
	}
	labels := strings.Split(strings.TrimSuffix(destination, "."), ".")
	if len(labels) > maxLabels && labels[maxLabels] == "svc" { // <service>.<namespace>.svc.<domain>
		labels = labels[:maxLabels]
	}
	q.Service = lb.Ref{Name: labels[0], Namespace: req.GetNamespace()}
	switch {
	case labels[0] == "" || len(labels) > maxLabels:
		add("destination", destination, "must be an address, <service> or <service>.<namespace>")
	case len(labels) == maxLabels:
		q.Service.Namespace = labels[1]
	case q.Service.Namespace == "":
		add("namespace", "", "is required together with a bare Service name")
	}
	return q, errs.InvalidFields("lookup", bad)
}

func responseOf(a lb.Answer, at store.Revision) *svcproxyv1.LookupResponse {
	resp := &svcproxyv1.LookupResponse{
		Match: matchOf(a.Match), Namespace: a.Service.Namespace, Service: a.Service.Name, PortName: a.Port,
		Reason: a.Reason, Revision: int64(at), Outcome: outcomeOf(a.Outcome), Node: a.Node,
	}
	if a.Dial.IsValid() {
		resp.Address, resp.Port = a.Dial.Addr().String(), uint32(a.Dial.Port())
	}
	if a.ClusterIP.IsValid() {
		resp.ClusterIp = a.ClusterIP.String()
	}
	for _, b := range a.Backends {
		resp.Backends = append(resp.Backends, &svcproxyv1.Backend{
			Address: b.Address.String(), Port: uint32(b.Port), Node: b.Node, Pod: b.Pod, Ready: b.Ready, Terminating: b.Terminating,
		})
	}
	return resp
}

func matchOf(m lb.Match) svcproxyv1.LookupResponse_Match {
	switch m {
	case lb.MatchNone:
		return svcproxyv1.LookupResponse_MATCH_NONE
	case lb.MatchClusterIP:
		return svcproxyv1.LookupResponse_MATCH_CLUSTER_IP
	case lb.MatchNodePort:
		return svcproxyv1.LookupResponse_MATCH_NODE_PORT
	case lb.MatchBalancer:
		return svcproxyv1.LookupResponse_MATCH_LOAD_BALANCER
	case lb.MatchExternal:
		return svcproxyv1.LookupResponse_MATCH_EXTERNAL_IP
	case lb.MatchHeadless:
		return svcproxyv1.LookupResponse_MATCH_HEADLESS
	}
	return svcproxyv1.LookupResponse_MATCH_UNSPECIFIED
}

func outcomeOf(o lb.Outcome) svcproxyv1.LookupResponse_Outcome {
	switch o {
	case lb.Unchanged:
		return svcproxyv1.LookupResponse_OUTCOME_UNCHANGED
	case lb.Served:
		return svcproxyv1.LookupResponse_OUTCOME_SERVED
	case lb.Refused:
		return svcproxyv1.LookupResponse_OUTCOME_REFUSED
	case lb.Dropped:
		return svcproxyv1.LookupResponse_OUTCOME_DROPPED
	case lb.Unrouted:
		return svcproxyv1.LookupResponse_OUTCOME_UNROUTED
	}
	return svcproxyv1.LookupResponse_OUTCOME_UNSPECIFIED
}
