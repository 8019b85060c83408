package lab

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
)

// Route is where a packet would leave a network namespace.
type Route struct {
	// Source is the address that the kernel would give it.
	Source netip.Addr
	// Via is the gateway; not valid where the destination is on the link.
	Via netip.Addr
}

// RouteTo asks the kernel of a network namespace, given by its path, for the way to an address; an empty path is the
// caller's own. It sends nothing. Errors: NotFound where no route leads there, Denied without the right to enter.
func RouteTo(path string, to netip.Addr) (Route, error) {
	handle, err := handleAt(path)
	if err != nil {
		return Route{}, errs.WrapAs(errs.Denied, err, "enter network namespace %s (needs root)", path)
	}
	defer handle.Close()
	found, err := handle.RouteGet(to.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES):
		return Route{}, errs.New(errs.NotFound, "no route leads to %s", to)
	case err != nil:
		return Route{}, errs.WrapAs(errs.Internal, err, "route to %s", to)
	case len(found) == 0:
		return Route{}, errs.New(errs.NotFound, "no route leads to %s", to)
	}
	var r Route
	if source, ok := netip.AddrFromSlice(found[0].Src); ok {
		r.Source = source.Unmap()
	}
	if via, ok := netip.AddrFromSlice(found[0].Gw); ok {
		r.Via = via.Unmap()
	}
	return r, nil
}

func handleAt(path string) (*netlink.Handle, error) {
	if path == "" {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}
