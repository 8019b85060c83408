package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
)

const (
	// awaitLimit bounds the wait of DoThenAwait for one address; the work takes well below a millisecond.
	awaitLimit = 2 * time.Second
	// awaitLook is how long to wait for an event before looking again: the kernel announces the route a moment before its
	// own lookup finds it, so the last event may come too early (about once in 1,500 addresses on Linux 6.18).
	awaitLook = 2 * time.Millisecond
)

// DoThenAwait carries requests out that add addresses, and returns when this host takes what is sent to each of local.
//
// The kernel answers the request for an IPv6 address, even one without duplicate address detection, before a worker has put
// the address into the local routing table (addrconf_dad_work, seen with Linux 6.18). Until then the first packets to it are
// lost. IPv4 has no such gap.
func (c *Conn) DoThenAwait(local []netip.Addr, requests ...Request) error {
	var pending []netip.Addr
	for _, a := range local {
		if a.Is6() {
			pending = append(pending, a)
		}
	}
	if len(pending) == 0 {
		return c.Do(requests...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Subscribed before the first look, so that what happens in between is told.
	if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_IPV6_ROUTE); err != nil {
		return errs.WrapAs(errs.Internal, err, "rtnetlink: subscribe to routes")
	}
	defer func() {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, unix.RTNLGRP_IPV6_ROUTE)
	}()
	if _, err := c.exchangeLocked(requests); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: awaitLook.Microseconds()}); err != nil {
		return errs.WrapAs(errs.Internal, err, "rtnetlink: set timeout")
	}
	defer func() { _ = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}) }()
	for _, a := range pending {
		if err := c.awaitLocked(a); err != nil {
			return err
		}
	}
	return nil
}

func (c *Conn) awaitLocked(a netip.Addr) error {
	for end := time.Now().Add(awaitLimit); ; {
		seen := c.events
		here, err := c.isLocal(a)
		if err != nil || here {
			return err
		}
		if c.events != seen {
			continue // the event came between the look and the end of its answer
		}
		if time.Now().After(end) {
			return errs.New(errs.Unavailable, "rtnetlink: the kernel took address %s but did not route it to this host within %s",
				a, awaitLimit)
		}
		if _, err := c.receive(); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
}

// isLocal asks which route a packet to the address would take.
func (c *Conn) isLocal(a netip.Addr) (bool, error) {
	p := make(payload, rtmsgLen, 64)
	p[0], p[1] = familyOf(a), uint8(a.BitLen())
	answers, err := c.exchangeLocked([]Request{{
		what: fmt.Sprintf("get route to %s", a), typ: unix.RTM_GETROUTE, query: true, payload: p.addr(unix.RTA_DST, a),
		tolerate: []unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH},
	}})
	if err != nil {
		return false, err
	}
	for _, m := range answers {
		if m.typ == unix.RTM_NEWROUTE && len(m.payload) >= rtmsgLen && m.payload[7] == unix.RTN_LOCAL {
			return true, nil
		}
	}
	return false, nil
}
