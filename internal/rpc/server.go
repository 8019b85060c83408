package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/telemetry"
)

// The limits of a server. What exceeds one is refused with RESOURCE_EXHAUSTED, or, for
// a connection, closed.
const (
	// MaxMessage bounds a message in either direction, in bytes.
	MaxMessage = 8 << 20
	// MaxStreams bounds the calls in flight of one connection.
	MaxStreams = 1024
	// MaxHeaderList bounds the headers of a call, in bytes.
	MaxHeaderList = 64 << 10
	// MaxConnections bounds the connections of one listener.
	MaxConnections = 4096
	// MaxConnectionAge makes clients look for new replicas; ConnectionAgeGrace is what
	// the streams on such a connection get to end.
	MaxConnectionAge   = 5 * time.Minute
	ConnectionAgeGrace = 30 * time.Second
	// MinPing is the shortest interval at which a client may send keepalive pings.
	MinPing = 10 * time.Second

	handshakeTimeout = 5 * time.Second
	serverPing       = 20 * time.Second
	pingTimeout      = 5 * time.Second
)

// ServerOptions are what a server is made of.
type ServerOptions struct {
	// Listen is the TCP address for mutual TLS; empty for none.
	Listen string
	// Creds are this process's; needed with Listen.
	Creds *Credentials
	// Socket is the path of a unix socket for root; empty for none.
	Socket string
	// ConnectionAge replaces MaxConnectionAge on Listen; negative is no bound, for a
	// server without replicas, whose long streams (exec, logs) nobody else can take
	// over. The unix socket never has one.
	ConnectionAge time.Duration
	// Access replaces the access table; nil is the table. For tests of this package's
	// users that register services of their own.
	Access Access
	// Telemetry traces calls; nil for none.
	Telemetry *telemetry.Telemetry
	// Log gets refused handshakes and calls that ended as Internal. Nil is silent.
	Log *slog.Logger
	// Fail is called with the error that a panic of a handler makes: the process is to
	// end. Needed.
	Fail func(error)
}

// OptionsFor is the ServerOptions of a daemon with this configuration.
func OptionsFor(d *daemon.Daemon, cfg daemon.Common, creds *Credentials) ServerOptions {
	return ServerOptions{
		Listen: cfg.Listen, Socket: cfg.Socket, Creds: creds,
		Telemetry: d.Telemetry(), Log: d.Log(), Fail: d.Fail,
	}
}

// Server is the gRPC server of a process, on TCP with mutual TLS, on a unix socket, or
// both. Health and reflection (v1 and v1alpha) are registered. It implements
// grpc.ServiceRegistrar and daemon.Health.
type Server struct {
	opts   ServerOptions
	health *health.Server
	doors  []door
	// draining ends when a stop begins, and with it the contexts of streams.
	draining context.Context // a signal, not the context of a call
	drain    context.CancelFunc
}

// door is one listener with the server behind it.
type door struct {
	name     string
	server   *grpc.Server
	listener net.Listener
}

