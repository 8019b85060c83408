package ct

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"podwire.dev/internal/nodestate"
)

func attribute(kind uint16, data ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(attributeHeader+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, -len(data)&3)...)
}

func nested(kind uint16, parts ...[]byte) []byte {
	var data []byte
	for _, p := range parts {
		data = append(data, p...)
	}
	return attribute(kind|1<<15, data...)
}

func port(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func tuple(kind uint16, protocol byte, from, to netip.AddrPort) []byte {
	source, destination := uint16(ctaIPv4Source), uint16(ctaIPv4Destination)
	if !from.Addr().Is4() {
		source, destination = ctaIPv6Source, ctaIPv6Destination
	}
	return nested(kind,
		nested(ctaTupleIP, attribute(source, from.Addr().AsSlice()...), attribute(destination, to.Addr().AsSlice()...)),
		nested(ctaTupleProto, attribute(ctaProtoNumber, protocol),
			attribute(ctaProtoSourcePort, port(from.Port())...), attribute(ctaProtoDestinationPort, port(to.Port())...)))
}

func message(protocol byte, from, to, backend netip.AddrPort) []byte {
	b := tuple(ctaTupleOrig, protocol, from, to)
	b = append(b, tuple(ctaTupleReply, protocol, backend, from)...)
	b = append(b, attribute(ctaMark, 0, 0, 0, 7)...)
	b = append(b, attribute(ctaID, 1, 2, 3, 4)...)
	return append(b, attribute(ctaZone, 0, 9)...)
}

func TestDecode(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, c := range []struct{ from, to, backend netip.AddrPort }{
		{at("10.244.0.5:4000"), at("10.96.0.10:53"), at("10.244.1.2:5353")},
		{at("[fd00::5]:4000"), at("[fd00::6]:53"), at("[fd00::6]:53")},
	} {
		var e Entry
		if !e.decode(message(17, c.from, c.to, c.backend)) {
			t.Fatal("not decoded")
		}
		want := Entry{
			Protocol: nodestate.UDP, Original: Tuple{c.from, c.to}, Reply: Tuple{c.backend, c.from}, Zone: 9, Mark: 7,
		}
		if e.Protocol != want.Protocol || e.Original != want.Original || e.Reply != want.Reply || e.Zone != 9 || e.Mark != 7 {
			t.Errorf("got %+v, want %+v", e, want)
		}
		if e.Translated() != (c.to != c.backend) {
			t.Errorf("translated is %v", e.Translated())
		}
	}
}

// FuzzDecode feeds what a kernel would never say. What is decoded must name a flow completely, since a request to delete
// without a tuple deletes every flow.
func FuzzDecode(f *testing.F) {
	at := netip.MustParseAddrPort
	whole := message(6, at("10.0.0.1:1"), at("10.0.0.2:2"), at("10.0.0.3:3"))
	f.Add(whole)
	f.Add(whole[:len(whole)-5])
	f.Add(message(17, at("[fd00::5]:4000"), at("[fd00::6]:53"), at("[fd00::6]:53")))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Entry
		if !e.decode(b) {
			return
		}
		if e.Protocol == 0 || !e.Original.Source.IsValid() || !e.Original.Destination.IsValid() || !e.Reply.Source.IsValid() {
			t.Errorf("half a flow: %+v", e)
		}
		if len(e.name[0]) < attributeHeader || len(e.name[2]) < attributeHeader {
			t.Errorf("no name: %+v", e)
		}
	})
}

// FuzzDump feeds pieces of a dump.
func FuzzDump(f *testing.F) {
	at := netip.MustParseAddrPort
	body := append([]byte{2, 0, 0, 0}, message(6, at("10.0.0.1:1"), at("10.0.0.2:2"), at("10.0.0.3:3"))...)
	head := binary.NativeEndian.AppendUint32(nil, uint32(messageHeader+len(body)))
	head = binary.NativeEndian.AppendUint16(head, messageGet-1)
	head = binary.NativeEndian.AppendUint16(head, 2)
	head = binary.NativeEndian.AppendUint32(head, 7)
	head = binary.NativeEndian.AppendUint32(head, 0)
	f.Add(append(head, body...))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		d := dump{sequence: 7, each: func(*Entry) { n++ }}
		if err := d.read(b); err == nil && n > len(b)/messageHeader {
			t.Errorf("%d entries in %d bytes", n, len(b))
		}
	})
}
