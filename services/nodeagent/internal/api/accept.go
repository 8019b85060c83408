package api

import (
	"context"

	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
)

// Accept implements [Inspector]: every frozen slice takes its service's next complete snapshot. None frozen is no error.
func (n *Node) Accept(context.Context, *nodeagentv1.AcceptRequest) (*nodeagentv1.AcceptResponse, error) {
	out := &nodeagentv1.AcceptResponse{}
	for _, s := range n.Sources {
		if s.Accept() {
			out.Services = append(out.Services, string(s.Status().Source))
		}
	}
	return out, nil
}
