// Package proc finds and ends processes of this machine, whoever started them.
//
// In: /proc. Out: processes that are named for good, by pid and start time, and what is known of them. Invariants: a
// signal reaches the process that was looked at or nobody, never another one that got its pid since. The package must not
// decide which process is to end.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that a process has ended.
var ErrGone = errors.New("process is gone")

// Process is one process for good: a pid alone may be another's by now.
type Process struct {
	PID int `json:"pid"`
	// Start is field 22 of /proc/PID/stat (proc_pid_stat(5)): clock ticks after boot.
	Start uint64 `json:"start"`
}

// Of is the process that has the pid now; ErrGone if none has, or if it only waits for its parent to take note of its end.
func Of(pid int) (Process, error) {
	p, state, err := owner(pid)
	if err == nil && (state == 'Z' || state == 'X') {
		return Process{}, ErrGone
	}
	return p, err
}

// Killed says whether the process is gone or has SIGKILL pending: it decides nothing any more, though it may be there for a
// while yet, in any state, with everything that it holds. Wait says when that is over. (The kernel keeps SIGKILL among the
// shared pending signals, proc_pid_status(5), from kill(2) to the end; Linux 6.18.)
func (p Process) Killed() bool {
	status, err := os.ReadFile(file(p.PID, "status"))
	if err != nil {
		return true
	}
	if now, err := Of(p.PID); err != nil || now != p {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if set, ok := strings.CutPrefix(line, "ShdPnd:"); ok {
			pending, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
			return err == nil && pending&(1<<(syscall.SIGKILL-1)) != 0
		}
	}
	return false
}

// Forked says whether the process still is the copy of its parent that fork(2) made: it has the parent's command line, and
// will become another program. A process that is gone has been neither.
func Forked(pid int) bool {
	const forkedNoExec = 0x40 // PF_FORKNOEXEC of the kernel's task flags, field 9 of /proc/PID/stat
	fields, err := stat(pid)
	if err != nil {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[9-firstField]), 10, 64)
	return err == nil && flags&forkedNoExec != 0
}

// owner is the process that has the pid, with its state (proc_pid_stat(5)). One in state Z need not have ended: its other
// threads may still be about to, with everything that they hold.
func owner(pid int) (Process, byte, error) {
	fields, err := stat(pid)
	if err != nil {
		return Process{}, 0, err
	}
	start, err := strconv.ParseUint(string(fields[22-firstField]), 10, 64)
	if err != nil {
		return Process{}, 0, fmt.Errorf("%s: start time: %w", file(pid, "stat"), err)
	}
	return Process{PID: pid, Start: start}, fields[0][0], nil
}

// firstField is the number, in proc_pid_stat(5), of the first field that stat returns.
const firstField = 3

// stat are the fields of /proc/PID/stat from the state on, at least up to the start time; ErrGone if there is no process.
func stat(pid int) ([][]byte, error) {
	text, err := os.ReadFile(file(pid, "stat"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	// The command name may hold anything, also spaces and brackets: count from the last.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) <= 22-firstField {
		return nil, fmt.Errorf("%s: %d fields after the name", file(pid, "stat"), len(fields))
	}
	return fields, nil
}

func file(pid int, elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, elem...)...)
}

// All lists the pids there are now.
func All() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Args is a process's command line; nil if it is gone.
func Args(pid int) []string {
	text, err := os.ReadFile(file(pid, "cmdline"))
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// Namespace identifies a namespace while it exists: device and inode of its file (namespaces(7)).
type Namespace struct{ Dev, Ino uint64 }

// NamespaceAt is the namespace that a path opens; the zero Namespace if there is none.
func NamespaceAt(path string) (Namespace, error) {
	var fsType unix.Statfs_t
	if err := unix.Statfs(path, &fsType); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOTDIR) {
			return Namespace{}, nil
		}
		return Namespace{}, fmt.Errorf("%s: %w", path, err)
	}
	if fsType.Type != unix.NSFS_MAGIC {
		return Namespace{}, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Namespace{}, fmt.Errorf("%s: %w", path, err)
	}
	return Namespace{Dev: st.Dev, Ino: st.Ino}, nil
}

// NamespaceOf is the namespace that a process is in, of kind net or mnt; the zero Namespace if the process is gone.
func NamespaceOf(pid int, kind string) Namespace {
	ns, err := NamespaceAt(file(pid, "ns", kind))
	if err != nil {
		return Namespace{}
	}
	return ns
}

// handle is a pidfd of exactly this process, also while it is ending, or ErrGone.
func (p Process) handle() (*os.File, error) {
	if p.PID <= 0 {
		return nil, ErrGone
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	// Looked at after the pidfd is held: from here on the pid cannot become another's.
	now, _, err := owner(p.PID)
	if err != nil || now != p {
		unix.Close(fd)
		return nil, ErrGone
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// Signal sends a signal; ErrGone if there is nobody to send it to.
func (p Process) Signal(sig syscall.Signal) error {
	f, err := p.handle()
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return ErrGone
	}
	return os.NewSyscallError("pidfd_send_signal", sent)
}

// End is how a process ended. Only its parent knows.
type End struct {
	Known  bool
	Status syscall.WaitStatus
}

// String is for logs.
func (e End) String() string {
	switch {
	case !e.Known:
		return "ended"
	case e.Status.Signaled():
		return "killed by signal " + strconv.Itoa(int(e.Status.Signal())) + " (" + e.Status.Signal().String() + ")"
	}
	return "exit status " + strconv.Itoa(e.Status.ExitStatus())
}

// Wait returns once the process has ended, be it a child or not. It reaps a child. The error is the context's.
func (p Process) Wait(ctx context.Context) (End, error) {
	f, err := p.handle()
	if errors.Is(err, ErrGone) {
		return p.reap(), nil
	}
	if err != nil {
		return End{}, err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return End{}, err
	}
	var polled error
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			polled = err
			return true
		}
		return n > 0
	})
	if ctx.Err() != nil {
		return End{}, context.Cause(ctx)
	}
	if err = errors.Join(err, polled); err != nil {
		return End{}, fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	return p.reap(), nil
}

// reap takes note of the end of a child; for another's child it does nothing.
func (p Process) reap() End {
	var status syscall.WaitStatus
	if p.PID <= 0 {
		return End{}
	}
	pid, err := syscall.Wait4(p.PID, &status, syscall.WNOHANG, nil)
	return End{Known: err == nil && pid == p.PID, Status: status}
}
