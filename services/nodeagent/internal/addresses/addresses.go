package addresses

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"podwire.dev/internal/errs"
)

// Defaults of Config.
const (
	// DefaultQuarantine is the least time between two pods with the same address.
	DefaultQuarantine = 60 * time.Second
	// DefaultLowWater is a quarter of a default block.
	DefaultLowWater  = 16
	DefaultMaxBlocks = 16
	leaseTimeout     = 5 * time.Second
	leasePause       = time.Second
	// upkeep is how often the quarantine is looked at where nothing else happens.
	upkeep = 5 * time.Second
)

// Live is a pod's link as the kernel has it.
type Live struct {
	UID string
	// Addresses are those routed to the link, in any order; none for a link that was not finished.
	Addresses []netip.Addr
}

// Lessor gives blocks: ipam's AllocationService.
type Lessor interface {
	// LeaseBlock gives the node one more block of a family, 4 or 6. The same request gives the same block.
	LeaseBlock(ctx context.Context, family int, request string) (netip.Prefix, error)
}

// Clock is the time, which tests set.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

// Config is what an Allocator needs.
type Config struct {
	// Path is the file that holds the state; its directory must exist.
	Path string
	// Families of every pod, the primary one first.
	Families []Family
	Lessor   Lessor
	// Quarantine is the least time between two pods with the same address; 0: DefaultQuarantine.
	Quarantine time.Duration
	// LowWater is the number of free addresses of a family below which another block is leased; 0: DefaultLowWater.
	LowWater int
	// MaxBlocks bounds the blocks of a family, so that a cluster that cannot end quarantines does not give one node the
	// whole range; 0: DefaultMaxBlocks.
	MaxBlocks int
	// Clock is nil for the machine's.
	Clock Clock
	Log   *slog.Logger
}

// Allocator gives addresses to pods. Its methods may be called at the same time; those that change something need Run.
type Allocator struct {
	cfg       Config
	current   atomic.Pointer[pool]
	watermark atomic.Int64
	calls     chan call
	// hurry makes Run look whether a block is needed.
	hurry chan struct{}

	mu sync.Mutex
	// leaseProblem is why the last lease of a family failed.
	leaseProblem map[Family]error
}

// call is a change that Run is asked to make.
type call struct {
	change func(*pool) error
	done   chan error
}

