package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/proc"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/testnet"
)

// sleeper makes the test's own binary a process that only waits: nothing else is needed on the machine.
const sleeper = "podwire-test-sleeper"

func TestMain(m *testing.M) {
	if os.Args[0] == sleeper {
		<-time.After(time.Hour) // not select{}: the runtime would call that a deadlock, and end
	}
	os.Exit(m.Run())
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// plan is a small lab: a switch, a service, a node with a directory of its own.
func plan(t *testing.T) lab.Plan {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("namespaces need root; run the test as root")
	}
	dir, err := statedir.Resolve(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, dir) })
	return lab.Plan{
		Dir: dir, Bridge: prefixes("172.30.0.1/24", "fd00:172:30::1/64"),
		Members: []lab.Member{
			{Name: "svc-ipam", Addresses: prefixes("172.30.0.4/24", "fd00:172:30::4/64")},
			{
				Name: "node-1", Addresses: prefixes("172.30.0.11/24", "fd00:172:30::b/64"),
				Paths: map[string]string{dir.Node("node-1", "bin"): dir.Path("shown", "bin")},
			},
		},
	}
}

func remove(t *testing.T, dir statedir.Dir) lab.Removed {
	t.Helper()
	r, err := lab.Remove(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ensure(t *testing.T, p lab.Plan) int {
	t.Helper()
	n, err := lab.Ensure(p)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// world is what of this machine a lab could leave something in, as far as it is about the instance.
func world(t *testing.T, dir statedir.Dir) []string {
	t.Helper()
	var out []string
	mounts, err := lab.ReadMounts("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.Beneath(string(dir)) {
			out = append(out, "mount "+m.Target)
		}
	}
	names, err := filepath.Glob("/run/netns/" + dir.Prefix() + "*")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, names...)
}

func links(t *testing.T) []string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range all {
		out = append(out, fmt.Sprint(l.Index, l.Name))
	}
	slices.Sort(out)
	return out
}

// exchange sends a datagram from one place to an address of another, and returns what arrived.
func exchange(from, to lab.Place, addr netip.Addr) (string, error) {
	var server, client net.PacketConn
	listen := func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
		return err
	}
	if err := to.Do(listen); err != nil {
		return "", err
	}
	defer server.Close()
	open := func() (err error) { client, err = net.ListenPacket("udp", ":0"); return err }
	if err := from.Do(open); err != nil {
		return "", err
	}
	defer client.Close()
	if _, err := client.WriteTo([]byte("hello"), server.LocalAddr()); err != nil {
		return "", err
	}
	if err := server.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	buf := make([]byte, 16)
	n, _, err := server.ReadFrom(buf)
	return string(buf[:n]), err
}

func TestEnsureAndRemove(t *testing.T) {
	p := plan(t)
	before := links(t)
	if got := world(t, p.Dir); len(got) > 0 {
		t.Fatalf("before: %v", got)
	}
	if n := ensure(t, p); n == 0 {
		t.Error("the first Ensure made nothing")
	}
	if n := ensure(t, p); n != 0 {
		t.Errorf("the second Ensure made %d things, want none", n)
	}
	if got := links(t); !slices.Equal(got, before) {
		t.Errorf("links of the host: %v, before %v", got, before)
	}
	service, node := lab.Place{Net: p.Dir.NetNS("svc-ipam")}, lab.Place{Net: p.Dir.NetNS("node-1"), Mount: p.Dir.MountNS("node-1")}
	for _, addr := range []string{"172.30.0.11", "fd00:172:30::b"} {
		if got, err := exchange(service, node, netip.MustParseAddr(addr)); err != nil || got != "hello" {
			t.Errorf("service to %s: %q, %v", addr, got, err)
		}
	}
	for _, addr := range []string{"172.30.0.1", "fd00:172:30::1"} {
		if got, err := exchange(node, lab.Place{Net: p.Dir.NetNS(statedir.Underlay)}, netip.MustParseAddr(addr)); err != nil || got != "hello" {
			t.Errorf("node to the bridge at %s: %q, %v", addr, got, err)
		}
	}
	// `ip netns` shows them under their names.
	if got, err := os.Readlink("/run/netns/" + p.Dir.Prefix() + "node-1"); err != nil || got != p.Dir.NetNS("node-1") {
		t.Errorf("name in /run/netns: %q, %v", got, err)
	}
	removed := remove(t, p.Dir)
	if removed.Namespaces != 3 || removed.Mounts == 0 {
		t.Errorf("removed %+v", removed)
	}
	if got := world(t, p.Dir); len(got) > 0 {
		t.Errorf("after: %v", got)
	}
	if got := links(t); !slices.Equal(got, before) {
		t.Errorf("links of the host: %v, before %v", got, before)
	}
	if _, err := os.Stat(p.Dir.Path("shown")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point that Ensure made is still there: %v", err)
	}
	if again := remove(t, p.Dir); !again.Nothing() {
		t.Errorf("a second Remove found %+v", again)
	}
}

