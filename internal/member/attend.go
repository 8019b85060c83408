package member

import (
	"context"
	"time"

	"podwire.dev/internal/heartbeat"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

// Beat is the time between two signs of life where nothing changes.
const Beat = 500 * time.Millisecond

type attendance = heartbeat.Stream[*clusterv1.AttendRequest, *clusterv1.AttendResponse]

// attend tells cluster of this member until ctx ends.
func (m *Member) attend(ctx context.Context) error {
	beats := heartbeat.Heart[clusterv1.MemberServiceClient, *clusterv1.AttendRequest, *clusterv1.AttendResponse]{
		Name: "member " + m.parts.Name, Service: m.parts.Members, Dial: m.parts.Dial, Every: Beat, News: m.news, Beat: m.request, Log: m.log,
		Open: func(ctx context.Context, replica clusterv1.MemberServiceClient) (attendance, error) {
			return replica.Attend(ctx)
		},
		Heard: func(answer *clusterv1.AttendResponse) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.podAt = max(m.podAt, answer.GetPodRevision())
		},
	}
	return beats.Run(ctx)
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
