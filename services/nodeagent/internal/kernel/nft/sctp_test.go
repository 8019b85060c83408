package nft_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/testnet"
)

// chunk is an SCTP chunk of RFC 9260, section 3.3.
type chunk []byte

// The chunks that tests send. Values that no test looks at are arbitrary.
var (
	sctpINIT      = chunk{1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1}
	sctpDATA      = chunk{0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 't', 'o', 'l', 'd'}
	sctpHeartbeat = chunk{4, 0, 0, 12, 0, 1, 0, 8, 0, 0, 0, 0}
	sctpBeatAck   = chunk{5, 0, 0, 12, 0, 1, 0, 8, 0, 0, 0, 0}
)

// sctp is an SCTP packet with one chunk. Conntrack drops those whose CRC32c is wrong.
func sctp(from, to uint16, tag uint32, c chunk) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(append(b, 0, 0, 0, 0), c...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// TestWhatAFlowBeginsWith is why the entries of some protocols are deleted when policy forbids a flow, and those of others marked
// (internal/kernel/ct): what a server still sends must not begin the flow anew, in the direction that policy allows. Pod b may
// send nothing; remote may send to it.
func TestWhatAFlowBeginsWith(t *testing.T) {
	each(t, func(w *world, f family) {
		w.set(isolated("b", false, true))
		ping, pong, icmp := uint8(8), uint8(0), uint8(unix.IPPROTO_ICMP)
		if f.n == 6 {
			ping, pong, icmp = 128, 129, unix.IPPROTO_ICMPV6
		}
		const experimental = 253 // of RFC 3692: conntrack knows nothing of it
		number := 0
		// passes says whether a packet arrives from remote at b, or from b at remote.
		passes := func(from string, p testnet.Frame) bool {
			t.Helper()
			to, link := "b", "pwvx"
			p.Src, p.Dst = f.remote, f.pods["b"]
			if from == "b" {
				to, link = "remote", "pwpb"
				p.Src, p.Dst = p.Dst, p.Src
			}
			p.SrcMAC, p.DstMAC = w.ns[from].Link("eth0").Attrs().HardwareAddr, w.ns["node"].Link(link).Attrs().HardwareAddr
			wanted := p.Payload
			if p.Protocol != unix.IPPROTO_SCTP {
				number++
				wanted = fmt.Appendf(nil, "packet number %d", number)
				p.Payload = wanted
			}
			tap := w.ns[to].Tap("eth0")
			w.ns[from].Send("eth0", p.Bytes())
			return tap.Wait(300*time.Millisecond, func(b []byte) bool { return bytes.Contains(b, wanted) }) != nil
		}
		frame := func(protocol, kind uint8) testnet.Frame {
			return testnet.Frame{Protocol: protocol, Type: kind, Flags: testnet.FlagACK, SrcPort: 53, DstPort: 40000}
		}
		association := func(from string, c chunk) testnet.Frame {
			if from == "b" {
				return testnet.Frame{Protocol: unix.IPPROTO_SCTP, Payload: sctp(40000, 53, 9, c)}
			}
			return testnet.Frame{Protocol: unix.IPPROTO_SCTP, Payload: sctp(53, 40000, 7, c)}
		}
		for _, c := range []struct {
			what string
			p    testnet.Frame
			want bool
		}{
			{"TCP, in the middle", frame(unix.IPPROTO_TCP, 0), false},
			{"an answer to a ping", frame(icmp, pong), false},
			{"a ping", frame(icmp, ping), true},
			{"SCTP data", association("remote", sctpDATA), false},
			{"UDP", frame(unix.IPPROTO_UDP, 0), true},
			{"another protocol", frame(experimental, 0), true},
			{"an SCTP heartbeat", association("remote", sctpHeartbeat), true},
		} {
			if got := passes("remote", c.p); got != c.want {
				t.Errorf("%s as the beginning of a flow: passes %v", c.what, got)
			}
		}
		// What such a beginning takes with it: packets that b may not send.
		for what, p := range map[string]testnet.Frame{
			"UDP":              {Protocol: unix.IPPROTO_UDP, SrcPort: 40000, DstPort: 53},
			"another protocol": {Protocol: experimental},
			"SCTP":             association("b", sctpBeatAck),
		} {
			if !passes("b", p) {
				t.Errorf("%s that answers what came does not pass", what)
			}
		}
		if !passes("b", association("b", sctpDATA)) {
			t.Error("SCTP data does not pass after an answered heartbeat: the entries of SCTP need no mark any more")
		}
		if passes("b", testnet.Frame{Protocol: unix.IPPROTO_UDP, SrcPort: 40001, DstPort: 53}) {
			t.Error("b may send after all")
		}
	})
}
