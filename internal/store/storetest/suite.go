package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// patience bounds every wait of the suite. It is no measure of anything: a correct store does not come near it.
const patience = 30 * time.Second

// Run holds a store to the contract. fresh makes an empty subject.
func Run(t *testing.T, fresh func(t *testing.T) Subject) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, b *bench)
	}{
		{"ReadsAndWrites", testReadsAndWrites},
		{"ConflictNamesTheCompare", testConflicts},
		{"LimitsOfATransaction", testLimits},
		{"MistakesAreRefused", testMistakes},
		{"PagesShowOneRevision", testPages},
		{"WatchGroupsByRevision", testGrouping},
		{"WatchOfOneKind", testKindWatch},
		{"DeletionIsJoinedToItsTombstone", testTombstones},
		{"TombstonesSurviveALostLease", testTombstoneLease},
		{"UnknownKindsDoNotExist", testUnknownKinds},
		{"TracesAndCausesAreKept", testTraces},
		{"LostAnswerIsFoundOut", testLostAnswer},
		{"LostAnswerOfAnOverwrittenWrite", testLostAnswerOverwritten},
		{"LostAnswerOfALoser", testLostAnswerOfALoser},
		{"UnfencedCommitStaysAmbiguous", testAmbiguous},
		{"FollowerBeginsWithASnapshot", testFollow},
		{"FollowerResumes", testFollowResumes},
		{"FollowerTakesANewSnapshotAfterCompaction", testFollowCompaction},
		{"FollowerCatchesUp", testCatchUp},
		{"ReplicasComeAndGo", testReplicas},
		{"LostRegistrationIsRepaired", testKeepRegistered},
		{"ElectionIsFenced", testElection},
		{"ElectionGoesToTheSuccessor", testSuccessor},
		{"ResignationAndCandidates", testResign},
		{"WatermarkNeverFalls", testWatermark},
		{"ReceiptsAreLeased", testReceipts},
		{"Required", testRequired},
		{"Blobs", testBlobs},
		{"Upkeep", testUpkeep},
		{"SecretsAreSealed", testSealed},
		{"SecretsAreOfTheWorld", testSealedWorld},
		{"WithoutKeysNoSecrets", testUnkeyed},
		{"WhatDoesNotOpenIsAbsent", testUnsealable},
		{"WhatDoesNotOpenEndsWithItsNamespace", testDeleteUnopened},
		{"KeysAreReplaced", testReseal},
		{"LostAnswerOfASecret", testSealedLostAnswer},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fresh(t)
			l := newLink(s.Engine)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			c.test(t, &bench{ctx: ctx, Subject: s, link: l, Store: store.New(l, Kinds())})
		})
	}
}

// bench is one test's store.
type bench struct {
	Subject
	*store.Store
	link *link
	ctx  context.Context
}

// other is a second client of the same store, whose connection is its own.
func (b *bench) other() *store.Store { return store.New(b.Engine, Kinds()) }

func pod(ns, name string) *objectv1.Pod {
	return &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: name, Uid: "uid-" + ns + "-" + name},
		Spec:     &objectv1.PodSpec{},
	}
}

func podKey(ns, name string) store.Key {
	return store.Key{Kind: "pods", Namespace: ns, Name: name}
}

func (b *bench) create(t *testing.T, pods ...*objectv1.Pod) store.Revision {
	t.Helper()
	tx := b.other().Txn()
	for _, p := range pods {
		tx.Create(p, "pods")
	}
	return commit(t, b.ctx, tx)
}

