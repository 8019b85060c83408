package verbs

import (
	"context"
	"errors"

	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// maxTries bounds how often a write is tried again after it lost a race. Each lost race is another writer's success, so
// this many in a row mean that something writes in a loop.
const maxTries = 16

// ApplyRequest is the wanted state of one object.
type ApplyRequest[O store.Object] struct {
	// Object is not changed. A set metadata.resourceVersion is a condition on the write, a set metadata.uid one on what
	// is there to be replaced.
	Object O
	// Expected is nil for no condition, 0 if the object must not exist, and else the revision it must have.
	Expected *int64
	// DryRun does everything but write.
	DryRun bool
	// Options mark the write, for one that is derived from another (store.CausedBy).
	Options []store.WriteOption
}

// Apply creates the object, or replaces its metadata and everything else but status.
//
// Errors: Invalid with violations; Exists if it was not to exist; Conflict if a condition does not hold; NotFound if its
// Namespace does not exist; Denied if its Namespace is terminating; Unavailable, and then the write may have happened if
// errors.Is(err, store.ErrAmbiguous); and what Admit returns.
func (h *Handler[O]) Apply(ctx context.Context, req ApplyRequest[O]) (Result[O], error) {
	meta := req.Object.GetMetadata()
	if meta == nil {
		return Result[O]{}, h.invalid("metadata", "", "is required: it names the object")
	}
	cond, err := h.condition(meta, req.Expected)
	if err != nil {
		return Result[O]{}, err
	}
	generated := meta.GetName() == "" && meta.GetGenerateName() != ""
	return retry(func() (Result[O], bool, error) {
		t, err := h.begin(ctx, req, cond, generated)
		if err != nil {
			return Result[O]{}, again(err), err
		}
		res, err := h.finish(ctx, t)
		return res, again(err), err
	})
}

// retry tries until it does not lose a race.
func retry[R any](once func() (R, bool, error)) (R, error) {
	for n := 1; ; n++ {
		res, lost, err := once()
		if !lost || n == maxTries {
			return res, err
		}
	}
}

// again says whether a failed write is worth another try: it lost a race, or drew a generated name that is in use. The
// next try finds out whether the caller's condition still holds.
func again(err error) bool {
	var lost *store.FailedCompare
	return errors.As(err, &lost)
}

// condition is what the caller requires of the object that is there.
type condition struct {
	set      bool
	revision store.Revision
	uid      string
}

func (h *Handler[O]) invalid(field, value, rule string) error {
	return errs.InvalidFields(h.rules.Noun, []errs.Violation{{Field: field, Value: value, Rule: rule}})
}

func (h *Handler[O]) condition(meta *objectv1.ObjectMeta, expected *int64) (condition, error) {
	cond := condition{uid: meta.GetUid()}
	version := meta.GetResourceVersion()
	rev, err := store.ParseResourceVersion(version)
	if err != nil {
		return cond, h.invalid("metadata.resourceVersion", version, "must be the decimal number that a read returned")
	}
	// As in Kubernetes, resourceVersion "0" asks for nothing.
	if rev > 0 {
		cond.set, cond.revision = true, rev
	}
	switch {
	case expected == nil:
		return cond, nil
	case *expected < 0:
		return cond, h.invalid("expected_revision", "", "must not be negative: leave it out for no condition, 0 asks for an object that does not exist")
	case cond.set && cond.revision != store.Revision(*expected):
		return cond, h.invalid("metadata.resourceVersion", version, "must agree with expected_revision where both are set")
	}
	cond.set, cond.revision = true, store.Revision(*expected)
	return cond, nil
}

// check compares the condition with what is there. have is 0 for nothing.
func (c condition) check(noun string, have store.Revision, uid string) error {
	switch {
	case c.set && c.revision == 0 && have != 0:
		return errs.New(errs.Exists, "%s exists already", noun)
	case c.set && c.revision != have && have == 0:
		return errs.New(errs.Conflict, "%s does not exist: it was expected at revision %d", noun, c.revision)
	case c.set && c.revision != have:
		return errs.New(errs.Conflict, "%s was changed meanwhile: it is at revision %d, not %d; read it again", noun, have, c.revision)
	case c.uid != "" && have != 0 && c.uid != uid:
		return errs.New(errs.Conflict, "%s has the uid %s, not %s: it is another object of the same name", noun, uid, c.uid)
	default:
		return nil
	}
}

// try is one try to apply.
type try[O store.Object] struct {
	req ApplyRequest[O]
	key store.Key
	// obj is what will be written.
	obj O
	// rec and old are what is there; old is nil, and exists false, where nothing is.
	rec    store.Record
	old    O
	exists bool
}

// begin clones what the caller sent, names it and reads what is there.
func (h *Handler[O]) begin(ctx context.Context, req ApplyRequest[O], cond condition, generated bool) (try[O], error) {
	t := try[O]{req: req, obj: clone(req.Object)}
	if err := h.identify(t.obj); err != nil {
		return t, err
	}
	clearField(t.obj, "status")
	meta := t.obj.GetMetadata()
	if h.rules.Scope == Namespaced {
		meta.Namespace = h.namespaceOf(meta.GetNamespace())
	}
	if generated {
		meta.Name = generate(meta.GetGenerateName())
	}
	t.key = store.KeyOf(h.rules.Kind, t.obj)
	if err := errs.InvalidFields(h.noun(t.key), h.checkMeta(meta)); err != nil {
		return t, err
	}
	var err error
	if t.rec, t.old, t.exists, err = h.read(ctx, t.key); err != nil {
		return t, err
	}
	if generated {
		if t.exists {
			return t, errs.WrapAs(errs.Exists, &store.FailedCompare{Object: t.key, Have: t.rec.Revision}, "%s: generate a name", h.rules.Noun)
		}
		cond.uid = ""
	}
	return t, cond.check(h.noun(t.key), t.rec.Revision, t.rec.UID())
}

// identify fills in apiVersion and kind, and refuses others than the kind's.
func (h *Handler[O]) identify(obj O) error {
	var bad []errs.Violation
	if have := text(obj, "api_version"); have != "" && have != h.rules.APIVersion {
		bad = append(bad, errs.Violation{Field: "apiVersion", Value: have, Rule: "must be " + h.rules.APIVersion})
	}
	if have := text(obj, "kind"); have != "" && have != h.rules.Noun {
		bad = append(bad, errs.Violation{Field: "kind", Value: have, Rule: "must be " + h.rules.Noun})
	}
	setText(obj, "api_version", h.rules.APIVersion)
	setText(obj, "kind", h.rules.Noun)
	return errs.InvalidFields(h.rules.Noun, bad)
}

// finish completes the object, checks it and writes it.
func (h *Handler[O]) finish(ctx context.Context, t try[O]) (Result[O], error) {
	h.manage(t)
	if h.rules.Carry != nil {
		h.rules.Carry(t.obj, t.old)
	}
	if h.rules.Default != nil {
		h.rules.Default(t.obj, t.old)
	}
	bad := t.checkFinalizers()
	if h.rules.Validate != nil {
		bad = append(bad, h.rules.Validate(t.obj, t.old)...)
	}
	if err := errs.InvalidFields(h.noun(t.key), bad); err != nil {
		return Result[O]{}, err
	}
	tx := h.store.Txn()
	if err := h.requireNamespace(ctx, tx, t); err != nil {
		return Result[O]{}, err
	}
	admission := Admission{}
	if h.rules.Admit != nil {
		var err error
		if admission, err = h.rules.Admit(ctx, Attempt[O]{Object: t.obj, Old: t.old, DryRun: t.req.DryRun}); err != nil {
			return Result[O]{}, err
		}
	}
	h.count(t)
	res, err := h.write(ctx, tx, t, admission)
	admission.end(ctx, res.Revision, err, t.req.DryRun || res.Outcome == objectv1.Outcome_OUTCOME_UNCHANGED)
	return res, err
}

// end tells Admit's side what became of the object.
func (a Admission) end(ctx context.Context, at store.Revision, err error, nothing bool) {
	switch {
	case errors.Is(err, store.ErrAmbiguous):
	case err != nil || nothing:
		if a.RolledBack != nil {
			a.RolledBack(ctx)
		}
	case a.Committed != nil:
		a.Committed(ctx, at)
	}
}

// manage sets the metadata and the status that are not the caller's to say.
func (h *Handler[O]) manage(t try[O]) {
	meta, old := t.obj.GetMetadata(), t.old.GetMetadata()
	meta.ResourceVersion = ""
	if !t.exists {
		meta.Uid = newUID()
		meta.CreationTimestamp = timestamppb.New(h.now().Truncate(second))
		meta.Generation = h.generation(1)
		meta.DeletionTimestamp, meta.DeletionGracePeriodSeconds = nil, nil
		return
	}
	meta.Uid, meta.CreationTimestamp, meta.Generation = old.GetUid(), old.GetCreationTimestamp(), h.generation(old.GetGeneration())
	meta.DeletionTimestamp, meta.DeletionGracePeriodSeconds = old.GetDeletionTimestamp(), old.DeletionGracePeriodSeconds
	copyField(t.obj, t.old, "status")
}

// count raises the generation if the object wants something new.
func (h *Handler[O]) count(t try[O]) {
	if t.exists && !h.specEqual(t.obj, t.old) {
		t.obj.GetMetadata().Generation = h.generation(t.old.GetMetadata().GetGeneration() + 1)
	}
}

// generation is n, or 0 for a kind without generations.
func (h *Handler[O]) generation(n int32) int32 {
	if h.rules.NoGeneration {
		return 0
	}
	return n
}

// write commits the object, unless there is nothing to write.
func (h *Handler[O]) write(ctx context.Context, tx *store.Txn, t try[O], a Admission) (Result[O], error) {
	res := Result[O]{Object: t.obj, Revision: t.rec.Revision, Outcome: objectv1.Outcome_OUTCOME_CREATED}
	if t.exists {
		res.Outcome = objectv1.Outcome_OUTCOME_CONFIGURED
		t.obj.GetMetadata().ResourceVersion = t.old.GetMetadata().GetResourceVersion()
		if equal(t.obj, t.old) {
			res.Outcome = objectv1.Outcome_OUTCOME_UNCHANGED
			return res, nil
		}
	}
	if t.req.DryRun {
		return res, nil
	}
	removed := t.finalized()
	switch {
	case removed:
		tx.Delete(t.rec, t.req.Options...)
	case t.exists:
		tx.Update(t.rec, t.obj, t.req.Options...)
	default:
		tx.Create(t.obj, h.rules.Kind, t.req.Options...)
	}
	if a.Extend != nil {
		a.Extend(tx)
	}
	rev, err := tx.Commit(ctx)
	if err != nil {
		return Result[O]{}, errs.Wrap(err, "%s", h.noun(t.key))
	}
	res.Revision = rev
	setVersion(t.obj, rev)
	if removed && h.rules.OnDelete != nil {
		h.rules.OnDelete(ctx, clone(t.obj), rev)
	}
	return res, nil
}

// requireNamespace makes the transaction depend on the object's Namespace. Creating one needs the Namespace as it was
// seen not to be terminating; changing one only needs it to be there, so that what holds up its end can be mended.
func (h *Handler[O]) requireNamespace(ctx context.Context, tx *store.Txn, t try[O]) error {
	if h.rules.Scope != Namespaced {
		return nil
	}
	name := t.key.Namespace
	key := store.Key{Kind: NamespaceKind, Name: name}
	rec, _, err := h.store.Get(ctx, key)
	if errs.Is(err, errs.NotFound) {
		return errs.New(errs.NotFound, "%s: namespace %q not found: create it first", h.noun(t.key), name)
	}
	if err != nil {
		return err
	}
	if t.exists {
		tx.RequirePresent(key)
		return nil
	}
	ns, ok := rec.Object.(*objectv1.Namespace)
	if !ok {
		return errs.New(errs.Internal, "verbs: the store's kind %s makes %T", NamespaceKind, rec.Object)
	}
	if ns.GetMetadata().GetDeletionTimestamp() != nil || ns.GetStatus().GetPhase() == "Terminating" {
		return errs.New(errs.Denied, "%s: unable to create new content in namespace %s because it is being terminated", h.noun(t.key), name)
	}
	tx.RequireUnchanged(rec)
	return nil
}
