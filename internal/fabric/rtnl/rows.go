package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Protocol is the number (RTPROT_*, IFAPROT_*) by which Podwire knows its own routes and addresses.
const Protocol = 97

// The attributes that golang.org/x/sys/unix lacks, from linux/if_addr.h, linux/neighbour.h.
const (
	ifaProto   = 11 // IFA_PROTO, Linux 5.18
	ndaIfindex = 8  // NDA_IFINDEX
	noLimit    = 0xffffffff
)

// Preference says whether the kernel may choose an address as the source of what it sends.
type Preference uint8

// The preferences.
const (
	Preferred Preference = iota
	// Deprecated addresses (preferred lifetime 0) answer, but are never chosen (RFC 4862 section 5.5.4).
	Deprecated
)

// Address is a host address (/32 or /128) of a link, valid for ever and without duplicate address detection.
type Address struct {
	Index      int
	Address    netip.Addr
	Preference Preference
	// Scope is RT_SCOPE_*; the kernel sets it for IPv6, where it is RT_SCOPE_UNIVERSE or RT_SCOPE_LINK.
	Scope uint8
	// Protocol is Protocol where the address is ours.
	Protocol uint8
}

// String is "<address> on link <index>".
func (a Address) String() string { return fmt.Sprintf("%s on link %d", a.Address, a.Index) }

const ifaddrmsgLen = 8

func (a Address) request(typ, flags uint16, verb string) Request {
	addrFlags := uint32(unix.IFA_F_PERMANENT)
	if a.Address.Is6() {
		addrFlags |= unix.IFA_F_NODAD
	}
	if a.Address.Is6() && a.Preference == Deprecated {
		addrFlags |= unix.IFA_F_NOPREFIXROUTE
	}
	p := make(payload, ifaddrmsgLen, 96)
	p[0], p[1], p[2], p[3] = familyOf(a.Address), uint8(a.Address.BitLen()), uint8(addrFlags), a.Scope
	binary.NativeEndian.PutUint32(p[4:], uint32(a.Index))
	p = p.addr(unix.IFA_LOCAL, a.Address).addr(unix.IFA_ADDRESS, a.Address)
	if typ == unix.RTM_NEWADDR {
		preferred := uint32(noLimit)
		if a.Preference == Deprecated {
			preferred = 0
		}
		info := binary.NativeEndian.AppendUint32(nil, preferred)
		info = binary.NativeEndian.AppendUint32(info, noLimit)
		p = p.u32(unix.IFA_FLAGS, addrFlags).attr(unix.IFA_CACHEINFO, append(info, make([]byte, 8)...)).
			u8(ifaProto, a.Protocol)
	}
	return Request{what: verb + " address " + a.String(), typ: typ, flags: flags, payload: p}
}

// Add puts the address on its link; an address that is there already is no failure.
func (a Address) Add() Request {
	r := a.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "add")
	r.tolerate = []unix.Errno{unix.EEXIST}
	return r
}

// Delete takes the address off its link; an address that is gone is no failure.
func (a Address) Delete() Request {
	r := a.request(unix.RTM_DELADDR, 0, "delete")
	r.tolerate = []unix.Errno{unix.EADDRNOTAVAIL, unix.ENODEV}
	return r
}

// Addresses returns the host addresses of a link (others are not ours and are left out), both families.
func (c *Conn) Addresses(index int) ([]Address, error) {
	var as []Address
	err := c.eachAddress(index, func(a Address, bits int) {
		if bits == a.Address.BitLen() {
			as = append(as, a)
		}
	})
	return as, err
}

// FindAddress returns the index of the link that has an address, whatever its prefix length, and whether one has.
func (c *Conn) FindAddress(wanted netip.Addr) (int, bool, error) {
	index := 0
	err := c.eachAddress(0, func(a Address, _ int) {
		if a.Address == wanted {
			index = a.Index
		}
	})
	return index, index != 0, err
}

func (c *Conn) eachAddress(index int, fn func(a Address, bits int)) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		p := make(payload, ifaddrmsgLen)
		p[0] = family
		binary.NativeEndian.PutUint32(p[4:], uint32(index))
		msgs, err := c.dump("addresses", unix.RTM_GETADDR, p)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if a, bits, ok := parseAddress(m); ok {
				fn(a, bits)
			}
		}
	}
	return nil
}

func parseAddress(m message) (Address, int, bool) {
	if len(m.payload) < ifaddrmsgLen {
		return Address{}, 0, false
	}
	a := Address{Scope: m.payload[3], Index: int(number(m.payload[4:8]))}
	bits := int(m.payload[1])
	var local netip.Addr
	for _, at := range attributes(m.payload[ifaddrmsgLen:]) {
		switch at.typ {
		case unix.IFA_ADDRESS:
			a.Address = address(at.value)
		case unix.IFA_LOCAL:
			local = address(at.value)
		case unix.IFA_FLAGS:
			if number(at.value)&unix.IFA_F_DEPRECATED != 0 {
				a.Preference = Deprecated
			}
		case ifaProto:
			a.Protocol = uint8(number(at.value))
		}
	}
	if local.IsValid() {
		a.Address = local
	}
	return a, bits, a.Address.IsValid()
}

