package forward

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// CacheOptions bound what is kept. Zero values are the defaults.
type CacheOptions struct {
	// Entries is how many answers are kept: 10,000.
	Entries int
	// MaxTTL bounds for how long an answer is kept: one hour.
	MaxTTL time.Duration
	// MaxNegativeTTL bounds for how long it is kept that there is nothing: 30 s.
	MaxNegativeTTL time.Duration
}

// The defaults, and what no configuration changes.
const (
	DefaultEntries        = 10_000
	DefaultMaxTTL         = time.Hour
	DefaultMaxNegativeTTL = 30 * time.Second
	// maxKeptBytes bounds one answer that is kept, on the wire: the entries times this bound the memory.
	maxKeptBytes = 4096
	// maxStale is how long past its time an answer may be used while no server renews it (RFC 8767 section 5).
	maxStale = time.Hour
	// A failure is remembered for a second first and for five at most (RFC 9520 section 3.2).
	firstFailure = time.Second
	maxFailure   = 5 * time.Second
	shards       = 16
)

// cache keeps answers; the least recently used goes first.
type cache struct {
	opts   CacheOptions
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	mu      sync.Mutex
	entries map[key]*entry
	// The ring of entries: after head the most recently used, before it the least.
	head entry
	room int
}

type entry struct {
	key        key
	prev, next *entry

	msg     *dns.Msg // nil: only failures so far
	from    netip.AddrPort
	cap     uint32
	stored  time.Time
	expires time.Time

	failedUntil time.Time
	failures    int
	failure     string
}

func newCache(opts CacheOptions) *cache {
	if opts.Entries == 0 {
		opts.Entries = DefaultEntries
	}
	if opts.MaxTTL == 0 {
		opts.MaxTTL = DefaultMaxTTL
	}
	if opts.MaxNegativeTTL == 0 {
		opts.MaxNegativeTTL = DefaultMaxNegativeTTL
	}
	c := &cache{opts: opts, seed: maphash.MakeSeed()}
	for i := range c.shards {
		s := &c.shards[i]
		s.entries = map[key]*entry{}
		s.head.prev, s.head.next = &s.head, &s.head
		s.room = max(1, opts.Entries/shards)
	}
	return c
}

func (c *cache) shard(k key) *shard {
	return &c.shards[maphash.String(c.seed, k.name)%shards]
}

// get is what is kept: an answer in its time, or, after a failure that is not long ago, the answer past its time or the
// failure itself.
func (c *cache) get(k key, now time.Time) (Result, bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[k]
	if e == nil {
		return Result{}, false
	}
	s.use(e)
	if e.msg != nil && now.Before(e.expires) {
		return e.result(now), true
	}
	if now.Before(e.failedUntil) {
		return e.failed(now), true
	}
	return Result{}, false
}

// put keeps an answer for its time, and gives the bound of the TTLs that it may be handed out with.
func (c *cache) put(k key, now time.Time, msg *dns.Msg, from netip.AddrPort) (bound uint32) {
	ttl, bound := c.lifetime(msg, k.kind)
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ttl == 0 || msg.Truncated || msg.Len() > maxKeptBytes {
		if e := s.entries[k]; e != nil {
			s.drop(e)
		}
		return bound
	}
	e := s.entry(k)
	*e = entry{
		key: k, prev: e.prev, next: e.next, msg: msg, from: from, cap: bound,
		stored: now, expires: now.Add(time.Duration(ttl) * time.Second),
	}
	return bound
}

// fail remembers that nobody answered, and gives what is left to say.
func (c *cache) fail(k key, now time.Time, why string) Result {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entry(k)
	pause := maxFailure
	if e.failures < 3 {
		pause = min(firstFailure<<e.failures, maxFailure)
	}
	e.failures++
	e.failedUntil, e.failure = now.Add(pause), why
	r := e.failed(now)
	if r.Failed {
		r.Source = None // the first time it is no memory
	}
	return r
}

func (e *entry) result(now time.Time) Result {
	age := max(0, now.Sub(e.stored))
	return Result{
		Rcode: e.msg.Rcode, Source: Cache, Server: e.from, msg: e.msg, age: uint32(age / time.Second), cap: e.cap,
		Reason: fmt.Sprintf("kept from %s, for another %s", e.from, e.expires.Sub(now).Round(time.Second)),
	}
}

// failed is what a failure leaves: the answer past its time, or nothing.
func (e *entry) failed(now time.Time) Result {
	if e.msg != nil && now.Before(e.expires.Add(maxStale)) {
		r := e.result(now)
		r.Stale = true
		r.Reason = fmt.Sprintf("kept from %s and past its time, as %s", e.from, e.failure)
		return r
	}
	return Result{Rcode: dns.RcodeServerFailure, Source: Cache, Failed: true, Reason: e.failure}
}

// entry is the entry of a key, made if need be at the cost of the least recently used.
func (s *shard) entry(k key) *entry {
	e := s.entries[k]
	if e == nil {
		if len(s.entries) >= s.room {
			s.drop(s.head.prev)
		}
		e = &entry{key: k}
		e.prev, e.next = e, e
		s.entries[k] = e
	}
	s.use(e)
	return e
}

// use moves an entry to the front.
func (s *shard) use(e *entry) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = &s.head, s.head.next
	e.prev.next, e.next.prev = e, e
}

func (s *shard) drop(e *entry) {
	e.prev.next, e.next.prev = e.next, e.prev
	delete(s.entries, e.key)
}

// lifetime is for how many seconds an answer may be kept, 0 for not at all, and the bound of the TTLs in it.
func (c *cache) lifetime(msg *dns.Msg, kind uint16) (ttl, bound uint32) {
	negative := true
	ttl = uint32(c.opts.MaxTTL / time.Second)
	for _, rr := range msg.Answer {
		ttl = min(ttl, rr.Header().Ttl)
		if rr.Header().Rrtype == kind {
			negative = false
		}
	}
	if msg.Rcode == dns.RcodeSuccess && !negative {
		return ttl, uint32(c.opts.MaxTTL / time.Second)
	}
	// RFC 2308 section 5: without an SOA there is no saying for how long it holds.
	bound = uint32(c.opts.MaxNegativeTTL / time.Second)
	for _, rr := range msg.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			bound = min(bound, soa.Hdr.Ttl, soa.Minttl)
			return min(ttl, bound), bound
		}
	}
	return 0, bound
}
