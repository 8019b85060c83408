package addresses

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"podwire.dev/internal/errs"
)

// Family is an address family: 4 or 6.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String is "IPv4" or "IPv6".
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// block is one leased block.
type block struct {
	Prefix netip.Prefix `json:"prefix"`
	// Listed says that ipam's row of the node had the block.
	Listed bool `json:"listed"`
}

// released is an address that a pod gave back.
type released struct {
	Addr netip.Addr `json:"address"`
	UID  string     `json:"uid"`
	At   time.Time  `json:"at"`
	// Removal is the revision at which the pod was gone from the store; 0 while it is not known.
	Removal int64 `json:"removal"`
}

// rule says which released addresses may be given again.
type rule struct {
	now        time.Time
	quarantine time.Duration
	watermark  int64
}

func (r rule) over(x released) bool {
	return x.Removal > 0 && x.Removal <= r.watermark && !r.now.Before(x.At.Add(r.quarantine))
}

// pool is everything that is known of the node's addresses. A pool that was published is never changed: see clone.
type pool struct {
	// Blocks are in the order of their leases, so that the first of each family has the tunnel address.
	Blocks []block `json:"blocks"`
	// Used are the addresses of each pod, by UID.
	Used map[string][]netip.Addr `json:"used"`
	// Released are in the order of their release.
	Released []released `json:"released"`
	// Tunnels are tunnel addresses that ipam named.
	Tunnels []netip.Addr `json:"tunnels"`
}

func (p *pool) clone() *pool {
	c := &pool{
		Blocks: slices.Clone(p.Blocks), Used: maps.Clone(p.Used), Released: slices.Clone(p.Released), Tunnels: slices.Clone(p.Tunnels),
	}
	if c.Used == nil {
		c.Used = map[string][]netip.Addr{}
	}
	return c
}

// reserved are the addresses that no pod gets.
func (p *pool) reserved() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, a := range p.Tunnels {
		out[a] = true
	}
	seen := map[Family]bool{}
	for _, b := range p.Blocks {
		if f := familyOf(b.Prefix.Addr()); !seen[f] {
			seen[f], out[b.Prefix.Addr()] = true, true
		}
	}
	return out
}

// inUse are the addresses of pods.
func (p *pool) inUse() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, addrs := range p.Used {
		for _, a := range addrs {
			out[a] = true
		}
	}
	return out
}

// holds says whether a leased block has the address.
func (p *pool) holds(a netip.Addr) bool {
	return slices.ContainsFunc(p.Blocks, func(b block) bool { return b.Prefix.Contains(a) })
}

// pick chooses the next address of a family; ok is false where none may be given.
func (p *pool) pick(f Family, r rule) (a netip.Addr, ok bool) {
	taken := p.inUse()
	maps.Copy(taken, p.reserved())
	known := maps.Clone(taken)
	for _, x := range p.Released {
		known[x.Addr] = true
	}
	for _, b := range p.Blocks {
		if familyOf(b.Prefix.Addr()) != f {
			continue
		}
		for a := b.Prefix.Addr(); b.Prefix.Contains(a); a = a.Next() {
			if !known[a] {
				return a, true
			}
		}
	}
	for _, x := range p.Released {
		if familyOf(x.Addr) == f && !taken[x.Addr] && p.holds(x.Addr) && r.over(x) {
			return x.Addr, true
		}
	}
	return netip.Addr{}, false
}

// allocate gives a pod one address of each family, all or none. Again for the same pod it gives the same.
func (p *pool) allocate(uid string, families []Family, r rule) ([]netip.Addr, error) {
	if held, ok := p.Used[uid]; ok {
		return held, nil
	}
	var out []netip.Addr
	for _, f := range families {
		a, ok := p.own(uid, f)
		if !ok {
			a, ok = p.pick(f, r)
		}
		if !ok {
			return nil, p.exhausted(f, r)
		}
		out = append(out, a)
	}
	p.Used[uid] = out
	p.Released = slices.DeleteFunc(p.Released, func(x released) bool { return slices.Contains(out, x.Addr) })
	return out, nil
}

// own is an address that the pod itself had before its link was lost, by a restart of the machine for example. The pod
// was not removed, so nobody can mistake it for another.
func (p *pool) own(uid string, f Family) (netip.Addr, bool) {
	taken := p.inUse()
	maps.Copy(taken, p.reserved())
	for _, x := range p.Released {
		if x.UID == uid && x.Removal == 0 && familyOf(x.Addr) == f && !taken[x.Addr] && p.holds(x.Addr) {
			return x.Addr, true
		}
	}
	return netip.Addr{}, false
}

// release takes a pod's addresses back, and notes the revision of its removal where it is known by now.
func (p *pool) release(uid string, removal int64, now time.Time) {
	for _, a := range p.Used[uid] {
		p.Released = append(p.Released, released{Addr: a, UID: uid, At: now})
	}
	delete(p.Used, uid)
	for i, x := range p.Released {
		if x.UID == uid && x.Removal == 0 {
			p.Released[i].Removal = removal
		}
	}
}

// counts is how full the blocks of a family are.
type counts struct {
	blocks, used, quarantined, free int
}

