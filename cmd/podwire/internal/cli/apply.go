package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/cli/objects"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// files are the -f flags of apply and delete.
type files struct {
	names     []string
	namespace string
}

func (f *files) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.names, "filename", "f", nil, "`FILE`, directory, or - for standard input; may be repeated")
	namespaceFlag(cmd, &f.namespace)
}

// applyOptions are the flags of apply.
type applyOptions struct {
	files
	dryRun, wait bool
	timeout      time.Duration
}

func (a *app) applyCommand() *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use: "apply -f FILE|DIR|-", Short: "create objects, or make them what the manifests say", Args: cobra.NoArgs,
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "check everything and write nothing")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "return when every node has it in its kernel, and pods are Ready or Failed")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "how long --wait waits before it exits 3")
	cmd.RunE = a.traced("apply", func(ctx context.Context, _ []string) error { return a.apply(ctx, o) })
	return cmd
}

func (a *app) apply(ctx context.Context, o applyOptions) error {
	set, err := a.load(o.files)
	if err != nil {
		return err
	}
	c := a.connections()
	defer c.close()
	client := c.objects()
	if err := a.checkAll(ctx, client, set); err != nil {
		return err
	}
	var written []target
	for _, obj := range set {
		mode := objects.Really
		if o.dryRun {
			mode = objects.DryRun
		}
		res, err := applyOne(ctx, client, obj, mode)
		if o.dryRun && inNewNamespace(err, obj, set) {
			res.Outcome, err = objectv1.Outcome_OUTCOME_CREATED, nil
		}
		if err != nil {
			return refusal(obj, err)
		}
		written = append(written, target{obj.Kind, obj.Namespace(), obj.Name(), res.Revision})
		suffix := ""
		if o.dryRun {
			suffix = " (dry run)"
		}
		fmt.Fprintf(a.out, "%s %s%s\n", label(obj.Kind, nameOf(obj, res)), outcome(res.Outcome), suffix)
	}
	if o.wait && !o.dryRun {
		return a.awaitAll(ctx, c, written, o.timeout)
	}
	return nil
}

// nameOf is the object's name, also where the server generated it.
func nameOf(obj manifest.Object, res objects.Result) string {
	if obj.Name() == "" && res.Object != nil {
		return res.Object.GetMetadata().GetName()
	}
	return obj.Name()
}

func outcome(o objectv1.Outcome) string {
	switch o {
	case objectv1.Outcome_OUTCOME_CREATED:
		return "created"
	case objectv1.Outcome_OUTCOME_UNCHANGED:
		return "unchanged"
	}
	return "configured"
}

func applyOne(ctx context.Context, client *objects.Client, obj manifest.Object, mode objects.Mode) (objects.Result, error) {
	ctx, cancel := bound(ctx)
	defer cancel()
	return client.Apply(ctx, obj.Kind, obj.Message, mode)
}

// checkAll has every document checked by its service before any is written, and returns all that is wrong.
func (a *app) checkAll(ctx context.Context, client *objects.Client, set []manifest.Object) error {
	var bad []error
	for _, obj := range set {
		_, err := applyOne(ctx, client, obj, objects.DryRun)
		if err != nil && !inNewNamespace(err, obj, set) {
			bad = append(bad, refusal(obj, err))
			if errs.Is(err, errs.Unavailable) {
				break // each further document would wait as long
			}
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w\nnothing was written", errors.Join(bad...))
	}
	return nil
}

// inNewNamespace says that all that is wrong with an object is that its Namespace, which the same set makes, is not there.
func inNewNamespace(err error, obj manifest.Object, set []manifest.Object) bool {
	return errs.Is(err, errs.NotFound) && obj.Kind.Scope == manifest.Namespaced &&
		slices.ContainsFunc(set, func(o manifest.Object) bool {
			return o.Kind.Name == "Namespace" && o.Name() == obj.Namespace()
		})
}

// refusal puts a service's words at the document, and its violations at their lines.
func refusal(obj manifest.Object, err error) error {
	if v := errs.ViolationsOf(err); len(v) > 0 {
		return obj.Place(v)
	}
	return errs.Wrap(err, "%s", obj.Pos)
}

// load reads every document, in the order in which they are to be applied.
func (a *app) load(f files) ([]manifest.Object, error) {
	if len(f.names) == 0 {
		return nil, session.Usage("-f FILE is required")
	}
	var set []manifest.Object
	var bad []error
	for _, name := range f.names {
		list, err := a.read(name)
		if err != nil {
			bad = append(bad, err)
		}
		set = append(set, list...)
	}
	for _, obj := range set {
		bad = append(bad, place(obj, f.namespace))
	}
	if err := errors.Join(bad...); err != nil {
		return nil, err
	}
	if len(set) == 0 {
		return nil, errs.New(errs.Invalid, "no objects in %s (of a directory, *.yaml, *.yml and *.json are read)", strings.Join(f.names, ", "))
	}
	manifest.Order(set)
	return set, nil
}

// place gives a namespaced object its namespace, as kubectl does.
func place(obj manifest.Object, flag string) error {
	meta := obj.Message.GetMetadata()
	switch {
	case obj.Kind.Scope == manifest.ClusterScoped:
		return nil
	case meta.GetNamespace() == "":
		meta.Namespace = namespaceOf(obj.Kind, flag)
	case flag != "" && meta.GetNamespace() != flag:
		return errs.New(errs.Invalid, "%s: %s is in namespace %s, and -n says %s", obj.Locate("metadata.namespace"), obj, meta.GetNamespace(), flag)
	}
	return nil
}

// read reads one -f: a file, the manifests of a directory, or standard input.
func (a *app) read(name string) ([]manifest.Object, error) {
	if name == "-" {
		return manifest.Parse(a.kinds, "standard input", a.in, manifest.DefaultLimits())
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, unreadable(name, err)
	}
	if !info.IsDir() {
		return a.readFile(name)
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, unreadable(name, err)
	}
	var set []manifest.Object
	var bad []error
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.IsDir() || ext != ".yaml" && ext != ".yml" && ext != ".json" {
			continue
		}
		list, err := a.readFile(filepath.Join(name, e.Name()))
		set, bad = append(set, list...), append(bad, err)
	}
	return set, errors.Join(bad...)
}

