package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/cli/objects"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// target is an object that a command waits for.
type target struct {
	kind            manifest.Kind
	namespace, name string
	// revision is that of the write.
	revision int64
}

func (t target) String() string {
	if t.namespace == "" {
		return label(t.kind, t.name)
	}
	return label(t.kind, t.name) + " in " + t.namespace
}

// waitOptions are the flags of wait.
type waitOptions struct {
	namespace, condition string
	revision             int64
	timeout              time.Duration
}

func (a *app) waitCommand() *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "wait KIND/NAME... | KIND NAME... | --revision N",
		Short: "return when a change is true in the kernel of every node that it concerns",
		Long: "Waits until every node holds the last change of the objects, or everything up to a revision. Of a Pod it also\n" +
			"waits for Ready or Failed. Exits 3 at the timeout and names the nodes that are behind; a node that refuses the\n" +
			"change ends the wait at once.",
	}
	namespaceFlag(cmd, &o.namespace)
	cmd.Flags().Int64Var(&o.revision, "revision", 0, "wait for everything up to the `REVISION`")
	cmd.Flags().StringVar(&o.condition, "for", "", "delete, or condition=NAME[=VALUE] (of any object that has conditions)")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait before exiting 3")
	byRevision := func() bool { return cmd.Flags().Changed("revision") }
	cmd.RunE = a.traced("wait", func(ctx context.Context, args []string) error {
		switch {
		case byRevision() && (len(args) > 0 || o.condition != ""):
			return session.Usage("wait for objects, or for --revision N")
		case byRevision() && o.revision < 1:
			return session.Usage("--revision must be at least 1, not %d", o.revision)
		case !byRevision() && len(args) == 0:
			return session.Usage("wait for what? KIND/NAME, or --revision N")
		}
		return a.wait(ctx, o, args)
	})
	return cmd
}

// goal is what a wait waits for.
type goal struct {
	delete bool
	// condition and value are empty where the wait is for the kernels only.
	condition, value string
}

func parseGoal(text string) (goal, error) {
	if text == "" || text == "delete" {
		return goal{delete: text != ""}, nil
	}
	rest, ok := strings.CutPrefix(text, "condition=")
	name, value, given := strings.Cut(rest, "=")
	if !ok || name == "" || given && value == "" {
		return goal{}, session.Usage("--for must be delete or condition=NAME[=VALUE], not %q", text)
	}
	return goal{condition: name, value: or(value, "True")}, nil
}

func (a *app) wait(ctx context.Context, o waitOptions, args []string) error {
	g, err := parseGoal(o.condition)
	if err != nil {
		return err
	}
	targets, err := a.named(args, o.namespace)
	if err != nil {
		return err
	}
	c := a.connections()
	defer c.close()
	// What is not up at all is said at once, and not at the timeout.
	if _, err := c.Dial(ctx, "cluster"); err != nil {
		return err
	}
	if g.delete {
		return a.awaitGone(ctx, c, targets, o.timeout)
	}
	return a.withTimeout(ctx, o.timeout, func(ctx context.Context) error {
		for _, t := range targets {
			if err := a.waitFor(ctx, c, t, g); err != nil {
				return err
			}
		}
		return a.awaitRevision(ctx, c, o.revision)
	})
}

// waitFor waits for the present state of one object.
func (a *app) waitFor(ctx context.Context, c *conns, t target, g goal) error {
	obj, err := c.objects().Get(ctx, t.kind, t.namespace, t.name)
	if err != nil {
		return err
	}
	if t.revision, err = strconv.ParseInt(obj.GetMetadata().GetResourceVersion(), 10, 64); err != nil {
		return errs.WrapAs(errs.Internal, err, "resourceVersion of %s", t)
	}
	if g.condition == "" {
		return a.awaitTrue(ctx, c, t)
	}
	what := g.condition
	if g.value != "True" {
		what += "=" + g.value
	}
	rev, err := a.awaitState(ctx, c, t, what, func(m manifest.Message) bool { return hasCondition(m, g.condition, g.value) })
	if err != nil {
		return err
	}
	return a.awaitRevision(ctx, c, rev)
}

// awaitAll waits for what apply wrote.
func (a *app) awaitAll(ctx context.Context, c *conns, written []target, timeout time.Duration) error {
	return a.withTimeout(ctx, timeout, func(ctx context.Context) error {
		newest := int64(0)
		for _, t := range written {
			newest = max(newest, t.revision)
		}
		if err := a.awaitRevision(ctx, c, newest); err != nil {
			return err
		}
		for _, t := range written {
			if t.kind.Name != "Pod" {
				continue
			}
			if err := a.awaitTrue(ctx, c, t); err != nil {
				return err
			}
		}
		return nil
	})
}

