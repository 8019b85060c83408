package control

import (
	"context"
	"net/netip"

	"podwire.dev/internal/errs"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Leaser asks ipam for blocks; it is addresses.Lessor.
type Leaser struct {
	Allocations ipamv1.AllocationServiceClient
	Node        string
	// Registered is closed when the Node is in the store, before which ipam refuses; nil: it is.
	Registered <-chan struct{}
}

// LeaseBlock leases one more block of a family, 4 or 6. The same request gives the same block. Errors: Exhausted,
// Unavailable.
func (l *Leaser) LeaseBlock(ctx context.Context, family int, request string) (netip.Prefix, error) {
	if l.Registered != nil {
		select {
		case <-l.Registered:
		case <-ctx.Done():
			return netip.Prefix{}, errs.WrapAs(errs.Unavailable, ctx.Err(), "control: lease a block: the node is not registered yet")
		}
	}
	f := ipamv1.Family_FAMILY_IPV4
	if family == 6 {
		f = ipamv1.Family_FAMILY_IPV6
	}
	resp, err := l.Allocations.LeaseBlock(ctx, &ipamv1.LeaseBlockRequest{Node: l.Node, Family: f, RequestId: request})
	if err != nil {
		return netip.Prefix{}, errs.Wrap(err, "control: lease a block")
	}
	cidr := resp.GetObject().GetSpec().GetCidr()
	p, err := netip.ParsePrefix(cidr)
	return p, errs.WrapAs(errs.Internal, err, "control: leased block %q", cidr)
}

// Reporter writes what becomes of pods; it is pods.Reporter.
type Reporter struct {
	Pods clusterv1.PodServiceClient
}

// UpdateStatus replaces a Pod's status. NotFound says that the Pod of this UID is gone.
func (r *Reporter) UpdateStatus(ctx context.Context, namespace, name, uid string, status *objectv1.PodStatus) (int64, error) {
	resp, err := r.Pods.UpdateStatus(ctx, &clusterv1.PodServiceUpdateStatusRequest{Object: &objectv1.Pod{
		ApiVersion: "v1", Kind: "Pod",
		Metadata: &objectv1.ObjectMeta{Namespace: namespace, Name: name, Uid: uid}, Status: status,
	}})
	return resp.GetRevision(), errs.Wrap(r.gone(ctx, namespace, name, uid, err), "control: status of pod %s/%s", namespace, name)
}

// Delete removes a Pod whose containers have ended, and returns the revision of its removal. NotFound says that the Pod
// of this UID is gone already.
func (r *Reporter) Delete(ctx context.Context, namespace, name, uid string) (int64, error) {
	now := int32(0)
	resp, err := r.Pods.Delete(ctx, &clusterv1.PodServiceDeleteRequest{
		Namespace: namespace, Name: name, Uid: uid, GracePeriodSeconds: &now,
	})
	return resp.GetRevision(), errs.Wrap(r.gone(ctx, namespace, name, uid, err), "control: delete pod %s/%s", namespace, name)
}

// gone turns a Conflict into NotFound where another Pod has the name by now: the condition that failed was the UID.
func (r *Reporter) gone(ctx context.Context, namespace, name, uid string, err error) error {
	if !errs.Is(err, errs.Conflict) {
		return err
	}
	held, gerr := r.Pods.Get(ctx, &clusterv1.PodServiceGetRequest{Namespace: namespace, Name: name})
	if other := held.GetObject().GetMetadata().GetUid(); gerr == nil && other != uid {
		return errs.New(errs.NotFound, "the Pod is gone: another, with uid %s, has its name", other)
	}
	return err
}