// Neighbour is a permanent neighbour entry: packets to Address on the link go to MAC at once, without a question.
type Neighbour struct {
	Index   int
	Address netip.Addr
	MAC     [6]byte
}

// Forwarding is a permanent entry of a VXLAN device's forwarding table: frames to MAC are sent to the tunnel end To.
type Forwarding struct {
	Index int
	MAC   [6]byte
	To    netip.Addr
}

const ndmsgLen = 12

func ndmsg(family uint8, index int, state uint16, flags uint8) payload {
	p := make(payload, ndmsgLen, 64)
	p[0] = family
	binary.NativeEndian.PutUint32(p[4:], uint32(index))
	binary.NativeEndian.PutUint16(p[8:], state)
	p[10] = flags
	return p
}

// Set adds or replaces the entry.
func (n Neighbour) Set() Request {
	return Request{
		what: fmt.Sprintf("set neighbour %s on link %d", n.Address, n.Index), typ: unix.RTM_NEWNEIGH,
		flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE,
		payload: ndmsg(familyOf(n.Address), n.Index, unix.NUD_PERMANENT, 0).
			addr(unix.NDA_DST, n.Address).attr(unix.NDA_LLADDR, n.MAC[:]),
	}
}

// Delete removes the entry; an entry that is gone is no failure.
func (n Neighbour) Delete() Request {
	return Request{
		what: fmt.Sprintf("delete neighbour %s on link %d", n.Address, n.Index), typ: unix.RTM_DELNEIGH,
		payload:  ndmsg(familyOf(n.Address), n.Index, 0, 0).addr(unix.NDA_DST, n.Address),
		tolerate: []unix.Errno{unix.ENOENT, unix.ENODEV},
	}
}

// Neighbours returns the permanent neighbour entries of a link, both families.
func (c *Conn) Neighbours(index int) ([]Neighbour, error) {
	var ns []Neighbour
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msgs, err := c.dump("neighbours", unix.RTM_GETNEIGH, ndmsg(family, 0, 0, 0).u32(ndaIfindex, uint32(index)))
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			mac, dst, ok := parseNeighbour(m, index)
			if ok {
				ns = append(ns, Neighbour{Index: index, Address: dst, MAC: mac})
			}
		}
	}
	return ns, nil
}

// Set adds or replaces the entry.
func (f Forwarding) Set() Request {
	return Request{
		what: fmt.Sprintf("set forwarding entry %x to %s on link %d", f.MAC, f.To, f.Index), typ: unix.RTM_NEWNEIGH,
		flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE,
		payload: ndmsg(unix.AF_BRIDGE, f.Index, unix.NUD_PERMANENT, unix.NTF_SELF).
			attr(unix.NDA_LLADDR, f.MAC[:]).addr(unix.NDA_DST, f.To),
	}
}

// Delete removes the entry; an entry that is gone is no failure.
func (f Forwarding) Delete() Request {
	return Request{
		what: fmt.Sprintf("delete forwarding entry %x on link %d", f.MAC, f.Index), typ: unix.RTM_DELNEIGH,
		payload: ndmsg(unix.AF_BRIDGE, f.Index, 0, unix.NTF_SELF).
			attr(unix.NDA_LLADDR, f.MAC[:]).addr(unix.NDA_DST, f.To),
		tolerate: []unix.Errno{unix.ENOENT, unix.ENODEV},
	}
}

// Forwardings returns the permanent forwarding entries of a VXLAN device.
func (c *Conn) Forwardings(index int) ([]Forwarding, error) {
	msgs, err := c.dump("forwarding entries", unix.RTM_GETNEIGH, ndmsg(unix.AF_BRIDGE, 0, 0, 0).u32(ndaIfindex, uint32(index)))
	if err != nil {
		return nil, err
	}
	var fs []Forwarding
	for _, m := range msgs {
		mac, dst, ok := parseNeighbour(m, index)
		if ok {
			fs = append(fs, Forwarding{Index: index, MAC: mac, To: dst})
		}
	}
	return fs, nil
}

func parseNeighbour(m message, index int) (mac [6]byte, dst netip.Addr, ok bool) {
	if len(m.payload) < ndmsgLen || int(number(m.payload[4:8])) != index ||
		binary.NativeEndian.Uint16(m.payload[8:])&unix.NUD_PERMANENT == 0 {
		return mac, dst, false
	}
	for _, a := range attributes(m.payload[ndmsgLen:]) {
		switch a.typ {
		case unix.NDA_DST:
			dst = address(a.value)
		case unix.NDA_LLADDR:
			ok = copy(mac[:], a.value) == 6
		}
	}
	return mac, dst, ok && dst.IsValid()
}
