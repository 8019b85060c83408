package verbs

import (
	"context"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// StatusRequest carries a new status.
type StatusRequest[O store.Object] struct {
	// Object names the object in its metadata (uid and resourceVersion, where set, are conditions) and has its new
	// status. The rest is ignored. It is not changed.
	Object O
	// Expected is nil for no condition, else the revision that the object must have.
	Expected *int64
	// DryRun does everything but write.
	DryRun bool
	// Options mark the write, for one that is derived from another (store.CausedBy).
	Options []store.WriteOption
}

// UpdateStatus replaces the object's status and nothing else. The same status again writes nothing.
//
// Errors: NotFound; Invalid with violations; Conflict if a condition does not hold; Unavailable as from Apply.
func (h *Handler[O]) UpdateStatus(ctx context.Context, req StatusRequest[O]) (Result[O], error) {
	meta := req.Object.GetMetadata()
	if meta.GetName() == "" {
		return Result[O]{}, h.invalid("metadata.name", "", "is required: it names the object")
	}
	cond, err := h.condition(meta, req.Expected)
	if err != nil {
		return Result[O]{}, err
	}
	key := h.key(meta.GetNamespace(), meta.GetName())
	return retry(func() (Result[O], bool, error) {
		res, err := h.statusOnce(ctx, key, req, cond)
		return res, again(err), err
	})
}

func (h *Handler[O]) statusOnce(ctx context.Context, key store.Key, req StatusRequest[O], cond condition) (Result[O], error) {
	rec, old, exists, err := h.read(ctx, key)
	if err != nil {
		return Result[O]{}, err
	}
	if !exists {
		return Result[O]{}, h.notFound(key)
	}
	if err := cond.check(h.noun(key), rec.Revision, rec.UID()); err != nil {
		return Result[O]{}, err
	}
	obj := clone(old)
	copyField(obj, req.Object, "status")
	if h.rules.ValidateStatus != nil {
		if err := errs.InvalidFields(h.noun(key), h.rules.ValidateStatus(obj, old)); err != nil {
			return Result[O]{}, err
		}
	}
	res := Result[O]{Object: obj, Revision: rec.Revision, Outcome: objectv1.Outcome_OUTCOME_UNCHANGED}
	if equal(obj, old) {
		return res, nil
	}
	res.Outcome = objectv1.Outcome_OUTCOME_CONFIGURED
	if req.DryRun {
		return res, nil
	}
	if res.Revision, err = h.store.Txn().Update(rec, obj, req.Options...).Commit(ctx); err != nil {
		return Result[O]{}, errs.Wrap(err, "%s: status", h.noun(key))
	}
	setVersion(obj, res.Revision)
	return res, nil
}
