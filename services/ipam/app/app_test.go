package app_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push/pushtest"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/app"
)

// patience bounds what has to happen, so that what never does fails.
const patience = 30 * time.Second

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

// stack is the service on a store in memory, behind mutual TLS on loopback.
type stack struct {
	t     *testing.T
	ctx   context.Context
	fake  *storefake.Fake
	ca    *pki.Authority
	addr  string
	ended chan error
	fails bool // the service is to end with an error
}

func newStack(t *testing.T, found func(*storefake.Fake)) *stack {
	t.Helper()
	dir := t.TempDir()
	if _, err := pki.Init(dir, pki.Plan{Services: []string{app.Name}, Nodes: []string{"node-1"}}); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s := &stack{t: t, ctx: ctx, fake: storefake.New(app.Kinds()), ca: ca, ended: make(chan error, 1)}
	found(s.fake)
	d := daemon.New(daemon.Options{Name: app.Name, Log: slog.New(slog.DiscardHandler)})
	server, err := rpc.NewServer(rpc.OptionsFor(d, daemon.Common{Listen: "127.0.0.1:0"}, s.creds(pki.Service(app.Name))))
	if err != nil {
		t.Fatal(err)
	}
	s.addr = server.Addr().String()
	var cfg app.Config
	cfg.SetDefaults()
	wired := make(chan error, 1)
	go func() {
		s.ended <- d.Run(ctx, func(context.Context) error {
			wired <- app.Serve(d, s.fake.Store, server, store.Replica{Service: app.Name, Name: "one", Address: s.addr}, cfg)
			return nil
		})
	}()
	if err := <-wired; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Stop()
		if err := <-s.ended; (err != nil) != s.fails {
			t.Errorf("the service ended with: %v", err)
		}
		cancel()
	})
	return s
}

func (s *stack) creds(id pki.Identity) *rpc.Credentials {
	s.t.Helper()
	dir := s.t.TempDir()
	dns, _ := pki.ServerNames(id)
	csr, key, err := pki.NewRequest()
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := s.ca.Sign(csr, id, dns, nil, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := pki.WriteIdentity(dir, s.ca.CAPEM(), cert, key); err != nil {
		s.t.Fatal(err)
	}
	creds, err := rpc.LoadCredentials(dir, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return creds
}

func (s *stack) dial(id pki.Identity) *grpc.ClientConn {
	s.t.Helper()
	conn, err := rpc.Dial("passthrough:///"+s.addr, pki.Service(app.Name), s.creds(id))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func create(t *testing.T, fake *storefake.Fake, kind string, o store.Object) {
	t.Helper()
	if _, err := fake.Txn().Create(o, kind).Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestLeaseReachesTheNodes leases by gRPC and finds the member at the agents, and the claims where they are listed.
func TestLeaseReachesTheNodes(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(fake *storefake.Fake) {
		for _, name := range []string{"node-1", "node-2"} {
			create(t, fake, "nodes", &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: name}, Status: &objectv1.NodeStatus{
				Addresses:  []*objectv1.NodeAddress{{Type: "InternalIP", Address: "172.30.0.1" + name[5:]}},
				Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "True"}},
			}})
		}
	})
	var agents []*pushtest.Agent
	for _, name := range []string{"node-1", "node-2"} {
		a := &pushtest.Agent{Source: nodestate.SourceIPAM, Node: name, Conn: s.dial(pki.Node(name))}
		a.Start(t)
		agents = append(agents, a)
	}
	lease, err := ipamv1.NewAllocationServiceClient(s.dial(pki.Node("node-1"))).LeaseBlock(s.ctx,
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
	user := s.dial(pki.User("admin"))
	request := &ipamv1.AllocateRequest{
		Owner: &ipamv1.Owner{Kind: "services", Namespace: "default", Name: "web", Uid: "uid"},
		Wants: []*ipamv1.Want{{Pool: ipamv1.Pool_POOL_SERVICE, Value: "10.96.0.10"}},
	}
	if _, err := ipamv1.NewAllocationServiceClient(user).Allocate(s.ctx, request); err != nil {
		t.Errorf("a user: %v", err)
	}
	if _, err := ipamv1.NewAllocationServiceClient(s.dial(pki.Node("node-1"))).Allocate(s.ctx, request); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node: %v", err)
	}
	blocks, err := ipamv1.NewAddressBlockServiceClient(user).List(s.ctx, &ipamv1.AddressBlockServiceListRequest{})
	if err != nil || len(blocks.GetItems()) != 1 || blocks.GetItems()[0].GetSpec().GetNode() != "node-1" {
		t.Errorf("blocks: %v, %v", blocks, err)
	}
	claims := ipamv1.NewAddressClaimServiceClient(user)
	got, err := claims.Get(s.ctx, &ipamv1.AddressClaimServiceGetRequest{Name: "service-10-96-0-10"})
	if err != nil || got.GetObject().GetSpec().GetOwner().GetUid() != "uid" {
		t.Errorf("claim: %v, %v", got, err)
	}
	watch, err := claims.Watch(s.ctx, &ipamv1.AddressClaimServiceWatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := watch.Recv(); err != nil || ev.GetObject().GetSpec().GetValue() != "10.96.0.10" {
		t.Errorf("watch: %v, %v", ev, err)
	}
	for list, err := range s.fake.WatchWatermarks(s.ctx) {
		if err != nil {
			t.Fatalf("no receipt: %v", err)
		}
		if len(list) == 1 && int64(list[0].Revision) >= lease.GetRevision() {
			break
		}
	}
}

// TestChangedRanges starts with ranges that leave a lease out: the process ends and says which.
func TestChangedRanges(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(fake *storefake.Fake) {
		create(t, fake, "addressblocks.ipam.podwire.dev", &objectv1.AddressBlock{
			Metadata: &objectv1.ObjectMeta{Name: "block-10-1-0-0-26"}, Spec: &objectv1.AddressBlockSpec{Cidr: "10.1.0.0/26", Node: "node-1"},
		})
	})
	s.fails = true
	err := <-s.ended
	s.ended <- err
	if err == nil || !strings.Contains(err.Error(), "block 10.1.0.0/26 of node node-1") {
		t.Errorf("ended with %v", err)
	}
}
