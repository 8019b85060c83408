package feed

import (
	"crypto/tls"
	"log/slog"

	"podwire.dev/internal/store"
)

// OpenStore opens the store of a service, which says on log what it repairs.
func OpenStore(log *slog.Logger, endpoints []string, client *tls.Config, kinds store.Kinds) (*store.Store, error) {
	return store.Open(store.Config{Endpoints: endpoints, TLS: client}, kinds, store.WithLog(log))
}
