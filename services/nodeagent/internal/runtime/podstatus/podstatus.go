// Package podstatus computes a Pod's status from what the runtime knows.
//
// In: the parsed Pod, its runtime.PodState, and the status that was reported before
// (for transition times and readiness gates). Out: an objectv1.PodStatus as a kubelet
// would report it ("Pod Lifecycle" in Kubernetes' documentation). Invariants: pure,
// and equal input gives equal output; it never invents what it was not told. It must
// not report: the agent does.
package podstatus

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// The phases of a Pod.
const (
	Pending   = "Pending"
	Running   = "Running"
	Succeeded = "Succeeded"
	Failed    = "Failed"
)

// Compute gives the status of a Pod that this node took on. now stamps conditions that
// changed; before may be nil.
func Compute(pod podspec.Pod, state runtime.PodState, before *objectv1.PodStatus, now time.Time) *objectv1.PodStatus {
	out := &objectv1.PodStatus{
		Phase:                 phase(pod, state),
		Reason:                state.Reason,
		Message:               state.Message,
		InitContainerStatuses: containers(state.Init),
		ContainerStatuses:     containers(state.Containers),
	}
	if !state.StartedAt.IsZero() {
		out.StartTime = seconds(state.StartedAt)
	}
	for _, a := range state.Net.PodIPs {
		out.PodIps = append(out.PodIps, &objectv1.PodIP{Ip: a.String()})
	}
	for _, a := range state.Net.HostIPs {
		out.HostIps = append(out.HostIps, &objectv1.HostIP{Ip: a.String()})
	}
	out.PodIp, out.HostIp = first(state.Net.PodIPs), first(state.Net.HostIPs)
	if out.Message == "" {
		out.Message = notes(state)
	}
	if out.Phase == Failed && state.Ended.Reason != "" {
		out.Reason, out.Message = state.Ended.Reason, state.Ended.Message
	}
	out.Conditions = conditions(pod, state, out.Phase, before, now)
	return out
}

// seconds is a time as Kubernetes writes it into objects (metav1.Time, RFC 3339): without fractions.
func seconds(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t.Truncate(time.Second)) }

func first(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return ""
	}
	return addrs[0].String()
}

// notes names each substitution, and what keeps a container from starting.
func notes(state runtime.PodState) string {
	var out []string
	for _, list := range [][]runtime.ContainerState{state.Init, state.Containers} {
		for _, c := range list {
			if n := c.Note(); n != "" {
				out = append(out, n)
			}
		}
	}
	return strings.Join(out, "; ")
}

// phase is Kubernetes' summary of the containers. A Pod that the node ended has failed, as soon as nothing of it runs.
func phase(pod podspec.Pod, state runtime.PodState) string {
	if state.Ended.Reason != "" && !anyRuns(state) {
		return Failed
	}
	for i, c := range state.Init {
		if i < len(pod.Init) && pod.Init[i].Sidecar() {
			continue
		}
		if c.Last == nil || c.Phase != runtime.Terminated {
			return Pending
		}
		if c.Last.Code != 0 {
			if pod.RestartPolicy == podspec.RestartNever {
				return Failed
			}
			return Pending
		}
	}
	var waiting, ended, failed int
	for _, c := range state.Containers {
		switch {
		case c.Phase == runtime.Terminated:
			ended++
			if c.Last != nil && c.Last.Code != 0 {
				failed++
			}
		case c.Phase == runtime.Waiting && c.Previous == nil:
			waiting++
		}
	}
	switch {
	case len(state.Containers) == 0 || waiting > 0:
		return Pending
	case ended < len(state.Containers):
		return Running
	case pod.RestartPolicy == podspec.RestartAlways && !state.Stopping:
		return Running // they are about to be started again
	case failed > 0:
		return Failed
	default:
		return Succeeded
	}
}

func anyRuns(state runtime.PodState) bool {
	runs := func(c runtime.ContainerState) bool { return c.Phase == runtime.Running }
	return slices.ContainsFunc(state.Init, runs) || slices.ContainsFunc(state.Containers, runs)
}

func containers(states []runtime.ContainerState) []*objectv1.ContainerStatus {
	var out []*objectv1.ContainerStatus
	for _, c := range states {
		s := &objectv1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageId: c.Image, ContainerId: c.ID,
			RestartCount: int32(c.RestartCount), Ready: c.Ready, Started: &c.Started,
			State: &objectv1.ContainerState{},
		}
		if c.Substituted != "" {
			s.ImageId = runtime.EchoImage
		}
		switch c.Phase {
		case runtime.Running:
			s.State.Running = &objectv1.ContainerStateRunning{StartedAt: seconds(c.StartedAt)}
		case runtime.Terminated:
			s.State.Terminated = terminated(c.Last)
		default:
			s.State.Waiting = &objectv1.ContainerStateWaiting{Reason: c.Reason, Message: c.Message}
		}
		if c.Previous != nil {
			s.LastState = &objectv1.ContainerState{Terminated: terminated(c.Previous)}
		}
		out = append(out, s)
	}
	return out
}

