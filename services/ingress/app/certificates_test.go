package app_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/pki"
	"podwire.dev/internal/store"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// keyPair makes what a TLS Secret holds.
func keyPair(t *testing.T, host string, serial int64) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// TestCertificates shows the certificate of a Secret, its successor, and the server's own where there is none.
func TestCertificates(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	user := s.Dial(pki.User("alice"))
	secrets, routes := ingressv1.NewSecretServiceClient(user), ingressv1.NewRouteServiceClient(user)
	in := ingressOf(t, "tls-ingress.yaml")
	applied, err := ingressv1.NewIngressServiceClient(user).Apply(s.Ctx, &ingressv1.IngressServiceApplyRequest{Object: in}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if got := applied.GetObject().GetSpec().GetIngressClassName(); got != "nginx-example" {
		t.Errorf("the default class is not filled in: %q", got)
	}
	_, https, err := s.running.Addresses(s.Ctx)
	if err != nil {
		t.Fatal(err)
	}
	serial := func(at store.Revision) int64 {
		t.Helper()
		s.Passed(at)
		c, err := tls.Dial("tcp", https[0].String(), &tls.Config{ServerName: "https-example.foo.com", InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		leaf := c.ConnectionState().PeerCertificates[0]
		if !leaf.SerialNumber.IsInt64() {
			return 0
		}
		return leaf.SerialNumber.Int64()
	}
	if got := serial(store.Revision(applied.GetRevision())); got != 0 {
		t.Errorf("without the Secret the certificate is %d", got)
	}
	for _, n := range []int64{7, 8} {
		cert, key := keyPair(t, "https-example.foo.com", n)
		got, err := secrets.Apply(s.Ctx, &ingressv1.SecretServiceApplyRequest{Object: &objectv1.Secret{
			Metadata: &objectv1.ObjectMeta{Name: "testsecret-tls"}, Type: "kubernetes.io/tls",
			Data: map[string][]byte{"tls.crt": cert, "tls.key": key},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if got := serial(store.Revision(got.GetRevision())); got != n {
			t.Errorf("the certificate is %d, want %d", got, n)
		}
	}
	match, err := routes.Match(s.Ctx, &ingressv1.MatchRequest{Host: "https-example.foo.com", Tls: true})
	if err != nil || match.GetCertificate() != "default/testsecret-tls" {
		t.Errorf("match: %v, %v", match, err)
	}
	if match, err = routes.Match(s.Ctx, &ingressv1.MatchRequest{Host: "https-example.foo.com"}); err != nil || match.GetStatus() != 308 {
		t.Errorf("match without TLS: %v, %v", match, err)
	}
}
