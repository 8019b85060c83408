package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/runtime"
)

type objects = []*objectv1.Pod

// up brings one pod to Ready.
func up(t *testing.T, w *world, a *agent, p *objectv1.Pod) string {
	t.Helper()
	uid := p.GetMetadata().GetUid()
	a.update(t, 10, objects{p})
	w.container(a, uid, running)
	w.untilReady(uid)
	return uid
}

// withoutStatus leaves the reports out of a list of calls: they come when they come.
func withoutStatus(calls string) string {
	fields := slices.DeleteFunc(strings.Fields(calls), func(c string) bool { return c == "status" })
	return strings.Join(slices.Compact(fields), " ")
}

func TestStartIsPolicyThenLinkThenContainers(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	a.update(t, 10, objects{object("a")})
	w.until("the address is reported", func() bool { return w.status("a").GetPodIp() == "10.244.0.1" })
	if got := withoutStatus(w.calls("a")); !strings.HasPrefix(got, "address sandbox prepare attach") {
		t.Errorf("the order was %q", got)
	}
	w.mu.Lock()
	ready := condition(w.status("a"), "Ready")
	w.mu.Unlock()
	if ready != "False" {
		t.Errorf("Ready is %q before anything runs", ready)
	}
	w.container(a, "a", running)
	w.untilReady("a")
	if got, want := withoutStatus(w.calls("a")), "address sandbox prepare attach start"; got != want {
		t.Errorf("the order was %q, want %q", got, want)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.status("a"); s.GetPhase() != "Running" || s.GetHostIp() != "192.0.2.1" || s.GetObservedGeneration() != 1 || s.GetReason() != "" {
		t.Errorf("%v", s)
	}
}

func TestEachStepIsRepeatedAndSaysWhy(t *testing.T) {
	for _, c := range []struct{ call, reason string }{
		{"address", reasonAddresses}, {"sandbox", reasonSandbox}, {"prepare", reasonPolicy}, {"attach", reasonLink}, {"start", reasonStart},
	} {
		t.Run(c.call, func(t *testing.T) {
			w := newWorld(t)
			w.fail[c.call+" bad"] = errs.New(errs.Exhausted, "none of 63 is free")
			a := w.agent()
			a.update(t, 10, objects{object("bad"), object("good")})
			w.container(a, "good", running)
			w.untilReady("good") // one that fails stops nobody
			w.until("the reason is reported", func() bool { return w.status("bad").GetReason() == c.reason })
			w.mu.Lock()
			s := w.status("bad")
			w.mu.Unlock()
			state := s.GetContainerStatuses()[0].GetState().GetWaiting()
			if s.GetPhase() != "Pending" || !strings.Contains(s.GetMessage(), "none of 63") || !strings.Contains(state.GetMessage(), "none of 63") {
				t.Errorf("%v", s)
			}
			if l := a.Problems(); len(l) != 1 || !strings.Contains(l[0], "default/pod-bad") {
				t.Errorf("%q", l)
			}
			w.set(func() { delete(w.fail, c.call+" bad") })
			w.ticking(5*time.Second, "it starts", func() bool { return w.boxes["bad"] != nil && w.boxes["bad"].started })
			w.container(a, "bad", running)
			w.untilReady("bad")
			if w.status("bad").GetReason() != "" || len(a.Problems()) != 0 {
				t.Errorf("%v", w.status("bad"))
			}
		})
	}
}

func TestEndTakesEverythingAwayInOrder(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	w.set(func() { w.hold[uid] = true })
	w.forget()
	a.update(t, 20, objects{deleting(object("a"), 30)})
	w.until("asked to stop", func() bool { return slices.Contains(w.events, "stop a") })
	if got := condition(w.status(uid), "Ready"); got != "True" {
		t.Errorf("Ready is %q while the containers run on", got)
	}
	// The probes go on, and their verdicts count.
	w.container(a, uid, func(c *runtime.ContainerState) { c.Ready = false })
	w.until("unready while it stops", func() bool { return condition(w.status(uid), "Ready") == "False" })
	w.container(a, uid, func(c *runtime.ContainerState) { c.Ready = true })
	w.until("ready while it stops", func() bool { return condition(w.status(uid), "Ready") == "True" })
	if got := withoutStatus(w.calls(uid)); got != "stop" {
		t.Errorf("before the containers ended: %q", got)
	}
	// A shorter grace period counts at once.
	a.update(t, 21, objects{deleting(object("a"), 0)})
	w.until("deleted", func() bool { return w.deleted[uid] > 0 && len(w.released[uid]) == 2 })
	a.update(t, 30, nil, uid)
	w.until("forgotten", func() bool { _, err := os.Stat(filepath.Join(w.dir, uid+".json")); return os.IsNotExist(err) })
	if got, want := withoutStatus(w.calls(uid)), "stop detach unprepare remove-sandbox release delete release"; got != want {
		t.Errorf("the order was %q, want %q", got, want)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := w.released[uid]; got[0] != 0 || got[1] != w.deleted[uid] {
		t.Errorf("released at %v, deleted at %d", got, w.deleted[uid])
	}
}

func TestForcedDeletionNeedsNobody(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	w.set(func() { w.fail["delete"] = errs.New(errs.Unavailable, "cluster is away") })
	b := w.boxes[uid]
	w.forget()
	a.update(t, 44, nil, uid)
	w.until("released", func() bool { l := w.released[uid]; return len(l) > 0 && l[len(l)-1] == 44 })
	if got, want := withoutStatus(w.calls(uid)), "stop detach unprepare remove-sandbox release"; got != want {
		t.Errorf("the order was %q, want %q", got, want)
	}
	if b.grace[0] != 0 {
		t.Errorf("grace %v", b.grace)
	}
}

func TestDeletionWaitsForClusterAndForNothingElse(t *testing.T) {
	w := newWorld(t)
	w.fail["delete"] = errs.New(errs.Unavailable, "cluster is away")
	a := w.agent()
	uid := up(t, w, a, object("a"))
	a.update(t, 20, objects{deleting(object("a"), 1)})
	w.until("tried", func() bool { return strings.Contains(strings.Join(w.events, ","), "delete a") })
	w.mu.Lock()
	if len(w.links)+len(w.boxes) != 0 || w.released[uid][0] != 0 {
		t.Errorf("links %v, boxes %v, released %v", w.links, w.boxes, w.released)
	}
	w.mu.Unlock()
	// It is gone by another's hand: the answer has no revision, the next update has.
	w.set(func() { w.fail["delete"] = errs.New(errs.NotFound, "no such pod") })
	w.ticking(5*time.Second, "released without a revision", func() bool { return len(w.released[uid]) == 2 })
	a.update(t, 50, nil, uid)
	w.until("released at the update", func() bool { l := w.released[uid]; return l[len(l)-1] == 50 })
}

func TestAPodIsEndedWhileItStarts(t *testing.T) {
	for _, call := range []string{"address", "sandbox", "prepare", "attach", "start"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			w.fail[call] = errs.New(errs.Unavailable, "not yet")
			a := w.agent()
			a.update(t, 10, objects{object("a")})
			w.until("it waits", func() bool { return w.status("a").GetReason() != "" })
			a.update(t, 20, objects{deleting(object("a"), 30)})
			w.until("deleted", func() bool {
				return w.deleted["a"] > 0 && len(w.links)+len(w.boxes)+len(w.prepared)+len(w.addresses) == 0
			})
		})
	}
}

