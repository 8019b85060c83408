package api

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/host"
)

// Status implements [Inspector]. What cannot be read now is a warning, not an error: who asks for a node's status wants
// what there is.
func (n *Node) Status(ctx context.Context, _ *nodeagentv1.StatusRequest) (*nodeagentv1.StatusResponse, error) {
	out := &nodeagentv1.StatusResponse{Node: n.Name, Version: n.Version, Started: timestamppb.New(n.Started)}
	rows := map[nodestate.Source]int64{}
	if err := n.Dataplane.Read(ctx, func(t dataplane.Tables, st dataplane.Stats) {
		rows = rowsOf(t)
		out.Drift = st.Drift
		out.KernelWrites, out.KernelObjectsWritten = st.Writes, st.Objects
		out.Warnings = append(out.Warnings, st.Problems...)
	}); err != nil {
		out.Warnings = append(out.Warnings, "what the kernel holds cannot be read: "+err.Error())
	}
	for _, s := range n.Sources {
		st := s.Status()
		slice := sliceOf(st, rows[st.Source])
		out.Slices = append(out.Slices, slice)
		if st.Problem != "" {
			out.Warnings = append(out.Warnings, fmt.Sprintf("%s: %s", st.Source, st.Problem))
		}
	}
	n.tellSettings(out)
	for _, b := range n.Blocks.Blocks() {
		out.Blocks = append(out.Blocks, &nodeagentv1.BlockStatus{
			Cidr: b.Prefix.String(), Size: int32(b.Size), Used: int32(b.Used), Quarantined: int32(b.Quarantined),
		})
	}
	out.Pods = map[string]int32{}
	for phase, count := range n.Pods.Phases() {
		out.Pods[phase] = int32(count)
	}
	out.Warnings = append(out.Warnings, n.Pods.Problems()...)
	others := n.Writes()
	out.KernelWrites += others
	out.KernelObjectsWritten += others
	return out, nil
}

// tellSettings tells the host's settings, and which are not, or were not, as they should be.
func (n *Node) tellSettings(out *nodeagentv1.StatusResponse) {
	settings, err := n.Settings.Check()
	if err != nil {
		out.Warnings = append(out.Warnings, "host settings cannot be read: "+err.Error())
	}
	for _, s := range settings {
		out.Settings = append(out.Settings, settingOf(s))
		if !s.OK() && s.Advice != "" { // the list above says what is wrong, and not what to do
			out.Warnings = append(out.Warnings, fmt.Sprintf("host setting %s is %q, wanted %q: %s", s.Name, s.Actual, s.Wanted, s.Advice))
		}
	}
	for _, m := range n.Settings.Mended() {
		out.Warnings = append(out.Warnings, fmt.Sprintf("host setting %s: somebody else changed it to %q; put back to %q %s, last at %s",
			m.Name, m.Found, m.Wanted, times(m.Times), m.Last.UTC().Format(time.RFC3339)))
	}
}

// times is how often, for people.
func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// rowsOf counts the rows of each source. Cluster's are not the dataplane's.
func rowsOf(t dataplane.Tables) map[nodestate.Source]int64 {
	out := map[nodestate.Source]int64{}
	for source, slice := range map[nodestate.Source]*nodestate.Slice{
		nodestate.SourceCluster: t.Workloads, nodestate.SourceIPAM: t.Fabric, nodestate.SourceSvcproxy: t.Services,
		nodestate.SourcePolicy: t.Policy,
	} {
		if slice != nil {
			out[source] = int64(slice.Len())
		}
	}
	return out
}

func sliceOf(st push.SubscriberStatus, rows int64) *nodeagentv1.SliceStatus {
	out := &nodeagentv1.SliceStatus{
		Service: string(st.Source), ClusterId: st.Held.ClusterID, Version: st.Held.Revision, Rows: rows,
		Connected: st.Connected, Frozen: st.Frozen,
	}
	if st.Frozen {
		out.OfferedClusterId, out.OfferedVersion = st.Offered.ClusterID, st.Offered.Revision
	}
	if st.Connected {
		out.Refused = st.Problem
	}
	return out
}

func settingOf(s host.State) *nodeagentv1.HostSetting {
	return &nodeagentv1.HostSetting{Name: s.Name, Wanted: s.Wanted, Actual: s.Actual, Before: s.Before}
}
