package telemetry

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"

	"podwire.dev/internal/errs"
	tracev1 "podwire.dev/proto/podwire/trace/v1"
)

// Service answers podwire.trace.v1.TraceService from the ring of a process.
type Service struct {
	tracev1.UnimplementedTraceServiceServer
	tele *Telemetry
}

// NewService makes the service of a process.
func NewService(t *Telemetry) *Service { return &Service{tele: t} }

// GetHops gives the kept hops of one trace, in the order in which they ended, and the
// time from which on every hop is kept. Errors: Invalid for a malformed trace id. A trace
// that was never here, or is here no longer, has no hops: that is an answer, not an error.
func (s *Service) GetHops(_ context.Context, req *tracev1.GetHopsRequest) (*tracev1.GetHopsResponse, error) {
	id, err := ParseTraceID(req.GetTraceId())
	if err != nil {
		return nil, err
	}
	hops, kept := s.tele.ring.FromTrace(id)
	resp := &tracev1.GetHopsResponse{Process: s.tele.process.label(), OldestKeptUnixNano: kept.From().UnixNano()}
	for _, h := range hops {
		resp.Hops = append(resp.Hops, h.message())
	}
	return resp, nil
}

// label is how a process is called in answers: an agent by its node, a service by name.
func (p Process) label() string {
	if p.Service == "nodeagent" && p.Instance != "" {
		return p.Instance
	}
	return p.Service
}

func (h Hop) message() *tracev1.Hop {
	m := &tracev1.Hop{
		TraceId: h.TraceID.String(), SpanId: h.SpanID.String(),
		Name: h.Name, Process: Process{Service: h.Service, Instance: h.Instance}.label(),
		Object: h.Object.String(), Revision: h.Revision,
		StartUnixNano: h.Start.UnixNano(), DurationNanos: h.Duration.Nanoseconds(), Error: h.Error,
	}
	if h.ParentSpanID.IsValid() {
		m.ParentSpanId = h.ParentSpanID.String()
	}
	return m
}

// ParseTraceID reads 32 hexadecimal digits that are not all zero; the error is Invalid.
func ParseTraceID(text string) (trace.TraceID, error) {
	var id trace.TraceID
	if len(text) == 2*len(id) {
		if b, err := hex.DecodeString(text); err == nil {
			id = trace.TraceID(b)
		}
	}
	if !id.IsValid() {
		return id, errs.InvalidFields("request", []errs.Violation{
			{Field: "trace_id", Value: text, Rule: "must be 32 hexadecimal digits, not all zero"}})
	}
	return id, nil
}
