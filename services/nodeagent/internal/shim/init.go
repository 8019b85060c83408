package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"podwire.dev/services/nodeagent/internal/echo"
)

// hello is the first byte of a report.
const hello = "."

// report is the stage's end of the pipe that the stage before it reads.
type report struct{ f *os.File }

// openReport ties the stage's life to its parent's: PDEATHSIG on this very thread
// (which must be the one that execs, a new thread has none), then a byte to a parent
// that may have died before.
func openReport() (report, error) {
	unix.CloseOnExec(reportFD)
	r := report{os.NewFile(reportFD, "report")}
	if err := dieWithParent(); err != nil {
		return r, err
	}
	if _, err := r.f.WriteString(hello); err != nil {
		return r, fmt.Errorf("parent is gone: %w", err)
	}
	return r, nil
}

func dieWithParent() error {
	err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	return os.NewSyscallError("prctl(PR_SET_PDEATHSIG)", err)
}

// fail reports and gives the exit code.
func (r report) fail(err error) int {
	f := failure{Code: CodeStartError, Message: err.Error()}
	_ = errors.As(err, &f)
	if werr := json.NewEncoder(r.f).Encode(f); werr != nil {
		fmt.Fprintln(os.Stderr, "shim:", err)
	}
	return f.Code
}

// initStage is process 1 of the container until it becomes the command.
func initStage(dir string) int {
	runtime.LockOSThread()
	r, err := openReport()
	if err != nil {
		return CodeStartError
	}
	spec, err := readSpec(dir)
	if err == nil {
		err = arrange(spec)
	}
	if err != nil {
		return r.fail(err)
	}
	if spec.Echo != nil {
		return serveEcho(*spec.Echo, r)
	}
	return r.fail(become(spec, spec.Command))
}

// arrange makes the namespaces look like the container's. A namespace made for
// nothing costs nothing, so every step but the optional ones must succeed.
func arrange(spec Spec) error {
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", spec.Hostname, err)
		}
	}
	// Without this every mount below would show up in the node.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := detachNamespaces(); err != nil {
		return err
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", plain, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	mountSys()
	// POSIX shared memory belongs to the IPC namespace in spirit, to /dev/shm in fact.
	// A host without /dev/shm has nothing to separate.
	_ = unix.Mount("shm", "/dev/shm", "tmpfs", plain, "mode=1777,size=64m")
	for _, b := range spec.Binds {
		err := unix.Mount(b.Source, b.Target, "", unix.MS_BIND, "")
		if errors.Is(err, fs.ErrNotExist) && b.Presence == Optional {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put the container's own %s in place: this host has no such file; create an empty one", b.Target)
		}
		if err != nil {
			return fmt.Errorf("put the container's own %s in place: %w", b.Target, err)
		}
	}
	return nil
}

// detachNamespaces removes pinned namespaces from this copy of the mounts. Otherwise
// each container would keep the network namespaces of all Pods that were there when
// it started, long after those are gone.
func detachNamespaces() error {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for _, target := range nsfsMounts(string(b)) {
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("detach %s: %w", target, err)
		}
	}
	return nil
}

// nsfsMounts lists the mount points of type nsfs in a mountinfo (proc(5)), last first.
func nsfsMounts(mountinfo string) []string {
	var out []string
	for line := range strings.Lines(mountinfo) {
		head, tail, ok := strings.Cut(line, " - ")
		fields := strings.Fields(head)
		if ok && len(fields) >= 5 && strings.HasPrefix(tail, "nsfs ") {
			out = append([]string{unescapeMount(fields[4])}, out...)
		}
	}
	return out
}

// unescapeMount resolves the octal escapes of mountinfo: space, tab, newline, backslash.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mountSys puts the network namespace's own /sys in place, with the host's cgroups in
// it. Where that is not allowed the container sees the node's links in
// /sys/class/net, and nothing else changes.
func mountSys() {
	dir, err := os.MkdirTemp("", "podwire-sys-")
	if err != nil {
		return
	}
	defer os.Remove(dir)
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if unix.Mount("sysfs", dir, "sysfs", flags, "") != nil {
		return
	}
	_ = unix.Mount("/sys/fs/cgroup", filepath.Join(dir, "fs/cgroup"), "", unix.MS_BIND|unix.MS_REC, "")
	if unix.Mount(dir, "/sys", "", unix.MS_MOVE, "") != nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
}

// become execs argv as the Spec's user; it returns only if it cannot.
func become(spec Spec, argv []string) error {
	if len(argv) == 0 {
		return failure{CodeNotFound, "no command to run"}
	}
	if spec.WorkingDir != "" {
		if err := os.Chdir(spec.WorkingDir); err != nil {
			return failure{CodeCannotExec, fmt.Sprintf("working directory: %v", err)}
		}
	}
	env := spec.environ()
	if err := setUser(spec); err != nil {
		return err
	}
	path, err := lookPath(argv[0], env)
	if err != nil {
		return err
	}
	err = syscall.Exec(path, argv, env)
	code := CodeCannotExec
	if errors.Is(err, fs.ErrNotExist) {
		code = CodeNotFound
	}
	return failure{code, fmt.Sprintf("exec %q: %v", argv[0], err)}
}

// setUser drops to the Spec's user. A change of user clears PDEATHSIG.
func setUser(spec Spec) error {
	if spec.UID < 0 && spec.GID < 0 && len(spec.Groups) == 0 {
		return nil
	}
	if err := syscall.Setgroups(spec.Groups); err != nil {
		return fmt.Errorf("set groups %v: %w", spec.Groups, err)
	}
	if spec.GID >= 0 {
		if err := syscall.Setgid(spec.GID); err != nil {
			return fmt.Errorf("set group %d: %w", spec.GID, err)
		}
	}
	if spec.UID >= 0 {
		if err := syscall.Setuid(spec.UID); err != nil {
			return fmt.Errorf("set user %d: %w", spec.UID, err)
		}
	}
	return dieWithParent()
}

// lookPath finds a command by the PATH of env, as execvp(3) does.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var path string
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	denied := false
	for dir := range strings.SplitSeq(path, ":") {
		full := filepath.Join(dir, name)
		if dir == "" {
			full = "./" + name
		}
		info, err := os.Stat(full)
		if err != nil || info.IsDir() {
			continue
		}
		if unix.Access(full, unix.X_OK) == nil {
			return full, nil
		}
		denied = true
	}
	if denied {
		return "", failure{CodeCannotExec, fmt.Sprintf("exec %q: found in PATH but not executable", name)}
	}
	return "", failure{CodeNotFound, fmt.Sprintf("exec %q: not found in PATH=%s", name, path)}
}

// serveEcho is the built-in image: this process stays.
func serveEcho(config echo.Config, r report) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server, err := echo.Listen(config)
	if err != nil {
		return r.fail(failure{CodeStartError, err.Error()})
	}
	r.f.Close()
	if err := server.Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		return 1
	}
	return 0
}
