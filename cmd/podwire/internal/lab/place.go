package lab

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Place is where something runs: in a network namespace, and perhaps in a mount namespace. The zero Place is where the
// caller is.
type Place struct {
	// Net and Mount are paths that open namespaces; empty for the caller's own.
	Net, Mount string
}

// Do runs fn in the place and returns its error. Processes that fn starts, sockets and files that it opens belong to the
// place; goroutines that it starts do not.
func (p Place) Do(fn func() error) error {
	if p == (Place{}) {
		return fn()
	}
	return onThread(func() error {
		// Opened before the first move, since the paths are the caller's.
		var net, mount *os.File
		var err error
		if p.Net != "" {
			if net, err = os.Open(p.Net); err != nil {
				return fmt.Errorf("network namespace: %w", err)
			}
			defer net.Close()
		}
		if p.Mount != "" {
			if mount, err = os.Open(p.Mount); err != nil {
				return fmt.Errorf("mount namespace: %w", err)
			}
			defer mount.Close()
		}
		if net != nil {
			if err := unix.Setns(int(net.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", p.Net, err)
			}
		}
		if mount != nil {
			// setns of a mount namespace is refused while other threads share this one's root and working directory.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare file system attributes: %w", err)
			}
			if err := unix.Setns(int(mount.Fd()), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("enter mount namespace %s: %w", p.Mount, err)
			}
		}
		return fn()
	})
}

// onThread runs fn on a thread of its own, whatever it does to that thread.
func onThread(fn func() error) error {
	err := fmt.Errorf("the function ended its goroutine")
	var wg sync.WaitGroup
	wg.Go(func() {
		// Never unlocked: the runtime ends a locked thread with its goroutine, so nobody else meets its namespaces.
		runtime.LockOSThread()
		err = fn()
	})
	wg.Wait()
	return err
}
