package push

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

type serverStream = grpc.BidiStreamingServer[pushv1.SubscribeRequest, pushv1.SubscribeResponse]

// subscriber is one stream. What may change is guarded by the hub's lock.
type subscriber struct {
	// node is the name of a Node, or that of a fabric member behind memberPrefix.
	node  string
	track *track
	wake  chan struct{}

	epoch      int
	superseded bool
	// hello waits to be judged; patience is when a subscriber that is ahead has waited long enough.
	hello    *pushv1.Hello
	patience time.Time
	// verified says that the hub knows the content that the subscriber holds: that of the version content, held as
	// version holds. The two differ where the digests told that an old version's content is the present one.
	verified       bool
	holds, content int64
	// claim is the version of this cluster that an unverified subscriber says it holds: a snapshot must not be below it.
	claim int64
	// outside says that the subscriber holds a version that this World does not reach, or another store's.
	outside bool
	// greeted says that the subscriber acked an answer to its hello.
	greeted  bool
	oversize bool
	inflight *message
	refused  refusal
	applied  []HopDuration
	hops     []*pushHop
	folded   int64 // what it counted as in the last fold
	// silent says that the node was declared dead while this stream was open, and that no ack came through it since: the
	// stream of a host without power stays open until keepalive notices.
	silent bool
}

// refusal is a version that the subscriber did not take; the zero refusal is none.
type refusal struct {
	version int64
	reason  string
	count   int
	at      time.Time
	since   int64 // of the track when the message was made
}

// ready says that the subscriber takes the next change at once.
func (s *subscriber) ready() bool {
	return s.greeted && s.inflight == nil && s.refused.count == 0 && !s.superseded
}

func (s *subscriber) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Subscribe serves one stream of PushService.
func (h *Hub) Subscribe(stream serverStream) error {
	if err := refuseCompression(stream); err != nil {
		return err
	}
	hello, err := h.greeting(stream)
	if err != nil {
		return err
	}
	select {
	case <-h.primed:
	case <-h.closing:
	case <-stream.Context().Done():
		return context.Cause(stream.Context())
	}
	s, err := h.enrol(hello)
	if err != nil {
		return err
	}
	defer h.streams.Done()
	defer h.leave(s)
	stop := make(chan struct{})
	defer close(stop)
	acks := make(chan *pushv1.Ack)
	failed := make(chan error, 1)
	h.streams.Go(func() { failed <- readAcks(stream, acks, stop) }) // ends with the handler, whose return ends the stream
	return h.serve(stream, s, acks, failed)
}

func (h *Hub) greeting(stream serverStream) (*pushv1.Hello, error) {
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	hello := first.GetHello()
	if hello == nil {
		return nil, errs.New(errs.Invalid, "push: the first message of a stream must be a Hello")
	}
	if (hello.GetNode() == "") == (hello.GetMember() == "") {
		return nil, errs.New(errs.Invalid, "push: Hello must have either a node or a member")
	}
	name, authorize := hello.GetNode(), h.opts.Authorize
	if name == "" {
		name, authorize = hello.GetMember(), h.opts.AuthorizeMember
	}
	if authorize == nil {
		return nil, errs.New(errs.Denied, "push: %s has nobody who may subscribe as %s", h.source, subscriberOf(hello))
	}
	return hello, authorize(stream.Context(), name)
}

// memberPrefix keeps the names of members apart from those of Nodes, which have no slash.
const memberPrefix = "member/"

// subscriberOf is the name by which the hub knows who says hello.
func subscriberOf(hello *pushv1.Hello) string {
	if hello.GetMember() != "" {
		return memberPrefix + hello.GetMember()
	}
	return hello.GetNode()
}

// enrol makes the stream the node's subscriber, in the place of an older one.
func (h *Hub) enrol(hello *pushv1.Hello) (*subscriber, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errs.New(errs.Unavailable, "push: %s is stopping: %s", h.source, h.reason)
	}
	node := subscriberOf(hello)
	s := &subscriber{
		node: node, wake: make(chan struct{}, 1), hello: hello, epoch: h.epoch,
		patience: time.Now().Add(h.opts.CatchUp), track: h.track(node, h.world.Revision), folded: -1,
	}
	if hello.GetMember() != "" {
		s.folded = math.MaxInt64 // no fold waits for a member, so no ack of one asks for a fold
	}
	if old := h.subscribers[node]; old != nil {
		h.remember(old)
		old.superseded = true
		old.nudge()
	}
	h.subscribers[node] = s
	h.streams.Add(1)
	return s, nil
}

