package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that a process is not there any more.
var ErrGone = errors.New("process is gone")

// Process names one process for good: a pid alone may be another's by now.
type Process struct {
	PID int `json:"pid"`
	// Start is field 22 of /proc/PID/stat: clock ticks after boot.
	Start uint64 `json:"start"`
}

// Self is this process.
func Self() (Process, error) { return ProcessOf(os.Getpid()) }

// ProcessOf names the process that has the pid now.
func ProcessOf(pid int) (Process, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Process{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	// The command name may hold anything, also spaces and brackets: count from the last.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("/proc/%d/stat: %d fields after the name", pid, len(fields))
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// open gives a pidfd of exactly this process, or ErrGone.
func (p Process) open() (*os.File, error) {
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
	// The start time is read after the pidfd is held: from here on the pid cannot
	// become another's.
	now, err := ProcessOf(p.PID)
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

// Signal sends a signal, ErrGone if there is nobody to send it to.
func (p Process) Signal(sig syscall.Signal) error {
	f, err := p.open()
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
	if sent == unix.ESRCH {
		return ErrGone
	}
	return os.NewSyscallError("pidfd_send_signal", sent)
}

// Wait returns nil once the process has ended, also if it is not a child. It costs a
// file descriptor and no thread.
func (p Process) Wait(ctx context.Context) error {
	f, err := p.open()
	if errors.Is(err, ErrGone) {
		p.reap()
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var polled error
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != nil && err != unix.EINTR {
			polled = err
			return true
		}
		return n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err = errors.Join(err, polled); err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	p.reap()
	return nil
}

// reap takes the status of a process that is a child (or became one: the agent may be
// process 1 of a Docker container); for another's child it does nothing.
func (p Process) reap() {
	if p.PID > 0 {
		_, _ = unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
	}
}
