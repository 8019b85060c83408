package shim

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestPkill(t *testing.T) {
	t.Parallel()
	const mark = "podwire-pkill-test"
	sleeper := func(word string) *exec.Cmd {
		cmd := exec.Command("sleep", "60")
		cmd.Args[0] = mark + "-" + word + "-" + strconv.Itoa(os.Getpid())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd
	}
	victim, other := sleeper("victim"), sleeper("other")
	pattern := "^" + mark + "-victim-" + strconv.Itoa(os.Getpid()) + " 60$"
	for _, tt := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"-f", mark + "-nobody-x"}, 1, ""},
		{[]string{pattern}, 2, "usage: pkill"},
		{[]string{"-f"}, 2, "usage: pkill"},
		{nil, 2, "usage: pkill"},
		{[]string{"-NONSENSE", "-f", pattern}, 2, `unknown signal "NONSENSE"`},
		{[]string{"-999", "-f", pattern}, 2, `unknown signal "999"`},
		{[]string{"-f", "("}, 2, "pattern: error parsing"},
		{[]string{"-f", pattern, "more"}, 2, `unexpected argument "more"`},
		{[]string{"-KILL", "-f", pattern}, 0, ""},
	} {
		var stderr bytes.Buffer
		if code := pkill("/proc", tt.args, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.stderr) {
			t.Errorf("pkill %q: %d, %q", tt.args, code, stderr.String())
		}
	}
	_ = victim.Wait()
	if s := victim.ProcessState.Sys().(syscall.WaitStatus); !s.Signaled() || s.Signal() != syscall.SIGKILL {
		t.Errorf("the victim ended with %v", victim.ProcessState)
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the other one: %v", err)
	}
}