func (a *app) readFile(name string) ([]manifest.Object, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, unreadable(name, err)
	}
	defer f.Close()
	return manifest.Parse(a.kinds, name, f, manifest.DefaultLimits())
}

func unreadable(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "%s: there is no such file or directory", name)
	}
	return errs.WrapAs(errs.Internal, err, "read")
}

// deleteOptions are the flags of delete.
type deleteOptions struct {
	files
	wait    bool
	absent  bool // an object that is not there is as good as deleted
	grace   int32
	timeout time.Duration
}

func (a *app) deleteCommand() *cobra.Command {
	var o deleteOptions
	cmd := &cobra.Command{
		Use: "delete -f FILE|DIR|- | KIND NAME... | KIND/NAME...", Short: "remove objects",
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&o.wait, "wait", false, "return when they are gone from every node's kernel")
	cmd.Flags().BoolVar(&o.absent, "ignore-not-found", false, "pass over what is not there")
	cmd.Flags().Int32Var(&o.grace, "grace-period", -1, "seconds that a Pod gets to stop; -1: its own; 0: at once")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "how long --wait waits before it exits 3")
	cmd.RunE = a.traced("delete", func(ctx context.Context, args []string) error { return a.delete(ctx, o, args) })
	return cmd
}

func (a *app) delete(ctx context.Context, o deleteOptions, args []string) error {
	targets, err := a.targets(o.files, args)
	if err != nil {
		return err
	}
	how := objects.Deletion{}
	if o.grace >= 0 {
		how.Grace = &o.grace
	}
	c := a.connections()
	defer c.close()
	var bad []error
	var gone []target
	for _, t := range targets {
		one, cancel := bound(ctx)
		res, err := c.objects().Delete(one, t.kind, t.namespace, t.name, how)
		cancel()
		if o.absent && errs.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			bad = append(bad, err)
			continue
		}
		t.revision = res.Revision
		gone = append(gone, t)
		fmt.Fprintf(a.out, "%s deleted\n", label(t.kind, t.name))
	}
	if o.wait {
		bad = append(bad, a.awaitGone(ctx, c, gone, o.timeout))
	}
	return errors.Join(bad...)
}

// targets reads what to delete, last first, so that what others need goes after them.
func (a *app) targets(f files, args []string) ([]target, error) {
	if len(f.names) > 0 {
		if len(args) > 0 {
			return nil, session.Usage("either -f or names, not both")
		}
		set, err := a.load(f)
		if err != nil {
			return nil, err
		}
		var out []target
		for _, obj := range slices.Backward(set) {
			out = append(out, target{kind: obj.Kind, namespace: obj.Namespace(), name: obj.Name()})
		}
		return out, nil
	}
	if len(args) == 0 {
		return nil, session.Usage("-f FILE, KIND NAME or KIND/NAME is required")
	}
	return a.named(args, f.namespace)
}

// named reads KIND NAME... or KIND/NAME... .
func (a *app) named(args []string, namespace string) ([]target, error) {
	var out []target
	if len(args) > 0 && !strings.Contains(args[0], "/") {
		k, err := a.kind(args[0])
		if err != nil {
			return nil, err
		}
		if len(args) == 1 {
			return nil, session.Usage("which %s? KIND NAME, or KIND/NAME", k.Plural)
		}
		for _, name := range args[1:] {
			if strings.Contains(name, "/") {
				return nil, session.Usage("%q: either KIND NAME... or KIND/NAME..., not both", name)
			}
			out = append(out, target{kind: k, namespace: namespaceOf(k, namespace), name: name})
		}
		return out, nil
	}
	for _, arg := range args {
		k, name, err := a.reference(arg)
		if err != nil {
			return nil, err
		}
		out = append(out, target{kind: k, namespace: namespaceOf(k, namespace), name: name})
	}
	return out, nil
}
