// Package resolver puts the cluster's zone and the forwarding together: what a question is answered from.
//
// In: Views of the zone as they are made, questions. Out: the zone's answer, or what others say. Invariants: a question
// reads one View from its beginning to its end; a name of the zone is never asked elsewhere; before the first View nothing
// is answered, as a name that is not known yet must not be denied. The package must not know of messages or sockets.
package resolver

import (
	"context"
	"sync/atomic"

	"github.com/miekg/dns"

	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/zone"
)

// Resolver answers. It is safe for concurrent use.
type Resolver struct {
	forwarder *forward.Forwarder
	view      atomic.Pointer[zone.View]
	turn      atomic.Uint32
}

// New makes a Resolver that has no View yet.
func New(f *forward.Forwarder) *Resolver { return &Resolver{forwarder: f} }

// Publish replaces the View.
func (r *Resolver) Publish(v *zone.View) { r.view.Store(v) }

// View is the newest View; nil before the first.
func (r *Resolver) View() *zone.View { return r.view.Load() }

// Zone has the newest View answer into a; false before the first.
func (r *Resolver) Zone(q zone.Question, a *zone.Answer) bool {
	v := r.view.Load()
	if v == nil {
		return false
	}
	q.Turn = r.turn.Add(1)
	v.Answer(q, a)
	return true
}

// Effort says how far to go for a name that is not the zone's.
type Effort uint8

// The efforts.
const (
	// Recursive asks others.
	Recursive Effort = iota
	// Kept looks only at what was asked before.
	Kept
)

// Beyond answers a question for which the zone's Answer is Outside or Leads.
func (r *Resolver) Beyond(ctx context.Context, q forward.Question, effort Effort) forward.Result {
	if effort == Recursive {
		return r.forwarder.Ask(ctx, q)
	}
	if kept, ok := r.forwarder.Kept(q); ok {
		return kept
	}
	return forward.Result{
		Rcode: dns.RcodeRefused, Failed: true,
		Reason: "the name is outside of the cluster's zones, forwarding was not asked for, and no answer is kept",
	}
}
