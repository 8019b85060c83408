package pool

import (
	"net/netip"
	"slices"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
)

// fabricMembers holds the blocks that are cut into the single addresses of fabric members: a block for each of them would
// waste all of its addresses but one.
const fabricMembers = ""

// holder is who has a block, for people.
func holder(node string) string {
	if node == fabricMembers {
		return "the fabric's members"
	}
	return "node " + node
}

// departure is who had an address, and when it was given back.
type departure struct {
	member string
	seq    uint64
}

// HoldCut records a block that is cut for members. It is never given back: a node could otherwise lease it while a member,
// at another replica, is given an address of it. One cut lasts for dozens of members.
func (p *Pools) HoldCut(b netip.Prefix) { p.HoldBlock(b, fabricMembers) }

// HoldMember records the address of a member; FreeMember forgets it.
func (p *Pools) HoldMember(a netip.Addr, member string) {
	p.singles[a] = member
	delete(p.left, a)
	delete(p.tried, singleName(a))
}

// FreeMember forgets the address of a member.
func (p *Pools) FreeMember(a netip.Addr) {
	if member, held := p.singles[a]; held {
		p.frees++
		p.left[a] = departure{member, p.frees}
	}
	delete(p.singles, a)
	delete(p.tried, singleName(a))
}

func singleName(a netip.Addr) string { return BlockName(netip.PrefixFrom(a, a.BitLen())) }

// Single is an address for a member.
type Single struct {
	Address netip.Addr
	// Cut is the block to be cut for it in the same transaction; the zero value where it is of one that is cut already.
	Cut netip.Prefix
}

// NextMember returns an address of a family for a member: the one that it had before, else the lowest of the cut blocks
// that nobody has had, else the one that came back first, else the first of a block that is to be cut: the last that nobody
// has held, away from those that nodes get. A block's own first address is left out, since hosts of old take it for a
// broadcast. Errors: Exhausted.
func (p *Pools) NextMember(fam int, member string) (Single, error) {
	var cuts []netip.Prefix
	for b, node := range p.blocks {
		if node == fabricMembers && family(b.Addr()) == fam {
			cuts = append(cuts, b)
		}
	}
	slices.SortFunc(cuts, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	var fresh, oldest, own netip.Addr
	for _, cut := range cuts {
		for a, last := cut.Addr(), nodestate.LastOf(cut); a != last; {
			a = a.Next()
			if _, held := p.singles[a]; held || p.tried[singleName(a)] != 0 {
				continue
			}
			before, used := p.left[a]
			switch {
			case !used && !fresh.IsValid():
				fresh = a
			case used && before.member == member:
				own = a
			case used && (!oldest.IsValid() || before.seq < p.left[oldest].seq):
				oldest = a
			}
		}
	}
	for _, a := range []netip.Addr{own, fresh, oldest} {
		if a.IsValid() {
			return Single{Address: a}, nil
		}
	}
	cut, found := p.lastBlock(fam)
	if !found {
		var err error
		if cut, err = p.NextBlock(fam); err != nil {
			return Single{}, errs.Wrap(err, "ipam: an address for member %s", member)
		}
	}
	return Single{Address: cut.Addr().Next(), Cut: cut}, nil
}

// lastBlock is the highest block of a family that has not been held yet.
func (p *Pools) lastBlock(fam int) (netip.Prefix, bool) {
	for _, pods := range slices.Backward(p.Pods) {
		if family(pods.Addr()) != fam {
			continue
		}
		bits := p.BlockBits[fam]
		for b := netip.PrefixFrom(nodestate.LastOf(pods), bits).Masked(); ; b = netip.PrefixFrom(b.Addr().Prev(), bits).Masked() {
			_, held := p.blocks[b]
			_, used := p.freed[b]
			if !held && !used && p.tried[BlockName(b)] == 0 {
				return b, true
			}
			if b.Addr() == pods.Addr() {
				break
			}
		}
	}
	return netip.Prefix{}, false
}
