// Package receipts follows how far the services have come. In: the watermarks of the store. Out: the revision that every
// required service has passed, and the progress of chosen services towards a revision. It must not compute a watermark:
// each service writes its own.
package receipts

import (
	"context"
	"math"
	"sync"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
)

// Services says which services have a watermark, for people.
const Services = "cluster, ipam, svcproxy, policy, dns or ingress"

// HasWatermark says whether a service writes a watermark: one that pushes to nodes, or one whose replicas answer from their
// own World.
func HasWatermark(service string) bool {
	return nodestate.Tables(nodestate.Source(service)) != nil || service == "dns" || service == "ingress"
}

// Tracker knows the watermarks of all services. It is safe for concurrent use.
type Tracker struct {
	store    *store.Store
	required []string

	mu    sync.Mutex
	marks map[string]store.Watermark
}

// NewTracker makes a Tracker of the required services; it starts nothing.
func NewTracker(s *store.Store, required []string) *Tracker {
	return &Tracker{store: s, required: required, marks: map[string]store.Watermark{}}
}

// Run follows the store until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	for list, err := range t.store.WatchWatermarks(ctx) {
		if err != nil {
			return err
		}
		t.set(list)
	}
	return nil
}

func (t *Tracker) set(list []store.Watermark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks = byService(list)
}

func byService(list []store.Watermark) map[string]store.Watermark {
	out := make(map[string]store.Watermark, len(list))
	for _, w := range list {
		out[w.Service] = w
	}
	return out
}

// Required is the newest revision that the watermarks of all required services have passed; 0 while one of them has
// none. Where none is required nothing is held back, and it is the largest there is.
func (t *Tracker) Required() store.Revision {
	t.mu.Lock()
	defer t.mu.Unlock()
	low := store.Revision(math.MaxInt64)
	for _, service := range t.required {
		low = min(low, t.marks[service].Revision)
	}
	return low
}

// Progress is where services stand on the way to a revision.
type Progress struct {
	// Services are in the order in which they were asked for; one without a watermark stands at 0.
	Services []store.Watermark
	// Done: every one has passed the revision.
	Done bool
	// Refusal is the first laggard whose refusal speaks of the revision, so that no waiting helps; nil if none. One that refused
	// an earlier revision only, and has not been sent all there is for it, may take what comes.
	Refusal *Refusal
}

// Refusal is a node that refused what a service pushed.
type Refusal struct {
	Service string
	store.Laggard
}

// ProgressOf reads the watermarks for the services that are asked for.
func ProgressOf(list []store.Watermark, services []string, revision store.Revision) Progress {
	marks := byService(list)
	p := Progress{Done: true}
	for _, service := range services {
		w := marks[service]
		w.Service = service
		p.Services = append(p.Services, w)
		if w.Revision >= revision {
			continue
		}
		p.Done = false
		for _, lag := range w.Laggards {
			if p.Refusal == nil && lag.Refused != 0 && lag.Revision < revision && max(lag.Refused, lag.Through) >= revision {
				p.Refusal = &Refusal{service, lag}
			}
		}
	}
	return p
}
