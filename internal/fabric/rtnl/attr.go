package rtnl

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// payload builds the body of a request: a fixed header and attributes.
type payload []byte

func align(n int) int { return (n + 3) &^ 3 }

// attr appends an attribute with its padding.
func (p payload) attr(typ uint16, value []byte) payload {
	p = binary.NativeEndian.AppendUint16(p, uint16(4+len(value)))
	p = binary.NativeEndian.AppendUint16(p, typ)
	p = append(p, value...)
	for len(p)%4 != 0 {
		p = append(p, 0)
	}
	return p
}

func (p payload) u8(typ uint16, v uint8) payload { return p.attr(typ, []byte{v}) }

func (p payload) u32(typ uint16, v uint32) payload {
	return p.attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

func (p payload) str(typ uint16, v string) payload { return p.attr(typ, append([]byte(v), 0)) }

func (p payload) addr(typ uint16, a netip.Addr) payload { return p.attr(typ, a.AsSlice()) }

// nest appends an attribute whose value is attributes.
func (p payload) nest(typ uint16, inner payload) payload {
	return p.attr(typ|unix.NLA_F_NESTED, inner)
}

// attribute is one attribute of an answer; its value points into the message.
type attribute struct {
	typ   uint16
	value []byte
}

// attributes splits a block of attributes; what is cut short is left out.
func attributes(b []byte) []attribute {
	var as []attribute
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			break
		}
		as = append(as, attribute{
			typ:   binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER),
			value: b[4:size],
		})
		b = b[min(align(size), len(b)):]
	}
	return as
}

func number(b []byte) uint32 {
	switch {
	case len(b) >= 4:
		return binary.NativeEndian.Uint32(b)
	case len(b) >= 2:
		return uint32(binary.NativeEndian.Uint16(b))
	case len(b) == 1:
		return uint32(b[0])
	}
	return 0
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

func address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func unspecified(family uint8) netip.Addr {
	if family == unix.AF_INET {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
