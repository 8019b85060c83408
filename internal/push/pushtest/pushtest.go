// Package pushtest runs hubs and agents against each other in one process: for push's own conformance suite, and for
// services that want to see what a node would hold.
//
// In: a hub, and a source of chance. Out: agents whose slice can be compared with what was planned, on connections that
// lose, repeat, reorder and cut as asked. Nothing here is fit for anything but tests.
package pushtest

import (
	"context"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// Anybody is an Authorize that refuses nobody.
func Anybody(context.Context, string) error { return nil }

// Service is a push service in this process whose hub can be replaced, as a restart of the process would.
type Service struct {
	pushv1.UnimplementedPushServiceServer
	listener *bufconn.Listener
	server   *grpc.Server

	mu  sync.Mutex
	hub Hub
}

// Hub is what serves: a *push.Hub, or a script in its place.
type Hub interface {
	Subscribe(stream Stream) error
	Close(ctx context.Context, reason string) error
}

// Stream is the service's side of a stream.
type Stream = grpc.BidiStreamingServer[pushv1.SubscribeRequest, pushv1.SubscribeResponse]

// Serve serves a hub until the test ends.
func Serve(t testing.TB, hub Hub) *Service {
	s := &Service{listener: bufconn.Listen(1 << 20), server: grpc.NewServer(grpc.WaitForHandlers(true)), hub: hub}
	pushv1.RegisterPushServiceServer(s.server, s)
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(s.listener) }()
	t.Cleanup(func() {
		s.server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// Subscribe hands the stream to the present hub.
func (s *Service) Subscribe(stream Stream) error {
	s.mu.Lock()
	hub := s.hub
	s.mu.Unlock()
	return hub.Subscribe(stream)
}

// Replace stops the present hub and goes on with another, which knows nothing of the first.
func (s *Service) Replace(t testing.TB, hub Hub) {
	s.mu.Lock()
	old := s.hub
	s.hub = hub
	s.mu.Unlock()
	if err := old.Close(t.Context(), "replaced"); err != nil {
		t.Errorf("close the old hub: %v", err)
	}
}

// Dial connects to the service, through faults if they are not nil. The connection ends with the test.
func (s *Service) Dial(t testing.TB, faults *Faults) *grpc.ClientConn {
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }),
	}
	if faults != nil {
		opts = append(opts, grpc.WithStreamInterceptor(faults.intercept))
	}
	conn, err := grpc.NewClient("passthrough:///push", opts...)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return conn
}
