package shim

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	if handled, code := Main(os.Args[1:]); handled {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

var launcher = Launcher{Argv: []string{"shim.test", "serve", "nodeagent", "shim"}}

func TestNsfsMounts(t *testing.T) {
	const info = `22 27 0:21 / /proc rw,relatime - proc proc rw
40 27 0:4 net:[4026532] /run/netns/a\040b rw shared:5 - nsfs nsfs rw
41 27 0:4 net:[4026533] /state/netns/x rw - nsfs nsfs rw
27 1 254:0 / /nsfs rw - ext4 /dev/vda rw
broken`
	if got, want := nsfsMounts(info), []string{"/state/netns/x", "/run/netns/a b"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLogRotates(t *testing.T) {
	dir := t.TempDir()
	w, err := openLog(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"12345\n", "abcde\n", "ABCDE\n"} {
		if n, err := w.Write([]byte(s)); n != 6 || err != nil {
			t.Error(n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{logFile: "ABCDE\n", oldLog: "abcde\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != want || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func TestProcessIsNotAnotherOfTheSamePid(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := ProcessOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := p
	other.Start++
	if err := other.Signal(syscall.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("signal to a former process: %v", err)
	}
	if err := other.Wait(t.Context()); err != nil {
		t.Errorf("a former process is over: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Signal(syscall.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("it was reaped: %v", err)
	}
}

func TestRunToItsEnd(t *testing.T) {
	for _, c := range []struct {
		command []string
		exit    Exit
		failed  string
	}{
		{[]string{"sh", "-c", "echo $A; exit 3"}, Exit{Code: 3, Reason: ReasonError}, ""},
		{[]string{"true"}, Exit{Reason: ReasonCompleted}, ""},
		{[]string{"no-such-command"}, Exit{Code: CodeStartError, Reason: ReasonStart}, "not found"},
		{nil, Exit{Code: CodeStartError, Reason: ReasonStart}, "no command"},
	} {
		dir := t.TempDir()
		h, err := launcher.Start(t.Context(), dir, Spec{Command: c.command, Env: []string{"A=b"}, UID: -1, GID: -1})
		var failed *StartFailure
		if (c.failed != "") != (errors.As(err, &failed) && strings.Contains(failed.Message, c.failed)) {
			t.Errorf("%q: %v", c.command, err)
		}
		if c.failed == "" {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		}
		handle, exit, err := Adopt(t.Context(), dir)
		if err != nil || handle != nil || exit == nil || exit.Code != c.exit.Code || exit.Reason != c.exit.Reason {
			t.Errorf("%q: %+v, %v", c.command, exit, err)
		}
	}
}

func TestAdoptOfWhatNeverBegan(t *testing.T) {
	if h, exit, err := Adopt(t.Context(), t.TempDir()); h != nil || exit != nil || err != nil {
		t.Error(h, exit, err)
	}
}

func TestMainLeavesOtherArgumentsAlone(t *testing.T) {
	for _, args := range [][]string{nil, {"up"}, {"serve", "nodeagent"}, {"serve", "nodeagent", "--config", "shim"}} {
		if handled, _ := Main(args); handled {
			t.Errorf("%q was taken", args)
		}
	}
}
