// Package lab builds the machines of `podwire up` out of namespaces: the underlay, the outside, one for each service and
// one for each node. It is the only writer of their network namespaces, links (a bridge in the underlay's namespace, a
// veth `eth0` in each other one), addresses on these, and the pins that keep namespaces alive without a process.
//
// In: a Plan. Out: the same kernel state however often it is asked for, and none of it after Remove.
// Invariants: no link is ever made in the host's namespace, not even for a moment; what belongs to another instance, or to
// nobody, is never touched. The package must not start processes other than those a caller starts in a Place.
package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
)

// Plan is what the lab of an instance consists of.
type Plan struct {
	Dir statedir.Dir
	// Members hang on the underlay's bridge.
	Members []Member
	// Bridge are the bridge's own addresses.
	Bridge []netip.Prefix
}

// Member is one machine: a namespace with eth0 on the underlay.
type Member struct {
	// Name is that of its namespace: outside, svc-<service>, or the node's name.
	Name      string
	Addresses []netip.Prefix
	// Paths are directories that the member has for itself, as from -> to: `from` is made, and shown at `to` in a mount
	// namespace of the member's own. A member without any shares the host's mounts.
	Paths map[string]string
}

// runDir is where iproute2 looks for namespaces (ip-netns(8)).
const runDir = "/run/netns"

// Ensure makes what is missing of the lab and returns how many namespaces, links and addresses it made: 0 means that the
// lab stood already. It needs root.
func Ensure(p Plan) (int, error) {
	b := &builder{plan: p}
	if err := b.pinsDir(); err != nil {
		return b.made, errs.Wrap(err, "lab: %s", p.Dir.Pins())
	}
	if err := b.bridge(); err != nil {
		return b.made, errs.Wrap(err, "lab: underlay")
	}
	for _, m := range p.Members {
		if err := b.member(m); err != nil {
			return b.made, errs.Wrap(err, "lab: %s", m.Name)
		}
	}
	return b.made, nil
}

type builder struct {
	plan Plan
	made int
}

// pinsDir makes the directory of the pins a mount of its own and private: a mount namespace cannot be pinned where the
// pin would propagate into that very namespace (mount_namespaces(7)), and systemd makes / shared.
func (b *builder) pinsDir() error {
	dir := b.plan.Dir.Pins()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.WrapAs(errs.Internal, err, "directory")
	}
	mounted, err := isMount(dir)
	if err != nil || mounted {
		return err
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return errs.WrapAs(errs.Internal, err, "bind to itself")
	}
	err = unix.Mount("", dir, "", unix.MS_PRIVATE, "")
	return errs.WrapAs(errs.Internal, err, "make private")
}

// isMount says whether something is mounted at exactly path, as this process sees it.
func isMount(path string) (bool, error) {
	mounts, err := ReadMounts("/proc/thread-self/mountinfo")
	return slices.ContainsFunc(mounts, func(m Mount) bool { return m.Target == path }), err
}

// namespace pins a network namespace under a name, unless it is pinned already, and shows it to `ip netns`.
func (b *builder) namespace(name string) error {
	path := b.plan.Dir.NetNS(name)
	pinned, err := isNamespace(path)
	if err != nil {
		return err
	}
	if !pinned {
		err := onThread(func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			return pin("/proc/thread-self/ns/net", path)
		})
		if err != nil {
			return errs.WrapAs(errs.Internal, err, "namespace")
		}
		b.made++
	}
	return b.show(name, path)
}

// show makes the name that `ip netns` lists, a symbolic link to the pin.
func (b *builder) show(name, path string) error {
	if err := b.mountPoint(runDir); err != nil {
		return err
	}
	link := filepath.Join(runDir, b.plan.Dir.Prefix()+name)
	err := os.Symlink(path, link)
	if errors.Is(err, fs.ErrExist) {
		if to, rerr := os.Readlink(link); rerr == nil && to == path {
			return nil
		}
		return errs.New(errs.Exists, "%s: is there already and is not ours; remove it (`ip netns delete %s`)", link, filepath.Base(link))
	}
	return errs.WrapAs(errs.Internal, err, "namespace")
}

// pin keeps a namespace alive without a process: the file at path becomes the namespace.
func pin(ns, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

// isNamespace says whether a path opens a namespace now.
func isNamespace(path string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Type == unix.NSFS_MAGIC, errs.WrapAs(errs.Internal, err, "%s", path)
}

// member makes one machine.
func (b *builder) member(m Member) error {
	if err := b.namespace(m.Name); err != nil {
		return err
	}
	if err := b.link(m); err != nil {
		return err
	}
	if len(m.Paths) == 0 {
		return nil
	}
	return b.mounts(m)
}

// mounts pins the member's mount namespace with its own directories in it.
func (b *builder) mounts(m Member) error {
	path := b.plan.Dir.MountNS(m.Name)
	pinned, err := isNamespace(path)
	if err != nil || pinned {
		return err
	}
	for from, to := range m.Paths {
		if err := os.MkdirAll(from, 0o755); err != nil {
			return errs.WrapAs(errs.Internal, err, "directory")
		}
		if err := b.mountPoint(to); err != nil {
			return err
		}
	}
	var pinErr error
	err = onThread(func() error {
		if err := ownMounts(b.plan.Dir, m.Paths); err != nil {
			return err
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid())
		// The pin has to be made from the mount namespace that it is to appear in.
		pinErr = onThread(func() error { return pin(self, path) })
		return nil
	})
	b.made++
	return errs.WrapAs(errs.Internal, errors.Join(err, pinErr), "mount namespace")
}

// ownMounts gives the calling thread a mount namespace that follows the host's mounts and has its own besides.
func ownMounts(dir statedir.Dir, paths map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("follow the host's mounts: %w", err)
	}
	// A copy of a pin, be it another instance's, would keep a namespace alive for as long as this one.
	mounts, err := ReadMounts("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if m.Type != "nsfs" && m.Target != dir.Pins() {
			continue
		}
		if err := unix.Unmount(m.Target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("detach %s: %w", m.Target, err)
		}
	}
	for from, to := range paths {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show %s at %s: %w", from, to, err)
		}
	}
	return nil
}

// dirsFile lists the directories that were made outside of the state directory, one per line, in order.
func dirsFile(dir statedir.Dir) string { return dir.Path("made.dirs") }

// mountPoint makes a directory of the host that something is to be mounted on, and remembers what it made.
func (b *builder) mountPoint(path string) error {
	var missing []string
	for p := path; ; p = filepath.Dir(p) {
		_, err := os.Lstat(p)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return errs.WrapAs(errs.Internal, err, "mount point")
		}
		missing = append(missing, p)
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Reverse(missing)
	// Noted before they are made: an interrupted `up` must not leave what `down` does not know.
	if err := note(b.plan.Dir, missing); err != nil {
		return err
	}
	return errs.WrapAs(errs.Internal, os.MkdirAll(path, 0o755), "mount point")
}

// note adds directories to those that Remove is to remove.
func note(dir statedir.Dir, made []string) error {
	known, err := readLines(dirsFile(dir))
	if err != nil {
		return err
	}
	for _, path := range made {
		if !slices.Contains(known, path) {
			known = append(known, path)
		}
	}
	slices.Sort(known) // a directory comes before what is in it
	return statedir.WriteFile(dirsFile(dir), []byte(strings.Join(known, "\n")+"\n"), 0o644)
}

func readLines(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(text)), errs.WrapAs(errs.Internal, err, "read")
}
