package store

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/seal"
	"podwire.dev/internal/store/kv"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// SecretKind is the kind of Secrets, the one kind whose objects are sealed before they reach etcd. It exists only for a
// Store WithKeys; for any other it is a kind that is not registered.
const SecretKind = "secrets"

// ErrSealed says that an object is there and does not open: it is sealed with a key that this Store does not have, or it
// was tampered with. Get returns it, of kind Internal, with a Record whose object has a name and nothing else, so that
// the object can be deleted. Everything else (lists, snapshots, watches) reports it on the log and treats the object as
// absent: one value that does not open must not end a process, nor be taken for what it was before.
var ErrSealed = errors.New("sealed object does not open")

// WithKeys gives the Store the keys of Secrets.
func WithKeys(keys *seal.Keyring) Option { return func(s *Store) { s.keys = keys } }

// knows says whether the kind exists for this Store, and makes an empty object of it.
func (s *Store) knows(kind string) (func() Object, bool) {
	if kind == SecretKind && s.keys == nil {
		return nil, false
	}
	factory, ok := s.kinds[kind]
	return factory, ok
}

// worldEnd ends the range of keys that the World is, which begins at objectRoot. With keys it reaches over the Secrets'
// root: events are in one order only within one watch.
func (s *Store) worldEnd() string {
	if s.keys == nil {
		return kv.PrefixEnd(objectRoot)
	}
	return kv.PrefixEnd(secretRoot)
}

// root is the prefix of the kind's keys.
func root(kind string) string {
	if kind == SecretKind {
		return secretRoot
	}
	return objectRoot
}

// objectTail is what follows the root in the key of an object; ok is false for the other keys of the World's range.
func objectTail(path string) (tail string, ok bool) {
	if tail, ok = strings.CutPrefix(path, objectRoot); ok {
		return tail, tail != sealedMark
	}
	return strings.CutPrefix(path, secretRoot)
}

// parsePath reads the key of an object. A kind below a root that is not its own is nothing that a Store wrote.
func parsePath(path string) (Key, bool) {
	tail, ok := objectTail(path)
	if !ok {
		return Key{}, false
	}
	key, ok := parseKey(tail)
	return key, ok && strings.HasPrefix(path, root(key.Kind))
}

// sealContext binds a sealed value to its key in etcd: a value that was copied to another one does not open.
func sealContext(key Key) string { return "podwire.store.v1.Envelope\x00" + key.path() }

// encodeSealed is encode for a kind that is sealed.
func (s *Store) encodeSealed(key Key, obj Object, m mark) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(obj)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "store: encode %s", key)
	}
	env := &storev1.Envelope{Kind: key.Kind, Cause: m.protoCause(), Traceparent: m.traceparent, WriteId: m.id}
	env.KeyId, env.Object = s.keys.Seal(body, sealContext(key))
	value, err := proto.Marshal(env)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "store: encode %s", key)
	}
	return value, nil
}

// openSealed is open for a kind that is sealed. What does not open is ErrSealed.
func (s *Store) openSealed(pair kv.KeyValue, key Key, into Object) (*storev1.Envelope, error) {
	var env storev1.Envelope
	if err := proto.Unmarshal(pair.Value, &env); err != nil {
		return nil, unsealable(pair, key, errors.New("the value is not an envelope"))
	}
	switch {
	case env.GetKind() != key.Kind:
		return &env, unsealable(pair, key, errors.New("the value is of another kind"))
	case env.GetKeyId() == "":
		return &env, unsealable(pair, key, errors.New("the value is not sealed"))
	}
	body, err := s.keys.Open(env.GetKeyId(), env.GetObject(), sealContext(key))
	if err != nil {
		return &env, unsealable(pair, key, err)
	}
	// The error of a decoder may quote what it read.
	if proto.Unmarshal(body, into) != nil {
		return &env, unsealable(pair, key, errors.New("what was sealed is not an object"))
	}
	return &env, nil
}

