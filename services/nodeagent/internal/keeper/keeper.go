// Package keeper is process 1 of a node that is a container: it keeps the agent running, so that an agent that dies does
// not take the container, and with it every pod, along.
//
// In: the agent's command line. Out: the agent's process, started again whenever it ends by itself, and the container's
// exit status. Invariants: every child that ends is reaped, since pods' shims become children of process 1 when their
// agent dies. A signal to end is passed to the agent and waited for. An agent that cannot be configured is not repeated.
// The package must not know what the agent does.
//
// An init such as tini would end together with the agent; a supervisor such as runit needs a shell, which images made
// from nothing do not have.
package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Pauses before an agent that ended is started again: the first, and the longest after it died young several times.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
	// grownUp is the age from which an end is not followed by a longer pause than the first.
	grownUp = 10 * time.Second
)

// exitUsage is how an agent ends whose command line or configuration is wrong: trying again would not help.
const exitUsage = 2

// Program is what is kept.
type Program struct {
	// Path is the executable, Argv its command line with the program's name.
	Path string
	Argv []string
	Log  *slog.Logger
}

// Run keeps the program until SIGTERM or SIGINT, which the program gets too, and returns the exit status for the
// container: that of the program after a signal, or of one that cannot be configured.
func Run(p Program) int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	defer signal.Stop(signals)
	k := &keeper{program: p, pause: firstPause}
	if err := k.start(); err != nil {
		p.Log.Error("the agent cannot be started", "error", err)
		return 1
	}
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGCHLD {
				if code, over := k.reap(); over {
					return code
				}
				continue
			}
			k.stopping = true
			if k.pid == 0 {
				return 0
			}
			// One that ended a moment ago is reaped in the next round.
			_ = unix.Kill(k.pid, s.(syscall.Signal))
		case <-k.due:
			k.due = nil
			if err := k.start(); err != nil {
				p.Log.Error("the agent cannot be started, trying again", "error", err)
				k.later(time.Now())
			}
		}
	}
}

// keeper is the state of Run.
type keeper struct {
	program  Program
	pid      int // 0 while none runs
	began    time.Time
	pause    time.Duration
	due      <-chan time.Time
	stopping bool
}

func (k *keeper) start() error {
	process, err := os.StartProcess(k.program.Path, k.program.Argv, &os.ProcAttr{
		Dir: "/", Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", k.program.Path, err)
	}
	k.pid, k.began = process.Pid, time.Now()
	// It is reaped together with all others.
	return process.Release()
}

// reap takes every child that has ended. over says that the container is to end, with code.
func (k *keeper) reap() (code int, over bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return code, over
		}
		if pid != k.pid {
			continue
		}
		k.pid = 0
		switch {
		case k.stopping, status.Exited() && status.ExitStatus() == exitUsage:
			code, over = exitCode(status), true
		default:
			k.program.Log.Warn("the agent ended, it is started again", "status", describe(status))
			k.later(time.Now())
		}
	}
}

// later plans the next start.
func (k *keeper) later(now time.Time) {
	if now.Sub(k.began) >= grownUp {
		k.pause = firstPause
	}
	k.due = time.After(k.pause)
	k.pause = min(2*k.pause, longestPause)
}

// exitCode is the status as a shell gives it.
func exitCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return "killed by " + s.Signal().String()
	}
	return fmt.Sprintf("exit %d", s.ExitStatus())
}
