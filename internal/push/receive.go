package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/telemetry"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// receiver follows one stream. It needs no goroutine of its own: the service sends the next message after the ack of the
// last one, so there is nothing to read while an update is under way. The ctx of its methods outlives the stream: an
// update that is in the journal is brought to its end although the stream broke.
type receiver struct {
	subscriber *Subscriber
	stream     grpc.BidiStreamingClient[pushv1.SubscribeRequest, pushv1.SubscribeResponse]
	// accepting says that the stream was opened to take any complete snapshot.
	accepting bool
	// first is true until the service has answered the Hello.
	first    bool
	useful   bool
	snapshot *assembler
	began    time.Time
}

// follow returns nil where the service asked to subscribe again or ended the stream in order.
func (r *receiver) follow(ctx context.Context) error {
	for {
		m, err := r.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.subscriber.set(func(st *SubscriberStatus) { st.Connected = true })
		if hint := m.GetReconnect(); hint != nil {
			r.useful = true
			return nil
		}
		if err := r.take(ctx, m); err != nil {
			return err
		}
	}
}

// take takes one message. What does not fit is an error: the stream ends, and the next one asks for a snapshot.
func (r *receiver) take(ctx context.Context, m *pushv1.SubscribeResponse) error {
	var err error
	switch v := m.GetMessage().(type) {
	case *pushv1.SubscribeResponse_Begin:
		r.began = time.Now()
		err = r.begin(v.Begin)
	case *pushv1.SubscribeResponse_Chunk:
		if r.snapshot == nil {
			err = errs.New(errs.Invalid, "push: CHUNK without BEGIN")
		} else {
			err = r.snapshot.add(v.Chunk)
		}
	case *pushv1.SubscribeResponse_End:
		return r.end(ctx, v.End)
	case *pushv1.SubscribeResponse_Delta:
		r.began = time.Now()
		return r.delta(ctx, v.Delta)
	default:
		err = errs.New(errs.Invalid, "push: a message that this version does not know; update this side")
	}
	return r.mistrust(err)
}

// mistrust makes the next stream ask for a snapshot, where something did not fit.
func (r *receiver) mistrust(err error) error {
	if err != nil {
		r.subscriber.mistrust = true
	}
	return err
}

func (r *receiver) begin(b *pushv1.Begin) error {
	if r.snapshot != nil {
		return r.snapshot.open(b) // says what is wrong
	}
	s := r.subscriber
	r.snapshot = &assembler{source: s.cfg.Source}
	if err := r.snapshot.open(b); err != nil {
		return err
	}
	status, offered := s.Status(), r.snapshot.version()
	backwards := offered.ClusterID != status.Held.ClusterID || offered.Revision < status.Held.Revision
	switch {
	case r.accepting, status.Held == nodestate.Version{}:
	case status.Frozen:
		r.snapshot.discard = true
		s.takeAccepted(offered, b.GetAncestry())
	case backwards && !r.first:
		// Only the answer to a Hello speaks for the service's present World.
		return errs.New(errs.Conflict, "push: snapshot of version %d in cluster %x after %d in %x", offered.Revision, offered.ClusterID,
			status.Held.Revision, status.Held.ClusterID)
	case backwards:
		s.freeze(offered, b.GetAncestry())
		r.snapshot.discard = true
	}
	return nil
}

// freeze holds what is held, come what may, until Accept; which the node may have been told already.
func (s *Subscriber) freeze(offered nodestate.Version, ancestry []uint64) {
	held := s.Status().Held
	offered.History = beginning(held.History, ancestry)
	s.set(func(st *SubscriberStatus) { st.Frozen, st.Offered = true, offered })
	if s.takeAccepted(offered, ancestry) {
		return
	}
	s.log.Error("the service offers a state that went backwards or is another store's; holding the last good state until `podwire accept`",
		"held_cluster", held.ClusterID, "held", held.Revision, "offered_cluster", offered.ClusterID, "offered", offered.Revision)
	if s.cfg.Journal != nil {
		s.journaled(s.cfg.Journal.freeze(offered))
	}
}

