package storetest

import (
	"context"
	"net/url"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"podwire.dev/internal/store"
	"podwire.dev/internal/store/etcdkv"
	"podwire.dev/internal/store/kv"
)

// Etcd is an etcd of one member in this process, on loopback.
type Etcd struct {
	server   *embed.Etcd
	dir      string
	listen   string
	Endpoint string
}

// startTimeout bounds how long an etcd takes to elect itself.
const startTimeout = 30 * time.Second

// StartEtcd starts an empty etcd that ends with the test.
func StartEtcd(t testing.TB) *Etcd {
	t.Helper()
	e := &Etcd{dir: t.TempDir(), listen: "127.0.0.1:0"}
	e.Start(t)
	t.Cleanup(e.Stop)
	return e
}

// Start starts it, after Stop with the data and the address that it had.
func (e *Etcd) Start(t testing.TB) {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = e.dir
	cfg.UnsafeNoFsync = true
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	client := url.URL{Scheme: "http", Host: e.listen}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	e.server, e.listen = server, server.Clients[0].Addr().String()
	e.Endpoint = "http://" + e.listen
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(startTimeout):
		server.Close()
		t.Fatalf("etcd was not ready after %v", startTimeout)
	}
}

// Stop ends it and keeps its data. A second Stop does nothing.
func (e *Etcd) Stop() {
	if e.server == nil {
		return
	}
	e.server.Close()
	e.server = nil
}

// Backup copies the data of a stopped etcd and returns a function that puts the copy back in place, while it is stopped.
func (e *Etcd) Backup(t testing.TB) (restore func()) {
	t.Helper()
	saved := t.TempDir()
	if err := os.CopyFS(saved, os.DirFS(e.dir)); err != nil {
		t.Fatal(err)
	}
	return func() {
		e.dir = t.TempDir()
		if err := os.CopyFS(e.dir, os.DirFS(saved)); err != nil {
			t.Fatal(err)
		}
		// etcd refuses a data directory that others may read.
		if err := os.Chmod(e.dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// Engine connects to it. The connection ends with the test.
func (e *Etcd) Engine(t testing.TB) kv.Engine {
	t.Helper()
	engine, err := etcdkv.Dial(etcdkv.Config{Endpoints: []string{e.Endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	return engine
}

// Subject empties it for a conformance test.
func (e *Etcd) Subject(t *testing.T) Subject {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if _, err := client.Delete(ctx, "/podwire/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	return Subject{
		Engine: e.Engine(t),
		Compact: func(t *testing.T, at store.Revision) {
			t.Helper()
			if _, err := client.Compact(t.Context(), int64(at), clientv3.WithCompactPhysical()); err != nil {
				t.Fatal(err)
			}
		},
	}
}
