package pods

import (
	"context"
	"slices"

	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
	"podwire.dev/services/nodeagent/internal/runtime/podstatus"
)

// observe computes the status of the pod, has it reported where it changed, and says whether the pod has finished: its
// phase is terminal, nothing of it runs, and nobody asked for its end.
func (w *worker) observe(ctx context.Context) bool {
	row := w.current()
	if row.orphan {
		return false // nobody asks after it
	}
	state, err := w.s.cfg.Driver.State(w.uid)
	if err != nil { // no sandbox yet, or none any more
		state = runtime.PodState{
			Init: unborn(row.spec.Init, row.spec), Containers: unborn(row.spec.Containers, row.spec), Stopping: false,
		}
	}
	w.mu.Lock()
	ending := row.deleting || w.vanished > 0
	known := w.record.State
	state.StartedAt = w.record.Taken
	if w.record.Expired {
		state.Ended = runtime.Ending{Reason: reasonDeadline, Message: "Pod was active on the node longer than the specified deadline"}
	}
	if len(w.net.PodIPs) > 0 {
		state.Net = w.net
	}
	w.mu.Unlock()
	if err != nil && ending {
		// What is gone was last known so.
		state.Init, state.Containers, state.Net = slices.Clone(known.Init), slices.Clone(known.Containers), known.Net
		for _, list := range [][]runtime.ContainerState{state.Init, state.Containers} {
			for i := range list {
				list[i].Ready = false
			}
		}
	}
	if len(state.Net.PodIPs) == 0 && !ending {
		state.Net = runtime.Attachment{HostIPs: w.s.cfg.HostIPs}
	}
	state.Init = remembered(state.Init, known.Init)
	state.Containers = remembered(state.Containers, known.Containers)
	state.Stopping = state.Stopping || ending
	w.explain(&state)

	status := podstatus.Compute(row.spec, state, w.report.latest(), w.s.cfg.Clock.Now())
	status.ObservedGeneration = row.generation
	if w.report.offer(status) {
		w.mu.Lock()
		w.record.State, w.unsaved = state, true
		w.mu.Unlock()
	}
	w.save()
	return err == nil && !ending && terminal(status.GetPhase()) && !slices.ContainsFunc(state.Init, runs)
}

func runs(c runtime.ContainerState) bool { return c.Phase == runtime.Running }

// explain says why the pod waits, where it does: about the pod, and about each container that cannot say better itself.
func (w *worker) explain(state *runtime.PodState) {
	w.mu.Lock()
	p := w.problem
	w.mu.Unlock()
	if p == (problem{}) {
		return
	}
	state.Reason, state.Message = p.reason, p.message
	for _, list := range [][]runtime.ContainerState{state.Init, state.Containers} {
		for i, c := range list {
			if c.Phase == runtime.Waiting && c.Message == "" && c.ID == "" {
				list[i].Message = p.message
			}
		}
	}
}

// unborn are the states of containers without a sandbox.
func unborn(list []podspec.Container, pod podspec.Pod) []runtime.ContainerState {
	reason := "ContainerCreating"
	if len(pod.Init) > 0 {
		reason = "PodInitializing"
	}
	var out []runtime.ContainerState
	for _, c := range list {
		out = append(out, runtime.ContainerState{Name: c.Name, Image: c.Image, Reason: reason})
	}
	return out
}

// remembered keeps what was known of containers before the agent was restarted, for as long as this agent's runtime has
// not seen them, and their readiness for as long as no probe has a verdict: a restart of the agent is none of the pod.
func remembered(now, known []runtime.ContainerState) []runtime.ContainerState {
	out := slices.Clone(now)
	for i, c := range out {
		k := slices.IndexFunc(known, func(k runtime.ContainerState) bool { return k.Name == c.Name })
		if k < 0 || known[k].ID == "" {
			continue
		}
		old := known[k]
		switch {
		case c.Phase == runtime.Waiting && c.ID == "" && !ended(c, old.ID):
			out[i] = old
		case c.Phase == runtime.Running && old.Phase == runtime.Running && c.ID == old.ID && !c.Judged:
			out[i].Ready, out[i].Started = c.Ready || old.Ready, c.Started || old.Started
		}
	}
	return out
}

// ended says whether the runtime knows the end of the run of that id.
func ended(c runtime.ContainerState, id string) bool {
	return c.Last != nil && c.Last.ID == id || c.Previous != nil && c.Previous.ID == id
}