// beginning is the mark by which a history is known that does not have what is held: its first mark of its own, which is the one
// after the mark that is held, since neither history marked anything between that and the point where they part. Where the
// history does not know that mark, it is the newest; 0 where there is none.
func beginning(held uint64, ancestry []uint64) uint64 {
	n := slices.Index(ancestry, held)
	switch {
	case n < 0 && len(ancestry) > 0:
		return ancestry[len(ancestry)-1]
	case n >= 0 && n+1 < len(ancestry):
		return ancestry[n+1]
	}
	return 0
}

// takeAccepted accepts a store that the node was told to take when another of its slices was frozen.
func (s *Subscriber) takeAccepted(offered nodestate.Version, ancestry []uint64) bool {
	held := s.Status().Held
	by, ok := s.cfg.Accepted.covers(s.cfg.Source, held, offered.ClusterID, ancestry)
	if !ok || !s.Accept() {
		return false
	}
	s.log.Warn("audit: a store that went backwards is taken, as it was accepted before this slice knew of it",
		"identity", by.Identity, "accepted", by.At.UTC().Format(time.RFC3339), "node", s.cfg.Node, "service", string(s.cfg.Source),
		"held", held.String(), "offered", offered.String())
	return true
}

// journaled notes a journal that does not work. The kernel gets its update all the same: a full disk must not stop the
// node from following. What is lost is what a restart without the service would have begun with.
func (s *Subscriber) journaled(err error) {
	if err == nil {
		return
	}
	s.set(func(st *SubscriberStatus) { st.Problem = err.Error() })
	s.log.Error("the last good state is not on disk", "err", err)
}

func (s *Subscriber) frozenReason() string {
	st := s.Status()
	remedy := "`podwire accept " + s.cfg.Node + "` takes it"
	if s.cfg.Node == "" {
		remedy = "a restart of " + s.cfg.Member + " takes it"
	}
	return fmt.Sprintf("frozen at version %d of cluster %x, since version %d of cluster %x was offered; %s",
		st.Held.Revision, st.Held.ClusterID, st.Offered.Revision, st.Offered.ClusterID, remedy)
}

func (r *receiver) end(ctx context.Context, e *pushv1.End) error {
	snap := r.snapshot
	r.snapshot = nil
	if snap == nil {
		return r.mistrust(errs.New(errs.Invalid, "push: END without BEGIN"))
	}
	if err := r.mistrust(snap.close(e)); err != nil {
		return err
	}
	s := r.subscriber
	if snap.discard {
		return r.refuse(snap.version().Revision, s.frozenReason())
	}
	old := s.slice
	u := Update{
		Version: snap.version(), Delta: nodestate.Diff(old, snap.slice), Snapshot: true, Changes: changesFromProto(e.GetChanges()),
	}
	s.slice = snap.slice
	return r.deliver(ctx, u, func() { s.slice = old })
}

func (r *receiver) delta(ctx context.Context, m *pushv1.Delta) error {
	s := r.subscriber
	st := s.Status()
	switch {
	case r.snapshot != nil:
		return r.mistrust(errs.New(errs.Invalid, "push: DELTA within a snapshot"))
	case m.GetClusterId() != st.Held.ClusterID || m.GetBase() != st.Held.Revision || m.GetVersion() < m.GetBase():
		return r.mistrust(errs.New(errs.Conflict, "push: a delta from version %d to %d of cluster %x does not fit version %d of cluster %x",
			m.GetBase(), m.GetVersion(), m.GetClusterId(), st.Held.Revision, st.Held.ClusterID))
	case st.Frozen:
		return r.refuse(m.GetVersion(), s.frozenReason())
	}
	d, back, err := applyDelta(s.cfg.Source, s.slice, m)
	if err != nil {
		return r.mistrust(err)
	}
	version := nodestate.Version{ClusterID: m.GetClusterId(), Revision: m.GetVersion(), History: m.GetHistory()}
	return r.deliver(ctx, Update{Version: version, Delta: d, Changes: changesFromProto(m.GetChanges())}, func() { s.slice.Apply(back) })
}