// awaitTrue waits for one object's last change on every node. A Pod must also be Ready or Failed; the revision at which it
// became so must be everywhere as well, since with it every node knows the pod's address.
func (a *app) awaitTrue(ctx context.Context, c *conns, t target) error {
	if t.kind.Name == "Pod" {
		failed := ""
		rev, err := a.awaitState(ctx, c, t, "Ready or Failed", func(m manifest.Message) bool {
			if m.(*objectv1.Pod).GetStatus().GetPhase() == "Failed" {
				failed = describeState(m)
			}
			return podSettled(m)
		})
		if failed != "" {
			a.line.clear()
			fmt.Fprintf(a.err, "%s has failed: %s\n", label(t.kind, t.name), failed)
		}
		if err != nil {
			return err
		}
		t.revision = max(t.revision, rev)
	}
	return a.awaitRevision(ctx, c, t.revision)
}

// podSettled says whether a Pod is Ready, or has come to its end.
func podSettled(m manifest.Message) bool {
	return ended(m.(*objectv1.Pod)) || hasCondition(m, "Ready", "True")
}

// hasCondition says whether an object has a condition with a value; names and values compare as in kubectl, without case.
func hasCondition(m manifest.Message, name, value string) bool {
	is := func(c interface {
		GetType() string
		GetStatus() string
	}) bool {
		return strings.EqualFold(c.GetType(), name) && strings.EqualFold(c.GetStatus(), value)
	}
	switch o := m.(type) {
	case *objectv1.Pod:
		return slices.ContainsFunc(o.GetStatus().GetConditions(), func(c *objectv1.PodCondition) bool { return is(c) })
	case *objectv1.Node:
		return slices.ContainsFunc(o.GetStatus().GetConditions(), func(c *objectv1.NodeCondition) bool { return is(c) })
	case *objectv1.Service:
		return slices.ContainsFunc(o.GetStatus().GetConditions(), func(c *objectv1.Condition) bool { return is(c) })
	}
	return false
}

// awaitState watches an object until it is as wanted, and returns the revision at which it was.
func (a *app) awaitState(ctx context.Context, c *conns, t target, what string, ok func(manifest.Message) bool) (int64, error) {
	revision := int64(0)
	last := "not there yet"
	err := a.follow(ctx, c, t, func(ev objects.Event) error {
		switch {
		case ev.Type == objectv1.EventType_EVENT_TYPE_DELETED:
			return errs.New(errs.NotFound, "%s was deleted meanwhile", t)
		case ev.Object == nil:
			return nil
		}
		last = describeState(ev.Object)
		if ok(ev.Object) {
			revision = ev.Revision
			return io.EOF
		}
		a.line.say("waiting for %s to be %s: %s", label(t.kind, t.name), what, last)
		return nil
	})
	if err != nil && ctx.Err() != nil {
		return 0, overdue(ctx, "%s is not %s yet: %s", t, what, last)
	}
	return revision, err
}

// follow watches one object from its present state, and again where the stream breaks.
func (a *app) follow(ctx context.Context, c *conns, t target, fn func(objects.Event) error) error {
	for {
		sel := objects.Selection{Namespace: t.namespace, Name: t.name}
		err := c.objects().Watch(ctx, t.kind, sel, fn)
		if !errs.Is(err, errs.Unavailable) || ctx.Err() != nil {
			return err
		}
		if rest(ctx, retryPause) != nil {
			return err
		}
	}
}

const retryPause = 200 * time.Millisecond

// describeState says in a line how far an object has come.
func describeState(m manifest.Message) string {
	pod, ok := m.(*objectv1.Pod)
	if !ok {
		return "revision " + m.GetMetadata().GetResourceVersion()
	}
	text := "phase " + or(pod.GetStatus().GetPhase(), "Pending")
	for _, cs := range pod.GetStatus().GetContainerStatuses() {
		if w := cs.GetState().GetWaiting(); w != nil {
			text += fmt.Sprintf(", container %s waits: %s %s", cs.GetName(), w.GetReason(), w.GetMessage())
		}
	}
	for _, cond := range pod.GetStatus().GetConditions() {
		if cond.GetStatus() != "True" && cond.GetMessage() != "" {
			text += ", " + cond.GetType() + ": " + cond.GetMessage()
		}
	}
	return text
}