func TestRestartAdoptsAndRewritesNothing(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	w.until("the record is written", func() bool {
		b, err := os.ReadFile(filepath.Join(w.dir, uid+".json"))
		return err == nil && strings.Contains(string(b), `"revision":`+fmt.Sprint(w.revision)) && strings.Contains(string(b), `"Ready":true`)
	})
	a.stop()
	w.set(func() { // what a fresh runtime knows before it has looked: nothing
		c := &w.boxes[uid].state.Containers[0]
		*c = runtime.ContainerState{Name: c.Name, Image: c.Image, Reason: "ContainerCreating"}
	})
	sent := len(w.statuses[uid])
	w.forget()
	a = w.agent()
	if err := a.Restore(rows(object("a"))); err != nil {
		t.Fatal(err)
	}
	w.until("adopted", func() bool { return slices.Contains(w.events, "start a") })
	w.container(a, uid, func(c *runtime.ContainerState) { // it runs, no probe has answered
		running(c)
		c.Ready, c.Started, c.Judged = false, false, false
	})
	w.container(a, uid, running)
	a.update(t, 11, nil)
	// Whatever the agent wanted to say of that it has said when a later change is reported.
	w.container(a, uid, func(c *runtime.ContainerState) { c.RestartCount = 7 })
	w.until("the later change", func() bool { return w.status(uid).GetContainerStatuses()[0].GetRestartCount() == 7 })
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.statuses[uid]) - sent; n != 1 {
		t.Errorf("%d reports after the restart: %v", n, w.statuses[uid][sent:])
	}
	for _, e := range w.events {
		if strings.HasPrefix(e, "stop") || strings.HasPrefix(e, "detach") || strings.HasPrefix(e, "release") {
			t.Errorf("%s", e)
		}
	}
}

