package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"podwire.dev/cmd/podwire/internal/cli/describe"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	nodeagent "podwire.dev/services/nodeagent/app"
)

// execOptions are the flags of exec.
type execOptions struct {
	namespace, container, node string
	outside                    bool
}

func (a *app) execCommand() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec [-n NS] POD -- CMD... | --node NODE -- CMD... | --outside -- CMD...",
		Short: "run a command in a pod, on a node, or outside of the cluster",
		Long: "Runs a command with this command's stdin, stdout and stderr, and exits with its status: 127 where there is no such\n" +
			"program, 128+N where signal N ended it. In every place `probe` is built in: probe tcp|udp|http|hold|resolve TARGET.",
		Example: "  podwire exec client-1 -- probe tcp demo-service:80\n  podwire exec --node node-1 -- nft list ruleset\n" +
			"  podwire exec --outside -- probe http http://192.0.2.1:30007/",
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return session.Usage("%v; flags of the command to run stand after --, as in exec POD -- ls -l", err)
	})
	namespaceFlag(cmd, &o.namespace)
	cmd.Flags().StringVarP(&o.container, "container", "c", "", "container; default: the pod's first")
	cmd.Flags().StringVar(&o.node, "node", "", "run on the `NODE` itself")
	cmd.Flags().BoolVar(&o.outside, "outside", false, "run outside of the cluster: in the namespace that `podwire up` made, or with --connect on this machine")
	cmd.RunE = a.traced("exec", func(ctx context.Context, args []string) error {
		return a.exec(ctx, o, args, cmd.ArgsLenAtDash())
	})
	return cmd
}

func (a *app) exec(ctx context.Context, o execOptions, args []string, dash int) error {
	elsewhere := o.node != "" || o.outside
	switch {
	case o.node != "" && o.outside:
		return session.Usage("either --node or --outside")
	case elsewhere && dash > 0:
		return session.Usage("no POD goes with --node or --outside; the command begins after --")
	case !elsewhere && dash != 1 && (dash != -1 || len(args) < 2):
		return session.Usage("exec POD -- CMD...: exactly one POD before --")
	}
	command := args
	if !elsewhere {
		command = args[1:]
	}
	if len(command) == 0 {
		return session.Usage("which command? exec POD -- CMD...")
	}
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(caught)
	if o.outside {
		return a.execOutside(ctx, command, caught)
	}
	start := &nodeagentv1.ExecStart{Container: o.container, Command: command}
	dial := func() (*grpc.ClientConn, error) { return a.DialAgent(ctx, o.node) }
	if o.node == "" {
		pod, err := a.podNode(ctx, o.namespace, args[0])
		if err != nil {
			return err
		}
		start.Namespace, start.Pod = pod.GetMetadata().GetNamespace(), pod.GetMetadata().GetName()
		dial = func() (*grpc.ClientConn, error) { return a.dialPod(ctx, pod) }
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	err = a.execAt(ctx, conn, start)
	var over *session.Exit
	select {
	case sig := <-caught:
		// The command ended with the stream; its status is lost, so the signal is.
		if err != nil && !errors.As(err, &over) {
			return exited(signalled(sig))
		}
	default:
	}
	return err
}

// signalBase is what a shell adds to a signal's number in the status of what it ended.
const signalBase = 128

func signalled(sig os.Signal) int {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return session.ExitFailure
	}
	return signalBase + int(number)
}

