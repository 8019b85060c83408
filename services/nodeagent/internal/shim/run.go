package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors that the stages inherit.
const (
	lockFD  = 3 // run: the locked lock file
	readyFD = 4 // run: where the agent waits for the start
	// init, enter, inside: where a failure before the command is reported. A byte comes
	// first, so that init notices a shim that died before PDEATHSIG was set.
	reportFD = 3
)

// failure is what a stage reports when it cannot go on.
type failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (f failure) Error() string { return f.Message }

// runStage is the shim: parent of the container until one of the two ends.
func runStage(prefix []string, dir string) int {
	// PDEATHSIG is about the thread that forked, so this one must last.
	runtime.LockOSThread()
	unix.CloseOnExec(lockFD)
	unix.CloseOnExec(readyFD)
	ready := os.NewFile(readyFD, "ready")
	// An inherited "ignored" would pass on to the container; a channel does not.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	exit, err := supervise(prefix, dir, ready, signals)
	if err != nil {
		exit = Exit{Code: CodeStartError, Reason: ReasonStart, Message: err.Error(), FinishedAt: time.Now()}
		if werr := json.NewEncoder(ready).Encode(failure{Code: CodeStartError, Message: err.Error()}); werr != nil {
			fmt.Fprintln(os.Stderr, "shim: tell the agent:", werr)
		}
	}
	if err := writeJSON(filepath.Join(dir, exitFile), exit); err != nil {
		fmt.Fprintln(os.Stderr, "shim: write exit status:", err)
		return 1
	}
	return 0
}

// supervise starts the container and waits for its end. An error means that it never
// ran.
func supervise(prefix []string, dir string, ready *os.File, signals <-chan os.Signal) (Exit, error) {
	spec, err := readSpec(dir)
	if err != nil {
		return Exit{}, err
	}
	self, err := Self()
	if err != nil {
		return Exit{}, err
	}
	record := Record{Shim: self}
	if err := writeJSON(filepath.Join(dir, runFile), record); err != nil {
		return Exit{}, err
	}
	log, err := openLog(dir, spec.LogLimit)
	if err != nil {
		return Exit{}, err
	}
	defer log.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return Exit{}, err
	}
	defer out.Close()
	cmd, err := startInit(prefix, dir, spec, in)
	in.Close()
	if err != nil {
		return Exit{}, err
	}
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		// A buffer of our own: splice would go around the rotation.
		_, _ = io.CopyBuffer(struct{ io.Writer }{log}, struct{ io.Reader }{out}, make([]byte, 32<<10))
	}()
	record.StartedAt = time.Now()
	if record.Container, err = ProcessOf(cmd.Process.Pid); err == nil {
		err = writeJSON(filepath.Join(dir, runFile), record)
	}
	if err != nil {
		// Nobody could find the container again.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return Exit{}, err
	}
	if _, err := ready.WriteString(hello); err != nil {
		fmt.Fprintln(os.Stderr, "shim: the agent is gone:", err)
	}
	ready.Close()

	ended := make(chan struct{})
	go forward(signals, cmd.Process, ended)
	werr := cmd.Wait()
	close(ended)
	exit := exitOf(cmd, werr)
	<-logged
	exit.StartedAt = record.StartedAt
	return exit, nil
}

// forward passes the signals that the shim gets on to the container.
func forward(signals <-chan os.Signal, to *os.Process, ended <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			_ = to.Signal(s)
		case <-ended:
			return
		}
	}
}

// startInit starts the container's first process and returns once it has become the
// command (or the echo server listens), or says why it could not.
func startInit(prefix []string, dir string, spec Spec, output *os.File) (*exec.Cmd, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       append(append([]string(nil), prefix...), stageInit, dir),
		Env:        spec.environ(),
		Dir:        "/",
		Stdout:     output,
		Stderr:     output,
		ExtraFiles: []*os.File{w},
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		},
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("make the container's namespaces: %w", err)
	}
	if err := readReport(r); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	return cmd, nil
}

// readReport waits for the end of a report: nothing but the first byte is success.
func readReport(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err != nil {
		return err
	}
	text := strings.TrimPrefix(string(b), hello)
	if len(text) == len(b) {
		return errors.New("the container's first process died before it could begin")
	}
	if text == "" {
		return nil
	}
	var f failure
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return fmt.Errorf("report %q: %w", text, err)
	}
	return f
}

// exitOf reads a container's end from its parent's point of view.
func exitOf(cmd *exec.Cmd, waitErr error) Exit {
	exit := Exit{FinishedAt: time.Now()}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		exit.Code, exit.Reason, exit.Message = 255, ReasonError, fmt.Sprint(waitErr)
	case status.Signaled():
		exit.Signal = int(status.Signal())
		exit.Code, exit.Reason = 128+exit.Signal, ReasonError
	case status.ExitStatus() == 0:
		exit.Reason = ReasonCompleted
	default:
		exit.Code, exit.Reason = status.ExitStatus(), ReasonError
	}
	return exit
}
