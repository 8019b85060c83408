// Package cli has the commands that speak to a running Podwire: apply, get, describe, delete, exec, logs, wait, trace,
// explain, status, accept, completion.
//
// In: arguments, manifests, a [Session] that leads to services and agents. Out: text that is stable enough for scripts
// with -o json, errors that say what is wrong, where and what to do, and exit statuses (see package session). Invariants:
// every document is checked before any is written; one command is one trace. It must not decide anything that a service
// decides.
package cli

import (
	"context"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"podwire.dev/cmd/podwire/internal/cli/objects"
	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/telemetry"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

// Session leads to the processes of one Podwire; *session.Env is one.
type Session interface {
	Dial(ctx context.Context, service string, opts ...rpc.DialOption) (*grpc.ClientConn, error)
	DialAgent(ctx context.Context, node string, opts ...rpc.DialOption) (*grpc.ClientConn, error)
	DialProcess(ctx context.Context, p *clusterv1.Process, opts ...rpc.DialOption) (*grpc.ClientConn, error)
	Processes(ctx context.Context) ([]*clusterv1.Process, error)
	OutsideNetNS() (string, error)
	OutsideRoute(to netip.Addr) (lab.Route, error)
}

// app is what every command here works with.
type app struct {
	Session
	in       io.Reader
	out, err io.Writer
	line     progressLine
	kinds    *manifest.Registry
	now      func() time.Time
}

// Commands returns the commands.
func Commands(env *session.Env) ([]*cobra.Command, error) {
	kinds, err := manifest.Builtin()
	if err != nil {
		return nil, err
	}
	a := &app{Session: env, in: env.Stdin, out: env.Stdout, err: env.Stderr, kinds: kinds, now: time.Now}
	if env.IsTTY {
		a.line.w = env.Stderr
	}
	return a.commands(), nil
}

func (a *app) commands() []*cobra.Command {
	return a.completions([]*cobra.Command{
		a.applyCommand(), a.deleteCommand(), a.getCommand(), a.describeCommand(), a.execCommand(), a.logsCommand(), a.waitCommand(),
		a.traceCommand(), a.explainCommand(), a.statusCommand(), a.acceptCommand(), a.probeCommand(), a.completionCommand(),
	})
}

// traced runs a command inside one span, which is the root of every change that the command makes.
func (a *app) traced(name string, run func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, span := telemetry.Start(cmd.Context(), "podwire "+name)
		err := run(ctx, args)
		span.End(err)
		return err
	}
}

// callTimeout bounds one call that is not meant to wait.
const callTimeout = 15 * time.Second

// conns keeps one connection per service for the length of a command.
type conns struct {
	session Session
	open    map[string]*grpc.ClientConn
}

func (a *app) connections() *conns { return &conns{a.Session, map[string]*grpc.ClientConn{}} }

// Dial implements objects.Dialer.
func (c *conns) Dial(ctx context.Context, service string) (grpc.ClientConnInterface, error) {
	if conn := c.open[service]; conn != nil {
		return conn, nil
	}
	conn, err := c.session.Dial(ctx, service)
	if err != nil {
		return nil, err
	}
	c.open[service] = conn
	return conn, nil
}

func (c *conns) close() {
	for _, conn := range c.open {
		conn.Close()
	}
}

func (c *conns) objects() *objects.Client { return objects.New(c) }

// kind finds a kind by any of its names on the command line.
func (a *app) kind(name string) (manifest.Kind, error) {
	k, ok := a.kinds.ByName(strings.ToLower(name))
	if !ok {
		return manifest.Kind{}, session.Usage("there is no kind %q here; the kinds are %s", name, strings.Join(a.plurals(), ", "))
	}
	return k, nil
}

// plurals are the names of all kinds.
func (a *app) plurals() []string {
	var known []string
	for _, k := range a.kinds.Kinds() {
		known = append(known, k.Plural)
	}
	slices.Sort(known)
	return known
}

// reference splits KIND/NAME.
func (a *app) reference(text string) (manifest.Kind, string, error) {
	kind, name, ok := strings.Cut(text, "/")
	if !ok || name == "" || strings.Contains(name, "/") {
		return manifest.Kind{}, "", session.Usage("%q must be KIND/NAME, such as service/web", text)
	}
	k, err := a.kind(kind)
	return k, name, err
}

// namespaceOf is the namespace to ask for: empty for a cluster-scoped kind.
func namespaceOf(k manifest.Kind, flag string) string {
	switch {
	case k.Scope == manifest.ClusterScoped:
		return ""
	case flag == "":
		return defaultNamespace
	}
	return flag
}

const defaultNamespace = "default"

// namespaceFlag adds -n.
func namespaceFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVarP(into, "namespace", "n", "", "namespace; default: default")
}

// bound gives ctx the timeout of one call, unless it has a shorter one.
func bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callTimeout)
}
