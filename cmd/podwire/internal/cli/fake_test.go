package cli

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	_ "podwire.dev/proto/podwire/ipam/v1"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	_ "podwire.dev/proto/podwire/policy/v1"
	_ "podwire.dev/proto/podwire/svcproxy/v1"
	_ "podwire.dev/proto/podwire/trace/v1"
)

// testNow is what the commands take for the present.
var testNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fakeCluster answers for all processes: verbs from a set of objects, anything else with what was put in.
type fakeCluster struct {
	t     testing.TB
	kinds *manifest.Registry

	mu       sync.Mutex
	objects  []manifest.Object
	revision int64
	// later are the events of every watch after its bookmark.
	later []manifest.Object
	// canned are answers by "<process> <service>/<method>" or "<service>/<method>": JSON documents, or "error KIND: text".
	canned map[string][]string
	// failures are how many calls of a method still end as Unavailable.
	failures map[string]int
	calls    []string
	exec     func(nodeagentv1.AgentService_ExecServer) error

	processes []*clusterv1.Process
	// sockets are the targets by name; what is shown of a process is stable.
	sockets map[string]string
	outside string
	// routes are what the outside routes, by destination.
	routes map[netip.Prefix]lab.Route
}

// newFake starts one server per process: the services, and the nodes.
func newFake(t testing.TB, nodes ...string) *fakeCluster {
	t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeCluster{t: t, kinds: kinds, revision: 100, canned: map[string][]string{}, failures: map[string]int{}, sockets: map[string]string{}}
	dir := t.TempDir()
	for _, name := range []string{"dns", "ingress"} { // the stories of processes do without them
		f.sockets[name] = f.serve(dir, name)
	}
	for _, name := range []string{"cluster", "ipam", "policy", "svcproxy"} {
		f.sockets[name] = f.serve(dir, name)
		f.processes = append(f.processes, &clusterv1.Process{Service: name, Name: name + "-0", Target: "unix:///run/" + name})
	}
	for _, name := range nodes {
		f.sockets[name] = f.serve(dir, name)
		f.processes = append(f.processes, &clusterv1.Process{Service: "nodeagent", Name: name, Target: "unix:///run/" + name, Ready: true})
	}
	return f
}

func (f *fakeCluster) serve(dir, name string) string {
	f.t.Helper()
	d := daemon.New(daemon.Options{Name: name})
	opts := rpc.OptionsFor(d, daemon.Common{}, nil)
	opts.Socket = filepath.Join(dir, name)
	s, err := rpc.NewServer(opts)
	if err != nil {
		f.t.Fatal(err)
	}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			if svc := file.Services().Get(i); strings.HasPrefix(string(svc.FullName()), "podwire.") {
				s.RegisterService(f.describe(name, svc), f)
			}
		}
		return true
	})
	s.SetServing()
	done, started := make(chan error, 1), make(chan struct{})
	go func() {
		done <- d.Run(context.Background(), func(context.Context) error {
			s.Start(d)
			d.Ready()
			close(started)
			return nil
		})
	}()
	<-started
	f.t.Cleanup(func() {
		d.Stop()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
	return "unix://" + opts.Socket
}

// describe makes a gRPC service of a descriptor, every method of which is answered by f.
func (f *fakeCluster) describe(process string, svc protoreflect.ServiceDescriptor) *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: string(svc.FullName()), HandlerType: (*any)(nil)}
	for i := range svc.Methods().Len() {
		m := svc.Methods().Get(i)
		name, in := string(svc.FullName())+"/"+string(m.Name()), newMessage(f.t, m.Input())
		if m.IsStreamingClient() || m.IsStreamingServer() {
			desc.Streams = append(desc.Streams, grpc.StreamDesc{
				StreamName: string(m.Name()), ServerStreams: m.IsStreamingServer(), ClientStreams: m.IsStreamingClient(),
				Handler: func(_ any, stream grpc.ServerStream) error { return f.stream(process, name, m, in(), stream) },
			})
			continue
		}
		desc.Methods = append(desc.Methods, grpc.MethodDesc{
			MethodName: string(m.Name()),
			Handler: func(_ any, ctx context.Context, dec func(any) error, between grpc.UnaryServerInterceptor) (any, error) {
				req := in()
				if err := dec(req); err != nil {
					return nil, err
				}
				handle := func(_ context.Context, req any) (any, error) { return f.unary(process, name, m, req.(proto.Message)) }
				return between(ctx, req, &grpc.UnaryServerInfo{Server: f, FullMethod: "/" + name}, handle)
			},
		})
	}
	return desc
}

