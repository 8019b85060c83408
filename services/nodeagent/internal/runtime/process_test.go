package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/runtime/podfiles"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
	"podwire.dev/services/nodeagent/internal/shim"
)

// The test binary is its own shim, as the agent's is. As "abandon ROOT" it is an
// agent that starts a Pod and then does not end by itself.
func TestMain(m *testing.M) {
	if handled, code := shim.Main(os.Args[1:]); handled {
		os.Exit(code)
	}
	if len(os.Args) == 3 && os.Args[1] == "abandon" {
		os.Exit(abandon(os.Args[2]))
	}
	os.Exit(m.Run())
}

func config(root string, changed func(string)) Config {
	return Config{
		Root: root, NodeName: "node-1", OnChange: changed,
		Shim:    shim.Launcher{Argv: []string{"runtime.test", "shim"}},
		Cluster: podfiles.Cluster{Domain: "cluster.local", DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}},
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

var loopback = Attachment{PodIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}

// node is a driver under test, with its Run.
type node struct {
	*Process
	t      *testing.T
	end    func()
	mu     sync.Mutex
	change chan struct{}
}

func newNode(t *testing.T, root string, adjust func(*Config)) *node {
	t.Helper()
	n := &node{t: t, change: make(chan struct{})}
	cfg := config(root, func(string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		close(n.change)
		n.change = make(chan struct{})
	})
	if adjust != nil {
		adjust(&cfg)
	}
	d, err := NewProcess(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Process = d
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	var once sync.Once
	n.end = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error("Run:", err)
			}
		})
	}
	t.Cleanup(func() { n.cleanup() })
	return n
}

