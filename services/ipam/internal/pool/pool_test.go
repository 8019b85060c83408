package pool_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/services/ipam/internal/pool"
)

func ranges(t testing.TB, pods, services, balancers, ports string) pool.Ranges {
	t.Helper()
	r := pool.Ranges{BlockBits: map[int]int{4: 26, 6: 122}}
	for text := range strings.FieldsSeq(pods) {
		r.Pods = append(r.Pods, netip.MustParsePrefix(text))
	}
	for text := range strings.FieldsSeq(services) {
		r.Services = append(r.Services, netip.MustParsePrefix(text))
	}
	for text := range strings.FieldsSeq(balancers) {
		lb, err := pool.ParseAddrRange(text)
		if err != nil {
			t.Fatal(err)
		}
		r.LoadBalancers = append(r.LoadBalancers, lb)
	}
	var err error
	if r.NodePorts, err = pool.ParsePortRange(ports); err != nil {
		t.Fatal(err)
	}
	return r
}

func usual(t testing.TB) pool.Ranges {
	return ranges(t, "10.244.0.0/16 fd00:10:244::/48", "10.96.0.0/16 fd00:10:96::/112", "192.0.2.16-192.0.2.19", "30000-32767")
}

func owner(uid string) pool.Owner {
	return pool.Owner{Kind: "services", Namespace: "default", Name: uid, UID: uid}
}

// lowest is the chance that always begins at the beginning.
func lowest(uint64) uint64 { return 0 }

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what   string
		change func(r *pool.Ranges)
		want   string // field: rule, shortened
	}{
		{"the defaults", func(*pool.Ranges) {}, ""},
		{"no pods", func(r *pool.Ranges) { r.Pods = nil }, "pods: is required"},
		{"no services", func(r *pool.Ranges) { r.Services = nil }, "services: is required"},
		{"a block as large as the range", func(r *pool.Ranges) { r.BlockBits[4] = 16 }, ""},
		{"a block larger than the range", func(r *pool.Ranges) { r.BlockBits[4] = 15 }, "pods[0]: \"10.244.0.0/16\": cannot be cut"},
		{"a block of two addresses", func(r *pool.Ranges) { r.BlockBits[6] = 127 }, "pods[1]: \"fd00:10:244::/48\": cannot be cut"},
		{"host bits", func(r *pool.Ranges) { r.Pods[0] = netip.MustParsePrefix("10.244.1.0/16") }, "pods[0]: \"10.244.1.0/16\": has bits set behind the prefix; write 10.244.0.0/16"},
		{"pods over services", func(r *pool.Ranges) { r.Services[0] = netip.MustParsePrefix("10.244.3.0/24") }, "services[0]: \"10.244.3.0-10.244.3.255\": overlaps pods[0]"},
		{"a balancer among services", func(r *pool.Ranges) { r.LoadBalancers[0].From = netip.MustParseAddr("10.96.200.1") }, "loadBalancers[0]"},
		{"the same twice", func(r *pool.Ranges) { r.Pods = append(r.Pods, r.Pods[0]) }, "pods[2]: \"10.244.0.0-10.244.255.255\": overlaps pods[0]"},
		{"too few services", func(r *pool.Ranges) { r.Services[0] = netip.MustParsePrefix("10.96.0.0/29") }, "services[0]: \"10.96.0.0/29\": must have at least 16"},
		{"loopback", func(r *pool.Ranges) { r.Pods[0] = netip.MustParsePrefix("127.0.0.0/16") }, "pods[0]: \"127.0.0.0/16\": must be unicast"},
		{"mapped", func(r *pool.Ranges) { r.Pods[1] = netip.MustParsePrefix("::ffff:10.0.0.0/112") }, "pods[1]: \"::ffff:10.0.0.0/112\": must not be an IPv4-mapped"},
		{"no node ports", func(r *pool.Ranges) { r.NodePorts = pool.PortRange{} }, "nodePorts: \"0-0\""},
	} {
		r := usual(t)
		tt.change(&r)
		bad := r.Check()
		switch {
		case tt.want == "" && len(bad) > 0:
			t.Errorf("%s: %v", tt.what, bad)
		case tt.want != "" && (len(bad) == 0 || !strings.HasPrefix(bad[0].String(), tt.want)):
			t.Errorf("%s: %v, want %s", tt.what, bad, tt.want)
		}
	}
}