func newMessage(t testing.TB, md protoreflect.MessageDescriptor) func() proto.Message {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return func() proto.Message { return mt.New().Interface() }
}

func (f *fakeCluster) unary(process, name string, m protoreflect.MethodDescriptor, req proto.Message) (proto.Message, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, process+" "+name)
	if f.failures[name] > 0 {
		f.failures[name]--
		return nil, errs.New(errs.Unavailable, "%s is away", process)
	}
	resp := newMessage(f.t, m.Output())()
	docs := f.answers(process, name)
	if about := f.about(name, req); about != nil {
		docs = about
	}
	switch {
	case len(docs) > 0:
		return resp, fill(resp, docs[0])
	case name == "podwire.cluster.v1.DirectoryService/ListProcesses":
		return &clusterv1.ListProcessesResponse{Processes: f.processes}, nil
	}
	kind, ok := f.kindOf(name)
	if !ok {
		return nil, errs.New(errs.Unavailable, "%s: the test has no answer of %s", name, process)
	}
	return resp, f.verb(string(m.Name()), kind, req.ProtoReflect(), resp.ProtoReflect())
}

func (f *fakeCluster) answers(process, name string) []string {
	if docs, ok := f.canned[process+" "+name]; ok {
		return docs
	}
	return f.canned[name]
}

// about is the answer to a request that says something of its own: "<service>/<method> ~ <part of its JSON without spaces>".
// The longest part counts.
func (f *fakeCluster) about(name string, req proto.Message) []string {
	raw, err := protojson.Marshal(req)
	if err != nil {
		return nil
	}
	text := strings.ReplaceAll(string(raw), " ", "")
	best, found := "", []string(nil)
	for key, docs := range f.canned {
		method, part, ok := strings.Cut(key, " ~ ")
		if ok && method == name && len(part) > len(best) && strings.Contains(text, part) {
			best, found = part, docs
		}
	}
	return found
}

// fill makes a message of a canned answer.
func fill(resp proto.Message, doc string) error {
	doc = strings.TrimSpace(doc)
	if rest, ok := strings.CutPrefix(doc, "error "); ok {
		kind, text, _ := strings.Cut(rest, ": ")
		k, known := errs.ParseKind(kind)
		if !known {
			panic("no kind " + kind)
		}
		return errs.New(k, "%s", text)
	}
	return protojson.Unmarshal([]byte(doc), resp)
}

// kindOf is the kind that a verb's service is about.
func (f *fakeCluster) kindOf(method string) (manifest.Kind, bool) {
	service, _, _ := strings.Cut(method, "/")
	for _, k := range f.kinds.Kinds() {
		if service == "podwire."+k.Owner+".v1."+k.Name+"Service" {
			return k, true
		}
	}
	return manifest.Kind{}, false
}

func (f *fakeCluster) find(k manifest.Kind, namespace, name string) int {
	return slices.IndexFunc(f.objects, func(o manifest.Object) bool {
		return o.Kind.Name == k.Name && o.Namespace() == namespace && o.Name() == name
	})
}

func text(m protoreflect.Message, field string) string {
	if fd := m.Descriptor().Fields().ByName(protoreflect.Name(field)); fd != nil {
		return m.Get(fd).String()
	}
	return ""
}

func put(m protoreflect.Message, field string, v any) {
	m.Set(m.Descriptor().Fields().ByName(protoreflect.Name(field)), protoreflect.ValueOf(v))
}

func (f *fakeCluster) verb(verb string, k manifest.Kind, req, resp protoreflect.Message) error {
	namespace, name := text(req, "namespace"), text(req, "name")
	at := f.find(k, namespace, name)
	switch verb {
	case "List":
		list := resp.Mutable(resp.Descriptor().Fields().ByName("items")).List()
		for _, o := range f.selected(k, req) {
			list.Append(protoreflect.ValueOf(o.Message.ProtoReflect()))
		}
		put(resp, "revision", f.revision)
		return nil
	case "Apply":
		return f.apply(k, req, resp)
	}
	if at < 0 {
		return errs.New(errs.NotFound, "%s not found", strings.TrimPrefix(k.Name+" "+namespace+"/"+name, "/"))
	}
	put(resp, "object", f.objects[at].Message.ProtoReflect())
	put(resp, "revision", f.revision)
	switch verb {
	case "Get":
		put(resp, "traceparent", f.objects[at].Message.GetMetadata().GetAnnotations()["test/traceparent"])
	case "Delete":
		f.revision++
		put(resp, "revision", f.revision)
		f.objects = slices.Delete(f.objects, at, at+1)
	}
	return nil
}

