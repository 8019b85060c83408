package store

import (
	"context"
	"encoding/base64"
	"errors"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store/kv"
	storev1 "podwire.dev/proto/podwire/store/v1"
)

// readPage is how many keys one request reads, which bounds the size of its answer.
const readPage = 500

// secretPage is readPage for Secrets, each of which may take a MiB.
const secretPage = 16

// State says where the store's history stands, linearizably: no write that was answered before is missing.
func (s *Store) State(ctx context.Context) (State, error) {
	resp, err := s.engine.Range(ctx, kv.RangeRequest{Key: clusterRoot})
	if err != nil {
		return State{}, wrap(err, "store: read the revision")
	}
	s.note(resp.Header)
	return stateOf(resp.Header), nil
}

// Get reads one object. The revision is that of the read, and is returned with NotFound as well: the object was absent
// at that revision. ErrSealed comes with a record whose object has nothing but a name.
func (s *Store) Get(ctx context.Context, key Key) (Record, Revision, error) {
	if err := key.check(s); err != nil {
		return Record{}, 0, err
	}
	resp, err := s.engine.Range(ctx, kv.RangeRequest{Key: key.path()})
	if err != nil {
		return Record{}, 0, wrap(err, "store: get %s", key)
	}
	s.note(resp.Header)
	at := Revision(resp.Header.Revision)
	if len(resp.KVs) == 0 {
		return Record{}, at, errs.New(errs.NotFound, "%s not found", key)
	}
	rec, _, err := s.record(resp.KVs[0])
	if errors.Is(err, ErrSealed) {
		rec.Object = shell(key, s.kinds[key.Kind])
	}
	return rec, at, err
}

// ListQuery selects a page of objects.
type ListQuery struct {
	Kind string
	// Namespace is the namespace to list; empty lists all of them, and cluster-scoped objects.
	Namespace string
	// Match selects among the objects; nil selects all.
	Match func(Object) bool
	// Limit is the largest number of records returned; 0 returns all.
	Limit int
	// Bytes, where it is not 0, also ends the page: at the record that reaches it. A page holds at least one record.
	Bytes int
	// Continue is Page.Continue of the page before; the kind and the namespace must be the same.
	Continue string
}

// Page is a part of a list. All pages of one list show the store at one revision.
type Page struct {
	// Records are in the order of namespace and name.
	Records  []Record
	Revision Revision
	// Continue asks for the next page; empty on the last.
	Continue string
}

// List reads objects of one kind. Errors: Invalid for a continue token that is malformed or belongs to another list;
// ErrCompacted for one that is too old, and then the list has to begin anew.
func (s *Store) List(ctx context.Context, q ListQuery) (Page, error) {
	if _, ok := s.knows(q.Kind); !ok {
		return Page{}, errs.New(errs.Internal, "store: kind %q is not registered with this store", q.Kind)
	}
	prefix := root(q.Kind) + q.Kind + "/"
	if q.Namespace != "" {
		prefix += q.Namespace + "/"
	}
	start, at := prefix, Revision(0)
	if q.Continue != "" {
		after, rev, err := parseContinue(q.Continue, q)
		if err != nil {
			return Page{}, err
		}
		start, at = after.path()+"\x00", rev
	}
	page, size := Page{Revision: at}, 0
	for more := true; more; {
		resp, err := s.engine.Range(ctx, kv.RangeRequest{
			Key: start, End: kv.PrefixEnd(prefix), Limit: q.chunk(len(page.Records)), Revision: int64(page.Revision),
		})
		if err != nil {
			return Page{}, wrap(err, "store: list %s", q.Kind)
		}
		s.note(resp.Header)
		if page.Revision == 0 {
			page.Revision = Revision(resp.Header.Revision)
		}
		recs, err := s.appendRecords(nil, resp.KVs)
		if err != nil {
			return Page{}, err
		}
		for i, rec := range recs {
			if q.Match == nil || q.Match(rec.Object) {
				page.Records = append(page.Records, rec)
				size += proto.Size(rec.Object)
			}
			if q.full(len(page.Records), size) && (resp.More || i < len(recs)-1) {
				page.Continue, err = formatContinue(q, page.Revision, rec.Key)
				return page, err
			}
		}
		more = resp.More
		if n := len(resp.KVs); n > 0 {
			start = resp.KVs[n-1].Key + "\x00"
		}
	}
	return page, nil
}

// full says that the page ends here.
func (q ListQuery) full(records, size int) bool {
	return q.Limit > 0 && records == q.Limit || q.Bytes > 0 && size >= q.Bytes
}

