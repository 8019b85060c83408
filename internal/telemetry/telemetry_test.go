package telemetry_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/telemetry"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
)

func newTelemetry(tb testing.TB, opts ...sdktrace.TracerProviderOption) *telemetry.Telemetry {
	tb.Helper()
	tele, err := telemetry.New(tb.Context(), telemetry.Process{Service: "svcproxy", Instance: "a:7443"}, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return tele
}

func only(t *testing.T, tele *telemetry.Telemetry, id trace.TraceID) telemetry.Hop {
	t.Helper()
	hops, _ := tele.Ring().FromTrace(id)
	if len(hops) != 1 {
		t.Fatalf("trace %s has %d hops, want 1: %+v", id, len(hops), hops)
	}
	return hops[0]
}

func TestHopAndSpanShareIDs(t *testing.T) {
	t.Parallel()
	for name, sampler := range map[string]sdktrace.Sampler{
		"sampled": sdktrace.AlwaysSample(), "not sampled": sdktrace.NeverSample(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spans := tracetest.NewSpanRecorder()
			tele := newTelemetry(t, sdktrace.WithSampler(sampler), sdktrace.WithSpanProcessor(spans))
			ctx, span := telemetry.Start(tele.Context(t.Context()), "plan", telemetry.String("k", "v"), telemetry.Int("n", 7))
			span.SetRevision(42)
			span.SetObject("services", "default", "web")
			sc := trace.SpanContextFromContext(ctx)
			if !sc.IsValid() {
				t.Fatal("a span that is not sampled has ids too")
			}
			span.End(errors.New("boom"))
			span.End(nil) // counts for nothing

			h := only(t, tele, sc.TraceID())
			if h.SpanID != sc.SpanID() || h.Revision != 42 || h.Name != "plan" || h.Error != "boom" ||
				h.Object.String() != "services/default/web" || h.Service != "svcproxy" || h.Instance != "a:7443" {
				t.Errorf("hop %+v", h)
			}
			want := 0
			if name == "sampled" {
				want = 1
			}
			if got := len(spans.Ended()); got != want {
				t.Fatalf("%d spans were recorded, want %d", got, want)
			}
			if want == 1 {
				checkAttributes(t, spans.Ended()[0])
			}
		})
	}
}

func checkAttributes(t *testing.T, s sdktrace.ReadOnlySpan) {
	t.Helper()
	got := map[string]string{}
	for _, kv := range s.Attributes() {
		got[string(kv.Key)] = kv.Value.String()
	}
	for k, v := range map[string]string{"k": "v", "n": "7", "podwire.revision": "42", "podwire.object": "services/default/web"} {
		if got[k] != v {
			t.Errorf("attribute %s = %q, want %q", k, got[k], v)
		}
	}
}

func TestChildrenNameTheirParent(t *testing.T) {
	t.Parallel()
	tele := newTelemetry(t, sdktrace.WithSampler(sdktrace.NeverSample()))
	ctx, parent := telemetry.Start(tele.Context(t.Context()), "apply")
	_, child := telemetry.Start(ctx, "store")
	child.End(nil)
	parent.End(nil)
	hops, _ := tele.Ring().FromTrace(trace.SpanContextFromContext(ctx).TraceID())
	if len(hops) != 2 || hops[0].ParentSpanID != hops[1].SpanID || hops[1].ParentSpanID.IsValid() {
		t.Errorf("hops %+v", hops)
	}
}

func TestStoredTraceparentContinues(t *testing.T) {
	t.Parallel()
	writer, reader := newTelemetry(t), newTelemetry(t)
	ctx, apply := telemetry.Start(writer.Context(t.Context()), "apply")
	stored := telemetry.Traceparent(ctx)
	if stored != apply.Traceparent() {
		t.Errorf("%q is not %q", stored, apply.Traceparent())
	}
	// The reader is busy with something else; what it read decides.
	busy, _ := telemetry.Start(reader.Context(t.Context()), "loop")
	rctx, feed := telemetry.StartFrom(busy, stored, "feed")
	feed.End(nil)
	sc := trace.SpanContextFromContext(ctx)
	h := only(t, reader, sc.TraceID())
	if h.ParentSpanID != sc.SpanID() {
		t.Errorf("parent %s, want %s", h.ParentSpanID, sc.SpanID())
	}
	if !trace.SpanContextFromContext(rctx).IsSampled() {
		t.Error("the decision to sample has to travel along")
	}
}

func TestMalformedTraceparentStartsAnew(t *testing.T) {
	t.Parallel()
	tele := newTelemetry(t)
	busy, _ := telemetry.Start(tele.Context(t.Context()), "loop")
	ctx, span := telemetry.StartFrom(busy, "garbage", "feed")
	span.End(nil)
	sc := trace.SpanContextFromContext(ctx)
	if sc.TraceID() == trace.SpanContextFromContext(busy).TraceID() {
		t.Error("the hop joined a trace that it has nothing to do with")
	}
	if only(t, tele, sc.TraceID()).ParentSpanID.IsValid() {
		t.Error("a new trace has no parent")
	}
}

