package runtime

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/services/nodeagent/internal/echo"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// patience is far above what a Stop here takes that does what it should, and far below the grace periods.
const patience = 30 * time.Second

// ends waits for the result of a Stop.
func ends(t *testing.T, stopped <-chan error) {
	t.Helper()
	if err := <-stopped; err != nil {
		t.Fatalf("the containers have not ended: %v", err)
	}
}

func (n *node) stopping(uid string, grace time.Duration) <-chan error {
	stopped := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(n.t.Context(), patience)
		defer cancel()
		stopped <- n.Stop(ctx, uid, grace)
	}()
	return stopped
}

// said waits until somebody writes into a pipe in the file system.
func said(t *testing.T, pipe string) {
	t.Helper()
	f, err := os.Open(pipe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func pipe(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	deafScript   = "trap '' TERM; echo up > $UP; while :; do sleep 0.05; done"
	politeScript = "trap 'exit 3' TERM; echo up > $UP; while :; do sleep 0.05; done"
)

// hooked starts a Pod whose container says when it is up, and whose preStop says when it begins.
func (n *node) hooked(name, script string, hook podspec.Handler) (begun string) {
	n.t.Helper()
	up, begun := pipe(n.t, "up"), pipe(n.t, "begun")
	p := shellPod(name, script)
	p.Containers[0].Env = []podspec.EnvVar{{Name: "UP", Value: up}, {Name: "BEGUN", Value: begun}}
	p.Containers[0].PreStop, p.GracePeriod = &hook, 10*time.Minute
	n.start(p)
	said(n.t, up)
	return begun
}

func shell(script string) podspec.Handler {
	return podspec.Handler{Exec: []string{"/bin/sh", "-c", script}}
}

func (n *node) code(uid string) int {
	n.t.Helper()
	s, err := n.State(uid)
	if err != nil || !terminated(s) {
		n.t.Fatalf("%+v, %v", s, err)
	}
	return s.Containers[0].Last.Code
}

// TestAShorterGracePeriodReachesTheHook: who deletes a Pod again, with less time, waits for that time only, also while its
// preStop hook runs and after it.
func TestAShorterGracePeriodReachesTheHook(t *testing.T) {
	for name, grace := range map[string]time.Duration{"force": 0, "short": time.Second} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, t.TempDir(), nil)
			begun := n.hooked("slow", deafScript, shell("echo x > $BEGUN; sleep 600"))
			first := n.stopping("slow-uid", 10*time.Minute)
			said(t, begun)
			second := n.stopping("slow-uid", grace)
			ends(t, first)
			ends(t, second)
			if code := n.code("slow-uid"); code != 137 {
				t.Errorf("exit %d, want SIGKILL's", code)
			}
		})
	}
}

// TestAHookThatTakesTooLong: the container is still asked before it is killed.
func TestAHookThatTakesTooLong(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.hooked("late", politeScript, shell("sleep 600"))
	ends(t, n.stopping("late-uid", time.Second))
	if code := n.code("late-uid"); code != 3 {
		t.Errorf("exit %d, want that of the stop signal's handler", code)
	}
}

// TestAHookThatFails: Kubernetes goes on to end the container.
func TestAHookThatFails(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.hooked("broken", politeScript, shell("exit 1"))
	ends(t, n.stopping("broken-uid", 10*time.Minute))
	if code := n.code("broken-uid"); code != 3 {
		t.Errorf("exit %d, want that of the stop signal's handler", code)
	}
}

// TestTheSleepHook: the stop signal comes after the pause, and not before.
func TestTheSleepHook(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	const pause = 500 * time.Millisecond
	n.hooked("sleepy", politeScript, podspec.Handler{Sleep: pause})
	asked := time.Now()
	ends(t, n.stopping("sleepy-uid", 10*time.Minute))
	s, err := n.State("sleepy-uid")
	if err != nil {
		t.Fatal(err)
	}
	if last := s.Containers[0].Last; last == nil || last.Code != 3 || last.FinishedAt.Before(asked.Add(pause)) {
		t.Errorf("%+v, asked to end at %s", last, asked)
	}
}

// TestAContainerThatEndsDuringItsHook: nobody waits for the rest of the hook.
func TestAContainerThatEndsDuringItsHook(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	n.hooked("gone", "echo up > $UP; read x < $BEGUN; exit 5", shell("echo x > $BEGUN; sleep 600"))
	ends(t, n.stopping("gone-uid", 10*time.Minute))
	if code := n.code("gone-uid"); code != 5 {
		t.Errorf("exit %d, want its own", code)
	}
}

// TestAPodThatEndsWhileAContainerIsBeingReplaced: the end of the Pod counts for a container that is ending for another
// reason.
func TestAPodThatEndsWhileAContainerIsBeingReplaced(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	begun := n.hooked("swap", deafScript, shell("echo x > $BEGUN; sleep 600"))
	p := shellPod("swap", deafScript)
	p.Containers[0].Image = EchoImage
	if err := n.Replace(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	said(t, begun)
	ends(t, n.stopping("swap-uid", 0))
}

// TestTheBuiltInImageLingers: for as long as the Pod's grace period lets it.
func TestTheBuiltInImageLingers(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	for name, grace := range map[string]time.Duration{"long": time.Minute, "short": time.Second} {
		p := echoPod(name)
		p.GracePeriod = grace
		if _, err := n.CreateSandbox(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		made, err := n.pod(p.UID)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.shimSpec(made.containers[0]).Echo.Linger; got != echo.LingerFor(grace) || got == 0 {
			t.Errorf("%s: it lingers %s", name, got)
		}
	}
}
