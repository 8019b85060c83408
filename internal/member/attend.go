package member

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"podwire.dev/internal/errs"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

// Beat is the time between two signs of life where nothing changes.
const Beat = 500 * time.Millisecond

// deaf is how long answers may stay away: a connection that carries nothing any more is noticed by the transport only
// after tens of seconds.
const deaf = 3 * time.Second

var errDeaf = errs.New(errs.Unavailable, "no answer for %s", deaf)

// attend tells cluster of this member until ctx ends.
func (m *Member) attend(ctx context.Context) error {
	var pause backoff
	said := ""
	for {
		heard, err := m.attendAt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if heard {
			pause, said = backoff{}, ""
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			m.log.Warn("cluster does not hear this member, trying again", "error", err)
		}
		if !wait(ctx, pause.pause(), nil) {
			return nil
		}
	}
}

// attendAt attends at the service, or at the replica that it names, until the stream ends. heard says whether any answer
// of the elected replica came.
func (m *Member) attendAt(ctx context.Context) (heard bool, err error) {
	leader, heard, err := m.stream(ctx, m.parts.Members)
	if leader == "" || m.parts.Dial == nil {
		return heard, err
	}
	replica, conn, err := m.parts.Dial(leader)
	if err != nil {
		return heard, errs.Wrap(err, "member: elected replica of cluster at %s", leader)
	}
	defer conn.Close()
	_, heard, err = m.stream(ctx, replica)
	return heard, err
}

// stream runs one stream. leader is the replica to attend at instead.
func (m *Member) stream(ctx context.Context, replica clusterv1.MemberServiceClient) (leader string, heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := replica.Attend(ctx)
	if err != nil {
		return "", false, errs.Wrap(err, "member: attend")
	}
	var last atomic.Int64 // when the last answer came, in nanoseconds since the start
	start := time.Now()
	var sending sync.WaitGroup
	sending.Go(func() {
		m.send(ctx, stream, func() {
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
			return "", heard, errs.Wrap(err, "member: attend")
		}
		last.Store(int64(time.Since(start)))
		if to := resp.GetLeaderTarget(); to != "" {
			return to, heard, nil
		}
		heard = true
		m.mu.Lock()
		m.podAt = max(m.podAt, resp.GetPodRevision())
		m.mu.Unlock()
	}
}

// sender is the sending half of a stream.
type sender interface {
	Send(*clusterv1.AttendRequest) error
}

// send beats until ctx ends or the stream does, which Recv reports. It calls look before each beat.
func (m *Member) send(ctx context.Context, stream sender, look func()) {
	ticker := time.NewTicker(Beat)
	defer ticker.Stop()
	for n := int64(1); ; n++ {
		look()
		if err := stream.Send(m.request(n)); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-m.news:
		case <-ticker.C:
		}
	}
}

// request is the n-th of a stream.
func (m *Member) request(n int64) *clusterv1.AttendRequest {
	s := m.Status()
	req := &clusterv1.AttendRequest{Name: s.Name, Sequence: n, Ready: s.Ready, Reason: s.Reason}
	for _, a := range m.parts.Underlay {
		req.Underlay = append(req.Underlay, a.String())
	}
	for _, a := range s.Addresses {
		req.Addresses = append(req.Addresses, a.String())
	}
	for _, p := range m.parts.Service.Ports {
		req.Ports = append(req.Ports, &clusterv1.MemberPort{Name: p.Name, Port: uint32(p.Port), Protocol: p.Protocol.String()})
	}
	return req
}
