package ct

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// Tuple is one direction of a flow. Ports are 0 where the protocol has none.
type Tuple struct{ Source, Destination netip.AddrPort }

// Entry is one tracked flow. Reply.Source is the destination after translation, Reply.Destination the source.
type Entry struct {
	Protocol        nodestate.Protocol
	Original, Reply Tuple
	Zone            uint16
	Mark            uint32
	// name are the attributes that name the entry to the kernel: original tuple, zone and id. They belong to the message
	// that the entry was read from.
	name [3][]byte
}

// Translated says whether the flow's destination was translated.
func (e *Entry) Translated() bool { return e.Reply.Source != e.Original.Destination }

// Cut says whether the entry is marked as one whose packets the table drops.
func (e *Entry) Cut() bool { return e.Mark&plan.IDMask == plan.CutMark }

// keep makes the entry independent of the message that it was read from.
func (e *Entry) keep() Entry {
	c := *e
	for i, raw := range e.name {
		c.name[i] = append([]byte(nil), raw...)
	}
	return c
}

// The attributes of linux/netfilter/nfnetlink_conntrack.h. Numbers are big endian.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaMark       = 8
	ctaID         = 12
	ctaZone       = 18
	ctaMarkMask   = 21

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Source      = 1
	ctaIPv4Destination = 2
	ctaIPv6Source      = 3
	ctaIPv6Destination = 4

	ctaProtoNumber          = 1
	ctaProtoSourcePort      = 2
	ctaProtoDestinationPort = 3
)

const attributeHeader = 4

// attributes walks netlink attributes; raw includes the header. It says whether the bytes were whole.
func attributes(b []byte, each func(kind uint16, raw, data []byte)) bool {
	for len(b) > 0 {
		if len(b) < attributeHeader {
			return false
		}
		n := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if n < attributeHeader || n > len(b) {
			return false
		}
		each(kind, b[:n], b[attributeHeader:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	return true
}

// decode reads the attributes of a conntrack message, after its nfgenmsg. It says whether they name a flow.
func (e *Entry) decode(b []byte) bool {
	*e = Entry{}
	whole := true
	var protocols [2]nodestate.Protocol
	ok := attributes(b, func(kind uint16, raw, data []byte) {
		switch kind {
		case ctaTupleOrig:
			e.name[0] = raw
			whole = e.Original.decode(data, &protocols[0]) && whole
		case ctaTupleReply:
			whole = e.Reply.decode(data, &protocols[1]) && whole
		case ctaMark:
			e.Mark = number32(data)
		case ctaID:
			e.name[2] = raw
		case ctaZone:
			e.name[1] = raw
			e.Zone = number16(data)
		}
	})
	e.Protocol = protocols[0]
	return ok && whole && e.name[0] != nil && e.name[2] != nil && protocols[0] == protocols[1]
}

func (t *Tuple) decode(b []byte, protocol *nodestate.Protocol) bool {
	var source, destination netip.Addr
	var from, to uint16
	whole := true
	ok := attributes(b, func(kind uint16, _, data []byte) {
		switch kind {
		case ctaTupleIP:
			whole = attributes(data, func(kind uint16, _, data []byte) {
				a, isAddr := netip.AddrFromSlice(data)
				switch {
				case !isAddr:
				case kind == ctaIPv4Source && a.Is4(), kind == ctaIPv6Source && !a.Is4():
					source = a
				case kind == ctaIPv4Destination && a.Is4(), kind == ctaIPv6Destination && !a.Is4():
					destination = a
				}
			}) && whole
		case ctaTupleProto:
			whole = attributes(data, func(kind uint16, _, data []byte) {
				switch kind {
				case ctaProtoNumber:
					if len(data) == 1 {
						*protocol = nodestate.Protocol(data[0])
					}
				case ctaProtoSourcePort:
					from = number16(data)
				case ctaProtoDestinationPort:
					to = number16(data)
				}
			}) && whole
		}
	})
	t.Source, t.Destination = netip.AddrPortFrom(source, from), netip.AddrPortFrom(destination, to)
	return ok && whole && source.IsValid() && destination.IsValid() && *protocol != 0
}

func number16(b []byte) uint16 {
	if len(b) != 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func number32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
