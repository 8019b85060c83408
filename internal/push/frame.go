package push

import (
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// message is a DELTA or a snapshot, encoded by the first stream that sends it, for all that do.
type message struct {
	version  nodestate.Version
	snapshot bool
	since    int64 // of the track: the content is that of the Worlds from there on
	build    func(emit func(*pushv1.SubscribeResponse) error) error

	once   sync.Once
	frames []*grpc.PreparedMsg
	// oversize says that a DELTA does not fit MaxMessage: a snapshot goes instead.
	oversize bool
	err      error
}

// prepare encodes the message once. Any stream may lend its codec: no stream of a hub is compressed (see
// refuseCompression), so the bytes are the same for all.
func (m *message) prepare(stream grpc.ServerStream) error {
	m.once.Do(func() {
		m.err = m.build(func(r *pushv1.SubscribeResponse) error {
			if !m.snapshot && proto.Size(r) > MaxMessage {
				m.oversize = true
				return nil
			}
			frame := &grpc.PreparedMsg{}
			if err := frame.Encode(stream, r); err != nil {
				return errs.WrapAs(errs.Internal, err, "push: encode")
			}
			m.frames = append(m.frames, frame)
			return nil
		})
		m.build = nil // lets go of the rows
	})
	return m.err
}

// refuseCompression refuses a stream whose caller asked for compressed messages: the shared encoding would not fit it.
func refuseCompression(stream grpc.ServerStream) error {
	s, ok := grpc.ServerTransportStreamFromContext(stream.Context()).(interface{ RecvCompress() string })
	if !ok {
		return nil
	}
	if c := s.RecvCompress(); c != "" && c != "identity" {
		return errs.New(errs.Invalid, "push: messages compressed with %s are not understood here; send them plain", c)
	}
	return nil
}
