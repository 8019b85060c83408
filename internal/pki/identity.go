// Package pki says who is who: SPIFFE identities, the certificate authority, leaf
// certificates, and the join tokens that buy the first certificate.
//
// In: a directory, names, certificate requests, tokens. Out: PEM files and records. The key file of Secrets, which
// belongs to the same directory, is made and read here as well.
//
// Invariants: the subject alternative names of a leaf come from the identity it is
// issued for, never from the request. Only a leaf of a service carries EtcdClient,
// the name that etcd asks of its clients. A secret is stored as its hash, except in
// the one 0600 file that hands it to its user. Files appear whole or not at all,
// private ones with mode 0600 from the first byte on. The package does not talk
// to the network, and it does not remember which tokens were used: cluster does, in
// its store.
package pki

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"podwire.dev/internal/errs"
)

// TrustDomain is the authority of every SPIFFE URI here (SPIFFE-ID, section 2.1).
const TrustDomain = "podwire"

// EtcdClient is the DNS name in the leaves of services, and in no other leaf, that
// etcd requires of its clients (--client-cert-allowed-hostname). The CA signs nodes
// and users too, and none of them may open the store.
const EtcdClient = "etcd-client"

// Kind is the sort of thing that an identity names.
type Kind string

// The kinds. Anonymous is a client without a certificate; no certificate says so.
const (
	KindNode      Kind = "node"
	KindService   Kind = "service"
	KindUser      Kind = "user"
	KindAnonymous Kind = "anonymous"
)

// Identity is who a process or a person is.
type Identity struct {
	Kind Kind
	// Name is a DNS-1123 subdomain of at most 63 characters; empty for Anonymous.
	Name string
}

// Anonymous is the identity of a client that shows no certificate.
var Anonymous = Identity{Kind: KindAnonymous}

// Node is the identity of a machine.
func Node(name string) Identity { return Identity{KindNode, name} }

// Service is the identity of a service, shared by its replicas.
func Service(name string) Identity { return Identity{KindService, name} }

// User is the identity of a person or a tool.
func User(name string) Identity { return Identity{KindUser, name} }

// String is the path of the SPIFFE URI: /node/node-1, or /anonymous.
func (id Identity) String() string {
	if id.Kind == KindAnonymous {
		return "/" + string(KindAnonymous)
	}
	return "/" + string(id.Kind) + "/" + id.Name
}

// URI is the SPIFFE URI: spiffe://podwire/node/node-1.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: TrustDomain, Path: id.String()}
}

// reserved are the names of services. No node may bear one: its leaf would carry the
// service's DNS name.
var reserved = map[string]struct{}{
	"cluster": {}, "ipam": {}, "svcproxy": {}, "policy": {}, "dns": {}, "ingress": {},
	"gateway": {}, "console": {}, "nodeagent": {}, "etcd": {}, EtcdClient: {}, "localhost": {},
}

// Validate checks kind and name; the error is Invalid and names the rule.
func (id Identity) Validate() error {
	switch id.Kind {
	case KindNode, KindService, KindUser:
	default:
		return errs.New(errs.Invalid, "identity kind %q: must be node, service or user", id.Kind)
	}
	if err := validateName(id.Name); err != nil {
		return errs.Wrap(err, "%s name", id.Kind)
	}
	if _, taken := reserved[id.Name]; taken && id.Kind == KindNode {
		return errs.New(errs.Invalid, "node name %q: is the name of a service; choose another", id.Name)
	}
	return nil
}

// validateName accepts RFC 1123 subdomains, as Kubernetes does for Node names, but
// only up to one DNS label's 63 characters.
func validateName(name string) error {
	const rule = "must be at most 63 lower case letters, digits, '-' and '.', and start and end with a letter or digit"
	if name == "" || len(name) > 63 {
		return errs.New(errs.Invalid, "%q: %s", name, rule)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return errs.New(errs.Invalid, "%q: %s", name, rule)
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return errs.New(errs.Invalid, "%q: %s", name, rule)
			}
		}
	}
	return nil
}

// ParseIdentity reads the path form that String writes.
func ParseIdentity(path string) (Identity, error) {
	rest, ok := strings.CutPrefix(path, "/")
	kind, name, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return Identity{}, errs.New(errs.Invalid, "identity %q: must be /node/NAME, /service/NAME or /user/NAME", path)
	}
	id := Identity{Kind(kind), name}
	if err := id.Validate(); err != nil {
		return Identity{}, errs.Wrap(err, "identity %q", path)
	}
	return id, nil
}

// FromURIs is the identity in the URI names of a certificate: exactly one of them,
// and it has to be a SPIFFE URI of our trust domain (X.509-SVID, section 2).
func FromURIs(uris []*url.URL) (Identity, error) {
	if len(uris) != 1 {
		return Identity{}, errs.New(errs.Denied, "certificate has %d URI names: must have exactly one SPIFFE URI", len(uris))
	}
	u := uris[0]
	if u.Scheme != "spiffe" || u.Host != TrustDomain || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.RawPath != "" {
		return Identity{}, errs.New(errs.Denied, "certificate URI %q: must be spiffe://%s/{node,service,user}/NAME", u, TrustDomain)
	}
	id, err := ParseIdentity(u.Path)
	if err != nil {
		return Identity{}, errs.WrapAs(errs.Denied, err, "certificate URI %q", u)
	}
	return id, nil
}

// ServerNames are the names a leaf of id can be reached by: a service's own name, or
// "nodeagent" and the node's name, besides localhost. Users serve nothing.
func ServerNames(id Identity) (dns []string, ips []netip.Addr) {
	switch id.Kind {
	case KindService:
		dns = []string{id.Name, "localhost", EtcdClient}
	case KindNode:
		dns = []string{id.Name, "nodeagent", "localhost"}
	default:
		return nil, nil
	}
	return dns, []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
}

// GoString keeps %#v readable in test failures.
func (id Identity) GoString() string { return fmt.Sprintf("pki.Identity{%s}", id) }
