package push_test

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
)

func randomness() *rand.Rand { return rand.New(rand.NewPCG(1, 1)) }

// memory is a WatermarkStore that counts.
type memory struct {
	mu     sync.Mutex
	held   push.Watermark
	writes []push.Watermark
	fail   error
}

func (m *memory) Watermark(context.Context, nodestate.Source) (push.Watermark, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held, m.fail
}

func (m *memory) PutWatermark(_ context.Context, w push.Watermark) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		m.held, m.writes = w, append(m.writes, w)
	}
	return m.fail
}

func (m *memory) state() (push.Watermark, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held, len(m.writes)
}

func (m *memory) set(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func write(t *testing.T, hub *push.Hub, store push.WatermarkStore) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- hub.WriteWatermarks(ctx, store) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestReceipts follows a watermark from a change to the ack of the last node.
func TestReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		store := &memory{held: push.Watermark{Revision: 7}}
		write(t, hub, store)
		nodes := map[string]push.Standing{"node-1": push.StandingMember, "node-2": push.StandingMember, "node-3": push.StandingNew}
		world := func(revision, settled int64, d map[string]nodestate.Delta) {
			t.Helper()
			p := push.Publication{Version: at(revision), Settled: settled, PerNode: d, Nodes: nodes}
			if err := hub.Publish(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			nodes = nil
		}
		expect := func(revision int64, laggards ...push.Laggard) {
			t.Helper()
			pass(5 * time.Second) // of the bubble's clock: every write that is due is done
			if w, _ := store.state(); w.Revision != revision || len(w.Laggards)+len(laggards) > 0 && !reflect.DeepEqual(w.Laggards, laggards) {
				t.Fatalf("watermark %+v, want %d %+v", w, revision, laggards)
			}
		}
		world(10, 10, map[string]nodestate.Delta{"node-1": upsert(pod("a", "1"))})
		expect(7, push.Laggard{Node: "node-1", Held: 7}, push.Laggard{Node: "node-2", Held: 7})

		one := dial(t, service, nothing())
		one.snapshot()
		one.apply(10)
		two := nothing()
		two.Node = "node-2"
		second := dial(t, service, two)
		begin, _, _ := second.snapshot()
		second.apply(begin.GetVersion())
		expect(10)

		world(11, 11, nil)
		expect(11) // unchanged counts without a message

		world(12, 11, nil)
		expect(11) // a derived write is missing
		world(13, 13, map[string]nodestate.Delta{"node-1": upsert(pod("a", "2"))})
		expect(11, push.Laggard{Node: "node-1", Held: 12}) // and then not on the node
		if d := one.delta(); d.GetVersion() != 13 {
			t.Fatalf("got %v", d)
		}
		one.refuse(13, 10, "no space")
		expect(11, push.Laggard{Node: "node-1", Held: 12, Refused: 13, Reason: "no space", Through: 13})
		one.delta()
		one.apply(13)
		synctest.Wait() // the clock stands still: whoever waits learns of it at once
		if w, _ := store.state(); w.Revision != 13 {
			t.Fatalf("the ack of the last node is not written at once: %+v", w)
		}
		expect(13)

		if err := one.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		one.fails("EOF")
		world(14, 14, nil)
		expect(13, push.Laggard{Node: "node-1", Held: 13}) // nobody speaks for it
		nodes = map[string]push.Standing{"node-1": push.StandingDead, "node-2": push.StandingMember}
		world(15, 15, nil)
		expect(15)

		one = dial(t, service, holding(13, pod("a", "2")))
		one.delta()
		expect(15) // it rejoins, and holds everything
		world(16, 16, map[string]nodestate.Delta{"node-1": upsert(pod("a", "3"))})
		expect(15, push.Laggard{Node: "node-1", Held: 15})
		receipts := hub.Receipts()
		if len(receipts) != 2 || receipts[0].Held != 15 || !receipts[0].Subscribed || receipts[1].Held != 16 {
			t.Errorf("receipts %+v", receipts)
		}
		if w := hub.Watermark(); w.Revision != 15 {
			t.Errorf("watermark %+v", w)
		}
	})
}

