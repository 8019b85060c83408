package rpc_test

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	ours, theirs := newRealm(t), newRealm(t)
	server := serve(t, &backend{}, onTCP(ours.creds(t, pki.Service("ipam"))))
	for _, tt := range []struct {
		what  string
		creds *rpc.Credentials
		name  pki.Identity
		kind  errs.Kind
		want  string // the caller, as the server sees it
		text  string
	}{
		{what: "a user", creds: ours.creds(t, pki.User("admin")), name: pki.Service("ipam"), want: "/user/admin"},
		{what: "a service", creds: ours.creds(t, pki.Service("policy")), name: pki.Service("ipam"), want: "/service/policy"},
		{what: "a node, which may not call this", creds: ours.creds(t, pki.Node("node-1")), name: pki.Service("ipam"), kind: errs.Denied, text: "/node/node-1 may not call it"},
		{what: "a client of another CA", creds: theirs.creds(t, pki.User("admin")), name: pki.Service("ipam"), kind: errs.Unavailable, text: "unknown authority"},
		{what: "the wrong service", creds: ours.creds(t, pki.User("admin")), name: pki.Service("policy"), kind: errs.Unavailable, text: "not policy"},
		{what: "a node in place of a service", creds: ours.creds(t, pki.User("admin")), name: pki.Node("ipam"), kind: errs.Unavailable, text: "its certificate is of /service/ipam"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		caller, err := getHops(ctx, dial(t, server.target, tt.name, tt.creds))
		cancel()
		if tt.want != "" {
			if err != nil || caller != tt.want {
				t.Errorf("%s: %q, %v", tt.what, caller, err)
			}
			continue
		}
		wantKind(t, tt.what, err, tt.kind, tt.text)
	}
}

// TestNodeCannotPoseAsService: a node's leaf with a service's DNS name, should one ever be
// signed, is still a node's.
func TestNodeCannotPoseAsService(t *testing.T) {
	t.Parallel()
	ours := newRealm(t)
	dir := t.TempDir()
	ours.issueAs(t, dir, pki.Node("evil"), []string{"ipam"})
	server := serve(t, &backend{}, onTCP(load(t, dir)))
	_, err := getHops(t.Context(), dial(t, server.target, pki.Service("ipam"), ours.creds(t, pki.User("admin"))))
	wantKind(t, "a node under a service's DNS name", err, errs.Unavailable, "its certificate is of /node/evil")
}

// TestUserLeafServesNothing: a user's leaf is good for clients only.
func TestUserLeafServesNothing(t *testing.T) {
	t.Parallel()
	ours := newRealm(t)
	dir := t.TempDir()
	ours.issueAs(t, dir, pki.User("mallory"), []string{"mallory"})
	server := serve(t, &backend{}, onTCP(load(t, dir)))
	_, err := getHops(t.Context(), dial(t, server.target, pki.User("mallory"), ours.creds(t, pki.User("admin"))))
	wantKind(t, "a server with a user's leaf", err, errs.Unavailable, "usage")
}

func TestWithoutCertificate(t *testing.T) {
	t.Parallel()
	ours, theirs := newRealm(t), newRealm(t)
	server := serve(t, &backend{}, onTCP(ours.creds(t, pki.Service("cluster"))))
	pool, err := pki.CAPool(ours.ca.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, server.target, pki.Service("cluster"), nil, rpc.WithoutCertificate(pool))
	if _, err := clusterv1.NewEnrolmentServiceClient(conn).Enroll(t.Context(), &clusterv1.EnrollRequest{}); err != nil {
		t.Errorf("Enroll: %v", err)
	}
	_, err = getHops(t.Context(), conn)
	wantKind(t, "anything else", err, errs.Denied, "needs a client certificate")
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("code %s, want Unauthenticated", status.Code(err))
	}
	_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	wantKind(t, "health", err, errs.Denied)
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	wantKind(t, "reflection", err, errs.Denied)

	wrong, err := pki.CAPool(theirs.ca.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	conn = dial(t, server.target, pki.Service("cluster"), nil, rpc.WithoutCertificate(wrong))
	_, err = clusterv1.NewEnrolmentServiceClient(conn).Enroll(t.Context(), &clusterv1.EnrollRequest{Token: "secret"})
	wantKind(t, "a server that the pinned CA does not vouch for", err, errs.Unavailable, "unknown authority")
	if _, err := rpc.Dial(server.target, pki.Service("cluster"), nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("no credentials and no word about it: %v", err)
	}
}

