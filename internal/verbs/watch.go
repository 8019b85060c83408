package verbs

import (
	"context"
	"errors"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// errStopped is a consumer that wants no more.
var errStopped = errors.New("stopped")

// watch is one Watch under way.
type watch[O store.Object] struct {
	h         *Handler[O]
	namespace string
	name      string
	selector  Selector
	from      store.Revision
}

func (h *Handler[O]) watch(req WatchRequest) (*watch[O], error) {
	if req.From < 0 {
		return nil, h.invalid("from_revision", "", "must not be negative: 0 begins with the current objects")
	}
	if req.Name != "" && req.AllNamespaces && h.rules.Scope == Namespaced {
		return nil, h.invalid("name", req.Name, "must be empty where all_namespaces is set")
	}
	ns, err := h.span(req.Namespace, req.AllNamespaces)
	if err != nil {
		return nil, err
	}
	sel, err := ParseSelector(req.LabelSelector)
	if err != nil {
		return nil, err
	}
	return &watch[O]{h: h, namespace: ns, name: req.Name, selector: sel, from: req.From}, nil
}

// run sends until something ends it.
func (w *watch[O]) run(ctx context.Context, send func(WatchEvent[O]) bool) error {
	from := w.from
	if from == 0 {
		at, err := w.current(ctx, send)
		if err != nil {
			return err
		}
		from = at + 1
	}
	q := store.WatchQuery{Kind: w.h.rules.Kind, Namespace: w.namespace, Name: w.name, From: from}
	for batch, err := range w.h.store.Watch(ctx, q) {
		if err != nil {
			return err
		}
		if err := w.batch(batch, send); err != nil {
			return err
		}
	}
	return nil
}

// current sends what is there.
func (w *watch[O]) current(ctx context.Context, send func(WatchEvent[O]) bool) (store.Revision, error) {
	recs, at, err := w.records(ctx)
	if err != nil {
		return 0, err
	}
	for _, rec := range recs {
		obj, err := w.h.object(rec)
		if err != nil {
			return 0, err
		}
		if !w.matches(obj) {
			continue
		}
		if !send(w.event(objectv1.EventType_EVENT_TYPE_ADDED, rec.Key, obj, rec.Revision)) {
			return 0, errStopped
		}
	}
	if !send(WatchEvent[O]{Type: objectv1.EventType_EVENT_TYPE_BOOKMARK, Revision: at}) {
		return 0, errStopped
	}
	return at, nil
}

func (w *watch[O]) records(ctx context.Context) ([]store.Record, store.Revision, error) {
	if w.name == "" {
		page, err := w.h.store.List(ctx, store.ListQuery{Kind: w.h.rules.Kind, Namespace: w.namespace})
		return page.Records, page.Revision, err
	}
	rec, at, err := w.h.store.Get(ctx, w.h.key(w.namespace, w.name))
	if errs.Is(err, errs.NotFound) {
		return nil, at, nil
	}
	return []store.Record{rec}, at, err
}

// batch sends what one revision did to the objects that are followed.
func (w *watch[O]) batch(b store.Batch, send func(WatchEvent[O]) bool) error {
	if len(b.Events) == 0 {
		if !send(WatchEvent[O]{Type: objectv1.EventType_EVENT_TYPE_BOOKMARK, Revision: b.Revision}) {
			return errStopped
		}
		return nil
	}
	for _, ev := range b.Events {
		out, ok, err := w.change(ev)
		if err != nil {
			return err
		}
		if ok && !send(out) {
			return errStopped
		}
	}
	return nil
}

// change is what an event means to somebody who sees only the objects that match.
func (w *watch[O]) change(ev store.Event) (out WatchEvent[O], ok bool, err error) {
	var obj O
	if ev.Object != nil {
		if obj, err = w.h.object(ev.Record); err != nil {
			return out, false, err
		}
	}
	if ev.Type == store.Deleted {
		// A last state that is not known may have matched.
		ok := ev.Object == nil || w.matches(obj)
		return w.event(objectv1.EventType_EVENT_TYPE_DELETED, ev.Key, obj, ev.Revision), ok, nil
	}
	was, err := w.matched(ev)
	if err != nil {
		return out, false, err
	}
	typ, ok := transition(was, w.matches(obj))
	return w.event(typ, ev.Key, obj, ev.Revision), ok, nil
}

// matched says whether the object matched before a Put. One whose old state the store no longer has counts as having
// matched: an event too many is corrected by the next, one too few never.
func (w *watch[O]) matched(ev store.Event) (bool, error) {
	if ev.CreateRevision == ev.Revision {
		return false, nil
	}
	if w.selector.Everything() {
		return true, nil
	}
	prev, known, err := ev.Previous()
	if err != nil || !known {
		return true, err
	}
	old, err := w.h.object(prev)
	return err == nil && w.matches(old), err
}

// transition is the event of an object that matched before and matches now.
func transition(before, now bool) (objectv1.EventType, bool) {
	switch {
	case before && now:
		return objectv1.EventType_EVENT_TYPE_MODIFIED, true
	case now:
		return objectv1.EventType_EVENT_TYPE_ADDED, true
	case before:
		return objectv1.EventType_EVENT_TYPE_DELETED, true
	default:
		return objectv1.EventType_EVENT_TYPE_UNSPECIFIED, false
	}
}

func (w *watch[O]) matches(obj O) bool { return w.selector.Matches(obj.GetMetadata().GetLabels()) }

func (w *watch[O]) event(typ objectv1.EventType, key store.Key, obj O, rev store.Revision) WatchEvent[O] {
	return WatchEvent[O]{Type: typ, Object: obj, Namespace: key.Namespace, Name: key.Name, Revision: rev}
}
