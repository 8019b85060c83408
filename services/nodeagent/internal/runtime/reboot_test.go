package runtime

import (
	"testing"
	"time"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// reboot takes away what a restart of the machine takes away: processes and pins.
func (n *node) reboot(uids ...string) {
	n.t.Helper()
	n.end()
	for _, uid := range uids {
		path := n.netns(uid)
		if err := killAll(path); err != nil {
			n.t.Fatal(err)
		}
		for {
			pids, err := processesIn(path)
			if err != nil {
				n.t.Fatal(err)
			}
			if len(pids) == 0 {
				break
			}
		}
		if err := unpin(path); err != nil {
			n.t.Fatal(err)
		}
	}
}

func TestAfterARebootContainersWaitForTheirNetwork(t *testing.T) {
	root := t.TempDir()
	n := newNode(t, root, nil)
	web := echoPod("web")
	once := shellPod("once", "exec sleep 1000")
	once.RestartPolicy = podspec.RestartNever
	n.start(web)
	n.start(once)
	n.until(web.UID, "running", running)
	n.until(once.UID, "running", running)
	n.reboot(web.UID, once.UID)

	n = newNode(t, root, nil)
	n.start(echoPod("other"))
	n.until("other-uid", "running", running)
	if s, err := n.State(web.UID); err != nil || s.Containers[0].Phase != Waiting || s.Containers[0].ID != "" {
		t.Errorf("before its sandbox is there: %+v, %v", s, err)
	}
	n.start(web)
	if s := n.until(web.UID, "running again", running); s.Containers[0].RestartCount != 1 {
		t.Errorf("%+v", s.Containers[0])
	}
	// What is to be ended needs no sandbox for that.
	if err := n.Stop(t.Context(), once.UID, time.Second); err != nil {
		t.Fatal(err)
	}
	if s, err := n.State(once.UID); err != nil || s.Containers[0].Phase != Terminated {
		t.Errorf("%+v, %v", s, err)
	}
	if err := n.RemoveSandbox(t.Context(), once.UID); err != nil {
		t.Error(err)
	}
}
