package member

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
	"podwire.dev/internal/testnet"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	ipamv1 "podwire.dev/proto/podwire/ipam/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// patience bounds what has to happen, so that what never does fails.
const patience = 30 * time.Second

// ipam leases what the test says, and pushes what it publishes.
type ipam struct {
	ipamv1.AllocationServiceClient
	hub     *push.Hub
	service *pushtest.Service

	mu     sync.Mutex
	leases map[ipamv1.Family]string
	asked  []*ipamv1.LeaseBlockRequest
}

func newIPAM(t *testing.T) *ipam {
	p := &ipam{hub: push.NewHub(nodestate.SourceIPAM, push.Options{AuthorizeMember: pushtest.Anybody}), leases: map[ipamv1.Family]string{
		ipamv1.Family_FAMILY_IPV4: "10.244.255.193/32", ipamv1.Family_FAMILY_IPV6: "fd00:10:244::c1/128",
	}}
	p.service = pushtest.Serve(t, p.hub)
	return p
}

func (p *ipam) lease(family ipamv1.Family, cidr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leases[family] = cidr
}

func (p *ipam) LeaseBlock(_ context.Context, req *ipamv1.LeaseBlockRequest, _ ...grpc.CallOption) (*ipamv1.LeaseBlockResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, req)
	cidr := p.leases[req.GetFamily()]
	if cidr == "" {
		return nil, errs.New(errs.Exhausted, "no address is left")
	}
	return &ipamv1.LeaseBlockResponse{Object: &objectv1.AddressBlock{Spec: &objectv1.AddressBlockSpec{Cidr: cidr, Member: req.GetMember()}}}, nil
}