func commit(t *testing.T, ctx context.Context, tx *store.Txn) store.Revision {
	t.Helper()
	rev, err := tx.Commit(ctx)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

func (b *bench) get(t *testing.T, ns, name string) store.Record {
	t.Helper()
	rec, _, err := b.other().Get(b.ctx, podKey(ns, name))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// label changes an object.
func (b *bench) label(t *testing.T, ns, name, value string) store.Revision {
	t.Helper()
	rec := b.get(t, ns, name)
	return commit(t, b.ctx, b.other().Txn().Update(rec, labelled(pod(ns, name), value)))
}

func labelled(p *objectv1.Pod, value string) *objectv1.Pod {
	p.Metadata.Labels = map[string]string{"v": value}
	return p
}

func (b *bench) delete(t *testing.T, ns, name string, opts ...store.WriteOption) store.Revision {
	t.Helper()
	return commit(t, b.ctx, b.other().Txn().Delete(b.get(t, ns, name), opts...))
}

func wantKind(t *testing.T, err error, kind errs.Kind) {
	t.Helper()
	if !errs.Is(err, kind) {
		t.Fatalf("got error %v of kind %v, want kind %v", err, errs.KindOf(err), kind)
	}
}

func wantCompare(t *testing.T, err error, key store.Key, want, have store.Revision) {
	t.Helper()
	wantKind(t, err, errs.Conflict)
	var f *store.FailedCompare
	if !errors.As(err, &f) {
		t.Fatalf("%v names no compare", err)
	}
	if f.Object != key || f.Want != want || f.Have != have {
		t.Fatalf("failed compare is %+v, want %v at %d, found %d", f, key, want, have)
	}
	if !strings.Contains(err.Error(), key.String()) {
		t.Fatalf("%q does not name %s", err, key)
	}
}

func testReadsAndWrites(t *testing.T, b *bench) {
	_, at, err := b.Get(b.ctx, podKey("a", "one"))
	wantKind(t, err, errs.NotFound)
	if at == 0 {
		t.Error("NotFound does not say at which revision")
	}
	sent := pod("a", "one")
	sent.Metadata.ResourceVersion = "999"
	created := commit(t, b.ctx, b.Txn().Create(sent, "pods"))
	if sent.Metadata.ResourceVersion != "999" {
		t.Error("Create changed the caller's object")
	}
	rec, at, err := b.Get(b.ctx, podKey("a", "one"))
	if err != nil {
		t.Fatal(err)
	}
	if rec.Revision != created || rec.CreateRevision != created || at < created {
		t.Errorf("record is at %d, created at %d, read at %d, want all %d", rec.Revision, rec.CreateRevision, at, created)
	}
	if got, want := rec.Object.GetMetadata().GetResourceVersion(), fmt.Sprint(created); got != want {
		t.Errorf("resourceVersion is %q, want %q", got, want)
	}
	changed := b.label(t, "a", "one", "2")
	rec, _, err = b.Get(b.ctx, podKey("a", "one"))
	if err != nil || rec.Revision != changed || rec.CreateRevision != created {
		t.Errorf("after an update: %+v, %v", rec, err)
	}
	b.delete(t, "a", "one")
	_, _, err = b.Get(b.ctx, podKey("a", "one"))
	wantKind(t, err, errs.NotFound)
}

func testConflicts(t *testing.T, b *bench) {
	first := b.create(t, pod("a", "one"))
	_, err := b.Txn().Create(pod("a", "one"), "pods").Commit(b.ctx)
	wantCompare(t, err, podKey("a", "one"), 0, first)

	stale := b.get(t, "a", "one")
	second := b.label(t, "a", "one", "2")
	_, err = b.Txn().Update(stale, pod("a", "one")).Commit(b.ctx)
	wantCompare(t, err, podKey("a", "one"), first, second)
	_, err = b.Txn().Delete(stale).Commit(b.ctx)
	wantCompare(t, err, podKey("a", "one"), first, second)

	ns := store.Key{Kind: "namespaces", Name: "a"}
	_, err = b.Txn().RequirePresent(ns).Create(pod("a", "two"), "pods").Commit(b.ctx)
	wantCompare(t, err, ns, store.Present, 0)
	if _, _, err := b.Get(b.ctx, podKey("a", "two")); !errs.Is(err, errs.NotFound) {
		t.Errorf("a refused transaction wrote: %v", err)
	}
	commit(t, b.ctx, b.Txn().Create(&objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "a"}}, "namespaces"))
	commit(t, b.ctx, b.Txn().RequirePresent(ns).RequireAbsent(podKey("a", "three")).Create(pod("a", "two"), "pods"))
}

func testLimits(t *testing.T, b *bench) {
	tx := b.Txn()
	for i := range store.MaxOps {
		tx.Create(pod("a", fmt.Sprintf("p%03d", i)), "pods")
	}
	commit(t, b.ctx, tx)

	tx = b.Txn()
	for i := range store.MaxOps + 1 {
		tx.Create(pod("b", fmt.Sprintf("p%03d", i)), "pods")
	}
	_, err := tx.Commit(b.ctx)
	wantKind(t, err, errs.Invalid)
	if !strings.Contains(err.Error(), "129 operations") {
		t.Errorf("%q does not say what exceeds the limit", err)
	}

	big := pod("c", "big")
	big.Metadata.Annotations = map[string]string{"a": strings.Repeat("x", store.MaxBytes-4096)}
	commit(t, b.ctx, b.Txn().Create(big, "pods"))
	huge := pod("c", "huge")
	huge.Metadata.Annotations = map[string]string{"a": strings.Repeat("x", store.MaxBytes)}
	_, err = b.Txn().Create(huge, "pods").Commit(b.ctx)
	wantKind(t, err, errs.Invalid)
}

