package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/telemetry"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
)

func TestEveryUnaryCallHasADeadline(t *testing.T) {
	t.Parallel()
	b := &backend{hops: func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); !ok {
			return errs.New(errs.Internal, "no deadline")
		}
		return nil
	}}
	server := serve(t, b, onSocket(t))
	if _, err := getHops(t.Context(), dial(t, server.target, pki.Service("test"), nil)); err != nil {
		t.Error(err)
	}
	// A client of another make, which sets none.
	conn, err := grpc.NewClient(server.target, grpc.WithTransportCredentials(rpc.UnixCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := getHops(t.Context(), conn); err != nil {
		t.Error(err)
	}
}

func TestDeeperHopTimesOutFirst(t *testing.T) {
	t.Parallel()
	b := &backend{hops: func(ctx context.Context) error {
		<-ctx.Done()
		return errs.Wrap(ctx.Err(), "ipam: allocate")
	}}
	server := serve(t, b, onSocket(t))
	conn := dial(t, server.target, pki.Service("test"), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := getHops(ctx, conn)
	wantKind(t, "timeout", err, errs.Unavailable, "ipam: allocate")
	if status.Code(err) != codes.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("code %s, %v", status.Code(err), err)
	}
}

func TestShave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // so that now is the same moment throughout
		now := time.Now()
		for _, tt := range []struct {
			given, want time.Duration // from now; given 0 is no deadline, want 0 a refusal
		}{
			{0, rpc.DefaultDeadline},
			{time.Hour, time.Hour - 20*time.Millisecond},
			{21 * time.Millisecond, time.Millisecond},
			{20 * time.Millisecond, 0},
			{time.Millisecond, 0},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			if tt.given > 0 {
				ctx, cancel = context.WithDeadline(t.Context(), now.Add(tt.given))
			}
			shaved, cancelShaved, err := rpc.Shave(ctx)
			deadline, ok := shaved.Deadline()
			switch {
			case tt.want == 0:
				wantKind(t, "with "+tt.given.String(), err, errs.Unavailable, "too little")
			case err != nil || !ok || !deadline.Equal(now.Add(tt.want)):
				t.Errorf("with %s: %v, %v, want %v", tt.given, deadline, err, now.Add(tt.want))
			}
			cancelShaved()
			cancel()
		}
	})
}

func TestPanicEndsTheProcess(t *testing.T) {
	t.Parallel()
	b := &backend{
		hops: func(context.Context) error { panic("unary boom") },
		wait: func(context.Context) error { panic("stream boom") },
	}
	for what, call := range map[string]func(*running) error{
		"unary boom": func(r *running) error {
			_, err := getHops(t.Context(), dial(t, r.target, pki.Service("test"), nil))
			return err
		},
		"stream boom": func(r *running) error {
			stream, err := clusterv1.NewReceiptServiceClient(dial(t, r.target, pki.Service("test"), nil)).Wait(t.Context(), &clusterv1.WaitRequest{})
			for err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	} {
		server := serve(t, b, onSocket(t))
		err := call(server)
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "boom") {
			t.Errorf("%s: the caller gets %v", what, err)
		}
		if err := server.end(); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "server_test.go") {
			t.Errorf("the process ends with %v, want %q and where", err, what)
		}
	}
}

func TestStopEndsStreamsAndLetsCallsFinish(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	b := &backend{hops: func(ctx context.Context) error {
		close(entered)
		<-release
		return ctx.Err()
	}}
	server := serve(t, b, onSocket(t))
	conn := dial(t, server.target, pki.Service("test"), nil)
	stream, err := clusterv1.NewReceiptServiceClient(conn).Wait(t.Context(), &clusterv1.WaitRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	call := make(chan error, 1)
	go func() {
		_, err := getHops(t.Context(), conn)
		call <- err
	}()
	<-entered
	ended := make(chan error, 1)
	go func() { ended <- server.end() }()
	_, err = stream.Recv()
	wantKind(t, "a stream of a server that stops", err, errs.Unavailable, "connect again")
	close(release)
	if err := <-call; err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the stop: %v", err)
	}
	if strings.Contains(server.log.String(), "were cut") {
		t.Error("nothing had to be cut")
	}
}