func TestOnlyTLS13(t *testing.T) {
	t.Parallel()
	ours := newRealm(t)
	server := serve(t, &backend{}, onTCP(ours.creds(t, pki.Service("ipam"))))
	config := ours.creds(t, pki.User("admin")).ClientTLS(pki.Service("ipam"))
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for what, creds := range map[string]credentials.TransportCredentials{
		"TLS 1.2": credentials.NewTLS(config), "no TLS": insecure.NewCredentials(),
	} {
		conn, err := grpc.NewClient(server.target, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := getHops(t.Context(), conn); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v, want Unavailable", what, err)
		}
		_ = conn.Close()
	}
}

func TestReflectionAndHealthForTheAuthenticated(t *testing.T) {
	t.Parallel()
	ours := newRealm(t)
	server := serve(t, &backend{}, onTCP(ours.creds(t, pki.Service("ipam"))))
	conn := dial(t, server.target, pki.Service("ipam"), ours.creds(t, pki.Node("node-1")))
	resp, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", resp, err)
	}
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
	}); err != nil {
		t.Fatal(err)
	}
	list, err := stream.Recv()
	if err != nil || !strings.Contains(list.String(), "podwire.trace.v1.TraceService") {
		t.Errorf("reflection: %v, %v", list, err)
	}
}

func TestCredentialsReload(t *testing.T) {
	t.Parallel()
	ours := newRealm(t)
	serverDir, clientDir := t.TempDir(), t.TempDir()
	ours.issue(t, serverDir, pki.Service("ipam"))
	ours.issue(t, clientDir, pki.User("admin"))
	serverCreds, clientCreds := load(t, serverDir), load(t, clientDir)
	server := serve(t, &backend{}, onTCP(serverCreds))
	call := func(what string) {
		t.Helper()
		if _, err := getHops(t.Context(), dial(t, server.target, pki.Service("ipam"), clientCreds)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	call("before")

	// A whole new CA: every file changes, on both sides, without a restart.
	was := serverCreds.Current()
	theirs := newRealm(t)
	theirs.issue(t, serverDir, pki.Service("ipam"))
	theirs.issue(t, clientDir, pki.User("admin"))
	call("after")
	if serverCreds.Current() == was {
		t.Error("the server did not read its files again")
	}

	// States that must not be taken: half a rotation, somebody else's leaf, nothing.
	good := serverCreds.Current()
	half := t.TempDir()
	theirs.issue(t, half, pki.Service("ipam"))
	key, err := os.ReadFile(filepath.Join(half, pki.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(serverDir, pki.KeyFile), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if serverCreds.Current() != good {
		t.Error("a key without its certificate was taken")
	}
	theirs.issue(t, serverDir, pki.Service("policy"))
	if serverCreds.Current() != good {
		t.Error("the leaf of another identity was taken")
	}
	if err := os.Remove(filepath.Join(serverDir, pki.CertFile)); err != nil {
		t.Fatal(err)
	}
	call("with files missing")
	theirs.issue(t, serverDir, pki.Service("ipam"))
	if serverCreds.Current() == good {
		t.Error("the next good state was not taken")
	}
	call("at the end")
}

func TestLoadCredentialsRefuses(t *testing.T) {
	t.Parallel()
	if _, err := rpc.LoadCredentials(t.TempDir(), nil); !errs.Is(err, errs.NotFound) {
		t.Errorf("an empty directory: %v, want NotFound", err)
	}
	ours := newRealm(t)
	dir := t.TempDir()
	ours.issue(t, dir, pki.Node("n"))
	if err := os.WriteFile(filepath.Join(dir, pki.CACertFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.LoadCredentials(dir, nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("no CA: %v, want Invalid", err)
	}
}
