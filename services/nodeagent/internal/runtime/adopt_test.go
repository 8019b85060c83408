package runtime

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
	"podwire.dev/services/nodeagent/internal/shim"
)

// abandon is an agent that starts a Pod, says so, and waits to be killed.
func abandon(root string) int {
	d, err := NewProcess(config(root, nil))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	ctx := context.Background()
	go func() { _ = d.Run(ctx) }()
	p := echoPod("orphan")
	if _, err = d.CreateSandbox(ctx, p); err == nil {
		err = d.StartContainers(ctx, p, loopback)
	}
	for err == nil {
		var s PodState
		if s, err = d.State(p.UID); err == nil && running(s) {
			fmt.Println("started")
			<-time.After(time.Hour) // not select{}: the runtime may call that a deadlock, and end
		}
	}
	fmt.Println(err)
	return 1
}

func TestContainersSurviveTheAgentAndAreAdopted(t *testing.T) {
	root := t.TempDir()
	agent := exec.Command("/proc/self/exe", "abandon", root)
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("started\n"))
	if _, err := io.ReadFull(out, line); err != nil {
		t.Fatalf("%q %v", line, err)
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = agent.Wait()

	n := newNode(t, root, nil)
	if l := n.List(); len(l) != 1 || !l[0].Started || l[0].Pod.Name != "orphan" || len(l[0].Net.PodIPs) != 1 {
		t.Fatalf("%+v", l)
	}
	s := n.until("orphan-uid", "adopted", running)
	if s.Containers[0].RestartCount != 0 {
		t.Errorf("it was restarted: %+v", s.Containers[0])
	}
	if code, out := n.exec("orphan-uid", "probe", "tcp", "127.0.0.1:8080"); code != 0 {
		t.Errorf("exit %d: %s", code, out)
	}
	path := n.netns("orphan-uid")
	pids, err := processesIn(path)
	if err != nil || len(pids) != 2 {
		t.Errorf("shim and container are to be in %s: %v, %v", path, pids, err)
	}
	// Everything that anybody could kill, by what the pin tells.
	if err := killAll(path); err != nil {
		t.Fatal(err)
	}
	n.until("orphan-uid", "restarted after its shim was killed", func(s PodState) bool {
		return running(s) && s.Containers[0].RestartCount == 1
	})
}

func TestShimTakesItsContainerAlong(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	p := shellPod("take", "sleep 1000 & exec sleep 1000")
	p.RestartPolicy = podspec.RestartNever
	n.start(p)
	n.until("take-uid", "running", running)
	pod, err := n.pod("take-uid")
	if err != nil {
		t.Fatal(err)
	}
	victim, err := os.FindProcess(pod.containers[0].shim())
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	s := n.until("take-uid", "terminated", terminated)
	if s.Containers[0].Reason != shim.ReasonLost {
		t.Errorf("%+v", s.Containers[0])
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, err := processesIn(n.netns("take-uid"))
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("processes are left: " + fmt.Sprint(pids))
		}
	}
}