func TestNotServingIsNotUsed(t *testing.T) {
	t.Parallel()
	server := serve(t, &backend{}, onSocket(t))
	server.SetNotServing()
	_, err := getHops(t.Context(), dial(t, server.target, pki.Service("test"), nil))
	wantKind(t, "a replica that is NOT_SERVING", err, errs.Unavailable, "NOT_SERVING")
	if _, err := getHops(t.Context(), dial(t, server.target, pki.Service("test"), nil, rpc.WithoutHealthCheck())); err != nil {
		t.Errorf("asked for without health check: %v", err)
	}
}

func TestOnlyReadsAreRepeated(t *testing.T) {
	t.Parallel()
	var reads, writes atomic.Int32
	down := errs.New(errs.Unavailable, "not now")
	b := &backend{
		hops: func(context.Context) error {
			if reads.Add(1) < 3 {
				return down
			}
			return nil
		},
		enroll: func(context.Context, *clusterv1.EnrollRequest) (*clusterv1.EnrollResponse, error) {
			writes.Add(1)
			return nil, down
		},
	}
	server := serve(t, b, onSocket(t))
	conn := dial(t, server.target, pki.Service("test"), nil)
	if _, err := getHops(t.Context(), conn); err != nil || reads.Load() != 3 {
		t.Errorf("a read: %d attempts, %v", reads.Load(), err)
	}
	_, err := clusterv1.NewEnrolmentServiceClient(conn).Enroll(t.Context(), &clusterv1.EnrollRequest{})
	wantKind(t, "a write", err, errs.Unavailable, "not now")
	if writes.Load() != 1 {
		t.Errorf("a write was attempted %d times", writes.Load())
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	server := serve(t, &backend{}, onSocket(t))
	conn := dial(t, server.target, pki.Service("test"), nil)
	_, err := tracev1.NewTraceServiceClient(conn).GetHops(t.Context(), &tracev1.GetHopsRequest{TraceId: strings.Repeat("x", rpc.MaxMessage)})
	wantKind(t, "a message too large", err, errs.Exhausted, "larger than max")
}

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedLog{}
	l := rpc.LimitListener(inner, 1, log)
	defer l.Close()
	dialed := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dialed()
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		next <- c
	}()
	if _, err := dialed().Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection too many: %v, want it closed", err)
	}
	if !strings.Contains(log.String(), "too many") {
		t.Error("a refusal is not logged")
	}
	_ = first.Close()
	_ = first.Close() // gives its place back once only
	dialed()
	if c := <-next; c == nil {
		t.Error("a place that was given back is not used")
	} else {
		_ = c.Close()
	}
}

func TestUnixSocketNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fail := func(error) {}
	path := filepath.Join(dir, "run", "s.sock")
	first, err := rpc.NewServer(rpc.ServerOptions{Socket: path, Fail: fail})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	_, err = rpc.NewServer(rpc.ServerOptions{Socket: path, Fail: fail})
	wantKind(t, "a socket in use", err, errs.Exists, "another process listens")
	if err := first.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}

	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	again, err := rpc.NewServer(rpc.ServerOptions{Socket: path, Fail: fail})
	if err != nil {
		t.Errorf("a stale socket: %v", err)
	} else if err := again.Stop(t.Context()); err != nil {
		t.Error(err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = rpc.NewServer(rpc.ServerOptions{Socket: file, Fail: fail})
	wantKind(t, "a file that is no socket", err, errs.Exists, "another kind")
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Error("the file was touched")
	}
	_, err = rpc.NewServer(rpc.ServerOptions{Socket: filepath.Join(dir, strings.Repeat("x", 120)), Fail: fail})
	wantKind(t, "a path too long", err, errs.Invalid, "at most", "shorter")
	_, err = rpc.NewServer(rpc.ServerOptions{Fail: fail})
	wantKind(t, "no listener", err, errs.Invalid)
}

func TestUnixSocketIsForRoot(t *testing.T) {
	t.Parallel()
	server := serve(t, &backend{}, onSocket(t))
	caller, err := getHops(t.Context(), dial(t, server.target, pki.Service("test"), nil))
	if err != nil || caller != "/user/root" {
		t.Errorf("root is %q, %v", caller, err)
	}
	path := strings.TrimPrefix(server.target, "unix://")
	// Open the door that the mode keeps shut, to see the second lock.
	for dir := path; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := connectAs(65534, path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes for a uid that is not root's", n)
	}
	if _, err := getHops(t.Context(), dial(t, server.target, pki.Service("test"), nil)); err != nil {
		t.Errorf("root after that: %v", err)
	}
}

