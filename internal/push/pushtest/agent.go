package pushtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
)

// Agent is a subscriber with a kernel that is a slice.
type Agent struct {
	// Source and Node say what is subscribed; Dir keeps the journal, empty for none; Conn leads to the service.
	Source nodestate.Source
	Node   string
	Dir    string
	Conn   grpc.ClientConnInterface
	// Accepted is what the agent's node was told to take; nil where it remembers nothing.
	Accepted *push.Accepted
	// Judge decides over an update before it is in the kernel: a reason refuses it. It may block, until ctx is done. Nil
	// applies all.
	Judge func(ctx context.Context, u push.Update) (reason string)
	// Planned gives what was planned for the node at a revision; if set, every state is compared with it.
	Planned func(revision int64) *nodestate.Slice

	t          testing.TB
	subscriber *push.Subscriber
	stop       context.CancelFunc
	done       sync.WaitGroup

	mu      sync.Mutex
	kernel  *nodestate.Slice
	held    nodestate.Version
	changed chan struct{}
	updates []push.Update
}

// Start begins with what the journal holds, which it puts in the kernel. It ends with the test, or by Kill.
func (a *Agent) Start(t testing.TB) {
	a.t = t
	cfg := push.SubscriberConfig{Source: a.Source, Node: a.Node, Conn: a.Conn, Accepted: a.Accepted}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed == nil {
		a.changed = make(chan struct{})
		t.Cleanup(a.Kill)
	}
	a.kernel, a.held = nodestate.NewSlice(), nodestate.Version{}
	if a.Dir != "" {
		j, err := push.OpenJournal(a.Dir, a.Source)
		if err != nil {
			t.Fatalf("journal: %v", err)
		}
		cfg.Journal = j
		a.kernel, a.held = j.Load()
	}
	a.subscriber = push.NewSubscriber(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	sub := a.subscriber
	a.done.Go(func() {
		if err := sub.Run(ctx); err != nil {
			t.Errorf("agent %s: %v", a.Node, err)
		}
	})
	a.done.Go(func() { a.consume(ctx, sub) })
}

// Kill ends the agent wherever it is, as kill -9 would: an update under way is neither applied nor refused.
func (a *Agent) Kill() {
	if a.stop != nil {
		a.stop()
		a.done.Wait()
	}
}

// Restart kills and starts, and checks that the journal goes forward only.
func (a *Agent) Restart(t testing.TB) {
	a.Kill()
	before := a.held
	a.Start(t)
	if a.Dir == "" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held.ClusterID == before.ClusterID && a.held.Revision < before.Revision {
		t.Errorf("agent %s: the journal holds version %d, the kernel held %d", a.Node, a.held.Revision, before.Revision)
	}
	a.compare()
}

// compare checks the kernel against what was planned for the version that it claims.
func (a *Agent) compare() {
	if a.Planned == nil || a.held == (nodestate.Version{}) {
		return
	}
	if !Same(a.Source, a.kernel, a.Planned(a.held.Revision)) {
		a.t.Errorf("agent %s diverged from what was planned at version %d", a.Node, a.held.Revision)
	}
}

func (a *Agent) consume(ctx context.Context, sub *push.Subscriber) {
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-sub.Updates():
			a.take(ctx, u)
		}
	}
}

func (a *Agent) take(ctx context.Context, u push.Update) {
	a.mu.Lock()
	if u.Base != a.held {
		a.t.Errorf("agent %s: update from %v, but %v is held", a.Node, u.Base, a.held)
	}
	a.mu.Unlock()
	reason := ""
	if a.Judge != nil {
		reason = a.Judge(ctx, u)
	}
	if ctx.Err() != nil {
		return
	}
	a.mu.Lock()
	if reason == "" {
		a.kernel.Apply(u.Delta)
		a.held = u.Version
		a.compare()
		a.updates = append(a.updates, u)
	}
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	if reason != "" {
		u.Refused(reason)
		return
	}
	u.Applied(push.HopDuration{Hop: "kernel", Duration: 1})
}

// Subscriber is the agent's subscriber.
func (a *Agent) Subscriber() *push.Subscriber { return a.subscriber }

// Kernel is a copy of what the kernel holds, and its version.
func (a *Agent) Kernel() (*nodestate.Slice, nodestate.Version) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.kernel.Clone(), a.held
}

// Updates are the updates applied so far.
func (a *Agent) Updates() []push.Update {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]push.Update(nil), a.updates...)
}

// hang is how long Await waits before it says what is wrong; generous, since time is no part of any test here.
const hang = 5 * time.Minute

// Await waits until ok says that the kernel holds what is expected.
func (a *Agent) Await(t testing.TB, ok func(kernel *nodestate.Slice, held nodestate.Version) bool) {
	t.Helper()
	guard := time.NewTimer(hang)
	defer guard.Stop()
	for {
		a.mu.Lock()
		changed, good := a.changed, ok(a.kernel, a.held)
		a.mu.Unlock()
		if good {
			return
		}
		select {
		case <-changed:
		case <-guard.C:
			t.Fatalf("agent %s does not hold what is expected: %+v", a.Node, a.subscriber.Status())
		}
	}
}

// Same says whether two slices of a source have the same rows.
func Same(source nodestate.Source, a, b *nodestate.Slice) bool {
	for _, table := range nodestate.Tables(source) {
		if a.Digest(table) != b.Digest(table) {
			return false
		}
	}
	return a.Len() == b.Len()
}
