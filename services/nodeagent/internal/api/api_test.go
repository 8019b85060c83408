package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"podwire.dev/internal/errs"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	"podwire.dev/services/nodeagent/internal/runtime"
)

// fake is a node with one pod, default/web of UID web-uid.
type fake struct {
	exec func(ctx context.Context, where string, req runtime.ExecRequest) (int, error)
	logs func(ctx context.Context, req runtime.LogRequest, w io.Writer) error
}

func (f *fake) Find(namespace, name string) (string, error) {
	if namespace+"/"+name != "default/web" {
		return "", errs.New(errs.NotFound, "Pod %s/%s is not on this node", namespace, name)
	}
	return "web-uid", nil
}

func (f *fake) Exec(ctx context.Context, uid string, req runtime.ExecRequest) (int, error) {
	return f.exec(ctx, "pod "+uid+"/"+req.Container, req)
}

func (f *fake) HostExec(ctx context.Context, req runtime.ExecRequest) (int, error) {
	return f.exec(ctx, "node", req)
}

func (f *fake) Logs(ctx context.Context, uid string, req runtime.LogRequest, w io.Writer) error {
	if uid != "web-uid" {
		return errs.New(errs.Internal, "logs of %s", uid)
	}
	return f.logs(ctx, req, w)
}

// dial serves an Agent on a socket of the test, and waits for all of its goroutines at the end.
func dial(t *testing.T, f *fake) nodeagentv1.AgentServiceClient {
	t.Helper()
	var goroutines sync.WaitGroup
	agent := New(Config{Node: "node-1", Pods: f, Runtime: f, Go: func(_ string, fn func(context.Context) error) {
		goroutines.Go(func() {
			if err := fn(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}})
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	nodeagentv1.RegisterAgentServiceServer(server, agent)
	goroutines.Go(func() { _ = server.Serve(l) })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		goroutines.Wait()
	})
	return nodeagentv1.NewAgentServiceClient(conn)
}

// talk is one Exec: what is sent, and what came back.
type talk struct {
	out, err bytes.Buffer
	code     int32
	failure  error
}

func exec(t *testing.T, c nodeagentv1.AgentServiceClient, messages ...*nodeagentv1.ExecRequest) *talk {
	t.Helper()
	stream, err := c.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	r := &talk{code: -1}
	for {
		m, err := stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				r.failure = err
			}
			return r
		}
		if r.code >= 0 {
			t.Errorf("%v after the exit code", m)
		}
		r.out.Write(m.GetStdout())
		r.err.Write(m.GetStderr())
		if v, ok := m.GetMessage().(*nodeagentv1.ExecResponse_ExitCode); ok {
			r.code = v.ExitCode
		}
	}
}

func begin(namespace, pod, container string, command ...string) *nodeagentv1.ExecRequest {
	return &nodeagentv1.ExecRequest{Message: &nodeagentv1.ExecRequest_Start{Start: &nodeagentv1.ExecStart{
		Namespace: namespace, Pod: pod, Container: container, Command: command,
	}}}
}

func stdin(text string) *nodeagentv1.ExecRequest {
	return &nodeagentv1.ExecRequest{Message: &nodeagentv1.ExecRequest_Stdin{Stdin: []byte(text)}}
}

var closed = &nodeagentv1.ExecRequest{Message: &nodeagentv1.ExecRequest_StdinClosed{StdinClosed: true}}

// cat copies stdin to stdout, says where it ran on stderr, and ends with 7.
func cat(_ context.Context, where string, req runtime.ExecRequest) (int, error) {
	if _, err := io.Copy(req.Stdout, req.Stdin); err != nil {
		return 0, err
	}
	fmt.Fprintf(req.Stderr, "%s %q", where, req.Command)
	return 7, nil
}

func TestExecPassesEverythingThrough(t *testing.T) {
	c := dial(t, &fake{exec: cat})
	for where, start := range map[string]*nodeagentv1.ExecRequest{
		`pod web-uid/ ["a" "b"]`:     begin("default", "web", "", "a", "b"),
		`pod web-uid/side ["probe"]`: begin("default", "web", "side", "probe"),
		`node ["uname"]`:             begin("", "", "", "uname"),
	} {
		r := exec(t, c, start, stdin("one "), stdin("two"), closed)
		if r.failure != nil || r.code != 7 || r.out.String() != "one two" || r.err.String() != where {
			t.Errorf("%s: %+v", where, r)
		}
	}
}