// podNode finds a pod that has a node.
func (a *app) podNode(ctx context.Context, namespace, name string) (*objectv1.Pod, error) {
	c := a.connections()
	defer c.close()
	ctx, cancel := bound(ctx)
	defer cancel()
	k, err := a.kind("pod")
	if err != nil {
		return nil, err
	}
	if given, rest, ok := strings.Cut(name, "/"); ok { // pod/NAME, as kubectl has it
		if of, err := a.kind(given); err != nil || of.Name != k.Name {
			return nil, session.Usage("%q: must be a pod's name", name)
		}
		name = rest
	}
	obj, err := c.objects().Get(ctx, k, namespaceOf(k, namespace), name)
	if err != nil {
		return nil, err
	}
	pod, ok := obj.(*objectv1.Pod)
	if member := pod.GetMetadata().GetAnnotations()[describe.AnnotationMember]; member != "" {
		return nil, errs.New(errs.Invalid, "pod %s is a replica of the service %s, a process of its own that no node runs:"+
			" there is nothing to enter, and its log is the service's (`podwire status` shows the replica)", name, member)
	}
	if !ok || pod.GetSpec().GetNodeName() == "" {
		return nil, errs.New(errs.Unavailable, "pod %s runs on no node yet: %s (`podwire wait pod/%s` waits for it)", name, describeState(obj), name)
	}
	return pod, nil
}

// dialPod connects to the agent of a pod's node.
func (a *app) dialPod(ctx context.Context, pod *objectv1.Pod) (*grpc.ClientConn, error) {
	conn, err := a.DialAgent(ctx, pod.GetSpec().GetNodeName())
	if errs.Is(err, errs.NotFound) {
		return nil, errs.New(errs.Unavailable, "pod %s is bound to node %s (spec.nodeName), of which cluster knows no agent that is alive: %s; "+
			"start that node's agent, or delete the pod and apply it with another nodeName or none",
			pod.GetMetadata().GetName(), pod.GetSpec().GetNodeName(), describeState(pod))
	}
	return conn, err
}

// execAt runs a command through an agent, and ends as the command does.
func (a *app) execAt(ctx context.Context, conn *grpc.ClientConn, start *nodeagentv1.ExecStart) error {
	stream, err := nodeagentv1.NewAgentServiceClient(conn).Exec(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&nodeagentv1.ExecRequest{Message: &nodeagentv1.ExecRequest_Start{Start: start}}); err != nil {
		return err
	}
	go sendInput(stream, a.in) // ends with stdin or the stream; a read that blocks ends with the process
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errs.New(errs.Unavailable, "exec: the agent ended the stream without an exit status")
		}
		if err != nil {
			return err
		}
		switch m := resp.GetMessage().(type) {
		case *nodeagentv1.ExecResponse_Stdout:
			_, err = a.out.Write(m.Stdout)
		case *nodeagentv1.ExecResponse_Stderr:
			_, err = a.err.Write(m.Stderr)
		case *nodeagentv1.ExecResponse_ExitCode:
			return exited(int(m.ExitCode))
		}
		if err != nil {
			return errs.WrapAs(errs.Internal, err, "exec: output")
		}
	}
}

func exited(code int) error {
	if code == 0 {
		return nil
	}
	return &session.Exit{Status: code}
}

// pieceSize is how much stdin goes into one message, in bytes.
const pieceSize = 32 << 10

// sendInput passes stdin on. Errors of the stream are Recv's to report.
func sendInput(stream grpc.BidiStreamingClient[nodeagentv1.ExecRequest, nodeagentv1.ExecResponse], in io.Reader) {
	buf := make([]byte, pieceSize)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			piece := append([]byte(nil), buf[:n]...)
			if stream.Send(&nodeagentv1.ExecRequest{Message: &nodeagentv1.ExecRequest_Stdin{Stdin: piece}}) != nil {
				return
			}
		}
		if err != nil {
			_ = stream.Send(&nodeagentv1.ExecRequest{Message: &nodeagentv1.ExecRequest_StdinClosed{StdinClosed: true}})
			_ = stream.CloseSend()
			return
		}
	}
}

// execOutside runs a command outside of the cluster. The thread that enters the namespace is never used again.
func (a *app) execOutside(ctx context.Context, command []string, caught <-chan os.Signal) error {
	path, err := a.OutsideNetNS()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // the thread ends with the goroutine, since it stays locked
		runtime.LockOSThread()
		done <- a.runIn(ctx, path, command, caught)
	}()
	return <-done
}