// Open reads the state and compares it with the live links. It starts nothing and writes nothing; Run does.
func Open(cfg Config, live []Live) (*Allocator, error) {
	if len(cfg.Families) == 0 || cfg.Path == "" || cfg.Lessor == nil {
		return nil, errs.New(errs.Internal, "addresses: path, families and lessor are required")
	}
	cfg.Quarantine = orDefault(cfg.Quarantine, DefaultQuarantine)
	cfg.LowWater = orDefault(cfg.LowWater, DefaultLowWater)
	cfg.MaxBlocks = orDefault(cfg.MaxBlocks, DefaultMaxBlocks)
	if cfg.Clock == nil {
		cfg.Clock = machineClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p, err := load(cfg.Path)
	if err != nil {
		return nil, err
	}
	p.reconcile(live, cfg.Families, cfg.Clock.Now())
	a := &Allocator{cfg: cfg, calls: make(chan call), hurry: make(chan struct{}, 1), leaseProblem: map[Family]error{}}
	a.current.Store(p)
	return a, nil
}

func orDefault[N int | time.Duration](n, otherwise N) N {
	if n == 0 {
		return otherwise
	}
	return n
}

type machineClock struct{}

func (machineClock) Now() time.Time                         { return time.Now() }
func (machineClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Run owns the state until ctx ends. Call it once.
func (a *Allocator) Run(ctx context.Context) error {
	var leasing sync.WaitGroup
	defer leasing.Wait()
	// What the comparison with the links found is on disk before anything builds on it.
	if err := save(a.cfg.Path, a.current.Load()); err != nil {
		a.cfg.Log.ErrorContext(ctx, "the state of addresses is not on disk", "error", err)
	}
	leasing.Go(func() { a.lease(ctx) })
	for {
		select {
		case c := <-a.calls:
			c.done <- a.apply(c.change)
		case <-ctx.Done():
			return nil
		}
	}
}

// apply changes a copy, writes it, and only then publishes it.
func (a *Allocator) apply(change func(*pool) error) error {
	next := a.current.Load().clone()
	if err := change(next); err != nil {
		return err
	}
	if err := save(a.cfg.Path, next); err != nil {
		return err
	}
	a.current.Store(next)
	a.look()
	return nil
}

func (a *Allocator) do(ctx context.Context, change func(*pool) error) error {
	c := call{change, make(chan error, 1)}
	select {
	case a.calls <- c:
	case <-ctx.Done():
		return errs.WrapAs(errs.Unavailable, ctx.Err(), "addresses: the allocator does not run")
	}
	return <-c.done // apply does not wait for anybody
}

func (a *Allocator) look() {
	select {
	case a.hurry <- struct{}{}:
	default:
	}
}

func (a *Allocator) rule() rule {
	return rule{now: a.cfg.Clock.Now(), quarantine: a.cfg.Quarantine, watermark: a.watermark.Load()}
}

// Allocate gives a pod one address of each family, the primary one first; again for the same pod, the same ones.
// Errors: Exhausted where none may be given now, with the reason, also where no block could be leased yet; Unavailable
// where Run does not run. Both pass by themselves: try again.
func (a *Allocator) Allocate(ctx context.Context, uid string) ([]netip.Addr, error) {
	if held, ok := a.current.Load().Used[uid]; ok {
		return slices.Clone(held), nil
	}
	var out []netip.Addr
	err := a.do(ctx, func(p *pool) (err error) {
		out, err = p.allocate(uid, a.cfg.Families, a.rule())
		return err
	})
	if err == nil {
		return slices.Clone(out), nil
	}
	a.look()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.cfg.Families {
		if problem := a.leaseProblem[f]; problem != nil && errs.Is(err, errs.Exhausted) {
			return nil, errs.Wrap(fmt.Errorf("%w; another block could not be leased: %w", err, problem), "pod %s", uid)
		}
	}
	return nil, err
}

// Release takes the addresses of a pod back into quarantine. removal is the store revision at which the pod was gone
// (deleted, or finished), 0 while it is not known; a second call tells it, and does not prolong the quarantine.
func (a *Allocator) Release(ctx context.Context, uid string, removal int64) error {
	if now := a.current.Load(); len(now.Used[uid]) == 0 && !slices.ContainsFunc(now.Released, func(x released) bool {
		return x.UID == uid && x.Removal == 0
	}) {
		return nil
	}
	return a.do(ctx, func(p *pool) error {
		p.release(uid, removal, a.cfg.Clock.Now())
		return nil
	})
}

// Unresolved are the pods, by UID and sorted, that gave addresses back and whose removal is not known.
func (a *Allocator) Unresolved() []string {
	var out []string
	for _, x := range a.current.Load().Released {
		if x.Removal == 0 {
			out = append(out, x.UID)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Watermark takes over what heartbeats bring: the revision that every required service has passed. The newest word
// counts, also where it is lower.
func (a *Allocator) Watermark(revision int64) {
	if a.watermark.Swap(revision) != revision {
		a.look()
	}
}

// Granted takes over the node's own row of ipam's members: blocks that the node did not know of, and its tunnel
// addresses. A block that the row had and has no longer is not the node's any more: nothing of it is given again. One
// that the row never had may have been leased a moment ago.
func (a *Allocator) Granted(ctx context.Context, blocks []netip.Prefix, tunnels []netip.Addr) error {
	return a.do(ctx, func(p *pool) error {
		p.grant(blocks, tunnels)
		return nil
	})
}

// Blocks tells how full each block is, in the order of the leases.
func (a *Allocator) Blocks() []Usage { return a.current.Load().usage(a.rule()) }

// lease gets blocks as they are needed.
func (a *Allocator) lease(ctx context.Context) {
	skip := map[Family]int{}
	for ctx.Err() == nil {
		pause := upkeep
		for _, f := range a.cfg.Families {
			if c := a.current.Load().count(f, a.rule()); c.free >= a.cfg.LowWater || c.blocks >= a.cfg.MaxBlocks {
				continue
			}
			if err := a.leaseOne(ctx, f, skip); err != nil {
				pause = leasePause
			}
		}
		wake := a.hurry
		if pause == leasePause {
			wake = nil // an answer that failed is not asked for again at once
		}
		select {
		case <-wake:
		case <-a.cfg.Clock.After(pause):
		case <-ctx.Done():
		}
	}
}

// leaseOne gets one block. The request id counts the node's blocks, so that an answer that was lost, and a state that
// was lost, lead to the same block again; skip counts the ids that only led to blocks that were held already. A block that
// Granted brought while the answer was on its way is the block that was asked for.
func (a *Allocator) leaseOne(ctx context.Context, f Family, skip map[Family]int) error {
	before := a.current.Load()
	n := before.count(f, a.rule()).blocks + skip[f] + 1
	lctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	leased, err := a.cfg.Lessor.LeaseBlock(lctx, int(f), fmt.Sprintf("%s-block-%d", f, n))
	if err == nil && (!leased.IsValid() || familyOf(leased.Addr()) != f) {
		err = errs.New(errs.Invalid, "addresses: ipam gave %s for an %s block", leased, f)
	}
	if err == nil {
		err = a.do(ctx, func(p *pool) error {
			if !p.add(block{Prefix: leased}) && (before.has(leased) || !p.has(leased)) {
				skip[f]++
				return errs.New(errs.Conflict, "addresses: ipam gave %s, which is held already or cannot be used", leased)
			}
			return nil
		})
	}
	a.mu.Lock()
	said := a.leaseProblem[f]
	a.leaseProblem[f] = err
	a.mu.Unlock()
	switch {
	case err == nil:
		a.cfg.Log.InfoContext(ctx, "leased a block", "block", leased.String())
		a.look()
	case ctx.Err() == nil && (said == nil || said.Error() != err.Error()):
		a.cfg.Log.WarnContext(ctx, "lease another block", "family", f.String(), "error", err)
	}
	return err
}
