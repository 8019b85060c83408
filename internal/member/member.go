package member

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/push"
	"podwire.dev/internal/rpc"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
)

// Service is what a member is a replica of.
type Service struct {
	// Name is "dns" or "ingress".
	Name string
	// Ports are what it serves on its addresses.
	Ports []Port
}

// Port is one port of a member.
type Port struct {
	// Name is unique within the member.
	Name     string
	Port     uint16
	Protocol nodestate.Protocol
}

// Host is the process that a member lives in; *daemon.Daemon is one.
type Host interface {
	Go(name string, fn func(context.Context) error)
	OnStop(stage daemon.Stage, name string, stop func(context.Context) error)
	Log() *slog.Logger
}

// Fabric is the door to the kernel; *fabric.Fabric is one, and *fabric.Fake for tests.
type Fabric interface {
	// Held is what an earlier process left.
	Held() (fabric.Held, error)
	// Apply makes the kernel agree with the rows.
	Apply(members []nodestate.Member, ranges []nodestate.Range) (fabric.Result, error)
	// Remove takes everything of the fabric away.
	Remove() error
}

// Parts are what a member is built from; Join makes them from a configuration.
type Parts struct {
	// Name of the member, that of its Pod.
	Name    string
	Service Service
	// Underlay are the member's own addresses, the tunnel's end first.
	Underlay []netip.Addr
	// Fabric is that of the member [nodestate.ServiceMember](Name); the loop is its only user from then on.
	Fabric      Fabric
	Allocations ipamv1.AllocationServiceClient
	// Members leads to any replica of cluster, Dial to the one that it names.
	Members clusterv1.MemberServiceClient
	Dial    func(target string) (replica clusterv1.MemberServiceClient, done io.Closer, err error)
	// Slices is the subscription to ipam; Source, Member and Log are filled in.
	Slices push.SubscriberConfig
	// Recheck is how often the kernel is compared with what it should hold; 0 is 30 s.
	Recheck time.Duration
}

// Member is a replica's place in the fabric. Its methods are safe for concurrent use.
type Member struct {
	parts      Parts
	log        *slog.Logger
	subscriber *push.Subscriber
	programmed chan struct{}
	// wanted wakes the leasing, leased the loop, news the attending; each holds one value.
	wanted, leased, news chan struct{}

	mu       sync.Mutex
	families []int // 4, 6: of the pod ranges
	// addresses are those in use: one of each family, IPv4 first; adopted or leased.
	addresses []netip.Addr
	// granted are those that ipam has confirmed to this process.
	granted []netip.Addr
	reason  string // why the service does not serve; empty: it does
	trouble string // why the fabric is not programmed
	podAt   int64
}

// Join opens the kernel, dials the services and starts a member in host's goroutines; it waits for nobody. Errors: Invalid
// for a configuration that cannot be, NotFound for an underlay address that this host has not, Exists where this network
// namespace has the fabric of another member.
func Join(d *daemon.Daemon, common daemon.Common, cfg Config, creds *rpc.Credentials, s Service) (*Member, error) {
	name, underlay, err := cfg.self(s.Name)
	if err != nil {
		return nil, err
	}
	p := Parts{Name: name, Service: s, Underlay: underlay}
	if err := p.dial(d, common, creds); err != nil {
		return nil, err
	}
	door, err := fabric.Open(fabric.Config{
		Self: nodestate.ServiceMember(name), Underlay: underlay[0], Port: cfg.VXLANPort,
	})
	if err != nil {
		return nil, err
	}
	d.OnStop(daemon.StageStore, "fabric", func(context.Context) error { door.Close(); return nil })
	if _, err := door.FindUnderlay(); err != nil {
		return nil, err
	}
	p.Fabric = guard(door, nodestate.ServiceMember(name), cfg.VXLANPort, s)
	return Start(d, p)
}

// dial makes the connections; it waits for none.
func (p *Parts) dial(d *daemon.Daemon, common daemon.Common, creds *rpc.Credentials) error {
	for _, peer := range []string{"ipam", "cluster"} {
		conn, err := rpc.DialPeer(d, &common, creds, peer)
		if err != nil {
			return err
		}
		if peer == "ipam" {
			p.Allocations, p.Slices.Conn = ipamv1.NewAllocationServiceClient(conn), conn
		} else {
			p.Members = clusterv1.NewMemberServiceClient(conn)
		}
	}
	p.Dial = func(target string) (clusterv1.MemberServiceClient, io.Closer, error) {
		conn, err := rpc.Dial(target, pki.Service("cluster"), creds, rpc.WithTelemetry(d.Telemetry()))
		if err != nil {
			return nil, nil, err
		}
		return clusterv1.NewMemberServiceClient(conn), conn, nil
	}
	return nil
}

