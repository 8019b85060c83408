package telemetry

import (
	"context"
	"log/slog"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// reportingExporter logs the two edges of a failing export instead of every
// failure: a collector that is down must not fill the log. The batch processor
// calls ExportSpans from one goroutine, so failing needs no lock.
type reportingExporter struct {
	sdktrace.SpanExporter
	log     *slog.Logger
	failing bool
}

// ExportSpans hands spans on. It swallows the error after reporting it: the caller
// could only report it once more.
func (e *reportingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	switch failing := err != nil; {
	case e.log == nil || failing == e.failing:
	case failing:
		e.log.WarnContext(ctx, "spans cannot be exported; hops are kept, spans are dropped until it works again", "error", err)
	default:
		e.log.InfoContext(ctx, "spans are exported again")
	}
	e.failing = err != nil
	return nil
}
