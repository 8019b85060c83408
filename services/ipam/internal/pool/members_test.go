package pool_test

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/services/ipam/internal/pool"
)

// single takes the next address for a member as a replica would whose transaction succeeded.
func single(t *testing.T, p *pool.Pools, fam int, member string) string {
	t.Helper()
	s, err := p.NextMember(fam, member)
	if err != nil {
		t.Fatal(err)
	}
	if s.Cut.IsValid() {
		p.HoldCut(s.Cut)
	}
	p.HoldMember(s.Address, member)
	return s.Address.String()
}

func TestMembers(t *testing.T) {
	t.Parallel()
	r := ranges(t, "10.244.0.0/24 fd00:10:244::/120", "10.96.0.0/16", "", "30000-32767")
	r.BlockBits = map[int]int{4: 30, 6: 122}
	p := pool.New(r)
	first, err := p.NextBlock(4)
	if err != nil {
		t.Fatal(err)
	}
	p.HoldBlock(first, "node-1")
	for _, want := range []struct{ member, address string }{
		{"dns-1", "10.244.0.253"}, {"dns-2", "10.244.0.254"}, {"dns-3", "10.244.0.255"}, // one block is cut for three
		{"dns-4", "10.244.0.249"},
	} {
		if got := single(t, p, 4, want.member); got != want.address {
			t.Errorf("%s: %s, want %s", want.member, got, want.address)
		}
	}
	if got := single(t, p, 6, "dns-1"); got != "fd00:10:244::c1" {
		t.Errorf("the other family: %s", got)
	}
	if b, err := p.NextBlock(4); err != nil || b.String() != "10.244.0.4/30" {
		t.Errorf("a node gets %s, %v", b, err)
	}
	for _, a := range []string{"10.244.0.254", "10.244.0.253"} {
		p.FreeMember(netip.MustParseAddr(a))
	}
	for _, want := range []struct{ member, address string }{
		{"dns-5", "10.244.0.250"}, {"dns-6", "10.244.0.251"}, // addresses that came back rest as long as there are others
		{"dns-1", "10.244.0.253"}, // but for those who had them
		{"dns-7", "10.244.0.254"},
	} {
		if got := single(t, p, 4, want.member); got != want.address {
			t.Errorf("%s: %s, want %s", want.member, got, want.address)
		}
	}
	if got := p.Outside(); len(got) > 0 {
		t.Errorf("outside: %v", got)
	}
	p.HoldMember(netip.MustParseAddr("10.9.0.1"), "dns-8")
	p.HoldCut(netip.MustParsePrefix("10.9.0.0/30"))
	if got := strings.Join(p.Outside(), "; "); got != "10.9.0.1 of member dns-8; block 10.9.0.0/30 of the fabric's members" {
		t.Errorf("outside: %s", got)
	}
	if s := p.Status()[0]; s.Used != 3 {
		t.Errorf("blocks used: %d, want one node's and two that are cut", s.Used)
	}
}

func TestMembersLost(t *testing.T) {
	t.Parallel()
	p := pool.New(usual(t))
	p.Passed(10)
	if got := single(t, p, 4, "dns-1"); got != "10.244.255.193" {
		t.Fatal(got)
	}
	p.Lost("block-10-244-255-194-32", 12)
	if got := single(t, p, 4, "dns-2"); got != "10.244.255.195" {
		t.Errorf("what the store refused is chosen again: %s", got)
	}
	p.Passed(12)
	if got := single(t, p, 4, "dns-3"); got != "10.244.255.194" {
		t.Errorf("what came and went: %s", got)
	}
}

func TestMembersExhaust(t *testing.T) {
	t.Parallel()
	r := ranges(t, "10.244.0.0/28", "10.96.0.0/16", "", "30000-32767")
	r.BlockBits = map[int]int{4: 28}
	p := pool.New(r)
	for range 15 {
		single(t, p, 4, "dns-1")
	}
	if s, err := p.NextMember(4, "dns-1"); !errs.Is(err, errs.Exhausted) {
		t.Errorf("%v, %v", s, err)
	}
	if s, err := p.NextMember(6, "dns-1"); !errs.Is(err, errs.Exhausted) {
		t.Errorf("no range of the family: %v, %v", s, err)
	}
}

// TestNobodySharesAnAddress leases and gives back at random: no address is of two holders at any time.
func TestNobodySharesAnAddress(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(7, 7))
	r := ranges(t, "10.244.0.0/26", "10.96.0.0/16", "", "30000-32767")
	r.BlockBits = map[int]int{4: 29}
	p := pool.New(r)
	held := map[netip.Prefix]bool{}
	cuts := map[netip.Prefix]bool{}
	take := func(b netip.Prefix) {
		for other := range held {
			if other.Overlaps(b) {
				t.Fatalf("%s is given out beside %s", b, other)
			}
		}
		held[b] = true
	}
	for range 20_000 {
		switch rnd.IntN(4) {
		case 0:
			if b, err := p.NextBlock(4); err == nil {
				for cut := range cuts {
					if cut.Overlaps(b) {
						t.Fatalf("a node gets %s, which is cut", b)
					}
				}
				take(b)
				p.HoldBlock(b, "node-1")
			}
		case 1:
			s, err := p.NextMember(4, "dns-1")
			if err != nil {
				continue
			}
			if s.Cut.IsValid() {
				for other := range held {
					if other.Overlaps(s.Cut) {
						t.Fatalf("%s is cut, though %s is held", s.Cut, other)
					}
				}
				cuts[s.Cut] = true
				p.HoldCut(s.Cut)
			}
			take(netip.PrefixFrom(s.Address, 32))
			p.HoldMember(s.Address, "dns-1")
		default:
			for b := range held { // any
				delete(held, b)
				if b.IsSingleIP() {
					p.FreeMember(b.Addr())
				} else {
					p.FreeBlock(b)
				}
				break
			}
		}
	}
	if len(cuts) == 0 {
		t.Error("nothing was cut: the test proves nothing")
	}
}