// TestHowFarARefusalSpeaks: of every World that has nothing for the node but what it refused, and is settled; never of a change
// that the node has not been sent yet.
func TestHowFarARefusalSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		store := &memory{}
		write(t, hub, store)
		world := func(revision, settled int64, d map[string]nodestate.Delta) {
			t.Helper()
			err := hub.Publish(t.Context(), push.Publication{
				Version: at(revision), Settled: settled, PerNode: d, Nodes: map[string]push.Standing{"node-1": push.StandingMember},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		expect := func(what string, want push.Laggard) {
			t.Helper()
			pass(150 * time.Millisecond) // what is due is written, and what was refused not sent again
			if w, _ := store.state(); len(w.Laggards) != 1 || w.Laggards[0] != want {
				t.Fatalf("%s: watermark %+v, want %+v", what, w, want)
			}
		}
		pod := func(spec string) map[string]nodestate.Delta {
			return map[string]nodestate.Delta{"node-1": upsert(pod("a", spec))}
		}
		world(10, 10, pod("1"))
		node := dial(t, service, nothing())
		node.snapshot()
		node.apply(10)
		world(11, 11, pod("2"))
		node.delta()
		world(12, 12, nil)
		refused := push.Laggard{Node: "node-1", Held: 10, Refused: 11, Reason: "no", Through: 12}
		node.refuse(11, 10, "no")
		expect("nothing of 12 concerns the node", refused)
		world(13, 12, nil)
		expect("13 lacks what is derived from it", refused)
		world(15, 15, nil)
		refused.Through = 15
		expect("15 is settled", refused)
		world(16, 16, pod("3"))
		expect("16 may mend it", refused)
		node.delta()
		world(17, 17, pod("4"))
		node.refuse(16, 10, "no")
		refused.Refused, refused.Through = 16, 16
		expect("17 was not sent when 16 was refused", refused)
		if d := node.delta(); d.GetVersion() != 17 {
			t.Fatalf("got %v", d)
		}
		node.apply(17)
		pass(time.Second)
		if w, _ := store.state(); w.Revision != 17 || len(w.Laggards) != 0 {
			t.Errorf("watermark %+v", w)
		}
	})
}

// TestReceiptsOfASilentNode: the stream of a node that froze, or lost its power, stays open for as long as nobody notices. Once
// the node is declared dead, nothing waits for that stream, until an ack comes through it.
func TestReceiptsOfASilentNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		store := &memory{}
		write(t, hub, store)
		world := func(revision int64, standing push.Standing) {
			t.Helper()
			err := hub.Publish(t.Context(), push.Publication{
				Version: at(revision), Settled: revision, Nodes: map[string]push.Standing{"node-1": standing},
				PerNode: map[string]nodestate.Delta{"node-1": upsert(pod("a", strconv.FormatInt(revision, 10)))},
			})
			if err != nil {
				t.Fatal(err)
			}
			pass(5 * time.Second)
		}
		expect := func(revision int64, laggards int) {
			t.Helper()
			if w, _ := store.state(); w.Revision != revision || len(w.Laggards) != laggards {
				t.Fatalf("watermark %+v, want %d and %d laggards", w, revision, laggards)
			}
		}
		world(10, push.StandingMember)
		node := dial(t, service, nothing())
		node.snapshot()
		node.apply(10)
		pass(5 * time.Second)
		expect(10, 0)
		world(11, push.StandingMember)
		expect(10, 1) // it says nothing
		world(12, push.StandingDead)
		expect(12, 0)
		world(13, push.StandingDead)
		expect(13, 0)
		node.delta()
		node.apply(11)
		pass(5 * time.Second)
		world(14, push.StandingDead)
		expect(13, 1) // it speaks again, and has not taken 14
	})
}

