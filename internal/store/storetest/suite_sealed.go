package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/seal"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/kv"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// treasure is the data of the suite's Secrets: nothing but the Secrets may show it.
const treasure = "correct-horse-battery-staple"

func secret(ns, name string) *objectv1.Secret {
	return &objectv1.Secret{
		Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: name, Uid: "uid-" + ns + "-" + name},
		Data:     map[string][]byte{"password": []byte(treasure)},
	}
}

func secretKey(ns, name string) store.Key {
	return store.Key{Kind: store.SecretKind, Namespace: ns, Name: name}
}

// sealing is a client with keys, and what it logs.
func (b *bench) sealing(t *testing.T, keys ...seal.Key) (*store.Store, *bytes.Buffer) {
	t.Helper()
	ring, err := seal.NewKeyring(keys...)
	if err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	kinds := Kinds()
	kinds[store.SecretKind] = func() store.Object { return &objectv1.Secret{} }
	return store.New(b.link, kinds, store.WithKeys(ring), store.WithLog(slog.New(slog.NewTextHandler(log, nil)))), log
}

// everything is all that etcd holds now, as text.
func (b *bench) everything(t *testing.T) string {
	t.Helper()
	resp, err := b.Engine.Range(b.ctx, kv.RangeRequest{Key: "/podwire/", End: kv.PrefixEnd("/podwire/")})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, pair := range resp.KVs {
		fmt.Fprintf(&out, "%s = %s\n", pair.Key, pair.Value)
	}
	return out.String()
}

func testSealed(t *testing.T, b *bench) {
	key := seal.NewKey()
	st, _ := b.sealing(t, key)
	sc := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1, 2, 3}, SpanID: trace.SpanID{4, 5}, TraceFlags: trace.FlagsSampled,
	})
	cause := store.Cause{Revision: 42, Traceparent: "00-11111111111111111111111111111111-2222222222222222-01"}
	tx := st.Txn().Create(secret("a", "one"), store.SecretKind, store.CausedBy(cause)).
		Create(secret("a", "two"), store.SecretKind).Create(pod("a", "one"), "pods")
	created := commit(t, trace.ContextWithSpanContext(b.ctx, sc), tx)
	if held := b.everything(t); strings.Contains(held, treasure) || !strings.Contains(held, key.ID()) || !strings.Contains(held, "/podwire/s/secrets/a/one = ") {
		t.Errorf("etcd holds\n%s", held)
	}
	rec, _, err := st.Get(b.ctx, secretKey("a", "one"))
	if err != nil {
		t.Fatal(err)
	}
	if got := rec.Object.(*objectv1.Secret).GetData()["password"]; string(got) != treasure || rec.KeyID != key.ID() || rec.Revision != created {
		t.Errorf("read back as %q, sealed with %s, at %d", got, rec.KeyID, rec.Revision)
	}
	if rec.Cause != cause || !strings.HasPrefix(rec.Traceparent, "00-"+sc.TraceID().String()) {
		t.Errorf("cause %+v, trace %q", rec.Cause, rec.Traceparent)
	}
	_, err = st.Txn().Create(secret("a", "one"), store.SecretKind).Commit(b.ctx)
	wantCompare(t, err, secretKey("a", "one"), 0, created)
	page, err := st.List(b.ctx, store.ListQuery{Kind: store.SecretKind, Namespace: "a", Limit: 1})
	if err != nil || !slices.Equal(namesOf(page), []string{"a/one"}) || page.Continue == "" {
		t.Fatalf("first page %v, %v", namesOf(page), err)
	}
	page, err = st.List(b.ctx, store.ListQuery{Kind: store.SecretKind, Namespace: "a", Limit: 1, Continue: page.Continue})
	if err != nil || !slices.Equal(namesOf(page), []string{"a/two"}) || page.Continue != "" {
		t.Errorf("second page %v, %v", namesOf(page), err)
	}
	page, err = st.List(b.ctx, store.ListQuery{Kind: store.SecretKind, Bytes: 1})
	if err != nil || !slices.Equal(namesOf(page), []string{"a/one"}) || page.Continue == "" {
		t.Errorf("page of one byte %v, %v", namesOf(page), err)
	}
	commit(t, b.ctx, st.Txn().Delete(rec))
	if _, _, err := st.Get(b.ctx, secretKey("a", "one")); !errs.Is(err, errs.NotFound) {
		t.Errorf("a deleted Secret: %v", err)
	}
	if held := b.everything(t); strings.Contains(held, treasure) || !strings.Contains(held, "/podwire/o/~deleted/secrets/a/one = ") {
		t.Errorf("etcd holds\n%s", held)
	}
}

