package rpc_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/rpc/rpctest"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
)

// realm is a CA and what it signed.
type realm struct {
	dir string
	ca  *pki.Authority
}

func newRealm(t *testing.T) *realm {
	t.Helper()
	dir, ca := rpctest.Authority(t, pki.Plan{Services: []string{"ipam"}, Nodes: []string{"node-1"}})
	return &realm{dir, ca}
}

// issue writes a fresh identity directory of id.
func (r *realm) issue(t *testing.T, dir string, id pki.Identity) {
	t.Helper()
	dns, _ := pki.ServerNames(id)
	r.issueAs(t, dir, id, dns)
}

// issueAs is issue with DNS names that the identity does not have by itself.
func (r *realm) issueAs(t *testing.T, dir string, id pki.Identity, dns []string) {
	t.Helper()
	csr, key, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := r.ca.Sign(csr, id, dns, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteIdentity(dir, r.ca.CAPEM(), cert, key); err != nil {
		t.Fatal(err)
	}
}

func (r *realm) creds(t *testing.T, id pki.Identity) *rpc.Credentials {
	t.Helper()
	dir := t.TempDir()
	r.issue(t, dir, id)
	return load(t, dir)
}

func load(t *testing.T, dir string) *rpc.Credentials {
	t.Helper()
	c, err := rpc.LoadCredentials(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// backend answers the few RPCs that the tests call with what a test sets.
type backend struct {
	tracev1.UnimplementedTraceServiceServer
	clusterv1.UnimplementedEnrolmentServiceServer
	clusterv1.UnimplementedReceiptServiceServer
	hops   func(context.Context) error
	enroll func(context.Context, *clusterv1.EnrollRequest) (*clusterv1.EnrollResponse, error)
	wait   func(context.Context) error
}

func (b *backend) GetHops(ctx context.Context, _ *tracev1.GetHopsRequest) (*tracev1.GetHopsResponse, error) {
	if b.hops != nil {
		if err := b.hops(ctx); err != nil {
			return nil, err
		}
	}
	return &tracev1.GetHopsResponse{Process: rpc.FromContext(ctx).String()}, nil
}

func (b *backend) Enroll(ctx context.Context, req *clusterv1.EnrollRequest) (*clusterv1.EnrollResponse, error) {
	if b.enroll == nil {
		return &clusterv1.EnrollResponse{}, nil
	}
	return b.enroll(ctx, req)
}

func (b *backend) Wait(_ *clusterv1.WaitRequest, stream grpc.ServerStreamingServer[clusterv1.WaitResponse]) error {
	if err := stream.Send(&clusterv1.WaitResponse{}); err != nil {
		return err
	}
	if b.wait != nil {
		return b.wait(stream.Context())
	}
	<-stream.Context().Done()
	return context.Cause(stream.Context())
}

// running is a server under test.
type running struct {
	*rpc.Server
	d      *daemon.Daemon
	target string
	log    *lockedLog
	end    func() error // stops and gives the process's error; once
}

type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

// Write appends to the log.
func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is what was logged so far.
func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serve runs a backend until the test ends. Change may adjust the options.
func serve(t *testing.T, b *backend, change func(*rpc.ServerOptions)) *running {
	t.Helper()
	log := &lockedLog{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	d := daemon.New(daemon.Options{Name: "test", Log: logger})
	opts := rpc.OptionsFor(d, daemon.Common{}, nil)
	change(&opts)
	s, err := rpc.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	tracev1.RegisterTraceServiceServer(s, b)
	clusterv1.RegisterEnrolmentServiceServer(s, b)
	clusterv1.RegisterReceiptServiceServer(s, b)
	r := &running{Server: s, d: d, log: log, target: "unix://" + opts.Socket}
	if a := s.Addr(); a != nil {
		r.target = "passthrough:///" + a.String()
	}
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		done <- d.Run(context.Background(), func(context.Context) error {
			s.Start(d)
			d.Ready()
			close(started)
			return nil
		})
	}()
	<-started
	r.end = sync.OnceValue(func() error { d.Stop(); return <-done })
	t.Cleanup(func() { _ = r.end() })
	return r
}

// onTCP is the change that serves with creds on a free port of loopback.
func onTCP(creds *rpc.Credentials) func(*rpc.ServerOptions) {
	return func(o *rpc.ServerOptions) { o.Listen, o.Creds = "127.0.0.1:0", creds }
}

// onSocket serves on a unix socket.
func onSocket(t *testing.T) func(*rpc.ServerOptions) {
	return func(o *rpc.ServerOptions) { o.Socket = filepath.Join(t.TempDir(), "s") }
}

func dial(t *testing.T, target string, server pki.Identity, creds *rpc.Credentials, opts ...rpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.Dial(target, server, creds, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// getHops makes the plain unary call.
func getHops(ctx context.Context, conn grpc.ClientConnInterface) (string, error) {
	resp, err := tracev1.NewTraceServiceClient(conn).GetHops(ctx, &tracev1.GetHopsRequest{})
	return resp.GetProcess(), err
}

func wantKind(t *testing.T, what string, err error, kind errs.Kind, texts ...string) {
	t.Helper()
	if !errs.Is(err, kind) {
		t.Errorf("%s: %v, want %s", what, err, kind)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %q does not say %q", what, err, text)
		}
	}
}
