package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"podwire.dev/services/nodeagent/internal/probe"
)

// exeFD is where insideStage's binary is: by path it may not be there any more.
const exeFD = 4

// enterStage runs argv in the container of dir and passes its exit status on. It is
// the parent outside: when it dies, or gets SIGTERM, the command is killed.
func enterStage(prefix []string, dir string, argv []string) int {
	runtime.LockOSThread()
	r, err := openReport()
	if err != nil {
		return CodeStartError
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	exe, err := os.Open("/proc/self/exe")
	if err == nil {
		err = joinContainer(dir)
	}
	if err != nil {
		return r.fail(err)
	}
	back, in, err := os.Pipe()
	if err != nil {
		return r.fail(err)
	}
	cmd := &exec.Cmd{
		// Evaluated in the child, which is in the container's pid namespace and sees its /proc.
		Path:        "/proc/self/fd/" + strconv.Itoa(exeFD),
		Args:        append(append(append([]string(nil), prefix...), stageInside, dir), argv...),
		Dir:         "/",
		Stdin:       os.Stdin,
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		ExtraFiles:  []*os.File{in, exe},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	in.Close()
	exe.Close()
	if err != nil {
		return r.fail(fmt.Errorf("start in the container: %w", err))
	}
	if err := readReport(back); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		var f failure
		if errors.As(err, &f) && f.Code != CodeStartError {
			fmt.Fprintln(os.Stderr, f.Message)
			return f.Code
		}
		return r.fail(err)
	}
	r.f.Close()
	ended := make(chan struct{})
	go func() {
		select {
		case <-signals:
			// Everything of its session that did not leave it.
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		case <-ended:
		}
	}()
	werr := cmd.Wait()
	close(ended)
	return exitOf(cmd, werr).Code
}

// joinContainer moves this thread into the container's namespaces; its pid namespace
// is for children only.
func joinContainer(dir string) error {
	var record Record
	ok, err := readJSON(filepath.Join(dir, runFile), &record)
	if err != nil {
		return err
	}
	if !ok || record.Container.PID == 0 {
		return errors.New("container is not running")
	}
	pid := strconv.Itoa(record.Container.PID)
	kinds := []struct {
		name string
		flag int
	}{
		{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC},
		{"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS},
	}
	files := make([]*os.File, len(kinds))
	for i, k := range kinds {
		if files[i], err = os.Open("/proc/" + pid + "/ns/" + k.name); err != nil {
			return fmt.Errorf("container is gone: %w", err)
		}
		defer files[i].Close()
	}
	if now, err := ProcessOf(record.Container.PID); err != nil || now != record.Container {
		return errors.New("container is gone")
	}
	// setns of a mount namespace is refused while other threads share this one's root
	// and working directory.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare filesystem attributes: %w", err)
	}
	for i, k := range kinds {
		if err := unix.Setns(int(files[i].Fd()), k.flag); err != nil {
			return fmt.Errorf("enter the container's %s namespace: %w", k.name, err)
		}
	}
	return nil
}

// insideStage is the command's process inside the container before it becomes it.
func insideStage(dir string, argv []string) int {
	runtime.LockOSThread()
	unix.CloseOnExec(exeFD)
	r, err := openReport()
	if err != nil {
		return CodeStartError
	}
	spec, err := readSpec(dir)
	if err != nil {
		return r.fail(err)
	}
	if len(argv) > 0 && argv[0] == ProbeCommand {
		r.f.Close()
		return runProbe(argv[1:])
	}
	return r.fail(become(spec, argv))
}

// runProbe is the built-in tool; SIGINT and SIGTERM end it early, with its summary.
func runProbe(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return probe.Main(ctx, args, os.Stdout, os.Stderr)
}