func TestBatchLinks(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	tele := newTelemetry(t, sdktrace.WithSpanProcessor(spans))
	cause, root := telemetry.Start(tele.Context(t.Context()), "apply")
	batchCtx, batch := telemetry.Start(tele.Context(t.Context()), "plan batch")
	_, c := telemetry.StartCause(batchCtx, root.Traceparent(), "plan")
	c.End(nil)
	batch.End(nil)

	want := trace.SpanContextFromContext(cause)
	h := only(t, tele, want.TraceID())
	batchSC := trace.SpanContextFromContext(batchCtx)
	if h.ParentSpanID != want.SpanID() || h.Batch != batchSC.SpanID() {
		t.Errorf("hop %+v", h)
	}
	links := spans.Ended()[0].Links()
	if len(links) != 1 || !links[0].SpanContext.Equal(batchSC) {
		t.Errorf("links %+v, want the batch", links)
	}
}

func TestStartLinkedIsANewCause(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	tele := newTelemetry(t, sdktrace.WithSpanProcessor(spans))
	ctx, old := telemetry.Start(tele.Context(t.Context()), "apply")
	nctx, span := telemetry.StartLinked(ctx, old.Traceparent(), "pod became ready")
	span.End(nil)
	was, is := trace.SpanContextFromContext(ctx), trace.SpanContextFromContext(nctx)
	if was.TraceID() == is.TraceID() {
		t.Error("what the world reports is a trace of its own")
	}
	if only(t, tele, is.TraceID()).ParentSpanID.IsValid() {
		t.Error("a new cause has no parent")
	}
	if links := spans.Ended()[0].Links(); len(links) != 1 || links[0].SpanContext.SpanID() != was.SpanID() {
		t.Errorf("links %+v", links)
	}
}

func TestWithoutTelemetryNothingBreaks(t *testing.T) {
	t.Parallel()
	ctx, span := telemetry.Start(t.Context(), "x", telemetry.String("k", "v"))
	span.SetRevision(1)
	span.SetObject("pods", "a", "b")
	span.End(nil)
	if telemetry.FromContext(ctx) != nil || telemetry.Traceparent(ctx) != "" || span.Traceparent() != "" {
		t.Error("there is no trace here")
	}
}

func TestLongErrorsAreCut(t *testing.T) {
	t.Parallel()
	tele := newTelemetry(t)
	ctx, span := telemetry.Start(tele.Context(t.Context()), "x")
	span.End(errors.New(strings.Repeat("x", 1<<20)))
	if n := len(only(t, tele, trace.SpanContextFromContext(ctx).TraceID()).Error); n > 2000 {
		t.Errorf("error of %d bytes is kept", n)
	}
}

func TestExportNeedsAnEndpoint(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	tele, err := telemetry.Setup(t.Context(), telemetry.Process{Service: "x", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := telemetry.Start(tele.Context(t.Context()), "x")
	span.End(nil)
	if trace.SpanContextFromContext(ctx).IsSampled() {
		t.Error("OTEL_TRACES_SAMPLER is not heard")
	}
	if err := tele.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

type failingExporter struct{ err error }

func (f *failingExporter) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return f.err }
func (f *failingExporter) Shutdown(context.Context) error                             { return nil }

func TestExportFailuresAreLoggedOnce(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	f := &failingExporter{err: errors.New("collector is down")}
	e := telemetry.NewReportingExporter(f, slog.New(slog.NewTextHandler(&log, nil)))
	for range 3 {
		if err := e.ExportSpans(t.Context(), nil); err != nil {
			t.Error("the error is reported already")
		}
	}
	f.err = nil
	for range 3 {
		_ = e.ExportSpans(t.Context(), nil)
	}
	if got := strings.Count(log.String(), "\n"); got != 2 {
		t.Errorf("%d lines, want one for each edge:\n%s", got, &log)
	}
}

func TestGetHops(t *testing.T) {
	t.Parallel()
	tele, err := telemetry.New(t.Context(), telemetry.Process{Service: "nodeagent", Instance: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, parent := telemetry.Start(tele.Context(t.Context()), "receive")
	_, span := telemetry.Start(ctx, "kernel")
	span.SetObject("services", "default", "web")
	span.SetRevision(9)
	span.End(errors.New("refused"))
	parent.End(nil)
	id := trace.SpanContextFromContext(ctx).TraceID().String()

	s := telemetry.NewService(tele)
	resp, err := s.GetHops(t.Context(), &tracev1.GetHopsRequest{TraceId: id})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetHops()) != 2 || resp.GetProcess() != "node-1" || resp.GetOldestKeptUnixNano() == 0 {
		t.Fatalf("answer %v", resp)
	}
	kernel, receive := resp.GetHops()[0], resp.GetHops()[1]
	if kernel.GetTraceId() != id || kernel.GetParentSpanId() != receive.GetSpanId() || receive.GetParentSpanId() != "" ||
		kernel.GetObject() != "services/default/web" || kernel.GetRevision() != 9 || kernel.GetError() != "refused" ||
		kernel.GetProcess() != "node-1" || kernel.GetStartUnixNano() == 0 || kernel.GetName() != "kernel" {
		t.Errorf("hop %v", kernel)
	}
	for _, bad := range []string{"", "abc", strings.Repeat("0", 32), strings.Repeat("g", 32), id + "00"} {
		if _, err := s.GetHops(t.Context(), &tracev1.GetHopsRequest{TraceId: bad}); !errs.Is(err, errs.Invalid) {
			t.Errorf("trace id %q: %v, want Invalid", bad, err)
		}
	}
}
