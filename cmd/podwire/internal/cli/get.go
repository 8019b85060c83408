package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/cli/objects"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// getOptions are the flags of get.
type getOptions struct {
	namespace, selector, output string
	all, watch                  bool
}

func (a *app) getCommand() *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use:   "get KIND[,KIND...] [NAME...] | KIND/NAME...",
		Short: "show objects",
		Long:  "Shows objects as kubectl does. Kinds go by their plural, singular or short names: " + strings.Join(a.plurals(), ", ") + ".",
		Args:  cobra.MinimumNArgs(1),
	}
	namespaceFlag(cmd, &o.namespace)
	cmd.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "of every namespace")
	cmd.Flags().StringVarP(&o.selector, "selector", "l", "", "label selector, such as app=web,tier!=db")
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "wide, yaml, json or name")
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "go on with every change")
	cmd.RunE = a.traced("get", func(ctx context.Context, args []string) error { return a.get(ctx, o, args) })
	return cmd
}

// wanted is what of one kind to show; no names: everything that is selected.
type wanted struct {
	kind  manifest.Kind
	names []string
}

func (a *app) get(ctx context.Context, o getOptions, args []string) error {
	if !slices.Contains([]string{"", "wide", "yaml", "json", "name"}, o.output) {
		return session.Usage("-o must be wide, yaml, json or name, not %q", o.output)
	}
	what, err := a.wanted(args)
	if err != nil {
		return err
	}
	named := slices.ContainsFunc(what, func(w wanted) bool { return len(w.names) > 0 })
	switch {
	case named && (o.all || o.selector != ""):
		return session.Usage("a name goes neither with -A nor with -l")
	case o.watch && (len(what) > 1 || len(what[0].names) > 1):
		return session.Usage("-w follows one kind, or one object")
	}
	c := a.connections()
	defer c.close()
	if o.watch {
		return a.watch(ctx, c, what[0], o)
	}
	return a.show(ctx, c, what, o)
}

// wanted reads KIND[,KIND...] [NAME...], or KIND/NAME... .
func (a *app) wanted(args []string) ([]wanted, error) {
	var out []wanted
	if !slices.ContainsFunc(args, func(s string) bool { return strings.Contains(s, "/") }) {
		for text := range strings.SplitSeq(args[0], ",") {
			k, err := a.kind(text)
			if err != nil {
				return nil, err
			}
			out = append(out, wanted{kind: k, names: args[1:]})
		}
		return out, nil
	}
	for _, arg := range args {
		k, name, err := a.reference(arg)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(out, func(w wanted) bool { return w.kind.Name == k.Name })
		if i < 0 {
			i, out = len(out), append(out, wanted{kind: k})
		}
		out[i].names = append(out[i].names, name)
	}
	return out, nil
}

// found are the objects of one kind.
type found struct {
	kind manifest.Kind
	list []manifest.Message
	// revision is the one that a list shows; 0 where the objects were named.
	revision int64
}

// show prints what is there. An object that was named and is not there is an error, which does not hide the others.
func (a *app) show(ctx context.Context, c *conns, what []wanted, o getOptions) error {
	ctx, cancel := bound(ctx)
	defer cancel()
	all, missing, err := a.collectObjects(ctx, c, what, o)
	if err != nil {
		return err
	}
	single := len(what) == 1 && len(what[0].names) == 1
	if len(missing) > 0 && !slices.ContainsFunc(all, func(f found) bool { return len(f.list) > 0 }) {
		return errors.Join(missing...)
	}
	write := a.tables
	switch o.output {
	case "json", "yaml":
		write = func(all []found, o getOptions) error { return a.encode(all, o, single) }
	case "name":
		write = a.names
	}
	return errors.Join(write(all, o), errors.Join(missing...))
}

// collectObjects reads what is wanted. missing are the errors of objects that were named and are not there.
func (a *app) collectObjects(ctx context.Context, c *conns, what []wanted, o getOptions) (all []found, missing []error, err error) {
	for _, w := range what {
		f := found{kind: w.kind}
		for _, name := range w.names {
			obj, err := c.objects().Get(ctx, w.kind, namespaceOf(w.kind, o.namespace), name)
			switch {
			case errs.Is(err, errs.NotFound):
				missing = append(missing, err)
			case err != nil:
				return nil, nil, err
			default:
				f.list = append(f.list, obj)
			}
		}
		if len(w.names) == 0 {
			list, at, err := c.objects().List(ctx, w.kind, o.selection(w.kind))
			if err != nil {
				return nil, nil, err
			}
			f.list, f.revision = list, at
		}
		all = append(all, f)
	}
	return all, missing, nil
}

func (o getOptions) selection(k manifest.Kind) objects.Selection {
	return objects.Selection{Namespace: namespaceOf(k, o.namespace), AllNamespaces: o.all, Labels: o.selector}
}