// cleanup removes every Pod, whatever the test left.
func (n *node) cleanup() {
	n.end()
	d, err := NewProcess(n.cfg)
	if err != nil {
		n.t.Error(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	run := make(chan error, 1)
	rctx, stop := context.WithCancel(ctx)
	go func() { run <- d.Run(rctx) }()
	for _, p := range d.List() {
		if err := errors.Join(d.Stop(ctx, p.Pod.UID, 0), d.RemoveSandbox(ctx, p.Pod.UID)); err != nil {
			n.t.Error(err)
		}
	}
	stop()
	if err := <-run; err != nil {
		n.t.Error(err)
	}
}

// until waits for a state of a Pod.
func (n *node) until(uid, what string, ok func(PodState) bool) PodState {
	n.t.Helper()
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	for {
		n.mu.Lock()
		change := n.change
		n.mu.Unlock()
		s, err := n.State(uid)
		if err != nil {
			n.t.Fatal(err)
		}
		if ok(s) {
			return s
		}
		select {
		case <-change:
		case <-timeout.C:
			n.t.Fatalf("pod %s: not %s: %+v", uid, what, s)
		}
	}
}

func (n *node) start(p podspec.Pod) {
	n.t.Helper()
	if _, err := n.CreateSandbox(n.t.Context(), p); err != nil {
		n.t.Fatal(err)
	}
	if err := n.StartContainers(n.t.Context(), p, loopback); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) exec(uid string, argv ...string) (code int, out string) {
	n.t.Helper()
	var b bytes.Buffer
	code, err := n.Exec(n.t.Context(), uid, ExecRequest{Command: argv, Stdout: &b, Stderr: &b})
	if err != nil {
		n.t.Fatalf("exec %q: %v", argv, err)
	}
	return code, b.String()
}

func running(s PodState) bool    { return s.Containers[0].Phase == Running && s.Containers[0].Ready }
func terminated(s PodState) bool { return s.Containers[0].Phase == Terminated }

func echoPod(name string) podspec.Pod {
	return podspec.Pod{
		Namespace: "default", Name: name, UID: name + "-uid", RestartPolicy: podspec.RestartAlways,
		GracePeriod: 5 * time.Second, DNS: podspec.DNS{Policy: "ClusterFirst"},
		Containers: []podspec.Container{{Name: "main", Image: EchoImage, User: podspec.User{UID: -1, GID: -1},
			Ports: []podspec.Port{{Protocol: "TCP", Number: 8080}, {Protocol: "UDP", Number: 53}}}},
	}
}

func shellPod(name, script string) podspec.Pod {
	p := echoPod(name)
	p.Containers[0].Image, p.Containers[0].Ports = HostImage, nil
	p.Containers[0].Command, p.Containers[0].Args = []string{"/bin/sh", "-c"}, []string{script}
	return p
}

func TestEchoPodIsReachedFromInside(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.start(echoPod("web"))
	n.until("web-uid", "running", running)
	for _, c := range []struct {
		argv []string
		code int
		out  string
	}{
		{[]string{"probe", "tcp", "127.0.0.1:8080"}, 0, "web 127.0.0.1\n"},
		{[]string{"probe", "tcp", "[::1]:8080"}, 0, "web ::1\n"},
		{[]string{"probe", "udp", "127.0.0.1:53"}, 0, "web 127.0.0.1\n"},
		{[]string{"probe", "udp", "[::1]:53"}, 0, "web ::1\n"},
		{[]string{"probe", "http", "http://127.0.0.1:8080/healthz"}, 0, "web 127.0.0.1\n"},
		{[]string{"probe", "tcp", "127.0.0.1:81"}, 1, ""},
		{[]string{"probe", "udp", "[::1]:81"}, 1, ""},
		{[]string{"probe", "http", "127.0.0.1:81"}, 1, ""},
		{[]string{"probe", "tcp", "192.0.2.9:80"}, 1, ""}, // no route: only lo is there
	} {
		code, out := n.exec("web-uid", c.argv...)
		answer, _, _ := strings.Cut(out, "probe:")
		if code != c.code || answer != c.out {
			t.Errorf("%v: exit %d, output %q; want %d, %q", c.argv, code, out, c.code, c.out)
		}
	}
}

func TestContainerHasItsOwnFilesAndNamespaces(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	p := shellPod("own", "echo up; exec sleep 1000")
	p.Containers[0].Env = []podspec.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)2"}}
	p.Containers[0].WorkingDir = "/usr"
	n.start(p)
	n.until("own-uid", "running", running)
	for _, c := range []struct{ script, want string }{
		{"hostname", "own\n"},
		{"cat /etc/hostname", "own\n"},
		{"grep own /etc/hosts", "127.0.0.1\town\n"},
		{"head -1 /etc/resolv.conf", "search default.svc.cluster.local svc.cluster.local cluster.local"},
		{"grep nameserver /etc/resolv.conf", "nameserver 10.96.0.10\n"},
		{"echo $A $B $HOSTNAME; pwd", "1 12 own\n/usr\n"},
		{"cat /proc/1/comm", "sleep\n"},
		{"ls /sys/class/net", "lo\n"},
		{"grep -c nsfs /proc/1/mountinfo", "0\n"},
	} {
		_, out := n.exec("own-uid", "sh", "-c", c.script)
		if !strings.HasPrefix(out, c.want) {
			t.Errorf("%s: %q, want %q", c.script, out, c.want)
		}
	}
	if name, _ := os.Hostname(); name == "own" {
		t.Error("the node's host name was changed")
	}
	if b, _ := os.ReadFile("/etc/hosts"); strings.Contains(string(b), "Kubernetes-managed") {
		t.Error("the node's /etc/hosts was replaced")
	}
}

func TestExecPassesEverythingThrough(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.start(shellPod("ex", "exec sleep 1000"))
	n.until("ex-uid", "running", running)
	var out, errOut bytes.Buffer
	code, err := n.Exec(t.Context(), "ex-uid", ExecRequest{
		Command: []string{"sh", "-c", "read x; echo got $x; echo bad >&2; exit 7"},
		Stdin:   strings.NewReader("hello\n"), Stdout: &out, Stderr: &errOut,
	})
	if err != nil || code != 7 || out.String() != "got hello\n" || errOut.String() != "bad\n" {
		t.Errorf("code %d, %v, stdout %q, stderr %q", code, err, out.String(), errOut.String())
	}
	for _, c := range []struct {
		argv []string
		code int
	}{
		{[]string{"true"}, 0}, {[]string{"no-such-command"}, 127}, {[]string{"/etc/passwd"}, 126},
		{[]string{"sh", "-c", "kill -9 $$"}, 137}, {[]string{"probe"}, 64},
	} {
		if code, out := n.exec("ex-uid", c.argv...); code != c.code {
			t.Errorf("%v: exit %d (%s), want %d", c.argv, code, out, c.code)
		}
	}
	if _, err := n.Exec(t.Context(), "ex-uid", ExecRequest{Container: "other", Command: []string{"true"}}); !errs.Is(err, errs.NotFound) {
		t.Errorf("unknown container: %v", err)
	}
	code, err = n.HostExec(t.Context(), ExecRequest{Command: []string{"sh", "-c", "exit 5"}})
	if err != nil || code != 5 {
		t.Errorf("host exec: %d, %v", code, err)
	}
}

// firstByte is closed by the first write.
type firstByte struct {
	once sync.Once
	seen chan struct{}
}

func (f *firstByte) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.seen) })
	return len(p), nil
}