func (p *ipam) publish(t *testing.T, revision int64, rows ...nodestate.Row) {
	t.Helper()
	err := p.hub.Publish(t.Context(), push.Publication{
		Version: nodestate.Version{ClusterID: 1, Revision: revision}, Settled: revision, Shared: nodestate.Delta{Upserts: rows},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// absent is a cluster that nobody reaches.
type absent struct{ clusterv1.MemberServiceClient }

func (absent) Attend(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[clusterv1.AttendRequest, clusterv1.AttendResponse], error) {
	return nil, errs.New(errs.Unavailable, "cluster is away")
}

// join runs a member's process. end stops it and returns what it ended with.
func join(t *testing.T, p *ipam, door Fabric) (m *Member, end func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	d := daemon.New(daemon.Options{Name: "dns", Log: slog.New(slog.DiscardHandler)})
	ended, wired := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- d.Run(ctx, func(context.Context) (err error) {
			defer close(wired)
			m, err = Start(d, Parts{
				Name: "dns-1", Service: Service{Name: "dns"}, Underlay: []netip.Addr{netip.MustParseAddr("172.30.0.31")}, Fabric: door,
				Allocations: p, Members: absent{}, Slices: push.SubscriberConfig{Conn: p.service.Dial(t, nil)}, Recheck: time.Second,
			})
			return err
		})
	}()
	<-wired
	end = sync.OnceValue(func() error { d.Stop(); defer cancel(); return <-ended })
	t.Cleanup(func() { _ = end() })
	return m, end
}

func await(t *testing.T, m *Member) []netip.Addr {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	addresses, err := m.Await(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return addresses
}

var ranges = []nodestate.Row{
	nodestate.Range{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("10.244.0.0/16")},
	nodestate.Range{Kind: nodestate.RangePod, Prefix: netip.MustParsePrefix("fd00:10:244::/48")},
	nodestate.Range{Kind: nodestate.RangeService, Prefix: netip.MustParsePrefix("10.96.0.0/16")},
}

// inside is a fabric whose methods are called in a network namespace.
type inside struct {
	ns *testnet.NS
	*fabric.Fabric
}

func (i inside) Held() (h fabric.Held, err error) {
	doErr := i.ns.Do(func() error { h, err = i.Fabric.Held(); return nil })
	if doErr != nil {
		return h, doErr
	}
	return h, err
}

func (i inside) Apply(members []nodestate.Member, rs []nodestate.Range) (r fabric.Result, err error) {
	if doErr := i.ns.Do(func() error { r, err = i.Fabric.Apply(members, rs); return nil }); doErr != nil {
		return r, doErr
	}
	return r, err
}

func (i inside) Remove() error { return i.ns.Do(i.Fabric.Remove) }

func openIn(t *testing.T, ns *testnet.NS, cfg fabric.Config) inside {
	t.Helper()
	i := inside{ns: ns}
	ns.Must(func() (err error) { i.Fabric, err = fabric.Open(cfg); return err })
	t.Cleanup(i.Close)
	return i
}

// TestKernel: with cluster away, a member gets its addresses and a node's pods into a real kernel, exchanges packets, and
// its successor finds everything there, also with ipam away.
func TestKernel(t *testing.T) {
	n := testnet.New(t)
	plug := n.Underlay("underlay")
	dns, node := n.AddNS("dns-1"), n.AddNS("node-1")
	plug(dns, netip.MustParsePrefix("172.30.0.31/24"))
	plug(node, netip.MustParsePrefix("172.30.0.11/24"))
	self := nodestate.ServiceMember("dns-1")
	nodeRow := nodestate.Member{
		Name: "node-1", Kind: nodestate.MemberNode, TunnelMAC: nodestate.TunnelMACOf("node-1"),
		Underlay: []netip.Addr{netip.MustParseAddr("172.30.0.11")},
		Tunnel:   []netip.Addr{netip.MustParseAddr("10.244.0.0"), netip.MustParseAddr("fd00:10:244::")},
		Blocks:   []netip.Prefix{netip.MustParsePrefix("10.244.0.0/26"), netip.MustParsePrefix("fd00:10:244::/122")},
	}
	p := newIPAM(t)
	p.publish(t, 10, append(slices.Clone(ranges), nodeRow)...)
	door := openIn(t, dns, fabric.Config{Self: self, Underlay: netip.MustParseAddr("172.30.0.31")})
	m, end := join(t, p, door)
	addresses := await(t, m)
	if !slices.Equal(addresses, []netip.Addr{netip.MustParseAddr("10.244.255.193"), netip.MustParseAddr("fd00:10:244::c1")}) {
		t.Fatalf("its addresses are %v", addresses)
	}
	m.Ready()
	if s := m.Status(); !s.Ready || s.Name != "dns-1" {
		t.Errorf("status %+v", s)
	}
	for _, req := range p.asked {
		if req.GetMember() != "dns-1" || req.GetNode() != "" || !strings.HasPrefix(req.GetRequestId(), "member/dns-1/IPv") {
			t.Errorf("it asked for %v", req)
		}
	}
	ownRow := nodestate.Member{
		Name: self, Kind: nodestate.MemberService, TunnelMAC: nodestate.TunnelMACOf(self),
		Underlay: []netip.Addr{netip.MustParseAddr("172.30.0.31")}, Tunnel: addresses,
	}
	for _, a := range addresses {
		ownRow.Blocks = append(ownRow.Blocks, netip.PrefixFrom(a, a.BitLen()))
	}
	if _, err := openIn(t, node, fabric.Config{Self: "node-1", Underlay: nodeRow.Underlay[0]}).Apply([]nodestate.Member{nodeRow, ownRow}, nil); err != nil {
		t.Fatal(err)
	}
	for i, a := range addresses {
		at := dns.ServeUDP("dns", netip.AddrPortFrom(a, 0))
		if r := node.UDP(testnet.Attempt{Target: at}); r.Outcome != testnet.Reached || r.Client.Addr() != nodeRow.Tunnel[i] {
			t.Errorf("from the node to %s: %+v", a, r)
		}
	}
	if err := end(); err != nil {
		t.Fatalf("it ended with: %v", err)
	}

	p.service.Replace(t, push.NewHub(nodestate.SourceIPAM, push.Options{AuthorizeMember: pushtest.Anybody})) // without a World
	again, _ := join(t, p, door)
	if got := again.Addresses(); !slices.Equal(got, addresses) {
		t.Errorf("its successor has %v without ipam, want %v", got, addresses)
	}
	if r, err := door.Apply([]nodestate.Member{nodeRow, ownRow}, rangesOf()); err != nil || r.Writes != 0 {
		t.Errorf("the kernel was left other than programmed: %d writes, %v", r.Writes, err)
	}
	other := openIn(t, dns, fabric.Config{Self: nodestate.ServiceMember("dns-2"), Underlay: netip.MustParseAddr("172.30.0.31")})
	if _, err := Start(daemon.New(daemon.Options{Name: "dns"}), Parts{Name: "dns-2", Fabric: other}); !errs.Is(err, errs.Exists) {
		t.Errorf("another member in its network namespace: %v", err)
	}
}

func rangesOf() []nodestate.Range {
	var out []nodestate.Range
	for _, r := range ranges {
		out = append(out, r.(nodestate.Range))
	}
	return out
}

// TestOtherAddresses: where ipam gives a running member other addresses, its process ends, and its successor has them.
func TestOtherAddresses(t *testing.T) {
	t.Parallel()
	p := newIPAM(t)
	p.publish(t, 10, ranges...)
	kernel := fabric.NewFake(nodestate.ServiceMember("dns-1"), netip.MustParseAddr("172.30.0.31"))
	m, end := join(t, p, kernel)
	await(t, m)
	p.lease(ipamv1.Family_FAMILY_IPV4, "10.244.255.194/32")
	nudge(m.wanted) // sooner than the next refresh
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for kernel.Rows().Len() > 0 {
		select {
		case <-look.C:
		case <-deadline.C:
			t.Fatal("it goes on with addresses that are not its own any more")
		}
	}
	if err := end(); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "10.244.255.194") {
		t.Errorf("it ended with %v", err)
	}
	next, _ := join(t, p, kernel)
	if got := await(t, next); got[0] != netip.MustParseAddr("10.244.255.194") {
		t.Errorf("its successor has %v", got)
	}
}

// TestExhausted: without an address nothing is in the kernel, and people are told why.
func TestExhausted(t *testing.T) {
	t.Parallel()
	p := newIPAM(t)
	p.lease(ipamv1.Family_FAMILY_IPV6, "")
	p.publish(t, 10, ranges...)
	kernel := fabric.NewFake(nodestate.ServiceMember("dns-1"), netip.MustParseAddr("172.30.0.31"))
	m, _ := join(t, p, kernel)
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !strings.Contains(m.Status().Reason, "no address is left") {
		select {
		case <-look.C:
		case <-deadline.C:
			t.Fatalf("its status is %+v", m.Status())
		}
	}
	if kernel.Writes() > 0 || m.Addresses() != nil {
		t.Errorf("with one address of two: %d writes, addresses %v", kernel.Writes(), m.Addresses())
	}
	p.lease(ipamv1.Family_FAMILY_IPV6, "fd00:10:244::c1/128")
	await(t, m)
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what string
		cfg  Config
		want string // of the first violation; empty: none
	}{
		{"nothing", Config{}, ""},
		{"everything", Config{Name: "dns-1", Underlay: []string{"172.30.0.31", "fd00::31"}, VXLANPort: 4790}, ""},
		{"another service's", Config{Name: "ingress-1"}, `member.name: "ingress-1": must begin with the service's name`},
		{"no name behind the dash", Config{Name: "dns-"}, `member.name: "dns-": must be a lowercase RFC 1123 label`},
		{"no label", Config{Name: "dns-1.example"}, `member.name: "dns-1.example": must be a lowercase RFC 1123 label`},
		{"no address", Config{Underlay: []string{"eth0"}}, `member.underlay[0]: "eth0": must be an IPv4 or IPv6 address`},
		{"loopback", Config{Underlay: []string{"127.0.0.1"}}, `member.underlay[0]: "127.0.0.1": must be an IPv4 or IPv6 address`},
		{"two of a family", Config{Underlay: []string{"172.30.0.1", "172.30.0.2"}}, `member.underlay[1]: "172.30.0.2": must be the only one`},
	} {
		got := tt.cfg.Check("dns")
		switch {
		case tt.want == "" && len(got) > 0:
			t.Errorf("%s: %v", tt.what, got)
		case tt.want != "" && (len(got) == 0 || !strings.HasPrefix(got[0].String(), tt.want)):
			t.Errorf("%s: %v, want %s", tt.what, got, tt.want)
		}
	}
}
