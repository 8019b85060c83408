package api

import (
	"context"

	"google.golang.org/grpc"

	"podwire.dev/internal/store"
	"podwire.dev/internal/verbs"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/internal/planner"
)

// Blocks serves podwire.ipam.v1.AddressBlockService.
type Blocks struct {
	ipamv1.UnimplementedAddressBlockServiceServer
	verbs *verbs.Handler[*objectv1.AddressBlock]
}

// NewBlocks serves the AddressBlocks of a store.
func NewBlocks(st *store.Store) *Blocks {
	return &Blocks{verbs: verbs.New(st, verbs.Rules[*objectv1.AddressBlock]{
		Kind: planner.KindBlock, APIVersion: "ipam.podwire.dev/v1", Noun: "AddressBlock", Scope: verbs.ClusterScoped,
	})}
}

// Get implements AddressBlockService.
func (s *Blocks) Get(ctx context.Context, req *ipamv1.AddressBlockServiceGetRequest) (*ipamv1.AddressBlockServiceGetResponse, error) {
	found, err := s.verbs.Find(ctx, "", req.GetName())
	if err != nil {
		return nil, err
	}
	return &ipamv1.AddressBlockServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements AddressBlockService.
func (s *Blocks) List(ctx context.Context, req *ipamv1.AddressBlockServiceListRequest) (*ipamv1.AddressBlockServiceListResponse, error) {
	page, err := s.verbs.List(ctx, verbs.ListRequest{
		LabelSelector: req.GetLabelSelector(), Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &ipamv1.AddressBlockServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements AddressBlockService.
func (s *Blocks) Watch(req *ipamv1.AddressBlockServiceWatchRequest, stream grpc.ServerStreamingServer[ipamv1.AddressBlockServiceWatchResponse]) error {
	events := s.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Name: req.GetName(), LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[*objectv1.AddressBlock]) error {
		return stream.Send(&ipamv1.AddressBlockServiceWatchResponse{Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type})
	})
}