// dockerd loads br_netfilter and makes FORWARD drop; in a new namespace bridged frames would then be cut.
func TestSwitchIsNotCut(t *testing.T) {
	p := plan(t)
	ensure(t, p)
	underlay := lab.Place{Net: p.Dir.NetNS(statedir.Underlay)}
	err := underlay.Do(func() error {
		for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
			value, err := os.ReadFile("/proc/sys/net/bridge/" + name)
			if err != nil {
				return fmt.Errorf("the kernel needs br_netfilter for this test: %w", err)
			}
			if strings.TrimSpace(string(value)) != "0" {
				return fmt.Errorf("%s is %s", name, value)
			}
		}
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(`
			add table ip docker
			add chain ip docker FORWARD { type filter hook forward priority 0; policy drop; }
			add table ip6 docker
			add chain ip6 docker FORWARD { type filter hook forward priority 0; policy drop; }
		`)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	service, node := lab.Place{Net: p.Dir.NetNS("svc-ipam")}, lab.Place{Net: p.Dir.NetNS("node-1")}
	for _, addr := range []string{"172.30.0.11", "fd00:172:30::b"} {
		if got, err := exchange(service, node, netip.MustParseAddr(addr)); err != nil || got != "hello" {
			t.Errorf("service to %s: %q, %v", addr, got, err)
		}
	}
}

func TestNodeHasItsOwnDirectories(t *testing.T) {
	p := plan(t)
	ensure(t, p)
	shown := p.Dir.Path("shown", "bin")
	if err := os.WriteFile(p.Dir.Node("node-1", "bin", "plugin"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	list := func() (names []string, err error) {
		entries, err := os.ReadDir(shown)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names, err
	}
	var inside []string
	err := lab.Place{Mount: p.Dir.MountNS("node-1")}.Do(func() (err error) { inside, err = list(); return err })
	if err != nil || !slices.Equal(inside, []string{"plugin"}) {
		t.Errorf("on the node: %v, %v", inside, err)
	}
	if outside, err := list(); err != nil || len(outside) > 0 {
		t.Errorf("on the host: %v, %v; want an empty directory", outside, err)
	}
	// The node must not hold the other machines: it would keep them alive.
	var mounts []lab.Mount
	err = lab.Place{Mount: p.Dir.MountNS("node-1")}.Do(func() (err error) {
		mounts, err = lab.ReadMounts("/proc/thread-self/mountinfo")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.Type == "nsfs" {
			t.Errorf("the node holds %s at %s", m.Root, m.Target)
		}
	}
}

func TestEnsureHeals(t *testing.T) {
	for what, breakIt := range map[string]func(t *testing.T, p lab.Plan){
		"a link was deleted": func(t *testing.T, p lab.Plan) {
			deleteLink(t, p.Dir.NetNS("svc-ipam"), "eth0")
		},
		"an address was deleted": func(t *testing.T, p lab.Plan) {
			flush(t, p.Dir.NetNS("node-1"), "eth0")
		},
		"a namespace was unpinned": func(t *testing.T, p lab.Plan) {
			if err := unix.Unmount(p.Dir.NetNS("node-1"), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
		"a mount namespace was unpinned": func(t *testing.T, p lab.Plan) {
			if err := unix.Unmount(p.Dir.MountNS("node-1"), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
		"everything was unpinned, as by a reboot": func(t *testing.T, p lab.Plan) {
			if err := unix.Unmount(p.Dir.Pins(), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			p := plan(t)
			ensure(t, p)
			breakIt(t, p)
			if n := ensure(t, p); n == 0 {
				t.Error("nothing was made")
			}
			service, node := lab.Place{Net: p.Dir.NetNS("svc-ipam")}, lab.Place{Net: p.Dir.NetNS("node-1"), Mount: p.Dir.MountNS("node-1")}
			for _, addr := range []string{"172.30.0.11", "fd00:172:30::b"} {
				if got, err := exchange(service, node, netip.MustParseAddr(addr)); err != nil || got != "hello" {
					t.Errorf("service to %s: %q, %v", addr, got, err)
				}
			}
			if n := ensure(t, p); n != 0 {
				t.Errorf("Ensure again made %d things", n)
			}
		})
	}
}

// sleep starts a process in a place.
func sleep(t *testing.T, place lab.Place) proc.Process {
	t.Helper()
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{sleeper}, Dir: "/"}
	if err := place.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	p, err := proc.Of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return p
}

// podNS pins a network namespace in the node's mount namespace, as an agent does for a pod.
func podNS(t *testing.T, dir statedir.Dir, node, name string) lab.Place {
	t.Helper()
	path := dir.Node(node, name)
	err := lab.Place{Mount: dir.MountNS(node)}.Do(func() error {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	return lab.Place{Mount: dir.MountNS(node)}
}

func TestRemoveEndsWhoIsInside(t *testing.T) {
	p := plan(t)
	ensure(t, p)
	onNode := sleep(t, lab.Place{Net: p.Dir.NetNS("node-1")})
	inMounts := sleep(t, lab.Place{Mount: p.Dir.MountNS("node-1")})
	var pod proc.Process
	podNS(t, p.Dir, "node-1", "pod")
	err := lab.Place{Mount: p.Dir.MountNS("node-1")}.Do(func() error {
		// As the processes of a container: in the pod's network, with mounts of their own.
		inPod := lab.Place{Net: p.Dir.Node("node-1", "pod")}
		ns, err := os.Open(inPod.Net)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{sleeper}, Dir: "/"}
		if err := cmd.Start(); err != nil {
			return err
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		pod, err = proc.Of(cmd.Process.Pid)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	other := plan(t)
	ensure(t, other)
	neighbour := sleep(t, lab.Place{Net: other.Dir.NetNS("node-1"), Mount: other.Dir.MountNS("node-1")})
	host := sleep(t, lab.Place{})

	if r := remove(t, p.Dir); r.Processes != 3 {
		t.Errorf("ended %d processes, want 3", r.Processes)
	}
	for what, victim := range map[string]proc.Process{"on the node": onNode, "in its mounts": inMounts, "in a pod": pod} {
		if now, err := proc.Of(victim.PID); err == nil && now == victim {
			t.Errorf("the process %s lives", what)
		}
	}
	for what, bystander := range map[string]proc.Process{"of another instance": neighbour, "of the host": host} {
		if now, err := proc.Of(bystander.PID); err != nil || now != bystander {
			t.Errorf("the process %s was ended", what)
		}
	}
	if got := world(t, other.Dir); len(got) == 0 {
		t.Error("the other instance is gone, too")
	}
}

// Two instances share the directories of the host that one of them made; the last one removes them.
func TestMountPointsHaveAnHeir(t *testing.T) {
	shared := filepath.Join(t.TempDir(), "opt", "bin")
	first, second := plan(t), plan(t)
	for _, p := range []lab.Plan{first, second} {
		p.Members[1].Paths = map[string]string{p.Dir.Node("node-1", "bin"): shared}
		ensure(t, p)
	}
	remove(t, first.Dir)
	if _, err := os.Stat(shared); err != nil {
		t.Fatalf("the first instance took what the second uses: %v", err)
	}
	heir := ownDirectory(t, second, shared)
	if !heir {
		t.Error("the second instance lost its directory")
	}
	remove(t, second.Dir)
	if _, err := os.Stat(filepath.Dir(shared)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last instance left %s: %v", shared, err)
	}
}

// ownDirectory says whether the node sees its own directory at path.
func ownDirectory(t *testing.T, p lab.Plan, path string) bool {
	t.Helper()
	if err := os.WriteFile(p.Dir.Node("node-1", "bin", "mark"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return lab.Place{Mount: p.Dir.MountNS("node-1")}.Do(func() error {
		_, err := os.Stat(filepath.Join(path, "mark"))
		return err
	}) == nil
}

func TestNameThatIsNotOurs(t *testing.T) {
	p := plan(t)
	name := "/run/netns/" + p.Dir.Prefix() + "svc-ipam"
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(name); _ = os.Remove("/run/netns") })
	if _, err := lab.Ensure(p); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), name) {
		t.Errorf("got %v, want Exists that names %s", err, name)
	}
	remove(t, p.Dir)
	if _, err := os.Stat(name); err != nil {
		t.Errorf("Remove took what is not ours: %v", err)
	}
}

func TestCheckOverlaps(t *testing.T) {
	ns := testnet.New(t).AddNS("host")
	ns.Run("ip", "link", "add", "docker1", "type", "bridge")
	ns.Run("ip", "link", "set", "docker1", "up")
	ns.Run("ip", "addr", "add", "192.0.2.2/24", "dev", "docker1")
	ns.Run("ip", "route", "add", "10.244.7.0/24", "via", "192.0.2.1")
	ns.Run("ip", "-6", "route", "add", "fd00:10::/32", "dev", "docker1")
	ns.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	ns.Run("ip", "-6", "route", "add", "default", "dev", "docker1")
	for _, tt := range []struct {
		ranges []netip.Prefix
		want   []string
	}{
		{prefixes("10.96.0.0/16", "172.30.1.0/24", "fd01::/48"), nil},
		{prefixes("10.244.0.0/16"), []string{"10.244.0.0/16 overlaps route 10.244.7.0/24 via 192.0.2.1 dev docker1"}},
		{prefixes("10.244.7.8/30", "fd00:10:244::/48"), []string{"10.244.7.8/30 overlaps", "fd00:10:244::/48 overlaps route fd00:10::/32 dev docker1"}},
		{prefixes("192.0.2.0/30"), []string{"192.0.2.0/30 overlaps route 192.0.2.0/24 dev docker1"}},
	} {
		err := ns.Do(func() error { return lab.CheckOverlaps(tt.ranges) })
		if len(tt.want) == 0 {
			if err != nil {
				t.Errorf("%v: %v", tt.ranges, err)
			}
			continue
		}
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: %v, want Invalid", tt.ranges, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %q does not say %q", tt.ranges, err, want)
			}
		}
	}
}

func TestParseMounts(t *testing.T) {
	t.Parallel()
	got := lab.ParseMounts("36 35 98:0 /a\\040b /mnt\\134x rw,noatime master:1 - ext3 /dev/root rw\n" +
		"40 36 0:4 net:[4026532281] /run/netns/x rw - nsfs nsfs rw\nnonsense\n")
	want := []lab.Mount{
		{Target: `/mnt\x`, Root: "/a b", Type: "ext3"},
		{Target: "/run/netns/x", Root: "net:[4026532281]", Type: "nsfs"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !got[1].Beneath("/run/netns") || got[1].Beneath("/run/net") || got[1].Beneath("/run/netns/x") {
		t.Error("Beneath")
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("36 35 98:0 /a\\040b /mnt rw - ext3 x rw\n")
	f.Add("a b c d e f - \n\\\\04 - ")
	f.Fuzz(func(t *testing.T, text string) {
		for _, m := range lab.ParseMounts(text) {
			if strings.Count(text, " - ") == 0 {
				t.Errorf("%q gives %+v", text, m)
			}
		}
	})
}
