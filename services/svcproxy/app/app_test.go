package app

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"podwire.dev/internal/apptest"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	"podwire.dev/services/svcproxy/internal/planner"
	"podwire.dev/services/svcproxy/internal/proxytest"
)

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "svcproxy.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return daemon.Load[Config](path)
}

func TestConfig(t *testing.T) {
	const least = "listen: :7443\nidentity: /pki/svcproxy\npeers: {ipam: dns:///ipam:7443}\n"
	cfg, err := load(t, least)
	if err != nil || !slices.Equal(cfg.ClusterDNS, []string{"10.96.0.10", "fd00:10:96::a"}) || cfg.ClusterDomain != "cluster.local" {
		t.Errorf("configuration is %+v: %v", cfg, err)
	}
	if cfg, err = load(t, least+"clusterDNS: [10.100.0.10]\n"); err != nil || len(cfg.ClusterDNS) != 1 {
		t.Errorf("configuration is %+v: %v", cfg, err)
	}
	for text, want := range map[string]string{
		"listen: :7443\nidentity: /pki/svcproxy\n":       "peers.ipam: is required",
		least + "clusterDNS: []\n":                       "clusterDNS: is required",
		least + "clusterDNS: [dns]\n":                    `clusterDNS[0]: "dns": must be an IPv4 or IPv6 address`,
		least + "clusterDNS: [10.96.0.10, 10.96.0.11]\n": `clusterDNS[1]: "10.96.0.11": must be the only IPv4 address`,
		least + "clusterDomain: \"\"\n":                  "clusterDomain: must not be empty",
		least + "clusterDns: [10.96.0.10]\n":             `"clusterDns": is not a known key here`,
	} {
		if _, err := load(t, text); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestServe: an apply becomes slices and rows, and what every cluster has is written.
func TestServe(t *testing.T) {
	s := apptest.New(t, Name, Kinds())
	s.Serve(func(r *service.Replica) error {
		cfg := Config{}
		cfg.SetDefaults()
		return Serve(r, proxytest.NewIPAM(r.Store), cfg)
	})
	ctx, conn := s.Ctx, s.Dial(pki.User("alice"))
	for _, name := range []string{"default", "kube-system"} {
		s.Put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name}})
	}
	s.Put(planner.KindPod, &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "a", Uid: "a", Labels: map[string]string{"app": "web"}},
		Status:   &objectv1.PodStatus{PodIp: "10.244.0.1", Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}}},
	})
	services := svcproxyv1.NewServiceServiceClient(conn)
	made, err := services.Apply(ctx, &svcproxyv1.ServiceServiceApplyRequest{Object: &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Name: "web"},
		Spec:     &objectv1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []*objectv1.ServicePort{{Port: 80}}},
	}}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	watch, err := svcproxyv1.NewEndpointSliceServiceClient(conn).Watch(ctx, &svcproxyv1.EndpointSliceServiceWatchRequest{Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		ev, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e := ev.GetObject().GetEndpoints(); len(e) == 1 && e[0].GetAddresses()[0] == "10.244.0.1" {
			break
		}
	}
	rec, _, err := s.Fake.Get(ctx, firstSlice(ctx, t, conn))
	if err != nil || rec.Cause.Revision != store.Revision(made.GetRevision()) {
		t.Errorf("the slice's cause is %+v, not %d: %v", rec.Cause, made.GetRevision(), err)
	}
	given, err := services.Watch(ctx, &svcproxyv1.ServiceServiceWatchRequest{Namespace: "kube-system"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		ev, err := given.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.GetObject().GetSpec().GetClusterIp() == "10.96.0.10" {
			break
		}
	}
	lookup, err := svcproxyv1.NewLookupServiceClient(conn).Lookup(ctx, &svcproxyv1.LookupRequest{Destination: "web", Namespace: "default"})
	if err != nil || lookup.GetClusterIp() != made.GetObject().GetSpec().GetClusterIp() {
		t.Errorf("%v %v", lookup, err)
	}
}

func firstSlice(ctx context.Context, t *testing.T, conn *grpc.ClientConn) store.Key {
	t.Helper()
	list, err := svcproxyv1.NewEndpointSliceServiceClient(conn).List(ctx, &svcproxyv1.EndpointSliceServiceListRequest{Namespace: "default"})
	if err != nil || len(list.GetItems()) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	meta := list.GetItems()[0].GetMetadata()
	return store.Key{Kind: planner.KindSlice, Namespace: meta.GetNamespace(), Name: meta.GetName()}
}
