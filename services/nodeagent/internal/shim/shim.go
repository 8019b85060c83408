// Package shim is the part of a container that outlives the agent.
//
// The agent re-executes its own binary with a configured prefix of arguments and
// one of the stages below. `run` is the shim proper: it lives in the Pod's network
// namespace, is the parent of the container, keeps its log, and writes what became
// of it into the container's directory. `init` is the first process of the
// container, in mount, pid, uts and ipc namespaces of its own: it arranges the
// files and becomes the command, or the built-in echo server. `enter` runs one more
// command in a running container. `probe` is the tool of package probe.
//
// In: the directory of one run of one container with its spec.json. Out: run.json
// and exit.json (both written atomically), the log, and an exit status.
//
// Invariants: the container dies with its shim (PDEATHSIG, and it is process 1 of
// its pid namespace, so everything inside dies with it); the shim dies with its
// container. Every process of a Pod is in the Pod's network namespace, shims
// included: whoever must find what is left after everything else was killed looks
// for processes whose /proc/PID/ns/net is one of the pinned namespaces.
//
// The package must not talk to the agent except through files and the descriptors
// it inherited.
package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"podwire.dev/services/nodeagent/internal/echo"
)

// Stage names: the word after the prefix.
const (
	stageRun    = "run"
	stageInit   = "init"
	stageEnter  = "enter"
	stageInside = "inside"
	stageProbe  = "probe"
	stagePkill  = "pkill"
)

// The files of one run of one container.
const (
	specFile = "spec.json"
	runFile  = "run.json"
	exitFile = "exit.json"
	lockFile = "lock"
	shimLog  = "shim.log"
	logFile  = "log"
	oldLog   = "log.1"
)

// defaultPath is what container engines give an image that names none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// DefaultLogLimit is the size in bytes at which a log is rotated; one older piece is
// kept, so a run keeps at most twice as much.
const DefaultLogLimit = 10 << 20

// Exit codes and reasons that the shim itself gives, as container engines do.
const (
	CodeStartError  = 128
	CodeCannotExec  = 126
	CodeNotFound    = 127
	ReasonCompleted = "Completed"
	ReasonError     = "Error"
	ReasonStart     = "StartError"
	ReasonLost      = "ContainerStatusUnknown"
)

// Spec is one run of one container: everything decided, nothing left to expand.
type Spec struct {
	// ID names the run in messages.
	ID string `json:"id"`
	// Command is the whole argv. It is ignored if Echo is set.
	Command []string `json:"command,omitempty"`
	// Echo runs the built-in image instead of a command.
	Echo *echo.Config `json:"echo,omitempty"`
	// Env is KEY=value; PATH is added if it is missing.
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	Hostname   string   `json:"hostname,omitempty"`
	// NetNS is the path of the Pod's network namespace; empty: the agent's own.
	NetNS string `json:"netns,omitempty"`
	// Binds are files put over files of the host, in order.
	Binds []Bind `json:"binds,omitempty"`
	// UID and GID are who runs the command; negative leaves root.
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups,omitempty"`
	// LogLimit is in bytes; 0 is DefaultLogLimit.
	LogLimit int64 `json:"logLimit,omitempty"`
}

// Bind is one file of ours over one of the host's. A missing target is an error
// unless Optional.
type Bind struct {
	Source   string   `json:"source"`
	Target   string   `json:"target"`
	Presence Presence `json:"presence,omitempty"`
}

// Presence says what a missing bind target means.
type Presence string

// A target that is not there is an error, or the bind is left out.
const (
	Required Presence = ""
	Optional Presence = "optional"
)

// Record is run.json: who runs. The shim writes it when it begins, without a
// container, and again when the container runs.
type Record struct {
	Shim      Process   `json:"shim"`
	Container Process   `json:"container"`
	StartedAt time.Time `json:"startedAt"`
}

// Exit is exit.json: how the container ended.
type Exit struct {
	// Code is the exit status, 128 + Signal for a signal.
	Code       int       `json:"code"`
	Signal     int       `json:"signal,omitempty"`
	Reason     string    `json:"reason"`
	Message    string    `json:"message,omitempty"`
	StartedAt  time.Time `json:"startedAt"`
	FinishedAt time.Time `json:"finishedAt"`
}

// Main runs a stage if args (os.Args without the program) ask for one: they begin
// with "shim" or with "serve nodeagent shim". The agent's main and podwire's call it
// before anything else and end with code if it handled the arguments.
func Main(args []string) (handled bool, code int) {
	var rest []string
	switch {
	case len(args) > 0 && args[0] == "shim":
		rest = args[1:]
	case len(args) > 2 && slices.Equal(args[:3], []string{"serve", "nodeagent", "shim"}):
		rest = args[3:]
	default:
		return false, 0
	}
	prefix := os.Args[:len(os.Args)-len(rest)]
	if len(rest) < 2 {
		fmt.Fprintln(os.Stderr, "shim: started by the agent only: want run|init|enter|inside DIR, probe ARGS or pkill ARGS")
		return true, 2
	}
	switch stage := rest[0]; stage {
	case stageRun:
		return true, runStage(prefix, rest[1])
	case stageInit:
		return true, initStage(rest[1])
	case stageEnter:
		return true, enterStage(prefix, rest[1], rest[2:])
	case stageInside:
		return true, insideStage(rest[1], rest[2:])
	case stageProbe:
		return true, runProbe(rest[1:])
	case stagePkill:
		return true, pkill("/proc", rest[1:], os.Stderr)
	default:
		fmt.Fprintf(os.Stderr, "shim: unknown stage %q\n", stage)
		return true, 2
	}
}

// readJSON fills v from a file; ok is false if it is not there.
func readJSON(path string, v any) (ok bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return true, nil
}

// writeJSON replaces a file in one step, so that a reader never sees half of it.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(b, '\n'))
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

func readSpec(dir string) (Spec, error) {
	var spec Spec
	ok, err := readJSON(filepath.Join(dir, specFile), &spec)
	if err == nil && !ok {
		err = fmt.Errorf("%s: no %s there", dir, specFile)
	}
	return spec, err
}

// environ is the Spec's environment with a PATH.
func (s Spec) environ() []string {
	for _, kv := range s.Env {
		if len(kv) > 5 && kv[:5] == "PATH=" {
			return s.Env
		}
	}
	return append([]string{defaultPath}, s.Env...)
}
