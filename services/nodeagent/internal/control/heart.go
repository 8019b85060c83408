package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"podwire.dev/internal/errs"
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
	var pause backoff
	said := ""
	for {
		heard, err := h.beatAt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if heard {
			pause.reset()
			said = ""
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			h.Log.Warn("cluster does not hear this node, trying again", "error", err)
		}
		if !pause.wait(ctx) {
			return nil
		}
	}
}

// beatAt beats at the service, or at the replica that it names, until the stream ends. heard says whether any answer came.
func (h *Heart) beatAt(ctx context.Context) (heard bool, err error) {
	leader, heard, err := h.beat(ctx, h.Service)
	if leader == "" || h.Dial == nil {
		return heard, err
	}
	replica, conn, err := h.Dial(leader)
	if err != nil {
		return heard, errs.Wrap(err, "control: elected replica of cluster at %s", leader)
	}
	defer conn.Close()
	_, heard, err = h.beat(ctx, replica)
	return heard, err
}

// beat runs one stream. leader is the replica to beat at instead.
func (h *Heart) beat(ctx context.Context, replica clusterv1.LivenessServiceClient) (leader string, heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := replica.Heartbeat(ctx)
	if err != nil {
		return "", false, errs.Wrap(err, "control: heartbeat")
	}
	var last atomic.Int64 // when the last answer came, in nanoseconds since the start
	start := time.Now()
	var sending sync.WaitGroup
	sending.Go(func() {
		h.send(ctx, stream, func() {
			// A connection that carries nothing any more is noticed by the transport only after tens of seconds.
			if time.Since(start)-time.Duration(last.Load()) > deaf {
				cancel(errDeaf)
			}
		})
	})
	defer sending.Wait()
	defer cancel(nil)
	for {
		resp, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, errDeaf) {
				err = cause
			}
			return "", heard, errs.Wrap(err, "control: heartbeat")
		}
		last.Store(int64(time.Since(start)))
		if to := resp.GetLeaderTarget(); to != "" {
			return to, heard, nil
		}
		if !heard && h.Returned != nil {
			h.Returned()
		}
		heard = true
		h.Watermark(resp.GetRequiredWatermark())
	}
}

// deaf is how long answers may stay away.
const deaf = 3 * time.Second

var errDeaf = errs.New(errs.Unavailable, "no answer for %s", deaf)

// sender is the sending half of a heartbeat stream.
type sender interface {
	Send(*clusterv1.HeartbeatRequest) error
}

// send beats until ctx ends or the stream does, which Recv reports. It calls look before each beat.
func (h *Heart) send(ctx context.Context, stream sender, look func()) {
	ticker := time.NewTicker(Beat)
	defer ticker.Stop()
	for n := int64(1); ; n++ {
		look()
		health := h.Health()
		err := stream.Send(&clusterv1.HeartbeatRequest{
			Node: h.Node, Sequence: n, Ready: health.Ready, Reason: health.Reason, AgentTarget: h.Target,
		})
		if err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
