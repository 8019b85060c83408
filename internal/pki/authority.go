package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"podwire.dev/internal/errs"
)

// Names of the files in an identity directory and in the CA's.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
	CertFile   = "tls.crt"
	KeyFile    = "tls.key"
)

// LeafLifetime is how long a leaf is valid until rotation lands.
const LeafLifetime = 90 * 24 * time.Hour

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// backdate tolerates the clock of a machine that is behind the signer's.
	backdate = 5 * time.Minute
)

// Authority signs leaves. It is safe for concurrent use.
type Authority struct {
	cert   *x509.Certificate
	key    crypto.Signer
	certPM []byte
}

// LoadAuthority reads ca.crt and ca.key from dir, as Init wrote them.
func LoadAuthority(dir string) (*Authority, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, CACertFile))
	if err != nil {
		return nil, errs.WrapAs(errs.NotFound, err, "pki: CA certificate (run `podwire pki init %s`?)", dir)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, errs.WrapAs(errs.NotFound, err, "pki: CA key")
	}
	return parseAuthority(certPEM, keyPEM)
}

func parseAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, errs.Wrap(err, "pki: CA certificate")
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, errs.Wrap(err, "pki: CA key")
	}
	if !cert.IsCA {
		return nil, errs.New(errs.Invalid, "pki: CA certificate: is not a CA's")
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errs.New(errs.Invalid, "pki: CA key: does not belong to the CA certificate")
	}
	return &Authority{cert: cert, key: key, certPM: certPEM}, nil
}

// newAuthority makes a self-signed CA.
func newAuthority(now time.Time) (a *Authority, certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "podwire CA " + serial.Text(16)[:8]},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: TrustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, nil, errs.WrapAs(errs.Internal, err, "pki: sign CA certificate")
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a, err = parseAuthority(certPEM, keyPEM)
	return a, certPEM, keyPEM, err
}

// CAPEM is the certificate that peers trust.
func (a *Authority) CAPEM() []byte { return a.certPM }

// Sign issues a leaf for id to the key of a PEM certificate request. Every name comes
// from id and from the arguments: what the request asks for is ignored. The lifetime
// is cut to what is left of the CA's own. Errors: Invalid for the request or id.
func (a *Authority) Sign(csrPEM []byte, id Identity, dnsNames []string, ips []netip.Addr, lifetime time.Duration) ([]byte, error) {
	if err := id.Validate(); err != nil {
		return nil, errs.Wrap(err, "pki: sign")
	}
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, errs.Wrap(err, "pki: sign %s", id)
	}
	if lifetime <= 0 {
		return nil, errs.New(errs.Invalid, "pki: sign %s: lifetime %s: must be positive", id, lifetime)
	}
	return a.issue(csr.PublicKey, id, dnsNames, ips, time.Now(), lifetime)
}

// SignStandard is Sign with the names and the lifetime every leaf of id has.
func (a *Authority) SignStandard(csrPEM []byte, id Identity) ([]byte, error) {
	dns, ips := ServerNames(id)
	return a.Sign(csrPEM, id, dns, ips, LeafLifetime)
}

func (a *Authority) issue(pub any, id Identity, dnsNames []string, ips []netip.Addr, now time.Time, lifetime time.Duration) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(lifetime)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if id.Kind != KindUser {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id.String()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
		BasicConstraintsValid: true,
		DNSNames:              dnsNames,
		URIs:                  []*url.URL{id.URI()},
	}
	for _, ip := range ips {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "pki: sign %s", id)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// NewRequest makes a key and a certificate request for it, both PEM. The request
// carries no name: the signer takes it from the token.
func NewRequest() (csrPEM, keyPEM []byte, err error) {
	_, keyPEM, err = newKey()
	if err != nil {
		return nil, nil, err
	}
	csrPEM, err = RequestFor(keyPEM)
	return csrPEM, keyPEM, err
}

// RequestFor makes a certificate request for an existing key, so that an enrolment
// that was interrupted goes on with the key it began with.
func RequestFor(keyPEM []byte) (csrPEM []byte, err error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, errs.Wrap(err, "pki: certificate request")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "pki: certificate request")
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// RequestKeyID is the SHA-256 of the public key in a certificate request, in hex.
// cluster stores it with a token that was used: the same key asking again is the
// same enrolment, whose answer got lost, and not a second use.
func RequestKeyID(csrPEM []byte) (string, error) {
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:]), nil
}

// ParseCertificate reads the first certificate of a PEM text; the error is Invalid.
func ParseCertificate(certPEM []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errs.New(errs.Invalid, "certificate: must be PEM of type CERTIFICATE")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "certificate")
	}
	return cert, nil
}

func parseRequest(csrPEM []byte) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 {
		return nil, errs.New(errs.Invalid, "certificate request: must be one PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "certificate request")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "certificate request: signature")
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errs.New(errs.Invalid, "certificate request: key must be ECDSA P-256")
	}
	return csr, nil
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, errs.WrapAs(errs.Internal, err, "pki: generate key")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, errs.WrapAs(errs.Internal, err, "pki: encode key")
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(keyPEM []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errs.New(errs.Invalid, "private key: must be PEM of type PRIVATE KEY (PKCS #8)")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "private key")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errs.New(errs.Invalid, "private key: must be ECDSA P-256")
	}
	return key, nil
}

// newSerial is 127 random bits, positive (RFC 5280, section 4.1.2.2).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "pki: serial number")
	}
	return serial.SetBit(serial, 126, 1), nil
}
