// Package objects calls the verbs of any kind: the services follow one pattern of names, so one client serves all kinds.
//
// In: kinds of the manifest registry, objects, conditions. Out: objects as stored, with revisions. Invariants: the
// messages are the generated ones, found by name; a kind whose service lacks a verb is an error that says so. It must not
// know any single kind.
package objects

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"

	// The messages of every kind's verbs, which are found by name.
	_ "podwire.dev/proto/podwire/cluster/v1"
	_ "podwire.dev/proto/podwire/ingress/v1"
	_ "podwire.dev/proto/podwire/ipam/v1"
	_ "podwire.dev/proto/podwire/policy/v1"
	_ "podwire.dev/proto/podwire/svcproxy/v1"
)

// Dialer leads to a service.
type Dialer interface {
	Dial(ctx context.Context, service string) (grpc.ClientConnInterface, error)
}

// Client calls verbs.
type Client struct{ dialer Dialer }

// New makes a client.
func New(d Dialer) *Client { return &Client{d} }

// Result is the answer to a write.
type Result struct {
	Object   manifest.Message
	Revision int64
	Outcome  objectv1.Outcome
}

// Event is one change of a watch. Object is nil in a BOOKMARK.
type Event struct {
	Type     objectv1.EventType
	Object   manifest.Message
	Revision int64
}

// Selection says which objects a List or Watch is about.
type Selection struct {
	Namespace     string // ignored where All is set, and for cluster-scoped kinds
	AllNamespaces bool
	Name          string // Watch only
	Labels        string
	From          int64 // Watch only
}

// call is one verb of one kind.
type call struct {
	method   string
	request  protoreflect.Message
	response protoreflect.MessageType
	conn     grpc.ClientConnInterface
	owner    string
}

func (c *Client) begin(ctx context.Context, k manifest.Kind, verb string) (*call, error) {
	service := protoreflect.FullName("podwire." + k.Owner + ".v1." + k.Name + "Service")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(service.Append(protoreflect.Name(verb)))
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %s cannot be asked to %s: the service of this kind has no such verb", k.Plural, k.Owner, verb)
	}
	method := d.(protoreflect.MethodDescriptor)
	in, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "%s", method.FullName())
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "%s", method.FullName())
	}
	conn, err := c.dialer.Dial(ctx, k.Owner)
	if err != nil {
		return nil, err
	}
	return &call{
		method: "/" + string(service) + "/" + verb, request: in.New(), response: out,
		conn: conn, owner: k.Owner,
	}, nil
}

// set fills a field of the request where the message has it and the value is not the zero one.
func (c *call) set(field protoreflect.Name, value any) *call {
	fd := c.request.Descriptor().Fields().ByName(field)
	v := protoreflect.ValueOf(value)
	if fd != nil && (fd.HasPresence() || !v.Equal(fd.Default())) {
		c.request.Set(fd, v)
	}
	return c
}

func (c *call) unary(ctx context.Context) (answer, error) {
	out := c.response.New()
	err := c.conn.Invoke(ctx, c.method, c.request.Interface(), out.Interface())
	if errs.Is(err, errs.Unavailable) {
		err = errs.Wrap(err, "%s does not answer", c.owner) // gRPC's words do not say who
	}
	return answer{out}, err
}

// readPause is how long a read waits before it is repeated.
const readPause = 200 * time.Millisecond

// read is unary for a call that changes nothing: where the service is away it is repeated until ctx ends.
func (c *call) read(ctx context.Context) (answer, error) {
	var away error
	for {
		a, err := c.unary(ctx)
		_, bounded := ctx.Deadline()
		switch {
		case ctx.Err() != nil && away != nil:
			return a, away // says more than that the time is over
		case !errs.Is(err, errs.Unavailable) || !bounded || ctx.Err() != nil:
			return a, err
		}
		away = err
		pause := time.NewTimer(readPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return a, err
		case <-pause.C:
		}
	}
}

// answer reads the fields that responses have in common.
type answer struct{ m protoreflect.Message }

func (a answer) field(name protoreflect.Name) (protoreflect.Value, bool) {
	fd := a.m.Descriptor().Fields().ByName(name)
	if fd == nil || !a.m.Has(fd) {
		return protoreflect.Value{}, false
	}
	return a.m.Get(fd), true
}

func (a answer) object() manifest.Message {
	v, ok := a.field("object")
	if !ok {
		return nil
	}
	obj, _ := v.Message().Interface().(manifest.Message)
	return obj
}

func (a answer) revision() int64 {
	v, ok := a.field("revision")
	if !ok {
		return 0
	}
	return v.Int()
}

