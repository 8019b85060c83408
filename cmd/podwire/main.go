// Command podwire brings Podwire up on this machine and is how people talk to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podwire.dev/cmd/podwire/internal/cli"
	"podwire.dev/cmd/podwire/internal/demo"
	"podwire.dev/cmd/podwire/internal/doctor"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/cmd/podwire/internal/up"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/telemetry"
)

func main() { os.Exit(run(os.Args[1:])) }

// flushTime bounds what is sent of a trace after a command is done.
const flushTime = 2 * time.Second

func run(args []string) int {
	nameProcess()
	// Before anything else: a container's first process goes this way, too.
	if len(args) > 1 && args[0] == "serve" {
		if status, known := up.Serve(args[1], args[2:]); known {
			return status
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills

	env := &session.Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, IsTTY: isTerminal(os.Stderr)}
	tele, err := telemetry.Setup(ctx, telemetry.Process{Service: "podwire", Version: daemon.Version()})
	if err != nil {
		fmt.Fprintln(os.Stderr, "podwire:", err)
		return session.ExitFailure
	}
	err = execute(tele.Context(ctx), env, args)
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if ferr := tele.Shutdown(flush); ferr != nil {
		fmt.Fprintln(os.Stderr, "podwire:", ferr)
	}
	return session.StatusOf(err)
}

// execute runs one command and prints its error.
func execute(ctx context.Context, env *session.Env, args []string) error {
	began := false
	root := &cobra.Command{
		Use:           "podwire",
		Short:         "Kubernetes networking without Kubernetes",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			began = true
			return env.Check()
		},
	}
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	env.AddFlags(root.PersistentFlags())
	root.AddCommand(up.Commands(env)...)
	commands, err := cli.Commands(env)
	if err != nil {
		fmt.Fprintln(env.Stderr, "podwire:", err)
		return err
	}
	root.AddCommand(commands...)
	root.AddCommand(demo.Command(env), doctor.Command(env), versionCommand(env), idleCommand())

	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return nil
	}
	var exit *session.Exit
	if !began && !errors.As(err, &exit) {
		// Whatever fails before a command begins is about its command line.
		err = &session.Exit{Status: session.ExitUsage, Err: fmt.Errorf("%s (see `%s --help`)", strings.TrimSpace(err.Error()), cmd.CommandPath())}
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(env.Stderr, "podwire:", text)
	}
	return err
}

func versionCommand(env *session.Env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintf(env.Stdout, "podwire %s %s\n", daemon.Version(), runtime.Version())
			return nil
		},
	}
}

// idleCommand keeps a container there to be entered; an image from scratch has no sleep(1).
func idleCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "idle",
		Short:  "do nothing until SIGTERM: for a container that is there to be entered",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}

// nameProcess gives processes that were started as /proc/self/exe the name that ps and pgrep look for.
func nameProcess() {
	// Where it fails the name stays "exe", which is all that is lost.
	_ = os.WriteFile("/proc/self/comm", []byte("podwire"), 0)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
