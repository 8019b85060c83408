package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Question is what is asked: a name as it came, with a final dot, in class IN.
type Question struct {
	Name string
	Type uint16
	// DNSSEC asks for signatures (DO), Unchecked for what does not validate (CD): both are passed on.
	DNSSEC, Unchecked bool
}

// Source says where an answer comes from.
type Source uint8

// The sources.
const (
	// None: nobody was asked.
	None Source = iota
	// Upstream: asked just now.
	Upstream
	// Cache: asked before, and kept.
	Cache
)

// Result is an answer.
type Result struct {
	// Rcode is the response code (RFC 1035 section 4.1.1).
	Rcode  int
	Source Source
	// Server that gave the answer; invalid where none did.
	Server netip.AddrPort
	// Stale says that the answer is past its time, and that no server gives a newer one.
	Stale bool
	// Failed says that Rcode is ours: no server gave an answer.
	Failed bool
	// Reason is for people.
	Reason string

	msg *dns.Msg // shared: not to be changed; nil for none
	age uint32
	cap uint32
}

// Options are what a Forwarder is made of. Zero values are the defaults.
type Options struct {
	// Stubs are zones with servers of their own.
	Stubs []Stub
	Cache CacheOptions
	// Avoid says of a server that asking it would be asking ourselves.
	Avoid func(netip.AddrPort) bool
	// Attempt is how long one server has for one answer: 1.2 s.
	Attempt time.Duration
	// Now is the clock.
	Now func() time.Time
	Log *slog.Logger
}

// Stub is a zone that is asked elsewhere than everything else. Of several the longest that fits is taken.
type Stub struct {
	// Zone in lower case, with a final dot.
	Zone      string
	Upstreams []netip.AddrPort
}

// Forwarder asks and keeps. It is safe for concurrent use.
type Forwarder struct {
	opts  Options
	cache *cache
	stubs []route
	rest  atomic.Pointer[[]*server]

	mu      sync.Mutex
	flights map[key]*flight
}

type route struct {
	zone    string
	servers []*server
}

// key is a question for the cache: names compare without regard to case.
type key struct {
	name              string
	kind              uint16
	dnssec, unchecked bool
}

func keyOf(q Question) key { return key{strings.ToLower(q.Name), q.Type, q.DNSSEC, q.Unchecked} }

// flight is a question that is on its way.
type flight struct {
	done   chan struct{}
	result Result
}

// defaultAttempt leaves room for three attempts in the five seconds that the C library waits.
const defaultAttempt = 1200 * time.Millisecond

// New makes a Forwarder without upstream servers of its own; it starts nothing.
func New(opts Options) *Forwarder {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Attempt == 0 {
		opts.Attempt = defaultAttempt
	}
	if opts.Avoid == nil {
		opts.Avoid = func(netip.AddrPort) bool { return false }
	}
	f := &Forwarder{opts: opts, cache: newCache(opts.Cache), flights: map[key]*flight{}}
	for _, s := range opts.Stubs {
		f.stubs = append(f.stubs, route{s.Zone, serversOf(s.Upstreams, nil)})
	}
	f.rest.Store(&[]*server{})
	return f
}

// SetUpstreams replaces the servers for everything but the stub zones, in the order of preference. What is known of the
// health of one that stays is kept.
func (f *Forwarder) SetUpstreams(addrs []netip.AddrPort) {
	list := serversOf(addrs, *f.rest.Load())
	f.rest.Store(&list)
}

func (f *Forwarder) serversFor(name string) (zone string, servers []*server) {
	servers = *f.rest.Load()
	for _, r := range f.stubs {
		if len(r.zone) > len(zone) && dns.IsSubDomain(r.zone, name) {
			zone, servers = r.zone, r.servers
		}
	}
	return zone, servers
}

// Kept answers from what is kept, if anything is.
func (f *Forwarder) Kept(q Question) (Result, bool) {
	return f.cache.get(keyOf(q), f.opts.Now())
}

