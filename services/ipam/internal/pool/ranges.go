package pool

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
)

// AddrRange is an inclusive range of addresses of one family.
type AddrRange struct{ From, To netip.Addr }

// ParseAddrRange reads a CIDR, one address, or first-last.
func ParseAddrRange(text string) (AddrRange, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		if rule := unfit(p.Addr()); rule != "" {
			return AddrRange{}, errors.New(rule)
		}
		if p != p.Masked() {
			return AddrRange{}, fmt.Errorf("has bits set behind the prefix; write %s", p.Masked())
		}
		return AddrRange{p.Addr(), nodestate.LastOf(p)}, nil
	}
	first, last, found := strings.Cut(text, "-")
	if !found {
		last = first
	}
	from, err := netip.ParseAddr(first)
	if err != nil {
		return AddrRange{}, errors.New("must be a CIDR, an address or first-last")
	}
	to, err := netip.ParseAddr(last)
	switch {
	case err != nil:
		return AddrRange{}, errors.New("must be a CIDR, an address or first-last")
	case from.BitLen() != to.BitLen() || from.Zone() != "" || to.Zone() != "" || to.Less(from):
		return AddrRange{}, errors.New("must begin with the lower of two addresses of one family")
	}
	if rule := unfit(from); rule != "" {
		return AddrRange{}, errors.New(rule)
	}
	return AddrRange{from, to}, nil
}

// unfit says why an address cannot be handed out, or nothing.
func unfit(a netip.Addr) string {
	switch {
	case a.Is4In6():
		return "must not be an IPv4-mapped IPv6 range; write the IPv4 range"
	case a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified():
		return "must be unicast addresses, neither loopback nor link-local"
	}
	return ""
}

// Contains says whether an address lies in the range.
func (r AddrRange) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && !a.Less(r.From) && !r.To.Less(a)
}

// Overlaps says whether two ranges share an address.
func (r AddrRange) Overlaps(o AddrRange) bool { return r.Contains(o.From) || o.Contains(r.From) }

// Prefixes returns the fewest CIDRs that together are the range, ascending.
func (r AddrRange) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for from := r.From; ; {
		bits := from.BitLen()
		for bits > 0 {
			wider := netip.PrefixFrom(from, bits-1)
			if wider.Masked().Addr() != from || r.To.Less(nodestate.LastOf(wider)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(from, bits)
		out = append(out, p)
		end := nodestate.LastOf(p)
		if end == r.To {
			return out
		}
		from = end.Next()
	}
}

// String is first-last, or the one address.
func (r AddrRange) String() string {
	if r.From == r.To {
		return r.From.String()
	}
	return r.From.String() + "-" + r.To.String()
}

// size is the number of addresses, capped at 2^62.
func (r AddrRange) size() uint64 {
	from, to := split(r.From), split(r.To)
	hi, lo := to.hi-from.hi, to.lo-from.lo
	if to.lo < from.lo {
		hi--
	}
	if hi > 0 || lo >= maxSize {
		return maxSize
	}
	return lo + 1
}

const maxSize = 1 << 62

// number is an address as a number.
type number struct{ hi, lo uint64 }

func split(a netip.Addr) number {
	var n number
	for _, b := range a.AsSlice() {
		n.hi = n.hi<<8 | n.lo>>56
		n.lo = n.lo<<8 | uint64(b)
	}
	return n
}

// plus returns the address that is n above a; n must not leave the family.
func plus(a netip.Addr, n uint64) netip.Addr {
	raw := a.AsSlice()
	for i := len(raw) - 1; i >= 0 && n > 0; i-- {
		n += uint64(raw[i])
		raw[i] = byte(n)
		n >>= 8
	}
	out, _ := netip.AddrFromSlice(raw)
	return out
}

// PortRange is an inclusive range of ports.
type PortRange struct{ From, To uint16 }

// ParsePortRange reads first-last.
func ParsePortRange(text string) (PortRange, error) {
	first, last, found := strings.Cut(text, "-")
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if !found || err1 != nil || err2 != nil || from == 0 || to < from {
		return PortRange{}, errors.New("must be two ports, first-last, such as 30000-32767")
	}
	return PortRange{uint16(from), uint16(to)}, nil
}

// String is first-last.
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.From, r.To) }

// Ranges are everything that there is to give away.
type Ranges struct {
	// Pods are cut into blocks of BlockBits.
	Pods []netip.Prefix
	// BlockBits is the prefix length of a block, by family (4, 6).
	BlockBits map[int]int
	Services  []netip.Prefix
	// LoadBalancers may be empty: Services of type LoadBalancer then stay pending.
	LoadBalancers []AddrRange
	NodePorts     PortRange
}

// family is 4 or 6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

const minServiceBits = 4

// Check returns what is wrong with the ranges. No two may overlap.
func (r Ranges) Check() []errs.Violation {
	var out []errs.Violation
	bad := func(field, value, rule string) {
		out = append(out, errs.Violation{Field: field, Value: value, Rule: rule})
	}
	if len(r.Pods) == 0 {
		bad("pods", "", "is required, such as [10.244.0.0/16, fd00:10:244::/48]")
	}
	if len(r.Services) == 0 {
		bad("services", "", "is required, such as [10.96.0.0/16, fd00:10:96::/112]")
	}
	type named struct {
		field string
		AddrRange
	}
	var all []named
	prefix := func(field string, p netip.Prefix) {
		if rule := unfit(p.Addr()); rule != "" {
			bad(field, p.String(), rule)
		}
		if p != p.Masked() {
			bad(field, p.String(), "has bits set behind the prefix; write "+p.Masked().String())
		}
		all = append(all, named{field, AddrRange{p.Masked().Addr(), nodestate.LastOf(p)}})
	}
	for i, p := range r.Pods {
		field := fmt.Sprintf("pods[%d]", i)
		prefix(field, p)
		bits := r.BlockBits[family(p.Addr())]
		if bits < p.Bits() || bits > p.Addr().BitLen()-2 {
			bad(field, p.String(), fmt.Sprintf("cannot be cut into blocks of /%d (blockSizes)", bits))
		}
	}
	for i, p := range r.Services {
		field := fmt.Sprintf("services[%d]", i)
		prefix(field, p)
		if p.Bits() > p.Addr().BitLen()-minServiceBits {
			bad(field, p.String(), "must have at least 16 addresses: default/kubernetes takes the first and kube-system/kube-dns the tenth")
		}
	}
	if r.NodePorts.From == 0 || r.NodePorts.To < r.NodePorts.From {
		bad("nodePorts", r.NodePorts.String(), "must be two ports, first-last, such as 30000-32767")
	}
	for i, l := range r.LoadBalancers {
		all = append(all, named{fmt.Sprintf("loadBalancers[%d]", i), l})
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if a.Overlaps(b.AddrRange) {
				bad(a.field, a.String(), "overlaps "+b.field+" "+b.String())
			}
		}
	}
	return out
}
