package control

import (
	"context"
	"io"
	"log/slog"
	"time"

	"podwire.dev/internal/heartbeat"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

// Beat is the time between two heartbeats.
const Beat = 200 * time.Millisecond

// Health is how the node fares.
type Health struct {
	Ready bool
	// Reason is for people, where not ready.
	Reason string
}

// Heart tells cluster that the node lives.
type Heart struct {
	// Service leads to any replica, Dial to the one that listens where that is another.
	Service clusterv1.LivenessServiceClient
	Dial    func(target string) (replica clusterv1.LivenessServiceClient, done io.Closer, err error)

	Node, Target string
	// Health is asked before each beat and must not block.
	Health func() Health
	// Watermark gets the revision that the watermarks of all required services have passed.
	Watermark func(revision int64)
	// Returned is called when cluster hears the node again, or for the first time: before, it may have declared the node
	// dead, and said so in what the node reports. An agent that has just started does not know for how long nobody spoke
	// for its node.
	Returned func()
	Log      *slog.Logger
}

// Run beats until ctx ends.
func (h *Heart) Run(ctx context.Context) error {
	beats := heartbeat.Heart[clusterv1.LivenessServiceClient, *clusterv1.HeartbeatRequest, *clusterv1.HeartbeatResponse]{
		Name: "node " + h.Node, Service: h.Service, Dial: h.Dial, Every: Beat, Beat: h.request, Returned: h.Returned, Log: h.Log,
		Open: func(ctx context.Context, replica clusterv1.LivenessServiceClient) (heartbeatStream, error) {
			return replica.Heartbeat(ctx)
		},
		Heard: func(answer *clusterv1.HeartbeatResponse) { h.Watermark(answer.GetRequiredWatermark()) },
	}
	return beats.Run(ctx)
}

type heartbeatStream = heartbeat.Stream[*clusterv1.HeartbeatRequest, *clusterv1.HeartbeatResponse]

// request is the n-th of a stream.
func (h *Heart) request(n int64) *clusterv1.HeartbeatRequest {
	health := h.Health()
	return &clusterv1.HeartbeatRequest{
		Node: h.Node, Sequence: n, Ready: health.Ready, Reason: health.Reason, AgentTarget: h.Target,
	}
}
