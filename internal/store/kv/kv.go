// Package kv is the small part of etcd's data model that internal/store builds on, as an interface: ranges at a
// revision, conditional transactions, leases, and watches that begin at a revision.
//
// In: keys and values as etcd has them, no meaning attached. Out: the same, with etcd's revisions, and errors as the
// sentinels below. Two engines implement it: internal/store/etcdkv on a real cluster and internal/store/storefake in
// memory; one conformance suite (internal/store/storetest) holds both to the same behaviour.
//
// An Engine never repairs anything on its own: a watch whose connection broke ends with ErrUnavailable and is not
// resumed, because the side that resumes has to compare cluster id and revision first. It must not know what the
// values mean.
package kv

import (
	"context"
	"errors"
	"time"
)

// Sentinel errors that every Engine wraps, to be tested with errors.Is.
var (
	// ErrCompacted says that the wanted revision is older than what the store still keeps.
	ErrCompacted = errors.New("revision was compacted")
	// ErrFutureRevision says that a range asked for a revision that the store has not reached.
	ErrFutureRevision = errors.New("revision is not reached yet")
	// ErrLeaseNotFound says that the lease expired, was revoked, or never existed.
	ErrLeaseNotFound = errors.New("lease not found")
	// ErrNoSpace says that the store's quota is used up and writes are refused until it is defragmented or enlarged.
	ErrNoSpace = errors.New("store is out of space")
	// ErrTooLarge says that a request exceeds the store's limit on operations or bytes.
	ErrTooLarge = errors.New("request exceeds the store's limits")
	// ErrUnavailable says that the store did not answer. A transaction that failed with it may still have been, or
	// may still be, committed.
	ErrUnavailable = errors.New("store did not answer")
	// ErrDenied says that the store refused the caller's identity.
	ErrDenied = errors.New("store refused the caller")
)

// Header says which store answered, and when in its history.
type Header struct {
	// Cluster is etcd's cluster id.
	Cluster uint64
	// Revision is the store's revision at the time of the answer.
	Revision int64
	// Term is the raft term. It never falls within one history, so a lower term than one already seen through a
	// linearizable read means that the store was restored.
	Term uint64
}

// KeyValue is one key at one revision.
type KeyValue struct {
	Key   string
	Value []byte
	// CreateRevision is the revision of the key's creation, ModRevision that of its last change.
	CreateRevision, ModRevision int64
	// Lease is the lease that the key hangs on; 0 is none.
	Lease int64
}

// RangeRequest reads the keys in [Key, End) at one revision; an empty End reads the one key.
type RangeRequest struct {
	Key, End string
	// Limit bounds the number of keys returned; 0 is no bound.
	Limit int64
	// Revision is the revision to read at; 0 reads the newest, linearizably.
	Revision int64
}

// RangeResponse holds the keys in ascending order.
type RangeResponse struct {
	Header Header
	KVs    []KeyValue
	// More says that Limit cut the answer.
	More bool
}

// Target is what a Compare looks at.
type Target int

// Targets of a Compare.
const (
	// CompareMod compares the key's ModRevision; 0 means that the key is absent.
	CompareMod Target = iota
	// CompareCreate compares the key's CreateRevision; 0 means that the key is absent.
	CompareCreate
	// ComparePresent asks only that the key exists.
	ComparePresent
)

// Compare is one condition of a transaction.
type Compare struct {
	Key      string
	Target   Target
	Revision int64
}

// Action is what an Op does.
type Action int

// Actions of an Op.
const (
	// Put writes the value.
	Put Action = iota
	// Delete removes the key; removing an absent key does nothing.
	Delete
)

// Op is one operation of a transaction.
type Op struct {
	Action Action
	Key    string
	Value  []byte
	// Lease is the lease that a Put hangs the key on; 0 is none.
	Lease int64
}

// TxnRequest executes Ops if every Compare holds, at one revision.
type TxnRequest struct {
	Compares []Compare
	Ops      []Op
}

