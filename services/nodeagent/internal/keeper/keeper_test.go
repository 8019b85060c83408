package keeper_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"podwire.dev/services/nodeagent/internal/keeper"
)

// The roles of this test's binary: process 1, the agent that it keeps, and a child of that agent.
const (
	roleKeeper = "test-keeper"
	roleAgent  = "test-agent"
	roleChild  = "test-child"
	// exitEnv makes the agent end at once with this status.
	exitEnv = "PODWIRE_TEST_EXIT"
	// stopped is how the agent ends after SIGTERM.
	stopped = 7
)

func TestMain(m *testing.M) {
	switch os.Args[0] {
	case roleKeeper:
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		os.Exit(keeper.Run(keeper.Program{Path: "/proc/self/exe", Argv: []string{roleAgent}, Log: log}))
	case roleAgent:
		os.Exit(agent())
	case roleChild:
		_, _ = io.Copy(io.Discard, os.Stdin) // until its parent is gone
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// agent starts a child that outlives it by a moment, says that it runs, and waits for SIGTERM.
func agent() int {
	if code, err := strconv.Atoi(os.Getenv(exitEnv)); err == nil {
		fmt.Println("failing")
		return code
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	child := &exec.Cmd{Path: "/proc/self/exe", Args: []string{roleChild}}
	if _, err := child.StdinPipe(); err != nil {
		fmt.Println("child:", err)
		return 1
	}
	if err := child.Start(); err != nil {
		fmt.Println("child:", err)
		return 1
	}
	fmt.Println("running")
	<-signals
	return stopped
}

// container is a keeper as process 1 of a PID namespace.
type container struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

func start(t *testing.T, env ...string) *container {
	t.Helper()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{roleKeeper}, Env: append(os.Environ(), env...), Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL},
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &container{t, cmd, bufio.NewScanner(out)}
}

// runs waits until an agent says that it runs.
func (c *container) runs() {
	c.t.Helper()
	if !c.lines.Scan() || c.lines.Text() != "running" {
		c.t.Fatalf("no agent runs: %q, %v", c.lines.Text(), c.lines.Err())
	}
}

// children are the processes below the keeper, as pid and state.
func (c *container) children() map[int]string {
	c.t.Helper()
	// Each thread has the children that it started.
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", c.cmd.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	var text []byte
	for _, file := range files {
		part, err := os.ReadFile(file)
		if err != nil {
			continue // the thread ended
		}
		text = append(text, part...)
	}
	out := map[int]string{}
	for _, word := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			c.t.Fatal(err)
		}
		stat, err := os.ReadFile("/proc/" + word + "/stat")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		out[pid] = rest[:1]
	}
	return out
}

func (c *container) end() int {
	c.t.Helper()
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return 0
}

// TestAgentComesBack kills the agent several times: each is followed by another one, its orphans are reaped, and the end
// of the container is the agent's.
func TestAgentComesBack(t *testing.T) {
	t.Parallel()
	c := start(t)
	c.runs()
	for range 3 {
		for pid := range c.children() {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		c.runs()
	}
	limit, look := time.After(30*time.Second), time.NewTicker(5*time.Millisecond)
	defer look.Stop()
	for left := c.children(); len(left) != 1; left = c.children() {
		select {
		case <-look.C:
		case <-limit:
			t.Fatalf("children of process 1, one agent and what nobody reaped: %v", left)
		}
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := c.end(); code != stopped {
		t.Errorf("ended with %d, want the agent's %d", code, stopped)
	}
}

// TestWrongConfiguration is not repeated.
func TestWrongConfiguration(t *testing.T) {
	t.Parallel()
	if code := start(t, exitEnv+"=2").end(); code != 2 {
		t.Errorf("ended with %d, want 2", code)
	}
}

// TestStopBetweenTwo ends while no agent runs, which is most of the time with one that always fails.
func TestStopBetweenTwo(t *testing.T) {
	t.Parallel()
	c := start(t, exitEnv+"=1")
	for range 2 { // the second end is one after a pause
		if !c.lines.Scan() || c.lines.Text() != "failing" {
			t.Fatalf("no agent ran: %q, %v", c.lines.Text(), c.lines.Err())
		}
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := c.end(); code != 0 && code != 1 && code != 128+int(syscall.SIGTERM) {
		t.Errorf("ended with %d", code)
	}
}
