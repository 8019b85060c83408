package supervise_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"podwire.dev/cmd/podwire/internal/proc"
	"podwire.dev/cmd/podwire/internal/proc/proctest"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/cmd/podwire/internal/supervise"
	"podwire.dev/internal/errs"
)

// dummy makes the test's own binary a child: `dummy <file> [dies]` notes its pid and its end in the file.
const dummy = "podwire-test-child"

func TestMain(m *testing.M) {
	if os.Args[0] != dummy {
		os.Exit(m.Run())
	}
	if len(os.Args) > 2 && os.Args[2] == "supervises" {
		dir := statedir.Dir(os.Args[1])
		err := supervise.Run(context.Background(), supervise.Options{
			Dir: dir, Children: []supervise.Child{child(dir, "a", "dies")}, Log: slog.New(slog.DiscardHandler),
		})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) > 2 {
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(7)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if err := os.WriteFile(os.Args[1]+".listens", nil, 0o600); err != nil {
		os.Exit(1)
	}
	<-stop
	f, err := os.OpenFile(os.Args[1], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, "stopped", time.Now().UnixNano())
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func newDir(t *testing.T) statedir.Dir {
	t.Helper()
	dir, err := statedir.Resolve(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func child(dir statedir.Dir, name string, extra ...string) supervise.Child {
	return supervise.Child{Name: name, Args: append([]string{dummy, dir.Path(name)}, extra...)}
}

// run supervises in this process; stop stops it.
func run(t *testing.T, dir statedir.Dir, children ...supervise.Child) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- supervise.Run(ctx, supervise.Options{Dir: dir, Children: children, Log: slog.New(slog.DiscardHandler)})
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// eventually waits for a record that satisfies ok.
func eventually(t *testing.T, dir statedir.Dir, name string, ok func(supervise.Record) bool) supervise.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var r supervise.Record
	for {
		var err error
		if r, _, err = supervise.ReadRecord(dir, name); err != nil {
			t.Fatal(err)
		}
		if ok(r) {
			return r
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: the record stays %+v", name, r)
		}
	}
}

func running(r supervise.Record) bool { return r.Process.PID != 0 }

func TestDeadChildIsStartedAgain(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	run(t, dir, child(dir, "a"), child(dir, "b"))
	first := eventually(t, dir, "a", running)
	other := eventually(t, dir, "b", running)
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := eventually(t, dir, "a", func(r supervise.Record) bool { return running(r) && r.Process != first.Process })
	if second.Restarts != 1 || !strings.Contains(second.LastEnd, "signal 9") {
		t.Errorf("record %+v, want one restart after signal 9", second)
	}
	if now := eventually(t, dir, "b", running); now.Process != other.Process {
		t.Error("the other child was started again, too")
	}
}

func TestDyingChildIsNotHurried(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	stop := run(t, dir, child(dir, "a", "dies"))
	r := eventually(t, dir, "a", func(r supervise.Record) bool { return r.Restarts >= 3 })
	if r.LastEnd != "exit status 7" {
		t.Errorf("last end %q, want exit status 7", r.LastEnd)
	}
	stop()
	log, err := os.ReadFile(dir.Log("a"))
	if err != nil || !strings.Contains(string(log), "last words") {
		t.Errorf("log %q, %v", log, err)
	}
}

func TestMissingProgram(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- supervise.Run(ctx, supervise.Options{
			Dir: dir, Children: []supervise.Child{child(dir, "a")}, Program: dir.Path("none"), Log: slog.New(slog.DiscardHandler),
		})
	}()
	r := eventually(t, dir, "a", func(r supervise.Record) bool { return r.LastEnd != "" })
	if !strings.Contains(r.LastEnd, "no such file") {
		t.Errorf("last end %q", r.LastEnd)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestTurns(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	store := child(dir, "store")
	store.Turn = 1
	stop := run(t, dir, store, child(dir, "a"), child(dir, "b"))
	for _, name := range []string{"a", "b", "store"} {
		eventually(t, dir, name, func(supervise.Record) bool {
			_, err := os.Stat(dir.Path(name) + ".listens")
			return err == nil
		})
	}
	stop()
	at := map[string]string{}
	for _, name := range []string{"a", "b", "store"} {
		text, err := os.ReadFile(dir.Path(name))
		if err != nil {
			t.Fatalf("%s was not asked to stop: %v", name, err)
		}
		at[name] = string(text)
	}
	if at["store"] < at["a"] || at["store"] < at["b"] {
		t.Errorf("the store stopped before its clients: %v", at)
	}
}

// orphan is the child of a supervisor that was killed: its children live, and nobody told them anything.
func orphan(t *testing.T, dir statedir.Dir, c supervise.Child) proc.Process {
	t.Helper()
	process, err := os.StartProcess("/proc/self/exe", c.Args, &os.ProcAttr{Dir: "/"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Kill()
		_, _ = process.Wait()
	})
	p, err := proc.Of(process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestChildrenAreAdopted(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	c := child(dir, "a")
	left := orphan(t, dir, c)
	run(t, dir, c, child(dir, "b"))
	r := eventually(t, dir, "a", running)
	if r.Process != left || !r.Adopted {
		t.Errorf("record %+v, want adopted %+v", r, left)
	}
	if r := eventually(t, dir, "b", running); r.Adopted {
		t.Error("b was adopted from nobody")
	}
	if err := left.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r = eventually(t, dir, "a", func(r supervise.Record) bool { return running(r) && r.Process != left })
	if r.Adopted || r.Restarts != 1 {
		t.Errorf("record %+v, want a new process", r)
	}
}

func TestOneSupervisor(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	if _, alive, err := supervise.Alive(dir); err != nil || alive {
		t.Fatalf("before: alive %v, %v", alive, err)
	}
	stop := run(t, dir, child(dir, "a"))
	eventually(t, dir, "a", running)
	p, alive, err := supervise.Alive(dir)
	if err != nil || !alive || p.PID != os.Getpid() {
		t.Errorf("alive %v, %+v, %v; want this process", alive, p, err)
	}
	err = supervise.Run(t.Context(), supervise.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if !errs.Is(err, errs.Exists) {
		t.Errorf("a second supervisor: %v, want Exists", err)
	}
	stop()
	if _, alive, err := supervise.Alive(dir); err != nil || alive {
		t.Errorf("after: alive %v, %v", alive, err)
	}
}

// A supervisor that was killed is none, also while it still has its lock and its place in the process table.
func TestKilledSupervisorIsNone(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	killed := orphan(t, dir, supervise.Child{Name: "supervisor", Args: []string{dummy, string(dir), "supervises"}})
	eventually(t, dir, "a", func(r supervise.Record) bool { return r.Restarts > 0 })
	if p, alive, err := supervise.Alive(dir); err != nil || !alive || p != killed {
		t.Fatalf("alive %v, %+v, %v; want %+v", alive, p, err, killed)
	}
	release := proctest.HoldExit(t, killed)
	type answer struct {
		alive bool
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		_, alive, err := supervise.Alive(dir)
		answered <- answer{alive, err}
	}()
	select {
	case a := <-answered:
		t.Fatalf("alive %v, %v, while it holds the lock", a.alive, a.err)
	case <-time.After(200 * time.Millisecond): // that it takes longer would be no failure
	}
	release()
	if a := <-answered; a.alive || a.err != nil {
		t.Errorf("after its end: alive %v, %v", a.alive, a.err)
	}
	run(t, dir, child(dir, "a", "dies")) // the lock is free
}

// What a child forks has its command line until it becomes what it is to be; it is not the child.
func TestForksAreNotAdopted(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	fifo := dir.Path("fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // every fork gets its line, and ends
		if f, err := os.OpenFile(fifo, os.O_RDWR, 0); err == nil {
			_, _ = f.WriteString(strings.Repeat("end\n", 10))
			_ = f.Close()
		}
	})
	const shell = "/bin/sh"
	c := supervise.Child{Name: "a", Args: []string{"sh", "-c", "(read line < " + fifo + "; :); :"}} // its subshell is a fork of it
	cmd := &exec.Cmd{Path: shell, Args: c.Args}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fork := 0
	for self := strconv.Itoa(cmd.Process.Pid); fork == 0; {
		text, err := os.ReadFile("/proc/" + self + "/task/" + self + "/children")
		if err != nil {
			t.Fatal(err)
		}
		fork, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err := errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait())); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- supervise.Run(ctx, supervise.Options{Dir: dir, Children: []supervise.Child{c}, Program: shell, Log: slog.New(slog.DiscardHandler)})
	}()
	if r := eventually(t, dir, "a", running); r.Adopted || r.Process.PID == fork {
		t.Errorf("record %+v: adopted the fork %d", r, fork)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// ignoreExit forgets that a process ended badly.
func ignoreExit(err error) error {
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return nil
	}
	return err
}

func TestRotation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	appended, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer appended.Close()
	write := func(text string) {
		if _, err := appended.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	rotate := func() {
		if err := supervise.RotateLog(path, 10); err != nil {
			t.Fatal(err)
		}
	}
	contents := func() []string {
		now, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		old, err := os.ReadFile(path + ".1")
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return []string{string(now), string(old)}
	}
	for _, step := range []struct {
		write string
		want  []string
	}{
		{"0123456789", []string{"0123456789", ""}},
		{"x", []string{"", "0123456789x"}},
		{"next", []string{"next", "0123456789x"}},
		{strings.Repeat("a", 16) + "0123456789abcdefghij", []string{"", "0123456789abcdefghij"}},
	} {
		write(step.write)
		rotate()
		if got := contents(); !slices.Equal(got, step.want) {
			t.Errorf("after %q: %q, want %q", step.write, got, step.want)
		}
	}
	if err := supervise.RotateLog(path+"none", 10); err != nil {
		t.Errorf("a log that is not there yet: %v", err)
	}
}