func TestExecOutputIsSentInPieces(t *testing.T) {
	big := bytes.Repeat([]byte("podwire "), 1<<18) // 2 MiB at once, more than one message may have
	c := dial(t, &fake{exec: func(_ context.Context, _ string, req runtime.ExecRequest) (int, error) {
		var both sync.WaitGroup
		both.Go(func() { _, _ = req.Stdout.Write(big) })
		both.Go(func() { _, _ = req.Stderr.Write(big) })
		both.Wait()
		return 0, nil
	}})
	r := exec(t, c, begin("", "", "", "big"))
	if r.failure != nil || !bytes.Equal(r.out.Bytes(), big) || !bytes.Equal(r.err.Bytes(), big) {
		t.Errorf("%d and %d bytes, %v", r.out.Len(), r.err.Len(), r.failure)
	}
}

func TestExecEndsBeforeItsStdin(t *testing.T) {
	c := dial(t, &fake{exec: func(context.Context, string, runtime.ExecRequest) (int, error) { return 3, nil }})
	r := exec(t, c, begin("", "", "", "true"), stdin("nobody reads this"))
	if r.failure != nil || r.code != 3 {
		t.Errorf("%+v", r)
	}
}

func TestExecIsKilledWithItsCall(t *testing.T) {
	ran, killed := make(chan struct{}), make(chan struct{})
	c := dial(t, &fake{exec: func(ctx context.Context, _ string, req runtime.ExecRequest) (int, error) {
		close(ran)
		<-ctx.Done()
		close(killed)
		return 0, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := c.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(begin("", "", "", "sleep")); err != nil {
		t.Fatal(err)
	}
	<-ran
	cancel()
	<-killed
}

func TestExecRefusals(t *testing.T) {
	f := &fake{exec: func(context.Context, string, runtime.ExecRequest) (int, error) {
		return 0, errs.New(errs.Unavailable, "container main does not run")
	}}
	c := dial(t, f)
	for want, first := range map[string]*nodeagentv1.ExecRequest{
		"start: must be the first message":       stdin("x"),
		"start.command: is required":             begin("default", "web", ""),
		"start.pod: is required":                 begin("default", "", "", "true"),
		"start.namespace: is required":           begin("", "web", "", "true"),
		`start.container: "main": must be empty`: begin("", "", "main", "true"),
		"Pod default/other is not on this node":  begin("default", "other", "", "true"),
		"exec on node node-1":                    begin("default", "other", "", "true"),
		"container main does not run":            begin("default", "web", "", "true"),
	} {
		if r := exec(t, c, first); r.failure == nil || !strings.Contains(r.failure.Error(), want) {
			t.Errorf("%v, want %q", r.failure, want)
		}
	}
}

func TestLogs(t *testing.T) {
	var got runtime.LogRequest
	c := dial(t, &fake{logs: func(_ context.Context, req runtime.LogRequest, w io.Writer) error {
		got = req
		_, err := io.WriteString(w, strings.Repeat("line\n", 40_000))
		return err
	}})
	two := int32(2)
	for _, r := range []struct {
		req  *nodeagentv1.LogsRequest
		want runtime.LogRequest
	}{
		{&nodeagentv1.LogsRequest{}, runtime.LogRequest{Tail: -1}},
		{&nodeagentv1.LogsRequest{Follow: true, TailLines: &two}, runtime.LogRequest{Tail: 2, Until: runtime.UntilStopped}},
		{&nodeagentv1.LogsRequest{Previous: true, Container: "side"}, runtime.LogRequest{Container: "side", Tail: -1, Run: runtime.PreviousRun}},
	} {
		r.req.Namespace, r.req.Pod = "default", "web"
		stream, err := c.Logs(t.Context(), r.req)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			size += len(m.GetData())
		}
		if got != r.want || size != 200_000 {
			t.Errorf("%v: %+v, %d bytes", r.req, got, size)
		}
	}
	less := int32(-1)
	for want, req := range map[string]*nodeagentv1.LogsRequest{
		"pod: is required":                       {Namespace: "default"},
		"tail_lines: must not be negative":       {Namespace: "default", Pod: "web", TailLines: &less},
		"follow: must not be set":                {Namespace: "default", Pod: "web", Follow: true, Previous: true},
		"Pod default/nobody is not on this node": {Namespace: "default", Pod: "nobody"},
	} {
		stream, err := c.Logs(t.Context(), req)
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
