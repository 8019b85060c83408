package etcdserver

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/rpc/rpctest"
	"podwire.dev/internal/store/etcdkv"
	"podwire.dev/internal/store/kv"
)

// freePort is a port of loopback that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start runs etcd until the test or stop ends it.
func start(t *testing.T, cfg Config) (stop func() error) {
	t.Helper()
	d := daemon.New(daemon.Options{Name: Name})
	ready, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- d.Run(ctx, func(ctx context.Context) error {
			err := run(ctx, d, cfg)
			if err == nil {
				close(ready)
			}
			return err
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("etcd did not start: %v", err)
	}
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func TestOnlyServicesOpenTheStore(t *testing.T) {
	t.Parallel()
	pkiDir, ca := rpctest.Authority(t, pki.Plan{})
	cfg := Config{DataDir: filepath.Join(t.TempDir(), "data")}
	cfg.SetDefaults()
	cfg.PeerPort = freePort(t)
	cfg.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	cfg.Identity = filepath.Join(pkiDir, pki.EtcdDir)
	if v := cfg.Check(); len(v) > 0 {
		t.Fatal(v)
	}
	stop := start(t, cfg)

	server := pki.Service("etcd")
	anonymous := rpctest.Credentials(t, ca, pki.Service("ipam")).ClientTLS(server)
	anonymous.GetClientCertificate = nil
	old := rpctest.Credentials(t, ca, pki.Service("ipam")).ClientTLS(server)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, tt := range []struct {
		who  string
		tls  *tls.Config
		open bool
	}{
		{"a service", rpctest.Credentials(t, ca, pki.Service("ipam")).ClientTLS(server), true},
		{"a node", rpctest.Credentials(t, ca, pki.Node("node-1")).ClientTLS(server), false},
		{"a user", rpctest.Credentials(t, ca, pki.User("admin")).ClientTLS(server), false},
		{"nobody", anonymous, false},
		{"TLS 1.2", old, false},
	} {
		err := use(t, cfg.Listen, tt.tls)
		if tt.open && err != nil {
			t.Errorf("%s: %v, want an open store", tt.who, err)
		}
		if !tt.open && !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("%s: %v, want a closed door", tt.who, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := rpc.Healthcheck(ctx, Name, daemon.Common{Listen: cfg.Listen, Identity: cfg.Identity}); err != nil {
		t.Errorf("healthcheck: %v", err)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}

	// A restart finds what was written.
	start(t, cfg)
	if n := len(read(t, cfg.Listen, rpctest.Credentials(t, ca, pki.Service("ipam")).ClientTLS(server)).KVs); n != 1 {
		t.Errorf("after a restart there are %d keys, want 1", n)
	}
	if info, err := os.Stat(cfg.DataDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v; want mode 0700", info.Mode(), err)
	}
}

const key = "/test"

func dial(t *testing.T, listen string, config *tls.Config) kv.Engine {
	t.Helper()
	engine, err := etcdkv.Dial(etcdkv.Config{Endpoints: []string{"https://" + listen}, TLS: config, DialTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return engine
}

// use writes a key.
func use(t *testing.T, listen string, config *tls.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := dial(t, listen, config).Txn(ctx, kv.TxnRequest{Ops: []kv.Op{{Action: kv.Put, Key: key, Value: []byte("x")}}})
	return err
}

func read(t *testing.T, listen string, config *tls.Config) kv.RangeResponse {
	t.Helper()
	resp, err := dial(t, listen, config).Range(t.Context(), kv.RangeRequest{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// A store that begins without data is another one than any before, and stays the same over restarts.
func TestAnEmptiedStoreIsAnother(t *testing.T) {
	t.Parallel()
	pkiDir, ca := rpctest.Authority(t, pki.Plan{})
	cfg := Config{DataDir: filepath.Join(t.TempDir(), "data")}
	cfg.SetDefaults()
	cfg.PeerPort = freePort(t)
	cfg.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	cfg.Identity = filepath.Join(pkiDir, pki.EtcdDir)
	client := rpctest.Credentials(t, ca, pki.Service("ipam")).ClientTLS(pki.Service("etcd"))
	cluster := func() uint64 {
		t.Helper()
		stop := start(t, cfg)
		id := read(t, cfg.Listen, client).Header.Cluster
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		return id
	}
	first := cluster()
	if again := cluster(); again != first {
		t.Errorf("after a restart the cluster id is %x, was %x", again, first)
	}
	if err := os.RemoveAll(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	if emptied := cluster(); emptied == first {
		t.Errorf("the emptied store has the cluster id %x of the one before", emptied)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "etcd.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("listen: 192.0.2.1:2379\nidentity: /i\ndataDir: /d\n")
	cfg, err := daemon.Load[Config](path)
	if err != nil {
		t.Fatal(err)
	}
	s := settings(cfg)
	if err := s.Validate(); err != nil {
		t.Errorf("etcd refuses its settings: %v", err)
	}
	if s.UnsafeNoFsync || s.AutoCompactionRetention != "1h0m0s" || s.MaxTxnOps != 128 || s.MaxRequestBytes != 3<<19 || s.EnableGRPCGateway {
		t.Errorf("settings: %+v", s)
	}
	for text, want := range map[string]string{
		"listen: etcd:2379\nidentity: /i\ndataDir: /d\n":                           "listen",
		"listen: 192.0.2.1:2379\nidentity: /i\ndataDir: d\n":                       "dataDir",
		"listen: 192.0.2.1:2379\nidentity: /i\ndataDir: /d\npeerPort: 70000\n":     "peerPort",
		"listen: 192.0.2.1:2379\nidentity: /i\ndataDir: /d\nquotaBytes: 1\n":       "quotaBytes",
		"listen: 192.0.2.1:2379\nidentity: /i\ndataDir: /d\nunsafeNoFsync: true\n": "not a known key",
	} {
		write(text)
		if _, err := daemon.Load[Config](path); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want Invalid with %q", text, err, want)
		}
	}
}
