package addresses

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"podwire.dev/internal/errs"
)

// ipam leases blocks of 16 addresses, the same for the same request.
type ipam struct {
	mu     sync.Mutex
	asked  map[string]netip.Prefix
	fail   error
	called chan struct{}
}

func newIPAM() *ipam {
	return &ipam{asked: map[string]netip.Prefix{}, called: make(chan struct{}, 1000)}
}

func (i *ipam) LeaseBlock(_ context.Context, family int, request string) (netip.Prefix, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.called <- struct{}{}
	if i.fail != nil {
		return netip.Prefix{}, i.fail
	}
	p, ok := i.asked[request]
	if !ok {
		n := byte(len(i.asked))
		p = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 28)
		if family == 6 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: n << 4}), 124)
		}
		i.asked[request] = p
	}
	return p, nil
}

func (i *ipam) set(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fail = err
}

// hands is a clock that the test moves.
type hands struct {
	mu     sync.Mutex
	now    time.Time
	alarms map[chan time.Time]time.Time
	asked  chan struct{}
}

func (h *hands) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *hands) After(d time.Duration) <-chan time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(chan time.Time, 1)
	h.alarms[c] = h.now.Add(d)
	select {
	case h.asked <- struct{}{}:
	default:
	}
	return c
}

// untilWaiting returns when somebody waits for the clock.
func (h *hands) untilWaiting(t *testing.T) {
	t.Helper()
	select {
	case <-h.asked:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody waits for the clock")
	}
}

func (h *hands) advance(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
	for c, at := range h.alarms {
		if !at.After(h.now) {
			c <- h.now
			delete(h.alarms, c)
		}
	}
}

type node struct {
	*Allocator
	clock *hands
	stop  func()
}

func open(t *testing.T, path string, lessor Lessor, live []Live, families ...Family) *node {
	t.Helper()
	clock := &hands{now: start, alarms: map[chan time.Time]time.Time{}, asked: make(chan struct{}, 1)}
	a, err := Open(Config{Path: path, Families: families, Lessor: lessor, LowWater: 4, MaxBlocks: 3, Clock: clock}, live)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	n := &node{a, clock, sync.OnceFunc(func() { cancel(); run.Wait() })}
	t.Cleanup(n.stop)
	return n
}

// get allocates, and moves the clock as often as that has to wait.
func (n *node) get(t *testing.T, uid string) []netip.Addr {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		got, err := n.Allocate(t.Context(), uid)
		if err == nil {
			return got
		}
		if !errs.Is(err, errs.Exhausted) {
			t.Fatal(err)
		}
		n.clock.advance(time.Second)
		select {
		case <-again.C:
		case <-limit.C:
			t.Fatalf("no address for %s: %v", uid, err)
		}
	}
}

func TestBlocksAreLeasedBeforeTheyAreNeeded(t *testing.T) {
	i := newIPAM()
	n := open(t, filepath.Join(t.TempDir(), "addresses"), i, nil, IPv4, IPv6)
	seen := map[netip.Addr]bool{}
	for k := range 40 {
		for _, a := range n.get(t, "pod-"+string(rune('A'+k))) {
			if seen[a] {
				t.Fatalf("%s twice", a)
			}
			seen[a] = true
		}
	}
	blocks := n.Blocks()
	if len(blocks) != 6 {
		t.Fatalf("three blocks of each family, and no more: %v", blocks)
	}
	used := 0
	for _, b := range blocks {
		used += b.Used
	}
	if used != 2*40+2 || blocks[0].Size != 16 {
		t.Errorf("%d used of %v", used, blocks)
	}
}

