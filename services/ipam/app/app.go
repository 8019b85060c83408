// Package app wires the ipam service: its configuration, and what runs when. In: a configuration file. Out: a serving
// process. It must not choose any address.
package app

import (
	"context"
	"fmt"
	"net/netip"

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
	"podwire.dev/services/ipam/internal/api"
	"podwire.dev/services/ipam/internal/planner"
	"podwire.dev/services/ipam/internal/pool"
)

// Name is the service's name.
const Name = "ipam"

// Config is the configuration file.
type Config struct {
	daemon.Common `yaml:",inline"`
	// Pods and Services are CIDRs, of one or both families.
	Pods     []string `yaml:"pods"`
	Services []string `yaml:"services"`
	// LoadBalancers are CIDRs or first-last; none: Services of type LoadBalancer stay pending.
	LoadBalancers []string `yaml:"loadBalancers"`
	// NodePorts is first-last.
	NodePorts string `yaml:"nodePorts"`
	// BlockSizes are the prefix lengths of the blocks that nodes lease.
	BlockSizes struct {
		IPv4 int `yaml:"ipv4"`
		IPv6 int `yaml:"ipv6"`
	} `yaml:"blockSizes"`
}

// SetDefaults fills in the ranges of architecture's defaults.
func (c *Config) SetDefaults() {
	c.Pods = []string{"10.244.0.0/16", "fd00:10:244::/48"}
	c.Services = []string{"10.96.0.0/16", "fd00:10:96::/112"}
	c.NodePorts = "30000-32767"
	c.BlockSizes.IPv4, c.BlockSizes.IPv6 = 26, 122
}

// Check returns what is wrong with the ranges.
func (c *Config) Check() []errs.Violation {
	_, violations := c.ranges()
	return violations
}

func (c *Config) ranges() (pool.Ranges, []errs.Violation) {
	r := pool.Ranges{BlockBits: map[int]int{4: c.BlockSizes.IPv4, 6: c.BlockSizes.IPv6}}
	var out []errs.Violation
	bad := func(field, value string, rule any) {
		out = append(out, errs.Violation{Field: field, Value: value, Rule: fmt.Sprint(rule)})
	}
	prefixes := func(field string, texts []string) (list []netip.Prefix) {
		for i, text := range texts {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				bad(fmt.Sprintf("%s[%d]", field, i), text, "must be a CIDR such as 10.244.0.0/16 or fd00:10:244::/48")
				continue
			}
			list = append(list, p)
		}
		return list
	}
	r.Pods, r.Services = prefixes("pods", c.Pods), prefixes("services", c.Services)
	for i, text := range c.LoadBalancers {
		lb, err := pool.ParseAddrRange(text)
		if err != nil {
			bad(fmt.Sprintf("loadBalancers[%d]", i), text, err)
			continue
		}
		r.LoadBalancers = append(r.LoadBalancers, lb)
	}
	ports, err := pool.ParsePortRange(c.NodePorts)
	if err != nil {
		bad("nodePorts", c.NodePorts, err)
	}
	r.NodePorts = ports
	if len(out) > 0 {
		return r, out
	}
	return r, r.Check()
}

// Kinds are the kinds that the service reads or writes.
func Kinds() store.Kinds {
	return store.Kinds{
		planner.KindBlock:   func() store.Object { return &objectv1.AddressBlock{} },
		planner.KindClaim:   func() store.Object { return &objectv1.AddressClaim{} },
		planner.KindService: func() store.Object { return &objectv1.Service{} },
		planner.KindPod:     func() store.Object { return &objectv1.Pod{} },
		feed.KindNode:       func() store.Object { return &objectv1.Node{} },
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
	return Serve(r, cfg)
}

// Serve makes a replica that is open give addresses out, and starts it.
func Serve(r *service.Replica, cfg Config) error {
	ranges, violations := cfg.ranges()
	if err := errs.InvalidFields("configuration", violations); err != nil {
		return err
	}
	hub := push.NewHub(nodestate.SourceIPAM, push.Options{
		Authorize: rpc.RequireNode, AuthorizeMember: rpc.RequireMember, Log: r.Log(),
	})
	plan := planner.New(ranges)
	running := feed.Start(r, feed.Parts{Store: r.Store, Replica: r.Self, Planner: plan, Hub: hub})
	collector := &planner.Collector{Store: r.Store, Planner: plan, Asker: running, Leader: running.Leader, Log: r.Log()}
	r.Go("collector", collector.Run)
	ipamv1.RegisterAllocationServiceServer(r.Server, api.NewAllocations(r.Store, running, plan))
	ipamv1.RegisterAddressBlockServiceServer(r.Server, api.NewBlocks(r.Store))
	ipamv1.RegisterAddressClaimServiceServer(r.Server, api.NewClaims(r.Store))
	pushv1.RegisterPushServiceServer(r.Server, hub)
	r.Start()
	return nil
}