// deliver journals an update, hands it to the consumer, waits for the outcome and acks it. The slice has the update
// already; back takes it out again.
func (r *receiver) deliver(ctx context.Context, u Update, back func()) error {
	s := r.subscriber
	outcomes := make(chan outcome, 1)
	u.Source, u.Base, u.Received, u.outcome = s.cfg.Source, s.Status().Held, time.Now(), outcomes
	appended := r.receive(ctx, &u)
	took := HopDuration{Hop: "receive", Duration: time.Since(r.began)}
	select {
	case s.updates <- u:
	case <-ctx.Done():
		return ctx.Err()
	}
	var o outcome
	select {
	case o = <-outcomes:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.first, r.useful = false, true
	if !o.applied {
		back()
		if appended {
			s.journaled(s.cfg.Journal.rollback(u.Version.Revision, u.Base.Revision))
		}
		s.log.Warn("a version was refused", "version", u.Version.Revision, "held", u.Base.Revision, "reason", o.reason)
		s.set(func(st *SubscriberStatus) { st.Problem = o.reason })
		return r.refuse(u.Version.Revision, o.reason)
	}
	s.mistrust = false
	s.hold(u.Version, r.accepting)
	r.accepting = false
	if s.cfg.Journal != nil {
		s.journaled(s.cfg.Journal.settle(s.slice, u.Version))
	}
	return r.stream.Send(ackOf(&pushv1.Ack{Version: u.Version.Revision, Outcome: &pushv1.Ack_Applied{
		Applied: &pushv1.Applied{Hops: hopsToProto(append([]HopDuration{took}, o.hops...))},
	}}))
}

// receive appends the update to the journal, as the hop "receive" of each of its changes. It says whether the journal
// has a record of it.
func (r *receiver) receive(ctx context.Context, u *Update) bool {
	s := r.subscriber
	spans := make([]*telemetry.Span, 0, len(u.Changes))
	for i, c := range u.Changes {
		if c.Traceparent == "" {
			continue
		}
		_, span := telemetry.StartFrom(ctx, c.Traceparent, "receive")
		span.SetRevision(c.Revision)
		span.SetObject(splitObject(c.Object))
		u.Changes[i].Traceparent = span.Traceparent()
		spans = append(spans, span)
	}
	var err error
	write := s.cfg.Journal != nil && (u.Base != u.Version || !u.Delta.Empty())
	if write {
		err = s.cfg.Journal.append(u.Base, u.Version, u.Delta, digestsOf(s.cfg.Source, s.slice))
		s.journaled(err)
	}
	for _, span := range spans {
		span.End(err)
	}
	return write && err == nil
}

// hold notes that a version is in the kernel. One that was accepted ends the freeze.
func (s *Subscriber) hold(v nodestate.Version, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Held, s.status.Synced, s.status.Problem = v, true, ""
	if accepted {
		s.status.Frozen, s.status.Offered, s.accepting = false, nodestate.Version{}, false
	}
}

// refuse acks a version that the node does not take.
func (r *receiver) refuse(version int64, reason string) error {
	r.first = false
	return r.stream.Send(ackOf(&pushv1.Ack{Version: version, Outcome: &pushv1.Ack_Refused{
		Refused: &pushv1.Refused{Reason: reason, HeldVersion: r.subscriber.Status().Held.Revision},
	}}))
}

func ackOf(a *pushv1.Ack) *pushv1.SubscribeRequest {
	return &pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: a}}
}

func hopsToProto(hops []HopDuration) []*pushv1.HopDuration {
	out := make([]*pushv1.HopDuration, len(hops))
	for i, hop := range hops {
		out[i] = &pushv1.HopDuration{Hop: hop.Hop, Nanos: hop.Duration.Nanoseconds()}
	}
	return out
}
