package api

import (
	"context"
	"fmt"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/rpc"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
)

// Accept implements [Inspector]: every frozen slice takes its service's next complete snapshot. None frozen is no error.
// The agent's log keeps who accepted what: the caller's identity, and for each slice the version that was held and the one
// that was offered.
func (n *Node) Accept(ctx context.Context, _ *nodeagentv1.AcceptRequest) (*nodeagentv1.AcceptResponse, error) {
	out := &nodeagentv1.AcceptResponse{}
	who := rpc.FromContext(ctx).String()
	for _, s := range n.Sources {
		st := s.Status() // before: what was offered is forgotten with the freeze
		if !s.Accept() {
			continue
		}
		out.Services = append(out.Services, string(st.Source))
		n.Log.WarnContext(ctx, "audit: a store that went backwards was accepted", "identity", who, "node", n.Name,
			"service", string(st.Source), "held", versionText(st.Held), "offered", versionText(st.Offered))
	}
	if len(out.Services) == 0 {
		n.Log.WarnContext(ctx, "audit: accept was called, and nothing is frozen", "identity", who, "node", n.Name)
	}
	return out, nil
}

// versionText is "{cluster id, revision}", the id in hexadecimal digits as etcdctl prints it.
func versionText(v nodestate.Version) string { return fmt.Sprintf("{%x, %d}", v.ClusterID, v.Revision) }
