package up

import (
	"bytes"
	"context"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"podwire.dev/cmd/podwire/internal/etcdserver"
	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/proc"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/cmd/podwire/internal/supervise"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/testnet"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	cluster "podwire.dev/services/cluster/app"
	dns "podwire.dev/services/dns/app"
	ingress "podwire.dev/services/ingress/app"
	ipam "podwire.dev/services/ipam/app"
	nodeagent "podwire.dev/services/nodeagent/app"
	policy "podwire.dev/services/policy/app"
	svcproxy "podwire.dev/services/svcproxy/app"
)

// TestMain makes the test's own binary podwire where `up` starts it as a child.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		if status, known := Serve(os.Args[2], os.Args[3:]); known {
			os.Exit(status)
		}
	}
	os.Exit(m.Run())
}

// machine is a user's shell on this machine, with a state directory of its own.
type machine struct {
	t   *testing.T
	env *session.Env
	out bytes.Buffer
	dir statedir.Dir
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("namespaces need root; run the test as root")
	}
	m := &machine{t: t}
	m.env = &session.Env{Stdin: strings.NewReader(""), Stdout: &m.out, Stderr: os.Stderr, State: filepath.Join(t.TempDir(), "s")}
	var err error
	if m.dir, err = m.env.Dir(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(context.Background(), m.env); err != nil {
			t.Errorf("the last down: %v", err)
		}
	})
	return m
}

func (m *machine) up(wanted func(*Options)) (string, error) {
	m.out.Reset()
	err := Start(m.t.Context(), m.env, Request{Wanted: wanted, Timeout: time.Minute})
	return m.out.String(), err
}

func (m *machine) mustUp() string {
	m.t.Helper()
	out, err := m.up(nil)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *machine) down() string {
	m.t.Helper()
	m.out.Reset()
	if err := Down(m.t.Context(), m.env); err != nil {
		m.t.Fatal(err)
	}
	return m.out.String()
}

// processes are those of the instance, by what they serve.
func (m *machine) processes() map[string]proc.Process {
	m.t.Helper()
	pids, err := proc.All()
	if err != nil {
		m.t.Fatal(err)
	}
	out := map[string]proc.Process{}
	for _, pid := range pids {
		args := proc.Args(pid)
		if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, string(m.dir)+"/") }) {
			continue
		}
		if p, err := proc.Of(pid); err == nil {
			out[args[len(args)-1]] = p
		}
	}
	return out
}

// traces are what this machine holds of the instance.
func (m *machine) traces() []string {
	m.t.Helper()
	var out []string
	for name := range m.processes() {
		out = append(out, "process "+name)
	}
	mounts, err := lab.ReadMounts("/proc/self/mountinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, mount := range mounts {
		if mount.Beneath(string(m.dir)) {
			out = append(out, "mount "+mount.Target)
		}
	}
	names, err := filepath.Glob("/run/netns/" + m.dir.Prefix() + "*")
	if err != nil {
		m.t.Fatal(err)
	}
	out = append(out, names...)
	if _, err := os.Stat(string(m.dir)); err == nil {
		out = append(out, "directory "+string(m.dir))
	}
	return out
}