// awaitGone waits until objects are gone, and until every node has taken the removal in.
func (a *app) awaitGone(ctx context.Context, c *conns, gone []target, timeout time.Duration) error {
	if len(gone) == 0 {
		return nil
	}
	return a.withTimeout(ctx, timeout, func(ctx context.Context) error {
		newest := int64(0)
		for _, t := range gone {
			rev, err := a.awaitDeleted(ctx, c, t)
			if err != nil {
				return err
			}
			newest = max(newest, rev, t.revision)
		}
		return a.awaitRevision(ctx, c, newest)
	})
}

func (a *app) awaitDeleted(ctx context.Context, c *conns, t target) (int64, error) {
	revision, seen := int64(0), false
	a.line.say("waiting for %s to be gone", t)
	err := a.follow(ctx, c, t, func(ev objects.Event) error {
		switch ev.Type {
		case objectv1.EventType_EVENT_TYPE_DELETED:
			revision = ev.Revision
			return io.EOF
		case objectv1.EventType_EVENT_TYPE_BOOKMARK:
			if !seen {
				return io.EOF
			}
		default:
			seen = true
		}
		return nil
	})
	if err != nil && ctx.Err() != nil {
		return 0, overdue(ctx, "%s is still there", t)
	}
	return revision, err
}

// withTimeout runs fn for at most that long.
func (a *app) withTimeout(ctx context.Context, timeout time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer a.line.clear()
	return fn(ctx)
}

// awaitRevision waits until the watermarks of all required services have passed a revision.
func (a *app) awaitRevision(ctx context.Context, c *conns, revision int64) error {
	if revision == 0 {
		return nil
	}
	var last *clusterv1.WaitResponse
	for {
		err := a.waitOnce(ctx, c, revision, func(r *clusterv1.WaitResponse) {
			last = r
			a.line.say("waiting for revision %d%s", revision, strings.ReplaceAll(laggards(r, revision), "\n  ", "; "))
		})
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return overdue(ctx, "revision %d is not true everywhere yet%s", revision, laggards(last, revision))
		case !errs.Is(err, errs.Unavailable):
			return err
		}
		if rest(ctx, retryPause) != nil {
			return overdue(ctx, "revision %d is not true everywhere yet%s", revision, laggards(last, revision))
		}
	}
}

// overdue is the error of a wait whose ctx has ended: by its time, or because somebody had enough of it.
func overdue(ctx context.Context, format string, args ...any) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return errs.New(errs.Unavailable, "interrupted: "+format, args...)
	}
	return session.Timeout(format, args...)
}

// waitOnce follows one stream to its end; nil where the revision was passed.
func (a *app) waitOnce(ctx context.Context, c *conns, revision int64, seen func(*clusterv1.WaitResponse)) error {
	conn, err := c.Dial(ctx, "cluster")
	if err != nil {
		return err
	}
	stream, err := clusterv1.NewReceiptServiceClient(conn).Wait(ctx, &clusterv1.WaitRequest{Revision: revision, AllRequired: true})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errs.New(errs.Unavailable, "cluster ended the wait")
		}
		if err != nil {
			return err
		}
		seen(r)
		if r.GetDone() {
			return nil
		}
		if refused := refusals(r, revision); refused != "" {
			return errs.New(errs.Conflict, "revision %d was refused%s", revision, refused)
		}
	}
}

func refusals(r *clusterv1.WaitResponse, revision int64) string {
	var lines []string
	for _, s := range r.GetServices() {
		for _, l := range s.GetLaggards() {
			if l.GetRefused() != "" && s.GetWatermark() < revision {
				lines = append(lines, fmt.Sprintf("\n  %s: node %s holds %d: %s", s.GetService(), l.GetNode(), l.GetHeld(), l.GetRefused()))
			}
		}
	}
	return strings.Join(lines, "")
}

// laggards names what holds a revision back.
func laggards(r *clusterv1.WaitResponse, revision int64) string {
	if r == nil {
		return ": cluster did not answer"
	}
	var lines []string
	for _, s := range r.GetServices() {
		if s.GetWatermark() >= revision {
			continue
		}
		line := fmt.Sprintf("\n  %s: watermark %d", s.GetService(), s.GetWatermark())
		for _, l := range s.GetLaggards() {
			line += fmt.Sprintf(", node %s holds %d", l.GetNode(), l.GetHeld())
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "")
}