func TestManyAtOnce(t *testing.T) {
	n := open(t, filepath.Join(t.TempDir(), "addresses"), newIPAM(), nil, IPv4)
	n.get(t, "first")
	var wg sync.WaitGroup
	got := make([]netip.Addr, 40)
	for k := range got {
		wg.Go(func() { got[k] = n.get(t, "pod-"+string(rune('A'+k)))[0] })
	}
	wg.Wait()
	slices.SortFunc(got, netip.Addr.Compare)
	if len(slices.Compact(got)) != 40 {
		t.Errorf("%v", got)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses")
	i := newIPAM()
	n := open(t, path, i, nil, IPv4, IPv6)
	kept, lost := n.get(t, "kept"), n.get(t, "lost")
	n.get(t, "known")
	if err := n.Release(t.Context(), "known", 7); err != nil {
		t.Fatal(err)
	}
	n.stop()

	i.set(errs.New(errs.Unavailable, "ipam is away"))
	n = open(t, path, i, []Live{{UID: "kept", Addresses: []netip.Addr{kept[0], kept[1]}}}, IPv4, IPv6)
	if got := n.get(t, "kept"); !slices.Equal(got, kept) {
		t.Errorf("%v, then %v", kept, got)
	}
	if got := n.Unresolved(); !slices.Equal(got, []string{"lost"}) {
		t.Errorf("unresolved: %v", got)
	}
	for k := range 8 {
		if got := n.get(t, "new-"+string(rune('A'+k))); slices.Contains(got, lost[0]) || slices.Contains(got, kept[0]) {
			t.Errorf("%v of %v, %v", got, lost, kept)
		}
	}
	if err := n.Release(t.Context(), "lost", 9); err != nil || len(n.Unresolved()) != 0 {
		t.Errorf("%v, %v", err, n.Unresolved())
	}
	// With the watermark past both removals, and after the time, both are given again, the older release first.
	n.Watermark(9)
	n.clock.advance(2 * time.Minute)
	for {
		if _, err := n.Allocate(t.Context(), "more-"+n.clock.Now().String()); err != nil {
			break
		}
		n.clock.advance(time.Second)
	}
	if b := n.Blocks()[0]; b.Quarantined != 0 || b.Used != 16 {
		t.Errorf("%+v", b)
	}
}

func TestALostStateIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	i := newIPAM()
	n := open(t, filepath.Join(dir, "one"), i, nil, IPv4)
	first := n.get(t, "a")
	n.stop()
	n = open(t, filepath.Join(dir, "two"), i, []Live{{UID: "a", Addresses: first}}, IPv4)
	if got := n.get(t, "b"); got[0] == first[0] || !n.Blocks()[0].Prefix.Contains(got[0]) || !n.Blocks()[0].Prefix.Contains(first[0]) {
		t.Errorf("%v after %v in %v", got, first, n.Blocks())
	}
	if got := n.get(t, "a"); !slices.Equal(got, first) {
		t.Errorf("%v, then %v", first, got)
	}
}

func TestIPAMAwayIsNamed(t *testing.T) {
	i := newIPAM()
	i.set(errs.New(errs.Unavailable, "ipam is away"))
	n := open(t, filepath.Join(t.TempDir(), "addresses"), i, nil, IPv4)
	<-i.called
	// The pause after an attempt begins when its failure is noted.
	n.clock.untilWaiting(t)
	_, err := n.Allocate(t.Context(), "a")
	if !errs.Is(err, errs.Exhausted) || !strings.Contains(err.Error(), "no IPv4 block yet") || !strings.Contains(err.Error(), "ipam is away") {
		t.Errorf("%v", err)
	}
	i.set(nil)
	n.get(t, "a")
}

func TestStateIsWrittenBeforeAnAddressIsKnown(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n := open(t, filepath.Join(dir, "addresses"), newIPAM(), nil, IPv4)
	n.get(t, "a")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Allocate(t.Context(), "b"); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "write the state") {
		t.Errorf("%v", err)
	}
	if used := n.Blocks()[0].Used; used != 2 {
		t.Errorf("%d used: the pod and the tunnel address", used)
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses")
	for text, want := range map[string]string{"{": "damaged", `{"version":9}`: "version 9"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{Path: path, Families: []Family{IPv4}, Lessor: newIPAM()}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestWithoutRunNothingHangs(t *testing.T) {
	a, err := Open(Config{Path: filepath.Join(t.TempDir(), "a"), Families: []Family{IPv4}, Lessor: newIPAM()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Allocate(ctx, "a"); !errs.Is(err, errs.Unavailable) {
		t.Errorf("%v", err)
	}
}

// A push may bring the row with a leased block before the lease's answer: that is the answer, and nothing to warn of.
func TestTheRowMayComeBeforeTheLeasesAnswer(t *testing.T) {
	asked, granted := make(chan struct{}, 9), make(chan struct{})
	lessor := lessorFunc(func(ctx context.Context, _ int, request string) (netip.Prefix, error) {
		asked <- struct{}{}
		select {
		case <-granted:
		case <-ctx.Done():
			return netip.Prefix{}, ctx.Err()
		}
		if request != "IPv4-block-1" {
			return netip.Prefix{}, errs.New(errs.Exhausted, "asked for another block, %s", request)
		}
		return netip.MustParsePrefix("10.0.0.0/28"), nil
	})
	var log lockedBuffer
	clock := &hands{now: start, alarms: map[chan time.Time]time.Time{}, asked: make(chan struct{}, 1)}
	a, err := Open(Config{
		Path: filepath.Join(t.TempDir(), "addresses.json"), Families: []Family{IPv4}, Lessor: lessor, LowWater: 4, Clock: clock,
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	<-asked
	if err := a.Granted(ctx, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}, nil); err != nil {
		t.Fatal(err)
	}
	close(granted)
	clock.untilWaiting(t) // the lease was dealt with
	if blocks := a.Blocks(); len(blocks) != 1 {
		t.Errorf("blocks: %v", blocks)
	}
	cancel()
	run.Wait()
	if strings.Contains(log.String(), "level=WARN") {
		t.Errorf("a warning about nothing:\n%s", log.String())
	}
}

type lessorFunc func(ctx context.Context, family int, request string) (netip.Prefix, error)

func (f lessorFunc) LeaseBlock(ctx context.Context, family int, request string) (netip.Prefix, error) {
	return f(ctx, family, request)
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