// Ask answers from what is kept or asks. It always gives a result; where ctx ends first, a failure.
func (f *Forwarder) Ask(ctx context.Context, q Question) Result {
	k := keyOf(q)
	if r, ok := f.cache.get(k, f.opts.Now()); ok {
		return r
	}
	f.mu.Lock()
	if other, ok := f.flights[k]; ok {
		f.mu.Unlock()
		select {
		case <-other.done:
			return other.result
		case <-ctx.Done():
			return failure(dns.RcodeServerFailure, "the same question is on its way already, and has no answer yet")
		}
	}
	own := &flight{done: make(chan struct{})}
	f.flights[k] = own
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.flights, k)
		f.mu.Unlock()
		close(own.done)
	}()
	own.result = failure(dns.RcodeServerFailure, "the question could not be asked") // stands if ask does not return
	own.result = f.ask(ctx, q, k)
	return own.result
}

func failure(rcode int, reason string) Result {
	return Result{Rcode: rcode, Failed: true, Reason: reason}
}

// ask asks upstream. Others may be waiting for the answer, so it does not end with the caller.
func (f *Forwarder) ask(ctx context.Context, q Question, k key) Result {
	zone, servers := f.serversFor(k.name)
	usable := make([]*server, 0, len(servers))
	for _, s := range servers {
		if !f.opts.Avoid(s.addr) {
			usable = append(usable, s)
		}
	}
	switch {
	case len(servers) == 0:
		return failure(dns.RcodeRefused, "the name is outside of the cluster's zones, and no upstream server is configured (forward)")
	case len(usable) == 0:
		return failure(dns.RcodeRefused, fmt.Sprintf("every upstream server is an address of this service itself: %s", listed(servers)))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxAttempts*f.opts.Attempt)
	defer cancel()
	msg, from, err := f.exchange(ctx, q, k, usable)
	now := f.opts.Now()
	if err != nil {
		return f.cache.fail(k, now, fmt.Sprintf("no upstream server answers: %v", err))
	}
	r := Result{Rcode: msg.Rcode, Source: Upstream, Server: from.addr, msg: msg}
	if msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError {
		return f.cache.fail(k, now, fmt.Sprintf("%s answers %s", from.addr, dns.RcodeToString[msg.Rcode]))
	}
	r.Reason = "answered by " + from.addr.String()
	if zone != "" {
		r.Reason += ", which is asked for " + zone
	}
	r.cap = f.cache.put(k, now, msg, from.addr)
	return r
}

func listed(servers []*server) string {
	var out []string
	for _, s := range servers {
		out = append(out, s.addr.String())
	}
	return strings.Join(out, ", ")
}

// Records gives the sections of an answer for a reply: copies with the time that is left to each. asked is the question's
// name, whose letters replace those of what is kept.
func (r Result) Records(asked string) (answer, authority, extra []dns.RR) {
	if r.msg == nil {
		return nil, nil, nil
	}
	return r.copied(r.msg.Answer, asked), r.copied(r.msg.Ns, asked), r.copied(r.msg.Extra, asked)
}

// Authenticated says whether the upstream server vouches for the answer (AD).
func (r Result) Authenticated() bool { return r.msg != nil && r.msg.AuthenticatedData }

// staleTTL is what a client is told of an answer past its time, in seconds (RFC 8767 section 4).
const staleTTL = 30

func (r Result) copied(in []dns.RR, asked string) []dns.RR {
	out := make([]dns.RR, 0, len(in))
	for _, rr := range in {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue // it speaks of one hop only
		}
		rr = dns.Copy(rr)
		h := rr.Header()
		switch left := min(h.Ttl, r.cap); {
		case r.Stale:
			h.Ttl = staleTTL
		case left > r.age:
			h.Ttl = left - r.age
		default:
			h.Ttl = 0
		}
		if strings.EqualFold(h.Name, asked) {
			h.Name = asked
		}
		out = append(out, rr)
	}
	return out
}
