package describe

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Reader reads the objects around the one that is described. Kinds are named as in manifests.
type Reader interface {
	// Get reads one object. Errors: NotFound where there is none.
	Get(ctx context.Context, kind, namespace, name string) (manifest.Message, error)
	// List reads all objects of a kind in a namespace; of every namespace where it is empty.
	List(ctx context.Context, kind, namespace string) ([]manifest.Message, error)
}

// Write describes one object. What cannot be read around it does not fail: it is said to be unknown.
func Write(ctx context.Context, w io.Writer, r Reader, obj manifest.Message) error {
	p := &page{reader: r, lists: map[string][]manifest.Message{}, unread: map[string]bool{}}
	switch o := obj.(type) {
	case *objectv1.Pod:
		p.pod(ctx, o)
	case *objectv1.Service:
		p.service(ctx, o)
	case *objectv1.EndpointSlice:
		p.slice(ctx, o)
	case *objectv1.Node:
		p.node(ctx, o)
	case *objectv1.Namespace:
		p.namespace(ctx, o)
	case *objectv1.NetworkPolicy:
		p.policy(ctx, o)
	case *objectv1.Ingress:
		p.ingress(ctx, o)
	case *objectv1.IngressClass:
		p.class(ctx, o)
	case *objectv1.Secret:
		p.secret(ctx, o)
	case *objectv1.AddressBlock:
		p.block(ctx, o)
	case *objectv1.AddressClaim:
		p.claim(o)
	default:
		p.head(obj)
	}
	p.conclude()
	tabs := tabwriter.NewWriter(w, 0, 8, columnGap, ' ', 0)
	if _, err := io.WriteString(tabs, p.text.String()); err != nil {
		return err
	}
	return tabs.Flush()
}

const (
	columnGap = 2
	// maxListed is how many endpoints a line names.
	maxListed = 3
	none      = "<none>"
)

// page is a description that is being written: lines whose columns are separated by tabs, and the warnings that end it.
type page struct {
	reader   Reader
	text     strings.Builder
	warnings []string
	lists    map[string][]manifest.Message
	unread   map[string]bool
}

// field writes "key: value", indented by level.
func (p *page) field(level int, key, value string) {
	p.line(level, key+":\t"+value)
}

// line writes a line; tabs in it separate columns.
func (p *page) line(level int, text string) {
	p.text.WriteString(strings.Repeat("  ", level) + strings.TrimRight(text, "\t ") + "\n")
}

// several writes a key with one value per line; <none> where there is none.
func (p *page) several(level int, key string, values []string) {
	if len(values) == 0 {
		p.field(level, key, none)
		return
	}
	p.field(level, key, values[0])
	for _, v := range values[1:] {
		p.line(level, "\t"+v)
	}
}

// optional is field where there is a value.
func (p *page) optional(level int, key, value string) {
	if value != "" {
		p.field(level, key, value)
	}
}

func (p *page) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(p.warnings, text) {
		p.warnings = append(p.warnings, text)
	}
}

// conclude writes the warnings.
func (p *page) conclude() {
	if len(p.warnings) == 0 {
		return
	}
	p.line(0, "Warnings:")
	for _, w := range p.warnings {
		p.line(1, w)
	}
}

// head writes what all objects have.
func (p *page) head(o manifest.Message) {
	meta := o.GetMetadata()
	p.field(0, "Name", meta.GetName())
	p.optional(0, "Namespace", meta.GetNamespace())
	p.several(0, "Labels", pairs(meta.GetLabels(), "="))
	p.several(0, "Annotations", pairs(meta.GetAnnotations(), ": "))
	p.field(0, "Created", moment(meta.GetCreationTimestamp()))
	if t := meta.GetDeletionTimestamp(); t != nil {
		p.field(0, "Deleted", moment(t))
	}
	for _, owner := range meta.GetOwnerReferences() {
		if owner.GetController() {
			p.field(0, "Controlled By", owner.GetKind()+"/"+owner.GetName())
		}
	}
	if len(meta.GetFinalizers()) > 0 {
		p.several(0, "Finalizers", meta.GetFinalizers())
	}
}

// pairs are a map's entries in order, without line breaks and tabs, which would break the page.
func pairs(m map[string]string, between string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+between+oneLine(m[k]))
	}
	return out
}

func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' || r == '\t' }), " ")
}

func joined(values []string) string { return or(strings.Join(values, ", "), none) }

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// moment is a time as kubectl describe writes it.
func moment(t *timestamppb.Timestamp) string {
	if t == nil {
		return "<unknown>"
	}
	return t.AsTime().Format(time.RFC1123Z)
}

func yesNo(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

// list reads the objects of a kind once; ok is false where they cannot be read, and the page says so.
func list[O manifest.Message](ctx context.Context, p *page, kind, namespace string) (out []O, ok bool) {
	at := kind + "/" + namespace
	all, read := p.lists[at]
	if !read {
		var err error
		if all, err = p.reader.List(ctx, kind, namespace); err != nil {
			p.unknown(kind, err)
			return nil, false
		}
		p.lists[at] = all
	}
	for _, m := range all {
		if o, fits := m.(O); fits {
			out = append(out, o)
		}
	}
	return out, true
}

// get reads one object; found is false where there is none, ok where it cannot be read.
func get[O manifest.Message](ctx context.Context, p *page, kind, namespace, name string) (o O, found, ok bool) {
	m, err := p.reader.Get(ctx, kind, namespace, name)
	switch {
	case errs.Is(err, errs.NotFound):
		return o, false, true
	case err != nil:
		p.unknown(kind, err)
		return o, false, false
	}
	o, found = m.(O)
	return o, found, true
}

// unknown says once that what depends on a kind is not known.
func (p *page) unknown(kind string, err error) {
	if !p.unread[kind] {
		p.unread[kind] = true
		p.warn("what depends on objects of kind %s is unknown: %s", kind, oneLine(err.Error()))
	}
}
