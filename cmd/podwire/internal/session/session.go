// Package session is what every command has in common: its streams, which Podwire it talks to, and how it ends.
//
// In: the flags --state, --connect and --identity, and PODWIRE_STATE, PODWIRE_CONNECT and PODWIRE_IDENTITY, which stand in
// for them. Out: connections to services and agents, and exit
// statuses. Under `podwire up` a service is a socket of the state directory; elsewhere cluster's directory tells where a
// service or an agent listens. The package must not print anything and must not know any command.
package session

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/telemetry"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

// Exit statuses of podwire.
const (
	ExitOK      = 0
	ExitFailure = 1
	ExitUsage   = 2
	ExitTimeout = 3
)

// Exit is an error that ends the process with a status of its own. Err is what is printed; nil where everything has
// been said, as after an exec whose command failed.
type Exit struct {
	Status int
	Err    error
}

// Error is Err's text.
func (e *Exit) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

// Unwrap gives Err.
func (e *Exit) Unwrap() error { return e.Err }

// Usage is the error of a wrong command line.
func Usage(format string, args ...any) error {
	return &Exit{Status: ExitUsage, Err: errs.New(errs.Invalid, format, args...)}
}

// Timeout is the error of something that did not happen in its time.
func Timeout(format string, args ...any) error {
	return &Exit{Status: ExitTimeout, Err: errs.New(errs.Unavailable, format, args...)}
}

// StatusOf is the exit status for what a command returned: 0 for nil, an Exit's own, 1 for anything else.
func StatusOf(err error) int {
	if err == nil {
		return ExitOK
	}
	var e *Exit
	if errors.As(err, &e) {
		return e.Status
	}
	return ExitFailure
}

// Env is what a command works with. The flags are parsed when a command's RunE is called, and not before.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// IsTTY says that Stderr, where progress goes, is a terminal.
	IsTTY bool

	// State is the state directory as the user wrote it; Dir resolves it.
	State string
	// Connect is the gRPC target of cluster, such as dns:///cluster:7443; empty for the sockets of State.
	Connect string
	// Identity is the directory with ca.crt, tls.crt and tls.key to show to what Connect leads to.
	Identity string
}

// AddFlags adds the flags that every command takes.
func (e *Env) AddFlags(flags *pflag.FlagSet) {
	state := cmp.Or(os.Getenv("PODWIRE_STATE"), statedir.Default)
	flags.StringVar(&e.State, "state", state, "state `DIR` of `podwire up`; also PODWIRE_STATE")
	flags.StringVar(&e.Connect, "connect", os.Getenv("PODWIRE_CONNECT"),
		"gRPC `TARGET` of cluster, such as dns:///cluster:7443, instead of a state directory; also PODWIRE_CONNECT")
	flags.StringVar(&e.Identity, "identity", os.Getenv("PODWIRE_IDENTITY"),
		"`DIR` with ca.crt, tls.crt and tls.key for --connect; also PODWIRE_IDENTITY")
}

// Check says whether the flags fit together.
func (e *Env) Check() error {
	if e.Connect != "" && e.Identity == "" {
		return Usage("--connect needs --identity DIR: every server asks for a certificate")
	}
	if e.Connect == "" && e.Identity != "" {
		return Usage("--identity needs --connect TARGET: the sockets of a state directory take no certificate")
	}
	return nil
}

// Dir is the state directory.
func (e *Env) Dir() (statedir.Dir, error) { return statedir.Resolve(e.State) }

// OutsideNetNS is the path of the network namespace that stands outside of the cluster, which `podwire up` made. Whoever
// connects over the network stands outside already: empty for the caller's own.
func (e *Env) OutsideNetNS() (string, error) {
	if e.Connect != "" {
		return "", nil
	}
	dir, err := e.Dir()
	if err != nil {
		return "", err
	}
	path := dir.NetNS(statedir.Outside)
	if _, err := os.Stat(path); err != nil {
		return "", notRunning(dir, err)
	}
	return path, nil
}

func notRunning(dir statedir.Dir, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return errs.WrapAs(errs.Denied, err, "state %s: only root may use it; try sudo", dir)
	}
	return errs.New(errs.Unavailable, "podwire is not up in %s (start it with `podwire up`, or name another state with --state)", dir)
}

// OutsideRoute is the way to an address from outside of the cluster, as OutsideNetNS has it. Errors: NotFound where no
// route leads there.
func (e *Env) OutsideRoute(to netip.Addr) (lab.Route, error) {
	path, err := e.OutsideNetNS()
	if err != nil {
		return lab.Route{}, err
	}
	return lab.RouteTo(path, to)
}

