package api

import (
	"sync"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	"podwire.dev/services/nodeagent/internal/runtime"
)

// Logs returns what a container wrote; with follow until the container's run ends or the call does.
func (a *Agent) Logs(req *nodeagentv1.LogsRequest, stream grpc.ServerStreamingServer[nodeagentv1.LogsResponse]) error {
	bad := required("namespace", req.GetNamespace(), "pod", req.GetPod())
	if req.GetTailLines() < 0 {
		bad = append(bad, errs.Violation{Field: "tail_lines", Rule: "must not be negative"})
	}
	if req.GetFollow() && req.GetPrevious() {
		bad = append(bad, errs.Violation{Field: "follow", Rule: "must not be set together with previous: that run has ended"})
	}
	if err := errs.InvalidFields("logs", bad); err != nil {
		return err
	}
	uid, err := a.cfg.Pods.Find(req.GetNamespace(), req.GetPod())
	if err != nil {
		return errs.Wrap(err, "logs on node %s", a.cfg.Node)
	}
	want := runtime.LogRequest{Container: req.GetContainer(), Tail: -1}
	if req.TailLines != nil {
		want.Tail = int(req.GetTailLines())
	}
	if req.GetPrevious() {
		want.Run = runtime.PreviousRun
	}
	if req.GetFollow() {
		want.Until = runtime.UntilStopped
	}
	return a.cfg.Runtime.Logs(stream.Context(), uid, want, sender{new(sync.Mutex), func(p []byte) error {
		return stream.Send(&nodeagentv1.LogsResponse{Data: p})
	}})
}
