// Package members keeps the Pods of the fabric members that are no nodes: the replicas of dns and ingress, which attend at
// the elected replica.
//
// In: what members say of themselves, the Pods and address blocks of the World, a clock. Out: a Pod of kube-system for each
// member, written by the elected replica whenever it differs; NotReady after 3 s of silence, deleted after 60 s, or as soon
// as another member attends with its underlay address.
//
// Invariants: as for nodes, nobody is judged on a silence that may be ours. A Pod carries only addresses that its member
// leases, and is never scheduled: nothing but its member makes it run. A Pod of another origin is left alone, and the
// member of its name is refused. What the store already says is not written again. The package must not decide who may
// attend under a name, which is the api's.
package members

import (
	"net/netip"
	"sync"
	"time"

	"podwire.dev/internal/names"
	"podwire.dev/services/cluster/internal/silence"
)

// Thresholds of silence.
const (
	SilentAfter = 3 * time.Second
	// EndedAfter is how long after the end of its stream a member counts: connections are replaced now and then as a matter
	// of course, and the next stream comes within one pause between two attempts.
	EndedAfter = time.Second
	GoneAfter  = 60 * time.Second
)

// MaxOfService bounds the members of one service, those that are not gone yet included: as many as ipam gives addresses.
const MaxOfService = 128

// Port is one port that a member serves.
type Port struct {
	Name     string
	Port     uint16
	Protocol string // Kubernetes' name
}

// Attendance is what a member says of itself.
type Attendance struct {
	// Name is that of its Pod, Service whose replica it is.
	Name, Service string
	// Underlay are its own addresses, the tunnel's end first; Addresses those that it leased.
	Underlay, Addresses []netip.Addr
	Ports               []Port
	Ready               bool
	// Reason is for people, where not ready.
	Reason string
}

// state is what a member is judged to be.
type state uint8

const (
	// unjudged is a member that nothing is known of yet: what the store says stands.
	unjudged state = iota
	attending
	// silent is a member not heard for SilentAfter, or whose stream ended.
	silent
	// replaced is a silent member whose underlay address another member has.
	replaced
	// gone is a member not heard for GoneAfter.
	gone
)

// Stream tells the streams of one member apart: only the end of the newest is the member's.
type Stream uint64

// ledger is who attended when. It is safe for concurrent use: signs of life are entered by their streams, so that they
// count from when they came, however long writing takes.
type ledger struct {
	mu      sync.Mutex
	members map[string]*vital
	streams Stream
	clock   silence.Clock
}

type vital struct {
	// heard is when the member was last heard, or when its fresh period began.
	heard  time.Time
	last   *Attendance // nil before the first
	stream Stream
	// ended is when the newest stream ended; zero while it is open.
	ended time.Time
}

func newLedger() *ledger {
	return &ledger{members: map[string]*vital{}, clock: silence.Clock{Patience: SilentAfter}}
}

// restart forgets who was heard: the replica begins to lead.
func (l *ledger) restart(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members = map[string]*vital{}
	l.clock.Restart(now)
}

func (l *ledger) open() Stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams++
	return l.streams
}

// full says whether a member that is not known would be one too many of its service.
func (l *ledger) full(a Attendance) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.members[a.Name] != nil {
		return false
	}
	count := 0
	for name := range l.members {
		if names.Member(a.Service, name) == "" {
			count++
		}
	}
	return count >= MaxOfService
}

// enter notes a sign of life and says whether it says anything new.
func (l *ledger) enter(a Attendance, s Stream, now time.Time) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.members[a.Name]
	if v == nil {
		v = &vital{}
		l.members[a.Name] = v
	}
	if s < v.stream {
		return false // of a process that another has replaced
	}
	news = v.last == nil || !v.last.equal(a) || !v.ended.IsZero()
	v.heard, v.last, v.stream, v.ended = now, &a, s, time.Time{}
	return news
}

// end notes that a stream ended.
func (l *ledger) end(name string, s Stream, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.members[name]; v != nil && v.stream == s {
		v.ended = now
	}
}

// tick notes that time is passing for this process, and says whether it had stood still: then every member gets a fresh
// period, since signs of life may wait unread.
func (l *ledger) tick(now time.Time) (stalled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh, stalled := l.clock.Tick(now)
	if !stalled {
		return false
	}
	for _, v := range l.members {
		if v.heard.Before(fresh) {
			v.heard, v.ended = fresh, time.Time{}
		}
	}
	return true
}

// judge says what the members are that are known here or named, and what they said last.
func (l *ledger) judge(names []string, now time.Time) map[string]judgement {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range names {
		if l.members[name] == nil {
			l.members[name] = &vital{heard: l.clock.Unheard(now)}
		}
	}
	out := make(map[string]judgement, len(l.members))
	for name, v := range l.members {
		out[name] = v.judge(now)
	}
	return out
}

// forget drops a member that is gone, unless it was heard meanwhile.
func (l *ledger) forget(name string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.members[name]; v != nil && v.judge(now).state == gone {
		delete(l.members, name)
	}
}

type judgement struct {
	state state
	last  *Attendance
}

func (v *vital) judge(now time.Time) judgement {
	j := judgement{last: v.last}
	unheard := now.Sub(v.heard)
	switch {
	case unheard >= GoneAfter:
		j.state = gone
	case unheard >= SilentAfter, !v.ended.IsZero() && now.Sub(v.ended) >= EndedAfter:
		j.state = silent
	case v.last != nil:
		j.state = attending
	}
	return j
}
