package storetest

import (
	"context"
	"errors"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
)

func testLostAnswer(t *testing.T, b *bench) {
	before := b.create(t, pod("a", "zero"))
	b.link.loseAnswers(1, nil)
	rev := commit(t, b.ctx, b.Txn().Create(pod("a", "one"), "pods"))
	if rec := b.get(t, "a", "one"); rec.Revision != rev || rev != before+1 {
		t.Errorf("commit answers %d, the object is at %d, before it was %d", rev, rec.Revision, before)
	}
	b.link.loseAnswers(1, nil)
	commit(t, b.ctx, b.Txn().Delete(b.get(t, "a", "one")))
	if _, _, err := b.Get(b.ctx, podKey("a", "one")); !errs.Is(err, errs.NotFound) {
		t.Errorf("after the deletion: %v", err)
	}
}

func testLostAnswerOverwritten(t *testing.T, b *bench) {
	var ours store.Revision
	b.link.loseAnswers(1, func() {
		ours = b.get(t, "a", "one").Revision
		b.label(t, "a", "one", "theirs")
		b.delete(t, "a", "one")
	})
	rev := commit(t, b.ctx, b.Txn().Create(pod("a", "one"), "pods"))
	// The object is gone again, so the second attempt recreated it or found the first; both are true answers.
	if rec, _, err := b.Get(b.ctx, podKey("a", "one")); err == nil && rec.Revision != rev {
		t.Errorf("commit answers %d, the object is at %d", rev, rec.Revision)
	}
	if rev < ours {
		t.Errorf("commit answers %d, before the first attempt's %d", rev, ours)
	}

	rec := b.get(t, "a", "one")
	b.link.loseAnswers(1, func() {
		ours = b.get(t, "a", "one").Revision
		b.label(t, "a", "one", "theirs")
	})
	rev = commit(t, b.ctx, b.Txn().Update(rec, labelled(pod("a", "one"), "ours")))
	if rev != ours {
		t.Errorf("commit answers %d, it was executed at %d", rev, ours)
	}
	if got := b.get(t, "a", "one").Object.GetMetadata().GetLabels()["v"]; got != "theirs" {
		t.Errorf("the later write was overwritten with %q", got)
	}
}

func testLostAnswerOfALoser(t *testing.T, b *bench) {
	b.create(t, pod("a", "one"))
	stale := b.get(t, "a", "one")
	now := b.label(t, "a", "one", "theirs")
	b.link.loseAnswers(1, nil)
	_, err := b.Txn().Update(stale, labelled(pod("a", "one"), "ours")).Commit(b.ctx)
	wantCompare(t, err, podKey("a", "one"), stale.Revision, now)
	if errors.Is(err, store.ErrAmbiguous) {
		t.Errorf("%v: it is known that it lost", err)
	}
}

func testAmbiguous(t *testing.T, b *bench) {
	b.create(t, pod("a", "zero"))
	if _, err := b.State(b.ctx); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	b.link.loseAnswers(1, cancel)
	tx := b.Txn().Create(pod("a", "one"), "pods")
	_, err := tx.Commit(ctx)
	wantKind(t, err, errs.Unavailable)
	if !errors.Is(err, store.ErrAmbiguous) {
		t.Errorf("%v is not ambiguous", err)
	}
	// The same transaction again tells.
	rev := commit(t, b.ctx, tx)
	if rec := b.get(t, "a", "one"); rec.Revision != rev {
		t.Errorf("second commit answers %d, the object is at %d", rev, rec.Revision)
	}
	cut := b.Txn().Create(pod("a", "two"), "pods")
	b.link.cut()
	short, cancel := context.WithCancel(b.ctx)
	cancel()
	_, err = cut.Commit(short)
	wantKind(t, err, errs.Unavailable)
}
