package doctor

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/cmd/podwire/internal/supervise"
	"podwire.dev/cmd/podwire/internal/up"
	nodeagent "podwire.dev/services/nodeagent/app"
)

// machine is what is looked at.
type machine struct {
	// root is the directory that /proc is in; another one in tests.
	root  string
	state statedir.Dir
}

func (m machine) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(m.root, path))
	return strings.TrimSpace(string(b)), err
}

// needed are the capabilities that an agent, and `up`, use; numbers as in capability.h.
var needed = []struct {
	bit  uint
	name string
	why  string
}{
	{12, "NET_ADMIN", "links, routes, nftables, conntrack"},
	{13, "NET_RAW", "announcing load balancer addresses"},
	{21, "SYS_ADMIN", "network and mount namespaces of pods"},
	{19, "SYS_PTRACE", "entering the namespaces of pods"},
	{5, "KILL", "ending pods"},
}

func (m machine) privileges(r *report) {
	const area = "machine"
	status, err := m.read("proc/self/status")
	if err != nil {
		r.problem(area, "capabilities", err.Error(), "mount /proc")
		return
	}
	held, err := effective(status)
	if err != nil {
		r.problem(area, "capabilities", err.Error(), "")
		return
	}
	var missing []string
	for _, c := range needed {
		if held&(1<<c.bit) == 0 {
			missing = append(missing, c.name+" ("+c.why+")")
		}
	}
	if len(missing) == 0 {
		r.ok(area, "capabilities", "everything that nodes need")
		return
	}
	r.problem(area, "capabilities", "missing: "+strings.Join(missing, ", "), "run as root; in a container, name them in cap_add")
}

// effective is CapEff of a /proc/PID/status (proc_pid_status(5)).
func effective(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status has no line CapEff")
}

// trialUnderlay is the underlay of the namespaces in which abilities are tried: TEST-NET-1 of RFC 5737.
var trialUnderlay = netip.MustParsePrefix("192.0.2.0/24")

// kernel tries what agents do, in a lab.
func (m machine) kernel(ctx context.Context, r *report) {
	const area = "kernel"
	if os.Geteuid() != 0 {
		r.note(area, "abilities", "not tried: that needs root", "repeat it with sudo")
		return
	}
	abilities, err := tryKernel(ctx)
	if err != nil {
		r.problem(area, "network namespaces", err.Error(), "`up` and pods need them: CAP_SYS_ADMIN and CAP_NET_ADMIN, in a container also systempaths=unconfined and seccomp=unconfined")
		return
	}
	r.ok(area, "network namespaces, veth pairs and a bridge", "made and removed")
	for _, a := range abilities {
		if a.Err != nil {
			r.problem(area, a.Name, a.Err.Error(), "without it: no "+a.Without)
		} else {
			r.ok(area, a.Name, "works")
		}
	}
}

func tryKernel(ctx context.Context) (abilities []nodeagent.Ability, err error) {
	temp, err := os.MkdirTemp("", "podwire-doctor-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	dir, err := statedir.Resolve(temp)
	if err != nil {
		return nil, err
	}
	at := func(last byte) []netip.Prefix {
		b := trialUnderlay.Addr().As4()
		b[3] = last
		return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(b), trialUnderlay.Bits())}
	}
	defer func() {
		_, rerr := lab.Remove(context.WithoutCancel(ctx), dir)
		err = errors.Join(err, rerr)
	}()
	if _, err := lab.Ensure(lab.Plan{Dir: dir, Bridge: at(1), Members: []lab.Member{{Name: statedir.NodeName(1), Addresses: at(2)}}}); err != nil {
		return nil, err
	}
	record := filepath.Join(temp, "trial")
	if err := os.Mkdir(record, 0o700); err != nil {
		return nil, err
	}
	err = lab.Place{Net: dir.NetNS(statedir.NodeName(1))}.Do(func() error {
		abilities = nodeagent.TryKernel(nodeagent.Trial{Dir: record, Underlay: at(2)[0].Addr()})
		return nil
	})
	return abilities, err
}

