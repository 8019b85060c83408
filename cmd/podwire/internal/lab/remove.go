package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/cmd/podwire/internal/proc"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
)

// Removed counts what Remove found.
type Removed struct {
	Processes, Namespaces, Mounts, Directories int
}

// Nothing says that there was nothing to remove.
func (r Removed) Nothing() bool { return r == (Removed{}) }

// Remove ends every process that is in a namespace of the instance, be it a pod's, and takes the lab out of the kernel:
// pins, mounts beneath the state directory, names in /run/netns, mount points that Ensure made. It does not need a
// plan and works on whatever is left. Files of the state directory stay. Links go with their namespaces.
func Remove(ctx context.Context, dir statedir.Dir) (Removed, error) {
	var r Removed
	var err error
	if r.Processes, err = endProcesses(ctx, dir); err != nil {
		return r, errs.Wrap(err, "lab: processes")
	}
	if r.Namespaces, err = hide(dir); err != nil {
		return r, errs.Wrap(err, "lab: names in %s", runDir)
	}
	if r.Mounts, err = unmount(dir); err != nil {
		return r, errs.Wrap(err, "lab: mounts")
	}
	if r.Directories, err = removeMountPoints(dir); err != nil {
		return r, errs.Wrap(err, "lab: mount points")
	}
	return r, nil
}

// Standing says whether the kernel holds anything of the instance.
func Standing(dir statedir.Dir) (bool, error) {
	mounts, err := ReadMounts("/proc/thread-self/mountinfo")
	return slices.ContainsFunc(mounts, func(m Mount) bool { return m.Beneath(string(dir)) }), err
}

// territory is what belongs to an instance.
type territory struct {
	net, mnt map[uint64]bool // inodes; all namespaces are of one device
	dir      string
}

// survey finds the instance's namespaces: those that are pinned, and those that an agent pinned for its pods, in the
// mount namespace of its node.
func survey(dir statedir.Dir) (territory, error) {
	t := territory{net: map[uint64]bool{}, mnt: map[uint64]bool{}, dir: string(dir)}
	mounts, err := ReadMounts("/proc/thread-self/mountinfo")
	if err != nil {
		return t, err
	}
	t.note(mounts)
	for _, m := range mounts {
		if _, ok := m.namespaceInode("mnt"); !ok || !m.Beneath(t.dir) {
			continue
		}
		err := Place{Mount: m.Target}.Do(func() error {
			inside, err := ReadMounts("/proc/thread-self/mountinfo")
			t.note(inside)
			return err
		})
		if err != nil {
			return t, errs.WrapAs(errs.Internal, err, "mounts of %s", m.Target)
		}
	}
	// Whatever somebody pinned here, this machine itself is not ours.
	for _, pid := range []int{1, os.Getpid()} {
		delete(t.net, proc.NamespaceOf(pid, "net").Ino)
		delete(t.mnt, proc.NamespaceOf(pid, "mnt").Ino)
	}
	return t, nil
}

func (t territory) note(mounts []Mount) {
	for _, m := range mounts {
		if !m.Beneath(t.dir) {
			continue
		}
		if ino, ok := m.namespaceInode("net"); ok {
			t.net[ino] = true
		}
		if ino, ok := m.namespaceInode("mnt"); ok {
			t.mnt[ino] = true
		}
	}
}

// owns says whether a process is the instance's: by where it is, or, where its namespaces lost their pins, by what it was
// started as.
func (t territory) owns(pid int) bool {
	if t.net[proc.NamespaceOf(pid, "net").Ino] || t.mnt[proc.NamespaceOf(pid, "mnt").Ino] {
		return true
	}
	args := proc.Args(pid)
	if len(args) < 3 || args[1] != "serve" || filepath.Base(args[0]) != "podwire" {
		return false
	}
	return slices.ContainsFunc(args[2:], func(arg string) bool { return strings.HasPrefix(arg, t.dir+"/") })
}

const (
	endTime  = 10 * time.Second
	endPause = 5 * time.Millisecond
)

// endProcesses kills until nobody is left: between a look and a kill, processes start others.
func endProcesses(ctx context.Context, dir statedir.Dir) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	ended := map[proc.Process]bool{}
	for {
		t, err := survey(dir)
		if err != nil {
			return len(ended), err
		}
		left, err := t.kill(ended)
		if err != nil || left == 0 {
			return len(ended), err
		}
		timer := time.NewTimer(endPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return len(ended), errs.New(errs.Unavailable, "%d processes did not end within %s of being killed", left, endTime)
		}
	}
}

