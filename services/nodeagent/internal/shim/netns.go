package shim

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// InNetNS runs fn on a thread that is in the network namespace at path, and puts the
// thread back. An empty path runs fn where the caller is. Sockets that fn opens and
// processes that it starts belong to that namespace; goroutines that it starts do not.
func InNetNS(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	done := make(chan error, 1)
	go func() { done <- onThread(path, fn) }()
	return <-done
}

func onThread(path string, fn func() error) error {
	runtime.LockOSThread()
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer back.Close()
	target, err := os.Open(path)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	err = fn()
	if rerr := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); rerr != nil {
		// The thread stays locked, so the Go runtime ends it with this goroutine.
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", path, rerr))
	}
	runtime.UnlockOSThread()
	return err
}