func (m machine) overlaps(r *report) {
	const area = "network"
	for _, n := range up.DefaultOptions(m.state).Ranges() {
		if err := lab.CheckOverlaps([]netip.Prefix{n.Prefix}); err != nil {
			r.problem(area, "range "+n.Prefix.String(), err.Error(), "choose another one with "+n.Flag)
		} else {
			r.ok(area, "range "+n.Prefix.String(), "no route of this machine leads into it")
		}
	}
}

// settings is what an agent on this machine itself would change. Nodes of `up` and of Compose have namespaces of their own.
func (m machine) settings(r *report) {
	const area = "firewall"
	link, err := m.defaultLink()
	if err != nil || os.Geteuid() != 0 {
		return // nothing leads away from here, or nobody may look
	}
	temp, err := os.MkdirTemp("", "podwire-doctor-")
	if err != nil {
		r.note(area, "host settings", err.Error(), "")
		return
	}
	defer os.RemoveAll(temp)
	list, err := nodeagent.HostSettings(temp, link)
	if err != nil {
		r.note(area, "host settings", err.Error(), "an agent on this machine itself reads them; those of `up` and of Compose do not")
		return
	}
	if len(list) == 0 {
		r.ok(area, "host settings", "nothing here stands in the way of pods")
	}
	for _, s := range list {
		r.note(area, s.Name, fmt.Sprintf("is %s; an agent on this machine itself would make it %s, and restore it when it is removed", s.Actual, s.Wanted), "")
	}
}

// addressing is about IPv6 being off where Podwire does not turn it on: on links that are not its own. That it is off for all
// links, or for those that are made later, stands in nobody's way.
func (m machine) addressing(r *report) {
	const area = "network"
	links := []struct{ name, without string }{
		{"lo", "not reach IPv6 addresses of its own machine, as its tunnel address"},
	}
	if link, err := m.defaultLink(); err == nil {
		links = append(links, struct{ name, without string }{link, "announce no IPv6 load balancer address there"})
	}
	for _, l := range links {
		text, err := m.read("proc/sys/net/ipv6/conf/" + l.name + "/disable_ipv6")
		if err != nil {
			r.note(area, "IPv6 on "+l.name, "this kernel has none for it", "boot without ipv6.disable=1, or give pods IPv4 addresses only")
			continue
		}
		if text == "0" {
			r.ok(area, "IPv6 on "+l.name, "on")
			continue
		}
		r.note(area, "IPv6 on "+l.name, "off; an agent or a service on this machine itself would "+l.without+", those of `up` and of Compose are not concerned",
			fmt.Sprintf("sysctl -w net.ipv6.conf.%s.disable_ipv6=0", strings.ReplaceAll(l.name, ".", "/")))
	}
}

// defaultLink is the link of the IPv4 default route (proc_net(5)).
func (m machine) defaultLink() (string, error) {
	text, err := m.read("proc/net/route")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			return f[0], nil
		}
	}
	return "", fs.ErrNotExist
}

// usedPorts are what Podwire listens on where a process of it runs on the machine itself.
var usedPorts = []struct {
	file string
	port uint16
	what string
}{
	{"proc/net/tcp", 7443, "gRPC, TCP 7443"},
	{"proc/net/tcp6", 7443, "gRPC, TCP 7443"},
	{"proc/net/udp", 8472, "the fabric, UDP 8472"},
	{"proc/net/udp6", 8472, "the fabric, UDP 8472"},
}

func (m machine) ports(r *report) {
	const area = "network"
	taken := map[string]bool{}
	var order []string
	for _, p := range usedPorts {
		if !slices.Contains(order, p.what) {
			order = append(order, p.what)
		}
		text, err := m.read(p.file)
		if err == nil && listens(text, p.port) {
			taken[p.what] = true
		}
	}
	for _, what := range order {
		if taken[what] {
			r.note(area, what, "is in use on this machine", "does not matter to `up` and Compose; an agent or a service on this machine itself needs another port (key listen or vxlanPort, the same on every node)")
		} else {
			r.ok(area, what, "free")
		}
	}
}

// listens says whether a table of sockets (proc_net_tcp(5)) has one on a port that waits for peers.
func listens(table string, port uint16) bool {
	lines := bufio.NewScanner(strings.NewReader(table))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			continue
		}
		_, text, ok := strings.Cut(f[1], ":")
		raw, err := hex.DecodeString(text)
		if !ok || err != nil || len(raw) != 2 {
			continue
		}
		const tcpListen, udpUnconnected = "0A", "07"
		if uint16(raw[0])<<8|uint16(raw[1]) == port && (f[3] == tcpListen || f[3] == udpUnconnected) {
			return true
		}
	}
	return false
}

