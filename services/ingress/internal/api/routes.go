package api

import (
	"context"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	"podwire.dev/services/ingress/internal/route"
)

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Tables gives, inside of Asker.Do, the table that requests are routed by.
type Tables interface{ Table() *route.Table }

// Routes serves podwire.ingress.v1.RouteService.
type Routes struct {
	ingressv1.UnimplementedRouteServiceServer
	asker  Asker
	tables Tables
}

// NewRoutes answers from the tables that asker guards.
func NewRoutes(asker Asker, tables Tables) *Routes { return &Routes{asker: asker, tables: tables} }

// Match implements RouteService. Errors: Invalid for a path that no request can have.
func (r *Routes) Match(ctx context.Context, req *ingressv1.MatchRequest) (*ingressv1.MatchResponse, error) {
	path, _, _ := strings.Cut(req.GetPath(), "?")
	parsed, err := route.ParsePath(path)
	if err != nil {
		return nil, errs.InvalidFields("match", []errs.Violation{{Field: "path", Value: path, Rule: err.Error()}})
	}
	var table *route.Table
	resp := &ingressv1.MatchResponse{}
	if err := r.asker.Do(ctx, func(at store.Revision) { table, resp.Revision = r.tables.Table(), int64(at) }); err != nil {
		return nil, err
	}
	q := route.Request{Host: req.GetHost(), Path: parsed, TLS: req.GetTls()}
	d := table.Decide(q)
	resp.Match = map[route.Kind]ingressv1.MatchResponse_Match{
		route.None: ingressv1.MatchResponse_MATCH_NONE, route.ByRule: ingressv1.MatchResponse_MATCH_RULE,
		route.ByDefault: ingressv1.MatchResponse_MATCH_DEFAULT_BACKEND,
	}[d.Kind]
	resp.Status, resp.Reason = int32(d.Status), table.Reason(q, d)
	if d.Route != nil {
		b := &table.Backends()[d.Backend]
		resp.Ingress, resp.Rule = d.Route.Ingress.String(), d.Route.Field
		if b.Service.Name != "" {
			resp.Service, resp.Port = b.Service.String(), b.Port
		}
		resp.BackendPath = d.Path
		for _, e := range b.Endpoints {
			resp.Endpoints = append(resp.Endpoints, e.String())
		}
	}
	if req.GetTls() {
		resp.Certificate, resp.Reason = certificateOf(table, req, resp.GetReason())
	}
	return resp, nil
}

// certificateOf is the certificate that the client is shown; where it is not the one that was asked for, the reason says so.
func certificateOf(table *route.Table, req *ingressv1.MatchRequest, reason string) (name, why string) {
	server := req.GetServerName()
	if server == "" {
		server = req.GetHost()
	}
	c := table.Certificate(server)
	switch {
	case c == nil:
		return "", reason + "; no Ingress has TLS for " + route.Hostname(server) + ", the server's own certificate is shown"
	case c.Problem != "":
		return "", reason + "; " + c.Ingress.String() + " " + c.Field + ": " + c.Problem + ", the server's own certificate is shown"
	case c.Secret.Name == "":
		return "", reason + "; " + c.Ingress.String() + " " + c.Field + " names no Secret, the server's own certificate is shown"
	}
	return c.Secret.String(), reason
}
