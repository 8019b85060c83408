// Package apptest runs a service's app as its process would run it, inside a test: on a store in memory, behind mutual TLS
// on loopback.
//
// In: the service's name, its kinds, and how its app serves. Out: a Stack, which writes objects as other services would,
// dials as whoever the test wants to be, and stops the replica, which must end without an error.
//
// Invariants: a Stack has at most one replica at a time; its store outlives the replicas. The package must not know any
// service or kind.
package apptest

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/rpc/rpctest"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/telemetry"
)

// patience bounds what has to happen, so that what never does fails.
const patience = 30 * time.Second

// Stack is a service under test.
type Stack struct {
	T *testing.T
	// Ctx ends when patience is over.
	Ctx context.Context
	// Fake is the store as others have it; the replica has one of its own on the same data.
	Fake *storefake.Fake
	// Dir is what `podwire pki init` made for the service and node-1, CA what signs there.
	Dir string
	CA  *pki.Authority

	name  string
	kinds store.Kinds
	opts  []store.Option

	addr  string
	end   func()
	ended chan error
}

// New makes the surroundings of a service: an empty store of its kinds, and a CA.
func New(t *testing.T, name string, kinds store.Kinds, opts ...store.Option) *Stack {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s := &Stack{T: t, Ctx: ctx, Fake: storefake.New(kinds, opts...), name: name, kinds: kinds, opts: opts}
	s.Dir, s.CA = rpctest.Authority(t, pki.Plan{Services: []string{name}, Nodes: []string{"node-1"}})
	return s
}

// Serve runs a replica until End or the end of the test, and returns when serve has.
func (s *Stack) Serve(serve func(*service.Replica) error) {
	s.T.Helper()
	tele, err := telemetry.New(s.Ctx, telemetry.Process{Service: s.name})
	if err != nil {
		s.T.Fatal(err)
	}
	d := daemon.New(daemon.Options{Name: s.name, Log: slog.New(slog.DiscardHandler), Telemetry: tele})
	creds := s.Credentials(pki.Service(s.name))
	server, err := rpc.NewServer(rpc.OptionsFor(d, daemon.Common{Listen: "127.0.0.1:0"}, creds))
	if err != nil {
		s.T.Fatal(err)
	}
	s.addr = server.Addr().String()
	r := &service.Replica{
		Daemon: d, Creds: creds, Store: s.Fake.Another(s.kinds, s.opts...), Server: server,
		Self: store.Replica{Service: s.name, Name: s.addr, Address: s.addr},
	}
	ended, wired := make(chan error, 1), make(chan error, 1)
	go func() { // ends with the daemon, which end waits for
		ended <- d.Run(s.Ctx, func(context.Context) error {
			err := serve(r)
			wired <- err
			return err
		})
	}()
	s.ended = ended
	s.end = sync.OnceFunc(func() {
		d.Stop()
		if err := <-ended; err != nil {
			s.T.Errorf("%s ended with: %v", s.name, err)
		}
	})
	s.T.Cleanup(s.end)
	if err := <-wired; err != nil {
		s.T.Fatal(err)
	}
}

// End stops the replica, which must have had no reason of its own to end.
func (s *Stack) End() { s.end() }

// Failure waits until the replica ends by itself, and returns why.
func (s *Stack) Failure() error {
	err := <-s.ended
	s.ended <- nil // what End finds
	return err
}

// Credentials are those of somebody whom the CA knows.
func (s *Stack) Credentials(id pki.Identity) *rpc.Credentials {
	s.T.Helper()
	return rpctest.Credentials(s.T, s.CA, id)
}

// Dial connects to the replica as id. The connection checks health: a call with grpc.WaitForReady goes out when the
// service is SERVING.
func (s *Stack) Dial(id pki.Identity) *grpc.ClientConn {
	s.T.Helper()
	conn, err := rpc.Dial("passthrough:///"+s.addr, pki.Service(s.name), s.Credentials(id))
	if err != nil {
		s.T.Fatal(err)
	}
	s.T.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Put creates an object or replaces it, past the service's own rules.
func (s *Stack) Put(kind string, o store.Object) store.Revision {
	s.T.Helper()
	tx := s.Fake.Txn()
	if rec, _, err := s.Fake.Get(s.Ctx, store.KeyOf(kind, o)); err == nil {
		tx.Update(rec, o)
	} else {
		tx.Create(o, kind)
	}
	rev, err := tx.Commit(s.Ctx)
	if err != nil {
		s.T.Fatal(err)
	}
	return rev
}

// Passed waits for the service's watermark: every node that counts holds the revision, or, for a service without nodes,
// every replica answers from it.
func (s *Stack) Passed(at store.Revision) {
	s.T.Helper()
	for list, err := range s.Fake.WatchWatermarks(s.Ctx) {
		if err != nil {
			s.T.Fatalf("the watermark does not pass %d: %v", at, err)
		}
		if slices.ContainsFunc(list, func(w store.Watermark) bool { return w.Service == s.name && w.Revision >= at }) {
			return
		}
	}
	s.T.Fatalf("the watermark does not pass %d", at)
}
