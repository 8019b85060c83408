package stack

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/rpc/rpctest"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	"podwire.dev/internal/store/storefake"
	"podwire.dev/internal/telemetry"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	cluster "podwire.dev/services/cluster/app"
	ipam "podwire.dev/services/ipam/app"
	policy "podwire.dev/services/policy/app"
	svcproxy "podwire.dev/services/svcproxy/app"
)

// TestMain runs several tests at once, whatever the number of cores: they wait for heartbeats and pauses, not for a core.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "4"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// patience bounds a test that hangs.
const patience = time.Minute

// control is the control plane of one test.
type control struct {
	t         *testing.T
	ctx       context.Context
	dir       string
	authority *pki.Authority
	fake      *storefake.Fake
	log       *slog.Logger
	// targets are the services' TCP addresses, which a restart keeps.
	targets map[string]string
	stops   map[string]func()
	user    map[string]*grpc.ClientConn
}

// names of the services, in the order in which they are started.
var names = []string{cluster.Name, ipam.Name, svcproxy.Name, policy.Name}

// newControl starts the services and stops them with the test.
func newControl(t *testing.T) *control {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	kinds := store.Kinds{}
	for _, k := range []store.Kinds{cluster.Kinds(), ipam.Kinds(), svcproxy.Kinds(), policy.Kinds()} {
		maps.Copy(kinds, k)
	}
	c := &control{
		t: t, ctx: ctx, fake: storefake.New(kinds), log: slog.New(slog.DiscardHandler),
		targets: map[string]string{}, stops: map[string]func(){}, user: map[string]*grpc.ClientConn{},
	}
	c.dir, c.authority = rpctest.Authority(t, pki.Plan{})
	admin := c.identity(pki.User("root"))
	own := ownAddress(t)
	for i, name := range names {
		c.targets[name] = netip.AddrPortFrom(own, uint16(7441+i)).String()
	}
	for _, name := range names {
		c.start(name)
		conn, err := rpc.Dial(c.targets[name], pki.Service(name), admin)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		c.user[name] = conn
	}
	c.founded()
	return c
}

// founded waits until the Services that every cluster has are there, so that no test takes what they cause for its own.
func (c *control) founded() {
	c.t.Helper()
	missing := map[string]bool{"default/kubernetes": true, "kube-system/kube-dns": true, "kube-system/podwire-ingress": true}
	stream, err := svcproxyv1.NewServiceServiceClient(c.user[svcproxy.Name]).Watch(c.ctx,
		&svcproxyv1.ServiceServiceWatchRequest{AllNamespaces: true}, grpc.WaitForReady(true))
	if err != nil {
		c.t.Fatal(err)
	}
	for len(missing) > 0 {
		ev, err := stream.Recv()
		if err != nil {
			c.t.Fatalf("Services %v are not founded: %v", slices.Sorted(maps.Keys(missing)), err)
		}
		delete(missing, ev.GetObject().GetMetadata().GetNamespace()+"/"+ev.GetObject().GetMetadata().GetName())
	}
}

// ownAddress is an address of loopback that is this test's until it ends: a port of 127.0.0.1 that nobody else can have, held open,
// tells it from all others. A port that was free a moment ago may be any connection's by the time that somebody listens.
func ownAddress(t *testing.T) netip.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	return netip.AddrFrom4([4]byte{127, 77, byte(port >> 8), byte(port)})
}

func (c *control) identity(id pki.Identity) *rpc.Credentials {
	c.t.Helper()
	return rpctest.Credentials(c.t, c.authority, id)
}

// start runs a service until the test ends or its stop is called.
func (c *control) start(name string) {
	c.t.Helper()
	creds := c.identity(pki.Service(name))
	c.stops[name] = c.run(name, c.targets[name], creds, func(d *daemon.Daemon, server *rpc.Server) error {
		return c.serve(d, name, server, creds)
	})
}

// run runs a process until the test ends or stop is called.
func (c *control) run(name, listen string, creds *rpc.Credentials, serve func(*daemon.Daemon, *rpc.Server) error) (stop func()) {
	c.t.Helper()
	tele, err := telemetry.Setup(c.ctx, telemetry.Process{Service: name, Log: c.log})
	if err != nil {
		c.t.Fatal(err)
	}
	d := daemon.New(daemon.Options{Name: name, Log: c.log, Telemetry: tele})
	ended := make(chan error, 1)
	go func() { // ends with the daemon, which stop waits for
		ended <- d.Run(context.WithoutCancel(c.ctx), func(context.Context) error {
			server, err := rpc.NewServer(rpc.ServerOptions{Listen: listen, Creds: creds, Fail: d.Fail, Telemetry: tele, Log: c.log})
			if err != nil {
				return err
			}
			return serve(d, server)
		})
	}()
	stop = sync.OnceFunc(func() {
		d.Stop()
		if err := <-ended; err != nil {
			c.t.Errorf("%s ended with: %v", name, err)
		}
	})
	c.t.Cleanup(stop)
	return stop
}

func (c *control) serve(d *daemon.Daemon, name string, server *rpc.Server, creds *rpc.Credentials) error {
	open := func(kinds store.Kinds) *service.Replica {
		return &service.Replica{Daemon: d, Creds: creds, Store: c.fake.Another(kinds), Server: server, Self: feed.ReplicaOf(name, c.targets[name])}
	}
	switch name {
	case cluster.Name:
		cfg := cluster.Config{CADir: c.dir}
		cfg.SetDefaults()
		cluster.Serve(open(cluster.Kinds()), cfg, c.authority)
		return nil
	case ipam.Name:
		cfg := ipam.Config{LoadBalancers: []string{"192.0.2.100-192.0.2.199"}}
		cfg.SetDefaults()
		return ipam.Serve(open(ipam.Kinds()), cfg)
	case svcproxy.Name:
		conn, err := rpc.Dial(c.targets[ipam.Name], pki.Service(ipam.Name), creds)
		if err != nil {
			return err
		}
		d.OnStop(daemon.StageStore, "ipam", func(context.Context) error { return conn.Close() })
		cfg := svcproxy.Config{}
		cfg.SetDefaults()
		return svcproxy.Serve(open(svcproxy.Kinds()), ipamv1.NewAllocationServiceClient(conn), cfg)
	case policy.Name:
		policy.Serve(open(policy.Kinds()))
		return nil
	}
	return fmt.Errorf("there is no service %s", name)
}
