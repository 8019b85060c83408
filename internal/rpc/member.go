package rpc

import (
	"context"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/pki"
)

// RequireMember is Denied unless the caller is the service whose replica the fabric member called name is: a service
// acts for its own replicas and for nobody else's.
func RequireMember(ctx context.Context, name string) error {
	id := FromContext(ctx)
	if id.Kind != pki.KindService {
		return errs.New(errs.Denied, "member %q: %s may not act for it, only the service of that replica may", name, id)
	}
	if rule := names.Member(id.Name, name); rule != "" {
		return errs.New(errs.Denied, "member %q: %s may not act for it: the name %s", name, id, rule)
	}
	return nil
}