// chunk is how many keys to read next when have records were found: one more than wanted tells whether a page follows.
func (q ListQuery) chunk(have int) int64 {
	page := readPage
	if q.Kind == SecretKind {
		page = secretPage
	}
	if q.Limit <= 0 || q.Match != nil {
		return int64(page)
	}
	return int64(min(page, q.Limit-have+1))
}

func (s *Store) appendRecords(recs []Record, pairs []kv.KeyValue) ([]Record, error) {
	for _, pair := range pairs {
		rec, known, err := s.record(pair)
		if s.absent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if known {
			recs = append(recs, rec)
		}
	}
	return recs, nil
}

// Snapshot is the whole World at one revision: every object of the Store's kinds.
type Snapshot struct {
	State
	// Records are in the order of kind, namespace and name, Secrets after all others.
	Records []Record
	// History are the marks of the store.
	History nodestate.History
}

// Snapshot reads the whole World at the newest revision, page by page. ErrCompacted means that reading took longer than
// etcd keeps history: begin anew.
func (s *Store) Snapshot(ctx context.Context) (Snapshot, error) {
	var snap Snapshot
	if err := s.readRange(ctx, &snap, kv.RangeRequest{Key: objectRoot, End: tombstoneRoot, Limit: readPage}); err != nil {
		return Snapshot{}, err
	}
	var err error
	if snap.History, err = s.History(ctx, snap.Revision); err != nil {
		return Snapshot{}, err
	}
	if s.keys == nil {
		return snap, nil
	}
	if err := s.readRange(ctx, &snap, kv.RangeRequest{Key: secretRoot, End: kv.PrefixEnd(secretRoot), Limit: secretPage}); err != nil {
		return Snapshot{}, err
	}
	return snap, nil
}

// readRange appends the objects of a range of keys to the snapshot, at its revision.
func (s *Store) readRange(ctx context.Context, snap *Snapshot, req kv.RangeRequest) error {
	for more := true; more; {
		req.Revision = int64(snap.Revision)
		resp, err := s.engine.Range(ctx, req)
		if err != nil {
			return wrap(err, "store: snapshot")
		}
		s.note(resp.Header)
		if snap.Revision == 0 {
			snap.State = stateOf(resp.Header)
		}
		if ClusterID(resp.Header.Cluster) != snap.Cluster {
			return errs.New(errs.Unavailable, "store: snapshot: cluster %s answered in the place of %s",
				ClusterID(resp.Header.Cluster), snap.Cluster)
		}
		if snap.Records, err = s.appendRecords(snap.Records, resp.KVs); err != nil {
			return err
		}
		more = resp.More
		if n := len(resp.KVs); n > 0 {
			req.Key = resp.KVs[n-1].Key + "\x00"
		}
	}
	return nil
}

// formatContinue makes the token that continues a list after a key.
func formatContinue(q ListQuery, rev Revision, after Key) (string, error) {
	ns := after.Namespace
	if ns == "" {
		ns = noNamespace
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&storev1.PageToken{
		Revision: int64(rev), Kind: q.Kind, Namespace: q.Namespace, AfterNamespace: ns, AfterName: after.Name,
	})
	if err != nil {
		return "", errs.WrapAs(errs.Internal, err, "store: encode a continue token")
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}

// maxToken bounds a continue token, in bytes; one of ours holds three names and a number.
const maxToken = 2048

// parseContinue reads a token and checks that it continues this list.
func parseContinue(token string, q ListQuery) (Key, Revision, error) {
	key, rev, err := decodeContinue(token, q)
	if err != nil {
		return Key{}, 0, errs.WrapAs(errs.Invalid, err, "continue token: list again without it")
	}
	return key, rev, nil
}

func decodeContinue(token string, q ListQuery) (Key, Revision, error) {
	if len(token) > maxToken {
		return Key{}, 0, errors.New("it is longer than any that a list returns")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return Key{}, 0, err
	}
	var t storev1.PageToken
	if err := proto.Unmarshal(raw, &t); err != nil {
		return Key{}, 0, err
	}
	if t.GetKind() != q.Kind || t.GetNamespace() != q.Namespace {
		return Key{}, 0, errors.New("it belongs to another list")
	}
	key, ok := parseKey(t.GetKind() + "/" + t.GetAfterNamespace() + "/" + t.GetAfterName())
	if !ok || key.Kind != q.Kind || q.Namespace != "" && key.Namespace != q.Namespace || t.GetRevision() <= 0 {
		return Key{}, 0, errors.New("it is not one that a list returned")
	}
	return key, Revision(t.GetRevision()), nil
}