func (f *fakeCluster) selected(k manifest.Kind, req protoreflect.Message) []manifest.Object {
	var out []manifest.Object
	label, value, _ := strings.Cut(text(req, "label_selector"), "=")
	for _, o := range f.objects {
		if o.Kind.Name == k.Name && (text(req, "all_namespaces") == "true" || o.Namespace() == text(req, "namespace")) &&
			(label == "" || o.Message.GetMetadata().GetLabels()[label] == value) &&
			(text(req, "name") == "" || o.Name() == text(req, "name")) {
			out = append(out, o)
		}
	}
	return out
}

// apply refuses what is labelled test/refuse: <field>: <rule>, and what is in a Namespace that is not there.
func (f *fakeCluster) apply(k manifest.Kind, req, resp protoreflect.Message) error {
	obj := req.Get(req.Descriptor().Fields().ByName("object")).Message().Interface().(manifest.Message)
	meta := obj.GetMetadata()
	ns, err := f.kinds.ByName("namespace")
	if !err {
		f.t.Error("no kind namespace")
	}
	if k.Scope == manifest.Namespaced && f.find(ns, "", meta.GetNamespace()) < 0 {
		return errs.New(errs.NotFound, "namespace %q not found: create it first", meta.GetNamespace())
	}
	if field, rule, ok := strings.Cut(meta.GetAnnotations()["test/refuse"], ": "); ok {
		return errs.InvalidFields(k.Name+" "+meta.GetName(), []errs.Violation{{Field: field, Rule: rule}})
	}
	outcome := objectv1.Outcome_OUTCOME_CREATED
	at := f.find(k, meta.GetNamespace(), meta.GetName())
	if at >= 0 {
		outcome = objectv1.Outcome_OUTCOME_CONFIGURED
		same := proto.Clone(obj).(manifest.Message)
		same.GetMetadata().ResourceVersion = f.objects[at].Message.GetMetadata().GetResourceVersion()
		if proto.Equal(f.objects[at].Message, same) {
			outcome = objectv1.Outcome_OUTCOME_UNCHANGED
		}
	}
	put(resp, "object", obj.ProtoReflect())
	resp.Set(resp.Descriptor().Fields().ByName("outcome"), protoreflect.ValueOf(outcome.Number()))
	if text(req, "dry_run") == "true" {
		return nil
	}
	f.revision++
	put(resp, "revision", f.revision)
	stored := manifest.Object{Kind: k, Message: proto.Clone(obj).(manifest.Message)}
	stored.Message.GetMetadata().ResourceVersion = strconv.FormatInt(f.revision, 10)
	if at < 0 {
		f.objects = append(f.objects, stored)
	} else {
		f.objects[at] = stored
	}
	return nil
}

func (f *fakeCluster) stream(process, name string, m protoreflect.MethodDescriptor, req proto.Message, stream grpc.ServerStream) error {
	if strings.HasSuffix(name, "AgentService/Exec") {
		return f.exec(&grpc.GenericServerStream[nodeagentv1.ExecRequest, nodeagentv1.ExecResponse]{ServerStream: stream})
	}
	if err := stream.RecvMsg(req); err != nil {
		return err
	}
	f.mu.Lock()
	f.calls = append(f.calls, process+" "+name)
	docs := f.answers(process, name)
	kind, isVerb := f.kindOf(name)
	away := f.failures[name] > 0
	if away {
		f.failures[name]--
	}
	f.mu.Unlock()
	if away {
		return errs.New(errs.Unavailable, "%s is away", process)
	}
	if isVerb && m.Name() == "Watch" {
		return f.watch(kind, m, req.ProtoReflect(), stream)
	}
	for _, doc := range docs {
		resp := newMessage(f.t, m.Output())()
		if err := fill(resp, doc); err != nil {
			return err
		}
		if err := stream.SendMsg(resp); err != nil {
			return err
		}
	}
	if strings.HasSuffix(name, "/Wait") {
		<-stream.Context().Done() // as the real one does until all is done
	}
	return nil
}

