package lab_test

import (
	"net/netip"
	"path/filepath"
	"testing"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/internal/errs"
)

// TestRouteTo asks the namespace of a machine, and not the caller's: on the link, nowhere, and not at all.
func TestRouteTo(t *testing.T) {
	p := plan(t)
	ensure(t, p)
	path := p.Dir.NetNS("svc-ipam")
	for to, want := range map[string]lab.Route{
		"172.30.0.11":    {Source: netip.MustParseAddr("172.30.0.4")},
		"fd00:172:30::b": {Source: netip.MustParseAddr("fd00:172:30::4")},
	} {
		if got, err := lab.RouteTo(path, netip.MustParseAddr(to)); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", to, got, err, want)
		}
	}
	for _, to := range []string{"198.51.100.1", "2001:db8::1"} {
		if got, err := lab.RouteTo(path, netip.MustParseAddr(to)); !errs.Is(err, errs.NotFound) {
			t.Errorf("%s: %+v, %v; want NotFound", to, got, err)
		}
	}
	if _, err := lab.RouteTo(filepath.Join(t.TempDir(), "none"), netip.MustParseAddr("127.0.0.1")); !errs.Is(err, errs.Denied) {
		t.Errorf("a namespace that is not there: %v", err)
	}
	if got, err := lab.RouteTo("", netip.MustParseAddr("127.0.0.1")); err != nil || got.Source != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("the caller's own: %+v, %v", got, err)
	}
}
