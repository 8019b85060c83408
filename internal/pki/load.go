package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"podwire.dev/internal/errs"
)

// Loaded is the content of an identity directory: who we are and whom we trust.
type Loaded struct {
	ID   Identity
	Leaf *x509.Certificate
	TLS  tls.Certificate
	CAs  *x509.CertPool
}

// LoadIdentity reads ca.crt, tls.crt and tls.key from dir and checks that they belong
// together. Errors: NotFound without a certificate, Invalid for a bad one.
func LoadIdentity(dir string) (*Loaded, error) {
	read := func(name string) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errs.WrapAs(errs.NotFound, err, "identity directory %s", dir)
		}
		return b, errs.WrapAs(errs.Internal, err, "identity directory %s", dir)
	}
	certPEM, err := read(CertFile)
	if err != nil {
		return nil, err
	}
	keyPEM, err := read(KeyFile)
	if err != nil {
		return nil, err
	}
	caPEM, err := read(CACertFile)
	if err != nil {
		return nil, err
	}
	loaded, err := parseIdentity(caPEM, certPEM, keyPEM)
	return loaded, errs.Wrap(err, "identity directory %s", dir)
}

func parseIdentity(caPEM, certPEM, keyPEM []byte) (*Loaded, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "%s and %s", CertFile, KeyFile)
	}
	pool, err := CAPool(caPEM)
	if err != nil {
		return nil, err
	}
	id, err := FromURIs(pair.Leaf.URIs)
	if err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "%s", CertFile)
	}
	return &Loaded{ID: id, Leaf: pair.Leaf, TLS: pair, CAs: pool}, nil
}

// CAPool is the pool of the CA certificates in a PEM text; Invalid if it has none.
func CAPool(caPEM []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caPEM) {
		return nil, errs.New(errs.Invalid, "%s: holds no PEM certificate", CACertFile)
	}
	return pool, nil
}

// HasIdentity says whether dir holds a certificate. What else has to be there is
// LoadIdentity's to judge.
func HasIdentity(dir string) (bool, error) {
	have, err := exists(filepath.Join(dir, CertFile))
	return have, errs.WrapAs(errs.Internal, err, "identity directory %s", dir)
}

// VerifyLeaf checks that a certificate is signed by the CA, belongs to the key and names
// one identity: what is written as an identity directory must be usable as one.
func VerifyLeaf(caPEM, certPEM, keyPEM []byte) error {
	loaded, err := parseIdentity(caPEM, certPEM, keyPEM)
	if err != nil {
		return err
	}
	_, err = loaded.Leaf.Verify(x509.VerifyOptions{Roots: loaded.CAs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return errs.WrapAs(errs.Invalid, err, "%s", CertFile)
}
