// Package proctest brings processes into states that otherwise last for a moment.
//
// In: a child of the test. Out: the child in that state, until the test lets it go. Nothing but tests imports it.
package proctest

import (
	"errors"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"podwire.dev/cmd/podwire/internal/proc"
)

// HoldExit kills a child and holds it just before it lets go of anything (PTRACE_EVENT_EXIT of ptrace(2)), until release or
// the test's end.
func HoldExit(t *testing.T, p proc.Process) (release func()) {
	t.Helper()
	held, let, gone := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		runtime.LockOSThread() // only the thread that attached may ask
		defer runtime.UnlockOSThread()
		defer close(gone)
		var status syscall.WaitStatus
		wait := func() error {
			_, err := syscall.Wait4(p.PID, &status, syscall.WALL, nil)
			return err
		}
		held <- errors.Join(syscall.PtraceAttach(p.PID), wait(), syscall.PtraceSetOptions(p.PID, syscall.PTRACE_O_TRACEEXIT),
			syscall.PtraceCont(p.PID, 0), syscall.Kill(p.PID, syscall.SIGKILL), wait())
		<-let
		_ = syscall.PtraceDetach(p.PID)
	}()
	err := <-held
	release = sync.OnceFunc(func() {
		close(let)
		<-gone
	})
	t.Cleanup(release)
	if err != nil {
		t.Fatal(err)
	}
	return release
}