func terminated(e *runtime.Exit) *objectv1.ContainerStateTerminated {
	if e == nil {
		return &objectv1.ContainerStateTerminated{}
	}
	t := &objectv1.ContainerStateTerminated{
		ExitCode: int32(e.Code), Signal: int32(e.Signal), Reason: e.Reason, Message: e.Message, ContainerId: e.ID,
	}
	if !e.StartedAt.IsZero() {
		t.StartedAt = seconds(e.StartedAt)
	}
	if !e.FinishedAt.IsZero() {
		t.FinishedAt = seconds(e.FinishedAt)
	}
	return t
}

// The conditions that this package computes.
const (
	condScheduled  = "PodScheduled"
	condInit       = "Initialized"
	condContainers = "ContainersReady"
	condReady      = "Ready"
)

// conditions are ours, in Kubernetes' order, then those that others wrote.
func conditions(pod podspec.Pod, state runtime.PodState, phase string, before *objectv1.PodStatus, now time.Time) []*objectv1.PodCondition {
	ready := containersReady(state, phase)
	own := []*objectv1.PodCondition{
		{Type: condReady, Status: ready.Status, Reason: ready.Reason, Message: ready.Message},
		ready, initialized(pod, state, phase),
		{Type: condScheduled, Status: "True"},
	}
	podReady := own[0]
	if podReady.Status == "True" {
		gates(podReady, pod, before)
	}
	// A Pod that is being deleted stays as ready as its probes say for as long as its containers run: it is a terminating
	// endpoint that still serves (KEP-1672, KEP-1669). One that the node ends is no longer to get anything.
	if state.Ended.Reason != "" && podReady.Status == "True" {
		podReady.Status, podReady.Reason, podReady.Message = "False", "PodFailed", state.Ended.Message
	}
	old := map[string]*objectv1.PodCondition{}
	for _, c := range before.GetConditions() {
		old[c.GetType()] = c
	}
	out := make([]*objectv1.PodCondition, 0, len(own)+len(old))
	for _, c := range own {
		c.LastTransitionTime = seconds(now)
		if o := old[c.Type]; o.GetStatus() == c.Status && o.GetLastTransitionTime() != nil {
			c.LastTransitionTime = o.GetLastTransitionTime()
		}
		delete(old, c.Type)
		out = append(out, c)
	}
	for _, c := range before.GetConditions() {
		if old[c.GetType()] != nil {
			out = append(out, c)
		}
	}
	return out
}

// gates takes readiness away while a readiness gate does not hold.
func gates(ready *objectv1.PodCondition, pod podspec.Pod, before *objectv1.PodStatus) {
	for _, gate := range pod.ReadinessGates {
		status := "absent"
		for _, c := range before.GetConditions() {
			if c.GetType() == gate {
				status = c.GetStatus()
			}
		}
		if status != "True" {
			ready.Status, ready.Reason = "False", "ReadinessGatesNotReady"
			ready.Message = fmt.Sprintf("readiness gate %q is %s", gate, status)
			return
		}
	}
}

func initialized(pod podspec.Pod, state runtime.PodState, phase string) *objectv1.PodCondition {
	c := &objectv1.PodCondition{Type: condInit, Status: "True"}
	var missing []string
	for i, s := range state.Init {
		isSidecar := i < len(pod.Init) && pod.Init[i].Sidecar()
		done := s.Last != nil && s.Phase == runtime.Terminated && s.Last.Code == 0
		if !(done || isSidecar && s.Started) && phase != Succeeded {
			missing = append(missing, s.Name)
		}
	}
	if len(missing) > 0 {
		c.Status, c.Reason = "False", "ContainersNotInitialized"
		c.Message = fmt.Sprintf("containers with incomplete status: %v", missing)
	}
	return c
}

func containersReady(state runtime.PodState, phase string) *objectv1.PodCondition {
	c := &objectv1.PodCondition{Type: condContainers, Status: "True"}
	var unready []string
	for _, s := range state.Containers {
		if !s.Ready {
			unready = append(unready, s.Name)
		}
	}
	switch {
	case phase == Succeeded:
		c.Status, c.Reason = "False", "PodCompleted"
	case phase == Failed:
		c.Status, c.Reason = "False", "PodFailed"
	case len(state.Containers) == 0 || len(unready) > 0:
		c.Status, c.Reason = "False", "ContainersNotReady"
		c.Message = fmt.Sprintf("containers with unready status: %v", unready)
	}
	return c
}
