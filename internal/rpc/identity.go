// Package rpc builds gRPC servers and clients: who calls, what they may call, how
// errors and deadlines cross, and every limit.
//
// In: an identity directory (internal/pki), handlers, targets. Out: servers that refuse
// whatever the access table does not allow, connections that balance over healthy
// replicas, and *errs.Error on both sides.
//
// Invariants: deny by default, the table in access.go is complete (a test compares it
// with the registered RPCs). A TCP server speaks mutual TLS 1.3 only; a unix socket
// answers root of this machine only. A client checks the server's chain, its DNS name and
// its SPIFFE identity. A handler has a deadline, 20 ms before the caller's. Errors of
// handlers leave as status with details and arrive as the same *errs.Error. The finer
// rules, such as which pod a node may report, belong to each api.
package rpc

import (
	"context"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

// Identity is who calls: /node/x, /service/x, /user/x or /anonymous.
type Identity = pki.Identity

type identityKey struct{}

// FromContext is the identity of the caller of the RPC that ctx belongs to; Anonymous
// outside of one.
func FromContext(ctx context.Context) Identity {
	if id, ok := ctx.Value(identityKey{}).(Identity); ok {
		return id
	}
	return pki.Anonymous
}

// WithIdentity is ctx as a handler called by id sees it. The server does this; tests
// that call a handler directly do it themselves.
func WithIdentity(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// RequireNode is Denied unless the caller is the node called name: a node reads and
// changes its own slice and nothing else.
func RequireNode(ctx context.Context, name string) error {
	if id := FromContext(ctx); id != pki.Node(name) {
		return errs.New(errs.Denied, "node %q: %s may not act for it, only /node/%s may", name, id, name)
	}
	return nil
}

// RequireNodeOr is RequireNode for calls that people and services may make too: it
// is Denied only if the caller is another node, or nobody.
func RequireNodeOr(ctx context.Context, name string, others ...pki.Kind) error {
	id := FromContext(ctx)
	for _, kind := range others {
		if id.Kind == kind {
			return nil
		}
	}
	return RequireNode(ctx, name)
}