func (a answer) result() Result {
	r := Result{Object: a.object(), Revision: a.revision()}
	if v, ok := a.field("outcome"); ok {
		r.Outcome = objectv1.Outcome(v.Enum())
	}
	return r
}

// Apply creates or replaces an object.
func (c *Client) Apply(ctx context.Context, k manifest.Kind, obj manifest.Message, mode Mode) (Result, error) {
	call, err := c.begin(ctx, k, "Apply")
	if err != nil {
		return Result{}, err
	}
	call.set("object", obj.ProtoReflect()).set("dry_run", mode == DryRun)
	a, err := call.unary(ctx)
	if err != nil {
		return Result{}, err
	}
	return a.result(), nil
}

// Mode says whether a write is meant.
type Mode uint8

// The modes.
const (
	Really Mode = iota
	DryRun
)

// Get reads one object.
func (c *Client) Get(ctx context.Context, k manifest.Kind, namespace, name string) (manifest.Message, error) {
	call, err := c.begin(ctx, k, "Get")
	if err != nil {
		return nil, err
	}
	a, err := call.set("namespace", namespace).set("name", name).read(ctx)
	if err != nil {
		return nil, err
	}
	return a.object(), nil
}

// List reads every page of a selection, and the revision that all of them show.
func (c *Client) List(ctx context.Context, k manifest.Kind, sel Selection) ([]manifest.Message, int64, error) {
	var out []manifest.Message
	for token := ""; ; {
		call, err := c.begin(ctx, k, "List")
		if err != nil {
			return nil, 0, err
		}
		a, err := call.selected(k, sel).set("continue_token", token).read(ctx)
		if err != nil {
			return nil, 0, err
		}
		if v, ok := a.field("items"); ok {
			for i := range v.List().Len() {
				if obj, ok := v.List().Get(i).Message().Interface().(manifest.Message); ok {
					out = append(out, obj)
				}
			}
		}
		next, more := a.field("continue_token")
		if !more || next.String() == "" {
			return out, a.revision(), nil
		}
		token = next.String()
	}
}

func (c *call) selected(k manifest.Kind, sel Selection) *call {
	if k.Scope == manifest.Namespaced {
		c.set("all_namespaces", sel.AllNamespaces)
		if !sel.AllNamespaces {
			c.set("namespace", sel.Namespace)
		}
	}
	return c.set("label_selector", sel.Labels)
}

// Watch calls fn for each change until fn returns an error, which is returned, or the stream ends. io.EOF from fn ends
// the watch without an error.
func (c *Client) Watch(ctx context.Context, k manifest.Kind, sel Selection, fn func(Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := c.begin(ctx, k, "Watch")
	if err != nil {
		return err
	}
	call.selected(k, sel).set("name", sel.Name).set("from_revision", sel.From)
	stream, err := call.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, call.method)
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(call.request.Interface()), stream.CloseSend()); err != nil {
		return err
	}
	for {
		out := call.response.New()
		if err := stream.RecvMsg(out.Interface()); err != nil {
			return err
		}
		a := answer{out}
		ev := Event{Object: a.object(), Revision: a.revision()}
		if v, ok := a.field("type"); ok {
			ev.Type = objectv1.EventType(v.Enum())
		}
		if err := fn(ev); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Deletion says how to delete.
type Deletion struct {
	// Grace is nil for the object's own grace period, in seconds.
	Grace *int32
	UID   string
	Mode  Mode
}

// Delete removes an object, or begins to.
func (c *Client) Delete(ctx context.Context, k manifest.Kind, namespace, name string, how Deletion) (Result, error) {
	call, err := c.begin(ctx, k, "Delete")
	if err != nil {
		return Result{}, err
	}
	call.set("namespace", namespace).set("name", name).set("uid", how.UID).set("dry_run", how.Mode == DryRun)
	if how.Grace != nil {
		call.set("grace_period_seconds", *how.Grace)
	}
	a, err := call.unary(ctx)
	if err != nil {
		return Result{}, err
	}
	return a.result(), nil
}

// Traceparent is the W3C traceparent of the write that left an object's present state; empty where it was not traced.
func (c *Client) Traceparent(ctx context.Context, k manifest.Kind, namespace, name string) (string, error) {
	call, err := c.begin(ctx, k, "Get")
	if err != nil {
		return "", err
	}
	a, err := call.set("namespace", namespace).set("name", name).read(ctx)
	if err != nil {
		return "", err
	}
	v, ok := a.field("traceparent")
	if !ok {
		return "", nil
	}
	return v.String(), nil
}