// One watch shows Secrets and everything else in the order of the revisions, also across a compaction.
func testSealedWorld(t *testing.T, b *bench) {
	st, _ := b.sealing(t, seal.NewKey())
	commit(t, b.ctx, st.Txn().Create(secret("a", "s"), store.SecretKind).Create(pod("z", "p"), "pods"))
	in := &bench{Subject: b.Subject, Store: st, link: b.link, ctx: b.ctx}
	f := in.follow(t, store.FollowOptions{})
	snap := nextOf[*store.Snapshot](t, b.ctx, f)
	if len(snap.Records) != 2 || snap.Records[0].Key != podKey("z", "p") || snap.Records[1].Key != secretKey("a", "s") {
		t.Fatalf("snapshot %v", snap.Records)
	}
	rec := snap.Records[1]
	changed := secret("a", "s")
	changed.Data["user"] = []byte("x")
	first := commit(t, b.ctx, st.Txn().Update(rec, changed).Create(pod("a", "p"), "pods"))
	b.label(t, "a", "p", "x")
	if rec, _, _ = st.Get(b.ctx, rec.Key); rec.Object == nil {
		t.Fatal("the Secret is gone")
	}
	last := commit(t, b.ctx, st.Txn().Delete(rec, store.TracedAs("00-33333333333333333333333333333333-4444444444444444-00")))
	var got []store.Batch
	for range 3 {
		got = append(got, *nextOf[*store.Batch](t, b.ctx, f))
	}
	wantStory(t, story(got, first), []string{"+0 put s put p", "+1 put p", "+2 deleted s"})
	gone := got[2].Events[0]
	if gone.UID != "uid-a-s" || gone.Traceparent == "" || gone.Object == nil || gone.Key != secretKey("a", "s") {
		t.Errorf("deletion %+v", gone)
	}
	if prev, ok, err := got[0].Events[0].Previous(); err != nil || !ok || string(prev.Object.(*objectv1.Secret).GetData()["password"]) != treasure {
		t.Errorf("previous %v, %v", ok, err)
	}
	batches := in.watched(t, store.WatchQuery{From: first, Kind: store.SecretKind, Namespace: "a"}, last)
	wantStory(t, story(batches, first), []string{"+0 put s", "+2 deleted s"})

	b.link.cut()
	commit(t, b.ctx, b.other().Txn().Create(pod("b", "p"), "pods"))
	other, _ := b.sealing(t, seal.NewKey())
	b.link.mend()
	third := commit(t, b.ctx, other.Txn().Create(secret("b", "s"), store.SecretKind))
	b.Compact(t, third)
	for {
		// Its key is another one: whatever comes, a batch or a snapshot, holds no such Secret.
		switch u := next(t, b.ctx, f).(type) {
		case *store.Snapshot:
			if len(u.Records) != 3 || u.Revision < third {
				t.Errorf("snapshot %v", u.Records)
			}
			return
		case *store.Batch:
			if u.Revision == third {
				wantStory(t, story([]store.Batch{*u}, third), []string{"+0 deleted s"})
				return
			}
		}
	}
}

