// Package store is the only door to etcd. It keeps Podwire's objects, the few small keys by which replicas find and
// outrank each other, and the watermarks that receipts rest on.
//
// In: objects (protobuf messages with Kubernetes' metadata), the change that caused a write, and the trace of the caller's
// context. Out: records with their etcd revisions, snapshots of one revision, and updates in the order of the revisions.
//
// Keys:
//
//	/podwire/o/<kind>/<namespace or ->/<name>             objects; one watch on /podwire/o/ sees a true World
//	/podwire/o/~deleted/<kind>/<namespace or ->/<name>    tombstones, leased, joined to their deletion by the watch
//	/podwire/o/~history                                   marks, one for each that began to follow: see MarkHistory
//	/podwire/o/~sealed                                    put with every write of a Secret: its revision, for everybody
//	/podwire/s/secrets/<namespace>/<name>                 Secrets, sealed; the watch of a Store with keys spans both roots
//	/podwire/x/replicas/<service>/<replica>               who serves, and where; leased
//	/podwire/x/elections/<election>                       who does the work that one replica does; leased
//	/podwire/x/receipts/<service>/<replica>               what one replica's subscribers hold; leased
//	/podwire/x/watermarks/<service>                       what all of a service's subscribers hold; never falls
//	/podwire/x/required                                   whose watermarks hold back reuse
//	/podwire/x/blobs/<path>                               small typed values with compare-and-swap
//
// Invariants: metadata.resourceVersion is filled in on read and never stored; a deletion and its tombstone are one
// transaction; events of one revision stay together; a store that is seen going backwards (restored from a backup, or
// another cluster) is never read through an existing follower until somebody accepts it. A kind that is not in the
// Kinds given to New does not exist for that Store: it is neither read nor written. Secrets leave the process sealed
// (internal/seal), bound to their key in etcd, and nothing else about them holds their data: no tombstone, log, error or
// trace. A Store without keys has no Secrets.
//
// The package must not know what objects mean: defaults, validation and verbs are internal/verbs'.
package store

import (
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/seal"
	"podwire.dev/internal/store/etcdkv"
	"podwire.dev/internal/store/kv"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Object is what the store keeps: a protobuf message with Kubernetes' metadata.
type Object interface {
	proto.Message
	GetMetadata() *objectv1.ObjectMeta
}

// Kinds makes an empty object of each kind that a Store reads or writes; the key is `<lowercase plural>[.<group>]`.
type Kinds map[string]func() Object

// Revision is etcd's revision: it counts the transactions of the whole store. 0 is before the first.
type Revision int64

// ClusterID is etcd's cluster id.
type ClusterID uint64

// String is the id in hexadecimal, as etcdctl prints it.
func (c ClusterID) String() string { return fmt.Sprintf("%x", uint64(c)) }

// State is a point in one store's history.
type State struct {
	Cluster  ClusterID
	Revision Revision
	// Term is the raft term. Within one history it never falls, so it gives a restored store away even after that
	// store's revision has overtaken the held one.
	Term uint64
}

// Cause names the change that a derived write was computed from. The zero Cause is a write that somebody asked for.
type Cause struct {
	Revision    Revision
	Traceparent string
}

// Record is one object as stored.
type Record struct {
	Key Key
	// Object is the object with metadata.resourceVersion filled in. It is shared by everybody who got the Record:
	// clone it before you change it.
	Object Object
	Cause  Cause
	// Traceparent is the W3C trace context of the write that left this state; empty where it was not traced.
	Traceparent string
	// Revision is that of the object's last change, CreateRevision that of its creation.
	Revision       Revision
	CreateRevision Revision
	// KeyID is the id of the key that the object is sealed with; empty for the kinds that are not sealed.
	KeyID string
}

// Config says how to reach etcd.
type Config struct {
	// Endpoints are etcd's client URLs, such as https://etcd:2379.
	Endpoints []string
	// TLS is the client's side of mutual TLS; nil is plain text, for tests.
	TLS *tls.Config
	// DialTimeout bounds the first connection; 0 is 5 s.
	DialTimeout time.Duration
}

// Store reads and writes through one Engine. It is safe for concurrent use.
type Store struct {
	engine kv.Engine
	kinds  Kinds
	keys   *seal.Keyring
	log    *slog.Logger
	seen   atomic.Int64
	graves struct {
		sync.Mutex
		lease   int64
		granted time.Time
		used    int
	}
}

// Option changes a Store at its construction.
type Option func(*Store)

// WithLog makes the store say what it repairs on its own (a connection that broke, a lease that was lost) on log.
// Without it the store is silent.
func WithLog(log *slog.Logger) Option { return func(s *Store) { s.log = log } }

// New makes a Store on an engine. It starts nothing and reads nothing.
func New(engine kv.Engine, kinds Kinds, opts ...Option) *Store {
	s := &Store{engine: engine, kinds: kinds, log: slog.New(slog.DiscardHandler)}
	for _, o := range opts {
		o(s)
	}
	return s
}

// Open makes a Store on an etcd cluster. It does not wait for etcd: the first call does.
func Open(cfg Config, kinds Kinds, opts ...Option) (*Store, error) {
	engine, err := etcdkv.Dial(etcdkv.Config{Endpoints: cfg.Endpoints, TLS: cfg.TLS, DialTimeout: cfg.DialTimeout})
	if err != nil {
		return nil, wrap(err, "store: connect to etcd at %v", cfg.Endpoints)
	}
	return New(engine, kinds, opts...), nil
}

// Close ends the connection to etcd. Sessions and followers must have ended before.
func (s *Store) Close() error {
	return wrap(s.engine.Close(), "store: close")
}

// note remembers the newest revision that any answer carried.
func (s *Store) note(h kv.Header) {
	for {
		old := s.seen.Load()
		if h.Revision <= old || s.seen.CompareAndSwap(old, h.Revision) {
			return
		}
	}
}

// writeID is the random id of a transaction.
func writeID() []byte {
	id := make([]byte, 16)
	rand.Read(id) // never fails: crypto/rand ends the process rather than return an error
	return id
}

func stateOf(h kv.Header) State {
	return State{Cluster: ClusterID(h.Cluster), Revision: Revision(h.Revision), Term: h.Term}
}
