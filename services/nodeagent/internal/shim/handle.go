package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ProbeCommand is the first word that makes an exec the built-in probe.
const ProbeCommand = "probe"

// ErrNotRunning says that a container that was to be entered does not run.
var ErrNotRunning = errors.New("container is not running")

// Launcher starts stages: how to call this program again.
type Launcher struct {
	// Path is the program; empty for the one that runs now, even if its file was
	// replaced since.
	Path string
	// Argv is the program's name and what leads to Main: [podwire serve nodeagent shim].
	Argv []string
}

func (l Launcher) command(args ...string) *exec.Cmd {
	path := l.Path
	if path == "" {
		path = "/proc/self/exe"
	}
	return &exec.Cmd{Path: path, Args: append(append([]string(nil), l.Argv...), args...), Dir: "/"}
}

// Handle is one run of one container, seen from the agent.
type Handle struct {
	dir  string
	shim Process
}

// StartFailure says that the command could not be started; the run is over.
type StartFailure struct{ Message string }

// Error is the shim's own message.
func (e *StartFailure) Error() string { return e.Message }

// Start writes the Spec into dir (which must exist and be new) and starts its shim.
// It returns once the command runs. If ctx ends before, the shim goes on alone and
// Adopt finds it. A *StartFailure also stands in the run's Exit.
func (l Launcher) Start(ctx context.Context, dir string, spec Spec) (*Handle, error) {
	if err := writeJSON(filepath.Join(dir, specFile), spec); err != nil {
		return nil, err
	}
	// The lock belongs to the open file, which the shim inherits: it is held for
	// exactly as long as one of the two lives.
	lock, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	stderr, err := os.OpenFile(filepath.Join(dir, shimLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	ready, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	cmd := l.command(stageRun, dir)
	cmd.Env = append(shimEnv(), "GOMAXPROCS=1")
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.ExtraFiles = []*os.File{lock, w}
	// A session of its own: what ends the agent's must not end the container.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = InNetNS(spec.NetNS, cmd.Start)
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	proc, err := ProcessOf(cmd.Process.Pid)
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	h := &Handle{dir: dir, shim: proc}
	_ = cmd.Process.Release() // Handle.Wait reaps it
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(ready, 64<<10))
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("wait for shim: %w", err)
	}
	if string(text) == hello {
		return h, nil
	}
	if len(text) == 0 {
		return nil, fmt.Errorf("shim died before its container ran; its last words are in %s", filepath.Join(dir, shimLog))
	}
	var f failure
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("wait for shim: report %q: %w", text, err)
	}
	if err := h.shim.Wait(ctx); err != nil {
		return nil, err
	}
	return nil, &StartFailure{f.Message}
}

// shimEnv is what the stages keep of the agent's environment: nothing that could
// hold a secret or steer the container.
func shimEnv() []string {
	return []string{defaultPath}
}

func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return f, nil
}

// Adopt finds what became of a run that another agent process started. It gives a
// Handle if its shim lives, an Exit if it is over, neither if it never began.
func Adopt(ctx context.Context, dir string) (*Handle, *Exit, error) {
	lock, err := takeLock(dir)
	if err == nil {
		lock.Close()
		exit, err := outcome(dir)
		return nil, exit, err
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil, err
	}
	// The shim holds the lock; between its start and its first write there is no
	// run.json yet.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var record Record
		ok, err := readJSON(filepath.Join(dir, runFile), &record)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			return &Handle{dir: dir, shim: record.Shim}, nil, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		if lock, err := takeLock(dir); err == nil {
			lock.Close()
			exit, err := outcome(dir)
			return nil, exit, err
		}
	}
}

// outcome reads how a run that has no shim any more ended; nil if it never began.
func outcome(dir string) (*Exit, error) {
	var exit Exit
	ok, err := readJSON(filepath.Join(dir, exitFile), &exit)
	if err != nil {
		return nil, err
	}
	if ok {
		return &exit, nil
	}
	var record Record
	ok, err = readJSON(filepath.Join(dir, runFile), &record)
	if err != nil || !ok {
		return nil, err
	}
	return &Exit{
		Code: 137, Signal: int(syscall.SIGKILL), Reason: ReasonLost,
		Message:   "the container's shim was killed, and the container with it",
		StartedAt: record.StartedAt, FinishedAt: time.Now(),
	}, nil
}

// Wait returns how the container ended. The exit is kept in the directory, so Wait
// may be called again, and by another agent.
func (h *Handle) Wait(ctx context.Context) (Exit, error) {
	if err := h.shim.Wait(ctx); err != nil {
		return Exit{}, err
	}
	exit, err := outcome(h.dir)
	if err != nil {
		return Exit{}, err
	}
	if exit == nil {
		return Exit{}, fmt.Errorf("%s: the shim left nothing behind", h.dir)
	}
	if exit.Reason == ReasonLost {
		// Decided once, so that the time does not move at each look.
		if err := writeJSON(filepath.Join(h.dir, exitFile), exit); err != nil {
			return Exit{}, err
		}
	}
	return *exit, nil
}