// leave takes the subscriber out; receipts go on counting what it held last.
func (h *Hub) leave(s *subscriber) {
	h.mu.Lock()
	if h.subscribers[s.node] == s {
		h.remember(s)
		delete(h.subscribers, s.node)
	}
	s.superseded = true
	done := h.sent(s)
	h.mu.Unlock()
	endAll(done)
	h.wakeWriter()
}

// readAcks hands on what the subscriber says until the stream or the handler ends.
func readAcks(stream serverStream, acks chan<- *pushv1.Ack, stop <-chan struct{}) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		ack := m.GetAck()
		if ack == nil {
			return errs.New(errs.Invalid, "push: a stream has one Hello, then Acks")
		}
		select {
		case acks <- ack:
		case <-stop:
			return nil
		}
	}
}

// serve sends until the stream ends.
func (h *Hub) serve(stream serverStream, s *subscriber, acks <-chan *pushv1.Ack, failed <-chan error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		todo := h.next(s, time.Now())
		switch {
		case todo.err != nil:
			return todo.err
		case todo.farewell != "":
			return stream.Send(reconnectOf(todo.farewell))
		case todo.message != nil:
			again, err := h.send(stream, s, todo.message)
			if err != nil {
				return err
			}
			if again {
				continue
			}
		}
		if todo.wait <= 0 {
			todo.wait = time.Hour
		}
		timer.Reset(todo.wait)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-h.closing:
		case ack := <-acks:
			if err := h.acknowledge(s, ack); err != nil {
				return err
			}
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		}
	}
}

// send encodes a message, if nobody has, and sends it. again says that it does not fit and another is to be chosen.
func (h *Hub) send(stream serverStream, s *subscriber, m *message) (again bool, err error) {
	if err := m.prepare(stream); err != nil {
		h.log.Error("a message cannot be encoded", "node", s.node, "version", m.version.Revision, "err", err)
		return false, err
	}
	if m.oversize {
		h.mu.Lock()
		defer h.mu.Unlock()
		s.oversize, s.inflight = true, nil
		return true, nil
	}
	for _, frame := range m.frames {
		if err := stream.SendMsg(frame); err != nil {
			return false, err
		}
	}
	h.mu.Lock()
	done := h.sent(s)
	h.mu.Unlock()
	endAll(done)
	return false, nil
}

// sent gives the push hops that waited for this subscriber only.
func (h *Hub) sent(s *subscriber) []*pushHop {
	var done []*pushHop
	for _, hop := range s.hops {
		if hop.waiting--; hop.waiting == 0 {
			done = append(done, hop)
		}
	}
	s.hops = nil
	return done
}

func endAll(hops []*pushHop) {
	for _, hop := range hops {
		hop.end(nil)
	}
}

// todo is what a stream does next: end with an error or a farewell, send a message, or wait; 0 waits for an event.
type todo struct {
	err      error
	farewell string
	message  *message
	wait     time.Duration
}

func (h *Hub) next(s *subscriber, now time.Time) todo {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case s.superseded:
		return todo{err: errs.New(errs.Conflict, "push: node %s subscribed again on another stream", s.node)}
	case h.closed:
		return todo{farewell: h.reason}
	case s.epoch != h.epoch:
		return todo{farewell: "the World went backwards or to another store: say again what you hold"}
	case s.inflight != nil:
		return todo{}
	}
	if wait := h.judge(s, now); wait > 0 {
		return todo{wait: wait}
	}
	key, due := h.pick(s)
	if !due {
		return todo{}
	}
	if wait := h.pause(s, now); wait > 0 {
		return todo{wait: wait}
	}
	s.inflight = s.track.message(h.world.ClusterID, h.history, key)
	return todo{message: s.inflight}
}