// NewServer opens the listeners, so that an address in use is an error here, and
// registers health and reflection. It starts nothing.
func NewServer(opts ServerOptions) (*Server, error) {
	if opts.Fail == nil {
		return nil, errs.New(errs.Internal, "rpc: server: Fail is required")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Access == nil {
		opts.Access = Table()
	}
	s := &Server{opts: opts, health: health.NewServer()}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.SetNotServing()
	if err := s.open(); err != nil {
		s.drain()
		s.closeListeners()
		return nil, errs.Wrap(err, "rpc: server")
	}
	for _, d := range s.doors {
		healthpb.RegisterHealthServer(d.server, s.health)
		reflection.Register(d.server)
	}
	return s, nil
}

func (s *Server) open() error {
	if s.opts.Listen != "" {
		if s.opts.Creds == nil {
			return errs.New(errs.Internal, "Creds are required with Listen")
		}
		l, err := net.Listen("tcp", s.opts.Listen)
		if err != nil {
			return errs.WrapAs(errs.Unavailable, err, "listen")
		}
		age := s.opts.ConnectionAge
		if age == 0 {
			age = MaxConnectionAge
		}
		s.doors = append(s.doors, door{l.Addr().String(), s.grpcServer(s.opts.Creds.server(), age), limitListener(l, MaxConnections, s.opts.Log)})
	}
	if s.opts.Socket != "" {
		l, err := listenUnix(s.opts.Socket)
		if err != nil {
			return err
		}
		s.doors = append(s.doors, door{"unix:" + s.opts.Socket, s.grpcServer(unixCreds{}, -1), limitListener(l, MaxConnections, s.opts.Log)})
	}
	if len(s.doors) == 0 {
		return errs.New(errs.Invalid, "neither Listen nor Socket is set")
	}
	return nil
}

func (s *Server) grpcServer(creds credentials.TransportCredentials, age time.Duration) *grpc.Server {
	if age < 0 {
		age = math.MaxInt64
	}
	opts := []grpc.ServerOption{
		grpc.Creds(creds),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(MaxStreams),
		grpc.MaxHeaderListSize(MaxHeaderList),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: MinPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: age, MaxConnectionAgeGrace: ConnectionAgeGrace,
			Time: serverPing, Timeout: pingTimeout,
		}),
		grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
	}
	if h := serverStats(s.opts.Telemetry, s.opts.Access); h != nil {
		opts = append(opts, grpc.StatsHandler(h))
	}
	return grpc.NewServer(opts...)
}

// RegisterService adds a service to every listener; see grpc.ServiceRegistrar.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, d := range s.doors {
		d.server.RegisterService(desc, impl)
	}
}

// SetServing and SetNotServing answer the health checks of clients, as daemon.Health.
func (s *Server) SetServing() { s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING) }

// SetNotServing sends clients elsewhere.
func (s *Server) SetNotServing() {
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
}

// Addr is the address of Listen after the system chose a port; nil without Listen.
func (s *Server) Addr() net.Addr {
	if s.opts.Listen == "" {
		return nil
	}
	return s.doors[0].listener.Addr()
}

// Host is the process that a server lives in; *daemon.Daemon is one.
type Host interface {
	Go(name string, fn func(context.Context) error)
	OnStop(stage daemon.Stage, name string, stop func(context.Context) error)
	AddHealth(h daemon.Health)
}

// Start serves in goroutines of host, reports health to it, and registers the graceful
// stop at daemon.StageServer. Every service has to be registered before.
func (s *Server) Start(host Host) {
	host.OnStop(daemon.StageServer, "grpc", s.Stop)
	host.AddHealth(s)
	for _, d := range s.doors {
		host.Go("grpc "+d.name, func(context.Context) error { return d.serve() })
		s.opts.Log.Info("listening", "address", d.name)
	}
}

func (d door) serve() error {
	if err := d.server.Serve(d.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return errs.WrapAs(errs.Unavailable, err, "serve on %s", d.name)
	}
	return nil
}

// Stop lets the calls in flight end, for as long as ctx lasts, then cuts the rest.
func (s *Server) Stop(ctx context.Context) error {
	s.drain()
	var wg sync.WaitGroup
	for _, d := range s.doors {
		wg.Go(d.server.GracefulStop)
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }() // ends with the servers, which Stop below ends
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = errs.New(errs.Unavailable, "rpc: calls in flight were cut after the time for a graceful stop")
		for _, d := range s.doors {
			d.server.Stop()
		}
		<-done
	}
	s.health.Shutdown()
	s.closeListeners()
	return err
}

// closeListeners closes what Serve, which owns its listener, may never have seen.
func (s *Server) closeListeners() {
	for _, d := range s.doors {
		_ = d.listener.Close()
	}
}

// minTLS is the only TLS version spoken here.
const minTLS = tls.VersionTLS13