// A Store without keys neither reads nor writes Secrets, but learns of their revisions, which receipts have to pass.
func testUnkeyed(t *testing.T, b *bench) {
	kinds := Kinds()
	kinds[store.SecretKind] = func() store.Object { return &objectv1.Secret{} }
	plain := store.New(b.link, kinds)
	keyed, _ := b.sealing(t, seal.NewKey())
	if _, err := plain.Txn().Create(secret("a", "s"), store.SecretKind).Commit(b.ctx); !errs.Is(err, errs.Internal) {
		t.Errorf("a Store without keys wrote a Secret: %v", err)
	}
	b.create(t, pod("a", "p"))
	f := (&bench{Subject: b.Subject, Store: plain, link: b.link, ctx: b.ctx}).follow(t, store.FollowOptions{})
	nextOf[*store.Snapshot](t, b.ctx, f)
	for what, write := range map[string]func() store.Revision{
		"creation": func() store.Revision {
			return commit(t, b.ctx, keyed.Txn().Create(secret("a", "s"), store.SecretKind).Create(secret("a", "r"), store.SecretKind))
		},
		"deletion": func() store.Revision {
			commit(t, b.ctx, keyed.Txn().Create(secret("a", "t"), store.SecretKind))
			rec, _, err := keyed.Get(b.ctx, secretKey("a", "t"))
			if err != nil {
				t.Fatal(err)
			}
			return commit(t, b.ctx, keyed.Txn().Delete(rec))
		},
	} {
		at := write()
		for {
			p, ok := next(t, b.ctx, f).(*store.Progress)
			if !ok {
				t.Fatalf("%s: something happened to the World", what)
			}
			if p.Revision >= at {
				if p.Idle {
					t.Errorf("%s: the revision counts as nothing", what)
				}
				break
			}
		}
	}
	for what, err := range map[string]error{
		"get":  second(plain.Get(b.ctx, secretKey("a", "s"))),
		"list": first(plain.List(b.ctx, store.ListQuery{Kind: store.SecretKind})),
	} {
		if !errs.Is(err, errs.Internal) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if snap, err := plain.Snapshot(b.ctx); err != nil || len(snap.Records) != 1 {
		t.Errorf("snapshot %v, %v", snap.Records, err)
	}
}

func first[A any](_ A, err error) error          { return err }
func second[A, B any](_ A, _ B, err error) error { return err }

// What does not open is reported, and absent; it can be deleted, and nothing can be made of it.
func testUnsealable(t *testing.T, b *bench) {
	old, fresh := seal.NewKey(), seal.NewKey()
	before, _ := b.sealing(t, old)
	after, log := b.sealing(t, fresh)
	commit(t, b.ctx, before.Txn().Create(secret("a", "lost"), store.SecretKind).Create(secret("a", "donor"), store.SecretKind))
	commit(t, b.ctx, after.Txn().Create(secret("a", "good"), store.SecretKind))

	rec, _, err := after.Get(b.ctx, secretKey("a", "lost"))
	if !errors.Is(err, store.ErrSealed) || !errors.Is(err, seal.ErrUnknownKey) || !errs.Is(err, errs.Internal) {
		t.Fatalf("without its key: %v", err)
	}
	for _, want := range []string{"secrets/a/lost", old.ID(), fresh.ID()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if meta := rec.Object.GetMetadata(); meta.GetName() != "lost" || meta.GetNamespace() != "a" || len(rec.Object.(*objectv1.Secret).GetData()) > 0 {
		t.Errorf("shell %v", rec.Object)
	}
	page, err := after.List(b.ctx, store.ListQuery{Kind: store.SecretKind})
	if err != nil || !slices.Equal(namesOf(page), []string{"a/good"}) {
		t.Errorf("list %v, %v", namesOf(page), err)
	}
	if snap, err := after.Snapshot(b.ctx); err != nil || len(snap.Records) != 1 {
		t.Errorf("snapshot %v, %v", snap.Records, err)
	}
	if !strings.Contains(log.String(), "secrets/a/lost") || !strings.Contains(log.String(), old.ID()) {
		t.Errorf("nothing was reported: %q", log)
	}

	// A value that was moved to another name does not open, nor does one that is not sealed.
	rekeyed, log := b.sealing(t, fresh, old)
	donor := b.raw(t, "/podwire/s/secrets/a/donor")
	b.put(t, "/podwire/s/secrets/a/stolen", donor)
	b.put(t, "/podwire/s/secrets/b/donor", donor)
	b.put(t, "/podwire/s/secrets/a/plain", b.raw(t, "/podwire/o/~sealed"))
	b.put(t, "/podwire/s/secrets/a/noise", []byte("\xff\xff"))
	for _, key := range []store.Key{secretKey("a", "stolen"), secretKey("b", "donor"), secretKey("a", "plain"), secretKey("a", "noise")} {
		if _, _, err := rekeyed.Get(b.ctx, key); !errors.Is(err, store.ErrSealed) || !strings.Contains(err.Error(), key.String()) {
			t.Errorf("%s: %v", key, err)
		}
	}
	page, err = rekeyed.List(b.ctx, store.ListQuery{Kind: store.SecretKind})
	if err != nil || !slices.Equal(namesOf(page), []string{"a/donor", "a/good", "a/lost"}) {
		t.Errorf("list with both keys %v, %v", namesOf(page), err)
	}

	gone := commit(t, b.ctx, after.Txn().Delete(rec))
	batches := (&bench{Subject: b.Subject, Store: after, link: b.link, ctx: b.ctx}).watched(t, store.WatchQuery{From: rec.Revision}, gone)
	wantStory(t, story(batches, rec.Revision), []string{
		"+0 deleted lost deleted donor", "+1 put good", "+2 deleted stolen", "+3 deleted donor", "+4 deleted plain", "+5 deleted noise", "+6 deleted lost",
	})
	if strings.Contains(log.String(), treasure) {
		t.Errorf("the log shows a Secret: %s", log)
	}
}

// What does not open goes with its Namespace, by the leader only, with a tombstone; everything else stays.
func testDeleteUnopened(t *testing.T, b *bench) {
	before, _ := b.sealing(t, seal.NewKey())
	after, _ := b.sealing(t, seal.NewKey())
	for _, ns := range []string{"ended", "kept"} {
		commit(t, b.ctx, before.Txn().Create(secret(ns, "lost"), store.SecretKind))
		commit(t, b.ctx, after.Txn().Create(secret(ns, "good"), store.SecretKind))
	}
	for n := range 40 { // more than one page
		commit(t, b.ctx, before.Txn().Create(secret("ended", fmt.Sprintf("many-%d", n)), store.SecretKind))
	}
	noise := b.raw(t, "/podwire/o/~sealed")
	b.put(t, "/podwire/s/secrets/ended/noise", noise)
	cause := store.Cause{Revision: 42, Traceparent: "00-11111111111111111111111111111111-2222222222222222-01"}
	ended := func(ns string, written store.Revision) (store.Cause, bool) {
		return cause, ns == "ended" && written > 0
	}
	leading := b.session(t)
	lead, err := leading.Campaign(b.ctx, "ingress", "one", "x")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		namespace string
		want      int
	}{{"kept", 0}, {"ended", 42}, {"ended", 0}, {"", 0}} {
		if n, err := after.DeleteUnopened(b.ctx, lead, c.namespace, ended); err != nil || n != c.want {
			t.Errorf("%q: deleted %d, %v, want %d", c.namespace, n, err, c.want)
		}
	}
	if held := b.everything(t); !strings.Contains(held, "/podwire/o/~deleted/secrets/ended/lost = ") ||
		strings.Contains(held, "/podwire/s/secrets/ended/lost") || !strings.Contains(held, "/podwire/s/secrets/ended/good = ") ||
		!strings.Contains(held, "/podwire/s/secrets/kept/lost = ") {
		t.Errorf("etcd holds\n%s", held)
	}
	page, err := after.List(b.ctx, store.ListQuery{Kind: store.SecretKind})
	if err != nil || !slices.Equal(namesOf(page), []string{"ended/good", "kept/good"}) {
		t.Errorf("list %v, %v", namesOf(page), err)
	}
	at := commit(t, b.ctx, before.Txn().Create(secret("ended", "last"), store.SecretKind))
	if n, err := after.DeleteUnopened(b.ctx, lead, "", ended); err != nil || n != 1 {
		t.Errorf("in all Namespaces: deleted %d, %v, want 1", n, err)
	}
	batches := (&bench{Subject: b.Subject, Store: before, link: b.link, ctx: b.ctx}).watched(t, store.WatchQuery{From: at + 1}, at+1)
	wantStory(t, story(batches, at), []string{"+1 deleted last"})
	if gone := batches[len(batches)-1].Events[0]; gone.Cause != cause || gone.UID != "" {
		t.Errorf("deletion %+v", gone)
	}
	commit(t, b.ctx, before.Txn().Create(secret("ended", "fenced"), store.SecretKind))
	if err := leading.Close(b.ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := after.DeleteUnopened(b.ctx, lead, "", ended); n != 0 || !errs.Is(err, errs.Conflict) {
		t.Errorf("who does not lead deleted %d, %v", n, err)
	}
	if n, err := b.other().DeleteUnopened(b.ctx, lead, "", ended); err != nil || n != 0 {
		t.Errorf("without keys: %d, %v", n, err)
	}
}

func testReseal(t *testing.T, b *bench) {
	old, fresh := seal.NewKey(), seal.NewKey()
	before, _ := b.sealing(t, old)
	commit(t, b.ctx, before.Txn().Create(secret("a", "one"), store.SecretKind).Create(secret("b", "two"), store.SecretKind))
	both, _ := b.sealing(t, fresh, old)
	commit(t, b.ctx, both.Txn().Create(secret("c", "three"), store.SecretKind))
	if n, err := both.Reseal(b.ctx); err != nil || n != 2 {
		t.Fatalf("sealed %d anew, %v, want 2", n, err)
	}
	if n, err := both.Reseal(b.ctx); err != nil || n != 0 {
		t.Errorf("sealed %d anew, %v, want none", n, err)
	}
	after, _ := b.sealing(t, fresh)
	page, err := after.List(b.ctx, store.ListQuery{Kind: store.SecretKind})
	if err != nil || !slices.Equal(namesOf(page), []string{"a/one", "b/two", "c/three"}) {
		t.Fatalf("without the old key: %v, %v", namesOf(page), err)
	}
	for _, rec := range page.Records {
		if string(rec.Object.(*objectv1.Secret).GetData()["password"]) != treasure || rec.Object.GetMetadata().GetUid() == "" {
			t.Errorf("%s changed", rec.Key)
		}
	}
	if n, err := b.other().Reseal(b.ctx); err != nil || n != 0 {
		t.Errorf("without keys: %d, %v", n, err)
	}
}

// A lost answer is found out for a Secret as for anything else, although each attempt seals with another nonce.
func testSealedLostAnswer(t *testing.T, b *bench) {
	st, _ := b.sealing(t, seal.NewKey())
	b.link.loseAnswers(1, nil)
	rev := commit(t, b.ctx, st.Txn().Create(secret("a", "one"), store.SecretKind))
	rec, _, err := st.Get(b.ctx, secretKey("a", "one"))
	if err != nil || rec.Revision != rev {
		t.Errorf("written at %d, %v, want %d", rec.Revision, err, rev)
	}
}

func (b *bench) raw(t *testing.T, key string) []byte {
	t.Helper()
	resp, err := b.Engine.Range(b.ctx, kv.RangeRequest{Key: key})
	if err != nil || len(resp.KVs) != 1 {
		t.Fatalf("read %s: %v, %v", key, resp.KVs, err)
	}
	return resp.KVs[0].Value
}

func (b *bench) put(t *testing.T, key string, value []byte) {
	t.Helper()
	if _, err := b.Engine.Txn(b.ctx, kv.TxnRequest{Ops: []kv.Op{{Action: kv.Put, Key: key, Value: value}}}); err != nil {
		t.Fatal(err)
	}
}