func TestParseRanges(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"192.0.2.0/30": "192.0.2.0-192.0.2.3", "192.0.2.7": "192.0.2.7", "192.0.2.7-192.0.2.9": "192.0.2.7-192.0.2.9",
		"2001:db8::/127": "2001:db8::-2001:db8::1", "192.0.2.1/30": "", "192.0.2.9-192.0.2.7": "", "192.0.2.1-2001:db8::1": "",
		"": "", "x": "", "192.0.2.1-": "", "-": "", "fe80::1%eth0": "", "2001:db8::1%a-2001:db8::2": "", "224.0.0.0/4": "", "::ffff:1.2.3.4": "", "0.0.0.0": "",
	} {
		r, err := pool.ParseAddrRange(text)
		if (err == nil) != (want != "") || err == nil && r.String() != want {
			t.Errorf("%q: %v, %v, want %q", text, r, err, want)
		}
	}
	for text, ok := range map[string]bool{
		"30000-32767": true, "1-65535": true, "80-80": true, "0-80": false, "80": false, "80-79": false, "1-65536": false, "a-b": false, "": false, "-1-5": false,
	} {
		if _, err := pool.ParsePortRange(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseAddrRange(f *testing.F) {
	for _, s := range []string{"192.0.2.0/24", "192.0.2.1-192.0.2.77", "2001:db8::-2001:db8::ffff", "10.0.0.0/8", "::1-::5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := pool.ParseAddrRange(text)
		if err != nil {
			return
		}
		again, err := pool.ParseAddrRange(r.String())
		if err != nil || again != r {
			t.Fatalf("%q reads as %v, and that as %v (%v)", text, r, again, err)
		}
		next := r.From
		for _, p := range r.Prefixes() { // without gap or overlap, from the first to the last
			if p.Addr() != next || p != p.Masked() {
				t.Fatalf("%v: prefixes %v", r, r.Prefixes())
			}
			next = last(p).Next()
		}
		if next != r.To.Next() {
			t.Fatalf("%v: prefixes %v end before %v", r, r.Prefixes(), next)
		}
	})
}

// last counts by bytes, unlike the package.
func last(p netip.Prefix) netip.Addr {
	raw := p.Addr().AsSlice()
	for i := range raw {
		switch host := (i+1)*8 - p.Bits(); {
		case host >= 8:
			raw[i] = 0xff
		case host > 0:
			raw[i] |= 1<<host - 1
		}
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ got, want string }{
		{pool.Service.Name("10.96.0.10"), "service-10-96-0-10"},
		{pool.Service.Name("fd00:10:96::a"), "service-fd00-0010-0096-0000-0000-0000-0000-000a"},
		{pool.Service.Name("FD00:10:96:0::a"), "service-fd00-0010-0096-0000-0000-0000-0000-000a"},
		{pool.NodePort.Name("30080"), "node-port-30080"},
		{pool.LoadBalancer.Name("192.0.2.1"), "load-balancer-192-0-2-1"},
		{pool.BlockName(netip.MustParsePrefix("10.244.0.64/26")), "block-10-244-0-64-26"},
		{pool.BlockName(netip.MustParsePrefix("fd00::/122")), "block-fd00-0000-0000-0000-0000-0000-0000-0000-122"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s, want %s", tt.got, tt.want)
		}
	}
}

// TestBands takes what Kubernetes documents: the static band and the first dynamic value of several sizes (KEP-3070,
// KEP-3668).
func TestBands(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ services, first string }{
		{"10.96.0.0/28", "10.96.0.2"}, // no band, and .1 is reserved
		{"10.96.0.0/27", "10.96.0.17"},
		{"10.96.0.0/24", "10.96.0.17"},
		{"10.96.0.0/20", "10.96.1.1"},
		{"10.96.0.0/16", "10.96.1.1"},
	} {
		p := pool.New(ranges(t, "10.244.0.0/16", tt.services, "", "30000-32767"))
		if got, err := p.Choose(pool.Want{Pool: pool.Service, Family: 4}, owner("a"), nil, lowest); got != tt.first || err != nil {
			t.Errorf("%s: %s, %v, want %s", tt.services, got, err, tt.first)
		}
	}
	for ports, first := range map[string]string{"30000-32767": "30086", "30000-30015": "30000", "30000-30016": "30016", "1-65535": "129"} {
		p := pool.New(ranges(t, "10.244.0.0/16", "10.96.0.0/16", "", ports))
		if got, err := p.Choose(pool.Want{Pool: pool.NodePort}, owner("a"), nil, lowest); got != first || err != nil {
			t.Errorf("%s: %s, %v, want %s", ports, got, err, first)
		}
	}
}