func TestReadinessAfterARestartEndsWithAVerdict(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	w.until("the record is written", func() bool {
		b, err := os.ReadFile(filepath.Join(w.dir, uid+".json"))
		return err == nil && strings.Contains(string(b), `"Ready":true`)
	})
	a.stop()
	a = w.agent()
	if err := a.Restore(rows(object("a"))); err != nil {
		t.Fatal(err)
	}
	w.container(a, uid, func(c *runtime.ContainerState) { c.Ready, c.Judged = false, true })
	w.until("the verdict is reported", func() bool { return condition(w.status(uid), "Ready") == "False" })
}

func TestOnlyTheServiceTakesPodsWithoutRowsAway(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	a.stop()
	w.forget()
	a = w.agent()
	if err := a.Restore(nil); err != nil { // the journal lost it
		t.Fatal(err)
	}
	up(t, w, a, object("b")) // this update is a confirmation
	w.until("gone", func() bool { return w.boxes[uid] == nil && len(w.released[uid]) > 0 })
	w.until("at the version of the update", func() bool { l := w.released[uid]; return l[len(l)-1] == 10 })
	a.stop()

	w.forget()
	a = w.agent()
	if err := a.Restore(rows(object("c"))); err != nil { // a journal without b, and no service
		t.Fatal(err)
	}
	w.container(a, "c", running)
	w.untilReady("c")
	if calls := w.calls("b"); calls != "" {
		t.Errorf("b, without a word of the service: %q", calls)
	}
}

func TestFinishedPodGivesItsNetworkBack(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	p := object("a")
	never := "Never"
	p.Spec.RestartPolicy = &never
	uid := up(t, w, a, p)
	w.forget()
	w.container(a, uid, func(c *runtime.ContainerState) {
		c.Phase, c.Ready, c.Last = runtime.Terminated, false, &runtime.Exit{ID: c.ID}
	})
	w.until("released at the revision of its last status", func() bool {
		l := w.released[uid]
		return len(l) > 0 && l[len(l)-1] == w.revision && w.status(uid).GetPhase() == "Succeeded"
	})
	if got, want := withoutStatus(w.calls(uid)), "detach unprepare release"; got != want {
		t.Errorf("the order was %q, want %q", got, want)
	}
	if w.boxes[uid] == nil || w.status(uid).GetPodIp() == "" {
		t.Error("logs and addresses of the status are kept until the Pod is deleted")
	}
	// It stays finished over a restart.
	a.stop()
	w.forget()
	a = w.agent()
	a.update(t, 60, objects{p})
	up(t, w, a, object("b"))
	if got := withoutStatus(w.calls(uid)); strings.Contains(got, "address") || strings.Contains(got, "start") {
		t.Errorf("after a restart: %q", got)
	}
	a.update(t, 70, objects{deleting(p, 0)})
	w.until("deleted", func() bool { return w.deleted[uid] > 0 && w.boxes[uid] == nil })
}

