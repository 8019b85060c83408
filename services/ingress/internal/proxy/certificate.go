package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"

	"podwire.dev/internal/errs"
)

// SelfSignedName is the common name of the server's own certificate, which clients see that ask for a host without one.
const SelfSignedName = "Podwire ingress: no certificate for this host"

// selfSigned makes the server's own certificate. It proves nothing to anybody; it lets a client finish the handshake and
// read why there is no route.
func selfSigned(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "proxy: make a key")
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "proxy: make a serial number")
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: SelfSignedName},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"ingress.invalid"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "proxy: sign the server's own certificate")
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// certificate is what a client is shown.
func (f *Front) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	s := f.state.Load()
	if c := s.Table.Certificate(hello.ServerName); c != nil {
		if held := s.Certificates[c.Secret]; held != nil {
			return held, nil
		}
	}
	return f.self, nil
}
