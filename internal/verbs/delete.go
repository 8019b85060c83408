package verbs

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

const second = time.Second

// DeleteRequest names one object.
type DeleteRequest struct {
	Namespace, Name string
	// UID, where set, must be the object's.
	UID string
	// Expected is nil for no condition, else the revision that the object must have.
	Expected *int64
	// GraceSeconds is nil for the kind's own, 0 to remove the object now.
	GraceSeconds *int32
	// DryRun does everything but write.
	DryRun bool
	// Options mark the write, for one that is derived from another (store.CausedBy).
	Options []store.WriteOption
}

// Deletion is the answer to a Delete.
type Deletion[O store.Object] struct {
	// Object is its last state, or, where Pending, its state with the mark.
	Object O
	// Revision is that of the removal or of the mark.
	Revision store.Revision
	// Pending says that the object is marked and still there: it has a grace period or finalizers.
	Pending bool
}

// Delete removes the object, or marks it with a deletionTimestamp where it ends gracefully or has finalizers. Deleting
// a marked one again changes nothing, unless the grace period is shorter.
//
// Errors: NotFound; Conflict if a condition does not hold; what Protect returns; Unavailable as from Apply.
func (h *Handler[O]) Delete(ctx context.Context, req DeleteRequest) (Deletion[O], error) {
	key := h.key(req.Namespace, req.Name)
	if req.GraceSeconds != nil && *req.GraceSeconds < 0 {
		return Deletion[O]{}, h.invalid("grace_period_seconds", "", "must not be negative")
	}
	cond, err := h.condition(&objectv1.ObjectMeta{Uid: req.UID}, req.Expected)
	if err != nil {
		return Deletion[O]{}, err
	}
	return retry(func() (Deletion[O], bool, error) {
		res, err := h.deleteOnce(ctx, key, req, cond)
		return res, again(err), err
	})
}

func (h *Handler[O]) deleteOnce(ctx context.Context, key store.Key, req DeleteRequest, cond condition) (Deletion[O], error) {
	rec, old, exists, err := h.readToDelete(ctx, key)
	if err != nil {
		return Deletion[O]{}, err
	}
	if !exists {
		return Deletion[O]{}, h.notFound(key)
	}
	if err := cond.check(h.noun(key), rec.Revision, rec.UID()); err != nil {
		return Deletion[O]{}, err
	}
	if h.rules.Protect != nil {
		if err := h.rules.Protect(old); err != nil {
			return Deletion[O]{}, err
		}
	}
	res := Deletion[O]{Object: clone(old), Revision: rec.Revision}
	tx := h.store.Txn()
	if grace := h.grace(old, req.GraceSeconds); grace.Wait {
		res.Pending = true
		if !h.markDeleted(res.Object, grace.Seconds) {
			return res, nil
		}
		tx.Update(rec, res.Object, req.Options...)
	} else {
		tx.Delete(rec, req.Options...)
	}
	if req.DryRun {
		return res, nil
	}
	if res.Revision, err = tx.Commit(ctx); err != nil {
		return Deletion[O]{}, errs.Wrap(err, "%s", h.noun(key))
	}
	setVersion(res.Object, res.Revision)
	if !res.Pending && h.rules.OnDelete != nil {
		h.rules.OnDelete(ctx, clone(res.Object), res.Revision)
	}
	return res, nil
}

// readToDelete is read, but an object that does not open any more can still be removed.
func (h *Handler[O]) readToDelete(ctx context.Context, key store.Key) (rec store.Record, obj O, ok bool, err error) {
	rec, _, err = h.store.Get(ctx, key)
	switch {
	case errs.Is(err, errs.NotFound):
		return rec, obj, false, nil
	case err != nil && !errors.Is(err, store.ErrSealed):
		return rec, obj, false, err
	}
	obj, err = h.object(rec)
	return rec, obj, err == nil, err
}

// grace is how the object ends: by its kind's rule, and never while it has finalizers.
func (h *Handler[O]) grace(obj O, asked *int32) Grace {
	var g Grace
	if h.rules.Grace != nil {
		g = h.rules.Grace(obj, asked)
	}
	if len(obj.GetMetadata().GetFinalizers()) > 0 {
		g.Wait = true
	}
	return g
}

// markDeleted writes the mark into obj, and returns false if a mark that is as early is there already.
func (h *Handler[O]) markDeleted(obj O, seconds int32) bool {
	meta := obj.GetMetadata()
	if meta.GetDeletionTimestamp() != nil && meta.GetDeletionGracePeriodSeconds() <= seconds {
		return false
	}
	if meta.GetDeletionTimestamp() == nil {
		// Kubernetes counts the mark as a change of what is wanted.
		meta.Generation = h.generation(meta.GetGeneration() + 1)
	}
	meta.DeletionTimestamp = timestamppb.New(h.now().Add(time.Duration(seconds) * second).Truncate(second))
	meta.DeletionGracePeriodSeconds = &seconds
	if h.rules.MarkDeleted != nil {
		h.rules.MarkDeleted(obj)
	}
	return true
}

// finalized says that the write takes the last finalizer from an object that only waits for that.
func (t try[O]) finalized() bool {
	old := t.old.GetMetadata()
	return t.exists && old.GetDeletionTimestamp() != nil && old.GetDeletionGracePeriodSeconds() == 0 &&
		len(old.GetFinalizers()) > 0 && len(t.obj.GetMetadata().GetFinalizers()) == 0
}

// checkFinalizers refuses new finalizers on an object that is being deleted.
func (t try[O]) checkFinalizers() []errs.Violation {
	if !t.exists || t.old.GetMetadata().GetDeletionTimestamp() == nil {
		return nil
	}
	var bad []errs.Violation
	for _, f := range t.obj.GetMetadata().GetFinalizers() {
		if !slices.Contains(t.old.GetMetadata().GetFinalizers(), f) {
			bad = append(bad, errs.Violation{
				Field: "metadata.finalizers", Value: f, Rule: "must not be added while the object is being deleted",
			})
		}
	}
	return bad
}
