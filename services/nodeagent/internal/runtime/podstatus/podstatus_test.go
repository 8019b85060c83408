package podstatus

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/runtime"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func done(code int) runtime.ContainerState {
	return runtime.ContainerState{Name: "c", Phase: runtime.Terminated, Last: &runtime.Exit{Code: code, FinishedAt: now}}
}

func TestPhaseAndReadiness(t *testing.T) {
	up := runtime.ContainerState{Name: "c", Phase: runtime.Running, StartedAt: now, Started: true, Ready: true}
	starting := runtime.ContainerState{Name: "c", Phase: runtime.Running, StartedAt: now}
	creating := runtime.ContainerState{Name: "c", Reason: "ContainerCreating"}
	looping := runtime.ContainerState{Name: "c", Reason: "CrashLoopBackOff", Previous: &runtime.Exit{Code: 1}, RestartCount: 3}
	over := runtime.Ending{Reason: "DeadlineExceeded", Message: "too long"}
	always := podspec.Pod{RestartPolicy: podspec.RestartAlways}
	never := podspec.Pod{RestartPolicy: podspec.RestartNever}
	withInit := func(p podspec.Pod) podspec.Pod { p.Init = []podspec.Container{{Name: "i"}}; return p }
	one := func(c ...runtime.ContainerState) runtime.PodState { return runtime.PodState{Containers: c} }
	for name, c := range map[string]struct {
		pod                            podspec.Pod
		state                          runtime.PodState
		phase, init, containers, ready string
	}{
		"creating":            {always, one(creating), Pending, "True", "False", "False"},
		"starting":            {always, one(starting), Running, "True", "False", "False"},
		"running":             {always, one(up), Running, "True", "True", "True"},
		"one of two":          {always, one(up, creating), Pending, "True", "False", "False"},
		"crash loop":          {always, one(looping), Running, "True", "False", "False"},
		"succeeded":           {never, one(done(0)), Succeeded, "True", "False", "False"},
		"failed":              {never, one(done(0), done(3)), Failed, "True", "False", "False"},
		"one ended":           {never, one(done(0), up), Running, "True", "False", "False"},
		"gate":                {podspec.Pod{ReadinessGates: []string{"x"}}, one(up), Running, "True", "True", "False"},
		"stopping":            {always, runtime.PodState{Stopping: true, Containers: []runtime.ContainerState{up}}, Running, "True", "True", "True"},
		"stopping, unready":   {always, runtime.PodState{Stopping: true, Containers: []runtime.ContainerState{starting}}, Running, "True", "False", "False"},
		"stopping, one ended": {always, runtime.PodState{Stopping: true, Containers: []runtime.ContainerState{up, done(0)}}, Running, "True", "False", "False"},
		"stopped":             {always, runtime.PodState{Stopping: true, Containers: []runtime.ContainerState{done(0)}}, Succeeded, "True", "False", "False"},
		"ended, still runs":   {always, runtime.PodState{Ended: over, Stopping: true, Containers: []runtime.ContainerState{up}}, Running, "True", "True", "False"},
		"ended":               {always, runtime.PodState{Ended: over, Stopping: true, Containers: []runtime.ContainerState{done(0)}}, Failed, "True", "False", "False"},
		"ended in its start":  {always, runtime.PodState{Ended: over, Reason: "NoAddress", Containers: []runtime.ContainerState{creating}}, Failed, "True", "False", "False"},
		"initializing":        {withInit(always), runtime.PodState{Init: []runtime.ContainerState{up}, Containers: []runtime.ContainerState{creating}}, Pending, "False", "False", "False"},
		"init failed":         {withInit(never), runtime.PodState{Init: []runtime.ContainerState{done(1)}, Containers: []runtime.ContainerState{creating}}, Failed, "False", "False", "False"},
		"init fails, retried": {withInit(always), runtime.PodState{Init: []runtime.ContainerState{looping}, Containers: []runtime.ContainerState{creating}}, Pending, "False", "False", "False"},
		"initialized":         {withInit(always), runtime.PodState{Init: []runtime.ContainerState{done(0)}, Containers: []runtime.ContainerState{up}}, Running, "True", "True", "True"},
	} {
		s := Compute(c.pod, c.state, nil, now)
		if wants := c.state.Ended.Reason; c.phase == Failed && wants != "" && (s.GetReason() != wants || s.GetMessage() != c.state.Ended.Message) {
			t.Errorf("%s: reason %q, message %q", name, s.GetReason(), s.GetMessage())
		}
		got := []string{s.GetPhase()}
		for _, want := range []string{condInit, condContainers, condReady} {
			for _, cond := range s.GetConditions() {
				if cond.GetType() == want {
					got = append(got, cond.GetStatus())
				}
			}
		}
		if want := strings.Join([]string{c.phase, c.init, c.containers, c.ready}, " "); strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}

func TestDetails(t *testing.T) {
	pod := podspec.Pod{ReadinessGates: []string{"example.com/gate"}, RestartPolicy: podspec.RestartAlways}
	state := runtime.PodState{
		StartedAt: now,
		Net:       runtime.Attachment{PodIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		Containers: []runtime.ContainerState{{
			Name: "c", Image: "nginx:1", Substituted: "nginx:1", Phase: runtime.Running, StartedAt: now, Started: true, Ready: true,
			RestartCount: 1, Previous: &runtime.Exit{Code: 137, Signal: 9, Reason: "Error", FinishedAt: now},
		}},
	}
	before := &objectv1.PodStatus{Conditions: []*objectv1.PodCondition{{Type: "example.com/gate", Status: "True"}}}
	first := Compute(pod, state, before, now)
	if first.GetPodIp() != "10.0.0.1" || len(first.GetPodIps()) != 2 || first.GetHostIp() != "192.0.2.1" || !strings.Contains(first.GetMessage(), "nginx:1") {
		t.Errorf("%v", first)
	}
	c := first.GetContainerStatuses()[0]
	if c.GetImageId() != runtime.EchoImage || c.GetLastState().GetTerminated().GetExitCode() != 137 || c.GetState().GetRunning() == nil || !c.GetStarted() {
		t.Errorf("%v", c)
	}
	// Nothing changed: the transition times stay, and the foreign condition does.
	second := Compute(pod, state, first, now.Add(time.Hour))
	if len(second.GetConditions()) != 5 {
		t.Errorf("%v", second.GetConditions())
	}
	for _, cond := range second.GetConditions() {
		if cond.GetType() != "example.com/gate" && !cond.GetLastTransitionTime().AsTime().Equal(now) {
			t.Errorf("%s moved to %s", cond.GetType(), cond.GetLastTransitionTime().AsTime())
		}
	}
}

// Kubernetes' times have no fractions of a second, and its clients do not expect any.
func TestTimesAreWholeSeconds(t *testing.T) {
	at := now.Add(123456789)
	state := runtime.PodState{StartedAt: at, Containers: []runtime.ContainerState{
		{Name: "a", Phase: runtime.Running, StartedAt: at, Previous: &runtime.Exit{StartedAt: at, FinishedAt: at}},
		{Name: "b", Phase: runtime.Terminated, Last: &runtime.Exit{StartedAt: at, FinishedAt: at}},
	}}
	seen := 0
	var look func(m protoreflect.Message)
	look = func(m protoreflect.Message) {
		if ts, ok := m.Interface().(*timestamppb.Timestamp); ok {
			seen++
			if !ts.AsTime().Equal(now) {
				t.Errorf("%s, want %s", ts.AsTime(), now)
			}
			return
		}
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case f.IsList() && f.Message() != nil:
				for i := range v.List().Len() {
					look(v.List().Get(i).Message())
				}
			case !f.IsMap() && f.Message() != nil:
				look(v.Message())
			}
			return true
		})
	}
	look(Compute(podspec.Pod{}, state, nil, at).ProtoReflect())
	if seen != 10 {
		t.Errorf("%d times were looked at, want startTime, 4 conditions, and 5 of containers", seen)
	}
}