func (m *machine) killAll() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
	defer cancel()
	// The supervisor first, as it would start the others again.
	first := m.dir.Config(supervisorName)
	for _, only := range []bool{true, false} {
		for name, p := range m.processes() {
			if only && name != first {
				continue
			}
			if err := p.Signal(syscall.SIGKILL); err != nil {
				m.t.Fatal(err)
			}
			if _, err := p.Wait(ctx); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

func hostLinks(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// The whole life of an instance, with the services as they are.
func TestUpAndDown(t *testing.T) {
	m := newMachine(t)
	before := hostLinks(t)
	if out := m.down(); !strings.Contains(out, "not up") {
		t.Errorf("down on nothing says %q", out)
	}

	out := m.mustUp()
	if !strings.Contains(out, "podwire is up: 7 services and 3 nodes") {
		t.Errorf("up says %q", out)
	}
	born := m.processes()
	if len(born) != 11 {
		t.Errorf("processes: %v", born)
	}
	if got := hostLinks(t); !slices.Equal(got, before) {
		t.Errorf("links of the host: %v, before %v", got, before)
	}
	names, err := filepath.Glob("/run/netns/" + m.dir.Prefix() + "*")
	if err != nil || len(names) != 12 {
		t.Errorf("namespaces: %v, %v", names, err)
	}

	// Twice changes nothing and says so.
	if out := m.mustUp(); !strings.Contains(out, "up already") || !strings.Contains(out, "nothing changed") {
		t.Errorf("the second up says %q", out)
	}
	if got := m.processes(); !equalProcesses(got, born) {
		t.Errorf("the second up changed processes: %v, before %v", got, born)
	}
	// Other options are refused, the same ones are not.
	if _, err := m.up(func(o *Options) { o.Nodes = 5 }); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "podwire down") {
		t.Errorf("up with another number of nodes: %v", err)
	}
	if _, err := m.up(func(o *Options) { o.Nodes = 3 }); err != nil {
		t.Errorf("up with the same number of nodes: %v", err)
	}

	// A supervisor that was killed: the next one adopts.
	kill(t, born[m.dir.Config(supervisorName)])
	if out := m.mustUp(); strings.Contains(out, "already") {
		t.Errorf("up after the supervisor's death says %q", out)
	}
	adopted := m.processes()
	delete(adopted, m.dir.Config(supervisorName))
	delete(born, m.dir.Config(supervisorName))
	if !equalProcesses(adopted, born) {
		t.Errorf("after the supervisor's death: %v, before %v", adopted, born)
	}

	// Everything was killed: the next up starts it, on the same data.
	uid := nodeUID(t, m, "node-1")
	m.killAll()
	m.mustUp()
	if got := nodeUID(t, m, "node-1"); got != uid {
		t.Errorf("the Node's uid is %s, was %s: the data is another", got, uid)
	}

	// Everything was killed: down finds what is left.
	m.killAll()
	if out := m.down(); !strings.Contains(out, "12 namespaces") {
		t.Errorf("down says %q", out)
	}
	if left := m.traces(); len(left) > 0 {
		t.Errorf("down left %v", left)
	}
	if got := hostLinks(t); !slices.Equal(got, before) {
		t.Errorf("links of the host: %v, before %v", got, before)
	}
}

// The supervisor and a child are killed, and nobody waits for their end: the next up has to see that they are to end.
func TestUpRightAfterAKill(t *testing.T) {
	m := newMachine(t)
	if _, err := m.up(func(o *Options) { o.Nodes = 1 }); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		before := m.processes()
		agent := slices.IndexFunc(m.children(), func(c string) bool { return strings.Contains(c, "node-1") })
		if agent < 0 {
			t.Fatalf("no agent among %v", before)
		}
		for _, name := range []string{m.dir.Config(supervisorName), m.children()[agent]} {
			if err := before[name].Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if out := m.mustUp(); strings.Contains(out, "already") {
			t.Errorf("up says %q", out)
		}
		after := m.processes()
		for name, p := range after {
			killed := name == m.dir.Config(supervisorName) || strings.Contains(name, "node-1")
			if same := before[name] == p; same == killed {
				t.Errorf("%s: %+v, before %+v", name, p, before[name])
			}
		}
		if len(after) != len(before) {
			t.Errorf("processes %v, before %v", after, before)
		}
	}
}

// children are the names of the processes.
func (m *machine) children() []string { return slices.Sorted(maps.Keys(m.processes())) }

func kill(t *testing.T, p proc.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func equalProcesses(a, b map[string]proc.Process) bool {
	if len(a) != len(b) {
		return false
	}
	for name, p := range a {
		if b[name] != p {
			return false
		}
	}
	return true
}

func nodeUID(t *testing.T, m *machine, name string) string {
	t.Helper()
	conn, err := m.env.Dial(t.Context(), "cluster")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	resp, err := clusterv1.NewNodeServiceClient(conn).Get(t.Context(), &clusterv1.NodeServiceGetRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetObject().GetMetadata().GetUid()
}

// A down while everything runs, and a foreground that is interrupted.
func TestForegroundThenUpThenDown(t *testing.T) {
	m := newMachine(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	printed := make(chan struct{})
	env := *m.env
	env.Stdout = onWrite(func([]byte) { close(printed) })
	go func() {
		ended <- Stay(ctx, &env, Request{Wanted: func(o *Options) { o.Nodes = 1 }, Timeout: time.Minute})
	}()
	select {
	case <-printed:
	case err := <-ended:
		t.Fatal(err)
	}
	// The supervisor is this process: 7 services and an agent.
	if got := m.processes(); len(got) != 8 {
		t.Errorf("processes: %v", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("stay: %v", err)
	}
	if got := m.processes(); len(got) != 0 {
		t.Errorf("after Ctrl-C: %v", got)
	}
	if out := m.mustUp(); !strings.Contains(out, "1 nodes") {
		t.Errorf("up after Ctrl-C says %q", out)
	}
	if err := Stay(t.Context(), m.env, Request{Timeout: time.Minute}); !errs.Is(err, errs.Exists) {
		t.Errorf("foreground beside a background: %v, want Exists", err)
	}
	if out := m.down(); !strings.Contains(out, "podwire is down") {
		t.Errorf("down says %q", out)
	}
	if left := m.traces(); len(left) > 0 {
		t.Errorf("down left %v", left)
	}
}

type onWrite func([]byte)

func (f onWrite) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	m := newMachine(t)
	if err := os.MkdirAll(string(m.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	theirs := m.dir.Path("precious")
	if err := os.WriteFile(theirs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.up(nil); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "not podwire's") {
		t.Errorf("up: %v", err)
	}
	if err := Down(t.Context(), m.env); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "nothing was removed") {
		t.Errorf("down: %v", err)
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Errorf("a foreign file is gone: %v", err)
	}
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
}

func TestOverlapIsRefusedByName(t *testing.T) {
	m := newMachine(t)
	ns := testnet.New(t).AddNS("host")
	ns.Run("ip", "link", "add", "docker1", "type", "bridge")
	ns.Run("ip", "link", "set", "docker1", "up")
	ns.Run("ip", "addr", "add", "10.244.3.1/24", "dev", "docker1")
	err := ns.Do(func() error { return Start(t.Context(), m.env, Request{Timeout: time.Minute}) })
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "10.244.0.0/16 overlaps route 10.244.3.0/24 dev docker1") {
		t.Errorf("got %v", err)
	}
	if left := m.traces(); len(left) > 0 {
		t.Errorf("a refused up left %v", left)
	}
}

// A child that cannot start is named, with the end of its log.
func TestFailureNamesWhatIsNotUp(t *testing.T) {
	m := newMachine(t)
	// Somebody sits on a service's socket path.
	if err := m.dir.WriteMarker(nil); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(m.dir.Socket("policy"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := m.up(func(o *Options) { o.Nodes = 1 })
	if err == nil {
		t.Fatal("up succeeded")
	}
	for _, want := range []string{"policy", "the end of " + m.dir.Log("policy"), "file of another kind"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

// Every file that `up` writes is one that its service accepts, and says the same there.
func TestConfigsAreAccepted(t *testing.T) {
	t.Parallel()
	dir, err := statedir.Resolve(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	i := instance{dir: dir, opts: DefaultOptions(dir)}
	i.opts.SubstituteImages = true
	if n, err := i.write(); err != nil || n != 11 {
		t.Fatalf("%d files, %v", n, err)
	}
	if n, err := i.write(); err != nil || n != 0 {
		t.Errorf("written again: %d files, %v; want none", n, err)
	}
	c := load[cluster.Config](t, dir, "cluster")
	if c.CADir != dir.Path("pki") || !slices.Equal(c.Required, []string{"cluster", "ipam", "svcproxy", "policy", "dns", "ingress"}) || c.Join != nil {
		t.Errorf("cluster: %+v", c)
	}
	third := strconv.Itoa(int(i.opts.Underlay[0].Addr().As4()[2]))
	p := load[ipam.Config](t, dir, "ipam")
	if !slices.Equal(p.Pods, []string{"10.244.0.0/16", "fd00:10:244::/48"}) || p.LoadBalancers[0] != "172.30."+third+".200-172.30."+third+".250" {
		t.Errorf("ipam: %+v", p)
	}
	load[svcproxy.Config](t, dir, "svcproxy")
	load[policy.Config](t, dir, "policy")
	load[etcdserver.Config](t, dir, "etcd")
	n := load[dns.Config](t, dir, "dns")
	if n.Member.Name != "dns-1" || n.Member.Underlay[0] != "172.30."+third+".7" || n.Forward.Upstreams[0] != "172.30."+third+".9:53" || len(n.Ranges) != 4 {
		t.Errorf("dns: %+v", n)
	}
	in := load[ingress.Config](t, dir, "ingress")
	if in.Member.Name != "ingress-1" || in.SecretsKey != dir.Path("pki", "secrets.key") || !in.IngressClass.Default || in.Peers["cluster"] != "172.30."+third+".3:7443" {
		t.Errorf("ingress: %+v", in)
	}
	for n, node := range i.opts.nodeNames() {
		a := load[nodeagent.Config](t, dir, node)
		if a.Node != node || a.Underlay[0] != "172.30."+third+"."+strconv.Itoa(11+n) || !a.SubstituteImages ||
			!slices.Equal(a.ClusterDNS, []string{"10.96.0.10", "fd00:10:96::a"}) || a.Peers["cluster"] != "172.30."+third+".3:7443" {
			t.Errorf("%s: %+v", node, a)
		}
	}
	s := load[supervisorConfig](t, dir, supervisorName)
	if len(s.Children) != 10 || s.Children[0].Name != "etcd" || s.Children[0].Turn == 0 || s.Children[9].Mount == "" {
		t.Errorf("supervisor: %+v", s)
	}
}

func load[T any](t *testing.T, dir statedir.Dir, child string) T {
	t.Helper()
	cfg, err := daemon.Load[T](dir.Config(child))
	if err != nil {
		t.Error(err)
	}
	return cfg
}

func TestOptions(t *testing.T) {
	t.Parallel()
	dir := statedir.Dir("/var/lib/podwire")
	good := DefaultOptions(dir)
	if err := good.Check(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	for want, change := range map[string]func(*Options){
		`--nodes: "0"`:                          func(o *Options) { o.Nodes = 0 },
		`--nodes: "151"`:                        func(o *Options) { o.Nodes = MaxNodes + 1 },
		"overlaps 10.244.0.0/16 of --pods":      func(o *Options) { o.Services = parse("10.244.9.0/24") },
		"--pods: \"10.0.0.1/8\": has host bits": func(o *Options) { o.Pods = parse("10.0.0.1/8") },
		"at most one range of each family":      func(o *Options) { o.Pods = parse("10.244.0.0/16", "10.245.0.0/16") },
		"must begin with an IPv4 range":         func(o *Options) { o.Pods = parse("fd00::/48") },
		"room for 256 addresses":                func(o *Options) { o.Underlay = parse("192.0.2.0/25") },
	} {
		o := good
		change(&o)
		if err := o.Check(); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want Invalid with %q", err, want)
		}
	}
	// Machines of the underlay do not share addresses, nor with LoadBalancers.
	seen := map[netip.Addr]string{}
	i := instance{dir: dir, opts: good}
	i.opts.Nodes = MaxNodes
	for _, m := range i.lab().Members {
		for _, a := range m.Addresses {
			if other, dup := seen[a.Addr()]; dup {
				t.Errorf("%s and %s share %s", m.Name, other, a)
			}
			seen[a.Addr()] = m.Name
		}
	}
	if seen[host(good.Underlay[0], firstLBHost)] != "" || MaxNodes+firstNodeHost > firstLBHost {
		t.Error("nodes reach into the addresses of LoadBalancers")
	}
}

func parse(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestChildrenHavePlaces(t *testing.T) {
	t.Parallel()
	i := instance{dir: "/s", opts: DefaultOptions("/s")}
	members := map[string]bool{}
	for _, m := range i.lab().Members {
		members[i.dir.NetNS(m.Name)] = true
	}
	for _, c := range i.children() {
		if !members[c.Net] {
			t.Errorf("%s is to run in %s, which nobody makes", c.Name, c.Net)
		}
	}
	if slices.ContainsFunc(i.children(), func(c supervise.Child) bool { return len(c.Args) != 5 }) {
		t.Error("a child has no configuration")
	}
}
