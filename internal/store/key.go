package store

import (
	"strings"

	"podwire.dev/internal/errs"
)

// Prefixes of everything that the store keeps.
const (
	objectRoot    = "/podwire/o/"
	tombstoneRoot = "/podwire/o/~deleted/"
	secretRoot    = "/podwire/s/"
	clusterRoot   = "/podwire/x/"
	replicaRoot   = clusterRoot + "replicas/"
	electionRoot  = clusterRoot + "elections/"
	receiptRoot   = clusterRoot + "receipts/"
	watermarkRoot = clusterRoot + "watermarks/"
	requiredKey   = clusterRoot + "required"
	blobRoot      = clusterRoot + "blobs/"

	// sealedMark, below objectRoot, is put by every transaction that writes below secretRoot: it tells the watches that
	// end before secretRoot that the revision was reached, so that receipts pass it. No kind has a tilde in its name.
	sealedMark = "~sealed"

	// noNamespace stands for the namespace of a cluster-scoped object; it is no DNS label, so no namespace has it.
	noNamespace = "-"
)

// Key names one object.
type Key struct {
	// Kind is `<lowercase plural>[.<group>]`.
	Kind string
	// Namespace is empty for a cluster-scoped object.
	Namespace string
	Name      string
}

// String is kind/namespace/name, without the namespace for a cluster-scoped object.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + "/" + k.Name
	}
	return k.Kind + "/" + k.Namespace + "/" + k.Name
}

// tail is the key's path below a root.
func (k Key) tail() string {
	ns := k.Namespace
	if ns == "" {
		ns = noNamespace
	}
	return k.Kind + "/" + ns + "/" + k.Name
}

func (k Key) path() string      { return root(k.Kind) + k.tail() }
func (k Key) tombstone() string { return tombstoneRoot + k.tail() }

// check refuses what would name another key, or none.
func (k Key) check(s *Store) error {
	if _, ok := s.knows(k.Kind); !ok {
		return errs.New(errs.Internal, "store: kind %q is not registered with this store", k.Kind)
	}
	for _, part := range []struct{ what, value string }{{"namespace", k.Namespace}, {"name", k.Name}} {
		if strings.ContainsAny(part.value, "/\x00") || part.value == noNamespace {
			return errs.New(errs.Invalid, "store: %s %q of %s cannot be part of a key", part.what, part.value, k.Kind)
		}
	}
	if k.Name == "" {
		return errs.New(errs.Invalid, "store: a %s without a name", k.Kind)
	}
	return nil
}

// parseKey reads what follows a root.
func parseKey(tail string) (Key, bool) {
	kind, rest, ok := strings.Cut(tail, "/")
	if !ok {
		return Key{}, false
	}
	ns, name, ok := strings.Cut(rest, "/")
	if !ok || kind == "" || ns == "" || name == "" || strings.Contains(name, "/") {
		return Key{}, false
	}
	if ns == noNamespace {
		ns = ""
	}
	return Key{Kind: kind, Namespace: ns, Name: name}, true
}
