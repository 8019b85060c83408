package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// RouteType is RTN_* of linux/rtnetlink.h.
type RouteType uint8

// The route types in use.
const (
	Unicast RouteType = unix.RTN_UNICAST
	// Unreachable refuses at once: EHOSTUNREACH to a local sender, an ICMP error to a remote one.
	Unreachable RouteType = unix.RTN_UNREACHABLE
)

// Route is a route of the main table, with the protocol number [Protocol].
type Route struct {
	Dst  netip.Prefix
	Type RouteType
	// Index is the outgoing link; 0 for Unreachable.
	Index int
	// Via is the gateway, taken to be on the link; the zero value where the destination itself is on the link.
	Via netip.Addr
	// Src is the source that the kernel prefers for what this host sends; the zero value leaves the choice.
	Src netip.Addr
	// Metric orders routes to the same destination; at least 1.
	Metric uint32
}

// RouteKey is what the kernel allows one route for.
type RouteKey struct {
	Dst    netip.Prefix
	Metric uint32
}

// Key is the route's key.
func (r Route) Key() RouteKey { return RouteKey{r.Dst, r.Metric} }

// String is the route as iproute2 writes it, about.
func (r Route) String() string {
	s := r.Dst.String()
	if r.Type == Unreachable {
		s = "unreachable " + s
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Index != 0 {
		s += fmt.Sprintf(" link %d", r.Index)
	}
	return fmt.Sprintf("%s metric %d", s, r.Metric)
}

const rtmsgLen = 12

func (r Route) request(typ, flags uint16, verb string) Request {
	p := make(payload, rtmsgLen, 96)
	p[0], p[1] = familyOf(r.Dst.Addr()), uint8(r.Dst.Bits())
	p[4], p[5], p[6], p[7] = unix.RT_TABLE_MAIN, Protocol, unix.RT_SCOPE_UNIVERSE, uint8(r.Type)
	if r.Type == Unicast && !r.Via.IsValid() && r.Dst.Addr().Is4() {
		p[6] = unix.RT_SCOPE_LINK
	}
	if r.Via.IsValid() {
		binary.NativeEndian.PutUint32(p[8:], unix.RTNH_F_ONLINK)
	}
	if r.Dst.Bits() > 0 {
		p = p.addr(unix.RTA_DST, r.Dst.Addr())
	}
	if r.Via.IsValid() {
		p = p.addr(unix.RTA_GATEWAY, r.Via)
	}
	if r.Src.IsValid() {
		p = p.addr(unix.RTA_PREFSRC, r.Src)
	}
	if r.Index != 0 {
		p = p.u32(unix.RTA_OIF, uint32(r.Index))
	}
	p = p.u32(unix.RTA_PRIORITY, r.Metric)
	return Request{what: verb + " route " + r.String(), typ: typ, flags: flags, payload: p}
}

// Add adds the route; it fails with EEXIST where anybody has a route of the same key.
func (r Route) Add() Request {
	return r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "add")
}

// Replace puts the route in the place of one of the same key, without a moment between the two.
func (r Route) Replace() Request {
	return r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, "replace")
}

// Delete removes the route; a route that is gone is no failure.
func (r Route) Delete() Request {
	q := r.request(unix.RTM_DELROUTE, 0, "delete")
	q.tolerate = []unix.Errno{unix.ESRCH, unix.ENODEV}
	return q
}

// Routes returns the routes of the main table that have our protocol number, both families. Index 0 asks for every link.
func (c *Conn) Routes(index int) ([]Route, error) {
	var rs []Route
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		p := make(payload, rtmsgLen)
		p[0], p[4], p[5] = family, unix.RT_TABLE_MAIN, Protocol
		if index != 0 {
			p = p.u32(unix.RTA_OIF, uint32(index))
		}
		msgs, err := c.dump("routes", unix.RTM_GETROUTE, p)
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			if r, ok := parseRoute(m); ok {
				rs = append(rs, r)
			}
		}
	}
	return rs, nil
}

func parseRoute(m message) (Route, bool) {
	if m.typ != unix.RTM_NEWROUTE || len(m.payload) < rtmsgLen || m.payload[5] != Protocol {
		return Route{}, false
	}
	family, bits := m.payload[0], int(m.payload[1])
	r := Route{Type: RouteType(m.payload[7])}
	dst := unspecified(family)
	table := uint32(m.payload[4])
	for _, a := range attributes(m.payload[rtmsgLen:]) {
		switch a.typ {
		case unix.RTA_DST:
			dst = address(a.value)
		case unix.RTA_GATEWAY:
			r.Via = address(a.value)
		case unix.RTA_PREFSRC:
			r.Src = address(a.value)
		case unix.RTA_OIF:
			r.Index = int(number(a.value))
		case unix.RTA_PRIORITY:
			r.Metric = number(a.value)
		case unix.RTA_TABLE:
			table = number(a.value)
		}
	}
	if r.Type == Unreachable {
		r.Index = 0 // IPv6 shows the loopback link
	}
	r.Dst = netip.PrefixFrom(dst, bits)
	return r, table == unix.RT_TABLE_MAIN && dst.IsValid()
}

// LearnedRouters returns the indexes of the links by which this host learned a default router from router advertisements
// (RTPROT_RA), sorted by first appearance.
func (c *Conn) LearnedRouters() ([]int, error) {
	p := make(payload, rtmsgLen)
	p[0], p[4], p[5] = unix.AF_INET6, unix.RT_TABLE_MAIN, unix.RTPROT_RA
	msgs, err := c.dump("routes", unix.RTM_GETROUTE, p)
	if err != nil {
		return nil, err
	}
	var links []int
	seen := map[int]bool{}
	for _, m := range msgs {
		if m.typ != unix.RTM_NEWROUTE || len(m.payload) < rtmsgLen || m.payload[1] != 0 || m.payload[5] != unix.RTPROT_RA {
			continue
		}
		for _, a := range attributes(m.payload[rtmsgLen:]) {
			if index := int(number(a.value)); a.typ == unix.RTA_OIF && !seen[index] {
				seen[index] = true
				links = append(links, index)
			}
		}
	}
	return links, nil
}
