// Package app wires the ingress service: its configuration, and what runs when. In: a configuration file. Out: a serving
// process. It must not decide where a request goes.
package app

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/member"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/service"
	"podwire.dev/internal/store"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/internal/admission"
	"podwire.dev/services/ingress/internal/api"
	"podwire.dev/services/ingress/internal/planner"
	"podwire.dev/services/ingress/internal/proxy"
)

// Name is the service's name.
const Name = "ingress"

// Kinds are the kinds that the service reads or writes.
func Kinds() store.Kinds {
	return store.Kinds{
		planner.KindNamespace:      func() store.Object { return &objectv1.Namespace{} },
		planner.KindService:        func() store.Object { return &objectv1.Service{} },
		planner.KindSlice:          func() store.Object { return &objectv1.EndpointSlice{} },
		admission.KindIngress:      func() store.Object { return &objectv1.Ingress{} },
		admission.KindIngressClass: func() store.Object { return &objectv1.IngressClass{} },
		store.SecretKind:           func() store.Object { return &objectv1.Secret{} },
		feed.KindNode:              func() store.Object { return &objectv1.Node{} },
	}
}

// Member is the replica's place in the fabric; *member.Member is one.
type Member interface {
	// Await gives the addresses to serve on, once they are there.
	Await(ctx context.Context) ([]netip.Addr, error)
	// Ready says that the sockets answer.
	Ready()
}

// Ports are where requests are taken; 0 is a free port, for tests.
type Ports struct{ HTTP, HTTPS uint16 }

// public are the ports of the protocols.
func public() Ports { return Ports{HTTP: 80, HTTPS: 443} }

// Main runs the service; args are those after the program's name.
func Main(args []string) int {
	return daemon.Main(args, daemon.Program[Config]{Service: Name, Run: run, Enrol: rpc.Enrol, Healthcheck: rpc.Healthcheck})
}

func run(_ context.Context, d *daemon.Daemon, cfg Config) error {
	keys, err := pki.LoadKeys(cfg.SecretsKey)
	if err != nil {
		return err
	}
	r, err := service.Open(d, cfg.Common, Kinds(), store.WithKeys(keys))
	if err != nil {
		return err
	}
	ports := public()
	m, err := member.Join(d, cfg.Common, cfg.Member, r.Creds, member.Service{Name: Name, Ports: []member.Port{
		{Name: "http", Port: ports.HTTP, Protocol: nodestate.TCP}, {Name: "https", Port: ports.HTTPS, Protocol: nodestate.TCP},
	}})
	if err != nil {
		return err
	}
	_, err = Serve(r, m, cfg, ports)
	return err
}

// steps are what has to be done before anybody finds the service SERVING: the first plan, and the IngressClass.
const steps = 2

// Serve makes a replica that is open, on a store with keys, take requests on the member's addresses, and starts it.
func Serve(r *service.Replica, m Member, cfg Config, ports Ports) (*Running, error) {
	trusted, violations := cfg.trusted()
	if err := errs.InvalidFields("configuration", append(violations, cfg.Limits.Check()...)); err != nil {
		return nil, err
	}
	front, err := proxy.New(proxy.Options{Limits: cfg.Limits, Trusted: trusted, Log: r.Log()})
	if err != nil {
		return nil, err
	}
	s := &sockets{d: r.Daemon, member: m, front: front, ports: ports, running: &Running{ready: make(chan struct{})}, planned: make(chan struct{})}
	plan := planner.New(s.publish, r.Log())
	gate := service.NewGate(r.Daemon, steps)
	running := feed.Start(gate, feed.Parts{Store: r.Store, Replica: r.Self, Planner: plan})
	classes := api.NewClasses(r.Store)
	keep := upkeep{store: r.Store, classes: classes, class: cfg.IngressClass, leader: running.Leader, asker: running, planner: plan, log: r.Log()}
	r.Go("first ingress class", func(ctx context.Context) error { return gate.Step(ctx, keep.found(ctx)) })
	r.Go("reseal", keep.reseal)
	r.Go("clear", keep.clear)
	r.OnStop(daemon.StageServer, "requests", front.Stop)
	r.Go("sockets", s.run)
	ingressv1.RegisterIngressServiceServer(r.Server, api.NewIngresses(r.Store))
	ingressv1.RegisterIngressClassServiceServer(r.Server, classes)
	ingressv1.RegisterSecretServiceServer(r.Server, api.NewSecrets(r.Store))
	ingressv1.RegisterRouteServiceServer(r.Server, api.NewRoutes(running, plan))
	r.Start()
	return s.running, nil
}

// Running is the service at work.
type Running struct {
	ready chan struct{}
	http  []netip.AddrPort
	https []netip.AddrPort
}

// Addresses waits until the sockets are bound and says where HTTP and HTTPS are spoken.
func (r *Running) Addresses(ctx context.Context) (http, https []netip.AddrPort, err error) {
	select {
	case <-r.ready:
		return r.http, r.https, nil
	case <-ctx.Done():
		return nil, nil, errs.WrapAs(errs.Unavailable, ctx.Err(), "ingress: the sockets are not bound yet")
	}
}

// sockets binds what the service answers on.
type sockets struct {
	d       *daemon.Daemon
	member  Member
	front   *proxy.Front
	ports   Ports
	running *Running
	planned chan struct{}
	once    sync.Once
}

// publish is the planner's.
func (s *sockets) publish(snap proxy.Snapshot) {
	s.front.Publish(snap)
	s.once.Do(func() { close(s.planned) })
}

// run binds the member's addresses when they are there and the first World is planned: a replica that knows no route yet
// answers nobody.
func (s *sockets) run(ctx context.Context) error {
	addrs, err := s.member.Await(ctx)
	if err != nil {
		return err
	}
	select {
	case <-s.planned:
	case <-ctx.Done():
		return nil
	}
	for _, a := range addrs {
		plain, err := s.listen(ctx, a, s.ports.HTTP)
		if err != nil {
			return err
		}
		secure, err := s.listen(ctx, a, s.ports.HTTPS)
		if err != nil {
			plain.Close()
			return err
		}
		s.running.http = append(s.running.http, plain.Addr().(*net.TCPAddr).AddrPort())
		s.running.https = append(s.running.https, secure.Addr().(*net.TCPAddr).AddrPort())
		s.d.Go("http on "+plain.Addr().String(), func(context.Context) error { return s.front.Serve(plain) })
		s.d.Go("https on "+secure.Addr().String(), func(context.Context) error { return s.front.ServeTLS(secure) })
	}
	close(s.running.ready)
	s.member.Ready()
	s.d.Log().Info("taking requests", "http", s.running.http, "https", s.running.https)
	return nil
}

func (s *sockets) listen(ctx context.Context, a netip.Addr, port uint16) (net.Listener, error) {
	address := net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	return l, errs.WrapAs(errs.Unavailable, err, "ingress: listen on %s", address)
}