// judge compares what a new subscriber says it holds with what the hub knows. It returns how long the subscriber, being
// ahead of this replica's World, should wait before it is judged.
func (h *Hub) judge(s *subscriber, now time.Time) time.Duration {
	hello := s.hello
	if hello == nil {
		return 0
	}
	t, v := s.track, hello.GetVersion()
	past, known := t.at(v)
	switch {
	case hello.GetClusterId() == 0 || v <= 0: // holds nothing
	case hello.GetClusterId() != h.world.ClusterID:
		s.outside = true
	case v > h.world.Revision:
		if wait := s.patience.Sub(now); wait > 0 {
			return wait
		}
		s.outside, s.claim = true, v
	case t.now.agree(h.source, hello.GetDigests()):
		s.verified, s.holds, s.content = true, v, max(v, t.since)
	case known && past.agree(h.source, hello.GetDigests()):
		s.verified, s.holds, s.content = true, v, v
	default:
		s.outside, s.claim = v <= h.undone || !h.history.Has(v, hello.GetHistory()), v
	}
	s.hello = nil
	if s.outside {
		h.log.Warn("a node holds a version that this World does not reach",
			"node", s.node, "held_cluster", hello.GetClusterId(), "held", v,
			"cluster", h.world.ClusterID, "revision", h.world.Revision)
	}
	h.wakeWriter()
	return 0
}

// pick chooses the message that leads from what the subscriber holds to the present; none is due where it holds that.
func (h *Hub) pick(s *subscriber) (messageKey, bool) {
	t := s.track
	stamp := max(t.since, s.claim)
	if s.outside || stamp > h.world.Revision {
		stamp = h.world.Revision
	}
	if s.outside && s.claim > 1 && stamp >= s.claim {
		stamp = s.claim - 1 // by then the World may have passed what the subscriber holds: it is to see that it went back
	}
	switch {
	case !s.verified:
		return messageKey{snapshot: true, target: stamp, content: stamp}, true
	case s.oversize:
		return messageKey{snapshot: true, target: t.since, content: s.content}, true
	case s.holds < t.since && t.reaches(s.content):
		return messageKey{holds: s.holds, target: t.since, content: s.content}, true
	case s.holds < t.since:
		return messageKey{snapshot: true, target: t.since, content: s.content}, true
	case !s.greeted:
		return messageKey{holds: s.holds, target: s.holds, content: s.content}, true
	}
	return messageKey{}, false
}

const maxRetry = 30 * time.Second

// pause is how long a subscriber that refused is left alone: a change is sent sooner than the same again.
func (h *Hub) pause(s *subscriber, now time.Time) time.Duration {
	if s.refused.count == 0 {
		return 0
	}
	gap := min(h.opts.Retry<<min(s.refused.count-1, 16), maxRetry)
	if s.track.since > s.refused.since {
		gap /= 5
	}
	return s.refused.at.Add(gap).Sub(now)
}

// acknowledge takes an ack in.
func (h *Hub) acknowledge(s *subscriber, ack *pushv1.Ack) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := s.inflight
	if m == nil || m.version.Revision != ack.GetVersion() {
		return errs.New(errs.Invalid, "push: node %s acked version %d, which was not sent", s.node, ack.GetVersion())
	}
	s.inflight = nil
	switch outcome := ack.GetOutcome().(type) {
	case *pushv1.Ack_Applied:
		if s.refused.count > 0 {
			h.log.Info("a node that refused is up to date again", "node", s.node, "version", ack.GetVersion())
		}
		s.verified, s.greeted, s.oversize, s.outside = true, true, false, false
		s.holds, s.content, s.claim = ack.GetVersion(), ack.GetVersion(), 0
		s.applied, s.refused = hopsFromProto(outcome.Applied.GetHops()), refusal{}
	case *pushv1.Ack_Refused:
		if s.refused.reason != outcome.Refused.GetReason() {
			h.log.Warn("a node refused a version", "node", s.node, "version", ack.GetVersion(), "reason", outcome.Refused.GetReason())
		}
		if outcome.Refused.GetHeldVersion() != s.holds {
			s.verified = false
		}
		s.refused = refusal{
			version: ack.GetVersion(), reason: outcome.Refused.GetReason(), count: s.refused.count + 1,
			at: time.Now(), since: m.since,
		}
		h.wakeWriter()
	default:
		return errs.New(errs.Invalid, "push: node %s acked version %d without saying applied or refused", s.node, ack.GetVersion())
	}
	s.silent = false
	if held, known := h.held(s); h.fold.moved(s, held, known) {
		h.wakeWriter()
	}
	return nil
}

// maxHops bounds the hop durations of one ack.
const maxHops = 16

func hopsFromProto(hops []*pushv1.HopDuration) []HopDuration {
	out := make([]HopDuration, 0, min(len(hops), maxHops))
	for _, hop := range hops[:min(len(hops), maxHops)] {
		out = append(out, HopDuration{Hop: hop.GetHop(), Duration: time.Duration(hop.GetNanos())})
	}
	return slices.Clip(out)
}
