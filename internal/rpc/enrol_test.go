package rpc_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

// enroller is cluster's side in small: records, one use of a node's token per key.
type enroller struct {
	realm   *realm
	records []pki.TokenRecord

	mu   sync.Mutex
	used map[string]string // token id -> key id
	lose int               // answers to lose after signing
}

func newEnroller(t *testing.T, r *realm) *enroller {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.dir, pki.TokensFile))
	if err != nil {
		t.Fatal(err)
	}
	records, err := pki.ParseTokens(data)
	if err != nil {
		t.Fatal(err)
	}
	return &enroller{realm: r, records: records, used: map[string]string{}}
}

func (e *enroller) enroll(_ context.Context, req *clusterv1.EnrollRequest) (*clusterv1.EnrollResponse, error) {
	record, err := pki.Redeem(e.records, req.GetToken(), time.Now())
	if err != nil {
		return nil, err
	}
	key, err := pki.RequestKeyID([]byte(req.GetCsrPem()))
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if by, ok := e.used[record.ID]; ok && by != key && record.Uses == pki.Once {
		return nil, errs.New(errs.Denied, "join token %s: was used already", record.ID)
	}
	e.used[record.ID] = key
	cert, err := e.realm.ca.SignStandard([]byte(req.GetCsrPem()), record.Identity())
	if err != nil {
		return nil, err
	}
	if e.lose > 0 {
		e.lose--
		return nil, errs.New(errs.Unavailable, "the answer got lost")
	}
	return &clusterv1.EnrollResponse{CertificatePem: string(cert), CaPem: string(e.realm.ca.CAPEM())}, nil
}

func joining(r *realm, target, dir string, id pki.Identity) daemon.Common {
	return daemon.Common{Identity: dir, Join: &daemon.Join{
		Target: target, TokenFile: pki.TokenFile(r.dir, id), CAFile: filepath.Join(r.dir, pki.CACertFile),
	}}
}

var quiet = slog.New(slog.DiscardHandler)

func TestEnrol(t *testing.T) {
	t.Parallel()
	ours := newRealm(t)
	e := newEnroller(t, ours)
	server := serve(t, &backend{enroll: e.enroll}, onTCP(ours.creds(t, pki.Service("cluster"))))

	dir := filepath.Join(t.TempDir(), "identity")
	cfg := joining(ours, server.target, dir, pki.Node("node-1"))
	e.lose = 1
	if err := rpc.Enrol(t.Context(), quiet, cfg); err != nil {
		t.Fatalf("after a lost answer: %v", err)
	}
	creds := load(t, dir)
	if creds.Identity() != pki.Node("node-1") {
		t.Errorf("became %s", creds.Identity())
	}
	info, err := os.Stat(filepath.Join(dir, pki.KeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info.Mode(), err)
	}
	// The certificate is good for calls.
	err = rpc.CheckHealth(t.Context(), server.target, pki.Service("cluster"), creds)
	if err != nil {
		t.Error(err)
	}
	// A process that has an identity asks nobody.
	cfg.Join.Target = "passthrough:///127.0.0.1:1"
	if err := rpc.Enrol(t.Context(), quiet, cfg); err != nil {
		t.Errorf("with an identity: %v", err)
	}
	if err := rpc.Enrol(t.Context(), quiet, daemon.Common{Identity: t.TempDir()}); err != nil {
		t.Errorf("without join: %v", err)
	}

	// The node's token is used up; a service's is not.
	cfg = joining(ours, server.target, t.TempDir(), pki.Node("node-1"))
	wantKind(t, "a second machine with the node's token", rpc.Enrol(t.Context(), quiet, cfg), errs.Denied, "was used already")
	for range 2 {
		if err := rpc.Enrol(t.Context(), quiet, joining(ours, server.target, t.TempDir(), pki.Service("ipam"))); err != nil {
			t.Errorf("a replica of a service: %v", err)
		}
	}
}

