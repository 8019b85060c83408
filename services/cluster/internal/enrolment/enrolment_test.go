package enrolment

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
)

// bench is a desk with a CA of its own.
type bench struct {
	t       *testing.T
	desk    *Desk
	now     time.Time
	initial []pki.TokenRecord
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	if _, err := pki.Init(dir, pki.Plan{}); err != nil {
		t.Fatal(err)
	}
	authority, err := pki.LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, now: time.Now()}
	b.desk = &Desk{
		Store: storefake.New(store.Kinds{}).Store, Signer: authority, Log: slog.New(slog.DiscardHandler),
		Initial: func() ([]pki.TokenRecord, error) { return b.initial, nil }, Now: func() time.Time { return b.now },
	}
	return b
}

func (b *bench) request() []byte {
	b.t.Helper()
	csr, _, err := pki.NewRequest()
	if err != nil {
		b.t.Fatal(err)
	}
	return csr
}

func (b *bench) token(id pki.Identity) (token, tokenID string) {
	b.t.Helper()
	token, tokenID, err := b.desk.Create(context.Background(), id, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return token, tokenID
}

// enrol returns the identity that the leaf names.
func (b *bench) enrol(token string, csr []byte) (pki.Identity, error) {
	cert, err := b.desk.Enrol(context.Background(), token, csr, nil)
	if err != nil {
		return pki.Identity{}, err
	}
	leaf, err := pki.ParseCertificate(cert.Leaf)
	if err != nil {
		b.t.Fatal(err)
	}
	id, err := pki.FromURIs(leaf.URIs)
	if err != nil {
		b.t.Fatal(err)
	}
	return id, nil
}

func (b *bench) refused(what string, err error, kind errs.Kind, text string) {
	b.t.Helper()
	if !errs.Is(err, kind) || !strings.Contains(err.Error(), text) {
		b.t.Errorf("%s: %v, want %s with %q", what, err, kind, text)
	}
}

func TestNodeTokenWorksOnce(t *testing.T) {
	b := newBench(t)
	token, _ := b.token(pki.Node("node-1"))
	csr := b.request()
	if id, err := b.enrol(token, csr); err != nil || id != pki.Node("node-1") {
		t.Fatalf("enrolled as %s: %v", id, err)
	}
	if _, err := b.enrol(token, csr); err != nil {
		t.Errorf("the same request again, whose answer may have been lost: %v", err)
	}
	_, err := b.enrol(token, b.request())
	b.refused("another key", err, errs.Denied, "was used already")
	b.now = b.now.Add(RepeatWithin + time.Second)
	_, err = b.enrol(token, csr)
	b.refused("the same request much later", err, errs.Denied, "was used already")
}

func TestServiceTokenWorksForEveryReplica(t *testing.T) {
	b := newBench(t)
	token, _ := b.token(pki.Service("policy"))
	for range 3 {
		if id, err := b.enrol(token, b.request()); err != nil || id != pki.Service("policy") {
			t.Errorf("enrolled as %s: %v", id, err)
		}
	}
}

func TestBadTokens(t *testing.T) {
	b := newBench(t)
	token, id := b.token(pki.Node("node-1"))
	other, _ := b.token(pki.Node("node-2"))

	_, err := b.enrol("hello", b.request())
	b.refused("no token", err, errs.Invalid, "must be pw1.")
	mixed := token[:strings.LastIndexByte(token, '.')] + other[strings.LastIndexByte(other, '.'):]
	_, err = b.enrol(mixed, b.request())
	b.refused("the secret of another node's token", err, errs.Denied, "is not known, or its secret is wrong")
	_, err = b.enrol(token, []byte("x"))
	b.refused("no request", err, errs.Invalid, "certificate request")

	if err := b.desk.Revoke(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	_, err = b.enrol(token, b.request())
	b.refused("a revoked token", err, errs.Denied, "was revoked")
	if err := b.desk.Revoke(context.Background(), id); err != nil {
		t.Errorf("revoking again: %v", err)
	}
	b.refused("revoking nothing", b.desk.Revoke(context.Background(), "000000000000"), errs.NotFound, "not found")

	b.now = b.now.Add(DefaultLifetime)
	_, err = b.enrol(other, b.request())
	b.refused("an old token", err, errs.Denied, "expired")
}

func TestInitialTokens(t *testing.T) {
	b := newBench(t)
	token, rec, err := pki.NewToken(pki.Node("node-7"), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.enrol(token, b.request())
	b.refused("a token that is not there yet", err, errs.Denied, "is not known")
	b.initial = []pki.TokenRecord{rec}
	if id, err := b.enrol(token, b.request()); err != nil || id != pki.Node("node-7") {
		t.Errorf("enrolled as %s: %v", id, err)
	}
	if err := b.desk.Revoke(context.Background(), rec.ID); err != nil {
		t.Fatal(err)
	}
	_, err = b.enrol(token, b.request())
	b.refused("an initial token that was revoked", err, errs.Denied, "was revoked")
}

func TestCreateRefuses(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	_, _, err := b.desk.Create(ctx, pki.User("eve"), 0)
	b.refused("a user's token", err, errs.Invalid, "only nodes and services enrol")
	_, _, err = b.desk.Create(ctx, pki.Node("policy"), 0)
	b.refused("a node that is called like a service", err, errs.Invalid, "is the name of a service")
	_, _, err = b.desk.Create(ctx, pki.Node("n1"), MaxLifetime+time.Second)
	b.refused("too long", err, errs.Invalid, "lifetime_seconds")
	_, _, err = b.desk.Create(ctx, pki.Node("n1"), -time.Second)
	b.refused("negative", err, errs.Invalid, "lifetime_seconds")
}

func TestAddresses(t *testing.T) {
	b := newBench(t)
	token, _ := b.token(pki.Service("ipam"))
	_, err := b.desk.Enrol(context.Background(), token, b.request(), []string{"x", "127.0.0.1", "ff02::1", "fe80::1%eth0"})
	b.refused("no addresses of a machine", err, errs.Invalid, "ip_addresses[3]")
	cert, err := b.desk.Enrol(context.Background(), token, b.request(), []string{"172.30.0.7", "fd00::7"})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.ParseCertificate(cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.VerifyHostname("172.30.0.7"); err != nil {
		t.Error(err)
	}
	if err := leaf.VerifyHostname("ipam"); err != nil {
		t.Error(err)
	}
}
