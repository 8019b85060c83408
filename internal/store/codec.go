package store

import (
	"fmt"
	"strconv"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// mark is what a write says about itself.
type mark struct {
	cause       Cause
	traceparent string
	id          []byte
}

func (m mark) protoCause() *storev1.Cause {
	if m.cause == (Cause{}) {
		return nil
	}
	return &storev1.Cause{Revision: int64(m.cause.Revision), Traceparent: m.cause.Traceparent}
}

// encode makes the value of a key from a message that is not to be changed afterwards.
func encode(kind string, msg proto.Message, m mark) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "store: encode %s", kind)
	}
	value, err := proto.Marshal(&storev1.Envelope{
		Kind: kind, Object: body, Cause: m.protoCause(), Traceparent: m.traceparent, WriteId: m.id,
	})
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "store: encode %s", kind)
	}
	return value, nil
}

func encodeTombstone(uid string, m mark) ([]byte, error) {
	value, err := proto.Marshal(&storev1.Tombstone{
		Uid: uid, Cause: m.protoCause(), Traceparent: m.traceparent, WriteId: m.id,
	})
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "store: encode a tombstone")
	}
	return value, nil
}

// open reads the envelope of a key and checks that it holds the expected kind.
func open(pair kv.KeyValue, kind string, into proto.Message) (*storev1.Envelope, error) {
	var env storev1.Envelope
	if err := proto.Unmarshal(pair.Value, &env); err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "store: value of %s at revision %d is not an envelope", pair.Key, pair.ModRevision)
	}
	if env.GetKind() != kind {
		return nil, errs.New(errs.Internal, "store: value of %s at revision %d is of kind %q, not %q", pair.Key, pair.ModRevision, env.GetKind(), kind)
	}
	if err := proto.Unmarshal(env.GetObject(), into); err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "store: object of %s at revision %d does not decode", pair.Key, pair.ModRevision)
	}
	return &env, nil
}

// record decodes one object key. known is false for a key whose kind this store does not know. With ErrSealed comes
// everything but the object.
func (s *Store) record(pair kv.KeyValue) (rec Record, known bool, err error) {
	key, ok := parsePath(pair.Key)
	if !ok {
		return Record{}, false, errs.New(errs.Internal, "store: %s is not the key of an object", pair.Key)
	}
	factory, ok := s.knows(key.Kind)
	if !ok {
		return Record{}, false, nil
	}
	obj := factory()
	var env *storev1.Envelope
	if key.Kind == SecretKind {
		env, err = s.openSealed(pair, key, obj)
	} else {
		env, err = open(pair, key.Kind, obj)
	}
	rec = Record{
		Key: key, Traceparent: env.GetTraceparent(), Cause: causeOf(env.GetCause()), KeyID: env.GetKeyId(),
		Revision: Revision(pair.ModRevision), CreateRevision: Revision(pair.CreateRevision),
	}
	if err != nil {
		return rec, true, err
	}
	meta := obj.GetMetadata()
	if meta.GetName() != key.Name || meta.GetNamespace() != key.Namespace {
		return Record{}, true, errs.New(errs.Internal, "store: %s holds the object %s/%s", pair.Key, meta.GetNamespace(), meta.GetName())
	}
	meta.ResourceVersion = formatRevision(Revision(pair.ModRevision))
	rec.Object = obj
	return rec, true, nil
}

func causeOf(c *storev1.Cause) Cause {
	return Cause{Revision: Revision(c.GetRevision()), Traceparent: c.GetTraceparent()}
}

func formatRevision(r Revision) string { return strconv.FormatInt(int64(r), 10) }

// ParseResourceVersion reads metadata.resourceVersion. Empty is 0 and no error.
func ParseResourceVersion(s string) (Revision, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is not a resource version: it must be the decimal number that a read returned", s)
	}
	return Revision(n), nil
}