func TestEnrolWaitsForCluster(t *testing.T) {
	t.Parallel()
	ours := newRealm(t)
	e := newEnroller(t, ours)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is ours and answers nothing yet
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	log := &lockedLog{}
	done := make(chan error, 1)
	tried := make(chan struct{})
	go func() {
		logger := slog.New(slog.NewTextHandler(&firstWrite{Writer: log, first: sync.OnceFunc(func() { close(tried) })}, nil))
		done <- rpc.Enrol(t.Context(), logger, joining(ours, "passthrough:///"+address, t.TempDir(), pki.Node("node-1")))
	}()
	<-tried
	serve(t, &backend{enroll: e.enroll}, func(o *rpc.ServerOptions) {
		o.Listen, o.Creds = address, ours.creds(t, pki.Service("cluster"))
	})
	if err := <-done; err != nil {
		t.Errorf("%v\n%s", err, log)
	}
}

// firstWrite calls first when something is written.
type firstWrite struct {
	Writer *lockedLog
	first  func()
}

// Write passes p on.
func (f *firstWrite) Write(p []byte) (int, error) {
	defer f.first()
	return f.Writer.Write(p)
}

func TestEnrolRefuses(t *testing.T) {
	t.Parallel()
	ours, theirs := newRealm(t), newRealm(t)
	e := newEnroller(t, ours)
	b := &backend{enroll: e.enroll}
	server := serve(t, b, onTCP(ours.creds(t, pki.Service("cluster"))))
	imposter := serve(t, &backend{enroll: newEnroller(t, ours).enroll}, onTCP(ours.creds(t, pki.Node("node-1"))))
	foreign := serve(t, &backend{enroll: func(_ context.Context, req *clusterv1.EnrollRequest) (*clusterv1.EnrollResponse, error) {
		cert, err := theirs.ca.SignStandard([]byte(req.GetCsrPem()), pki.Node("node-1"))
		return &clusterv1.EnrollResponse{CertificatePem: string(cert), CaPem: string(theirs.ca.CAPEM())}, err
	}}, onTCP(ours.creds(t, pki.Service("cluster"))))

	for _, tt := range []struct {
		what   string
		change func(*daemon.Common)
		kind   errs.Kind
		text   string
	}{
		{"a token of another cluster", func(c *daemon.Common) { c.Join.TokenFile = pki.TokenFile(theirs.dir, pki.Node("node-1")) }, errs.Denied, "is not known"},
		{"no token in the file", func(c *daemon.Common) { c.Join.TokenFile = c.Join.CAFile }, errs.Invalid, "must be pw1"},
		{"no token file", func(c *daemon.Common) { c.Join.TokenFile = "/does/not/exist" }, errs.NotFound, "join token"},
		{"no CA file", func(c *daemon.Common) { c.Join.CAFile = "/does/not/exist" }, errs.NotFound, "CA certificate"},
		{"an answer signed by another CA", func(c *daemon.Common) { c.Join.Target = foreign.target }, errs.Invalid, "cluster's answer"},
	} {
		cfg := joining(ours, server.target, t.TempDir(), pki.Node("node-1"))
		tt.change(&cfg)
		wantKind(t, tt.what, rpc.Enrol(t.Context(), quiet, cfg), tt.kind, tt.text)
		if have, err := pki.HasIdentity(cfg.Identity); have || err != nil {
			t.Errorf("%s: an identity was written, %v", tt.what, err)
		}
	}

	// A server that is not cluster, by CA or by name, never sees the token; it may be a
	// matter of time until the right one answers, so only the end of the context ends it.
	for what, cfg := range map[string]daemon.Common{
		"another CA": func() daemon.Common {
			c := joining(ours, server.target, t.TempDir(), pki.Node("node-1"))
			c.Join.CAFile = filepath.Join(theirs.dir, pki.CACertFile)
			return c
		}(),
		"a node": joining(ours, imposter.target, t.TempDir(), pki.Node("node-1")),
	} {
		ctx, cancel := context.WithCancel(t.Context())
		log := &lockedLog{}
		err := rpc.Enrol(ctx, slog.New(slog.NewTextHandler(&firstWrite{Writer: log, first: cancel}, nil)), cfg)
		cancel()
		wantKind(t, what, err, errs.Unavailable, "context canceled")
		if !strings.Contains(log.String(), "trying again") {
			t.Errorf("%s: log %q", what, log)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.used) != 0 {
		t.Errorf("a token was given to the wrong server, or redeemed: %v", e.used)
	}
}
