package api_test

import (
	"fmt"
	"net/netip"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/internal/planner"
)

func TestMemberLeases(t *testing.T) {
	t.Parallel()
	fake := storefake.New(kinds())
	r := start(t, fake.Store, "one")
	dns := as(t, pki.Service("dns"))
	ask := func(member, request string) *ipamv1.LeaseBlockRequest {
		return &ipamv1.LeaseBlockRequest{Member: member, Family: ipamv1.Family_FAMILY_IPV4, RequestId: request}
	}
	resp, err := r.LeaseBlock(dns, ask("dns-1", "member/dns-1/IPv4"))
	if err != nil {
		t.Fatal(err)
	}
	first := resp.GetObject()
	if s := first.GetSpec(); s.GetCidr() != "10.244.0.193/32" || s.GetMember() != "dns-1" || s.GetNode() != "" {
		t.Errorf("leased %v", s)
	}
	if again, err := r.LeaseBlock(dns, ask("dns-1", "member/dns-1/IPv4")); err != nil || again.GetObject().GetMetadata().GetUid() != first.GetMetadata().GetUid() {
		t.Errorf("repeated: %v, %v", again, err)
	}
	for what, tt := range map[string]struct {
		id   pki.Identity
		req  *ipamv1.LeaseBlockRequest
		kind errs.Kind
	}{
		"another service's member":    {pki.Service("ingress"), ask("dns-2", "1"), errs.Denied},
		"a name that is the service":  {pki.Service("dns"), ask("dns-", "1"), errs.Denied},
		"no DNS label":                {pki.Service("dns"), ask("dns-1.x", "1"), errs.Denied},
		"a node":                      {pki.Node("dns-1"), ask("dns-1", "1"), errs.Denied},
		"a service for a node":        {pki.Service("dns"), &ipamv1.LeaseBlockRequest{Node: "dns-1", Family: ipamv1.Family_FAMILY_IPV4, RequestId: "1"}, errs.Denied},
		"neither a node nor a member": {pki.Service("dns"), ask("", "1"), errs.Invalid},
		"both":                        {pki.Service("dns"), &ipamv1.LeaseBlockRequest{Node: "n", Member: "dns-1", Family: ipamv1.Family_FAMILY_IPV4, RequestId: "1"}, errs.Invalid},
	} {
		if _, err := r.LeaseBlock(as(t, tt.id), tt.req); !errs.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %s", what, err, tt.kind)
		}
	}
	pod := &objectv1.Pod{Metadata: &objectv1.ObjectMeta{
		Namespace: planner.MemberNamespace, Name: "dns-1", Uid: "1", Annotations: map[string]string{planner.AnnotationMember: "dns"},
	}}
	if _, err := fake.Txn().Create(pod, planner.KindPod).Commit(dns); err != nil {
		t.Fatal(err)
	}
	r.sees(t, now(t, fake))
	release := func(member string) error {
		_, err := r.ReleaseBlock(dns, &ipamv1.ReleaseBlockRequest{Member: member, Name: first.GetMetadata().GetName()})
		return err
	}
	if err := release("dns-2"); !errs.Is(err, errs.Denied) {
		t.Errorf("another's: %v", err)
	}
	if err := release("dns-1"); !errs.Is(err, errs.Denied) {
		t.Errorf("of a member that attends: %v", err)
	}
	rec, _, err := fake.Get(dns, store.KeyOf(planner.KindPod, pod))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fake.Txn().Delete(rec).Commit(dns); err != nil {
		t.Fatal(err)
	}
	r.sees(t, now(t, fake))
	if err := release("dns-1"); !errs.Is(err, errs.Denied) {
		t.Errorf("in quarantine: %v", err)
	}
	if err := fake.SetRequired(dns, []string{}); err != nil {
		t.Fatal(err)
	}
	if err := release("dns-1"); err != nil {
		t.Errorf("after the quarantine: %v", err)
	}
}

// TestLeasesAreBounded: whoever steals an identity cannot take all addresses with it.
func TestLeasesAreBounded(t *testing.T) {
	t.Parallel()
	fake := storefake.New(kinds())
	ranges := usual()
	ranges.Pods = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/112")}
	r := startWith(t, fake.Store, "one", ranges)
	dns := as(t, pki.Service("dns"))
	ask := func(member, request string) (*objectv1.AddressBlock, error) {
		resp, err := r.LeaseBlock(dns, &ipamv1.LeaseBlockRequest{Member: member, Family: ipamv1.Family_FAMILY_IPV6, RequestId: request})
		r.sees(t, store.Revision(resp.GetRevision()))
		return resp.GetObject(), err
	}
	first, err := ask("dns-0", "1")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ask("dns-0", "2"); err != nil || again.GetMetadata().GetName() != first.GetMetadata().GetName() {
		t.Errorf("another request of the same member: %v, %v", again, err)
	}
	count := 1
	for ; count < 1000 && err == nil; count++ {
		_, err = ask(fmt.Sprintf("dns-%d", count), "1")
	}
	if !errs.Is(err, errs.Exhausted) || count-1 != 128 {
		t.Errorf("%d members: %v", count-1, err)
	}
	if _, err := r.LeaseBlock(as(t, pki.Service("ingress")), &ipamv1.LeaseBlockRequest{
		Member: "ingress-1", Family: ipamv1.Family_FAMILY_IPV6, RequestId: "1",
	}); err != nil {
		t.Errorf("another service: %v", err)
	}
	err = nil
	for count = 0; count < 1000 && err == nil; count++ {
		var resp *ipamv1.LeaseBlockResponse
		resp, err = r.LeaseBlock(as(t, pki.Node("dns")), &ipamv1.LeaseBlockRequest{
			Node: "dns", Family: ipamv1.Family_FAMILY_IPV6, RequestId: fmt.Sprint(count),
		})
		r.sees(t, store.Revision(resp.GetRevision()))
	}
	if !errs.Is(err, errs.Exhausted) || count-1 != 64 {
		t.Errorf("%d blocks of a node: %v", count-1, err)
	}
}
