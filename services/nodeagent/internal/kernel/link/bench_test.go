package link

import (
	"fmt"
	"net/netip"
	"testing"

	"podwire.dev/internal/fabric/rtnl"
	"podwire.dev/internal/testnet"
)

// BenchmarkAttach is a dual-stack pod from nothing to reachable; BenchmarkBare is the pair alone, as small as netlink allows:
// made and both ends set up. Their ratio is what the addresses, neighbours, routes and settings cost.
func BenchmarkAttach(b *testing.B) {
	s := testnet.New(b).AddNS("node")
	inside := testnet.New(b).AddNS("pod")
	p := Pod{
		UID: "u", Namespace: "default", Name: "p", NetNS: inside.Path(), MTU: 1450,
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:10:244:1::5")},
	}
	s.Must(func() error {
		l, err := Open()
		if err != nil {
			return err
		}
		defer l.Close()
		for b.Loop() {
			if _, err := l.Attach(p); err != nil {
				return err
			}
			b.StopTimer()
			if err := l.Detach(p.UID); err != nil {
				return err
			}
			b.StartTimer()
		}
		return nil
	})
}

func BenchmarkBare(b *testing.B) {
	s := testnet.New(b).AddNS("node")
	inside := testnet.New(b).AddNS("pod")
	s.Must(func() error {
		c, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		var far *rtnl.Conn
		inside.Must(func() error {
			var err error
			far, err = rtnl.Open()
			return err
		})
		defer far.Close()
		for i := 0; b.Loop(); i++ {
			name := fmt.Sprintf("v%d", i)
			k, err := c.DoThenGet(name, rtnl.AddVeth(rtnl.VethPair{
				Name: name, PeerName: "eth0", MAC: hostMAC, PeerMAC: [6]byte{2}, MTU: 1450, PeerNS: inside.FD(),
			}), rtnl.SetUp(rtnl.Setup{Name: name}))
			if err != nil {
				return err
			}
			if err := far.Do(rtnl.SetUp(rtnl.Setup{Index: k.Peer})); err != nil {
				return err
			}
			b.StopTimer()
			if err := c.Do(rtnl.DeleteLink(k.Index)); err != nil {
				return err
			}
			b.StartTimer()
		}
		return nil
	})
}
