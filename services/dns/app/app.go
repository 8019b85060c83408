// Package app wires the dns service: its configuration, and what runs when. In: a configuration file. Out: a serving
// process. It must not decide what a name means.
package app

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/member"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	dnsv1 "podwire.dev/proto/podwire/dns/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/dns/internal/api"
	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/planner"
	"podwire.dev/services/dns/internal/resolver"
	"podwire.dev/services/dns/internal/server"
)

// Name is the service's name.
const Name = "dns"

// Kinds are the kinds that the service reads.
func Kinds() store.Kinds {
	return store.Kinds{
		planner.KindNamespace: func() store.Object { return &objectv1.Namespace{} },
		planner.KindService:   func() store.Object { return &objectv1.Service{} },
		planner.KindSlice:     func() store.Object { return &objectv1.EndpointSlice{} },
		planner.KindPod:       func() store.Object { return &objectv1.Pod{} },
		feed.KindNode:         func() store.Object { return &objectv1.Node{} },
	}
}

// Member is the replica's place in the fabric; *member.Member is one.
type Member interface {
	// Await gives the addresses to serve on, once they are there.
	Await(ctx context.Context) ([]netip.Addr, error)
	// Ready says that the sockets answer, NotReady that they do not, and why.
	Ready()
	NotReady(reason string)
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
	m, err := member.Join(d, cfg.Common, cfg.Member, r.Creds, member.Service{Name: Name, Ports: []member.Port{
		{Name: "dns", Port: dnsPort, Protocol: nodestate.UDP}, {Name: "dns-tcp", Port: dnsPort, Protocol: nodestate.TCP},
	}})
	if err != nil {
		return err
	}
	_, err = Serve(r, m, cfg, dnsPort)
	return err
}

// Running is the service at work.
type Running struct {
	mu    sync.Mutex
	bound []netip.AddrPort
	ready chan struct{}
}

// Addresses waits until the sockets are bound and says where; port 0 was given a free one.
func (r *Running) Addresses(ctx context.Context) ([]netip.AddrPort, error) {
	select {
	case <-r.ready:
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.bound, nil
	case <-ctx.Done():
		return nil, errs.WrapAs(errs.Unavailable, ctx.Err(), "dns: the sockets are not bound yet")
	}
}

// Serve makes a replica that is open answer questions on a port of the member's addresses, and starts it.
func Serve(r *service.Replica, m Member, cfg Config, port uint16) (*Running, error) {
	set, violations := cfg.settings()
	if err := errs.InvalidFields("configuration", violations); err != nil {
		return nil, err
	}
	s := &sockets{d: r.Daemon, member: m, port: port, running: &Running{ready: make(chan struct{})}, planned: make(chan struct{})}
	fwd := forward.New(forward.Options{
		Stubs: set.stubs, Cache: forward.CacheOptions(cfg.Cache), Avoid: s.own, Log: r.Log(),
	})
	s.resolver = resolver.New(fwd)
	plan := planner.New(set.domain, rand.Uint64(), s.publish)
	plan.SetRanges(set.ranges)
	running := feed.Start(r, feed.Parts{Store: r.Store, Replica: r.Self, Planner: plan})
	switch path := cfg.Forward.ResolvConf; path {
	case "":
		fwd.SetUpstreams(set.upstreams)
	default:
		follow := &resolvFile{path: path, forwarder: fwd, log: r.Log()}
		if err := follow.read(); err != nil {
			return nil, err
		}
		r.Go("resolv.conf", follow.run)
	}
	r.Go("sockets", s.run)
	r.OnStop(daemon.StageServer, "questions", s.linger)
	dnsv1.RegisterResolveServiceServer(r.Server, api.NewResolve(running, plan, s.resolver, set.domain))
	r.Start()
	return s.running, nil
}

// sockets binds what the service answers on.
type sockets struct {
	d        *daemon.Daemon
	member   Member
	resolver *resolver.Resolver
	port     uint16
	running  *Running
	planned  chan struct{}
	once     sync.Once
}

// run binds the member's addresses when they are there, and says so when the first World is, too: a replica that is not an
// endpoint yet gets no questions that it cannot answer.
func (s *sockets) run(ctx context.Context) error {
	addrs, err := s.member.Await(ctx)
	if err != nil {
		return err
	}
	var bound []netip.AddrPort
	for _, a := range addrs {
		srv, err := server.Listen(ctx, netip.AddrPortFrom(a, s.port), s.resolver, server.Limits{}, s.d.Log())
		if err != nil {
			return err
		}
		s.d.Go("dns on "+srv.Addr().String(), srv.Serve)
		bound = append(bound, srv.Addr())
	}
	s.running.mu.Lock()
	s.running.bound = bound
	s.running.mu.Unlock()
	close(s.running.ready)
	select {
	case <-s.planned:
		s.member.Ready()
		s.d.Log().Info("answering", "addresses", bound)
	case <-ctx.Done():
	}
	return nil
}

// lingering is how long a replica that is told to stop goes on answering: by then no node sends it questions any more, as
// its Pod is not Ready since the stage before, and nodes follow that within a fraction of it.
const lingering = time.Second

// linger keeps the sockets open where clients may know them.
func (s *sockets) linger(ctx context.Context) error {
	select {
	case <-s.running.ready:
	default:
		return nil
	}
	timer := time.NewTimer(lingering)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}
