package rpc

import (
	"context"
	"io"
	"log/slog"
	"net"

	"google.golang.org/grpc/credentials"
)

// Shave opens the rule for deadlines to tests.
func Shave(ctx context.Context) (context.Context, context.CancelFunc, error) { return shave(ctx) }

// LimitListener opens the bound on connections to tests.
func LimitListener(l net.Listener, limit int64, log io.Writer) net.Listener {
	return limitListener(l, limit, slog.New(slog.NewTextHandler(log, nil)))
}

// UnixCredentials opens the credentials of unix sockets to tests.
func UnixCredentials() credentials.TransportCredentials { return unixCreds{} }