func testMistakes(t *testing.T, b *bench) {
	b.create(t, pod("a", "one"))
	rec := b.get(t, "a", "one")
	for name, tx := range map[string]*store.Txn{
		"unknown kind": b.Txn().Create(pod("a", "x"), "deployments"),
		"no name":      b.Txn().Create(pod("a", ""), "pods"),
		"slash":        b.Txn().Create(pod("a", "x/y"), "pods"),
		"dash":         b.Txn().Create(pod("-", "x"), "pods"),
		"twice":        b.Txn().Create(pod("a", "x"), "pods").Create(pod("a", "x"), "pods"),
		"other name":   b.Txn().Update(rec, pod("a", "two")),
	} {
		if _, err := tx.Commit(b.ctx); err == nil {
			t.Errorf("%s: committed", name)
		}
	}
}

func testPages(t *testing.T, b *bench) {
	for i := range 5 {
		b.create(t, pod("a", fmt.Sprintf("p%d", i)))
	}
	last := b.create(t, pod("b", "p0"))
	q := store.ListQuery{Kind: "pods", Namespace: "a", Limit: 2}
	page, err := b.List(b.ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	if page.Revision < last {
		t.Errorf("page is of revision %d, want at least %d", page.Revision, last)
	}
	names := namesOf(page)
	// Neither of these is seen by the pages that follow.
	b.delete(t, "a", "p3")
	b.create(t, pod("a", "p9"))
	at := page.Revision
	for page.Continue != "" {
		q.Continue = page.Continue
		if page, err = b.List(b.ctx, q); err != nil {
			t.Fatal(err)
		}
		if page.Revision != at || len(page.Records) > q.Limit {
			t.Errorf("page of %d at revision %d, want at most %d at %d", len(page.Records), page.Revision, q.Limit, at)
		}
		names = append(names, namesOf(page)...)
	}
	if want := []string{"a/p0", "a/p1", "a/p2", "a/p3", "a/p4"}; !slices.Equal(names, want) {
		t.Errorf("pages hold %v, want %v", names, want)
	}

	matched, err := b.List(b.ctx, store.ListQuery{Kind: "pods", Limit: 1, Match: func(o store.Object) bool {
		return o.GetMetadata().GetName() == "p0"
	}})
	if err != nil || !slices.Equal(namesOf(matched), []string{"a/p0"}) || matched.Continue == "" {
		t.Errorf("first match is %v, %v", namesOf(matched), err)
	}
	all, err := b.List(b.ctx, store.ListQuery{Kind: "pods"})
	if err != nil || len(all.Records) != 6 || all.Continue != "" {
		t.Errorf("all of them: %v, %v", namesOf(all), err)
	}

	_, err = b.List(b.ctx, store.ListQuery{Kind: "pods", Namespace: "b", Limit: 2, Continue: q.Continue})
	wantKind(t, err, errs.Invalid)
	b.Compact(t, all.Revision)
	_, err = b.List(b.ctx, q)
	if !errors.Is(err, store.ErrCompacted) || !errs.Is(err, errs.OutOfRange) {
		t.Errorf("continuing a list that was compacted: %v", err)
	}
}

func namesOf(p store.Page) []string {
	var names []string
	for _, rec := range p.Records {
		names = append(names, rec.Key.Namespace+"/"+rec.Key.Name)
	}
	return names
}

func testUnknownKinds(t *testing.T, b *bench) {
	b.create(t, pod("a", "one"))
	half := store.New(b.Engine, store.Kinds{"namespaces": Kinds()["namespaces"]})
	snap, err := half.Snapshot(b.ctx)
	if err != nil || len(snap.Records) != 0 {
		t.Errorf("snapshot without pods: %v, %v", snap.Records, err)
	}
	if _, _, err := half.Get(b.ctx, podKey("a", "one")); !errs.Is(err, errs.Internal) {
		t.Errorf("got a pod: %v", err)
	}
}
