package upkeep_test

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	"podwire.dev/services/svcproxy/internal/lb"
	"podwire.dev/services/svcproxy/internal/planner"
	"podwire.dev/services/svcproxy/internal/proxytest"
	"podwire.dev/services/svcproxy/internal/upkeep"
)

type leader struct{ lead *store.Leadership }

func (l leader) Leadership() *store.Leadership { return l.lead }

func keeper(b *proxytest.Bench) *upkeep.Upkeep {
	return &upkeep.Upkeep{
		Planner: b.Planner, Asker: b, Leader: leader{&store.Leadership{}}, Services: b.Services, Allocator: b.Alloc,
		DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}, Log: slog.New(slog.DiscardHandler),
	}
}

func TestGive(t *testing.T) {
	b := proxytest.New(t)
	u := keeper(b)
	b.Settle()
	follower := keeper(b)
	follower.Leader = leader{}
	if err := follower.Give(t.Context()); err != nil || len(b.Claims()) > 0 {
		t.Fatalf("a replica that does not lead gave %v: %v", b.Claims(), err)
	}
	for range 2 {
		if err := u.Give(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.Settle()
	}
	want := []string{
		"kube-dns service 10.96.0.10", "kube-dns service fd00:10:96::a", "kubernetes service 10.96.0.1",
		"podwire-ingress node-port 31001", "podwire-ingress node-port 31002",
		"podwire-ingress service 10.96.1.1", "podwire-ingress service fd00:10:96::101",
	}
	if got := b.Claims(); !slices.Equal(got, want) {
		t.Errorf("claims %q", got)
	}
	dns, err := b.Services.Get(t.Context(), &svcproxyv1.ServiceServiceGetRequest{Namespace: "kube-system", Name: "kube-dns"})
	if err != nil || dns.GetObject().GetSpec().GetIpFamilyPolicy() != "PreferDualStack" || len(dns.GetObject().GetSpec().GetPorts()) != 2 {
		t.Errorf("%v %v", dns, err)
	}
	in, err := b.Services.Get(t.Context(), &svcproxyv1.ServiceServiceGetRequest{Namespace: "kube-system", Name: "podwire-ingress"})
	if spec := in.GetObject().GetSpec(); err != nil || spec.GetType() != "LoadBalancer" || spec.GetSelector()["app.kubernetes.io/name"] != "podwire-ingress" ||
		len(spec.GetPorts()) != 2 || spec.GetPorts()[0].GetPort() != 80 || spec.GetPorts()[1].GetPort() != 443 {
		t.Errorf("%v %v", in, err)
	}
	api := b.Get("kubernetes")
	if p := api.GetSpec().GetPorts(); len(api.GetSpec().GetSelector()) > 0 || len(p) != 1 || p[0].GetName() != "https" || p[0].GetPort() != 443 {
		t.Errorf("%v", api)
	}
	// Kubernetes writes it anew when it is deleted, and so do we.
	b.Remove(store.Key{Kind: planner.KindService, Namespace: "kube-system", Name: "kube-dns"})
	b.Settle()
	if err := u.Give(t.Context()); err == nil {
		t.Error("its address is still held by its predecessor")
	}
	for _, name := range []string{"service-10-96-0-10-0", "service-fd00-10-96--a-0"} {
		b.Remove(store.Key{Kind: planner.KindClaim, Name: name})
	}
	if err := u.Give(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestGiveWithoutNamespace(t *testing.T) {
	b := proxytest.New(t)
	b.Remove(store.Key{Kind: planner.KindNamespace, Name: "kube-system"})
	b.Settle()
	if err := keeper(b).Give(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.Claims(); !slices.Equal(got, []string{"kubernetes service 10.96.0.1"}) {
		t.Errorf("claims %q", got)
	}
}

func TestSweepPending(t *testing.T) {
	b := proxytest.New(t)
	u := keeper(b)
	b.Node("node-1", "True", "172.30.0.2")
	b.Apply("web", `{type: LoadBalancer, ports: [{port: 80}]}`)
	now := time.Unix(1000, 0)
	if err := u.Sweep(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if in := b.Get("web").GetStatus().GetLoadBalancer().GetIngress(); len(in) > 0 {
		t.Fatalf("ingress %v of an empty pool", in)
	}
	b.IPAM.Balancers = true
	if err := u.Sweep(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if in := b.Get("web").GetStatus().GetLoadBalancer().GetIngress(); len(in) != 1 {
		t.Errorf("ingress %v", in)
	}
}

// TestSweepDiscord: a claim that its Service does not use is given back, and a value that nobody holds is claimed, both
// after the grace time and not before.
func TestSweepDiscord(t *testing.T) {
	b := proxytest.New(t)
	u := keeper(b)
	o := b.Apply("web", `{type: NodePort, ports: [{port: 80}]}`)
	b.Store(&objectv1.AddressClaim{
		Metadata: &objectv1.ObjectMeta{Name: "node-port-30500-0"},
		Spec: &objectv1.AddressClaimSpec{Pool: string(lb.PoolNodePort), Value: "30500", Owner: &objectv1.AddressOwner{
			Kind: "services", Namespace: "default", Name: "web", Uid: o.GetMetadata().GetUid(),
		}},
	}, planner.KindClaim)
	b.Remove(store.Key{Kind: planner.KindClaim, Name: "service-10-96-1-1-0"})
	b.Settle()
	apart := []string{"web node-port 30500", "web node-port 31001"}
	accord := []string{"web node-port 31001", "web service 10.96.1.1"}
	start := time.Unix(1000, 0)
	for _, step := range []struct {
		at   time.Time
		want []string
	}{{start, apart}, {start.Add(upkeep.Grace - 1), apart}, {start.Add(upkeep.Grace), accord}} {
		if err := u.Sweep(t.Context(), step.at); err != nil {
			t.Fatal(err)
		}
		b.Settle()
		if got := b.Claims(); !slices.Equal(got, step.want) {
			t.Errorf("after %s: %q", step.at.Sub(start), got)
		}
	}
}

// TestSweepDown: what cannot be settled is tried again.
func TestSweepDown(t *testing.T) {
	b := proxytest.New(t)
	u := keeper(b)
	b.Apply("web", `{type: NodePort, ports: [{port: 80}]}`)
	b.IPAM.Down = true
	b.Apply("web", `{type: ClusterIP, ports: [{port: 80}]}`)
	start := time.Unix(1000, 0)
	if err := u.Sweep(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	if err := u.Sweep(t.Context(), start.Add(upkeep.Grace)); err == nil {
		t.Error("ipam is away")
	}
	b.IPAM.Down = false
	if err := u.Sweep(t.Context(), start.Add(upkeep.Grace+1)); err != nil {
		t.Fatal(err)
	}
	if got := b.Claims(); !slices.Equal(got, []string{"web service 10.96.1.1"}) {
		t.Errorf("claims %q", got)
	}
}
