package rpc

import (
	"context"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"podwire.dev/internal/telemetry"
)

// tracedCalls wraps otelgrpc: it puts the process's Telemetry into the handler's context,
// and leaves a hop in the ring for each call that changes something. Without that, the
// hops of the two sides would name parents, the spans of otelgrpc, that no ring keeps.
type tracedCalls struct {
	stats.Handler
	tele   *telemetry.Telemetry
	access Access
	verb   string
	// parent is the span of the caller: in our own context on the client's side, in the
	// metadata on the server's.
	parent func(context.Context) trace.SpanID
}

func serverStats(t *telemetry.Telemetry, access Access) stats.Handler {
	if t == nil {
		return nil
	}
	return &tracedCalls{otelgrpc.NewServerHandler(traceOptions(t, access)...), t, access, "serve ", remoteParent}
}

func clientStats(t *telemetry.Telemetry, access Access) stats.Handler {
	if t == nil {
		return nil
	}
	return &tracedCalls{otelgrpc.NewClientHandler(traceOptions(t, access)...), t, access, "call ", localParent}
}

func traceOptions(t *telemetry.Telemetry, access Access) []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(t.Provider()),
		otelgrpc.WithPropagators(t.Propagator()),
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool {
			effect := access[info.FullMethodName].Effect
			return effect == Read || effect == Write
		}),
	}
}

func localParent(ctx context.Context) trace.SpanID {
	return trace.SpanContextFromContext(ctx).SpanID()
}

func remoteParent(ctx context.Context) trace.SpanID {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get("traceparent"); len(values) == 1 {
		if sc, ok := telemetry.ParseTraceparent(values[0]); ok {
			return sc.SpanID()
		}
	}
	return trace.SpanID{}
}

type callKey struct{}

// call is one write under way.
type call struct {
	name   string
	parent trace.SpanID
}

// TagRPC starts the span, through otelgrpc, and notes what the hop will say.
func (h *tracedCalls) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	ctx = h.tele.Context(ctx)
	if h.access[info.FullMethodName].Effect != Write {
		// A handler may call on: its context must not end in the hop of another call.
		return context.WithValue(h.Handler.TagRPC(ctx, info), callKey{}, (*call)(nil))
	}
	c := &call{h.verb + strings.TrimPrefix(info.FullMethodName, "/"), h.parent(ctx)}
	return context.WithValue(h.Handler.TagRPC(ctx, info), callKey{}, c)
}

// HandleRPC ends the span and writes the hop.
func (h *tracedCalls) HandleRPC(ctx context.Context, rs stats.RPCStats) {
	h.Handler.HandleRPC(ctx, rs)
	end, ok := rs.(*stats.End)
	if !ok {
		return
	}
	if c, _ := ctx.Value(callKey{}).(*call); c != nil {
		h.tele.Record(ctx, c.name, c.parent, end.BeginTime, end.EndTime.Sub(end.BeginTime), end.Error)
	}
}
