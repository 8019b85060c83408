package rtnl

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// DefaultLinks returns the indexes of the links that the default routes of the main table lead to, whoever made them: IPv4
// first, then by metric. A route over several links at once names none.
func (c *Conn) DefaultLinks() ([]int, error) {
	type way struct {
		family uint8
		metric uint32
		index  int
	}
	var ways []way
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		p := make(payload, rtmsgLen)
		p[0], p[4] = family, unix.RT_TABLE_MAIN
		msgs, err := c.dump("default routes", unix.RTM_GETROUTE, p)
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			if m.typ != unix.RTM_NEWROUTE || len(m.payload) < rtmsgLen || m.payload[1] != 0 || m.payload[7] != unix.RTN_UNICAST {
				continue
			}
			w := way{family: family}
			for _, a := range attributes(m.payload[rtmsgLen:]) {
				switch a.typ {
				case unix.RTA_OIF:
					w.index = int(number(a.value))
				case unix.RTA_PRIORITY:
					w.metric = number(a.value)
				}
			}
			if w.index != 0 {
				ways = append(ways, w)
			}
		}
	}
	slices.SortStableFunc(ways, func(a, b way) int {
		return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.metric, b.metric))
	})
	var links []int
	for _, w := range ways {
		if !slices.Contains(links, w.index) {
			links = append(links, w.index)
		}
	}
	return links, nil
}

// GlobalAddresses returns the addresses of a link that other hosts may reach, whatever their prefix length: IPv4 first, each
// family in the kernel's order.
func (c *Conn) GlobalAddresses(index int) ([]netip.Addr, error) {
	var out []netip.Addr
	err := c.eachAddress(index, func(a Address, _ int) {
		if a.Index == index && a.Scope == unix.RT_SCOPE_UNIVERSE && !a.Address.IsLoopback() {
			out = append(out, a.Address)
		}
	})
	return out, err
}
