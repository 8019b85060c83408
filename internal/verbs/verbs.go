// Package verbs is what every kind's service does alike: Apply, Get, List, Watch, Delete and UpdateStatus over the store,
// by Kubernetes' documented rules for metadata, generations, conditions and deletion.
//
// In: objects and requests in plain Go, and a kind's own Rules (defaults, carry-over, validation, allocation). Out: objects
// as stored, the etcd revision of each answer, and errors of internal/errs' kinds whose violations name Kubernetes' field
// paths.
//
// Invariants: status is written by UpdateStatus only, everything else by Apply only; uid, creationTimestamp, generation,
// resourceVersion and deletionTimestamp are the server's; generation, where the kind has it, rises exactly when something
// other than metadata and status changes; what would change nothing is not written; an object of a namespaced kind is created only in the
// transaction that finds its Namespace there and not terminating. Objects that come out of the store are never changed,
// only clones.
//
// The package must not know gRPC, nor any single kind but Namespace. The api packages adapt generated requests to it.
package verbs

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// NamespaceKind is the store's kind of Namespace objects. A Store that serves a namespaced kind must know it.
const NamespaceKind = "namespaces"

// DefaultNamespace is the namespace of a request that names none, as kubectl has it.
const DefaultNamespace = "default"

// Scope says whether objects of a kind live in namespaces.
type Scope int

// The scopes. The zero value is none of them, so that it cannot be forgotten.
const (
	// Namespaced objects live in a namespace.
	Namespaced Scope = iota + 1
	// ClusterScoped objects do not.
	ClusterScoped
)

// Rules are what one kind has of its own. Functions that are nil do nothing. Where old is passed, it is nil when the
// object is being created and must not be changed.
type Rules[O store.Object] struct {
	// Kind is the store's kind: `services`, `endpointslices.discovery.k8s.io`.
	Kind string
	// APIVersion and Noun are the object's apiVersion and kind: `v1`, `Service`.
	APIVersion string
	Noun       string
	Scope      Scope
	// NoGeneration is set for a kind whose objects have no metadata.generation, as Secrets have none in Kubernetes.
	NoGeneration bool
	// Name is the rule for metadata.name; nil is DNSSubdomain.
	Name NameRule

	// Carry fills obj, which has what the caller sent, with what Kubernetes keeps of old where the caller left it out.
	// It comes before Default, so a default does not hide what was carried.
	Carry func(obj, old O)
	// Default fills in Kubernetes' defaults, and the first status of an object being created.
	Default func(obj, old O)
	// Validate returns what breaks a rule, immutable fields included. Metadata is checked already.
	Validate func(obj, old O) []errs.Violation
	// ValidateStatus is Validate for UpdateStatus.
	ValidateStatus func(obj, old O) []errs.Violation
	// SpecEqual says whether two objects want the same. Nil compares everything but metadata and status.
	SpecEqual func(a, b O) bool

	// Admit allocates what the object needs from elsewhere and writes it into a.Object, after validation and directly
	// before the transaction. On a dry run it must allocate nothing, and may fill in what it would.
	Admit func(ctx context.Context, a Attempt[O]) (Admission, error)
	// Grace says how an object ends. Nil removes it at once.
	Grace func(obj O, asked *int32) Grace
	// MarkDeleted changes the status of an object that begins to end gracefully (a Namespace's phase).
	MarkDeleted func(obj O)
	// OnDelete follows the removal of an object, to release what Admit allocated. The removal stands whatever it does.
	OnDelete func(ctx context.Context, obj O, at store.Revision)
	// Protect refuses a deletion before anything is written (the namespace `default`). Nil allows all.
	Protect func(obj O) error
}

// Attempt is one try to write an object. A conflict with another writer leads to another try, from the top.
type Attempt[O store.Object] struct {
	// Object is what will be written; Admit may change it. Old is nil on create.
	Object, Old O
	DryRun      bool
}

// Admission is what Admit allocated.
type Admission struct {
	// Committed is called when the object was written.
	Committed func(ctx context.Context, at store.Revision)
	// RolledBack is called when it was certainly not written. If it is unknown whether it was, neither is called: the
	// allocation names the object's uid, and its owner releases it when no such object appears.
	RolledBack func(ctx context.Context)
	// Extend adds conditions and writes to the object's transaction.
	Extend func(tx *store.Txn)
}

// Grace says how an object ends.
type Grace struct {
	// Wait keeps the object, marked with a deletionTimestamp, until somebody removes it with a grace period of 0.
	Wait bool
	// Seconds from now to the deletionTimestamp.
	Seconds int32
}

// Handler serves one kind. It is safe for concurrent use.
type Handler[O store.Object] struct {
	store *store.Store
	rules Rules[O]
	now   func() time.Time
}

// Option changes a Handler at its construction.
type Option func(*options)

type options struct{ now func() time.Time }

// WithClock replaces the clock that timestamps come from.
func WithClock(now func() time.Time) Option { return func(o *options) { o.now = now } }

