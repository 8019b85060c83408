package api

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	"podwire.dev/services/cluster/internal/liveness"
)

// Listener enters heartbeats; *liveness.Monitor is one.
type Listener interface {
	// Beat is false where another replica leads.
	Beat(b liveness.Beat) bool
	// Dead says whether the World may still call the node dead.
	Dead(node string) bool
}

// Passed knows up to where every required service has come; *receipts.Tracker is one.
type Passed interface{ Required() store.Revision }

// Elections knows who leads; *store.Store is one.
type Elections interface {
	GetLeader(ctx context.Context, election string) (store.Leader, error)
}

// Liveness serves podwire.cluster.v1.LivenessService.
type Liveness struct {
	clusterv1.UnimplementedLivenessServiceServer
	election  string
	listener  Listener
	passed    Passed
	elections Elections
}

// NewLiveness hears heartbeats on behalf of the replica that holds the election.
func NewLiveness(election string, listener Listener, passed Passed, elections Elections) *Liveness {
	return &Liveness{election: election, listener: listener, passed: passed, elections: elections}
}

// Heartbeat implements LivenessService. Each request names the same node, the caller. A node that was dead is answered when
// the World has it alive: its agent then reports its Pods again, and what it says of them stays.
func (l *Liveness) Heartbeat(stream grpc.BidiStreamingServer[clusterv1.HeartbeatRequest, clusterv1.HeartbeatResponse]) error {
	ctx := stream.Context()
	for {
		req, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF), ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := rpc.RequireNode(ctx, req.GetNode()); err != nil {
			return err
		}
		resp, err := l.answer(ctx, req)
		if err != nil {
			return err
		}
		if resp == nil {
			continue
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// answer is nil where none is due yet.
func (l *Liveness) answer(ctx context.Context, req *clusterv1.HeartbeatRequest) (*clusterv1.HeartbeatResponse, error) {
	resp := &clusterv1.HeartbeatResponse{Sequence: req.GetSequence(), RequiredWatermark: int64(l.passed.Required())}
	if l.listener.Beat(liveness.Beat{Node: req.GetNode(), Ready: req.GetReady(), Reason: req.GetReason()}) {
		if l.listener.Dead(req.GetNode()) {
			return nil, nil
		}
		return resp, nil
	}
	leader, err := l.elections.GetLeader(ctx, l.election)
	if err != nil && !errs.Is(err, errs.NotFound) {
		return nil, errs.Wrap(err, "heartbeat of %s", req.GetNode())
	}
	// Empty while nobody leads: the agent keeps asking here.
	resp.LeaderTarget = leader.Address
	return resp, nil
}
