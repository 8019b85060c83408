// Package liveness judges which nodes are alive, and writes what it judged into their Nodes.
//
// In: heartbeats, the Nodes of the World, a clock. Out: the Ready condition of Nodes, written by the elected replica
// whenever it differs from the judgement. Thresholds: NotReady after 1 s of silence, dead after 3 s.
//
// Invariants: nobody is judged on a silence that may be ours: a replica that begins to lead gives every node time to
// find it, and one whose own clock tick came late gives every node a fresh period. A Node that was never ready gets no
// condition, since receipts count from its first. What the store already says is not written again. The package must not
// touch Pods: what follows from a dead node is derived from its condition by the planner, and no Pod is ever deleted for
// it, so that a fault of ours which takes many nodes for dead at once costs no Pod.
package liveness

import (
	"sync"
	"time"

	"podwire.dev/services/cluster/internal/silence"
)

// Thresholds of silence.
const (
	NotReadyAfter = time.Second
	DeadAfter     = 3 * time.Second
)

// State is what a node is judged to be.
type State uint8

// The states. Unjudged is a node that nothing is known of yet: what the store says stands.
const (
	Unjudged State = iota
	Ready
	// NotReady is a node whose agent says so.
	NotReady
	// Silent is a node not heard for NotReadyAfter.
	Silent
	// Dead is a node not heard for DeadAfter.
	Dead
)

// Judgement is the state of one node.
type Judgement struct {
	State State
	// Reason is the agent's, of a node that is NotReady.
	Reason string
	// Heard is when its last heartbeat came; zero if none did since this replica began to lead.
	Heard time.Time
}

// Beat is one heartbeat.
type Beat struct {
	Node   string
	Ready  bool
	Reason string
}

// Ledger is who was heard when. It is safe for concurrent use: heartbeats are entered by their streams, so that they
// count from when they came, however long judging takes.
type Ledger struct {
	mu    sync.Mutex
	nodes map[string]*vital
	clock silence.Clock
}

type vital struct {
	// heard is when the node was last heard, or when its fresh period began.
	heard time.Time
	// last is the last heartbeat; nil before the first.
	last *Beat
	when time.Time // of last
}

// NewLedger makes an empty Ledger.
func NewLedger() *Ledger {
	return &Ledger{nodes: map[string]*vital{}, clock: silence.Clock{Patience: NotReadyAfter}}
}

// Restart forgets what was heard: the replica begins to lead.
func (l *Ledger) Restart(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = map[string]*vital{}
	l.clock.Restart(now)
}

// Beat enters a heartbeat.
func (l *Ledger) Beat(b Beat, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.vital(b.Node)
	v.heard, v.last, v.when = now, &b, now
}

func (l *Ledger) vital(node string) *vital {
	v := l.nodes[node]
	if v == nil {
		v = &vital{}
		l.nodes[node] = v
	}
	return v
}

// Tick notes that time is passing for this process, and says whether it had stood still: the tick came so late that
// heartbeats may wait unread. Then every node gets a fresh period.
func (l *Ledger) Tick(now time.Time) (stalled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh, stalled := l.clock.Tick(now)
	if !stalled {
		return false
	}
	for _, v := range l.nodes {
		if v.heard.Before(fresh) {
			v.heard = fresh
		}
	}
	return true
}

// Judge says what each of the named nodes is, and forgets all others.
func (l *Ledger) Judge(names []string, now time.Time) map[string]Judgement {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]Judgement, len(names))
	kept := make(map[string]*vital, len(names))
	for _, name := range names {
		v := l.nodes[name]
		if v == nil {
			v = &vital{heard: l.clock.Unheard(now)}
		}
		kept[name] = v
		out[name] = v.judge(now)
	}
	l.nodes = kept
	return out
}

func (v *vital) judge(now time.Time) Judgement {
	j := Judgement{Heard: v.when}
	unheard := now.Sub(v.heard)
	switch {
	case unheard >= DeadAfter:
		j.State = Dead
	case unheard >= NotReadyAfter:
		j.State = Silent
	case v.last == nil:
	case v.last.Ready:
		j.State = Ready
	default:
		j.State, j.Reason = NotReady, v.last.Reason
	}
	return j
}
