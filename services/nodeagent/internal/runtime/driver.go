// Package runtime runs the Pods of one node.
//
// In: Pods parsed by podspec, and the addresses that the link code gave them. Out:
// network namespaces, container processes, their logs, and a PodState from which
// podstatus computes the status that Kubernetes' clients expect.
//
// The one driver so far, Process, runs containers as processes of this host (see
// process.go). Everything it knows is on disk under Config.Root, so an agent that
// is killed finds its containers again: they belong to their shims, not to it.
//
// The order is the caller's: CreateSandbox, then links and policy, and only then
// StartContainers; Stop, then the links, and only then RemoveSandbox.
//
// The package must not touch links, addresses, routes or nftables, and must not
// speak to any service.
package runtime

import (
	"context"
	"io"
	"net/netip"
	"time"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// Driver is what the agent's Pod loop needs of a runtime. All methods may be
// called concurrently; calls for one Pod are taken in turn. Errors are of
// internal/errs: NotFound for a Pod or container that is not there, Invalid for a
// request that cannot work, Unavailable while Run is not running.
type Driver interface {
	// Run supervises containers until ctx ends. Containers outlive it.
	Run(ctx context.Context) error
	// CreateSandbox makes the Pod's network namespace, or finds the one it has.
	CreateSandbox(ctx context.Context, pod podspec.Pod) (Sandbox, error)
	// StartContainers begins to run the Pod's containers in its sandbox and returns
	// once they are under supervision, not when they run. Again for a Pod that runs
	// already it changes nothing.
	StartContainers(ctx context.Context, pod podspec.Pod, net Attachment) error
	// Replace gives a Pod that runs the images of pod. Containers whose image changed are ended as by Stop and started
	// again, whatever the restart policy says; nothing else of pod is looked at.
	Replace(ctx context.Context, pod podspec.Pod) error
	// Stop ends the Pod's containers (preStop, SIGTERM, grace, SIGKILL) and returns
	// when none is left. A second call may only shorten the grace period.
	Stop(ctx context.Context, podUID string, grace time.Duration) error
	// RemoveSandbox removes what CreateSandbox made and everything kept for the Pod,
	// logs included. Containers must have been stopped. A Pod that is not there is no
	// error.
	RemoveSandbox(ctx context.Context, podUID string) error
	// List names every Pod that has a sandbox, also one found on disk after a restart.
	List() []PodInfo
	// State is what is known of the Pod's containers now.
	State(podUID string) (PodState, error)
	// Exec runs a command in a container; see ExecRequest.
	Exec(ctx context.Context, podUID string, req ExecRequest) (exitCode int, err error)
	// HostExec runs a command in the node's own namespaces.
	HostExec(ctx context.Context, req ExecRequest) (exitCode int, err error)
	// Logs writes a container's log to w.
	Logs(ctx context.Context, podUID string, req LogRequest, w io.Writer) error
}

// Sandbox is a Pod's place in the network.
type Sandbox struct {
	PodUID string
	// NetNS is the path of the pinned network namespace; for a hostNetwork Pod it is
	// empty: the node's own.
	NetNS string
}

// HostNetwork says that the Pod lives in the node's own network namespace.
func (s Sandbox) HostNetwork() bool { return s.NetNS == "" }

// Attachment is what the links gave the Pod.
type Attachment struct {
	// PodIPs are the Pod's addresses, the primary family first; at most one of each.
	// For a hostNetwork Pod they are the node's.
	PodIPs []netip.Addr
	// HostIPs are the node's addresses, in the same order.
	HostIPs []netip.Addr
}

// PodInfo names a Pod that has a sandbox.
type PodInfo struct {
	Pod     podspec.Pod
	Sandbox Sandbox
	// Net is the attachment of StartContainers; empty if it was not called yet.
	Net Attachment
	// Started says that StartContainers was called, Stopping that Stop was.
	Started, Stopping bool
}

// PodState is everything podstatus needs to know besides the Pod.
type PodState struct {
	Net      Attachment
	Started  bool
	Stopping bool
	// StartedAt is when the sandbox was made.
	StartedAt time.Time
	// Reason and Message say why the Pod cannot start at all; empty if it can.
	Reason, Message string
	// Ended says why the node ended the Pod for good, whatever became of its containers; empty if it did not.
	Ended            Ending
	Init, Containers []ContainerState
}

// Ending is why a node ended a Pod that nobody deleted: a word for programs, and a sentence.
type Ending struct{ Reason, Message string }

// Phase is the state of one container.
type Phase int

// The three container states of Kubernetes.
const (
	Waiting Phase = iota
	Running
	Terminated
)

// ContainerState is one container now.
type ContainerState struct {
	Name, Image string
	// ID is "process://<pod uid>/<container>/<attempt>"; empty before the first start.
	ID    string
	Phase Phase
	// Reason and Message explain Waiting (ContainerCreating, PodInitializing,
	// CrashLoopBackOff, ErrImageNeverPull…).
	Reason, Message string
	StartedAt       time.Time
	// Last is the exit of this run (Terminated), Previous the exit of the run before.
	Last, Previous *Exit
	RestartCount   int
	// Started: the startup probe passed or there is none. Ready: the readiness probe
	// passed or there is none; always false for a container that does not run.
	Started, Ready bool
	// Judged says that Ready is the word of this agent: after a restart it is false until a probe has a verdict.
	Judged bool
	// Substituted is the image that the built-in one stands in for; empty if none.
	Substituted string
}

// Exit is how a container ended.
type Exit struct {
	Code, Signal          int
	Reason, Message       string
	StartedAt, FinishedAt time.Time
	ID                    string
}

// ExecRequest is a command to run. Its first word "probe" is the built-in tool of
// package probe, in every container and on the host.
type ExecRequest struct {
	// Container is empty for the Pod's first container.
	Container string
	Command   []string
	// Stdin may be nil. It is read until it ends or the command does; a Read that
	// blocks is left to the caller to end.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// LogRequest selects what Logs writes.
type LogRequest struct {
	// Container is empty for the Pod's first container.
	Container string
	// Run chooses the present run of the container or the one before it.
	Run Run
	// Tail is the number of last lines to begin with; negative for everything kept.
	Tail int
	// Until says when Logs returns.
	Until Until
}

// Run chooses a run of a container.
type Run int

// The runs whose logs are kept.
const (
	CurrentRun Run = iota
	PreviousRun
)

// Until says when a log stream ends.
type Until int

// A log stream ends at what is there now, or when the container has ended or the
// context does.
const (
	UntilNow Until = iota
	UntilStopped
)
