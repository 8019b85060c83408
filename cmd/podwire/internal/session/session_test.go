package session_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

func TestStatusOf(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{errs.New(errs.Invalid, "x"), 1},
		{session.Usage("x"), 2},
		{session.Timeout("x"), 3},
		{fmt.Errorf("in a command: %w", session.Timeout("x")), 3},
		{&session.Exit{Status: 137}, 137},
	} {
		if got := session.StatusOf(tt.err); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
	}
	if text := (&session.Exit{Status: 7}).Error(); text != "" {
		t.Errorf("an Exit without an error says %q", text)
	}
}

func TestFlags(t *testing.T) {
	t.Setenv("PODWIRE_STATE", "/srv/pw")
	parse := func(args ...string) (*session.Env, error) {
		var env session.Env
		flags := pflag.NewFlagSet("podwire", pflag.ContinueOnError)
		env.AddFlags(flags)
		if err := flags.Parse(args); err != nil {
			t.Fatal(err)
		}
		return &env, env.Check()
	}
	if env, err := parse(); err != nil || env.State != "/srv/pw" {
		t.Errorf("PODWIRE_STATE: %+v, %v", env, err)
	}
	if env, err := parse("--state", "/x"); err != nil || env.State != "/x" {
		t.Errorf("--state: %+v, %v", env, err)
	}
	for _, args := range [][]string{{"--connect", "x"}, {"--identity", "x"}} {
		if _, err := parse(args...); session.StatusOf(err) != session.ExitUsage {
			t.Errorf("%v: %v, want a usage error", args, err)
		}
	}
}

func TestNothingIsUp(t *testing.T) {
	t.Parallel()
	env := &session.Env{State: t.TempDir()}
	if _, err := env.Dial(t.Context(), "cluster"); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "podwire up") {
		t.Errorf("dial: %v", err)
	}
	if _, err := env.OutsideNetNS(); !errs.Is(err, errs.Unavailable) {
		t.Errorf("outside: %v", err)
	}
}

// directory is a cluster that knows two processes.
type directory struct {
	clusterv1.UnimplementedDirectoryServiceServer
	processes []*clusterv1.Process
}

func (d *directory) ListProcesses(context.Context, *clusterv1.ListProcessesRequest) (*clusterv1.ListProcessesResponse, error) {
	return &clusterv1.ListProcessesResponse{Processes: d.processes}, nil
}

func serve(t *testing.T, opts rpc.ServerOptions, d *directory) *rpc.Server {
	t.Helper()
	host := daemon.New(daemon.Options{Name: "test"})
	opts.Fail = host.Fail
	server, err := rpc.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	clusterv1.RegisterDirectoryServiceServer(server, d)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- host.Run(ctx, func(context.Context) error { server.Start(host); host.Ready(); return nil })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return server
}

func TestSocketsOfUp(t *testing.T) {
	t.Parallel()
	env := &session.Env{State: t.TempDir()}
	dir, err := env.Dir()
	if err != nil {
		t.Fatal(err)
	}
	d := &directory{processes: []*clusterv1.Process{
		{Service: "ipam", Name: "x", Target: "192.0.2.1:7443"},
		{Service: "nodeagent", Name: "node-1", Target: "unix://" + dir.AgentSocket("node-1")},
	}}
	serve(t, rpc.ServerOptions{Socket: dir.Socket("cluster")}, d)
	agent := &directory{processes: []*clusterv1.Process{{Name: "the agent answers"}}}
	serve(t, rpc.ServerOptions{Socket: dir.AgentSocket("node-1")}, agent)

	processes, err := env.Processes(t.Context())
	if err != nil || len(processes) != 2 {
		t.Fatalf("processes: %v, %v", processes, err)
	}
	conn, err := env.DialAgent(t.Context(), "node-1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	resp, err := clusterv1.NewDirectoryServiceClient(conn).ListProcesses(t.Context(), &clusterv1.ListProcessesRequest{})
	if err != nil || resp.GetProcesses()[0].GetName() != "the agent answers" {
		t.Errorf("agent: %v, %v", resp, err)
	}
	if _, err := env.DialAgent(t.Context(), "node-9"); !errs.Is(err, errs.NotFound) {
		t.Errorf("an agent that nobody knows: %v, want NotFound", err)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := pki.Init(dir, pki.Plan{}); err != nil {
		t.Fatal(err)
	}
	creds, err := rpc.LoadCredentials(filepath.Join(dir, pki.ClusterDir), nil)
	if err != nil {
		t.Fatal(err)
	}
	// Two replicas of cluster: the one that was named, and one in its directory.
	replica := serve(t, rpc.ServerOptions{Listen: "127.0.0.1:0", Creds: creds}, &directory{})
	d := &directory{processes: []*clusterv1.Process{
		{Service: "cluster", Name: "a", Target: "127.0.0.1:1"},
		{Service: "cluster", Name: "b", Target: replica.Addr().String()},
	}}
	cluster := serve(t, rpc.ServerOptions{Listen: "127.0.0.1:0", Creds: creds}, d)
	env := &session.Env{Connect: cluster.Addr().String(), Identity: filepath.Join(dir, pki.AdminDir)}
	processes, err := env.Processes(t.Context())
	if err != nil || len(processes) != 2 {
		t.Fatalf("processes: %v, %v", processes, err)
	}
	conn, err := env.DialProcess(t.Context(), processes[1])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := clusterv1.NewDirectoryServiceClient(conn).ListProcesses(t.Context(), &clusterv1.ListProcessesRequest{}); err != nil {
		t.Errorf("a replica of the directory: %v", err)
	}
	if _, err := env.Dial(t.Context(), "policy"); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a service without replicas: %v, want Unavailable", err)
	}
	if path, err := env.OutsideNetNS(); path != "" || err != nil {
		t.Errorf("outside of a remote cluster: %q, %v, want where the caller is", path, err)
	}
}

func TestFlagsStandInTheEnvironment(t *testing.T) {
	t.Setenv("PODWIRE_STATE", "/srv/state")
	t.Setenv("PODWIRE_CONNECT", "dns:///cluster:7443")
	t.Setenv("PODWIRE_IDENTITY", "/run/identity")
	for _, tt := range []struct {
		args []string
		want session.Env
	}{
		{nil, session.Env{State: "/srv/state", Connect: "dns:///cluster:7443", Identity: "/run/identity"}},
		{[]string{"--connect", "localhost:1"}, session.Env{State: "/srv/state", Connect: "localhost:1", Identity: "/run/identity"}},
		{[]string{"--connect=", "--identity="}, session.Env{State: "/srv/state"}},
	} {
		var env session.Env
		flags := pflag.NewFlagSet("podwire", pflag.ContinueOnError)
		env.AddFlags(flags)
		if err := flags.Parse(tt.args); err != nil {
			t.Fatal(err)
		}
		if env != tt.want {
			t.Errorf("%q: %+v, want %+v", tt.args, env, tt.want)
		}
	}
}