// connectAs connects with another effective uid, which the kernel records at connect.
func connectAs(uid int, path string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its uid
		conn, err := func() (net.Conn, error) {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			f := os.NewFile(uintptr(fd), path)
			defer f.Close()
			// Of this thread only: the system call itself, not the libc's or Go's.
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				return nil, fmt.Errorf("setresuid: %w", errno)
			}
			if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
				return nil, fmt.Errorf("connect: %w", err)
			}
			return net.FileConn(f)
		}()
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func TestTracesCrossTheWire(t *testing.T) {
	t.Parallel()
	setup := func(name string) *telemetry.Telemetry {
		tele, err := telemetry.New(t.Context(), telemetry.Process{Service: name})
		if err != nil {
			t.Fatal(err)
		}
		return tele
	}
	caller, callee := setup("svcproxy"), setup("ipam")
	b := &backend{enroll: func(ctx context.Context, _ *clusterv1.EnrollRequest) (*clusterv1.EnrollResponse, error) {
		_, span := telemetry.Start(ctx, "allocate")
		span.End(nil)
		return nil, errs.New(errs.Exhausted, "pool is empty")
	}}
	server := serve(t, b, func(o *rpc.ServerOptions) { onSocket(t)(o); o.Telemetry = callee })
	conn := dial(t, server.target, pki.Service("test"), nil, rpc.WithTelemetry(caller))
	ctx, span := telemetry.Start(caller.Context(t.Context()), "apply")
	_, err := clusterv1.NewEnrolmentServiceClient(conn).Enroll(ctx, &clusterv1.EnrollRequest{})
	wantKind(t, "call", err, errs.Exhausted)
	if _, err := getHops(ctx, conn); err != nil {
		t.Fatal(err)
	}
	span.End(nil)
	if err := server.end(); err != nil { // so that both sides have written their hops
		t.Fatal(err)
	}

	id := trace.SpanContextFromContext(ctx).TraceID()
	there, _ := callee.Ring().FromTrace(id)
	here, _ := caller.Ring().FromTrace(id)
	var got []string
	for _, h := range append(there, here...) {
		got = append(got, h.Name)
	}
	want := []string{
		"allocate", "serve podwire.cluster.v1.EnrolmentService/Enroll",
		"call podwire.cluster.v1.EnrolmentService/Enroll", "apply",
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Fatalf("hops %q, want %q", got, want)
	}
	allocate, serveHop, call, apply := there[0], there[1], here[0], here[1]
	if allocate.ParentSpanID != serveHop.SpanID || serveHop.ParentSpanID != call.SpanID || call.ParentSpanID != apply.SpanID {
		t.Error("the hops are no chain")
	}
	if serveHop.Error == "" || call.Error == "" {
		t.Error("the failure is not in the hops")
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	ours := newRealm(t)
	dir := t.TempDir()
	ours.issue(t, dir, pki.Service("ipam"))
	var socket string
	server := serve(t, &backend{}, func(o *rpc.ServerOptions) {
		onTCP(load(t, dir))(o)
		onSocket(t)(o)
		socket = o.Socket
	})
	_, port, err := net.SplitHostPort(server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	configs := map[string]daemon.Common{
		"over TLS": {Listen: ":" + port, Identity: dir}, "over the socket": {Listen: ":1", Socket: socket},
	}
	for what, cfg := range configs {
		if err := rpc.Healthcheck(t.Context(), "ipam", cfg); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	server.SetNotServing()
	for what, cfg := range configs {
		wantKind(t, what, rpc.Healthcheck(t.Context(), "ipam", cfg), errs.Unavailable, "NOT_SERVING")
	}
	if err := server.end(); err != nil {
		t.Fatal(err)
	}
	for what, cfg := range configs {
		wantKind(t, what, rpc.Healthcheck(t.Context(), "ipam", cfg), errs.Unavailable)
	}
}
