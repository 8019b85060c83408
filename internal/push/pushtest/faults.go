package pushtest

import (
	"context"
	"math/rand/v2"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Faults spoil what services send on the connections that use them. Rates are per message, from 0 to 1.
type Faults struct {
	// Drop loses a message, Repeat delivers it twice, Swap delivers it after the next one, Cut ends the stream in its place.
	Drop, Repeat, Swap, Cut float64

	mu      sync.Mutex
	rand    *rand.Rand
	healed  bool
	streams map[*faultyStream]context.CancelFunc
}

// NewFaults makes faults that follow from the seed.
func NewFaults(seed uint64) *Faults {
	return &Faults{rand: rand.New(rand.NewPCG(seed, 1)), streams: map[*faultyStream]context.CancelFunc{}}
}

// CutAll ends every stream.
func (f *Faults) CutAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, cancel := range f.streams {
		cancel()
	}
}

// Heal makes every later message arrive, and ends every stream, since one that lost a message waits for ever.
func (f *Faults) Heal() {
	f.mu.Lock()
	f.healed = true
	f.mu.Unlock()
	f.CutAll()
}

// strikes says whether a fault of the rate happens now.
func (f *Faults) strikes(rate float64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.healed && f.rand.Float64() < rate
}

func (f *Faults) intercept(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &faultyStream{ClientStream: stream, faults: f}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams[s] = cancel
	return s, nil
}

type faultyStream struct {
	grpc.ClientStream
	faults *Faults
	queue  []proto.Message
}

// RecvMsg delivers the next message that the faults let through.
func (s *faultyStream) RecvMsg(m any) error {
	out := m.(proto.Message)
	for len(s.queue) == 0 {
		if err := s.fill(out); err != nil {
			s.faults.mu.Lock()
			defer s.faults.mu.Unlock()
			s.faults.streams[s]()
			delete(s.faults.streams, s)
			return err
		}
	}
	proto.Reset(out)
	proto.Merge(out, s.queue[0])
	s.queue = s.queue[1:]
	return nil
}

func (s *faultyStream) fill(like proto.Message) error {
	m := proto.Clone(like)
	proto.Reset(m)
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	f := s.faults
	switch {
	case f.strikes(f.Drop):
	case f.strikes(f.Repeat):
		s.queue = append(s.queue, m, proto.Clone(m))
	case f.strikes(f.Swap):
		if err := s.fill(like); err != nil {
			return err
		}
		s.queue = append(s.queue, m)
	case f.strikes(f.Cut):
		f.mu.Lock()
		f.streams[s]()
		f.mu.Unlock()
	default:
		s.queue = append(s.queue, m)
	}
	return nil
}
