package verbs

import (
	"context"
	"errors"
	"iter"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// MaxPage is the largest page of a List, and the page of a List that asks for no size.
const MaxPage = 500

// maxPageBytes also ends a page: well below what a message may be, and more than the largest object is.
const maxPageBytes = 4 << 20

// Found is one object as stored.
type Found[O store.Object] struct {
	Object O
	// Revision is that of the read.
	Revision store.Revision
	// Traceparent is the W3C trace context of the write that left this state; empty where it was not traced.
	Traceparent string
}

// Find reads one object. Errors: NotFound.
func (h *Handler[O]) Find(ctx context.Context, namespace, name string) (Found[O], error) {
	if name == "" {
		return Found[O]{}, h.invalid("name", "", "is required")
	}
	key := h.key(namespace, name)
	rec, at, err := h.store.Get(ctx, key)
	if errs.Is(err, errs.NotFound) {
		return Found[O]{Revision: at}, h.notFound(key)
	}
	if err != nil {
		return Found[O]{}, err
	}
	obj, err := h.object(rec)
	return Found[O]{Object: obj, Revision: at, Traceparent: rec.Traceparent}, err
}

// Get is Find without the trace.
func (h *Handler[O]) Get(ctx context.Context, namespace, name string) (O, store.Revision, error) {
	f, err := h.Find(ctx, namespace, name)
	return f.Object, f.Revision, err
}

// ListRequest selects objects of the kind.
type ListRequest struct {
	// Namespace to list. It is required unless AllNamespaces is set; cluster-scoped kinds have none.
	Namespace     string
	AllNamespaces bool
	// LabelSelector is in kubectl's syntax; empty selects all.
	LabelSelector string
	// Limit is the size of a page; 0 and everything above MaxPage is MaxPage.
	Limit int
	// Continue is the token of the page before.
	Continue string
}

// List is a page of objects, all pages read at one revision.
type List[O store.Object] struct {
	Items    []O
	Revision store.Revision
	// Continue is empty on the last page.
	Continue string
}

// List reads a page. Errors: Invalid for the selector, the namespace or the token; store.ErrCompacted for a token that
// is too old.
func (h *Handler[O]) List(ctx context.Context, req ListRequest) (List[O], error) {
	if req.Limit < 0 {
		return List[O]{}, h.invalid("limit", "", "must not be negative")
	}
	ns, err := h.span(req.Namespace, req.AllNamespaces)
	if err != nil {
		return List[O]{}, err
	}
	sel, err := ParseSelector(req.LabelSelector)
	if err != nil {
		return List[O]{}, err
	}
	limit := req.Limit
	if limit == 0 || limit > MaxPage {
		limit = MaxPage
	}
	q := store.ListQuery{Kind: h.rules.Kind, Namespace: ns, Limit: limit, Bytes: maxPageBytes, Continue: req.Continue}
	if !sel.Everything() {
		q.Match = func(obj store.Object) bool { return sel.Matches(obj.GetMetadata().GetLabels()) }
	}
	page, err := h.store.List(ctx, q)
	if err != nil {
		return List[O]{}, err
	}
	out := List[O]{Items: make([]O, len(page.Records)), Revision: page.Revision, Continue: page.Continue}
	for i, rec := range page.Records {
		if out.Items[i], err = h.object(rec); err != nil {
			return List[O]{}, err
		}
	}
	return out, nil
}

// span is the store's namespace of a List or Watch; empty for all.
func (h *Handler[O]) span(ns string, all bool) (string, error) {
	switch {
	case h.rules.Scope == ClusterScoped:
		return "", nil
	case all && ns != "":
		return "", h.invalid("namespace", ns, "must be empty where all_namespaces is set")
	case !all && ns == "":
		return "", h.invalid("namespace", "", "is required unless all_namespaces is set")
	}
	if rule := names.DNSLabel(ns); !all && rule != "" {
		return "", h.invalid("namespace", ns, rule)
	}
	return ns, nil
}

// WatchRequest selects what to follow.
type WatchRequest struct {
	// Namespace and AllNamespaces are as in ListRequest.
	Namespace     string
	AllNamespaces bool
	// Name narrows the namespace to one object; empty follows all. It cannot be combined with AllNamespaces.
	Name string
	// LabelSelector is in kubectl's syntax; empty selects all. An object that ceases to match is DELETED, one that begins
	// to is ADDED.
	LabelSelector string
	// From is the first revision sent. 0 sends the current objects as ADDED, a BOOKMARK, and what follows.
	From store.Revision
}

// WatchEvent is one change.
type WatchEvent[O store.Object] struct {
	Type objectv1.EventType
	// Object is the object after the change, of a DELETED one the last state; nil in a BOOKMARK, and in a DELETED whose
	// last state the store no longer has.
	Object O
	// Namespace and Name name the object, also where Object is nil.
	Namespace, Name string
	// Revision is that of the change; in a BOOKMARK everything up to it was sent.
	Revision store.Revision
}

// Watch follows the objects until ctx ends, the caller stops, or an error, which is the last thing yielded:
// store.ErrCompacted if From is older than what the store keeps (list again); Unavailable if the store went away (watch
// again from the last revision + 1); Invalid for the request.
func (h *Handler[O]) Watch(ctx context.Context, req WatchRequest) iter.Seq2[WatchEvent[O], error] {
	return func(yield func(WatchEvent[O], error) bool) {
		w, err := h.watch(req)
		if err == nil {
			err = w.run(ctx, func(ev WatchEvent[O]) bool { return yield(ev, nil) })
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(WatchEvent[O]{}, err)
		}
	}
}

// Pump sends what a Watch yields and returns the error that ended it, or send's.
func Pump[O store.Object](events iter.Seq2[WatchEvent[O], error], send func(WatchEvent[O]) error) error {
	for ev, err := range events {
		if err != nil {
			return err
		}
		if err := send(ev); err != nil {
			return err
		}
	}
	return nil
}
