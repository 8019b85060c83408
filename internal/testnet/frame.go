package testnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// Frame is an Ethernet frame with an IP packet that a test forges: any field may be a lie.
type Frame struct {
	SrcMAC, DstMAC net.HardwareAddr
	// Src and Dst are of one family.
	Src, Dst netip.Addr
	// Protocol is an IP protocol number: TCP, UDP, ICMP and ICMPv6 get a header and a checksum, for others Payload is
	// the whole of the IP payload.
	Protocol         uint8
	SrcPort, DstPort uint16
	// Flags are the TCP flags: FlagSYN and so on.
	Flags uint8
	// Seq and Ack are TCP's numbers.
	Seq, Ack uint32
	// Type and Code are ICMP's; the four bytes after the checksum are zero.
	Type, Code uint8
	// TTL is 64 where zero.
	TTL     uint8
	Payload []byte
}

// The TCP flags.
const (
	FlagFIN uint8 = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
)

const ethernetHeader = 14

// Bytes is the frame as it goes on the wire.
func (f Frame) Bytes() []byte {
	b := make([]byte, 12, 128+len(f.Payload))
	copy(b[0:6], f.DstMAC)
	copy(b[6:12], f.SrcMAC)
	ttl := f.TTL
	if ttl == 0 {
		ttl = 64
	}
	l4 := f.transport()
	if f.Src.Is4() {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, ttl, f.Protocol
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
		copy(h[12:16], f.Src.AsSlice())
		copy(h[16:20], f.Dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(0, h))
		return append(append(b, h...), l4...)
	}
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, f.Protocol, ttl
	binary.BigEndian.PutUint16(h[4:], uint16(len(l4)))
	copy(h[8:24], f.Src.AsSlice())
	copy(h[24:40], f.Dst.AsSlice())
	return append(append(b, h...), l4...)
}

func (f Frame) transport() []byte {
	var h []byte
	at := -1 // offset of the checksum
	switch f.Protocol {
	case unix.IPPROTO_TCP:
		h = make([]byte, 20)
		binary.BigEndian.PutUint16(h[0:], f.SrcPort)
		binary.BigEndian.PutUint16(h[2:], f.DstPort)
		binary.BigEndian.PutUint32(h[4:], f.Seq)
		binary.BigEndian.PutUint32(h[8:], f.Ack)
		h[12], h[13] = 5<<4, f.Flags
		binary.BigEndian.PutUint16(h[14:], 0xffff)
		at = 16
	case unix.IPPROTO_UDP:
		h = make([]byte, 8)
		binary.BigEndian.PutUint16(h[0:], f.SrcPort)
		binary.BigEndian.PutUint16(h[2:], f.DstPort)
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(f.Payload)))
		at = 6
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		h = make([]byte, 8)
		h[0], h[1] = f.Type, f.Code
		at = 2
	}
	l4 := append(h, f.Payload...)
	if at < 0 {
		return l4
	}
	var sum uint32
	if f.Protocol != unix.IPPROTO_ICMP {
		sum = pseudoHeader(f.Src, f.Dst, f.Protocol, len(l4))
	}
	binary.BigEndian.PutUint16(l4[at:], checksum(sum, l4))
	return l4
}

func pseudoHeader(src, dst netip.Addr, protocol uint8, length int) uint32 {
	return add(add(uint32(protocol)+uint32(length), src.AsSlice()), dst.AsSlice())
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func checksum(sum uint32, b []byte) uint16 {
	sum = add(sum, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Send puts raw frames on a link, as if a process with CAP_NET_RAW in the namespace had sent them.
func (s *NS) Send(link string, frames ...[]byte) {
	s.t.Helper()
	s.Must(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		// Protocol 0: the socket receives nothing.
		c, err := packet.Listen(ifi, packet.Raw, 0, nil)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for _, f := range frames {
			if _, err := c.WriteTo(f, &packet.Addr{HardwareAddr: f[0:6]}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Tap receives the frames of one link from the moment it is opened.
type Tap struct {
	s    *NS
	link string
	conn *packet.Conn
}

// Tap opens a tap, which sees what the link receives and what it sends.
func (s *NS) Tap(link string) *Tap {
	s.t.Helper()
	t := &Tap{s: s, link: link}
	s.Must(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		t.conn, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	s.t.Cleanup(func() { _ = t.conn.Close() })
	return t
}

// Wait returns the first frame that matches; nil where none comes within the timeout.
func (t *Tap) Wait(timeout time.Duration, match func(frame []byte) bool) []byte {
	t.s.t.Helper()
	_ = t.conn.SetReadDeadline(time.Now().Add(timeout))
	buf := make([]byte, 65536+ethernetHeader)
	for {
		n, _, err := t.conn.ReadFrom(buf)
		if outcome, _ := outcomeOf(err); err != nil && outcome == TimedOut {
			return nil
		}
		if err != nil {
			t.s.t.Fatalf("in namespace %s: tap of %s: %v", t.s.name, t.link, err)
		}
		if match(buf[:n]) {
			return append([]byte(nil), buf[:n]...)
		}
	}
}
