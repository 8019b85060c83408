package testnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/fabric/rtnl"
)

// Net is the set of namespaces of one test.
type Net struct {
	t  testing.TB
	ns map[string]*NS
}

// New returns an empty Net whose namespaces go away with the test.
func New(t testing.TB) *Net {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("testnet: network namespaces need root; run the test as root")
	}
	return &Net{t: t, ns: map[string]*NS{}}
}

// NS is one network namespace. Its loopback is up.
type NS struct {
	t      testing.TB
	name   string
	file   *os.File
	handle *netlink.Handle
	conn   *rtnl.Conn
}

// AddNS makes a namespace. The name is for messages and lookups within this Net only.
func (n *Net) AddNS(name string) *NS {
	n.t.Helper()
	if _, ok := n.ns[name]; ok {
		n.t.Fatalf("testnet: namespace %q exists already in this test", name)
	}
	file, err := newNamespace()
	if err != nil {
		n.t.Fatalf("testnet: make namespace %q: %v", name, err)
	}
	n.t.Cleanup(func() { _ = file.Close() })
	handle, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		n.t.Fatalf("testnet: open netlink in namespace %q: %v", name, err)
	}
	n.t.Cleanup(handle.Close)
	s := &NS{t: n.t, name: name, file: file, handle: handle}
	n.ns[name] = s
	s.Must(func() error {
		s.conn, err = rtnl.Open()
		return err
	})
	n.t.Cleanup(s.conn.Close)
	s.LinkUp("lo")
	// A new namespace begins with what the first one has (net.core.devconf_inherit_init_net), which dockerd changes.
	s.SetSysctl("net/ipv4/ip_forward", "0")
	return s
}

// NS returns the namespace of that name.
func (n *Net) NS(name string) *NS {
	n.t.Helper()
	s, ok := n.ns[name]
	if !ok {
		n.t.Fatalf("testnet: no namespace %q in this test", name)
	}
	return s
}

// newNamespace makes a namespace on a thread of its own, which ends with the call.
func newNamespace() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the runtime ends a locked thread with its goroutine, so no other goroutine meets the namespace.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("unshare: %w", err)}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		done <- result{file, err}
	}()
	r := <-done
	return r.file, r.err
}

// Name is the name given to AddNS.
func (s *NS) Name() string { return s.name }

// FD is a descriptor of the namespace, for setns and for IFLA_NET_NS_FD; valid as long as the test.
func (s *NS) FD() int { return int(s.file.Fd()) }

// Path is a path that opens the namespace, from this process and its children; valid as long as the test.
func (s *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.FD()) }

// Handle is an rtnetlink handle in the namespace.
func (s *NS) Handle() *netlink.Handle { return s.handle }

// Do runs fn on a thread in the namespace and returns its error. Sockets that fn opens stay in the namespace; goroutines
// that fn starts do not run in it. /proc/sys/net and /proc/thread-self/net show the namespace, /proc/net does not.
func (s *NS) Do(fn func() error) error {
	err := errors.New("testnet: the function ended its goroutine")
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked, as in newNamespace: a thread that entered a namespace is not used again.
		runtime.LockOSThread()
		if e := unix.Setns(s.FD(), unix.CLONE_NEWNET); e != nil {
			err = fmt.Errorf("testnet: enter namespace %q: %w", s.name, e)
			return
		}
		err = fn()
	}()
	<-done
	return err
}

// Must is Do, and an error fails the test.
func (s *NS) Must(fn func() error) {
	s.t.Helper()
	if err := s.Do(fn); err != nil {
		s.t.Fatalf("in namespace %s: %v", s.name, err)
	}
}

// Start starts a command in the namespace. The caller waits for it or ends it.
func (s *NS) Start(cmd *exec.Cmd) error { return s.Do(cmd.Start) }

// Try runs a command in the namespace and returns what it printed on both streams, and its error.
func (s *NS) Try(name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// Run is Try, and a failing command fails the test.
func (s *NS) Run(name string, args ...string) string {
	s.t.Helper()
	out, err := s.Try(name, args...)
	if err != nil {
		s.t.Fatalf("in namespace %s: %s %s: %v\n%s", s.name, name, strings.Join(args, " "), err, out)
	}
	return out
}

func sysctlPath(name string) string {
	return filepath.Join("/proc/sys", filepath.FromSlash(name))
}

// SetSysctl writes a sysctl of the namespace, named by its path below /proc/sys: "net/ipv4/ip_forward".
func (s *NS) SetSysctl(name, value string) {
	s.t.Helper()
	s.Must(func() error { return os.WriteFile(sysctlPath(name), []byte(value), 0) })
}

// Sysctl reads a sysctl of the namespace; "" if it does not exist.
func (s *NS) Sysctl(name string) string {
	s.t.Helper()
	var value []byte
	s.Must(func() error {
		var err error
		if value, err = os.ReadFile(sysctlPath(name)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	return strings.TrimSpace(string(value))
}

// Link returns a link of the namespace; a link that does not exist fails the test.
func (s *NS) Link(name string) netlink.Link {
	s.t.Helper()
	l, err := s.handle.LinkByName(name)
	if err != nil {
		s.t.Fatalf("in namespace %s: link %s: %v", s.name, name, err)
	}
	return l
}

// LinkUp sets a link up.
func (s *NS) LinkUp(name string) {
	s.t.Helper()
	if err := s.handle.LinkSetUp(s.Link(name)); err != nil {
		s.t.Fatalf("in namespace %s: set link %s up: %v", s.name, name, err)
	}
}

// AddAddr gives a link an address, without duplicate address detection. On a link that is up the address takes packets when
// AddAddr returns; for IPv6, the kernel's own answer comes earlier than that.
func (s *NS) AddAddr(link string, prefix netip.Prefix) {
	s.t.Helper()
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := s.handle.AddrAdd(s.Link(link), addr); err != nil {
		s.t.Fatalf("in namespace %s: add %s to %s: %v", s.name, prefix, link, err)
	}
	if s.Link(link).Attrs().Flags&net.FlagUp == 0 {
		return
	}
	if err := s.conn.DoThenAwait([]netip.Addr{prefix.Addr()}); err != nil {
		s.t.Fatalf("in namespace %s: add %s to %s: %v", s.name, prefix, link, err)
	}
}

// AddRoute adds a route through a gateway. The prefix 0.0.0.0/0 or ::/0 is the default route.
func (s *NS) AddRoute(dst netip.Prefix, via netip.Addr) {
	s.t.Helper()
	if err := s.handle.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}); err != nil {
		s.t.Fatalf("in namespace %s: add route %s via %s: %v", s.name, dst, via, err)
	}
}