func unsealable(pair kv.KeyValue, key Key, err error) error {
	return errs.WrapAs(errs.Internal, errors.Join(ErrSealed, err),
		"store: %s at revision %d: restore its key, or delete the object and apply it again", key, pair.ModRevision)
}

// shell is what is known of an object that does not open.
func shell(key Key, factory func() Object) Object {
	obj := factory()
	if fd := obj.ProtoReflect().Descriptor().Fields().ByName("metadata"); fd != nil {
		obj.ProtoReflect().Mutable(fd)
		obj.GetMetadata().Namespace, obj.GetMetadata().Name = key.Namespace, key.Name
	}
	return obj
}

// absent reports an object that does not open and says that it is to be treated as absent.
func (s *Store) absent(err error) bool {
	if !errors.Is(err, ErrSealed) {
		return false
	}
	s.log.Error("a sealed object does not open and is treated as absent", "err", err)
	return true
}

// Reseal writes every Secret anew that is not sealed with the first key, so that the other keys can be removed from the
// key file. It returns how many it wrote. What another writer changes meanwhile is sealed by that write. The Secrets do
// not change but for their revisions.
func (s *Store) Reseal(ctx context.Context) (int, error) {
	if _, ok := s.knows(SecretKind); !ok {
		return 0, nil
	}
	page, err := s.List(ctx, ListQuery{Kind: SecretKind})
	if err != nil {
		return 0, err
	}
	first, done := s.keys.IDs()[0], 0
	for _, rec := range page.Records {
		if rec.KeyID == first {
			continue
		}
		_, err := s.Txn().Update(rec, rec.Object).Commit(ctx)
		switch {
		case err == nil:
			done++
		case !errs.Is(err, errs.Conflict):
			return done, errs.Wrap(err, "store: seal %s anew", rec.Key)
		}
	}
	return done, nil
}

// Ended says of an object that was written at a revision whether its Namespace is to lose its content since, and what
// asked for it.
type Ended func(namespace string, written Revision) (Cause, bool)

// DeleteUnopened removes the Secrets that do not open, where their Namespace has ended: nobody else can, since nobody
// sees them. namespace narrows the search to one; empty searches all. Each is deleted as it was read, with a tombstone and
// the cause that ended gives, and only while lead is held. It returns how many it deleted; what another writer changes
// meanwhile stays.
func (s *Store) DeleteUnopened(ctx context.Context, lead *Leadership, namespace string, ended Ended) (int, error) {
	factory, ok := s.knows(SecretKind)
	if !ok {
		return 0, nil
	}
	prefix := secretRoot + SecretKind + "/"
	if namespace != "" {
		prefix += namespace + "/"
	}
	done := 0
	req := kv.RangeRequest{Key: prefix, End: kv.PrefixEnd(prefix), Limit: secretPage}
	for more := true; more; {
		resp, err := s.engine.Range(ctx, req)
		if err != nil {
			return done, wrap(err, "store: list %s that do not open", SecretKind)
		}
		s.note(resp.Header)
		for _, pair := range resp.KVs {
			req.Key = pair.Key + "\x00"
			rec, _, err := s.record(pair)
			if !errors.Is(err, ErrSealed) {
				continue
			}
			cause, over := ended(rec.Key.Namespace, rec.Revision)
			if !over {
				continue
			}
			rec.Object = shell(rec.Key, factory)
			_, err = s.Txn().RequireLeader(lead).Delete(rec, CausedBy(cause), TracedAs(cause.Traceparent)).Commit(ctx)
			var lost *FailedCompare
			switch {
			case err == nil:
				done++
			case !errors.As(err, &lost) || lost.Object != rec.Key:
				return done, errs.Wrap(err, "store: delete %s, which does not open", rec.Key)
			}
		}
		more = resp.More && len(resp.KVs) > 0
	}
	return done, nil
}
