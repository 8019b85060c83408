package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// pinned says whether path is a network namespace that is mounted there.
func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// makeNetNS makes a network namespace with its loopback up and pins it at path, where
// it stays when this process dies.
func makeNetNS(path string) error {
	done := make(chan error, 1)
	go func() { done <- makeOnThread(path) }()
	if err := <-done; err != nil {
		return fmt.Errorf("make network namespace %s: %w", path, err)
	}
	return nil
}

func makeOnThread(path string) error {
	goruntime.LockOSThread()
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		goruntime.UnlockOSThread()
		return err
	}
	defer back.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		goruntime.UnlockOSThread()
		return err
	}
	err = raiseLoopback()
	if err == nil {
		err = pin("/proc/thread-self/ns/net", path)
	}
	if rerr := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); rerr != nil {
		return errors.Join(err, rerr) // still locked: the thread ends with its goroutine
	}
	goruntime.UnlockOSThread()
	return err
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return os.NewSyscallError("raise lo", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req))
}

// pin mounts a namespace file at path.
func pin(ns, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return os.NewSyscallError("mount", err)
	}
	return nil
}

// unpin undoes pin, as often as it was done.
func unpin(path string) error {
	for pinned(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// processesIn lists the processes whose network namespace is the one at path. Shims
// and containers of a Pod are all there, whoever their parent is by now.
func processesIn(path string) ([]int, error) {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	entries, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(e, &st) != nil || st.Ino != want.Ino || st.Dev != want.Dev {
			continue // gone, or elsewhere
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(e)))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// killAll kills what is left in a Pod's network namespace.
func killAll(path string) error {
	pids, err := processesIn(path)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return nil
}