// Dial connects to a service: cluster, ipam, svcproxy, policy, dns or ingress. Calls are traced in ctx's telemetry. The connection does
// not wait for the service; a state directory in which nothing is up is Unavailable at once.
func (e *Env) Dial(ctx context.Context, service string, opts ...rpc.DialOption) (*grpc.ClientConn, error) {
	opts = append(opts, rpc.WithTelemetry(telemetry.FromContext(ctx)))
	if e.Connect == "" {
		dir, err := e.Dir()
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(dir.Socket(service)); err != nil {
			return nil, unreachable(dir, service, err)
		}
		return rpc.Dial("unix://"+dir.Socket(service), pki.Service(service), nil, opts...)
	}
	creds, err := e.credentials()
	if err != nil {
		return nil, err
	}
	if service == "cluster" {
		return rpc.Dial(e.Connect, pki.Service(service), creds, opts...)
	}
	processes, err := e.Processes(ctx)
	if err != nil {
		return nil, err
	}
	target, err := replicaOf(ctx, processes, service, creds)
	if err != nil {
		return nil, err
	}
	return rpc.Dial(target, pki.Service(service), creds, opts...)
}

// unreachable tells a service that is away from an instance that is not up.
func unreachable(dir statedir.Dir, service string, err error) error {
	if _, statErr := os.Stat(dir.NetNS(statedir.Underlay)); statErr != nil || !errors.Is(err, fs.ErrNotExist) {
		return notRunning(dir, err)
	}
	return errs.New(errs.Unavailable, "%s is not running in %s: %s says why; `podwire up` heals what is not up", service, dir, dir.Log(service))
}

func (e *Env) credentials() (*rpc.Credentials, error) {
	return rpc.LoadCredentials(e.Identity, nil)
}

// Processes lists the live replicas of each service and the agents, as cluster knows them.
func (e *Env) Processes(ctx context.Context) ([]*clusterv1.Process, error) {
	conn, err := e.Dial(ctx, "cluster")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	resp, err := clusterv1.NewDirectoryServiceClient(conn).ListProcesses(ctx, &clusterv1.ListProcessesRequest{})
	if err != nil {
		return nil, errs.Wrap(err, "list processes")
	}
	return resp.GetProcesses(), nil
}

// replicaCheck bounds the question whether a replica serves.
const replicaCheck = time.Second

// replicaOf is the target of the first replica of a service that serves, or of its only one.
func replicaOf(ctx context.Context, processes []*clusterv1.Process, service string, creds *rpc.Credentials) (string, error) {
	var targets []string
	for _, p := range processes {
		if p.GetService() == service {
			targets = append(targets, p.GetTarget())
		}
	}
	if len(targets) == 0 {
		return "", errs.New(errs.Unavailable, "%s: cluster knows no live replica of it", service)
	}
	for _, target := range targets[:len(targets)-1] {
		asked, cancel := context.WithTimeout(ctx, replicaCheck)
		err := rpc.CheckHealth(asked, target, pki.Service(service), creds)
		cancel()
		if err == nil {
			return target, nil
		}
	}
	return targets[len(targets)-1], nil
}

// DialAgent connects to the agent of a node, where cluster says that it is. NotFound if cluster knows no such agent.
func (e *Env) DialAgent(ctx context.Context, node string, opts ...rpc.DialOption) (*grpc.ClientConn, error) {
	processes, err := e.Processes(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		if p.GetService() == "nodeagent" && p.GetName() == node {
			return e.DialProcess(ctx, p, opts...)
		}
	}
	return nil, errs.New(errs.NotFound, "node %q: cluster knows no agent of that name that is alive (`podwire get nodes` lists them)", node)
}

// DialProcess connects to one process of Processes, be it a replica or an agent.
func (e *Env) DialProcess(ctx context.Context, p *clusterv1.Process, opts ...rpc.DialOption) (*grpc.ClientConn, error) {
	opts = append(opts, rpc.WithTelemetry(telemetry.FromContext(ctx)))
	server, target := pki.Service(p.GetService()), p.GetTarget()
	if p.GetService() == "nodeagent" {
		server = pki.Node(p.GetName())
	}
	if e.Connect != "" {
		creds, err := e.credentials()
		if err != nil {
			return nil, err
		}
		return rpc.Dial(target, server, creds, opts...)
	}
	if server.Kind == pki.KindService {
		// The host cannot reach the underlay of `up`, where there is one replica of each service.
		return e.Dial(ctx, p.GetService(), opts...)
	}
	return rpc.Dial(target, server, nil, opts...)
}
