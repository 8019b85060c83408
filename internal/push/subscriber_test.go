package push_test

import (
	"context"
	"testing"
	"testing/synctest"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push/pushtest"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// script is a service that says what it is told to, whatever it hears.
type script struct {
	heard chan *pushv1.Hello
	acks  chan *pushv1.Ack
	say   chan *pushv1.SubscribeResponse // nil ends the stream
}

func (s *script) Subscribe(stream pushtest.Stream) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	s.heard <- m.GetHello()
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case out := <-s.say:
			if out == nil {
				return nil
			}
			if err := stream.Send(out); err != nil {
				return err
			}
		}
		if m, err := s.next(stream); err != nil {
			return err
		} else if m != nil {
			s.acks <- m
		}
	}
}

func (s *script) next(stream pushtest.Stream) (*pushv1.Ack, error) {
	if len(s.say) > 0 { // more of the same answer
		return nil, nil
	}
	m, err := stream.Recv()
	return m.GetAck(), err
}

func (s *script) Close(context.Context, string) error { return nil }

func digest(rows ...nodestate.Row) []*pushv1.TableDigest { return holding(1, rows...).GetDigests() }

func (s *script) snapshot(version int64) {
	s.say <- &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Begin{Begin: &pushv1.Begin{ClusterId: cluster, Version: version}}}
	s.say <- &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_End{End: &pushv1.End{Version: version, Digests: digest()}}}
}

func (s *script) delta(base, version int64, digests []*pushv1.TableDigest) {
	s.say <- &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Delta{Delta: &pushv1.Delta{
		ClusterId: cluster, Base: base, Version: version, Digests: digests,
	}}}
}

// TestDistrust: whatever does not fit makes the agent subscribe again, and ask for a snapshot; it changes nothing.
func TestDistrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{heard: make(chan *pushv1.Hello, 1), acks: make(chan *pushv1.Ack, 1), say: make(chan *pushv1.SubscribeResponse, 2)}
		agent := &pushtest.Agent{Source: nodestate.SourceCluster, Node: "node-1", Conn: pushtest.Serve(t, s).Dial(t, nil)}
		agent.Start(t)
		if hello := <-s.heard; hello.GetVersion() != 0 {
			t.Fatalf("got %v", hello)
		}
		s.snapshot(10)
		if ack := <-s.acks; ack.GetVersion() != 10 || ack.GetApplied() == nil || ack.GetApplied().GetHops()[0].GetHop() != "receive" {
			t.Fatalf("got %v", ack)
		}
		bad := map[string]func(){
			"a gap":                    func() { s.delta(9, 11, digest()) },
			"a delta backwards":        func() { s.delta(10, 9, digest()) },
			"other digests":            func() { s.delta(10, 11, digest(pod("a", ""))) },
			"an unknown table":         func() { s.delta(10, 11, append(digest(), &pushv1.TableDigest{Table: "x"})) },
			"an END without BEGIN":     func() { s.say <- &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_End{}} },
			"a CHUNK without BEGIN":    func() { s.say <- &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Chunk{}} },
			"a message without a type": func() { s.say <- &pushv1.SubscribeResponse{} },
			"a row of another source": func() {
				s.say <- &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Delta{Delta: &pushv1.Delta{
					ClusterId: cluster, Base: 10, Version: 11, Removes: []*pushv1.RowKey{{Table: "peers", Key: "10.0.0.1"}},
				}}}
			},
			"a snapshot from before, out of turn": func() {
				s.say <- &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Begin{Begin: &pushv1.Begin{ClusterId: cluster, Version: 5}}}
			},
		}
		for what, send := range bad {
			send()
			if hello := <-s.heard; hello.GetVersion() != 10 || hello.GetClusterId() != cluster || len(hello.GetDigests()) != 0 {
				t.Errorf("after %s: %v", what, hello)
			}
			if st := agent.Subscriber().Status(); st.Frozen || st.Problem == "" || st.Held != at(10) {
				t.Errorf("after %s: %+v", what, st)
			}
			s.snapshot(10)
			<-s.acks
		}
		s.say <- nil
		if hello := <-s.heard; len(hello.GetDigests()) != 1 {
			t.Errorf("trusting again: %v", hello)
		}
		s.say <- &pushv1.SubscribeResponse{Message: &pushv1.SubscribeResponse_Reconnect{Reconnect: &pushv1.Reconnect{Reason: "stop"}}}
		if hello := <-s.heard; hello.GetVersion() != 10 {
			t.Errorf("after a hint: %v", hello)
		}
		if n := len(agent.Updates()); n != 1+len(bad) {
			t.Errorf("%d updates", n)
		}
	})
}