// Start adopts what the kernel has and starts a member of these parts in host's goroutines. Errors are Join's of the kernel.
func Start(host Host, p Parts) (*Member, error) {
	p.Slices.Source, p.Slices.Member, p.Slices.Log = nodestate.SourceIPAM, p.Name, host.Log()
	m := &Member{
		parts: p, log: host.Log().With("member", p.Name), subscriber: push.NewSubscriber(p.Slices),
		programmed: make(chan struct{}), wanted: make(chan struct{}, 1), leased: make(chan struct{}, 1), news: make(chan struct{}, 1),
		reason: p.Service.Name + " is starting", trouble: "waits for ipam's first slice",
	}
	if err := m.adopt(); err != nil {
		return nil, err
	}
	host.OnStop(daemon.StagePush, "member", func(context.Context) error { m.NotReady("the process stops"); return nil })
	host.Go("members and ranges", m.subscriber.Run)
	host.Go("lease", m.lease)
	host.Go("fabric", m.program)
	host.Go("attendance", m.attend)
	return m, nil
}

// adopt takes over what an earlier process of this member left, so that a restart without ipam serves on.
func (m *Member) adopt() error {
	held, err := m.parts.Fabric.Held()
	if err != nil {
		return err
	}
	switch {
	case held.MAC == [6]byte{}:
		return nil
	case held.MAC != nodestate.TunnelMACOf(nodestate.ServiceMember(m.parts.Name)):
		return errs.New(errs.Exists, "member %s: this network namespace has the fabric of another member (MAC %x); "+
			"run each node, dns and ingress in a network namespace of its own, or remove the device %s if nobody uses it",
			m.parts.Name, held.MAC, fabric.DefaultLink)
	case len(held.Addresses) == 0:
		return nil
	}
	m.addresses, m.trouble = sorted(held.Addresses), ""
	close(m.programmed)
	return nil
}

// Name is the member's name, that of its Pod in kube-system.
func (m *Member) Name() string { return m.parts.Name }

// Programmed is closed once the leased addresses are on the device, with the routes that ipam's first slice asked for; at
// once where an earlier process left them there.
func (m *Member) Programmed() <-chan struct{} { return m.programmed }

// Addresses are the member's addresses, one of each family, IPv4 first; none before Programmed is closed. They stay the
// same for the life of the process.
func (m *Member) Addresses() []netip.Addr {
	select {
	case <-m.programmed:
	default:
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.addresses)
}

// Await waits until the member is programmed and returns its addresses, to be bound. Unavailable where ctx ends first, with
// what is missing.
func (m *Member) Await(ctx context.Context) ([]netip.Addr, error) {
	select {
	case <-m.programmed:
		return m.Addresses(), nil
	case <-ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		return nil, errs.WrapAs(errs.Unavailable, ctx.Err(), "member %s: %s", m.parts.Name, m.trouble)
	}
}

// Ready says that the service answers on its addresses: the Pod becomes Ready, and an endpoint.
func (m *Member) Ready() { m.NotReady("") }

// NotReady takes the Pod out of its endpoints; reason is for people, and must not be empty.
func (m *Member) NotReady(reason string) {
	m.mu.Lock()
	m.reason = reason
	m.mu.Unlock()
	nudge(m.news)
}

// Status is what a member can say of itself, for people and tests.
type Status struct {
	Name      string
	Addresses []netip.Addr
	Ready     bool
	// Reason says why not ready.
	Reason string
	// PodRevision is the etcd revision at which cluster last wrote the member's Pod as attended; 0 before.
	PodRevision int64
	// Slices is the subscription to ipam.
	Slices push.SubscriberStatus
}

// Status is the present status.
func (m *Member) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{Name: m.parts.Name, Addresses: slices.Clone(m.addresses), PodRevision: m.podAt, Slices: m.subscriber.Status()}
	s.Ready, s.Reason = m.readinessLocked()
	return s
}

// readinessLocked is what the member attends with.
func (m *Member) readinessLocked() (ready bool, reason string) {
	var why []string
	select {
	case <-m.programmed:
	default:
		why = append(why, m.trouble)
	}
	if m.reason != "" {
		why = append(why, m.reason)
	}
	return len(why) == 0, strings.Join(why, "; ")
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sorted has IPv4 first.
func sorted(list []netip.Addr) []netip.Addr {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}
