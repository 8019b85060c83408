package rpc

import (
	"context"
	"net"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

// Healthcheck is nil if the process that runs with this configuration on this machine
// is SERVING; it asks over the unix socket if there is one, over mutual TLS otherwise.
// It is a daemon.Program's Healthcheck.
func Healthcheck(ctx context.Context, service string, cfg daemon.Common) error {
	target, server := "unix://"+cfg.Socket, pki.Service(service)
	var creds *Credentials
	if cfg.Socket == "" {
		_, port, err := net.SplitHostPort(cfg.Listen)
		if err != nil {
			return errs.WrapAs(errs.Invalid, err, "healthcheck: listen")
		}
		host := "localhost"
		if h, _, _ := net.SplitHostPort(cfg.Listen); h != "" && h != "0.0.0.0" && h != "::" {
			host = h
		}
		if creds, err = LoadCredentials(cfg.Identity, nil); err != nil {
			return errs.Wrap(err, "healthcheck")
		}
		target = "passthrough:///" + net.JoinHostPort(host, port)
		// Our own leaf says who the server on our own port has to be.
		server = creds.Identity()
	}
	return CheckHealth(ctx, target, server, creds)
}

// CheckHealth asks one server for its health: nil for SERVING, Unavailable otherwise.
func CheckHealth(ctx context.Context, target string, server Identity, creds *Credentials) error {
	conn, err := Dial(target, server, creds, WithoutHealthCheck())
	if err != nil {
		return errs.Wrap(err, "healthcheck")
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return errs.Wrap(err, "healthcheck of %s at %s", server, target)
	}
	if got := resp.GetStatus(); got != healthpb.HealthCheckResponse_SERVING {
		return errs.New(errs.Unavailable, "healthcheck of %s at %s: %s", server, target, got)
	}
	return nil
}
