// Package app wires the svcproxy service: its configuration, and what runs when. In: a configuration file. Out: a serving
// process. It must not decide anything about Services.
package app

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	pushv1 "podwire.dev/proto/podwire/push/v1"
	svcproxyv1 "podwire.dev/proto/podwire/svcproxy/v1"
	"podwire.dev/services/svcproxy/internal/api"
	"podwire.dev/services/svcproxy/internal/lb"
	"podwire.dev/services/svcproxy/internal/planner"
	"podwire.dev/services/svcproxy/internal/upkeep"
)

// Name is the service's name.
const Name = "svcproxy"

// Config is the configuration file. peers.ipam is required.
type Config struct {
	daemon.Common `yaml:",inline"`
	// ClusterDNS are the addresses of Service kube-system/kube-dns, one of each family that ipam has a Service range of;
	// the first is of the primary family, which a Service gets that asks for none.
	ClusterDNS []string `yaml:"clusterDNS"`
	// ClusterDomain is the domain below which Services have their names. The agents and dns are given the same.
	ClusterDomain string `yaml:"clusterDomain"`
}

// SetDefaults fills in architecture's defaults.
func (c *Config) SetDefaults() {
	c.ClusterDNS = []string{"10.96.0.10", "fd00:10:96::a"}
	c.ClusterDomain = "cluster.local"
}

// Check returns what is wrong with the service's own part.
func (c *Config) Check() []errs.Violation {
	_, violations := c.dns()
	if c.Peers["ipam"] == "" {
		violations = append(violations, errs.Violation{Field: "peers.ipam", Rule: "is required: the gRPC target of ipam, such as dns:///ipam:7443"})
	}
	if c.ClusterDomain == "" {
		violations = append(violations, errs.Violation{Field: "clusterDomain", Rule: "must not be empty; the default is cluster.local"})
	}
	return violations
}

func (c *Config) dns() ([]netip.Addr, []errs.Violation) {
	var out []netip.Addr
	var bad []errs.Violation
	seen := map[lb.Family]bool{}
	for i, text := range c.ClusterDNS {
		field := fmt.Sprintf("clusterDNS[%d]", i)
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || a.Zone() != "" || a.Is4In6():
			bad = append(bad, errs.Violation{Field: field, Value: text, Rule: "must be an IPv4 or IPv6 address"})
		case seen[lb.FamilyOf(a)]:
			bad = append(bad, errs.Violation{Field: field, Value: text, Rule: "must be the only " + string(lb.FamilyOf(a)) + " address"})
		default:
			seen[lb.FamilyOf(a)] = true
			out = append(out, a)
		}
	}
	if len(c.ClusterDNS) == 0 {
		bad = append(bad, errs.Violation{Field: "clusterDNS", Rule: "is required, such as [10.96.0.10, fd00:10:96::a]"})
	}
	return out, bad
}

// Kinds are the kinds that the service reads or writes.
func Kinds() store.Kinds {
	return store.Kinds{
		planner.KindNamespace: func() store.Object { return &objectv1.Namespace{} },
		planner.KindService:   func() store.Object { return &objectv1.Service{} },
		planner.KindSlice:     func() store.Object { return &objectv1.EndpointSlice{} },
		planner.KindPod:       func() store.Object { return &objectv1.Pod{} },
		planner.KindClaim:     func() store.Object { return &objectv1.AddressClaim{} },
		feed.KindNode:         func() store.Object { return &objectv1.Node{} },
	}
}

// Main runs the service; args are those after the program's name.
func Main(args []string) int {
	return daemon.Main(args, daemon.Program[Config]{Service: Name, Run: run, Enrol: rpc.Enrol, Healthcheck: rpc.Healthcheck})
}

func run(_ context.Context, d *daemon.Daemon, cfg Config) error {
	r, err := service.Open(d, cfg.Common, Kinds())
	if err != nil {
		return err
	}
	ipam, err := rpc.DialPeer(d, &cfg.Common, r.Creds, "ipam")
	if err != nil {
		return err
	}
	return Serve(r, ipamv1.NewAllocationServiceClient(ipam), cfg)
}

// Serve makes a replica that is open serve Services, whose values ipam gives, and starts it.
func Serve(r *service.Replica, ipam api.IPAM, cfg Config) error {
	dns, violations := cfg.dns()
	if err := errs.InvalidFields("configuration", violations); err != nil {
		return err
	}
	var families lb.Families
	for _, a := range dns {
		families = append(families, lb.FamilyOf(a))
	}
	hub := push.NewHub(nodestate.SourceSvcproxy, push.Options{Authorize: rpc.RequireNode, Log: r.Log()})
	plan := planner.New(time.Now)
	running := feed.Start(r, feed.Parts{Store: r.Store, Replica: r.Self, Planner: plan, Hub: hub})
	alloc := api.NewAllocator(ipam)
	services := api.NewServices(r.Store, alloc, families, r.Log())
	keep := &upkeep.Upkeep{
		Planner: plan, Asker: running, Leader: running.Leader, Services: services, Allocator: alloc, DNS: dns, Log: r.Log(),
	}
	r.Go("upkeep", keep.Run)
	svcproxyv1.RegisterServiceServiceServer(r.Server, services)
	svcproxyv1.RegisterEndpointSliceServiceServer(r.Server, api.NewSlices(r.Store))
	svcproxyv1.RegisterLookupServiceServer(r.Server, api.NewLookups(running, plan))
	pushv1.RegisterPushServiceServer(r.Server, hub)
	r.Start()
	return nil
}
