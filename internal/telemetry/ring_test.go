package telemetry_test

import (
	"sync"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"podwire.dev/internal/telemetry"
)

func TestRingKeepsTheNewest(t *testing.T) {
	t.Parallel()
	id := trace.TraceID{1}
	for _, tt := range []struct{ add, kept int }{{0, 0}, {1, 1}, {3, 3}, {4, 4}, {5, 4}, {11, 4}} {
		r := telemetry.NewRing(4)
		for i := range tt.add {
			r.Add(telemetry.Hop{TraceID: id, Revision: int64(i), Start: time.Unix(int64(i), 0)})
		}
		hops, kept := r.FromTrace(id)
		if len(hops) != tt.kept || kept.Hops != tt.kept || kept.Capacity != 4 || kept.Evicted != uint64(tt.add-tt.kept) {
			t.Fatalf("after %d: %d hops, %+v", tt.add, len(hops), kept)
		}
		for i, h := range hops {
			if want := int64(tt.add - tt.kept + i); h.Revision != want {
				t.Errorf("after %d: hop %d is %d, want %d", tt.add, i, h.Revision, want)
			}
		}
		if from, want := kept.From(), time.Unix(int64(tt.add-tt.kept), 0); tt.add > 4 && !from.Equal(want) {
			t.Errorf("after %d: kept from %v, want %v", tt.add, from, want)
		}
		if tt.add <= 4 && !kept.From().Equal(kept.Since) {
			t.Errorf("after %d: everything is kept since the start", tt.add)
		}
	}
	if hops, _ := telemetry.NewRing(4).FromTrace(trace.TraceID{2}); hops != nil {
		t.Error("hops of an unknown trace")
	}
}

func TestRingIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	r := telemetry.NewRing(8)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				r.Add(telemetry.Hop{TraceID: trace.TraceID{1}})
				r.FromTrace(trace.TraceID{1})
			}
		})
	}
	wg.Wait()
	if _, kept := r.FromTrace(trace.TraceID{}); kept.Evicted != 4*500-8 {
		t.Errorf("kept %+v", kept)
	}
}

func TestTraceparentForms(t *testing.T) {
	t.Parallel()
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, tt := range []struct {
		text string
		ok   bool
	}{
		{good, true},
		{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true},
		{"cc" + good[2:] + "-what-the-future-brings", true},
		{"cc" + good[2:] + ".what", false},
		{good + "-more", false},
		{"ff" + good[2:], false},
		{"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
		{"00-00000000000000000000000000000000-b7ad6b7169203331-01", false},
		{"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false},
		{"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
		{good[:54], false},
		{"", false},
	} {
		if _, ok := telemetry.ParseTraceparent(tt.text); ok != tt.ok {
			t.Errorf("%q: %v, want %v", tt.text, ok, tt.ok)
		}
	}
}

func FuzzParseTraceparent(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff-x")
	f.Fuzz(func(t *testing.T, text string) {
		sc, ok := telemetry.ParseTraceparent(text)
		if !ok {
			return
		}
		again := telemetry.Traceparent(trace.ContextWithSpanContext(t.Context(), sc))
		sc2, ok := telemetry.ParseTraceparent(again)
		if !ok || !sc2.Equal(sc) || again[2:53] != text[2:53] {
			t.Errorf("%q became %q", text, again)
		}
	})
}

func BenchmarkHop(b *testing.B) {
	for _, bb := range []struct {
		name    string
		sampler sdktrace.Sampler
	}{{"sampled", sdktrace.AlwaysSample()}, {"not sampled", sdktrace.NeverSample()}} {
		b.Run(bb.name, func(b *testing.B) {
			ctx := newTelemetry(b, sdktrace.WithSampler(bb.sampler)).Context(b.Context())
			b.ReportAllocs()
			for b.Loop() {
				_, span := telemetry.Start(ctx, "plan", telemetry.String("table", "frontends"), telemetry.Int("rows", 12))
				span.SetRevision(7)
				span.SetObject("services", "default", "web")
				span.End(nil)
			}
		})
	}
}