// TestRestartKeepsReceipts: a new hub begins at the stored watermark, and the nodes that subscribe bring their own.
func TestRestartKeepsReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, service := hubFor(t, nodestate.SourceCluster)
		store := &memory{held: push.Watermark{Revision: 40, Laggards: []push.Laggard{{Node: "node-2", Held: 40}}}}
		write(t, hub, store)
		err := hub.Publish(t.Context(), push.Publication{
			Version: at(50), Settled: 50, PerNode: map[string]nodestate.Delta{"node-1": upsert(pod("a", "1"))},
			Nodes: map[string]push.Standing{"node-1": push.StandingMember},
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if w, n := store.state(); w.Revision != 40 || n != 0 && w.Laggards[0].Node != "node-1" {
			t.Fatalf("before anybody subscribed: %+v", w)
		}
		dial(t, service, holding(45, pod("a", "1"))).delta()
		pass(time.Second)
		if w, _ := store.state(); w.Revision != 50 || len(w.Laggards) != 0 {
			t.Errorf("got %+v", w)
		}
	})
}

// TestWriterPace: writes are coalesced, idleness writes nothing, and a store that does not answer is waited out.
func TestWriterPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, _ := hubFor(t, nodestate.SourceCluster)
		store := &memory{}
		write(t, hub, store)
		publish(t, hub, nodestate.SourceCluster, 10, nodestate.Delta{})
		synctest.Wait()
		if w, n := store.state(); w.Revision != 10 || n != 1 {
			t.Fatalf("the first is not written at once: %+v after %d writes", w, n)
		}
		for i := range 100 { // one second at 100 Worlds per second
			publish(t, hub, nodestate.SourceCluster, 11+int64(i), nodestate.Delta{})
			pass(10 * time.Millisecond)
		}
		pass(time.Hour)
		w, n := store.state()
		if w.Revision != 110 || n > 12 {
			t.Fatalf("%+v after %d writes", w, n)
		}
		store.set(errs.New(errs.Unavailable, "etcd does not answer"))
		publish(t, hub, nodestate.SourceCluster, 200, nodestate.Delta{})
		pass(time.Minute)
		store.set(nil)
		pass(time.Minute)
		if w, more := store.state(); w.Revision != 200 || more != n+1 {
			t.Fatalf("%+v after %d writes", w, more)
		}
	})
}

// TestWriterWaitsForItsElection: a replica that does not lead has nothing to warn of, one that cannot write has, once.
func TestWriterWaitsForItsElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		hub := push.NewHub(nodestate.SourceCluster, push.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		store := &memory{}
		warnings := func(want int) {
			t.Helper()
			pass(time.Minute)
			if n := strings.Count(log.String(), "level=WARN"); n != want {
				t.Errorf("%d warnings, want %d:\n%s", n, want, log.String())
			}
		}
		publish(t, hub, nodestate.SourceCluster, 10, nodestate.Delta{})
		store.set(errs.WrapAs(errs.Unavailable, push.ErrNotLeading, "watermark"))
		write(t, hub, store)
		warnings(0)
		store.set(nil)
		pass(time.Minute)
		if w, _ := store.state(); w.Revision != 10 {
			t.Errorf("elected, it wrote %+v", w)
		}
		store.set(errs.New(errs.Unavailable, "etcd does not answer"))
		publish(t, hub, nodestate.SourceCluster, 11, nodestate.Delta{})
		warnings(1)
	})
}

// TestWriterFails: what waiting cannot mend ends the writer.
func TestWriterFails(t *testing.T) {
	hub := push.NewHub(nodestate.SourceCluster, push.Options{})
	publish(t, hub, nodestate.SourceCluster, 10, nodestate.Delta{})
	err := hub.WriteWatermarks(t.Context(), &memory{fail: errs.New(errs.Internal, "cannot be mended")})
	if !errs.Is(err, errs.Internal) {
		t.Errorf("got %v", err)
	}
}
