package pods

import (
	"testing"
	"time"

	"podwire.dev/internal/errs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/nodeagent/internal/runtime"
)

func limited(uid string, seconds int32) *objectv1.Pod {
	p := object(uid)
	p.Spec.ActiveDeadlineSeconds = &seconds
	return p
}

func TestAPodFailsAtItsDeadline(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, limited("a", 40))
	failed := func() bool { return w.status(uid).GetPhase() == "Failed" }
	w.ticking(40*time.Second, "the pod has failed", failed)
	w.until("its network is given back", func() bool { return len(w.released[uid]) > 0 && len(w.links) == 0 })
	w.mu.Lock()
	s, box := w.status(uid), w.boxes[uid]
	if s.GetReason() != "DeadlineExceeded" || s.GetMessage() == "" || condition(s, "Ready") != "False" {
		t.Errorf("status: %v", s)
	}
	if len(box.grace) != 1 || box.grace[0] != 30*time.Second {
		t.Errorf("its containers got %v to end, and terminationGracePeriodSeconds is 30", box.grace)
	}
	if len(w.deleted) != 0 {
		t.Error("the Pod was deleted: it has only failed")
	}
	w.mu.Unlock()

	a.stop()
	w.forget()
	b := w.agent()
	if err := b.Restore(rows(limited("a", 40))); err != nil {
		t.Fatal(err)
	}
	b.update(t, 11, objects{limited("a", 40), object("b")})
	w.container(b, "b", running)
	w.untilReady("b")
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.status(uid); s.GetPhase() != "Failed" || s.GetReason() != "DeadlineExceeded" {
		t.Errorf("after a restart: %v", s)
	}
	for _, e := range w.events {
		if e == "start "+uid || e == "attach "+uid {
			t.Errorf("after a restart: %s", e)
		}
	}
}

func TestAPodThatCannotStartFailsAtItsDeadline(t *testing.T) {
	for _, call := range []string{"address", "start"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			w.fail[call] = errs.New(errs.Exhausted, "none of 63 is free")
			a := w.agent()
			a.update(t, 10, objects{limited("a", 20)})
			w.ticking(20*time.Second, "the pod has failed", func() bool {
				return w.status("a").GetPhase() == "Failed" && w.status("a").GetReason() == "DeadlineExceeded"
			})
			w.until("its network is given back", func() bool { return len(w.released["a"]) > 0 && len(w.links) == 0 })
		})
	}
}

func TestADeadlineIsBroughtNearer(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	uid := up(t, w, a, object("a"))
	w.set(func() { w.now = w.now.Add(time.Minute) })
	a.update(t, 11, objects{limited(uid, 30)}) // which is over
	w.until("the pod has failed", func() bool { return w.status(uid).GetReason() == "DeadlineExceeded" })
}

func TestADeadlineAfterTheEndIsNone(t *testing.T) {
	w := newWorld(t)
	a := w.agent()
	p := limited("a", 30)
	p.Spec.RestartPolicy = ptr("Never")
	uid := up(t, w, a, p)
	w.container(a, uid, func(c *runtime.ContainerState) {
		c.Phase, c.Ready, c.Last = runtime.Terminated, false, &runtime.Exit{}
	})
	w.until("it has succeeded", func() bool { return w.status(uid).GetPhase() == "Succeeded" && len(w.released[uid]) > 0 })
	w.set(func() { w.now = w.now.Add(time.Hour) })
	a.Changed(uid)
	a.update(t, 12, objects{object("b")})
	w.container(a, "b", running)
	w.untilReady("b")
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.status(uid); s.GetPhase() != "Succeeded" || s.GetReason() != "" {
		t.Errorf("status: %v", s)
	}
}
