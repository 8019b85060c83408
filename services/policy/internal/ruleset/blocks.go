package ruleset

import (
	"net/netip"
	"slices"

	"podwire.dev/internal/nodestate"
)

// atom is a range of addresses that the same blocks contain.
type atom struct {
	nodestate.AddrRange
	tokens []string // keys of the blocks, sorted
}

// contains says whether an address is a peer of an IP block.
func (t PeerTerm) contains(a netip.Addr) bool {
	if !t.Block.Contains(a) {
		return false
	}
	for _, e := range t.Except {
		if e.Contains(a) {
			return false
		}
	}
	return true
}

// atoms cuts the addresses that any block contains into ranges which lie either wholly inside or wholly outside each
// block. Neighbours that the same blocks contain are one range. The result is sorted by address.
func atoms(blocks []*term) []atom {
	var starts []netip.Addr
	for _, b := range blocks {
		for _, p := range append([]netip.Prefix{b.peer.Block}, b.peer.Except...) {
			starts = append(starts, p.Masked().Addr())
			if next := nodestate.LastOf(p).Next(); next.IsValid() {
				starts = append(starts, next)
			}
		}
	}
	slices.SortFunc(starts, netip.Addr.Compare)
	starts = slices.Compact(starts)
	var out []atom
	for i, from := range starts {
		tokens := blockTokens(blocks, from)
		if len(tokens) == 0 {
			continue
		}
		to := lastOfFamily(from)
		if i+1 < len(starts) && starts[i+1].BitLen() == from.BitLen() {
			to = starts[i+1].Prev()
		}
		if n := len(out) - 1; n >= 0 && out[n].To.Next() == from && slices.Equal(out[n].tokens, tokens) {
			out[n].To = to
			continue
		}
		out = append(out, atom{nodestate.AddrRange{From: from, To: to}, tokens})
	}
	return out
}

func lastOfFamily(a netip.Addr) netip.Addr {
	if a.Is4() {
		return nodestate.LastOf(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	return nodestate.LastOf(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}

// blockTokens returns the keys of the blocks that contain an address, sorted.
func blockTokens(blocks []*term, a netip.Addr) []string {
	var tokens []string
	for _, b := range blocks {
		if b.peer.contains(a) {
			tokens = append(tokens, b.key)
		}
	}
	slices.Sort(tokens)
	return tokens
}
