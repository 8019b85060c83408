package planner

import (
	"crypto/tls"
	"maps"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/route"
)

// The keys of a Secret of type kubernetes.io/tls.
const (
	dataCertificate = "tls.crt"
	dataKey         = "tls.key"
)

// certificates are what Secrets hold.
type certificates struct {
	of      map[route.Ref]*tls.Certificate
	changed bool
}

func newCertificates() certificates {
	return certificates{of: map[route.Ref]*tls.Certificate{}, changed: true}
}

// set reads a Secret. It says why it is no certificate, in words that show nothing of it.
func (c *certificates) set(ref route.Ref, o *objectv1.Secret) (problem string) {
	c.remove(ref)
	cert, key := o.GetData()[dataCertificate], o.GetData()[dataKey]
	switch {
	case len(cert) == 0:
		return "has no " + dataCertificate
	case len(key) == 0:
		return "has no " + dataKey
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		// The error may quote what it read.
		return dataCertificate + " and " + dataKey + " are not a certificate in PEM and its private key"
	}
	c.of[ref], c.changed = &pair, true
	return ""
}

func (c *certificates) remove(ref route.Ref) {
	if c.of[ref] != nil {
		delete(c.of, ref)
		c.changed = true
	}
}

// snapshot is a copy that does not change.
func (c *certificates) snapshot() map[route.Ref]*tls.Certificate {
	c.changed = false
	return maps.Clone(c.of)
}
