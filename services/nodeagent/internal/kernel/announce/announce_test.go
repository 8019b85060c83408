package announce

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/testnet"
)

var (
	vip4 = netip.MustParseAddr("172.30.0.200")
	vip6 = netip.MustParseAddr("fd00:172:30::200")
	vips = []netip.Addr{vip4, vip6}
)

type node struct {
	*testnet.NS
	a *Announcer
}

func (n *node) open(t *testing.T, cfg Config) {
	t.Helper()
	cfg.Link = "eth0"
	n.Must(func() error {
		var err error
		n.a, err = Open(cfg)
		return err
	})
	a := n.a
	t.Cleanup(func() { _ = a.Close() })
}

// lan is two nodes and a client on one link.
func lan(t *testing.T) (a, b *node, client *testnet.NS) {
	t.Helper()
	n := testnet.New(t)
	plug := n.Underlay("lan")
	nodes := []*node{{NS: n.AddNS("a")}, {NS: n.AddNS("b")}}
	client = n.AddNS("client")
	for i, s := range []*testnet.NS{nodes[0].NS, nodes[1].NS, client} {
		plug(s, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, 0, byte(i + 1)}), 24),
			netip.MustParsePrefix([]string{"fd00:172:30::1/64", "fd00:172:30::2/64", "fd00:172:30::3/64"}[i]))
	}
	for _, d := range nodes {
		d.open(t, Config{})
		d.ServeUDP(d.Name(), netip.MustParseAddrPort("0.0.0.0:53"))
		d.ServeUDP(d.Name(), netip.MustParseAddrPort("[::]:53"))
	}
	return nodes[0], nodes[1], client
}

func rows(node string, epoch int64, addresses ...netip.Addr) []nodestate.Announcement {
	var list []nodestate.Announcement
	for _, a := range addresses {
		list = append(list, nodestate.Announcement{Address: a, Node: node, Epoch: epoch})
	}
	return list
}

func mustApply(t *testing.T, n *node, list []nodestate.Announcement) []netip.Addr {
	t.Helper()
	news, err := n.a.Apply(list)
	if err != nil {
		t.Fatal(err)
	}
	return news
}

func whoAnswers(client *testnet.NS, address netip.Addr) string {
	r := client.UDP(testnet.Attempt{Target: netip.AddrPortFrom(address, 53), Timeout: 500 * time.Millisecond})
	if r.Outcome != testnet.Reached {
		return string(r.Outcome)
	}
	return r.Server
}

func TestHeldAddressesAnswerAtOnce(t *testing.T) {
	a, _, client := lan(t)
	for _, v := range vips {
		if got := whoAnswers(client, v); got == "a" {
			t.Fatalf("%s answers before it is held", v)
		}
	}
	if news := mustApply(t, a, rows("a", 1, vips...)); !slices.Equal(news, vips) {
		t.Errorf("new addresses %v", news)
	}
	// The agent dies; the kernel goes on.
	if err := a.a.Close(); err != nil {
		t.Fatal(err)
	}
	client.Run("ip", "neigh", "flush", "all")
	for _, v := range vips {
		if got := whoAnswers(client, v); got != "a" {
			t.Errorf("%s: %s", v, got)
		}
	}
}

func TestApplyAgainWritesNothing(t *testing.T) {
	a, _, _ := lan(t)
	mustApply(t, a, rows("a", 1, vips...))
	before := a.a.Writes()
	if before != 2 {
		t.Errorf("two addresses took %d writes", before)
	}
	if news := mustApply(t, a, rows("a", 1, vips...)); len(news) != 0 || a.a.Writes() != before {
		t.Errorf("again: new %v, %d writes", news, a.a.Writes()-before)
	}
	// A restarted agent adopts what the kernel holds.
	a.open(t, Config{})
	if news := mustApply(t, a, rows("a", 1, vips...)); len(news) != 0 || a.a.Writes() != 0 {
		t.Errorf("restarted: new %v, %d writes", news, a.a.Writes())
	}
	if news := mustApply(t, a, rows("a", 2, vips...)); !slices.Equal(news, vips) || a.a.Writes() != 0 {
		t.Errorf("under a higher epoch: to advertise %v, %d writes", news, a.a.Writes())
	}
}

func TestRemoveTakesOnlyOurs(t *testing.T) {
	a, _, _ := lan(t)
	a.AddAddr("eth0", netip.MustParsePrefix("172.30.0.99/32"))
	before := a.Run("ip", "-o", "address")
	mustApply(t, a, rows("a", 1, vips...))
	if list, err := a.a.List(); err != nil || !slices.Equal(list, vips) {
		t.Errorf("held %v, %v", list, err)
	}
	for range 2 {
		if err := a.a.Remove(); err != nil {
			t.Fatal(err)
		}
		if after := a.Run("ip", "-o", "address"); after != before {
			t.Errorf("left:\n%s\nbefore:\n%s", after, before)
		}
	}
	if _, err := a.a.Apply(rows("a", 1, netip.MustParseAddr("172.30.0.99"))); !errs.Is(err, errs.Exists) {
		t.Errorf("an address that somebody else put there: %v", err)
	}
}

func TestNeverChosenAsSource(t *testing.T) {
	a, _, client := lan(t)
	// Worst case: the announced address comes first.
	a.Run("ip", "address", "flush", "dev", "eth0", "scope", "global")
	mustApply(t, a, rows("a", 1, vips...))
	a.AddAddr("eth0", netip.MustParsePrefix("172.30.0.1/24"))
	a.AddAddr("eth0", netip.MustParsePrefix("fd00:172:30::1/64"))
	for _, to := range []string{"172.30.0.3", "fd00:172:30::3"} {
		at := client.ServeUDP("client", netip.AddrPortFrom(netip.MustParseAddr(to), 0))
		if r := a.UDP(testnet.Attempt{Target: at}); r.Outcome != testnet.Reached || slices.Contains(vips, r.Client.Addr()) {
			t.Errorf("to %s: %+v", to, r)
		}
	}
}