func (o getOptions) format() manifest.Format {
	if o.output == "yaml" {
		return manifest.YAML
	}
	return manifest.JSON
}

// encode prints one object that was asked for by its name as such, and anything else as a List.
func (a *app) encode(all []found, o getOptions, single bool) error {
	var flat []manifest.Message
	revision := int64(0)
	for _, f := range all {
		flat, revision = append(flat, f.list...), max(revision, f.revision)
	}
	var text []byte
	var err error
	if single {
		text, err = manifest.Encode(flat[0], o.format())
	} else {
		at := ""
		if revision != 0 {
			at = strconv.FormatInt(revision, 10)
		}
		text, err = manifest.EncodeList(flat, at, o.format())
	}
	if err != nil {
		return err
	}
	_, err = a.out.Write(text)
	return err
}

func (a *app) names(all []found, _ getOptions) error {
	for _, f := range all {
		for _, m := range f.list {
			fmt.Fprintln(a.out, label(f.kind, m.GetMetadata().GetName()))
		}
	}
	return nil
}

func (a *app) tables(all []found, o getOptions) error {
	printed := 0
	for _, f := range all {
		if len(f.list) == 0 {
			continue
		}
		if printed > 0 {
			fmt.Fprintln(a.out)
		}
		printed++
		lay := o.layout(f.kind)
		lay.kinds = len(all) > 1
		if err := (&table{kind: f.kind, layout: lay}).write(a.out, f.list, a.now()); err != nil {
			return err
		}
	}
	if printed > 0 {
		return nil
	}
	if slices.ContainsFunc(all, func(f found) bool { return f.kind.Scope == manifest.Namespaced }) && !o.all {
		fmt.Fprintf(a.err, "No resources found in %s namespace.\n", or(o.namespace, defaultNamespace))
		return nil
	}
	fmt.Fprintln(a.err, "No resources found")
	return nil
}

func (o getOptions) layout(k manifest.Kind) layout {
	return layout{header: true, wide: o.output == "wide", namespaces: o.all && k.Scope == manifest.Namespaced}
}

// watcher prints a watch: what is there as one table, then each change as a line of it.
type watcher struct {
	app     *app
	o       getOptions
	table   table
	present []manifest.Message
	begun   bool
	// last is the newest revision that was printed.
	last int64
}

// watch prints the present objects and then every change, until it is interrupted.
func (a *app) watch(ctx context.Context, c *conns, what wanted, o getOptions) error {
	sel := o.selection(what.kind)
	if len(what.names) == 1 {
		sel.Name = what.names[0]
		if _, err := c.objects().Get(ctx, what.kind, sel.Namespace, sel.Name); err != nil {
			return err
		}
	}
	w := &watcher{app: a, o: o, table: table{kind: what.kind, layout: o.layout(what.kind)}}
	for tries := 0; ; tries++ {
		if w.begun {
			sel.From = w.last + 1
		}
		before := w.last
		err := c.objects().Watch(ctx, what.kind, sel, w.event)
		switch {
		case ctx.Err() != nil:
			return nil // interrupted, which is how a watch ends
		case !errs.Is(err, errs.Unavailable):
			return err
		case w.last > before:
			tries = 0
		case tries == maxWatchTries:
			return err
		}
		if rest(ctx, retryPause) != nil {
			return nil
		}
	}
}

// maxWatchTries is how often a broken watch is begun again without any news in between.
const maxWatchTries = int(callTimeout / retryPause)

// rest waits, for less if ctx ends, whose error it returns.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (w *watcher) event(ev objects.Event) error {
	w.last = max(w.last, ev.Revision)
	switch {
	case ev.Type == objectv1.EventType_EVENT_TYPE_BOOKMARK || ev.Object == nil:
		present := w.present
		w.begun, w.present = true, nil
		return w.print(present, "")
	case !w.begun:
		w.present = append(w.present, ev.Object)
		return nil
	case ev.Type == objectv1.EventType_EVENT_TYPE_DELETED:
		return w.print([]manifest.Message{ev.Object}, "deleted")
	}
	return w.print([]manifest.Message{ev.Object}, "")
}

func (w *watcher) print(list []manifest.Message, mark string) error {
	if len(list) == 0 {
		return nil
	}
	switch w.o.output {
	case "json", "yaml":
		for _, m := range list {
			text, err := manifest.Encode(m, w.o.format())
			if err != nil {
				return err
			}
			if w.o.output == "yaml" {
				text = append([]byte("---\n"), text...)
			}
			if _, err := w.app.out.Write(text); err != nil {
				return err
			}
		}
		return nil
	case "name":
		return w.app.names([]found{{kind: w.table.kind, list: list}}, w.o)
	}
	return w.table.writeMarked(w.app.out, list, w.app.now(), mark)
}
