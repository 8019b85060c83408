package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
)

// Names of links: the bridge in the underlay's namespace, and a member's end of its cable.
const (
	bridgeName = "underlay"
	memberLink = "eth0"
)

// inside opens rtnetlink in a namespace.
func inside(path string) (*netlink.Handle, *os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, errs.WrapAs(errs.Internal, err, "namespace")
	}
	handle, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		file.Close()
		return nil, nil, errs.WrapAs(errs.Internal, err, "rtnetlink in %s", path)
	}
	return handle, file, nil
}

// bridge makes the switch that joins the machines.
func (b *builder) bridge() error {
	if err := b.namespace(statedir.Underlay); err != nil {
		return err
	}
	path := b.plan.Dir.NetNS(statedir.Underlay)
	if err := (Place{Net: path}).Do(quietSwitch); err != nil {
		return errs.WrapAs(errs.Internal, err, "settings")
	}
	handle, file, err := inside(path)
	if err != nil {
		return err
	}
	defer file.Close()
	defer handle.Close()
	link, err := handle.LinkByName(bridgeName)
	if isMissing(err) {
		noSnooping := false
		wanted := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}, MulticastSnooping: &noSnooping}
		if err := handle.LinkAdd(wanted); err != nil {
			return errs.WrapAs(errs.Internal, err, "add bridge")
		}
		b.made++
		link, err = handle.LinkByName(bridgeName)
	}
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "bridge")
	}
	return b.configure(handle, link, b.plan.Bridge)
}

// quietSwitch keeps host firewalls out of the switch: with br_netfilter loaded, as dockerd does, frames would pass iptables
// in each new namespace.
func quietSwitch() error {
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		err := os.WriteFile(filepath.Join("/proc/sys/net/bridge", name), []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// link plugs a member into the switch. Both ends are born in their own namespaces, named by file descriptors.
func (b *builder) link(m Member) error {
	handle, file, err := inside(b.plan.Dir.NetNS(m.Name))
	if err != nil {
		return err
	}
	defer file.Close()
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "loopback")
	}
	if err := b.configure(handle, lo, nil); err != nil {
		return err
	}
	link, err := handle.LinkByName(memberLink)
	if isMissing(err) {
		if err := b.plug(m, file); err != nil {
			return err
		}
		link, err = handle.LinkByName(memberLink)
	}
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "link %s", memberLink)
	}
	return b.configure(handle, link, m.Addresses)
}

// plug makes the cable.
func (b *builder) plug(m Member, member *os.File) error {
	handle, file, err := inside(b.plan.Dir.NetNS(statedir.Underlay))
	if err != nil {
		return err
	}
	defer file.Close()
	defer handle.Close()
	bridge, err := handle.LinkByName(bridgeName)
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "bridge")
	}
	port := portName(m.Name)
	// The other end of an eth0 that was deleted goes with it; a half that lost its namespace may still be there.
	if old, err := handle.LinkByName(port); err == nil {
		if err := handle.LinkDel(old); err != nil {
			return errs.WrapAs(errs.Internal, err, "delete stale port %s", port)
		}
	}
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port, MasterIndex: bridge.Attrs().Index, Flags: net.FlagUp},
		PeerName:      memberLink,
		PeerNamespace: netlink.NsFd(member.Fd()),
	}
	if err := handle.LinkAdd(veth); err != nil {
		return errs.WrapAs(errs.Internal, err, "add veth %s", port)
	}
	b.made++
	return nil
}

// maxName is IFNAMSIZ - 1.
const maxName = 15

func portName(member string) string {
	name := strings.TrimPrefix(member, "svc-")
	return name[:min(len(name), maxName)]
}

// configure sets a link up and gives it the addresses that it lacks.
func (b *builder) configure(handle *netlink.Handle, link netlink.Link, want []netip.Prefix) error {
	name := link.Attrs().Name
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := handle.LinkSetUp(link); err != nil {
			return errs.WrapAs(errs.Internal, err, "set %s up", name)
		}
	}
	have, err := handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "addresses of %s", name)
	}
	for _, prefix := range want {
		if hasAddress(have, prefix) {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once: nobody else is on this underlay
		}
		if err := handle.AddrAdd(link, addr); err != nil {
			return errs.WrapAs(errs.Internal, err, "add address %s to %s", prefix, name)
		}
		b.made++
	}
	return nil
}

func hasAddress(have []netlink.Addr, want netip.Prefix) bool {
	for _, a := range have {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.Unmap() == want.Addr() {
			return true
		}
	}
	return false
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func isMissing(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// CheckOverlaps is Invalid if a route of the calling namespace leads into one of the ranges: what is behind it could not
// be reached from this machine, or not from our pods. Default routes do not count.
func CheckOverlaps(ranges []netip.Prefix) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "routes of this machine")
	}
	var violations []errs.Violation
	for _, route := range routes {
		dst, ok := destination(route)
		if !ok || route.Table == unix.RT_TABLE_LOCAL {
			continue
		}
		for _, want := range ranges {
			if want.Overlaps(dst) {
				violations = append(violations, errs.Violation{Rule: fmt.Sprintf("%s overlaps route %s", want, describe(route, dst))})
			}
		}
	}
	if len(violations) == 0 {
		return nil
	}
	return &errs.Error{Kind: errs.Invalid, Violations: violations,
		Message: "addresses are in use on this machine (remove the route, or choose others with --pods, --services, --underlay):"}
}

func destination(route netlink.Route) (netip.Prefix, bool) {
	if route.Dst == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(route.Dst.IP)
	bits, _ := route.Dst.Mask.Size()
	dst := netip.PrefixFrom(addr.Unmap(), bits)
	return dst, ok && bits > 0 && !addr.IsMulticast() && !addr.IsLinkLocalUnicast()
}

func describe(route netlink.Route, dst netip.Prefix) string {
	text := dst.String()
	if route.Gw != nil {
		text += " via " + route.Gw.String()
	}
	if link, err := netlink.LinkByIndex(route.LinkIndex); err == nil {
		text += " dev " + link.Attrs().Name
	}
	return text
}
