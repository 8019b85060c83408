package announce

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in an Ethernet frame with ARP (RFC 826) and with a neighbour advertisement (RFC 4861 section 4.4).
const (
	etherType = 12
	arpStart  = 14
	arpSender = arpStart + 14
	arpTarget = arpStart + 24
	arpEnd    = arpStart + 28

	ipStart     = 14
	ipNext      = ipStart + 6
	ipHops      = ipStart + 7
	ipDst       = ipStart + 24
	icmpStart   = ipStart + 40
	icmpFlags   = icmpStart + 4
	icmpTarget  = icmpStart + 8
	icmpOptions = icmpStart + 24

	icmpAdvertisement = 136
	flagSolicited     = 0x40
	flagOverride      = 0x20
	optionTargetMAC   = 2
)

// broadcast and allNodes are the MACs to which announcements go; allNodesIP is ff02::1.
var (
	broadcast  = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes   = [6]byte{0x33, 0x33, 0, 0, 0, 1}
	allNodesIP = netip.IPv6LinkLocalAllNodes()
)

// filterARP passes ARP whose sender and target address are the same. The kernel runs it, so that nothing else wakes us.
var filterARP = assemble(
	bpf.LoadAbsolute{Off: arpSender, Size: 4},
	bpf.TAX{},
	bpf.LoadAbsolute{Off: arpTarget, Size: 4},
	bpf.JumpIfX{Cond: bpf.JumpEqual, SkipFalse: 1},
	bpf.RetConstant{Val: 256},
	bpf.RetConstant{Val: 0},
)

// filterNA passes neighbour advertisements.
var filterNA = assemble(
	bpf.LoadAbsolute{Off: ipNext, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipFalse: 3},
	bpf.LoadAbsolute{Off: icmpStart, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpAdvertisement, SkipFalse: 1},
	bpf.RetConstant{Val: 256},
	bpf.RetConstant{Val: 0},
)

// assemble turns a program of constants into the kernel's form; a test runs each.
func assemble(program ...bpf.Instruction) []bpf.RawInstruction {
	raw, _ := bpf.Assemble(program)
	return raw
}

// announcement returns the frame that tells the link that an address is at mac: an ARP announcement (RFC 5227 section 3) or
// an unsolicited neighbour advertisement (RFC 4861 section 7.2.6).
func announcement(address netip.Addr, mac [6]byte) []byte {
	if address.Is4() {
		b := append(append(broadcast[:], mac[:]...), 0x08, 0x06)
		b = append(b, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, address lengths, request
		b = append(append(b, mac[:]...), address.AsSlice()...)
		return append(append(b, make([]byte, 6)...), address.AsSlice()...)
	}
	body := []byte{icmpAdvertisement, 0, 0, 0, flagOverride, 0, 0, 0}
	body = append(body, address.AsSlice()...)
	body = append(append(body, optionTargetMAC, 1), mac[:]...)
	binary.BigEndian.PutUint16(body[2:], checksum(address, allNodesIP, body))
	b := append(append(allNodes[:], mac[:]...), 0x86, 0xdd)
	b = append(b, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255)
	b = append(append(b, address.AsSlice()...), allNodesIP.AsSlice()...)
	return append(b, body...)
}

// checksum is the Internet checksum of an ICMPv6 message of even length with its pseudo-header (RFC 8200 section 8.1).
func checksum(src, dst netip.Addr, body []byte) uint16 {
	sum := uint32(len(body)) + unix.IPPROTO_ICMPV6
	for _, b := range [][]byte{src.AsSlice(), dst.AsSlice(), body} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parse returns the address that a frame announces, and the MAC that claims it; ok is false for every other frame.
func parse(frame []byte) (address netip.Addr, mac [6]byte, ok bool) {
	if len(frame) < arpEnd {
		return address, mac, false
	}
	switch binary.BigEndian.Uint16(frame[etherType:]) {
	case unix.ETH_P_ARP:
		// Hardware type, protocol type and the two lengths of Ethernet and IPv4.
		if string(frame[arpStart:arpStart+6]) != "\x00\x01\x08\x00\x06\x04" {
			return address, mac, false
		}
		sender := netip.AddrFrom4([4]byte(frame[arpSender:]))
		target := netip.AddrFrom4([4]byte(frame[arpTarget:]))
		copy(mac[:], frame[arpStart+8:])
		return sender, mac, sender == target && !sender.IsUnspecified()
	case unix.ETH_P_IPV6:
		return parseAdvertisement(frame)
	}
	return address, mac, false
}

func parseAdvertisement(frame []byte) (address netip.Addr, mac [6]byte, ok bool) {
	// A hop limit below 255 comes from outside the link (RFC 4861 section 7.1.2); a solicited advertisement answers somebody,
	// and one that does not override changes nobody's mind.
	if len(frame) < icmpOptions || frame[ipNext] != unix.IPPROTO_ICMPV6 || frame[ipHops] != 255 ||
		frame[icmpStart] != icmpAdvertisement || frame[icmpFlags]&(flagSolicited|flagOverride) != flagOverride ||
		frame[ipDst] != 0xff {
		return address, mac, false
	}
	copy(mac[:], frame[6:12])
	for options := frame[icmpOptions:]; len(options) >= 8; {
		size := int(options[1]) * 8
		if size == 0 || size > len(options) {
			break
		}
		if options[0] == optionTargetMAC {
			copy(mac[:], options[2:8])
		}
		options = options[size:]
	}
	return netip.AddrFrom16([16]byte(frame[icmpTarget:])), mac, true
}
