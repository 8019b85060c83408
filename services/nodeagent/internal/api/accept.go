package api

import (
	"context"
	"time"

	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
)

// Accept implements [Inspector]: every frozen slice takes its service's next complete snapshot, and so does a slice that
// freezes later on the store that was accepted. None frozen is no error, and accepts nothing for later.
// The agent's log keeps who accepted what: the caller's identity, and for each slice the version that was held and the one
// that was offered.
func (n *Node) Accept(ctx context.Context, _ *nodeagentv1.AcceptRequest) (*nodeagentv1.AcceptResponse, error) {
	out := &nodeagentv1.AcceptResponse{}
	who := rpc.FromContext(ctx).String()
	var slices []push.SubscriberStatus // before: what was offered is forgotten with the freeze
	for _, s := range n.Sources {
		slices = append(slices, s.Status())
	}
	if err := n.Accepted.Note(who, time.Now(), slices); err != nil {
		n.Log.ErrorContext(ctx, "what was accepted is forgotten with a restart of the agent", "error", err)
	}
	for i, s := range n.Sources {
		st := slices[i]
		if !s.Accept() {
			continue
		}
		out.Services = append(out.Services, string(st.Source))
		n.Log.WarnContext(ctx, "audit: a store that went backwards was accepted", "identity", who, "node", n.Name,
			"service", string(st.Source), "held", st.Held.String(), "offered", st.Offered.String())
	}
	if len(out.Services) == 0 {
		n.Log.WarnContext(ctx, "audit: accept was called, and nothing is frozen", "identity", who, "node", n.Name)
	}
	return out, nil
}