func TestExecIsKilledWithItsContext(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.start(shellPod("cancel", "exec sleep 1000"))
	n.until("cancel-uid", "running", running)
	for name, run := range map[string]func(context.Context, ExecRequest) (int, error){
		"pod":  func(ctx context.Context, r ExecRequest) (int, error) { return n.Exec(ctx, "cancel-uid", r) },
		"host": n.HostExec,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		begun := &firstByte{seen: make(chan struct{})}
		go func() { <-begun.seen; cancel() }()
		if _, err := run(ctx, ExecRequest{Command: []string{"sh", "-c", "echo x; sleep 4321"}, Stdout: begun}); name == "pod" && err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if out, err := exec.Command("pgrep", "-fx", "sleep 4321").CombinedOutput(); err == nil {
		t.Errorf("left behind: %s", out)
	}
}

func TestLogsTailPreviousAndFollow(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.start(shellPod("log", "for i in 1 2 3; do echo line $i; done; exec sleep 1000"))
	n.until("log-uid", "running", running)
	r, w := io.Pipe()
	followed := make(chan error, 1)
	go func() {
		followed <- n.Logs(t.Context(), "log-uid", LogRequest{Tail: -1, Until: UntilStopped}, w)
		w.Close()
	}()
	buf := make([]byte, len("line 1\nline 2\nline 3\n"))
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != "line 1\nline 2\nline 3\n" {
		t.Fatalf("%q, %v", buf, err)
	}
	var tail bytes.Buffer
	if err := n.Logs(t.Context(), "log-uid", LogRequest{Tail: 2}, &tail); err != nil || tail.String() != "line 2\nline 3\n" {
		t.Errorf("tail: %q, %v", tail.String(), err)
	}
	if err := n.Logs(t.Context(), "log-uid", LogRequest{Run: PreviousRun}, io.Discard); !errs.Is(err, errs.NotFound) {
		t.Errorf("previous: %v", err)
	}
	if err := n.Stop(t.Context(), "log-uid", 0); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	if err := <-followed; err != nil {
		t.Error(err)
	}
}

func TestStopAsksThenKills(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.start(shellPod("polite", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"))
	n.start(shellPod("deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done"))
	hooked := shellPod("hooked", "while [ ! -e $FILE ]; do sleep 0.05; done; exit 9")
	file := filepath.Join(t.TempDir(), "hook")
	hooked.Containers[0].Env = []podspec.EnvVar{{Name: "FILE", Value: file}}
	hooked.Containers[0].PreStop = &podspec.Handler{Exec: []string{"sh", "-c", "touch $FILE; sleep 0.5"}}
	n.start(hooked)
	for _, c := range []struct {
		uid   string
		grace time.Duration
		code  int
	}{{"polite-uid", time.Minute, 3}, {"deaf-uid", time.Second, 137}, {"hooked-uid", 20 * time.Second, 9}} {
		n.until(c.uid, "running", running)
		for c.uid == "polite-uid" || c.uid == "deaf-uid" { // until the trap is set
			var log bytes.Buffer
			if err := n.Logs(t.Context(), c.uid, LogRequest{Tail: -1}, &log); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(log.String(), "up") {
				break
			}
		}
		if err := n.Stop(t.Context(), c.uid, c.grace); err != nil {
			t.Fatal(err)
		}
		s, err := n.State(c.uid)
		if err != nil || !terminated(s) || s.Containers[0].Last.Code != c.code {
			t.Errorf("%s: %v %+v, want exit %d", c.uid, err, s.Containers[0], c.code)
		}
		if err := n.RemoveSandbox(t.Context(), c.uid); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(n.netns(c.uid)); err == nil {
			t.Errorf("%s: pin is left", c.uid)
		}
	}
}

func TestCrashIsRestartedThenBacksOff(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.start(shellPod("crash", "echo run; exit 4"))
	s := n.until("crash-uid", "backing off", func(s PodState) bool {
		return s.Containers[0].Phase == Waiting && strings.HasPrefix(s.Containers[0].Message, "back-off 10s")
	})
	c := s.Containers[0]
	if c.RestartCount != 1 || c.Reason != "CrashLoopBackOff" || c.Previous == nil || c.Previous.Code != 4 {
		t.Errorf("%+v", c)
	}
	var log bytes.Buffer
	if err := n.Logs(t.Context(), "crash-uid", LogRequest{Run: PreviousRun, Tail: -1}, &log); err != nil || log.String() != "run\n" {
		t.Errorf("previous log %q, %v", log.String(), err)
	}
}

func TestRestartPolicyAndInitContainers(t *testing.T) {
	n := newNode(t, t.TempDir(), func(c *Config) { c.Images = SubstituteImages })
	p := shellPod("job", "exit 0")
	p.RestartPolicy = podspec.RestartNever
	file := filepath.Join(t.TempDir(), "order")
	step := p.Containers[0]
	step.Name, step.Args = "one", []string{"echo one >> " + file}
	two := step
	two.Name, two.Args = "two", []string{"echo two >> " + file}
	foreign := podspec.Container{Name: "foreign", Image: "busybox:1.36", User: podspec.User{UID: -1, GID: -1}}
	p.Init = []podspec.Container{step, foreign, two}
	p.Containers[0].Args = []string{"echo main >> " + file}
	n.start(p)
	s := n.until("job-uid", "terminated", terminated)
	if b, _ := os.ReadFile(file); string(b) != "one\ntwo\nmain\n" {
		t.Errorf("order %q", b)
	}
	if s.Init[1].Note() == "" {
		t.Error("the substitution is not named")
	}
	bad := shellPod("badinit", "echo never")
	bad.RestartPolicy = podspec.RestartNever
	step.Args = []string{"exit 2"}
	bad.Init = []podspec.Container{step}
	n.start(bad)
	s = n.until("badinit-uid", "failed in init", func(s PodState) bool { return s.Init[0].Phase == Terminated })
	if s.Containers[0].Phase != Waiting {
		t.Errorf("%+v", s.Containers[0])
	}
}

func TestForeignImageAndMissingCommand(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	p := echoPod("foreign")
	p.Containers[0].Image = "nginx:1.27"
	n.start(p)
	s, err := n.State("foreign-uid")
	if err != nil || s.Containers[0].Reason != "ErrImageNeverPull" || !strings.Contains(s.Containers[0].Message, "nginx:1.27") {
		t.Errorf("%v %+v", err, s.Containers[0])
	}
	q := shellPod("nocmd", "")
	q.RestartPolicy = podspec.RestartNever
	q.Containers[0].Command, q.Containers[0].Args = []string{"no-such-command"}, nil
	n.start(q)
	s = n.until("nocmd-uid", "terminated", terminated)
	if s.Containers[0].Reason != "StartError" || !strings.Contains(s.Containers[0].Message, "not found") {
		t.Errorf("%+v", s.Containers[0])
	}
}

func TestProbesDecideReadinessAndRestart(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	file := filepath.Join(t.TempDir(), "ready")
	p := shellPod("probed", "exec sleep 1000")
	quick := podspec.Probe{Period: time.Second, Timeout: 20 * time.Second, SuccessThreshold: 1, FailureThreshold: 1, GracePeriod: -1}
	ready, live := quick, quick
	ready.Handler.Exec = []string{"test", "-e", file}
	live.Handler.Exec = []string{"test", "!", "-e", file + ".dead"}
	live.GracePeriod = 0
	p.Containers[0].Readiness, p.Containers[0].Liveness = &ready, &live
	n.start(p)
	n.until("probed-uid", "running and not ready", func(s PodState) bool {
		return s.Containers[0].Phase == Running && s.Containers[0].Started && !s.Containers[0].Ready
	})
	write(t, file)
	n.until("probed-uid", "ready", running)
	write(t, file+".dead")
	s := n.until("probed-uid", "restarted", func(s PodState) bool { return s.Containers[0].RestartCount > 0 })
	if s.Containers[0].Previous.Code != 137 {
		t.Errorf("%+v", s.Containers[0].Previous)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHostNetworkPodLivesInTheNode(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	p := shellPod("hostnet", "exec sleep 1000")
	p.HostNetwork = true
	n.start(p)
	n.until("hostnet-uid", "running", running)
	var there bytes.Buffer
	if _, err := n.Exec(t.Context(), "hostnet-uid", ExecRequest{Command: []string{"readlink", "/proc/self/ns/net"}, Stdout: &there}); err != nil {
		t.Fatal(err)
	}
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil || strings.TrimSpace(there.String()) != here {
		t.Errorf("%q, %q, %v", there.String(), here, err)
	}
}

func TestUserIsHonoured(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	p := shellPod("user", "id -u; exec sleep 1000")
	p.Containers[0].User = podspec.User{UID: 1234, GID: 5678, Groups: []int{42}}
	n.start(p)
	n.until("user-uid", "running", running)
	if _, out := n.exec("user-uid", "sh", "-c", "id -u; id -g; id -G"); out != "1234\n5678\n5678 42\n" {
		t.Errorf("%q", out)
	}
}

func TestSandboxIsFoundAgainAndSwept(t *testing.T) {
	root := t.TempDir()
	d, err := NewProcess(config(root, nil))
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.CreateSandbox(t.Context(), echoPod("a"))
	if err != nil {
		t.Fatal(err)
	}
	inode := func() string {
		info, err := os.Stat(a.NetNS)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(info.Sys())
	}
	first := inode()
	if _, err := d.CreateSandbox(t.Context(), echoPod("a")); err != nil || inode() != first {
		t.Errorf("a second sandbox: %v", err)
	}
	half := filepath.Join(root, "netns", "half")
	if err := makeNetNS(half); err != nil {
		t.Fatal(err)
	}
	again, err := NewProcess(config(root, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); err == nil {
		t.Error("a namespace of no Pod was left")
	}
	if l := again.List(); len(l) != 1 || l[0].Sandbox != a || inode() != first {
		t.Errorf("%+v", l)
	}
	if err := again.RemoveSandbox(t.Context(), "a-uid"); err != nil {
		t.Error(err)
	}
	if err := again.RemoveSandbox(t.Context(), "a-uid"); err != nil {
		t.Error("again:", err)
	}
	if left, err := filepath.Glob(filepath.Join(root, "*", "*")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}