// TestExhaust takes everything that each pool gives without being asked exactly: each value once, all of them, and then
// an error that names the pool.
func TestExhaust(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		want pool.Want
		size int
		not  []string
		name string
	}{
		{pool.Want{Pool: pool.Service, Family: 4}, 254 - 2, []string{"10.96.0.0", "10.96.0.1", "10.96.0.10", "10.96.0.255"}, "pool service has no free IPv4"},
		{pool.Want{Pool: pool.Service, Family: 6}, 255 - 2, []string{"fd00:10:96::", "fd00:10:96::1", "fd00:10:96::a"}, "pool service has no free IPv6"},
		{pool.Want{Pool: pool.LoadBalancer, Family: 4}, 4 + 1, nil, "pool load-balancer has no free IPv4"},
		{pool.Want{Pool: pool.LoadBalancer, Family: 6}, 0, nil, "pool load-balancer has no free IPv6"},
		{pool.Want{Pool: pool.NodePort}, 101, nil, "every node port of 30000-30100 is taken"},
	} {
		p := pool.New(ranges(t, "10.244.0.0/16", "10.96.0.0/24 fd00:10:96::/120", "192.0.2.16-192.0.2.19 192.0.2.40", "30000-30100"))
		r := rand.New(rand.NewPCG(1, 2))
		got := map[string]bool{}
		for {
			value, err := p.Choose(tt.want, owner("a"), nil, r.Uint64N)
			if err != nil {
				if !errs.Is(err, errs.Exhausted) || !strings.Contains(err.Error(), tt.name) {
					t.Errorf("%+v: %v", tt.want, err)
				}
				break
			}
			if got[value] {
				t.Fatalf("%+v: %s twice", tt.want, value)
			}
			got[value] = true
			p.Hold(pool.Claim{Pool: tt.want.Pool, Value: value, Owner: owner("a")})
		}
		if len(got) != tt.size {
			t.Errorf("%+v: %d values, want %d", tt.want, len(got), tt.size)
		}
		for _, v := range tt.not {
			if got[v] {
				t.Errorf("%+v: %s is not to be chosen", tt.want, v)
			}
		}
		for v := range got { // and back
			p.Free(tt.want.Pool, v)
		}
		if _, err := p.Choose(tt.want, owner("a"), nil, lowest); (err == nil) != (tt.size > 0) {
			t.Errorf("%+v: after all came back: %v", tt.want, err)
		}
	}
}

func TestExact(t *testing.T) {
	t.Parallel()
	p := pool.New(usual(t))
	p.Hold(pool.Claim{Pool: pool.Service, Value: "10.96.0.10", Owner: owner("dns")})
	p.Hold(pool.Claim{Pool: pool.NodePort, Value: "30080", Owner: owner("dns")})
	for _, tt := range []struct {
		kind  pool.Kind
		value string
		uid   string
		want  string
		err   errs.Kind
	}{
		{pool.Service, "10.96.0.1", "k", "10.96.0.1", errs.Internal},
		{pool.Service, "fd00:10:96:0:0::A", "k", "fd00:10:96::a", errs.Internal},
		{pool.Service, "10.96.0.10", "dns", "10.96.0.10", errs.Internal},
		{pool.Service, "10.96.0.10", "k", "", errs.Exists},
		{pool.Service, "10.96.0.0", "k", "", errs.Invalid},
		{pool.Service, "10.96.255.255", "k", "", errs.Invalid},
		{pool.Service, "10.97.0.1", "k", "", errs.Invalid},
		{pool.Service, "::ffff:10.96.0.7", "k", "", errs.Invalid},
		{pool.Service, "fd00:10:96::7%eth0", "k", "", errs.Invalid},
		{pool.Service, "None", "k", "", errs.Invalid},
		{pool.LoadBalancer, "192.0.2.16", "k", "192.0.2.16", errs.Internal},
		{pool.LoadBalancer, "192.0.2.20", "k", "", errs.Invalid},
		{pool.NodePort, "30080", "dns", "30080", errs.Internal},
		{pool.NodePort, "030081", "k", "30081", errs.Internal},
		{pool.NodePort, "30080", "k", "", errs.Exists},
		{pool.NodePort, "29999", "k", "", errs.Invalid},
		{pool.NodePort, "-1", "k", "", errs.Invalid},
		{pool.NodePort, "99999999", "k", "", errs.Invalid},
	} {
		got, err := p.Choose(pool.Want{Pool: tt.kind, Value: tt.value}, owner(tt.uid), nil, lowest)
		if got != tt.want || tt.want == "" && !errs.Is(err, tt.err) || tt.want != "" && err != nil {
			t.Errorf("%s %s: %q, %v", tt.kind, tt.value, got, err)
		}
	}
	if _, err := p.Choose(pool.Want{Pool: pool.Service, Value: "1.2.3.4"}, owner("k"), nil, lowest); err == nil ||
		err.Error() != "provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16, fd00:10:96::/112" {
		t.Errorf("Kubernetes' words: %v", err)
	}
}

