package runtime

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// A Pod that is being stopped is ready for as long as its probe says so, since it may be the last that serves (KEP-1669).
func TestReadinessIsProbedWhileStopping(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	file := filepath.Join(t.TempDir(), "ready")
	write(t, file)
	p := shellPod("stopping", "exec sleep 1000")
	p.Containers[0].PreStop = &podspec.Handler{Sleep: time.Hour}
	p.Containers[0].Readiness = &podspec.Probe{
		Handler: podspec.Handler{Exec: []string{"test", "-e", file}},
		Period:  time.Second, Timeout: 20 * time.Second, SuccessThreshold: 1, FailureThreshold: 1, GracePeriod: -1,
	}
	n.start(p)
	n.until("stopping-uid", "ready", running)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- n.Stop(ctx, "stopping-uid", 2*time.Hour) }()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	n.until("stopping-uid", "stopping and unready", func(s PodState) bool { return s.Stopping && !running(s) })
	write(t, file)
	n.until("stopping-uid", "stopping and ready", func(s PodState) bool { return s.Stopping && running(s) })
	cancel()
	if err := <-stopped; err == nil {
		t.Error("the containers ended before their hook")
	}
}
