// Package supervise keeps the child processes of `podwire up` running, each in its namespaces.
//
// In: a list of children. Out: their processes, a log file and a record for each. Invariants: there is one supervisor per
// state directory. A child that dies is started again, later each time it dies young. Children do not depend on the life
// of the supervisor: another one recognises them by their command line and network namespace and goes on; none of them
// holds anything of the supervisor's but a log file. The package must not know what the children do.
package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/proc"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
)

// Child is one process to keep.
type Child struct {
	Name string `yaml:"name"`
	// Args is the whole command line; it tells the child from every other process.
	Args []string `yaml:"args"`
	// Net and Mount are the paths of the namespaces that it runs in.
	Net   string `yaml:"net"`
	Mount string `yaml:"mount,omitempty"`
	// Turn is when it is stopped: children of a lower turn are stopped first.
	Turn int `yaml:"turn"`
}

func (c Child) place() lab.Place { return lab.Place{Net: c.Net, Mount: c.Mount} }

// Options are what Run needs.
type Options struct {
	Dir      statedir.Dir
	Children []Child
	// Program is the executable of the children; empty for that of this process, even if its file was replaced since.
	Program string
	Log     *slog.Logger
}

// Record is what the supervisor last saw of a child.
type Record struct {
	Process proc.Process `json:"process"`
	// Adopted: it was started by an earlier supervisor.
	Adopted bool      `json:"adopted,omitempty"`
	Since   time.Time `json:"since"`
	// Restarts counts how often this supervisor had to start it again.
	Restarts int `json:"restarts"`
	// LastEnd is how it ended the last time, or why it could not be started; empty if it never did.
	LastEnd string `json:"lastEnd,omitempty"`
}

// ReadRecord is the record of a child; ok is false if there is none.
func ReadRecord(dir statedir.Dir, child string) (r Record, ok bool, err error) {
	text, err := os.ReadFile(dir.Child(child))
	if errors.Is(err, os.ErrNotExist) {
		return r, false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	return r, err == nil, errs.WrapAs(errs.Internal, err, "record of %s", child)
}

const (
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
	// grownUp is the age at which a child that dies is started again at once.
	grownUp = 10 * time.Second
	// stopTime is what a child gets to stop by itself; its own stop takes up to 10 s.
	stopTime = 15 * time.Second
)

// Run keeps the children until ctx ends, then stops them, turn by turn. It is Exists if another supervisor keeps them.
func Run(ctx context.Context, opts Options) error {
	lock, err := takeLock(opts.Dir)
	if err != nil {
		return err
	}
	defer giveBack(lock)
	s := &supervisor{opts}
	var rotation, turns sync.WaitGroup
	aside, done := context.WithCancel(context.WithoutCancel(ctx))
	rotation.Go(func() { s.rotate(aside) })
	s.turns(ctx, &turns)
	turns.Wait()
	done()
	rotation.Wait()
	return nil
}

type supervisor struct{ opts Options }

// turns starts every child, and chains their ends: the children of a turn stop when those of the turn before have.
func (s *supervisor) turns(ctx context.Context, all *sync.WaitGroup) {
	children := slices.Clone(s.opts.Children)
	slices.SortStableFunc(children, func(a, b Child) int { return a.Turn - b.Turn })
	for len(children) > 0 {
		n := slices.IndexFunc(children, func(c Child) bool { return c.Turn != children[0].Turn })
		if n < 0 {
			n = len(children)
		}
		now, members := ctx, children[:n]
		next, done := context.WithCancel(context.WithoutCancel(ctx))
		all.Go(func() {
			defer done()
			var wg sync.WaitGroup
			for _, c := range members {
				wg.Go(func() { s.keep(now, c) })
			}
			wg.Wait()
		})
		ctx, children = next, children[n:]
	}
}

// keep is the life of one child.
func (s *supervisor) keep(ctx context.Context, c Child) {
	log := s.opts.Log.With("child", c.Name)
	var record Record
	pause := firstPause
	for ctx.Err() == nil {
		process, adopted, err := s.find(c)
		if err == nil && process == (proc.Process{}) {
			process, err = s.start(c)
		}
		record.Process, record.Adopted, record.Since = process, adopted, time.Now()
		if err == nil {
			log.Info("running", "pid", process.PID, "adopted", adopted)
			s.write(c, record, log)
			var end proc.End
			if end, err = process.Wait(ctx); ctx.Err() != nil {
				break
			}
			record.LastEnd = end.String()
		}
		if err != nil {
			record.LastEnd = err.Error()
		}
		if time.Since(record.Since) > grownUp {
			pause = firstPause
		}
		record.Restarts++
		record.Process = proc.Process{}
		log.Warn("is down; starting it again", "why", record.LastEnd, "pause", pause)
		s.write(c, record, log)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, longestPause)
	}
	stop(record.Process, log)
}

