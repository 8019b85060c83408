package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
)

const execObjects = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec: {nodeName: node-1, containers: [{name: c, image: podwire.dev/echo}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pending, namespace: default}
spec: {containers: [{name: c, image: podwire.dev/echo}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unscheduled, namespace: default}
spec: {containers: [{name: c, image: podwire.dev/echo}]}
status: {phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: Unschedulable, message: "0 of 2 nodes can run it: 2 do not match nodeSelector"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pinned, namespace: default}
spec: {nodeName: node-9, containers: [{name: c, image: podwire.dev/echo}]}
status: {phase: Pending}
`

// agent is an agent whose programs are cat, which echoes its input, fail, which exits with 7, and talk, which says where it
// runs, on both outputs.
func agent(t *testing.T) func(nodeagentv1.AgentService_ExecServer) error {
	return func(stream nodeagentv1.AgentService_ExecServer) error {
		first, err := stream.Recv()
		if err != nil {
			return err
		}
		start := first.GetStart()
		end := func(code int32) error {
			return stream.Send(&nodeagentv1.ExecResponse{Message: &nodeagentv1.ExecResponse_ExitCode{ExitCode: code}})
		}
		say := func(text string) error {
			return stream.Send(&nodeagentv1.ExecResponse{Message: &nodeagentv1.ExecResponse_Stdout{Stdout: []byte(text)}})
		}
		switch start.GetCommand()[0] {
		case "fail":
			return end(7)
		case "vanish":
			return nil
		case "talk":
			where := strings.Join([]string{start.GetNamespace(), start.GetPod(), start.GetContainer(), strings.Join(start.GetCommand(), " ")}, "|")
			warn := &nodeagentv1.ExecResponse{Message: &nodeagentv1.ExecResponse_Stderr{Stderr: []byte("warned\n")}}
			return errors.Join(say(where+"\n"), stream.Send(warn), end(0))
		case "cat":
			for {
				req, err := stream.Recv()
				switch {
				case errors.Is(err, io.EOF) || req.GetStdinClosed():
					return end(0)
				case err != nil:
					return err
				}
				if err := say(string(req.GetStdin())); err != nil {
					return err
				}
			}
		}
		t.Errorf("what is %q?", start.GetCommand())
		return end(127)
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	f := newFake(t, "node-1", "node-2")
	f.objects, f.exec = f.load(execObjects), agent(t)
	for _, tt := range []struct {
		name, line, in, out, err string
		status                   int
	}{
		{"output and place", "exec web -- talk -l --x", "", "default|web||talk -l --x\n", "warned\n", 0},
		{"container", "exec -c c pod/web -- talk", "", "default|web|c|talk\n", "warned\n", 0},
		{"flags after the pod", "exec web -n default -c c -- talk", "", "default|web|c|talk\n", "warned\n", 0},
		{"without dashes", "exec web talk", "", "default|web||talk\n", "warned\n", 0},
		{"on a node", "exec --node node-2 -- talk", "", "|||talk\n", "warned\n", 0},
		{"stdin", "exec web -- cat", strings.Repeat("0123456789", 10_000), strings.Repeat("0123456789", 10_000), "", 0},
		{"status", "exec web -- fail", "", "", "", 7},
		{"no status", "exec web -- vanish", "", "", "podwire: exec: the agent ended the stream without an exit status\n", 1},
		{"no pod", "exec nope -- talk", "", "", "podwire: Pod default/nope not found\n", 1},
		{"no node", "exec --node node-9 -- talk", "", "", "podwire: node \"node-9\": cluster knows no agent of that name that is alive\n", 1},
		{"pending", "exec pending -- talk", "", "", "podwire: pod pending runs on no node yet: phase Pending (`podwire wait pod/pending` waits for it)\n", 1},
		{"unscheduled", "exec unscheduled -- talk", "", "", "podwire: pod unscheduled runs on no node yet: phase Pending, PodScheduled: 0 of 2 nodes can run it: 2 do not match nodeSelector " +
			"(`podwire wait pod/unscheduled` waits for it)\n", 1},
		{"pinned to a node that is not there", "exec pinned -- talk", "", "", "podwire: pod pinned is bound to node node-9 (spec.nodeName), of which cluster knows no agent that is alive: " +
			"phase Pending; start that node's agent, or delete the pod and apply it with another nodeName or none\n", 1},
		{"not a pod", "exec svc/web -- talk", "", "", "podwire: \"svc/web\": must be a pod's name\n", 2},
		{"two pods", "exec web two -- talk", "", "", "podwire: exec POD -- CMD...: exactly one POD before --\n", 2},
		{"pod and node", "exec web --node node-1 -- talk", "", "", "podwire: no POD goes with --node or --outside; the command begins after --\n", 2},
		{"node and outside", "exec --outside --node node-1 -- talk", "", "", "podwire: either --node or --outside\n", 2},
		{"no command", "exec web", "", "", "podwire: exec POD -- CMD...: exactly one POD before --\n", 2},
		{"no command on a node", "exec --node node-1", "", "", "podwire: which command? exec POD -- CMD...\n", 2},
		{"a flag of the command", "exec web ls -l", "", "", "podwire: unknown shorthand flag: 'l' in -l; flags of the command to run stand after --, as in exec POD -- ls -l\n", 2},
		{"no outside", "exec --outside -- true", "", "", "podwire: podwire is not up\n", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := f.run(t.Context(), strings.NewReader(tt.in), strings.Fields(tt.line)...)
			if got.status != tt.status || got.out != tt.out || got.err != tt.err {
				t.Errorf("%s: status %d, stdout %.200q, stderr %.200q", tt.line, got.status, got.out, got.err)
			}
		})
	}
}

// TestExecOutside runs commands in a network namespace of its own, which begins with a loopback that is down.
func TestExecOutside(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	// cat ends with its input; echo says that the namespace is made.
	holder := exec.Command("unshare", "--net", "sh", "-c", "echo; exec cat")
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	made, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); _ = holder.Wait() })
	if _, err := made.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f.outside = filepath.Join("/proc", strconv.Itoa(holder.Process.Pid), "ns", "net")
	for _, tt := range []struct {
		name   string
		args   []string
		in     string
		out    string
		status int
	}{
		{"its links", []string{"sh", "-c", "grep -c : /proc/net/dev"}, "", "1\n", 0},
		{"stdin", []string{"cat"}, "data", "data", 0},
		{"status", []string{"sh", "-c", "exit 9"}, "", "", 9},
		{"signal", []string{"sh", "-c", "kill -TERM $$"}, "", "", 143},
		{"no such program", []string{"no-such-program"}, "", "", 127},
		{"no such file", []string{"./no-such-program"}, "", "", 127},
		{"not executable", []string{"/etc/passwd"}, "", "", 126},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := f.run(t.Context(), strings.NewReader(tt.in), append([]string{"exec", "--outside", "--"}, tt.args...)...)
			if got.status != tt.status || got.out != tt.out {
				t.Errorf("status %d, stdout %q, stderr %q", got.status, got.out, got.err)
			}
		})
	}
}

func TestExecOutputThatFailsEndsTheCommand(t *testing.T) {
	t.Parallel()
	f := newFake(t, "node-1")
	f.exec = agent(t)
	a := &app{Session: f, in: strings.NewReader(""), out: brokenPipe{}, err: &bytes.Buffer{}, kinds: f.kinds}
	conn, err := f.DialAgent(t.Context(), "node-1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = a.execAt(context.WithoutCancel(t.Context()), conn, &nodeagentv1.ExecStart{Command: []string{"talk"}})
	if !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }
