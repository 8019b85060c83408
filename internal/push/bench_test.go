package push_test

import (
	"fmt"
	"testing"

	"google.golang.org/grpc"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// BenchmarkFanOut is one change of a shared slice, from Publish to the last ack, with 1,000 streams over 10 connections.
// The change is 100 rows.
func BenchmarkFanOut(b *testing.B) {
	const subscribers, connections = 1000, 10
	hub := push.NewHub(nodestate.SourceSvcproxy, push.Options{Authorize: pushtest.Anybody})
	service := pushtest.Serve(b, hub)
	version := int64(10)
	rows := func() nodestate.Delta {
		var d nodestate.Delta
		for i := range 100 {
			d.Upserts = append(d.Upserts, nodestate.Announcement{
				Address: pushtest.Address(i), Node: fmt.Sprintf("node-%d", version), Epoch: version,
			})
		}
		return d
	}
	world := func() {
		version++
		p := push.Publication{Version: at(version), Settled: version, Shared: rows()}
		if err := hub.Publish(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
	world()
	acked := make(chan error, subscribers)
	var conns []*grpc.ClientConn
	for range connections {
		conns = append(conns, service.Dial(b, nil))
	}
	for i := range subscribers {
		go func() { acked <- follow(b, conns[i%connections], fmt.Sprintf("node-%d", i), acked) }()
	}
	wait := func() {
		for range subscribers {
			if err := <-acked; err != nil {
				b.Fatal(err)
			}
		}
	}
	wait()
	b.ReportAllocs()
	for b.Loop() {
		world()
		wait()
	}
}

// follow acks everything, and reports each ack.
func follow(b *testing.B, conn *grpc.ClientConn, node string, acked chan<- error) error {
	stream, err := pushv1.NewPushServiceClient(conn).Subscribe(b.Context())
	if err != nil {
		return err
	}
	err = stream.Send(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Hello{Hello: &pushv1.Hello{Node: node}}})
	for err == nil {
		var m *pushv1.SubscribeResponse
		if m, err = stream.Recv(); err != nil {
			break
		}
		v := m.GetDelta().GetVersion() + m.GetEnd().GetVersion()
		if v == 0 {
			continue
		}
		err = stream.Send(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: &pushv1.Ack{
			Version: v, Outcome: &pushv1.Ack_Applied{Applied: &pushv1.Applied{}},
		}}})
		acked <- err
	}
	return err
}
