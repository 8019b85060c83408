package push_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

func at(revision int64) nodestate.Version {
	return nodestate.Version{ClusterID: cluster, Revision: revision}
}

func pod(uid, spec string) nodestate.Row { return nodestate.Workload{UID: uid, Pod: spec} }

func hubFor(t *testing.T, source nodestate.Source) (*push.Hub, *pushtest.Service) {
	hub := push.NewHub(source, push.Options{Authorize: pushtest.Anybody})
	return hub, pushtest.Serve(t, hub)
}

// publish publishes rows for node-1, or for all where the source's slice is shared.
func publish(t *testing.T, hub *push.Hub, source nodestate.Source, revision int64, d nodestate.Delta) {
	t.Helper()
	p := push.Publication{Version: at(revision), Settled: revision}
	if push.Shared(source) {
		p.Shared = d
	} else {
		p.PerNode = map[string]nodestate.Delta{"node-1": d}
	}
	if err := hub.Publish(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

func upsert(rows ...nodestate.Row) nodestate.Delta { return nodestate.Delta{Upserts: rows} }

// wire is a subscriber that says and hears messages one by one.
type wire struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[pushv1.SubscribeRequest, pushv1.SubscribeResponse]
}

func dial(t *testing.T, service *pushtest.Service, hello *pushv1.Hello, opts ...grpc.CallOption) *wire {
	t.Helper()
	stream, err := pushv1.NewPushServiceClient(service.Dial(t, nil)).Subscribe(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, stream: stream}
	w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Hello{Hello: hello}})
	return w
}

func (w *wire) say(m *pushv1.SubscribeRequest) {
	w.t.Helper()
	if err := w.stream.Send(m); err != nil && !errors.Is(err, io.EOF) { // EOF: the service has ended it; hear says why
		w.t.Fatal(err)
	}
}

func (w *wire) hear() *pushv1.SubscribeResponse {
	w.t.Helper()
	m, err := w.stream.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// snapshot hears a whole snapshot.
func (w *wire) snapshot() (begin *pushv1.Begin, rows []*pushv1.Row, end *pushv1.End) {
	w.t.Helper()
	begin = w.hear().GetBegin()
	for begin != nil {
		m := w.hear()
		if end = m.GetEnd(); end != nil {
			return begin, rows, end
		}
		rows = append(rows, m.GetChunk().GetRows()...)
	}
	w.t.Fatal("no BEGIN")
	return nil, nil, nil
}

func (w *wire) delta() *pushv1.Delta {
	w.t.Helper()
	m := w.hear()
	if m.GetDelta() == nil {
		w.t.Fatalf("got %v, want a DELTA", m)
	}
	return m.GetDelta()
}

func (w *wire) apply(version int64) {
	w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: &pushv1.Ack{
		Version: version, Outcome: &pushv1.Ack_Applied{Applied: &pushv1.Applied{}},
	}}})
}

func (w *wire) refuse(version, held int64, reason string) {
	w.say(&pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: &pushv1.Ack{
		Version: version, Outcome: &pushv1.Ack_Refused{Refused: &pushv1.Refused{Reason: reason, HeldVersion: held}},
	}}})
}

// fails hears the error that ends the stream.
func (w *wire) fails(want string) {
	w.t.Helper()
	for {
		if _, err := w.stream.Recv(); err != nil {
			if !strings.Contains(err.Error(), want) {
				w.t.Errorf("got error %v, want %q", err, want)
			}
			return
		}
	}
}

// holding is the Hello of a node that holds rows.
func holding(version int64, rows ...nodestate.Row) *pushv1.Hello {
	d := nodestate.NewSlice(rows...).Digest(nodestate.TableWorkloads)
	return &pushv1.Hello{Node: "node-1", ClusterId: cluster, Version: version, Digests: []*pushv1.TableDigest{
		{Table: string(nodestate.TableWorkloads), Rows: d.Rows, Digest: d.Bytes()},
	}}
}

func nothing() *pushv1.Hello { return &pushv1.Hello{Node: "node-1"} }