// What fewer of would be felt on a node with some hundred pods.
const (
	wantedFlows   = 65536
	wantedFiles   = 4096
	wantedWatches = 1024
	wantedDisk    = 1 << 30
)

func (m machine) limits(r *report) {
	const area = "limits"
	for _, s := range []struct {
		path string
		want int
		what string
	}{
		{"proc/sys/net/netfilter/nf_conntrack_max", wantedFlows, "tracked flows; when they are used up, new connections are dropped"},
		{"proc/sys/fs/inotify/max_user_instances", 128, "inotify instances"},
		{"proc/sys/fs/inotify/max_user_watches", wantedWatches, "inotify watches"},
	} {
		name := strings.ReplaceAll(strings.TrimPrefix(s.path, "proc/sys/"), "/", ".")
		text, err := m.read(s.path)
		if err != nil {
			continue // not on this kernel, or not visible here
		}
		if n, err := strconv.Atoi(text); err == nil && n < s.want {
			r.note(area, name, fmt.Sprintf("%d is few %s", n, s.what), fmt.Sprintf("sysctl -w %s=%d", name, s.want))
		} else {
			r.ok(area, name, text)
		}
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		if files.Max < wantedFiles {
			r.note(area, "open files", fmt.Sprintf("at most %d", files.Max), fmt.Sprintf("ulimit -n %d", wantedFiles))
		} else {
			r.ok(area, "open files", fmt.Sprintf("at most %d", files.Max))
		}
	}
	m.disk(r, area)
}

// disk is about the file system that the state directory is on, or would be made on.
func (m machine) disk(r *report, area string) {
	at := string(m.state)
	for at != "/" {
		if _, err := os.Stat(at); err == nil {
			break
		}
		at = filepath.Dir(at)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(at, &s); err != nil {
		return
	}
	free := s.Bavail * uint64(s.Bsize)
	text := fmt.Sprintf("%.1f GiB free", float64(free)/(1<<30))
	if free < wantedDisk {
		r.problem(area, "disk of "+string(m.state), text, "etcd stops writing when its disk is full: free 1 GiB, or name another directory with --state")
		return
	}
	r.ok(area, "disk of "+string(m.state), text)
}

// leftovers is about an instance in the state directory.
func (m machine) leftovers(r *report) {
	const area = "podwire"
	name := "state " + string(m.state)
	standing, err := lab.Standing(m.state)
	if err != nil {
		r.note(area, name, err.Error(), "")
		return
	}
	p, alive, err := supervise.Alive(m.state)
	switch {
	case err != nil:
		r.note(area, name, err.Error(), "")
	case alive:
		r.ok(area, name, fmt.Sprintf("is up, kept by process %d", p.PID))
	case standing:
		r.problem(area, name, "namespaces without a supervisor: an instance was killed or the machine lost it", "`podwire up` goes on with it, `podwire down` removes it")
	default:
		r.ok(area, name, "nothing is up")
	}
}

// askDocker bounds a question to the engine.
const askDocker = 3 * time.Second

// minCompose is the first Compose that reads deploy/compose.
const minCompose = 2

func (m machine) docker(ctx context.Context, r *report) {
	const area = "docker"
	if _, err := exec.LookPath("docker"); err != nil {
		r.note(area, "engine", "docker is not installed", "only the Compose stack needs it")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askDocker)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").Output()
	if err != nil {
		r.note(area, "engine", "does not answer", "only the Compose stack needs it; start dockerd")
		return
	}
	r.ok(area, "engine", strings.TrimSpace(string(out)))
	out, err = exec.CommandContext(ctx, "docker", "compose", "version", "--short").Output()
	version := strings.TrimPrefix(strings.TrimSpace(string(out)), "v")
	major, _, _ := strings.Cut(version, ".")
	if n, nerr := strconv.Atoi(major); err != nil || nerr != nil || n < minCompose {
		r.note(area, "compose", "no `docker compose` of version 2 or later", "only the Compose stack needs it; `make images compose-up` brings its own")
		return
	}
	r.ok(area, "compose", version)
}
