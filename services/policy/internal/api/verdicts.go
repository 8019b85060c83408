package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	policyv1 "podwire.dev/proto/podwire/policy/v1"
	"podwire.dev/services/policy/internal/ruleset"
)

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Worlds gives the World inside of Asker.Do.
type Worlds interface{ World() *ruleset.World }

// Verdicts serves podwire.policy.v1.VerdictService.
type Verdicts struct {
	policyv1.UnimplementedVerdictServiceServer
	asker  Asker
	worlds Worlds
}

// NewVerdicts answers from the World that asker guards.
func NewVerdicts(asker Asker, worlds Worlds) *Verdicts {
	return &Verdicts{asker: asker, worlds: worlds}
}

// Explain implements VerdictService. Errors: Invalid, NotFound for a pod or node that does not exist.
func (v *Verdicts) Explain(ctx context.Context, req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	c, err := connectionOf(req)
	if err != nil {
		return nil, err
	}
	resp := &policyv1.ExplainResponse{}
	var failed error
	err = v.asker.Do(ctx, func(at store.Revision) {
		var egress, ingress ruleset.Judgement
		if egress, ingress, failed = v.worlds.World().Explain(c); failed != nil {
			return
		}
		resp.Revision = int64(at)
		from, to := nameOf(v.worlds.World(), c.From), nameOf(v.worlds.World(), c.To)
		port := fmt.Sprintf("%s %d", c.Protocol, c.Port)
		resp.Egress = sideOf(egress, nodestate.Egress, from, port+" to "+to)
		resp.Ingress = sideOf(ingress, nodestate.Ingress, to, port+" from "+from)
		resp.Allowed = egress.Verdict != ruleset.Denied && ingress.Verdict != ruleset.Denied
	})
	if err != nil {
		return nil, err
	}
	var unknown ruleset.UnknownParty
	if errors.As(failed, &unknown) {
		return nil, errs.New(errs.NotFound, "%s", unknown)
	}
	return resp, failed
}

func connectionOf(req *policyv1.ExplainRequest) (ruleset.Connection, error) {
	var violations []errs.Violation
	bad := func(field, value, rule string) {
		violations = append(violations, errs.Violation{Field: field, Value: value, Rule: rule})
	}
	party := func(field string, p *policyv1.Party) (out ruleset.Party) {
		switch p := p.GetParty().(type) {
		case *policyv1.Party_Pod:
			ns, name, ok := strings.Cut(p.Pod, "/")
			if !ok || ns == "" || name == "" {
				bad(field+".pod", p.Pod, "must be <namespace>/<name>")
			}
			out.Pod = ruleset.Ref{Namespace: ns, Name: name}
		case *policyv1.Party_Address:
			a, err := netip.ParseAddr(p.Address)
			if err != nil {
				bad(field+".address", p.Address, "must be an IPv4 or IPv6 address")
			}
			out.Address = a.Unmap()
		case *policyv1.Party_Node:
			if p.Node == "" {
				bad(field+".node", "", "is required")
			}
			out.Node = p.Node
		default:
			bad(field, "", "is required: a pod, an address or a node")
		}
		return out
	}
	c := ruleset.Connection{From: party("from", req.GetFrom()), To: party("to", req.GetTo()), Port: uint16(req.GetPort())}
	protocol, ok := nodestate.ParseProtocol(req.GetProtocol())
	if !ok {
		bad("protocol", req.GetProtocol(), "must be TCP, UDP or SCTP")
	}
	c.Protocol = protocol
	if req.GetPort() < 1 || req.GetPort() > 65535 {
		bad("port", fmt.Sprint(req.GetPort()), "must be between 1 and 65535, inclusive")
	}
	return c, errs.InvalidFields("explain", violations)
}

// sideOf puts the judgement of one end into words; self is that end, what the connection as it sees it.
func sideOf(j ruleset.Judgement, d nodestate.Direction, self, what string) *policyv1.Side {
	side := &policyv1.Side{Rules: j.Rules}
	for _, p := range j.Policies {
		side.Policies = append(side.Policies, p.String())
	}
	policies := "policy " + strings.Join(side.Policies, ", ")
	switch j.Verdict {
	case ruleset.NotIsolated:
		side.Verdict = policyv1.Side_VERDICT_NOT_ISOLATED
		side.Reason = fmt.Sprintf("open: no policy isolates %s for %s", self, d)
	case ruleset.Allowed:
		side.Verdict = policyv1.Side_VERDICT_ALLOWED
		side.Reason = fmt.Sprintf("allowed: %s is isolated for %s (%s), %s allows %s", self, d, policies, strings.Join(j.Rules, ", "), what)
	case ruleset.Denied:
		side.Verdict = policyv1.Side_VERDICT_DENIED
		side.Reason = fmt.Sprintf("denied: %s is isolated for %s (%s), no rule allows %s", self, d, policies, what)
	case ruleset.OwnNode:
		side.Verdict, side.Reason = policyv1.Side_VERDICT_OWN_NODE, "open: a node always reaches its own pods"
	}
	return side
}

// nameOf is a party for people: an address that a pod has is that pod.
func nameOf(w *ruleset.World, p ruleset.Party) string {
	switch {
	case p.Address.IsValid():
		if pod, ok := w.Holder(p.Address); ok {
			return pod.String()
		}
		return p.Address.String()
	case p.Node != "":
		return "node " + p.Node
	}
	return p.Pod.String()
}
