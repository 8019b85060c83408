package push

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// HopDuration is the duration of one step on the agent ("receive", "plan", "kernel"), by the agent's monotonic clock.
type HopDuration struct {
	Hop      string
	Duration time.Duration
}

// Update is one complete, verified step from the state that the node holds to a newer one. Exactly one of Applied and
// Refused must be called for each, from any goroutine; the next update comes afterwards.
type Update struct {
	Source nodestate.Source
	// Base is the version held before, Version the one held after.
	Base, Version nodestate.Version
	// Delta leads from the one to the other, also where the service sent a snapshot. It may be empty: the service then
	// confirms that the held state is its newest.
	Delta nodestate.Delta
	// Snapshot says that the service sent a snapshot, so that Changes may be incomplete.
	Snapshot bool
	// Changes are the writes that the update carries; their traceparent is that of the hop "receive" here.
	Changes []Change
	// Received is when the last message of the update arrived.
	Received time.Time

	outcome chan<- outcome
}

// outcome is what became of an update.
type outcome struct {
	applied bool
	reason  string
	hops    []HopDuration
}

// Applied says that the update is in the kernel, and how long each hop took, in the order in which they happened.
func (u Update) Applied(hops ...HopDuration) { u.settle(outcome{applied: true, hops: hops}) }

// Refused says that the update is not in the kernel, which holds what it held before, and why; for people.
func (u Update) Refused(reason string) { u.settle(outcome{reason: reason}) }

func (u Update) settle(o outcome) {
	select {
	case u.outcome <- o:
	default: // only the first counts
	}
}

// SubscriberConfig is what a Subscriber needs.
type SubscriberConfig struct {
	Source nodestate.Source
	// Node is the agent's node; empty where Member is set.
	Node string
	// Member is the name of the fabric member that subscribes, a replica of dns or ingress.
	Member string
	// Conn leads to the service.
	Conn grpc.ClientConnInterface
	// Journal keeps the last good state; nil keeps none, and the subscriber then begins with nothing. The subscriber is
	// its only user from then on, and closes it at the end of Run.
	Journal *Journal
	// Accepted is what the node was told to take; nil where nothing is remembered.
	Accepted *Accepted
	// Log gets freezes, refusals and lost streams; nil is silent.
	Log *slog.Logger
}

// Subscriber keeps one source's slice of one node: it subscribes, verifies, journals and delivers.
type Subscriber struct {
	cfg     SubscriberConfig
	log     *slog.Logger
	updates chan Update

	// Of the goroutine of Run.
	slice *nodestate.Slice
	// mistrust asks for a snapshot: what was sent last did not fit.
	mistrust bool

	// hurry cuts the pause between two streams.
	hurry chan struct{}

	mu        sync.Mutex
	status    SubscriberStatus
	accepting bool
	// cut ends the stream that is open; nil where none is.
	cut context.CancelFunc
}

// SubscriberStatus is what a subscriber can say of itself.
type SubscriberStatus struct {
	Source nodestate.Source
	// Held is the version in the kernel; zero where nothing is held.
	Held nodestate.Version
	// Offered is the version that froze the held state; meaningful while Frozen.
	Offered nodestate.Version
	Frozen  bool
	// Synced says that the service has confirmed Held, or sent it, on the stream that is open now.
	Synced bool
	// Connected says whether the service answers on an open stream.
	Connected bool
	// Problem is why the stream or the journal does not work, or why the last version was refused; empty where all is well.
	Problem string
}

// NewSubscriber makes a subscriber that holds what the journal holds. It starts nothing.
func NewSubscriber(cfg SubscriberConfig) *Subscriber {
	s := &Subscriber{
		cfg: cfg, log: cfg.Log, updates: make(chan Update), slice: nodestate.NewSlice(),
		hurry: make(chan struct{}, 1), status: SubscriberStatus{Source: cfg.Source},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("source", string(cfg.Source))
	if j := cfg.Journal; j != nil {
		s.slice, s.status.Held = j.Load()
		s.status.Problem = j.Problem()
		s.status.Offered = j.loaded.frozen
		s.status.Frozen = s.status.Offered != (nodestate.Version{})
	}
	return s
}

// Updates delivers one update at a time; it is never closed.
func (s *Subscriber) Updates() <-chan Update { return s.updates }

// Status is the present status.
func (s *Subscriber) Status() SubscriberStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Subscriber) set(change func(*SubscriberStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// Accept makes a frozen subscriber take the next complete snapshot, whatever its cluster and version. It says false
// where nothing was frozen.
func (s *Subscriber) Accept() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.status.Frozen {
		return false
	}
	s.accepting = true
	if s.cut != nil {
		s.cut()
	}
	select {
	case s.hurry <- struct{}{}:
	default:
	}
	return true
}

// Run subscribes until ctx is done, and again after each loss: soon after a stream that worked, with a growing, jittered
// pause after one that did not. It returns nil then; nothing that a service answers ends it, since the held state is
// worth more than none. The state that the journal gave must be in the kernel before Run is called: the subscriber tells
// the service that the node holds it.
func (s *Subscriber) Run(ctx context.Context) error {
	var pause backoff
	for ctx.Err() == nil {
		useful, err := s.session(ctx)
		level := slog.LevelWarn
		if useful {
			// Services bound the age of connections: a stream that worked ends now and then as a matter of course.
			pause, level = backoff{}, slog.LevelInfo
		}
		if ctx.Err() != nil {
			break
		}
		s.lost(ctx, level, err)
		s.wait(ctx, pause.next())
	}
	if s.cfg.Journal != nil {
		return s.cfg.Journal.Close()
	}
	return nil
}

// lost notes how a stream ended; each reason is logged once.
func (s *Subscriber) lost(ctx context.Context, level slog.Level, err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	s.mu.Lock()
	fresh := problem != s.status.Problem
	s.status.Problem = problem
	s.mu.Unlock()
	if err != nil && fresh {
		s.log.Log(ctx, level, "the stream ended, subscribing again", "err", err)
	}
}

func (s *Subscriber) wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-s.hurry:
	case <-timer.C:
	}
}

// session opens one stream and follows it to its end.
func (s *Subscriber) session(run context.Context) (useful bool, err error) {
	ctx, cancel := context.WithCancel(run)
	defer cancel()
	s.mu.Lock()
	s.cut = cancel
	accepting := s.accepting
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cut, s.status.Connected, s.status.Synced = nil, false, false
	}()
	stream, err := pushv1.NewPushServiceClient(s.cfg.Conn).Subscribe(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	hello := &pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Hello{Hello: s.hello(accepting)}}
	if err := stream.Send(hello); err != nil {
		_, err = stream.Recv() // Send says EOF only; Recv says why
		return false, err
	}
	r := &receiver{subscriber: s, stream: stream, accepting: accepting, first: true}
	err = r.follow(run)
	if ctx.Err() != nil {
		err = nil // Accept cut the stream, or Run ends
	}
	return r.useful, err
}

// hello says what is held. Without digests it asks for a snapshot; without a version, for any.
func (s *Subscriber) hello(accepting bool) *pushv1.Hello {
	held := s.Status().Held
	hello := &pushv1.Hello{Node: s.cfg.Node, Member: s.cfg.Member}
	if accepting || held == (nodestate.Version{}) {
		return hello
	}
	hello.ClusterId, hello.Version, hello.History = held.ClusterID, held.Revision, held.History
	if !s.mistrust {
		hello.Digests = digestsOf(s.cfg.Source, s.slice).proto(s.cfg.Source)
	}
	return hello
}