// Record is who runs and since when.
func (h *Handle) Record() (Record, error) {
	var record Record
	ok, err := readJSON(filepath.Join(h.dir, runFile), &record)
	if err == nil && !ok {
		err = fmt.Errorf("%s: no %s there", h.dir, runFile)
	}
	return record, err
}

// Signal sends a signal to the container's first process; ErrGone if there is none.
// As process 1 it gets only signals that it has a handler for, and SIGKILL.
func (h *Handle) Signal(sig syscall.Signal) error {
	record, err := h.Record()
	if err != nil {
		return err
	}
	if record.Container.PID == 0 {
		// Still on its way: the shim takes it along.
		return h.shim.Signal(syscall.SIGKILL)
	}
	return record.Container.Signal(sig)
}

// Stdio is what a command inside is connected to. Stdin may be nil.
type Stdio struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// killDelay is how long an entered command's pipes may outlive it, or it its kill.
const killDelay = 2 * time.Second

// Enter runs argv in the container of dir and gives its exit status (128 + n for
// signal n, 126 and 127 as shells do). It kills the command when ctx ends, and the
// kernel does when this process dies. Inside, "probe" is the built-in tool. An error
// means that the command never began: ErrNotRunning if nothing runs there.
func (l Launcher) Enter(ctx context.Context, dir string, argv []string, stdio Stdio) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd := l.command(append([]string{stageEnter, dir}, argv...)...)
	cmd.Env = shimEnv()
	cmd.ExtraFiles = []*os.File{w}
	code, err := attach(ctx, cmd, stdio, func() { w.Close() })
	if err != nil {
		return 0, err
	}
	if rerr := readReport(r); rerr != nil && ctx.Err() == nil {
		return 0, fmt.Errorf("%w: %w", ErrNotRunning, rerr)
	}
	return code, ctx.Err()
}

// Host runs argv where this process is, with the built-in tools "probe" and, where there is no other, "pkill". Otherwise
// it is like Enter.
func (l Launcher) Host(ctx context.Context, argv []string, stdio Stdio) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("no command to run")
	}
	cmd := l.command(append([]string{stageProbe}, argv[1:]...)...)
	cmd.Env = shimEnv()
	if argv[0] != ProbeCommand {
		path, err := lookPath(argv[0], cmd.Env)
		var f failure
		switch {
		case errors.As(err, &f) && f.Code == CodeNotFound && argv[0] == PkillCommand:
			path, argv = cmd.Path, l.command(append([]string{stagePkill}, argv[1:]...)...).Args
		case err != nil && errors.As(err, &f):
			if stdio.Stderr != nil {
				fmt.Fprintln(stdio.Stderr, f.Message)
			}
			return f.Code, nil
		}
		cmd.Path, cmd.Args = path, argv
	}
	return attach(ctx, cmd, stdio, func() {})
}

// attach runs cmd to its end on a thread of its own: PDEATHSIG is about the thread
// that forked, and the Go runtime may end any other.
func attach(ctx context.Context, cmd *exec.Cmd, stdio Stdio, started func()) (int, error) {
	cmd.Stdout, cmd.Stderr = stdio.Stdout, stdio.Stderr
	cmd.WaitDelay = killDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	var stdin io.WriteCloser
	if stdio.Stdin != nil {
		var err error
		if stdin, err = cmd.StdinPipe(); err != nil {
			return 0, err
		}
	}
	done := make(chan error, 1)
	begun := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		begun <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	err := <-begun
	started()
	if err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	if stdin != nil {
		go func() {
			defer stdin.Close()
			_, _ = io.Copy(stdin, stdio.Stdin)
		}()
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) })
	defer stop()
	var werr error
	select {
	case werr = <-done:
	case <-ctx.Done():
		werr = killAfter(cmd, done)
	}
	if errors.Is(werr, exec.ErrWaitDelay) {
		werr = nil
	}
	return exitOf(cmd, werr).Code, nil
}

// killAfter gives a command that was told to end killDelay to do so.
func killAfter(cmd *exec.Cmd, done <-chan error) error {
	timer := time.NewTimer(killDelay)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		return <-done
	}
}

// LastExit is how the run in dir ended; nil while it runs, or if it never began. It
// does not disturb a run that is being started.
func LastExit(dir string) (*Exit, error) {
	var exit Exit
	ok, err := readJSON(filepath.Join(dir, exitFile), &exit)
	if err != nil || !ok {
		return nil, err
	}
	return &exit, nil
}
