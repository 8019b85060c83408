package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Attr is an attribute before the sampler's decision: building one costs nothing.
type Attr struct {
	key  string
	text string
	num  int64
	kind attrKind
}

type attrKind int8

const (
	textAttr attrKind = iota
	intAttr
)

// String is a text attribute.
func String(key, value string) Attr { return Attr{key: key, text: value} }

// Int is a number attribute.
func Int[N ~int | ~int32 | ~int64 | ~uint16 | ~uint32](key string, value N) Attr {
	return Attr{key: key, num: int64(value), kind: intAttr}
}

func (a Attr) keyValue() attribute.KeyValue {
	if a.kind == intAttr {
		return attribute.Int64(a.key, a.num)
	}
	return attribute.String(a.key, a.text)
}

// Span is one hop under way: an OpenTelemetry span and the ring record that End
// leaves. It belongs to one goroutine.
type Span struct {
	span trace.Span
	t    *Telemetry
	hop  Hop
	done bool
}

// Start begins a hop as a child of the span in ctx, or as a new trace. Without a
// Telemetry in ctx there is no ring to write to, and the span is made by the
// provider of ctx's span.
func Start(ctx context.Context, name string, attrs ...Attr) (context.Context, *Span) {
	return start(ctx, name, attrs)
}

// StartFrom continues the trace of a stored traceparent (W3C Trace Context, version
// 00), whatever span ctx carries. A traceparent that is empty or malformed starts a
// new trace: a change without a trace is still followed from here on.
func StartFrom(ctx context.Context, traceparent, name string, attrs ...Attr) (context.Context, *Span) {
	return start(withParent(ctx, traceparent), name, attrs)
}

// StartCause begins the short span of one cause inside a batch: a child of the
// cause's own traceparent, linked to the batch, which is the span in ctx.
func StartCause(ctx context.Context, traceparent, name string, attrs ...Attr) (context.Context, *Span) {
	batch := trace.SpanContextFromContext(ctx)
	ctx, s := start(withParent(ctx, traceparent), name, attrs, trace.WithLinks(trace.Link{SpanContext: batch}))
	s.hop.Batch = batch.SpanID()
	return ctx, s
}

// StartLinked begins a new trace that names where it comes from: what the world
// reports about an older change is a cause of its own, linked to that change.
func StartLinked(ctx context.Context, traceparent, name string, attrs ...Attr) (context.Context, *Span) {
	var opts []trace.SpanStartOption
	if from, ok := ParseTraceparent(traceparent); ok {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: from}))
	}
	return start(trace.ContextWithSpanContext(ctx, trace.SpanContext{}), name, attrs, opts...)
}

func start(ctx context.Context, name string, attrs []Attr, opts ...trace.SpanStartOption) (context.Context, *Span) {
	s := &Span{t: FromContext(ctx)}
	parent := trace.SpanContextFromContext(ctx)
	var tracer trace.Tracer
	if s.t != nil {
		tracer = s.t.tracer
		s.hop.Service, s.hop.Instance = s.t.process.Service, s.t.process.Instance
	} else {
		tracer = trace.SpanFromContext(ctx).TracerProvider().Tracer(scope)
	}
	s.hop.Name, s.hop.ParentSpanID, s.hop.Start = name, parent.SpanID(), time.Now()
	ctx, s.span = tracer.Start(ctx, name, opts...)
	sc := s.span.SpanContext()
	s.hop.TraceID, s.hop.SpanID = sc.TraceID(), sc.SpanID()
	s.SetAttrs(attrs...)
	return ctx, s
}

// SetAttrs adds attributes to the span, if it is recorded at all.
func (s *Span) SetAttrs(attrs ...Attr) {
	if len(attrs) == 0 || !s.span.IsRecording() {
		return
	}
	kvs := make([]attribute.KeyValue, len(attrs))
	for i, a := range attrs {
		kvs[i] = a.keyValue()
	}
	s.span.SetAttributes(kvs...)
}

// SetRevision names the store revision that the hop carries.
func (s *Span) SetRevision(revision int64) {
	s.hop.Revision = revision
	if s.span.IsRecording() {
		s.span.SetAttributes(attribute.Int64("podwire.revision", revision))
	}
}

// SetObject names the object that the hop is about.
func (s *Span) SetObject(kind, namespace, name string) {
	s.hop.Object = Object{Kind: kind, Namespace: namespace, Name: name}
	if s.span.IsRecording() {
		s.span.SetAttributes(attribute.String("podwire.object", s.hop.Object.String()))
	}
}

// Traceparent is the span's own W3C traceparent, to be stored or pushed.
func (s *Span) Traceparent() string { return formatTraceparent(s.span.SpanContext()) }

// End ends the span and writes the hop; err is what the hop failed with, or nil.
// Only the first End counts.
func (s *Span) End(err error) {
	if s.done {
		return
	}
	s.done = true
	s.hop.Duration = time.Since(s.hop.Start)
	if err != nil {
		s.hop.Error = bounded(err.Error())
		if s.span.IsRecording() {
			s.span.SetStatus(codes.Error, s.hop.Error)
		}
	}
	s.span.End()
	if s.t != nil {
		s.t.ring.Add(s.hop)
	}
}

// maxErrorText bounds what one failure may occupy in the ring, in bytes.
const maxErrorText = 1024

func bounded(text string) string {
	if len(text) > maxErrorText {
		return text[:maxErrorText] + "..."
	}
	return text
}

// Record writes a hop for the span in ctx that somebody else started and ended, such as
// gRPC's instrumentation.
func (t *Telemetry) Record(ctx context.Context, name string, parent trace.SpanID, start time.Time, d time.Duration, err error) {
	sc := trace.SpanContextFromContext(ctx)
	h := Hop{
		TraceID: sc.TraceID(), SpanID: sc.SpanID(), ParentSpanID: parent, Name: name,
		Service: t.process.Service, Instance: t.process.Instance, Start: start, Duration: d,
	}
	if err != nil {
		h.Error = bounded(err.Error())
	}
	t.ring.Add(h)
}
