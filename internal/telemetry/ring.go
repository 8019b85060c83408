package telemetry

import (
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Object names the Kubernetes object that a hop is about.
type Object struct {
	// Kind is the etcd kind, such as pods or endpointslices.discovery.k8s.io.
	Kind string
	// Namespace is empty for a cluster-scoped object.
	Namespace string
	Name      string
}

// String is kind/namespace/name, or kind/name without a namespace.
func (o Object) String() string {
	switch {
	case o == Object{}:
		return ""
	case o.Namespace == "":
		return o.Kind + "/" + o.Name
	}
	return o.Kind + "/" + o.Namespace + "/" + o.Name
}

// Hop is one step of one change in this process.
type Hop struct {
	TraceID      trace.TraceID
	SpanID       trace.SpanID
	ParentSpanID trace.SpanID
	// Batch is the span that did the work together with other causes' (StartCause);
	// zero if the hop did its own.
	Batch trace.SpanID
	// Revision is the store revision that the hop carried; 0 before there is one.
	Revision int64
	Name     string
	Service  string
	Instance string
	Object   Object
	// Start is wall time, for display order inside one process only.
	Start time.Time
	// Duration is measured on the monotonic clock.
	Duration time.Duration
	// Error is the text of the error that the hop ended with; empty on success.
	Error string
}

// Kept says what a ring can still answer for.
type Kept struct {
	// Hops is the number of hops in the ring, Capacity the most it holds.
	Hops, Capacity int
	// Evicted is the number of hops that made room for newer ones.
	Evicted uint64
	// Oldest is the start of the oldest hop kept; zero for an empty ring.
	Oldest time.Time
	// Since is when the ring began: what happened before was another process's.
	Since time.Time
}

// From is the time from which on the ring holds every hop: its own beginning, until it
// first evicts one.
func (k Kept) From() time.Time {
	if k.Evicted == 0 {
		return k.Since
	}
	return k.Oldest
}

// Ring keeps the newest hops of a process in bounded memory.
type Ring struct {
	mu    sync.Mutex
	hops  []Hop // grows to capacity, then is overwritten from next on
	cap   int
	next  int
	total uint64
	since time.Time
}

// NewRing makes a ring for capacity hops.
func NewRing(capacity int) *Ring {
	return &Ring{cap: max(capacity, 1), since: time.Now()}
}

// Add keeps h, in the place of the oldest hop if the ring is full.
func (r *Ring) Add(h Hop) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.hops) < r.cap {
		r.hops = append(r.hops, h)
	} else {
		r.hops[r.next] = h
	}
	r.next = (r.next + 1) % r.cap
	r.total++
}

// FromTrace gives the kept hops of a trace in the order in which they ended, and
// what the ring can answer for, both of one moment.
func (r *Ring) FromTrace(id trace.TraceID) ([]Hop, Kept) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := Kept{Hops: len(r.hops), Capacity: r.cap, Evicted: r.total - uint64(len(r.hops)), Since: r.since}
	var out []Hop
	first := 0
	if len(r.hops) == r.cap {
		first = r.next
	}
	for i := range r.hops {
		h := &r.hops[(first+i)%len(r.hops)]
		if i == 0 {
			kept.Oldest = h.Start
		}
		if h.TraceID == id {
			out = append(out, *h)
		}
	}
	return out, kept
}