// stopWait is how long a command that was signalled gets to end before it is killed.
const stopWait = 10 * time.Second

func (a *app) runIn(ctx context.Context, netns string, command []string, caught <-chan os.Signal) error {
	if err := enter(netns); err != nil {
		return err
	}
	if command[0] == "probe" {
		self, err := os.Executable()
		if err != nil {
			return errs.WrapAs(errs.Internal, err, "exec --outside")
		}
		command = append([]string{self}, command...)
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	// The signal that ended ctx is the command's to handle.
	cmd.Cancel = func() error {
		select {
		case sig := <-caught:
			return cmd.Process.Signal(sig)
		case <-time.After(retryPause):
			return cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	cmd.WaitDelay = stopWait
	err := cmd.Run()
	var failed *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &failed):
		if ws, ok := failed.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return exited(signalBase + int(ws.Signal()))
		}
		return exited(failed.ExitCode())
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return &session.Exit{Status: notFound, Err: errs.WrapAs(errs.NotFound, err, "exec --outside")}
	case errors.Is(err, fs.ErrPermission):
		return &session.Exit{Status: notExecutable, Err: errs.WrapAs(errs.Denied, err, "exec --outside")}
	}
	return errs.WrapAs(errs.Internal, err, "exec --outside: %s", command[0])
}

// enter moves the calling thread into a network namespace; an empty path leaves it where it is.
func enter(netns string) error {
	if netns == "" {
		return nil
	}
	f, err := os.Open(netns)
	if err != nil {
		return errs.WrapAs(errs.Unavailable, err, "exec --outside")
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return errs.WrapAs(errs.Denied, err, "exec --outside: enter %s (needs root)", netns)
	}
	return nil
}

// What a shell exits with where it cannot run a program.
const (
	notExecutable = 126
	notFound      = 127
)

// probeCommand is `probe` for exec --outside, which runs this program again inside the namespace.
func (a *app) probeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "probe", Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return exited(nodeagent.Probe(cmd.Context(), args, a.out, a.err))
		},
	}
}

// logsOptions are the flags of logs.
type logsOptions struct {
	namespace, container string
	follow, previous     bool
	tail                 int32
}

func (a *app) logsCommand() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{Use: "logs [-n NS] POD", Short: "show what a container wrote", Args: cobra.ExactArgs(1)}
	namespaceFlag(cmd, &o.namespace)
	cmd.Flags().StringVarP(&o.container, "container", "c", "", "container; default: the pod's first")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what is written from now on")
	cmd.Flags().BoolVarP(&o.previous, "previous", "p", false, "of the run before the last restart")
	cmd.Flags().Int32Var(&o.tail, "tail", -1, "last lines only; -1: everything that is kept")
	cmd.RunE = a.traced("logs", func(ctx context.Context, args []string) error { return a.logs(ctx, o, args[0]) })
	return cmd
}

func (a *app) logs(ctx context.Context, o logsOptions, name string) error {
	pod, err := a.podNode(ctx, o.namespace, name)
	if err != nil {
		return err
	}
	conn, err := a.dialPod(ctx, pod)
	if err != nil {
		return err
	}
	defer conn.Close()
	req := &nodeagentv1.LogsRequest{
		Namespace: pod.GetMetadata().GetNamespace(), Pod: pod.GetMetadata().GetName(), Container: o.container,
		Follow: o.follow, Previous: o.previous,
	}
	if o.tail >= 0 {
		req.TailLines = &o.tail
	}
	stream, err := nodeagentv1.NewAgentServiceClient(conn).Logs(ctx, req)
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) || err != nil && ctx.Err() != nil && o.follow {
			return nil // an interrupt is how one ends a -f
		}
		if err != nil {
			return err
		}
		if _, err := a.out.Write(resp.GetData()); err != nil {
			return fmt.Errorf("logs: %w", err)
		}
	}
}
