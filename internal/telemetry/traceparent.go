package telemetry

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
)

// traceparentLen is the length of a version 00 traceparent: 00-<32 hex>-<16 hex>-<2 hex>.
const traceparentLen = 55

// Traceparent is the W3C traceparent of the span in ctx, empty if there is none. It
// is as valid for a span that is not sampled: the flag says so.
func Traceparent(ctx context.Context) string {
	return formatTraceparent(trace.SpanContextFromContext(ctx))
}

func formatTraceparent(sc trace.SpanContext) string {
	if !sc.IsValid() {
		return ""
	}
	tid, sid := sc.TraceID(), sc.SpanID()
	b := make([]byte, 0, traceparentLen)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, tid[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, sid[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, []byte{byte(sc.TraceFlags() & trace.FlagsSampled)})
	return string(b)
}

// ParseTraceparent reads a traceparent as W3C Trace Context, section 3.2, asks:
// lower-case hexadecimal, ids that are not all zero, and of a later version only
// the fields that version 00 has.
func ParseTraceparent(s string) (trace.SpanContext, bool) {
	if len(s) < traceparentLen || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return trace.SpanContext{}, false
	}
	version, ok := decodeLower(s[:2])
	if !ok || version[0] == 0xff {
		return trace.SpanContext{}, false
	}
	if len(s) > traceparentLen && (version[0] == 0 || s[traceparentLen] != '-') {
		return trace.SpanContext{}, false
	}
	tid, ok1 := decodeLower(s[3:35])
	sid, ok2 := decodeLower(s[36:52])
	flags, ok3 := decodeLower(s[53:55])
	if !ok1 || !ok2 || !ok3 {
		return trace.SpanContext{}, false
	}
	sc := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID:    trace.TraceID(tid),
		SpanID:     trace.SpanID(sid),
		TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled,
		Remote:     true,
	})
	return sc, sc.IsValid()
}

func decodeLower(s string) ([]byte, bool) {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return nil, false
		}
	}
	b, err := hex.DecodeString(s)
	return b, err == nil
}

// withParent puts the traceparent's span in the place of ctx's own; a malformed one
// puts none there.
func withParent(ctx context.Context, traceparent string) context.Context {
	sc, _ := ParseTraceparent(traceparent)
	return trace.ContextWithSpanContext(ctx, sc)
}
