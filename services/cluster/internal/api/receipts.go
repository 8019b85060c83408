package api

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	"podwire.dev/services/cluster/internal/receipts"
)

// Marks yields the watermarks of all services now and after every change; *store.Store is one.
type Marks interface {
	WatchWatermarks(ctx context.Context) iter.Seq2[[]store.Watermark, error]
}

// Receipts serves podwire.cluster.v1.ReceiptService.
type Receipts struct {
	clusterv1.UnimplementedReceiptServiceServer
	marks    Marks
	required []string
}

// NewReceipts waits for watermarks. required are the services that all_required means.
func NewReceipts(marks Marks, required []string) *Receipts {
	return &Receipts{marks: marks, required: required}
}

// Wait implements ReceiptService. A refusal is in the progress that is sent last, and ends the stream with Conflict: no
// waiting helps.
func (r *Receipts) Wait(req *clusterv1.WaitRequest, stream grpc.ServerStreamingServer[clusterv1.WaitResponse]) error {
	services, err := r.services(req)
	if err != nil {
		return err
	}
	revision := store.Revision(req.GetRevision())
	var sent *clusterv1.WaitResponse
	for list, err := range r.marks.WatchWatermarks(stream.Context()) {
		if err != nil {
			return err
		}
		p := receipts.ProgressOf(list, services, revision)
		resp := progressOf(p)
		if sent == nil || !proto.Equal(sent, resp) {
			if err := stream.Send(resp); err != nil {
				return err
			}
			sent = resp
		}
		if p.Done {
			return nil
		}
		if f := p.Refusal; f != nil {
			return errs.New(errs.Conflict, "node %s refused revision %d of %s: %s", f.Node, f.Refused, f.Service, f.Reason)
		}
	}
	return stream.Context().Err()
}

// services are those to wait for, by name and without repetition.
func (r *Receipts) services(req *clusterv1.WaitRequest) ([]string, error) {
	var bad []errs.Violation
	if req.GetRevision() < 0 {
		bad = append(bad, errs.Violation{Field: "revision", Value: fmt.Sprint(req.GetRevision()), Rule: "must not be negative"})
	}
	for i, s := range req.GetServices() {
		if !receipts.HasWatermark(s) {
			bad = append(bad, errs.Violation{Field: fmt.Sprintf("services[%d]", i), Value: s, Rule: "must be a service with a watermark: " + receipts.Services})
		}
	}
	if len(req.GetServices()) == 0 && !req.GetAllRequired() {
		bad = append(bad, errs.Violation{Field: "services", Rule: "is required unless all_required is set"})
	}
	services := slices.Clone(req.GetServices())
	if req.GetAllRequired() {
		services = append(services, r.required...)
	}
	slices.Sort(services)
	return slices.Compact(services), errs.InvalidFields("wait", bad)
}

func progressOf(p receipts.Progress) *clusterv1.WaitResponse {
	resp := &clusterv1.WaitResponse{Done: p.Done}
	for _, w := range p.Services {
		s := &clusterv1.ServiceProgress{Service: w.Service, Watermark: int64(w.Revision)}
		for _, lag := range w.Laggards {
			refused := lag.Reason
			if lag.Refused != 0 && refused == "" {
				refused = "the node gave no reason"
			}
			s.Laggards = append(s.Laggards, &clusterv1.Laggard{Node: lag.Node, Held: int64(lag.Revision), Refused: refused})
		}
		resp.Services = append(resp.Services, s)
	}
	return resp
}
