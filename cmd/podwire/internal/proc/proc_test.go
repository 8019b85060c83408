package proc_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"podwire.dev/cmd/podwire/internal/proc"
	"podwire.dev/cmd/podwire/internal/proc/proctest"
)

// sleeper makes the test's own binary a process that only waits, or one that ends at once.
const sleeper = "podwire-test (sleeper) 1 2"

func TestMain(m *testing.M) {
	if os.Args[0] == sleeper {
		if len(os.Args) > 1 {
			os.Exit(3)
		}
		<-time.After(time.Hour) // not select{}: the runtime would call that a deadlock, and end
	}
	os.Exit(m.Run())
}

func start(t *testing.T, args ...string) proc.Process {
	t.Helper()
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{sleeper}, args...)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	p, err := proc.Of(cmd.Process.Pid)
	if err != nil && !errors.Is(err, proc.ErrGone) {
		t.Fatal(err)
	}
	if err != nil {
		p.PID = cmd.Process.Pid
	}
	return p
}

func TestSignalAndWait(t *testing.T) {
	t.Parallel()
	p := start(t)
	if args := proc.Args(p.PID); len(args) != 1 {
		t.Errorf("args %q", args)
	}
	early, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := p.Wait(early); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for a living process: %v", err)
	}
	other := proc.Process{PID: p.PID, Start: p.Start + 1}
	if err := other.Signal(syscall.SIGKILL); !errors.Is(err, proc.ErrGone) {
		t.Errorf("signal to the pid's earlier owner: %v, want ErrGone", err)
	}
	if now, err := proc.Of(p.PID); err != nil || now != p {
		t.Fatalf("the pid's new owner was hit: %v, %v", now, err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	end, err := p.Wait(t.Context())
	if err != nil || !strings.Contains(end.String(), "signal 9") {
		t.Errorf("end %q, %v", end, err)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, proc.ErrGone) {
		t.Errorf("signal to the dead: %v, want ErrGone", err)
	}
	if end, err := p.Wait(t.Context()); err != nil || end.Known {
		t.Errorf("wait for the dead: %v, %v", end, err)
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	p := start(t, "ends")
	end, err := p.Wait(t.Context())
	if err != nil || end.String() != "exit status 3" {
		t.Errorf("end %q, %v", end, err)
	}
}

func TestAll(t *testing.T) {
	t.Parallel()
	p := start(t)
	pids, err := proc.All()
	if err != nil || !slices.Contains(pids, p.PID) || !slices.Contains(pids, os.Getpid()) {
		t.Errorf("pids %v, %v", pids, err)
	}
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	own := proc.NamespaceOf(os.Getpid(), "net")
	at, err := proc.NamespaceAt("/proc/self/ns/net")
	if err != nil || own == (proc.Namespace{}) || at != own {
		t.Errorf("own namespace %v, at its path %v, %v", own, at, err)
	}
	file := t.TempDir()
	for _, path := range []string{file, file + "/none"} {
		if ns, err := proc.NamespaceAt(path); err != nil || ns != (proc.Namespace{}) {
			t.Errorf("%s: %v, %v; want none", path, ns, err)
		}
	}
	if ns := proc.NamespaceOf(1<<22, "net"); ns != (proc.Namespace{}) {
		t.Errorf("of nobody: %v", ns)
	}
}

// A process that was killed is still there, in whatever state, until it has ended: here it is held on its way out.
func TestKilled(t *testing.T) {
	t.Parallel()
	p := start(t)
	if p.Killed() {
		t.Error("a living process was killed")
	}
	release := proctest.HoldExit(t, p)
	if now, err := proc.Of(p.PID); err != nil || now != p {
		t.Errorf("it is still there: %v, %v", now, err)
	}
	if !p.Killed() {
		t.Error("a process with SIGKILL pending is taken for a living one")
	}
	release()
	if _, err := p.Wait(t.Context()); err != nil || !p.Killed() {
		t.Errorf("after its end: killed %v, %v", p.Killed(), err)
	}
	if other := (proc.Process{PID: os.Getpid(), Start: 1}); !other.Killed() {
		t.Error("the pid's earlier owner is taken for its present one")
	}
}

func TestForked(t *testing.T) {
	t.Parallel()
	p := start(t)
	if proc.Forked(p.PID) || proc.Forked(1<<22) {
		t.Error("a program of its own is called a fork of another")
	}
	// A shell's subshell is a fork that stays one.
	cmd := exec.Command("sh", "-c", "(read line; :); :")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = in.Close(), cmd.Wait() })
	children := "/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/" + strconv.Itoa(cmd.Process.Pid) + "/children"
	for t.Context().Err() == nil {
		text, err := os.ReadFile(children)
		if err != nil {
			t.Fatal(err)
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			if !proc.Forked(pid) {
				t.Errorf("%d is a fork of sh", pid)
			}
			break
		}
	}
}