func (f *fakeCluster) watch(k manifest.Kind, m protoreflect.MethodDescriptor, req protoreflect.Message, stream grpc.ServerStream) error {
	send := func(typ objectv1.EventType, obj manifest.Message) error {
		resp := newMessage(f.t, m.Output())().ProtoReflect()
		resp.Set(resp.Descriptor().Fields().ByName("type"), protoreflect.ValueOf(typ.Number()))
		f.mu.Lock()
		f.revision++
		put(resp, "revision", f.revision)
		f.mu.Unlock()
		if obj != nil {
			put(resp, "object", obj.ProtoReflect())
		}
		return stream.SendMsg(resp.Interface())
	}
	f.mu.Lock()
	present, later := f.selected(k, req), slices.Clone(f.later)
	f.mu.Unlock()
	for _, o := range present {
		if err := send(objectv1.EventType_EVENT_TYPE_ADDED, o.Message); err != nil {
			return err
		}
	}
	if err := send(objectv1.EventType_EVENT_TYPE_BOOKMARK, nil); err != nil {
		return err
	}
	for _, o := range later {
		typ := objectv1.EventType_EVENT_TYPE_MODIFIED
		if o.Message.GetMetadata().GetAnnotations()["test/deleted"] != "" {
			typ = objectv1.EventType_EVENT_TYPE_DELETED
		}
		if o.Kind.Name != k.Name {
			continue
		}
		if err := send(typ, o.Message); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}

// Dial implements Session.
func (f *fakeCluster) Dial(_ context.Context, service string, opts ...rpc.DialOption) (*grpc.ClientConn, error) {
	target, ok := f.sockets[service]
	if !ok {
		return nil, errs.New(errs.Unavailable, "%s is not running", service)
	}
	return rpc.Dial(target, pki.Service(service), nil, opts...)
}

// DialAgent implements Session.
func (f *fakeCluster) DialAgent(ctx context.Context, node string, opts ...rpc.DialOption) (*grpc.ClientConn, error) {
	for _, p := range f.processes {
		if p.GetName() == node {
			return f.DialProcess(ctx, p, opts...)
		}
	}
	return nil, errs.New(errs.NotFound, "node %q: cluster knows no agent of that name that is alive", node)
}

// DialProcess implements Session.
func (f *fakeCluster) DialProcess(_ context.Context, p *clusterv1.Process, opts ...rpc.DialOption) (*grpc.ClientConn, error) {
	name := p.GetService()
	if name == "nodeagent" {
		name = p.GetName()
	}
	return rpc.Dial(f.sockets[name], pki.Service(p.GetService()), nil, opts...)
}

// Processes implements Session.
func (f *fakeCluster) Processes(context.Context) ([]*clusterv1.Process, error) {
	return f.processes, nil
}

// OutsideNetNS implements Session.
func (f *fakeCluster) OutsideNetNS() (string, error) {
	if f.outside == "" {
		return "", errs.New(errs.Unavailable, "podwire is not up")
	}
	return f.outside, nil
}

// OutsideRoute implements Session.
func (f *fakeCluster) OutsideRoute(to netip.Addr) (lab.Route, error) {
	for p, r := range f.routes {
		if p.Contains(to) {
			return r, nil
		}
	}
	return lab.Route{}, errs.New(errs.NotFound, "no route leads to %s", to)
}

// result is what a command came to.
type result struct {
	out, err string
	status   int
}

// run runs one command line against the fake, as main does.
func (f *fakeCluster) run(ctx context.Context, in io.Reader, args ...string) result {
	f.t.Helper()
	var out, errOut bytes.Buffer
	a := &app{Session: f, in: in, out: &out, err: &errOut, kinds: f.kinds, now: func() time.Time { return testNow }}
	root := rootOf(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && err.Error() != "" {
		errOut.WriteString("podwire: " + err.Error() + "\n")
	}
	return result{out.String(), errOut.String(), session.StatusOf(err)}
}

// load puts the objects of a manifest in.
func (f *fakeCluster) load(yaml string) []manifest.Object {
	f.t.Helper()
	list, err := manifest.Parse(f.kinds, "test", strings.NewReader(yaml), manifest.DefaultLimits())
	if err != nil {
		f.t.Fatal(err)
	}
	return list
}