// New makes the Handler of a kind.
func New[O store.Object](st *store.Store, rules Rules[O], opts ...Option) *Handler[O] {
	o := options{now: time.Now}
	for _, opt := range opts {
		opt(&o)
	}
	if rules.Name == nil {
		rules.Name = names.DNSSubdomain
	}
	return &Handler[O]{store: st, rules: rules, now: o.now}
}

// Result is the answer to a write.
type Result[O store.Object] struct {
	// Object is the object as stored, or as it would be on a dry run.
	Object O
	// Revision is the one at which this state is stored: of the write, or of the write that left it unchanged. Waiting
	// for a receipt of it is always meaningful. A dry run answers that of the object it started from, 0 for none.
	Revision store.Revision
	Outcome  objectv1.Outcome
}

// namespaceOf is the namespace of a request.
func (h *Handler[O]) namespaceOf(ns string) string {
	switch {
	case h.rules.Scope == ClusterScoped:
		return ""
	case ns == "":
		return DefaultNamespace
	default:
		return ns
	}
}

func (h *Handler[O]) key(ns, name string) store.Key {
	return store.Key{Kind: h.rules.Kind, Namespace: h.namespaceOf(ns), Name: name}
}

// noun names an object in messages: `Pod default/web`.
func (h *Handler[O]) noun(key store.Key) string {
	if key.Namespace == "" {
		return h.rules.Noun + " " + key.Name
	}
	return h.rules.Noun + " " + key.Namespace + "/" + key.Name
}

// object is the record's object, which must not be changed.
func (h *Handler[O]) object(rec store.Record) (O, error) {
	obj, ok := rec.Object.(O)
	if !ok {
		return obj, errs.New(errs.Internal, "verbs: the store's kind %s makes %T, not %T", rec.Key.Kind, rec.Object, obj)
	}
	return obj, nil
}

// read gets the object; ok is false if there is none.
func (h *Handler[O]) read(ctx context.Context, key store.Key) (rec store.Record, obj O, ok bool, err error) {
	rec, _, err = h.store.Get(ctx, key)
	if errs.Is(err, errs.NotFound) {
		return rec, obj, false, nil
	}
	if err != nil {
		return rec, obj, false, err
	}
	obj, err = h.object(rec)
	return rec, obj, err == nil, err
}

func (h *Handler[O]) notFound(key store.Key) error {
	return errs.New(errs.NotFound, "%s not found", h.noun(key))
}

func clone[O store.Object](obj O) O { return proto.Clone(obj).(O) }

// field is a top-level field of an object by its protobuf name; nil if the kind has none.
func field(obj store.Object, name protoreflect.Name) protoreflect.FieldDescriptor {
	return obj.ProtoReflect().Descriptor().Fields().ByName(name)
}

// copyField makes a top-level field of dst what it is in src.
func copyField(dst, src store.Object, name protoreflect.Name) {
	fd := field(dst, name)
	switch {
	case fd == nil:
	case src.ProtoReflect().Has(fd):
		value := proto.Clone(src).ProtoReflect().Get(fd)
		dst.ProtoReflect().Set(fd, value)
	default:
		dst.ProtoReflect().Clear(fd)
	}
}

// clearField removes a top-level field.
func clearField(obj store.Object, name protoreflect.Name) {
	if fd := field(obj, name); fd != nil {
		obj.ProtoReflect().Clear(fd)
	}
}

// specEqual compares everything but metadata and status.
func (h *Handler[O]) specEqual(a, b O) bool {
	if h.rules.SpecEqual != nil {
		return h.rules.SpecEqual(a, b)
	}
	x, y := clone(a), clone(b)
	for _, obj := range []O{x, y} {
		clearField(obj, "metadata")
		clearField(obj, "status")
	}
	return proto.Equal(x, y)
}

// text is a top-level string field; empty if the kind has none of that name.
func text(obj store.Object, name protoreflect.Name) string {
	if fd := field(obj, name); fd != nil {
		return obj.ProtoReflect().Get(fd).String()
	}
	return ""
}

// setText sets a top-level string field, if the kind has it.
func setText(obj store.Object, name protoreflect.Name, value string) {
	if fd := field(obj, name); fd != nil {
		obj.ProtoReflect().Set(fd, protoreflect.ValueOfString(value))
	}
}

// setVersion fills in metadata.resourceVersion as a read would.
func setVersion(obj store.Object, rev store.Revision) {
	obj.GetMetadata().ResourceVersion = strconv.FormatInt(int64(rev), 10)
}

func equal(a, b store.Object) bool { return proto.Equal(a, b) }

// newUID is a random UUID (RFC 9562, version 4).
func newUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process rather than return an error
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// generate makes a name from a prefix as Kubernetes does: five characters of an alphabet that spells no words, the
// whole at most 63 characters long.
func generate(prefix string) string {
	const alphabet, length, longest = "bcdfghjklmnpqrstvwxz2456789", 5, 63
	var b [length]byte
	rand.Read(b[:]) // never fails, as above
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return prefix[:min(len(prefix), longest-length)] + string(b[:])
}