func TestHostNetworkPodHasTheNodesAddresses(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	p := object("a")
	p.Spec.HostNetwork = true
	uid := up(t, w, a, p)
	if s := w.status(uid); s.GetPodIp() != "192.0.2.1" {
		t.Errorf("%v", s)
	}
	a.update(t, 20, objects{deleting(p, 0)})
	w.until("deleted", func() bool { return w.deleted[uid] > 0 })
	if got, want := withoutStatus(w.calls(uid)), "sandbox start stop remove-sandbox release delete"; got != want && got != want+" release" {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestUnknownImageStaysPendingWithTheReason(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	a.update(t, 10, objects{object("a")})
	w.container(a, "a", func(c *runtime.ContainerState) { c.Reason, c.Message = "ErrImageNeverPull", "no driver for it" })
	w.until("reported", func() bool {
		s := w.status("a")
		return s.GetPhase() == "Pending" && s.GetContainerStatuses()[0].GetState().GetWaiting().GetReason() == "ErrImageNeverPull"
	})
	p := object("a")
	p.Spec.Containers[0].Image = "example.com/other"
	a.update(t, 11, objects{p})
	w.until("the new image is given to the runtime", func() bool { return slices.Contains(w.events, "replace:example.com/other a") })
}

func TestCrashLoopKeepsTheNetwork(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	w.forget()
	for n := 1; n < 5; n++ {
		w.container(a, uid, func(c *runtime.ContainerState) {
			c.Phase, c.Reason, c.Ready, c.RestartCount, c.Previous = runtime.Waiting, "CrashLoopBackOff", false, n, &runtime.Exit{Code: 1, ID: c.ID}
		})
		w.until("reported", func() bool {
			s := w.status(uid)
			return s.GetContainerStatuses()[0].GetRestartCount() == int32(n) && s.GetPhase() == "Running" && condition(s, "Ready") == "False"
		})
	}
	if got := withoutStatus(w.calls(uid)); got != "" {
		t.Errorf("%q", got)
	}
}

func (s *Supervisor) latest(uid string) *objectv1.PodStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.workers[uid].report.latest()
}

func TestReportsCoalesceAndAreNotRepeated(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	w.set(func() { w.fail["status"] = errs.New(errs.Unavailable, "cluster is away"); w.events = nil })
	for n := range 50 {
		w.container(a, uid, func(c *runtime.ContainerState) { c.RestartCount = n + 1 })
	}
	w.until("an attempt", func() bool { return slices.Contains(w.events, "status a") })
	w.await("all is seen", func() bool { return a.latest(uid).GetContainerStatuses()[0].GetRestartCount() == 50 })
	sent := len(w.statuses[uid])
	w.set(func() { delete(w.fail, "status") })
	w.ticking(5*time.Second, "the newest is reported", func() bool { return w.status(uid).GetContainerStatuses()[0].GetRestartCount() == 50 })
	for range 20 {
		a.Changed(uid) // nothing new
	}
	a.Refresh() // somebody may have overwritten it: once more
	w.until("again", func() bool { return len(w.statuses[uid]) == sent+2 })
	if n := len(w.statuses[uid]) - sent; n != 2 {
		t.Errorf("%d reports", n)
	}
}

func TestBadRowsHarmNobody(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	evil := object("../evil")
	victim := filepath.Join(filepath.Dir(w.dir), "evil.json")
	if err := os.WriteFile(victim, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := a.Update(Update{Version: 10, Upserts: append(rows(evil, object("good")), nodestate.Workload{UID: "x", Namespace: "default", Name: "x", Pod: "\xff"})})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "default/x") {
		t.Errorf("%v", err)
	}
	w.container(a, "good", running)
	w.untilReady("good")
	w.until("the bad one says why", func() bool { return w.status("../evil").GetReason() == reasonInvalid })
	if calls := withoutStatus(w.calls("../evil")); calls != "" {
		t.Errorf("%q", calls)
	}
	if _, err := a.Find("default", "pod-good"); err != nil {
		t.Error(err)
	}
	if _, err := a.Find("default", "nobody"); !errs.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
	if p := a.Phases(); p["Running"] != 1 || p["Pending"] != 1 {
		t.Errorf("%v", p)
	}
	a.update(t, 11, nil, "../evil")
	w.await("the bad one is forgotten", func() bool { return a.Phases()["Pending"] == 0 })
	if _, err := os.Stat(victim); err != nil {
		t.Error(err)
	}
}

func TestAPodMadeAgainIsAnother(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	old := object("one")
	old.Metadata.Name = "web"
	uid := up(t, w, a, old)
	w.set(func() { w.hold[uid] = true })
	again := object("two")
	again.Metadata.Name = "web"
	if err := a.Update(Update{Version: 20, Upserts: rows(deleting(old, 30), again)}); err != nil {
		t.Fatal(err)
	}
	w.container(a, "two", running)
	w.untilReady("two") // while the other still stops
	if got, err := a.Find("default", "web"); got != "two" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	w.set(func() { delete(w.hold, uid) })
	w.until("the old one is gone", func() bool { return w.deleted[uid] > 0 })
}

func TestResyncRepairsWithoutAskingForPolicyAgain(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	w.forget()
	w.ticking(time.Hour, "looked at", func() bool { return slices.Contains(w.events, "attach a") })
	if got, want := withoutStatus(w.calls(uid)), "sandbox attach"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
