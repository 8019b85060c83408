package app_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podwire.dev/internal/apptest"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push/pushtest"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/app"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what   string
		change func(c *app.Config)
		want   []string // fields
	}{
		{"the defaults", func(*app.Config) {}, nil},
		{"a pool", func(c *app.Config) { c.LoadBalancers = []string{"192.0.2.0/28", "198.51.100.7-198.51.100.9"} }, nil},
		{"text", func(c *app.Config) {
			c.Pods, c.Services, c.LoadBalancers, c.NodePorts = []string{"10.0.0.0/8", "x"}, []string{"y"}, []string{"z"}, "w"
		}, []string{"pods[1]", "services[0]", "loadBalancers[0]", "nodePorts"}},
		{"overlap", func(c *app.Config) { c.LoadBalancers = []string{"10.244.7.0/24"} }, []string{"loadBalancers[0]"}},
		{"no block size", func(c *app.Config) { c.BlockSizes.IPv4 = 0 }, []string{"pods[0]"}},
		{"nothing", func(c *app.Config) { c.Pods, c.Services = nil, nil }, []string{"pods", "services"}},
	} {
		var c app.Config
		c.SetDefaults()
		tt.change(&c)
		var got []string
		for _, v := range c.Check() {
			got = append(got, v.Field)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, got, tt.want)
		}
	}
}

func serve(s *apptest.Stack) {
	s.T.Helper()
	s.Serve(func(r *service.Replica) error {
		var cfg app.Config
		cfg.SetDefaults()
		return app.Serve(r, cfg)
	})
}

// TestLeaseReachesTheNodes leases by gRPC and finds the member at the agents, and the claims where they are listed.
func TestLeaseReachesTheNodes(t *testing.T) {
	t.Parallel()
	s := apptest.New(t, app.Name, app.Kinds())
	for _, name := range []string{"node-1", "node-2"} {
		s.Put("nodes", &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: name}, Status: &objectv1.NodeStatus{
			Addresses:  []*objectv1.NodeAddress{{Type: "InternalIP", Address: "172.30.0.1" + name[5:]}},
			Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "True"}},
		}})
	}
	serve(s)
	var agents []*pushtest.Agent
	for _, name := range []string{"node-1", "node-2"} {
		a := &pushtest.Agent{Source: nodestate.SourceIPAM, Node: name, Conn: s.Dial(pki.Node(name))}
		a.Start(t)
		agents = append(agents, a)
	}
	lease, err := ipamv1.NewAllocationServiceClient(s.Dial(pki.Node("node-1"))).LeaseBlock(s.Ctx,
		&ipamv1.LeaseBlockRequest{Node: "node-1", Family: ipamv1.Family_FAMILY_IPV4, RequestId: "1"}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range agents {
		a.Await(t, func(kernel *nodestate.Slice, held nodestate.Version) bool {
			row, ok := kernel.Get(nodestate.Ref{Table: nodestate.TableMembers, Key: "node-1"})
			return ok && held.Revision >= lease.GetRevision() && len(row.(nodestate.Member).Blocks) == 1 && len(kernel.Rows(nodestate.TableRanges)) == 4
		})
	}
	user := s.Dial(pki.User("admin"))
	request := &ipamv1.AllocateRequest{
		Owner: &ipamv1.Owner{Kind: "services", Namespace: "default", Name: "web", Uid: "uid"},
		Wants: []*ipamv1.Want{{Pool: ipamv1.Pool_POOL_SERVICE, Value: "10.96.0.10"}},
	}
	if _, err := ipamv1.NewAllocationServiceClient(user).Allocate(s.Ctx, request); err != nil {
		t.Errorf("a user: %v", err)
	}
	if _, err := ipamv1.NewAllocationServiceClient(s.Dial(pki.Node("node-1"))).Allocate(s.Ctx, request); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node: %v", err)
	}
	blocks, err := ipamv1.NewAddressBlockServiceClient(user).List(s.Ctx, &ipamv1.AddressBlockServiceListRequest{})
	if err != nil || len(blocks.GetItems()) != 1 || blocks.GetItems()[0].GetSpec().GetNode() != "node-1" {
		t.Errorf("blocks: %v, %v", blocks, err)
	}
	claims := ipamv1.NewAddressClaimServiceClient(user)
	got, err := claims.Get(s.Ctx, &ipamv1.AddressClaimServiceGetRequest{Name: "service-10-96-0-10"})
	if err != nil || got.GetObject().GetSpec().GetOwner().GetUid() != "uid" {
		t.Errorf("claim: %v, %v", got, err)
	}
	watch, err := claims.Watch(s.Ctx, &ipamv1.AddressClaimServiceWatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := watch.Recv(); err != nil || ev.GetObject().GetSpec().GetValue() != "10.96.0.10" {
		t.Errorf("watch: %v, %v", ev, err)
	}
	s.Passed(store.Revision(lease.GetRevision()))
}

// TestChangedRanges starts with ranges that leave a lease out: the process ends and says which.
func TestChangedRanges(t *testing.T) {
	t.Parallel()
	s := apptest.New(t, app.Name, app.Kinds())
	s.Put("addressblocks.ipam.podwire.dev", &objectv1.AddressBlock{
		Metadata: &objectv1.ObjectMeta{Name: "block-10-1-0-0-26"}, Spec: &objectv1.AddressBlockSpec{Cidr: "10.1.0.0/26", Node: "node-1"},
	})
	serve(s)
	err := s.Failure()
	if err == nil || !strings.Contains(err.Error(), "block 10.1.0.0/26 of node node-1") {
		t.Errorf("ended with %v", err)
	}
}
