package testnet

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair: the name of the link in its namespace, and its addresses.
type End struct {
	NS        *NS
	Link      string
	Addresses []netip.Prefix
}

// Wire connects two ends by a veth pair, up, with their addresses and without duplicate address detection, so that both
// directions work as soon as Wire returns.
func (n *Net) Wire(a, b End) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Link
	err := a.NS.handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: b.Link, PeerNamespace: netlink.NsFd(b.NS.FD())})
	if err != nil {
		n.t.Fatalf("testnet: veth %s/%s - %s/%s: %v", a.NS.name, a.Link, b.NS.name, b.Link, err)
	}
	for _, e := range []End{a, b} {
		// Also for the link-local address, which a router needs as the source of its neighbour solicitations.
		e.NS.SetSysctl("net/ipv6/conf/"+e.Link+"/accept_dad", "0")
		e.NS.LinkUp(e.Link)
	}
	for _, e := range []End{a, b} {
		for _, p := range e.Addresses {
			e.NS.AddAddr(e.Link, p)
		}
	}
}

// Bridge makes a bridge in a namespace, up, that forwards whatever netfilter of that namespace says.
func (n *Net) Bridge(s *NS, name string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := s.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		n.t.Fatalf("testnet: bridge %s/%s: %v", s.name, name, err)
	}
	// A new namespace starts with bridge-nf-call on, which would send bridged frames through its FORWARD chain.
	for _, f := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if s.Sysctl(f) != "" {
			s.SetSysctl(f, "0")
		}
	}
	s.LinkUp(name)
}

// Enslave makes a link a port of a bridge of the same namespace.
func (s *NS) Enslave(link, bridge string) {
	s.t.Helper()
	if err := s.handle.LinkSetMaster(s.Link(link), s.Link(bridge)); err != nil {
		s.t.Fatalf("in namespace %s: make %s a port of %s: %v", s.name, link, bridge, err)
	}
}

// Underlay makes a namespace with a bridge and returns a function that plugs further namespaces in: link eth0, with the
// given addresses.
func (n *Net) Underlay(name string) func(s *NS, addresses ...netip.Prefix) {
	n.t.Helper()
	hub := n.AddNS(name)
	n.Bridge(hub, "br0")
	return func(s *NS, addresses ...netip.Prefix) {
		n.t.Helper()
		port := "p-" + s.name
		if len(port) > unix.IFNAMSIZ-1 {
			port = port[:unix.IFNAMSIZ-1]
		}
		n.Wire(End{NS: hub, Link: port}, End{NS: s, Link: "eth0", Addresses: addresses})
		hub.Enslave(port, "br0")
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
