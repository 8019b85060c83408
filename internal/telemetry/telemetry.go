// Package telemetry follows a change from the caller to the kernel: OpenTelemetry
// spans for whoever collects them, and a bounded ring of hop records in each
// process for whoever does not.
//
// In: names of hops, W3C traceparents (from gRPC, from envelopes in the store,
// from push messages), the OTEL_* environment. Out: spans by OTLP when
// OTEL_EXPORTER_OTLP_ENDPOINT is set, and hops to podwire.trace.v1.TraceService.
//
// Invariants: every Start makes a span context, sampled or not, and every End
// leaves one hop in the ring, sampled or not. Attributes become OpenTelemetry
// attributes only after the sampler said yes. Wall clocks order hops inside one
// process only; nothing here subtracts the clocks of two machines. The package
// keeps no global state: the process's Telemetry travels in the context
// (Telemetry.Context), so that several services in one test process keep their
// hops apart. It must not decide anything for the code it observes.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// RingSize is the number of hops that a process remembers.
const RingSize = 10_000

const scope = "podwire.dev/internal/telemetry"

// Process names the process that hops and spans come from.
type Process struct {
	// Service is the service's name: cluster, ipam, ..., nodeagent.
	Service string
	// Instance tells replicas apart: the node's name in an agent, the advertised
	// address in a service. It may be empty.
	Instance string
	// Version is the build's version.
	Version string
	// Log gets one line when exporting spans starts to fail and one when it works
	// again. Nil is silent.
	Log *slog.Logger
}

// Telemetry is the tracing of one process. It is safe for concurrent use.
type Telemetry struct {
	process  Process
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	ring     *Ring
}

// Setup builds the tracing of a process. Spans are exported over OTLP gRPC when
// OTEL_EXPORTER_OTLP_ENDPOINT (or its _TRACES_ form) is set; sampler, limits and
// resource attributes follow the OTEL_* variables of the OpenTelemetry
// specification. The hop ring works either way.
func Setup(ctx context.Context, p Process) (*Telemetry, error) {
	var opts []sdktrace.TracerProviderOption
	if exporting() {
		exporter, err := otlptracegrpc.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("telemetry: OTLP exporter: %w", err)
		}
		opts = append(opts, sdktrace.WithBatcher(&reportingExporter{SpanExporter: exporter, log: p.Log}))
	}
	return New(ctx, p, opts...)
}

// New is Setup with span processors of the caller's choice instead of the OTLP
// exporter: for tests that look at the spans themselves.
func New(ctx context.Context, p Process, opts ...sdktrace.TracerProviderOption) (*Telemetry, error) {
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			attribute.String("service.namespace", "podwire"),
			attribute.String("service.name", p.Service),
			attribute.String("service.instance.id", p.Instance),
			attribute.String("service.version", p.Version),
		),
		resource.WithFromEnv(), // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
	)
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("telemetry: resource: %w", err)
	}
	opts = append([]sdktrace.TracerProviderOption{sdktrace.WithResource(res)}, opts...)
	provider := sdktrace.NewTracerProvider(opts...)
	return &Telemetry{
		process:  p,
		provider: provider,
		tracer:   provider.Tracer(scope),
		ring:     NewRing(RingSize),
	}, nil
}

// exporting says whether the environment names a collector for traces.
func exporting() bool {
	if os.Getenv("OTEL_SDK_DISABLED") == "true" || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// Provider is the tracer provider, for instrumentation such as otelgrpc's.
func (t *Telemetry) Provider() trace.TracerProvider { return t.provider }

// Propagator carries trace context across processes: W3C Trace Context only.
func (t *Telemetry) Propagator() propagation.TextMapPropagator { return propagation.TraceContext{} }

// Ring is the ring of hops.
func (t *Telemetry) Ring() *Ring { return t.ring }

// Process is what Setup was given.
func (t *Telemetry) Process() Process { return t.process }

// Shutdown sends what is buffered and stops the exporter; bounded by ctx.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("telemetry: flush: %w", err)
	}
	return nil
}

type contextKey struct{}

// Context is ctx with t in it: Start and its siblings then record in t.
func (t *Telemetry) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, contextKey{}, t)
}

// FromContext is the Telemetry that ctx carries, nil if none.
func FromContext(ctx context.Context) *Telemetry {
	t, _ := ctx.Value(contextKey{}).(*Telemetry)
	return t
}