func TestTakeoverMovesTheAddressAndTheLoserYields(t *testing.T) {
	a, b, client := lan(t)
	ctx, cancel := context.WithCancel(context.Background())
	watched, claims := make(chan error, 1), make(chan Claim, 8)
	go func() { watched <- a.a.Watch(ctx, func(c Claim) { claims <- c }) }()
	mustApply(t, a, rows("a", 7, vips...))
	if err := a.a.Advertise(vips); err != nil {
		t.Fatal(err)
	}
	for _, v := range vips {
		if got := whoAnswers(client, v); got != "a" {
			t.Fatalf("before the takeover %s: %s", v, got)
		}
	}
	// b takes over; a does not hear of it from the control plane.
	if err := b.a.Advertise(mustApply(t, b, rows("b", 8, vips...))); err != nil {
		t.Fatal(err)
	}
	var lost []netip.Addr
	for range vips {
		select {
		case c := <-claims:
			lost = append(lost, c.Address)
			if c.Epoch != 7 || string(c.By[:]) != string(b.Link("eth0").Attrs().HardwareAddr) {
				t.Errorf("claim %+v", c)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("a yielded only %v", lost)
		}
	}
	for _, v := range vips {
		// The client still has a's MAC cached, unless it believed the announcement.
		if got := whoAnswers(client, v); got != "b" {
			t.Errorf("after the takeover %s: %s", v, got)
		}
	}
	if list, err := a.a.List(); err != nil || len(list) != 0 {
		t.Errorf("a still holds %v, %v", list, err)
	}
	yields(t, a)
	cancel()
	if err := <-watched; err != nil {
		t.Errorf("Watch ended with %v", err)
	}
}

// yields checks that a does not take back what it yielded at epoch 7, not even after a restart, until the epoch rises.
func yields(t *testing.T, a *node) {
	t.Helper()
	if news := mustApply(t, a, rows("a", 7, vips...)); len(news) != 0 {
		t.Errorf("a took %v back at the epoch at which it yielded", news)
	}
	restarted := &node{NS: a.NS}
	restarted.open(t, Config{Yielded: a.a.Yielded()})
	if news := mustApply(t, restarted, rows("a", 7, vips...)); len(news) != 0 {
		t.Errorf("restarted, a took %v back at the epoch at which it yielded", news)
	}
	if news := mustApply(t, restarted, rows("a", 9, vips...)); !slices.Equal(news, vips) {
		t.Errorf("at a higher epoch a took %v", news)
	}
	if y := restarted.a.Yielded(); len(y) != 0 {
		t.Errorf("still yielded: %v", y)
	}
}

func TestOwnAndOtherFramesDoNotMakeUsYield(t *testing.T) {
	a, b, _ := lan(t)
	mustApply(t, a, rows("a", 1, vips...))
	own := [6]byte(a.Link("eth0").Attrs().HardwareAddr)
	other := [6]byte(b.Link("eth0").Attrs().HardwareAddr)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	claims := make(chan Claim, 8)
	watched := make(chan error, 1)
	go func() { watched <- a.a.Watch(ctx, func(c Claim) { claims <- c }) }()
	for _, v := range vips {
		b.Send("eth0", announcement(v, own)) // ours, come back by a loop in the network
		b.Send("eth0", announcement(v.Next(), other))
	}
	// An ordinary question for the address, and an answer to somebody else's question.
	ask := announcement(vip4, other)
	copy(ask[arpSender:], []byte{172, 30, 0, 2})
	answer := announcement(vip6, other)
	answer[icmpFlags] |= flagSolicited
	far := announcement(vip6, other)
	far[ipHops] = 64
	b.Send("eth0", ask, answer, far)
	// The last two are real claims: when they are heard, all before them were.
	b.Send("eth0", announcement(vip4, other), announcement(vip6, other))
	for range vips {
		select {
		case c := <-claims:
			if c.By != other {
				t.Errorf("claim %+v", c)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("real claims were not heard")
		}
	}
	select {
	case c := <-claims:
		t.Errorf("a third claim: %+v", c)
	default:
	}
}

func TestMissingLink(t *testing.T) {
	s := testnet.New(t).AddNS("node")
	err := s.Do(func() error { _, err := Open(Config{Link: "eth0"}); return err })
	if !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("without the link: %v", err)
	}
}

func TestWatchEndsWithTheLink(t *testing.T) {
	a, _, _ := lan(t)
	watched := make(chan error, 1)
	go func() { watched <- a.a.Watch(context.Background(), func(Claim) {}) }()
	a.Run("ip", "link", "del", "eth0")
	select {
	case err := <-watched:
		if err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Watch goes on without its link")
	}
}

func TestAnnouncementsReadBack(t *testing.T) {
	mac := [6]byte{2, 0, 0, 0, 0, 7}
	for _, v := range vips {
		address, by, ok := parse(announcement(v, mac))
		if !ok || address != v || by != mac {
			t.Errorf("%s: read back as %s at %x, %v", v, address, by, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	mac := [6]byte{2, 0, 0, 0, 0, 7}
	for _, v := range vips {
		f.Add(announcement(v, mac))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if address, _, ok := parse(frame); ok && !address.IsValid() {
			t.Error("an announcement of no address")
		}
	})
}
