package addresses

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
)

var start = time.Unix(1_700_000_000, 0).UTC()

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func newPool(t *testing.T, blocks ...string) *pool {
	t.Helper()
	p := (&pool{}).clone()
	for _, b := range blocks {
		if !p.add(block{Prefix: prefix(b)}) {
			t.Fatal(b)
		}
	}
	return p
}

// past is what an independent observer knows of an address that was given back.
type past struct {
	uid     string
	at      time.Time
	removal int64
}

// history is a random life of a node, watched by an observer who shares nothing with the pool.
type history struct {
	t        *testing.T
	rnd      *rand.Rand
	p        *pool
	now      time.Time
	mark     int64
	revision int64
	live     map[string][]netip.Addr
	past     map[netip.Addr]past
	names    int
	refused  int
	reused   int
}

func (h *history) rule() rule { return rule{h.now, time.Minute, h.mark} }

func (h *history) allocate() {
	uid := fmt.Sprintf("pod-%d", h.names)
	h.names++
	got, err := h.p.allocate(uid, []Family{IPv6, IPv4}, h.rule())
	if err != nil {
		h.refused++
		if !errs.Is(err, errs.Exhausted) {
			h.t.Fatal(err)
		}
		return
	}
	for i, a := range got {
		if want := []Family{IPv6, IPv4}[i]; familyOf(a) != want || !h.p.holds(a) {
			h.t.Fatalf("%s got %v", uid, got)
		}
		if a == netip.MustParseAddr("10.0.0.0") || a == netip.MustParseAddr("fd00::") {
			h.t.Fatalf("%s got the tunnel address %s", uid, a)
		}
		for other, addrs := range h.live {
			if slices.Contains(addrs, a) {
				h.t.Fatalf("%s and %s both have %s", uid, other, a)
			}
		}
		if was, ok := h.past[a]; ok {
			h.reused++
			if h.now.Sub(was.at) < time.Minute || was.removal == 0 || was.removal > h.mark {
				h.t.Fatalf("%s got %s of %+v at %s with the watermark at %d", uid, a, was, h.now, h.mark)
			}
		}
	}
	h.live[uid] = got
	if again, err := h.p.allocate(uid, []Family{IPv6, IPv4}, h.rule()); err != nil || !slices.Equal(again, got) {
		h.t.Fatalf("%v, then %v, %v", got, again, err)
	}
}

func (h *history) some() string {
	if len(h.live) == 0 {
		return ""
	}
	return slices.Sorted(maps.Keys(h.live))[h.rnd.IntN(len(h.live))]
}

func (h *history) gone(uid string, removal int64) {
	for _, a := range h.live[uid] {
		h.past[a] = past{uid, h.now, removal}
	}
	delete(h.live, uid)
}

func (h *history) release() {
	if uid := h.some(); uid != "" {
		h.revision++
		removal := h.revision * int64(h.rnd.IntN(2))
		h.p.release(uid, removal, h.now)
		h.gone(uid, removal)
	}
}

// resolve tells the revision of a removal that was not known.
func (h *history) resolve() {
	for _, a := range slices.SortedFunc(maps.Keys(h.past), netip.Addr.Compare) {
		was := h.past[a]
		if was.removal != 0 {
			continue
		}
		h.revision++
		h.p.release(was.uid, h.revision, h.now)
		for b, other := range h.past {
			if other.uid == was.uid && other.removal == 0 {
				other.removal = h.revision
				h.past[b] = other
			}
		}
		return
	}
}

// restart loses the process, and with some luck links of pods as well.
func (h *history) restart() {
	b, err := json.Marshal(file{version, h.p})
	if err != nil {
		h.t.Fatal(err)
	}
	f := file{pool: &pool{}}
	if err := json.Unmarshal(b, &f); err != nil {
		h.t.Fatal(err)
	}
	h.p, h.mark = f.clone(), 0
	if uid := h.some(); uid != "" && h.rnd.IntN(2) == 0 {
		h.gone(uid, 0)
	}
	var live []Live
	for uid, addrs := range h.live {
		sorted := slices.Clone(addrs)
		slices.SortFunc(sorted, netip.Addr.Compare)
		live = append(live, Live{UID: uid, Addresses: sorted})
	}
	h.p.reconcile(live, []Family{IPv6, IPv4}, h.now)
}

func TestNoHistoryGivesAnAddressTwice(t *testing.T) {
	refused, reused := 0, 0
	for seed := range uint64(60) {
		h := &history{
			t: t, rnd: rand.New(rand.NewPCG(seed, 1)), p: newPool(t, "10.0.0.0/28", "fd00::/124"), now: start,
			live: map[string][]netip.Addr{}, past: map[netip.Addr]past{},
		}
		for range 1500 {
			switch n := h.rnd.IntN(100); {
			case n < 35:
				h.allocate()
			case n < 60:
				h.release()
			case n < 75:
				h.resolve()
			case n < 80:
				h.restart()
			case n < 90:
				h.mark = max(0, h.revision-int64(h.rnd.IntN(4)))
			default:
				h.now = h.now.Add(time.Duration(h.rnd.IntN(40)) * time.Second)
			}
			if n := h.p.count(IPv4, h.rule()); n.used != len(h.live)+1 || n.used+n.free+n.quarantined != 16 {
				t.Fatalf("seed %d: %+v with %d pods", seed, n, len(h.live))
			}
		}
		refused, reused = refused+h.refused, reused+h.reused
	}
	if refused < 1000 || reused < 1000 {
		t.Errorf("the histories prove little: %d refusals, %d addresses used again", refused, reused)
	}
}