func TestBlocks(t *testing.T) {
	t.Parallel()
	p := pool.New(ranges(t, "10.244.0.0/24 10.245.0.0/26", "10.96.0.0/16", "", "30000-32767"))
	lease := func(want string) netip.Prefix {
		t.Helper()
		b, err := p.NextBlock(4)
		if err != nil || b.String() != want {
			t.Fatalf("%s, %v, want %s", b, err, want)
		}
		p.HoldBlock(b, "node-1")
		return b
	}
	first := lease("10.244.0.0/26")
	second := lease("10.244.0.64/26")
	p.FreeBlock(second)
	p.FreeBlock(first)
	lease("10.244.0.128/26") // blocks that came back rest as long as there are others
	lease("10.244.0.192/26")
	lease("10.245.0.0/26")
	lease("10.244.0.64/26") // then the one that came back first
	lease("10.244.0.0/26")
	if _, err := p.NextBlock(4); !errs.Is(err, errs.Exhausted) || !strings.Contains(err.Error(), "10.244.0.0/24") {
		t.Errorf("exhausted: %v", err)
	}
	if _, err := p.NextBlock(6); !errs.Is(err, errs.Exhausted) {
		t.Errorf("no range of the family: %v", err)
	}
	if got := p.Outside(); len(got) != 0 {
		t.Errorf("outside: %v", got)
	}
	p.HoldBlock(netip.MustParsePrefix("10.1.0.0/26"), "node-2")
	p.HoldBlock(netip.MustParsePrefix("10.244.0.0/25"), "node-3")
	p.Hold(pool.Claim{Pool: pool.Service, Value: "10.9.0.1", Owner: owner("a")})
	if got := strings.Join(p.Outside(), "; "); got != "10.9.0.1 of Service default/a; block 10.1.0.0/26 of node node-2; block 10.244.0.0/25 of node node-3" {
		t.Errorf("outside: %s", got)
	}
}

// TestLost passes over a name that the store refused until the World has come so far as to know it.
func TestLost(t *testing.T) {
	t.Parallel()
	p := pool.New(usual(t))
	p.Passed(10)
	next := func() string {
		b, err := p.NextBlock(4)
		if err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	name := pool.BlockName(netip.MustParsePrefix("10.244.0.0/26"))
	p.Lost(name, 9)
	if got := next(); got != "10.244.0.0/26" {
		t.Errorf("what the World has seen already: %s", got)
	}
	p.Lost(name, 12)
	p.Passed(11)
	if got := next(); got != "10.244.0.64/26" {
		t.Errorf("what the World has not seen: %s", got)
	}
	p.Passed(12) // it came and went within what was passed
	if got := next(); got != "10.244.0.0/26" {
		t.Errorf("what the World has seen since: %s", got)
	}
	p.Lost(pool.NodePort.Name("30086"), 20)
	if got, err := p.Choose(pool.Want{Pool: pool.NodePort}, owner("a"), map[string]bool{pool.NodePort.Name("30087"): true}, lowest); got != "30088" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	p := pool.New(usual(t))
	p.HoldBlock(netip.MustParsePrefix("10.244.0.0/26"), "node-1")
	p.Hold(pool.Claim{Pool: pool.Service, Value: "10.96.0.1", Owner: owner("a")})
	p.Hold(pool.Claim{Pool: pool.Service, Value: "10.96.0.1", Owner: owner("a")})
	p.Hold(pool.Claim{Pool: pool.NodePort, Value: "30000", Owner: owner("a")})
	var got []string
	for _, s := range p.Status() {
		got = append(got, fmt.Sprint(s.Pool, " ", s.Range, " ", s.Used, "/", s.Size))
	}
	want := []string{
		"pod 10.244.0.0/16 1/1024", "pod fd00:10:244::/48 0/4611686018427387904", "service 10.96.0.0/16 1/65534",
		"service fd00:10:96::/112 0/65535", "load-balancer 192.0.2.16-192.0.2.19 0/4", "node-port 30000-32767 1/2768",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// BenchmarkChoose is one address of a pool of 65,534 with 10,000 claims.
func BenchmarkChoose(b *testing.B) {
	p := pool.New(usual(b))
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		v, err := p.Choose(pool.Want{Pool: pool.Service, Family: 4}, owner("a"), nil, r.Uint64N)
		if err != nil {
			b.Fatal(err)
		}
		p.Hold(pool.Claim{Pool: pool.Service, Value: v, Owner: owner("a")})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Choose(pool.Want{Pool: pool.Service, Family: 4}, owner("a"), nil, r.Uint64N); err != nil {
			b.Fatal(err)
		}
	}
}
