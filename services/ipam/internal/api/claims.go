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

// Claims serves podwire.ipam.v1.AddressClaimService.
type Claims struct {
	ipamv1.UnimplementedAddressClaimServiceServer
	verbs *verbs.Handler[*objectv1.AddressClaim]
}

// NewClaims serves the AddressClaims of a store.
func NewClaims(st *store.Store) *Claims {
	return &Claims{verbs: verbs.New(st, verbs.Rules[*objectv1.AddressClaim]{
		Kind: planner.KindClaim, APIVersion: "ipam.podwire.dev/v1", Noun: "AddressClaim", Scope: verbs.ClusterScoped,
	})}
}

// Get implements AddressClaimService.
func (s *Claims) Get(ctx context.Context, req *ipamv1.AddressClaimServiceGetRequest) (*ipamv1.AddressClaimServiceGetResponse, error) {
	found, err := s.verbs.Find(ctx, "", req.GetName())
	if err != nil {
		return nil, err
	}
	return &ipamv1.AddressClaimServiceGetResponse{
		Object: found.Object, Revision: int64(found.Revision), Traceparent: found.Traceparent,
	}, nil
}

// List implements AddressClaimService.
func (s *Claims) List(ctx context.Context, req *ipamv1.AddressClaimServiceListRequest) (*ipamv1.AddressClaimServiceListResponse, error) {
	page, err := s.verbs.List(ctx, verbs.ListRequest{
		LabelSelector: req.GetLabelSelector(), Limit: int(req.GetLimit()), Continue: req.GetContinueToken(),
	})
	if err != nil {
		return nil, err
	}
	return &ipamv1.AddressClaimServiceListResponse{
		Items: page.Items, Revision: int64(page.Revision), ContinueToken: page.Continue,
	}, nil
}

// Watch implements AddressClaimService.
func (s *Claims) Watch(req *ipamv1.AddressClaimServiceWatchRequest, stream grpc.ServerStreamingServer[ipamv1.AddressClaimServiceWatchResponse]) error {
	events := s.verbs.Watch(stream.Context(), verbs.WatchRequest{
		Name: req.GetName(), LabelSelector: req.GetLabelSelector(), From: store.Revision(req.GetFromRevision()),
	})
	return verbs.Pump(events, func(ev verbs.WatchEvent[*objectv1.AddressClaim]) error {
		return stream.Send(&ipamv1.AddressClaimServiceWatchResponse{Object: ev.Object, Revision: int64(ev.Revision), Type: ev.Type})
	})
}
