package rtnl

import (
	"net/netip"
	"testing"
)

var gatewayForFuzz = netip.MustParseAddr("169.254.1.1")

// FuzzParse feeds arbitrary bytes to every parser of kernel messages: none may panic, read outside, or loop.
func FuzzParse(f *testing.F) {
	for _, r := range []Request{
		AddVeth(VethPair{Name: "a", PeerName: "b", MTU: 1500}), SetUp(Setup{Name: "a", MTU: 1500}),
		Address{Address: gatewayForFuzz}.Delete(),
	} {
		f.Add(appendMessage(nil, r.typ, 0, 1, r.payload))
	}
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		msgs, err := parseMessages(b)
		if err != nil {
			return
		}
		for _, m := range msgs {
			if len(m.payload) > len(b) {
				t.Fatal("a payload larger than what carried it")
			}
			parseLink(m)
			parseAddress(m)
			parseNeighbour(m, 1)
			parseRoute(m)
			_ = m.refusal(Request{}) // whatever it says, it must not panic
		}
	})
}
