package fabric

import (
	"net"
	"net/netip"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/rtnl"
)

// Held is what the kernel has of a member's fabric before anything is applied.
type Held struct {
	// MAC is that of the device, which tells whose it is ([nodestate.TunnelMACOf]); zero where there is no device of ours.
	MAC [6]byte
	// Addresses are those on the device, IPv4 first.
	Addresses []netip.Addr
}

// Held reads what an earlier process left. It changes nothing.
func (f *Fabric) Held() (Held, error) {
	l, found, err := f.conn.LinkByName(f.cfg.Link)
	if err != nil {
		return Held{}, errs.Wrap(err, "fabric: device")
	}
	if !found || l.Kind != "vxlan" || l.Alias != alias {
		return Held{}, nil
	}
	held := Held{MAC: l.MAC}
	addresses, err := f.conn.Addresses(l.Index)
	if err != nil {
		return Held{}, errs.Wrap(err, "fabric: read addresses")
	}
	for _, a := range addresses {
		if a.Protocol == rtnl.Protocol {
			held.Addresses = append(held.Addresses, a.Address)
		}
	}
	return held, nil
}

// HostUnderlay finds addresses that other members reach, one of each family, IPv4 first: those of the link with the default
// route, else of the only link beside loopback. NotFound where that does not tell.
func HostUnderlay() ([]netip.Addr, error) {
	conn, err := rtnl.Open()
	if err != nil {
		return nil, errs.Wrap(err, "fabric")
	}
	defer conn.Close()
	links, err := conn.DefaultLinks()
	if err != nil {
		return nil, errs.Wrap(err, "fabric: find the underlay")
	}
	if len(links) == 0 {
		if links, err = otherLinks(conn); err != nil {
			return nil, errs.Wrap(err, "fabric: find the underlay")
		}
		if len(links) != 1 {
			return nil, errs.New(errs.NotFound, "fabric: this host has no default route, and %d links beside loopback: "+
				"configure the underlay's addresses", len(links))
		}
	}
	all, err := conn.GlobalAddresses(links[0])
	if err != nil {
		return nil, errs.Wrap(err, "fabric: find the underlay")
	}
	var out []netip.Addr
	for _, a := range all {
		if len(out) == 0 || len(out) == 1 && out[0].Is4() != a.Is4() {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, errs.New(errs.NotFound, "fabric: the link with the default route, number %d, has no address: "+
			"configure the underlay's addresses", links[0])
	}
	return out, nil
}

// otherLinks are the links that are up, but loopback and the fabric's own.
func otherLinks(conn *rtnl.Conn) ([]int, error) {
	all, err := conn.Links()
	if err != nil {
		return nil, err
	}
	var out []int
	for _, l := range all {
		if ifi, err := net.InterfaceByIndex(l.Index); err == nil && ifi.Flags&net.FlagLoopback == 0 && l.Up && l.Alias != alias {
			out = append(out, l.Index)
		}
	}
	return out, nil
}
