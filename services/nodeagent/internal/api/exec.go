package api

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/rpc"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	"podwire.dev/services/nodeagent/internal/runtime"
)

type execStream = grpc.BidiStreamingServer[nodeagentv1.ExecRequest, nodeagentv1.ExecResponse]

// Exec runs a command in a pod of this node, or on the node itself where no pod is named. The first message is a start;
// stdin follows, and ends with stdin_closed or with the client's half of the stream. The last message is the exit code.
// When the call ends first, the command is killed.
func (a *Agent) Exec(stream execStream) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return errs.WrapAs(errs.Invalid, err, "exec: no start")
	}
	start := first.GetStart()
	run, err := a.command(start)
	if err != nil {
		return err
	}
	a.cfg.Log.InfoContext(ctx, "exec", "identity", rpc.FromContext(ctx).String(),
		"namespace", start.GetNamespace(), "pod", start.GetPod(), "container", start.GetContainer(), "program", start.GetCommand()[0])

	stdin, feed := io.Pipe()
	// It may wait in Recv until the call is over, which is after the command, so this function cannot wait for it.
	a.cfg.Go("exec stdin", func(context.Context) error {
		_ = feed.CloseWithError(receive(stream, feed)) // never fails
		return nil
	})
	var mu sync.Mutex
	code, err := run(ctx, runtime.ExecRequest{
		Container: start.GetContainer(), Command: start.GetCommand(), Stdin: stdin,
		Stdout: sender{&mu, func(p []byte) error {
			return stream.Send(&nodeagentv1.ExecResponse{Message: &nodeagentv1.ExecResponse_Stdout{Stdout: p}})
		}},
		Stderr: sender{&mu, func(p []byte) error {
			return stream.Send(&nodeagentv1.ExecResponse{Message: &nodeagentv1.ExecResponse_Stderr{Stderr: p}})
		}},
	})
	_ = stdin.Close() // what comes now has no reader; the feeder must not wait for one
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	return stream.Send(&nodeagentv1.ExecResponse{Message: &nodeagentv1.ExecResponse_ExitCode{ExitCode: int32(code)}})
}

// command checks a start, and gives what runs it.
func (a *Agent) command(start *nodeagentv1.ExecStart) (func(context.Context, runtime.ExecRequest) (int, error), error) {
	if start == nil {
		return nil, errs.InvalidFields("exec", []errs.Violation{{Field: "start", Rule: "must be the first message"}})
	}
	var bad []errs.Violation
	if len(start.GetCommand()) == 0 || start.GetCommand()[0] == "" {
		bad = append(bad, errs.Violation{Field: "start.command", Rule: "is required"})
	}
	onNode := start.GetNamespace() == "" && start.GetPod() == ""
	if !onNode {
		bad = append(bad, required("start.namespace", start.GetNamespace(), "start.pod", start.GetPod())...)
	} else if start.GetContainer() != "" {
		bad = append(bad, errs.Violation{Field: "start.container", Value: start.GetContainer(), Rule: "must be empty without a pod: the node has no containers"})
	}
	if err := errs.InvalidFields("exec", bad); err != nil {
		return nil, err
	}
	if onNode {
		return a.cfg.Runtime.HostExec, nil
	}
	uid, err := a.cfg.Pods.Find(start.GetNamespace(), start.GetPod())
	if err != nil {
		return nil, errs.Wrap(err, "exec on node %s", a.cfg.Node)
	}
	return func(ctx context.Context, req runtime.ExecRequest) (int, error) {
		return a.cfg.Runtime.Exec(ctx, uid, req)
	}, nil
}

// receive passes stdin on until it ends, the command does not want it, or the call is over. nil is its end.
func receive(stream execStream, to io.Writer) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch v := m.GetMessage().(type) {
		case *nodeagentv1.ExecRequest_Stdin:
			if _, err := to.Write(v.Stdin); err != nil {
				return err
			}
		case *nodeagentv1.ExecRequest_StdinClosed:
			if v.StdinClosed {
				return nil
			}
		default:
			return errs.New(errs.Invalid, "exec: only stdin may follow the start")
		}
	}
}
