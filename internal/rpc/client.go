package rpc

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/health" // registers the client side of health checking
	"google.golang.org/grpc/keepalive"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/telemetry"
)

const (
	clientPing     = 20 * time.Second // above MinPing, below common NAT timeouts
	connectTimeout = 3 * time.Second
	// A replica that comes back is to be found within a few seconds.
	backoffBase = 100 * time.Millisecond
	backoffMax  = 3 * time.Second
)

type dialConfig struct {
	tele      *telemetry.Telemetry
	access    Access
	anonymous *x509.CertPool
	unchecked string
}

// DialOption changes what Dial does.
type DialOption func(*dialConfig)

// WithTelemetry traces the calls of the connection.
func WithTelemetry(t *telemetry.Telemetry) DialOption {
	return func(c *dialConfig) { c.tele = t }
}

// WithoutHealthCheck uses a server also while it is NOT_SERVING: to ask it why, or to
// reach it before it has anything to serve.
func WithoutHealthCheck() DialOption {
	return func(c *dialConfig) { c.unchecked = "NOT_SERVING is fine" }
}

// WithAccess takes retries and traces from another table than Table; for tests.
func WithAccess(a Access) DialOption {
	return func(c *dialConfig) { c.access = a }
}

// WithoutCertificate shows no certificate and trusts cas: for enrolment.
func WithoutCertificate(cas *x509.CertPool) DialOption {
	return func(c *dialConfig) { c.anonymous = cas }
}

// Dial makes a connection to the replicas of a server; it does not wait for one. The
// target is gRPC's: dns:///ipam:7443, host:port, or unix:///path, which needs no creds
// and whose server has to be root's. On the network the server must prove to be
// server, by chain, DNS name and SPIFFE identity.
//
// Calls go round robin over the replicas that report SERVING. A Read is repeated, up to
// four times, when a replica is unavailable; nothing else is. A unary call without a
// deadline gets DefaultDeadline. Errors of calls are *errs.Error for errors.As.
func Dial(target string, server Identity, creds *Credentials, opts ...DialOption) (*grpc.ClientConn, error) {
	var cfg dialConfig
	for _, o := range opts {
		o(&cfg)
	}
	if cfg.access == nil {
		cfg.access = Table()
	}
	transport, err := transportFor(target, server, creds, cfg)
	if err != nil {
		return nil, err
	}
	service, err := serviceConfig(cfg.access)
	if err != nil {
		return nil, err
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(service),
		grpc.WithDisableServiceConfig(), // a TXT record must not configure us
		grpc.WithNoProxy(),              // nor an environment variable
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithMaxHeaderListSize(MaxHeaderList),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: clientPing, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: connectTimeout,
			Backoff:           backoff.Config{BaseDelay: backoffBase, Multiplier: 1.6, Jitter: 0.2, MaxDelay: backoffMax},
		}),
		grpc.WithChainUnaryInterceptor(callUnary),
		grpc.WithChainStreamInterceptor(callStream),
	}
	if !isUnix(target) {
		dial = append(dial, grpc.WithAuthority(server.Name))
	}
	if cfg.unchecked != "" || cfg.anonymous != nil {
		dial = append(dial, grpc.WithDisableHealthCheck())
	}
	if h := clientStats(cfg.tele, cfg.access); h != nil {
		dial = append(dial, grpc.WithStatsHandler(h))
	}
	conn, err := grpc.NewClient(target, dial...)
	return conn, errs.WrapAs(errs.Invalid, err, "rpc: target %q of %s", target, server)
}

// DialPeer is Dial to a service that the configuration names, for as long as the daemon runs: the connection is closed in
// the last stage of its stop. Errors: Invalid where the configuration does not name it; and Dial's.
func DialPeer(d *daemon.Daemon, cfg *daemon.Common, creds *Credentials, service string) (*grpc.ClientConn, error) {
	target, err := cfg.Peer(service)
	if err != nil {
		return nil, err
	}
	conn, err := Dial(target, pki.Service(service), creds, WithTelemetry(d.Telemetry()))
	if err != nil {
		return nil, err
	}
	d.OnStop(daemon.StageStore, "connection to "+service, func(context.Context) error { return conn.Close() })
	return conn, nil
}

func isUnix(target string) bool { return strings.HasPrefix(target, "unix:") }

func transportFor(target string, server Identity, creds *Credentials, cfg dialConfig) (credentials.TransportCredentials, error) {
	switch {
	case isUnix(target):
		return unixCreds{}, nil
	case cfg.anonymous != nil:
		return anonymousClient(cfg.anonymous, server), nil
	case creds == nil:
		return nil, errs.New(errs.Invalid, "rpc: target %q of %s: needs credentials; only unix: targets do without", target, server)
	}
	return creds.client(server), nil
}

// serviceConfig is the gRPC service config (gRFC A6 for retries, A17 for health).
func serviceConfig(access Access) (string, error) {
	type name struct {
		Service string `json:"service"`
		Method  string `json:"method"`
	}
	var reads []name
	for method, rule := range access {
		if rule.Effect == Read {
			service, m, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
			reads = append(reads, name{service, m})
		}
	}
	slices.SortFunc(reads, func(a, b name) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Method, b.Method))
	})
	cfg := map[string]any{
		"loadBalancingConfig": []any{map[string]any{"round_robin": map[string]any{}}},
		"healthCheckConfig":   map[string]any{"serviceName": ""},
	}
	if len(reads) > 0 {
		cfg["methodConfig"] = []any{map[string]any{
			"name": reads,
			"retryPolicy": map[string]any{
				"maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2,
				"retryableStatusCodes": []string{"UNAVAILABLE"},
			},
		}}
		cfg["retryThrottling"] = map[string]any{"maxTokens": 20, "tokenRatio": 0.1}
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return "", errs.WrapAs(errs.Internal, err, "rpc: service config")
	}
	return string(text), nil
}

// callUnary bounds a call and translates its error.
func callUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultDeadline)
		defer cancel()
	}
	return fromStatus(invoke(ctx, method, req, reply, cc, opts...))
}

// callStream translates the errors of a stream.
func callStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	cs, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, fromStatus(err)
	}
	return clientStream{cs}, nil
}

type clientStream struct{ grpc.ClientStream }

// SendMsg sends a message.
func (s clientStream) SendMsg(m any) error { return fromStatus(s.ClientStream.SendMsg(m)) }

// RecvMsg receives a message; io.EOF is the stream's end.
func (s clientStream) RecvMsg(m any) error { return fromStatus(s.ClientStream.RecvMsg(m)) }

// CloseSend ends the client's side.
func (s clientStream) CloseSend() error { return fromStatus(s.ClientStream.CloseSend()) }

// Methods lists a table's methods in order; for tests and for documentation.
func (a Access) Methods() []string { return slices.Sorted(maps.Keys(a)) }