// TxnResponse says whether the Ops were executed.
type TxnResponse struct {
	Header    Header
	Succeeded bool
	// Current holds, where the transaction did not succeed, the key of each Compare as it is, in the order of the
	// Compares; nil where the key is absent.
	Current []*KeyValue
}

// Event is one change of one key. A deletion has a nil Value and ModRevision is that of the deletion.
type Event struct {
	Action Action
	KV     KeyValue
	// Prev is the key before the change; nil where it did not exist, or where its value was compacted meanwhile.
	Prev *KeyValue
}

// WatchRequest follows the keys in [Key, End) from revision From on; an empty End follows the one key.
type WatchRequest struct {
	Key, End string
	// From is the first revision delivered. It may be one past the newest.
	From int64
}

// WatchResponse is a piece of history: whole revisions, in order.
type WatchResponse struct {
	// Header.Revision is a revision up to which everything was delivered only where Progress is set.
	Header Header
	Events []Event
	// Progress says that every event at or before Header.Revision was delivered.
	Progress bool
}

// Watcher is one watch on one connection.
type Watcher interface {
	// Created is the header of the answer that established the watch.
	Created() Header
	// Next returns the next piece of history, and blocks until there is one. It must be called from one goroutine
	// at a time. ErrCompacted, ErrUnavailable or the context's error end the watch for good.
	Next() (WatchResponse, error)
	// RequestProgress asks for a WatchResponse with Progress set. The store may drop the request while the watch is
	// behind; then it has to be repeated. It may be called concurrently with Next.
	RequestProgress(ctx context.Context) error
	// Close ends the watch; a blocked Next returns.
	Close()
}

// MemberStatus is what one member of the store says about itself.
type MemberStatus struct {
	Header Header
	// Endpoint is the address that was asked.
	Endpoint string
	// Version is the server's version.
	Version string
	// DBSize and DBSizeInUse are bytes on disk and bytes of those that hold data; Quota is the limit in bytes on DBSize.
	DBSize, DBSizeInUse, Quota int64
	// Leader says whether this member leads.
	Leader bool
	// Alarms are the member's standing errors, such as `NOSPACE`.
	Alarms []string
}

// Engine is a store.
type Engine interface {
	// Range reads keys. Errors: ErrCompacted, ErrFutureRevision, ErrUnavailable.
	Range(ctx context.Context, req RangeRequest) (RangeResponse, error)
	// Txn executes a transaction. Errors: ErrLeaseNotFound, ErrNoSpace, ErrTooLarge (nothing was written), and
	// ErrUnavailable (unknown whether it was).
	Txn(ctx context.Context, req TxnRequest) (TxnResponse, error)
	// Watch opens a watch. Errors: ErrCompacted, ErrUnavailable; both may also come from the Watcher.
	Watch(ctx context.Context, req WatchRequest) (Watcher, error)
	// Grant creates a lease of the given time to live, whole seconds.
	Grant(ctx context.Context, ttl time.Duration) (int64, error)
	// KeepAlive renews the lease until ctx ends; the returned channel is closed when renewal ended, be it by ctx or
	// because the lease was lost.
	KeepAlive(ctx context.Context, lease int64) (<-chan struct{}, error)
	// Revoke ends the lease and deletes its keys. An unknown lease is no error.
	Revoke(ctx context.Context, lease int64) error
	// Members asks every member for its status, in the order of the configured endpoints.
	Members(ctx context.Context) ([]MemberStatus, error)
	// Defragment rewrites the database of the member at endpoint; the member answers nothing meanwhile.
	Defragment(ctx context.Context, endpoint string) error
	// Close ends every connection.
	Close() error
}

// PrefixEnd returns the end of the range that holds every key with the prefix, which must not be empty nor end in 0xff.
func PrefixEnd(prefix string) string {
	last := len(prefix) - 1
	return prefix[:last] + string([]byte{prefix[last] + 1})
}