func (p *pool) count(f Family, r rule) counts {
	var c counts
	for _, b := range p.usage(r) {
		if familyOf(b.Prefix.Addr()) == f {
			c.blocks++
			c.used += b.Used
			c.quarantined += b.Quarantined
			c.free += b.Size - b.Used - b.Quarantined
		}
	}
	return c
}

// Usage is how full one leased block is.
type Usage struct {
	Prefix netip.Prefix
	// Size counts all addresses, Used those of pods and the tunnel address, Quarantined those that may not be given yet.
	Size, Used, Quarantined int
}

func (p *pool) usage(r rule) []Usage {
	used := p.inUse()
	maps.Copy(used, p.reserved())
	out := make([]Usage, len(p.Blocks))
	for i, b := range p.Blocks {
		out[i] = Usage{Prefix: b.Prefix, Size: 1 << hostBits(b.Prefix)}
		for a := range used {
			if b.Prefix.Contains(a) {
				out[i].Used++
			}
		}
		for _, x := range p.Released {
			if b.Prefix.Contains(x.Addr) && !used[x.Addr] && !r.over(x) {
				out[i].Quarantined++
			}
		}
	}
	return out
}

// maxHostBits bounds the size of a block that is taken: each of its addresses may be looked at.
const maxHostBits = 16

func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// exhausted says why there is no address.
func (p *pool) exhausted(f Family, r rule) error {
	c := p.count(f, r)
	if c.blocks == 0 {
		return errs.New(errs.Exhausted, "addresses: the node has no %s block yet", f)
	}
	text := fmt.Sprintf("addresses: no %s address is free in %d blocks: %d are in use, %d in quarantine", f, c.blocks, c.used, c.quarantined)
	if why := p.awaits(f, r); why != "" {
		text += " (" + why + ")"
	}
	return errs.New(errs.Exhausted, "%s", text)
}

// awaits says what the address that was released first waits for.
func (p *pool) awaits(f Family, r rule) string {
	i := slices.IndexFunc(p.Released, func(x released) bool { return familyOf(x.Addr) == f && p.holds(x.Addr) })
	if i < 0 {
		return ""
	}
	x := p.Released[i]
	var why []string
	if end := x.At.Add(r.quarantine); r.now.Before(end) {
		why = append(why, "until "+end.UTC().Format(time.RFC3339))
	}
	switch {
	case x.Removal == 0:
		why = append(why, "until the removal of its pod "+x.UID+" is confirmed")
	case x.Removal > r.watermark:
		why = append(why, fmt.Sprintf("until every required service has passed revision %d; they are at %d", x.Removal, r.watermark))
	}
	return "the first, " + x.Addr.String() + ", " + strings.Join(why, " and ")
}

// reconcile makes the links the witness: what they carry is in use, and what no link carries any more is released now.
func (p *pool) reconcile(live []Live, families []Family, now time.Time) {
	carried := map[string][]netip.Addr{}
	for _, l := range live {
		carried[l.UID] = l.Addresses
	}
	for _, uid := range slices.Sorted(maps.Keys(p.Used)) {
		if _, ok := carried[uid]; !ok {
			p.release(uid, 0, now)
		}
	}
	for uid, addrs := range carried {
		if len(addrs) == 0 {
			continue // a link that was being made: its addresses were never routed, and are given again or released
		}
		sorted := slices.Clone(addrs)
		// The primary family first; the kernel has no order.
		slices.SortFunc(sorted, func(a, b netip.Addr) int {
			return cmp.Compare(slices.Index(families, familyOf(a)), slices.Index(families, familyOf(b)))
		})
		p.Used[uid] = sorted
	}
	used := p.inUse()
	p.Released = slices.DeleteFunc(p.Released, func(x released) bool { return used[x.Addr] })
	for i, x := range p.Released {
		if x.At.After(now) { // the clock was set back: the quarantine begins anew rather than last for years
			p.Released[i].At = now
		}
	}
}

// grant takes over what ipam says that the node holds.
func (p *pool) grant(blocks []netip.Prefix, tunnels []netip.Addr) {
	for _, b := range blocks {
		p.add(block{Prefix: b})
	}
	p.Blocks = slices.DeleteFunc(p.Blocks, func(h block) bool { return h.Listed && !slices.Contains(blocks, h.Prefix) })
	for i, h := range p.Blocks {
		p.Blocks[i].Listed = slices.Contains(blocks, h.Prefix)
	}
	// What is known of released addresses is kept: a block may come back.
	p.Tunnels = slices.Clone(tunnels)
}

// add takes a block, and says whether it is new and can be used.
func (p *pool) add(b block) bool {
	known := slices.ContainsFunc(p.Blocks, func(h block) bool { return h.Prefix.Overlaps(b.Prefix) })
	if known || !b.Prefix.IsValid() || b.Prefix != b.Prefix.Masked() || hostBits(b.Prefix) > maxHostBits {
		return false
	}
	p.Blocks = append(p.Blocks, b)
	return true
}

// has says whether the block is the node's.
func (p *pool) has(b netip.Prefix) bool {
	return slices.ContainsFunc(p.Blocks, func(h block) bool { return h.Prefix == b })
}