func TestAddressesComeFreshFirstThenOldestReleaseFirst(t *testing.T) {
	p := newPool(t, "10.0.0.0/30")
	at := func(s int) rule { return rule{start.Add(time.Duration(s) * time.Second), time.Minute, 100} }
	give := func(uid string, s int) string {
		t.Helper()
		got, err := p.allocate(uid, []Family{IPv4}, at(s))
		if err != nil {
			t.Fatal(err)
		}
		return got[0].String()
	}
	give("a", 0)
	give("b", 0)
	p.release("b", 5, at(1).now)
	p.release("a", 6, at(2).now)
	if got := give("c", 1000); got != "10.0.0.3" {
		t.Errorf("fresh first: %s", got)
	}
	if got := give("d", 1000); got != "10.0.0.2" {
		t.Errorf("then what b gave back first: %s", got)
	}
	if got := give("e", 1000); got != "10.0.0.1" {
		t.Errorf("then what a gave back: %s", got)
	}
}

func TestExhaustedSaysWhatIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		removal int64
		after   time.Duration
		want    []string
	}{
		"time":      {5, 10 * time.Second, []string{"until 2023-11-14T22:14:20Z"}},
		"watermark": {50, time.Hour, []string{"passed revision 50; they are at 10"}},
		"unknown":   {0, time.Hour, []string{"removal of its pod a is confirmed"}},
		"both":      {50, time.Second, []string{"until 2023", "revision 50"}},
	} {
		p := newPool(t, "10.0.0.0/31")
		if _, err := p.allocate("a", []Family{IPv4}, rule{start, time.Minute, 10}); err != nil {
			t.Fatal(err)
		}
		p.release("a", c.removal, start)
		_, err := p.allocate("b", []Family{IPv4}, rule{start.Add(c.after), time.Minute, 10})
		if !errs.Is(err, errs.Exhausted) {
			t.Fatalf("%s: %v", name, err)
		}
		for _, want := range append(c.want, "10.0.0.1", "1 in quarantine") {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, err, want)
			}
		}
	}
	if _, err := newPool(t).allocate("a", []Family{IPv6}, rule{}); !errs.Is(err, errs.Exhausted) || !strings.Contains(err.Error(), "no IPv6 block") {
		t.Errorf("%v", err)
	}
}

func TestAllOrNothing(t *testing.T) {
	p := newPool(t, "10.0.0.0/28")
	if _, err := p.allocate("a", []Family{IPv4, IPv6}, rule{}); err == nil || len(p.Used) != 0 {
		t.Errorf("%v, %v", err, p.Used)
	}
}

func TestAPodThatLostItsLinkGetsItsAddressBack(t *testing.T) {
	p := newPool(t, "10.0.0.0/28")
	r := rule{now: start, quarantine: time.Minute}
	first, err := p.allocate("a", []Family{IPv4}, r)
	if err != nil {
		t.Fatal(err)
	}
	p.reconcile(nil, []Family{IPv4}, start) // the machine was restarted
	if got, err := p.allocate("a", []Family{IPv4}, r); err != nil || !slices.Equal(got, first) {
		t.Errorf("%v, then %v, %v", first, got, err)
	}
}

func TestGranted(t *testing.T) {
	p := newPool(t, "10.0.0.0/28")
	p.grant([]netip.Prefix{prefix("10.0.1.0/28")}, []netip.Addr{netip.MustParseAddr("10.0.1.0")})
	if len(p.Blocks) != 2 {
		t.Errorf("a block that the row does not have yet is kept: %v", p.Blocks)
	}
	if !p.reserved()[netip.MustParseAddr("10.0.1.0")] || !p.reserved()[netip.MustParseAddr("10.0.0.0")] {
		t.Errorf("%v", p.reserved())
	}
	p.grant([]netip.Prefix{prefix("10.0.0.0/28"), prefix("10.0.1.0/28")}, nil)
	p.grant([]netip.Prefix{prefix("10.0.0.0/28")}, nil)
	if len(p.Blocks) != 1 || p.Blocks[0].Prefix != prefix("10.0.0.0/28") {
		t.Errorf("a block that the row lost is lost: %v", p.Blocks)
	}
	// A block that comes back does not come back without its quarantine.
	if _, err := p.allocate("a", []Family{IPv4}, rule{now: start, quarantine: time.Minute}); err != nil {
		t.Fatal(err)
	}
	p.release("a", 5, start)
	p.grant(nil, nil)
	p.grant([]netip.Prefix{prefix("10.0.0.0/28")}, nil)
	if c := p.count(IPv4, rule{now: start, quarantine: time.Minute, watermark: 9}); c.quarantined != 1 {
		t.Errorf("%+v", c)
	}
	for _, bad := range []netip.Prefix{{}, prefix("10.0.0.8/29"), prefix("10.0.9.1/28"), prefix("10.0.0.0/8"), prefix("fd00::/64")} {
		if p.add(block{Prefix: bad}) {
			t.Errorf("%s was taken", bad)
		}
	}
}
