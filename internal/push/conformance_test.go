package push_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
)

// runs is the number of random histories per source. They run in a bubble whose clock stands still while anything runs,
// and which fails if a goroutine outlives it.
const runs = 500

// pass lets the bubble's clock go on: it jumps, once everybody waits, to the next timer, and what that starts runs.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// TestConformance runs random histories against random faults: whatever happened, once messages arrive again each agent
// holds what was planned for it, and nothing else.
func TestConformance(t *testing.T) {
	for _, source := range []nodestate.Source{
		nodestate.SourceCluster, nodestate.SourceIPAM, nodestate.SourceSvcproxy, nodestate.SourcePolicy,
	} {
		t.Run(string(source), func(t *testing.T) {
			for seed := range runs {
				synctest.Test(t, func(t *testing.T) { newHistory(t, source, uint64(seed)).run() })
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

const cluster = 0xc1

// history is one random run: a model of what is planned, a service, and three agents.
type history struct {
	t       *testing.T
	source  nodestate.Source
	rand    *rand.Rand
	hub     *push.Hub
	service *pushtest.Service
	faults  *pushtest.Faults
	agents  []*pushtest.Agent
	version int64
	planned map[string]*nodestate.Slice

	mu   sync.Mutex
	past []world
	// slow has a gate for each node's agent, shut while the agent is slow.
	slow map[string]chan struct{}
}

// world is what was planned for each node at a version.
type world struct {
	version int64
	planned map[string]*nodestate.Slice
}

func newHistory(t *testing.T, source nodestate.Source, seed uint64) *history {
	h := &history{
		t: t, source: source, rand: rand.New(rand.NewPCG(seed, 2)), faults: pushtest.NewFaults(seed),
		version: 10, planned: map[string]*nodestate.Slice{}, slow: map[string]chan struct{}{},
	}
	rate := []float64{0, 0.05, 0.2}[seed%3]
	h.faults.Drop, h.faults.Repeat, h.faults.Swap, h.faults.Cut = rate, rate, rate, rate
	for i := range 3 {
		h.planned[h.key(fmt.Sprintf("node-%d", i))] = nodestate.NewSlice()
	}
	h.past = []world{{h.version, maps.Clone(h.planned)}}
	h.hub = h.newHub()
	h.service = pushtest.Serve(t, h.hub)
	conn := h.service.Dial(t, h.faults)
	for i := range 3 {
		a := &pushtest.Agent{Source: source, Node: fmt.Sprintf("node-%d", i), Dir: t.TempDir(), Conn: conn}
		a.Planned = func(revision int64) *nodestate.Slice { return h.at(revision, a.Node) }
		gate := make(chan struct{})
		close(gate)
		h.slow[a.Node] = gate
		refusals := rand.New(rand.NewPCG(seed, 3+uint64(i)))
		a.Judge = func(ctx context.Context, _ push.Update) string {
			select {
			case <-h.gate(a.Node):
			case <-ctx.Done():
			}
			if refusals.IntN(8) == 0 {
				return "no"
			}
			return ""
		}
		h.agents = append(h.agents, a)
	}
	for _, a := range h.agents {
		a.Start(t)
	}
	return h
}

func (h *history) key(node string) string {
	if push.Shared(h.source) {
		return ""
	}
	return node
}

// newHub is a hub after a restart of its process: it knows the World as it is now.
func (h *history) newHub() *push.Hub {
	hub := push.NewHub(h.source, push.Options{Authorize: pushtest.Anybody, History: 30})
	first := push.Publication{PerNode: map[string]nodestate.Delta{}}
	for node, s := range h.planned {
		h.put(&first, node, nodestate.Diff(nodestate.NewSlice(), s))
	}
	h.publish(hub, first)
	return hub
}

func (h *history) put(p *push.Publication, node string, d nodestate.Delta) {
	if node == "" {
		p.Shared, p.PerNode = d, nil
		return
	}
	p.PerNode[node] = d
}

func (h *history) publish(hub *push.Hub, p push.Publication) {
	p.Version = nodestate.Version{ClusterID: cluster, Revision: h.version}
	p.Settled = h.version
	p.Changes = []push.Change{{Revision: h.version, Object: "pods/default/x"}}
	if err := hub.Publish(h.t.Context(), p); err != nil {
		h.t.Fatalf("publish version %d: %v", h.version, err)
	}
}

// change publishes a new World.
func (h *history) change() {
	h.version += 1 + int64(h.rand.IntN(3))
	p := push.Publication{PerNode: map[string]nodestate.Delta{}}
	for _, node := range slices.Sorted(maps.Keys(h.planned)) {
		s := h.planned[node]
		next := s.Clone()
		for range h.rand.IntN(4) {
			next.Upsert(pushtest.Row(h.rand, h.source))
		}
		for _, table := range nodestate.Tables(h.source) {
			for _, r := range next.Rows(table) {
				if h.rand.IntN(5) == 0 {
					next.Remove(nodestate.RefOf(r))
				}
			}
		}
		if h.rand.IntN(25) == 0 {
			next = nodestate.NewSlice()
		}
		h.put(&p, node, nodestate.Diff(s, next))
		h.planned[node] = next
	}
	h.mu.Lock()
	h.past = append(h.past, world{h.version, maps.Clone(h.planned)})
	h.mu.Unlock()
	h.publish(h.hub, p)
}

// at is what was planned for a node at a revision.
func (h *history) at(revision int64, node string) *nodestate.Slice {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range slices.Backward(h.past) {
		if w.version <= revision {
			return w.planned[h.key(node)]
		}
	}
	return nodestate.NewSlice()
}

func (h *history) step() {
	a := h.agents[h.rand.IntN(len(h.agents))]
	switch h.rand.IntN(14) {
	case 0:
		a.Restart(h.t)
	case 1:
		h.hub = h.newHub()
		h.service.Replace(h.t, h.hub)
	case 2:
		h.faults.CutAll()
	case 3:
		h.toggle(a)
	case 4, 5:
		synctest.Wait()
	default:
		h.change()
	}
}

// gate is closed while the agent of a node is quick.
func (h *history) gate(node string) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.slow[node]
}

// toggle makes an agent slow, or quick again.
func (h *history) toggle(a *pushtest.Agent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !open(h.slow[a.Node]) {
		h.slow[a.Node] = make(chan struct{})
	}
}

// open opens a gate, and says whether it was shut.
func open(gate chan struct{}) bool {
	select {
	case <-gate:
		return false
	default:
		close(gate)
		return true
	}
}

// synced waits until the service has confirmed what the agent holds. The bubble's clock jumps to the next retry.
func (h *history) synced(a *pushtest.Agent) {
	st := a.Subscriber().Status()
	for range 1000 {
		if st.Synced && !st.Frozen && st.Problem == "" {
			return
		}
		pass(time.Second)
		st = a.Subscriber().Status()
	}
	h.t.Errorf("agent %s is not in sync: %+v", a.Node, st)
}

func (h *history) run() {
	for range 6 + h.rand.IntN(20) {
		h.step()
	}
	synctest.Wait()
	for _, a := range h.agents {
		open(h.gate(a.Node))
	}
	h.faults.Heal()
	for _, a := range h.agents {
		want := h.planned[h.key(a.Node)]
		a.Await(h.t, func(kernel *nodestate.Slice, held nodestate.Version) bool {
			return held.ClusterID == cluster && pushtest.Same(h.source, kernel, want)
		})
	}
	for _, a := range h.agents {
		h.synced(a)
		if kernel, _ := a.Kernel(); !pushtest.Same(h.source, kernel, h.planned[h.key(a.Node)]) {
			h.t.Errorf("agent %s diverged", a.Node)
		}
		a.Restart(h.t)
	}
	if err := h.hub.Close(context.Background(), "end"); err != nil {
		h.t.Error(err)
	}
}