func (s *supervisor) write(c Child, r Record, log *slog.Logger) {
	text, err := json.Marshal(r)
	if err == nil {
		err = statedir.WriteFile(s.opts.Dir.Child(c.Name), append(text, '\n'), 0o644)
	}
	if err != nil {
		log.Error("record not written", "error", err)
	}
}

// find recognises a child that another supervisor started. One in another namespace than it is to be in now, which
// was made anew, is ended.
func (s *supervisor) find(c Child) (proc.Process, bool, error) {
	path := c.Net
	if path == "" {
		path = "/proc/self/ns/net"
	}
	place, err := proc.NamespaceAt(path)
	if err != nil {
		return proc.Process{}, false, err
	}
	pids, err := proc.All()
	if err != nil {
		return proc.Process{}, false, err
	}
	var found proc.Process
	for _, pid := range pids {
		// What a child forks looks like it until it has become the program that it is to be. Asked first: what is no fork
		// any more has a command line of its own.
		if proc.Forked(pid) || !slices.Equal(proc.Args(pid), c.Args) {
			continue
		}
		p, err := proc.Of(pid)
		switch {
		case err != nil: // ended meanwhile
		case proc.NamespaceOf(pid, "net") != place:
			if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, proc.ErrGone) {
				return proc.Process{}, false, err
			}
		case found == proc.Process{} || p.Start < found.Start:
			found = p
		}
	}
	return found, found != proc.Process{}, nil
}

// start starts a child in its place, in a session of its own, with its log as its only open file.
func (s *supervisor) start(c Child) (proc.Process, error) {
	path := s.opts.Dir.Log(c.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return proc.Process{}, errs.WrapAs(errs.Internal, err, "start %s", c.Name)
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return proc.Process{}, errs.WrapAs(errs.Internal, err, "start %s", c.Name)
	}
	defer log.Close()
	program := s.opts.Program
	if program == "" {
		program = "/proc/self/exe"
	}
	cmd := &exec.Cmd{
		Path: program, Args: c.Args, Env: environment(), Dir: "/", Stdout: log, Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := c.place().Do(cmd.Start); err != nil {
		return proc.Process{}, errs.WrapAs(errs.Internal, err, "start %s", c.Name)
	}
	process, err := proc.Of(cmd.Process.Pid)
	if errors.Is(err, proc.ErrGone) {
		err = errors.New(proc.End{Known: true, Status: waitStatus(cmd)}.String())
	}
	if err == nil {
		err = cmd.Process.Release() // Process.Wait reaps it
	}
	return process, err
}

// waitStatus is how a command ended that ended at once.
func waitStatus(cmd *exec.Cmd) syscall.WaitStatus {
	_ = cmd.Wait()
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return status
}

// environment is what children get of ours: a PATH, and what configures OpenTelemetry.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return !strings.HasPrefix(kv, "PATH=") && !strings.HasPrefix(kv, "OTEL_")
	})
}

// stop asks a child to stop, and then makes it.
func stop(p proc.Process, log *slog.Logger) {
	if p == (proc.Process{}) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := p.Signal(sig); err != nil && !errors.Is(err, proc.ErrGone) {
			log.Error("cannot be stopped", "error", err)
			return
		}
		if sig == syscall.SIGKILL {
			log.Warn("killed: it did not stop in time", "time", stopTime)
			ctx = context.Background()
		}
		if end, err := p.Wait(ctx); err == nil {
			log.Info("stopped", "end", end.String())
			return
		}
	}
}