// kill kills whoever is there now and returns their number.
func (t territory) kill(ended map[proc.Process]bool) (int, error) {
	pids, err := proc.All()
	if err != nil {
		return 0, errs.WrapAs(errs.Internal, err, "list")
	}
	left := 0
	for _, pid := range pids {
		p, err := proc.Of(pid)
		if err != nil || pid == os.Getpid() || !t.owns(pid) {
			continue // ended meanwhile, or not ours
		}
		left++
		ended[p] = true
		if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, proc.ErrGone) {
			return left, errs.WrapAs(errs.Internal, err, "kill %d", pid)
		}
	}
	return left, nil
}

// hide removes the names in /run/netns that lead to our pins.
func hide(dir statedir.Dir) (int, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, errs.WrapAs(errs.Internal, err, "list")
	}
	n := 0
	for _, e := range entries {
		path := filepath.Join(runDir, e.Name())
		if to, err := os.Readlink(path); err != nil || !strings.HasPrefix(e.Name(), dir.Prefix()) || filepath.Dir(to) != dir.Pins() {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, errs.WrapAs(errs.Internal, err, "remove")
		}
		n++
	}
	return n, nil
}

// unmount detaches everything beneath the state directory, the last mounted first.
func unmount(dir statedir.Dir) (int, error) {
	n := 0
	for {
		mounts, err := ReadMounts("/proc/thread-self/mountinfo")
		if err != nil {
			return n, err
		}
		mounts = slices.DeleteFunc(mounts, func(m Mount) bool { return !m.Beneath(string(dir)) })
		if len(mounts) == 0 {
			return n, nil
		}
		for _, m := range slices.Backward(mounts) {
			err := unix.Unmount(m.Target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return n, errs.WrapAs(errs.Internal, err, "unmount %s", m.Target)
			}
			if err == nil {
				n++
			}
		}
	}
}

// removeMountPoints removes the directories that Ensure made outside of the state directory, where they are still empty.
// One that another instance found there and uses is left to that instance to remove.
func removeMountPoints(dir statedir.Dir) (int, error) {
	made, err := readLines(dirsFile(dir))
	if err != nil || len(made) == 0 {
		return 0, err
	}
	heirs := others(dir)
	n := 0
	for _, path := range slices.Backward(made) {
		if slices.ContainsFunc(heirs, func(heir statedir.Dir) bool { return uses(heir, path) && bequeath(path, heir) == nil }) {
			continue
		}
		err := os.Remove(path)
		switch {
		case err == nil:
			n++
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EBUSY):
		default:
			return n, errs.WrapAs(errs.Internal, err, "remove %s", path)
		}
	}
	return n, nil
}

// uses says whether an instance has something at a path of the host, or beneath it: a name, or a mount of a node's.
func uses(dir statedir.Dir, path string) bool {
	if path == runDir || strings.HasPrefix(runDir, path+"/") {
		return true
	}
	pins, err := filepath.Glob(dir.MountNS("*"))
	if err != nil {
		return false // the pattern is a constant
	}
	for _, pin := range pins {
		var mounts []Mount
		err := Place{Mount: pin}.Do(func() (err error) {
			mounts, err = ReadMounts("/proc/thread-self/mountinfo")
			return err
		})
		if err == nil && slices.ContainsFunc(mounts, func(m Mount) bool { return m.Target == path || m.Beneath(path) }) {
			return true
		}
	}
	return false
}

// others are the state directories of the other instances that stand, which their names in /run/netns lead to.
func others(dir statedir.Dir) []statedir.Dir {
	links, err := filepath.Glob(filepath.Join(runDir, "pw*-"+statedir.Underlay))
	if err != nil {
		return nil // the pattern is a constant
	}
	var out []statedir.Dir
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil {
			continue
		}
		other := statedir.Dir(filepath.Dir(filepath.Dir(to)))
		if pinned, err := isNamespace(to); err == nil && pinned && other != dir && other.NetNS(statedir.Underlay) == to {
			out = append(out, other)
		}
	}
	return out
}

// bequeath makes a directory one that another instance has to remove, unless that instance is going up or down just now,
// which its lock says.
func bequeath(path string, heir statedir.Dir) error {
	lock, err := os.Open(string(heir))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return note(heir, []string{path})
}
