// Package service opens what the process of every service has before it knows what it serves: its identity, the store, its
// server, and its name among the replicas.
//
// In: a daemon, and the configuration that all services share. Out: a Replica, to whose server an app registers what is
// its own, and which it then starts.
//
// Invariants: nothing runs before Start, so whatever is registered before it is served from the first call on. The store
// is closed by the feed that is started on it, the server by the daemon. The package must not know any service, kind or
// planner, and decides nothing but the order.
package service

import (
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	"podwire.dev/internal/telemetry"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
)

// Replica is one process of a service.
type Replica struct {
	*daemon.Daemon
	// Creds are who the process is to others.
	Creds *rpc.Credentials
	Store *store.Store
	// Server gets the service's own handlers before Start.
	Server *rpc.Server
	// Self is the process as others find it.
	Self store.Replica
}

// Open opens a replica of the service that the daemon is named after, on the kinds that it reads or writes. It waits for
// nobody, and starts nothing. Errors: those of rpc.LoadCredentials, store.Open and rpc.NewServer.
func Open(d *daemon.Daemon, cfg daemon.Common, kinds store.Kinds, opts ...store.Option) (*Replica, error) {
	creds, err := rpc.LoadCredentials(cfg.Identity, d.Log())
	if err != nil {
		return nil, err
	}
	etcd := store.Config{Endpoints: cfg.Etcd.Endpoints, TLS: creds.ClientTLS(pki.Service("etcd"))}
	st, err := store.Open(etcd, kinds, append([]store.Option{store.WithLog(d.Log())}, opts...)...)
	if err != nil {
		return nil, err
	}
	server, err := rpc.NewServer(rpc.OptionsFor(d, cfg, creds))
	if err != nil {
		return nil, err
	}
	return &Replica{Daemon: d, Creds: creds, Store: st, Server: server, Self: feed.ReplicaOf(d.Name(), cfg.Reachable())}, nil
}

// Start serves what is registered, and the process's part of every trace.
func (r *Replica) Start() {
	tracev1.RegisterTraceServiceServer(r.Server, telemetry.NewService(r.Telemetry()))
	r.Server.Start(r.Daemon)
}
