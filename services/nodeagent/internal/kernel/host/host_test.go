package host

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/testnet"
)

// node is a host with two pods, on links with our names, and a peer on its underlay.
type node struct {
	*testnet.NS
	t           *testing.T
	host        *Host
	left, right *testnet.NS
	peer        *testnet.NS
	record      string
}

var prefix = netip.MustParsePrefix

func newNode(t *testing.T) *node {
	t.Helper()
	n := testnet.New(t)
	d := &node{NS: n.AddNS("node"), t: t, left: n.AddNS("left"), right: n.AddNS("right"), peer: n.AddNS("peer")}
	for i, s := range []*testnet.NS{d.left, d.right} {
		v4, v6 := fmt.Sprintf("10.244.%d.", i), fmt.Sprintf("fd00:10:244:%d::", i)
		n.Wire(testnet.End{NS: s, Link: "eth0", Addresses: []netip.Prefix{prefix(v4 + "2/24"), prefix(v6 + "2/64")}},
			testnet.End{NS: d.NS, Link: "pwp" + s.Name(), Addresses: []netip.Prefix{prefix(v4 + "1/24"), prefix(v6 + "1/64")}})
		s.AddRoute(prefix("0.0.0.0/0"), netip.MustParseAddr(v4+"1"))
		s.AddRoute(prefix("::/0"), netip.MustParseAddr(v6+"1"))
	}
	n.Wire(testnet.End{NS: d.peer, Link: "eth0", Addresses: []netip.Prefix{prefix("172.30.0.2/24"), prefix("fd00:172:30::2/64")}},
		testnet.End{NS: d.NS, Link: "under0", Addresses: []netip.Prefix{prefix("172.30.0.1/24"), prefix("fd00:172:30::1/64")}})
	d.record = filepath.Join(t.TempDir(), "host.json")
	d.open()
	return d
}

func (d *node) open() {
	d.t.Helper()
	cfg := Config{
		Record: d.record, Underlay: "under0", TunnelPort: 8472,
		TunnelPeers: []netip.Prefix{prefix("172.30.0.0/24"), prefix("fd00:172:30::/64")},
	}
	d.Must(func() error {
		var err error
		d.host, err = Open(cfg)
		return err
	})
	d.t.Cleanup(d.host.Close)
}

func (d *node) apply() int {
	d.t.Helper()
	var writes int
	d.Must(func() error {
		var err error
		writes, err = d.host.Apply()
		return err
	})
	return writes
}

func (d *node) check() []State {
	d.t.Helper()
	var states []State
	d.Must(func() error {
		var err error
		states, err = d.host.Check()
		return err
	})
	return states
}

// passes tries TCP from one pod to the other in both families.
func (d *node) passes() []testnet.Outcome {
	d.t.Helper()
	var outcomes []testnet.Outcome
	for _, a := range []string{"10.244.1.2", "fd00:10:244:1::2"} {
		at := d.right.ServeTCP("right", netip.AddrPortFrom(netip.MustParseAddr(a), 0))
		outcomes = append(outcomes, d.left.TCP(testnet.Attempt{Target: at, Timeout: 300 * time.Millisecond}).Outcome)
	}
	return outcomes
}

func (d *node) tunnelIsOpen() []bool {
	d.t.Helper()
	var open []bool
	for _, a := range []string{"172.30.0.1:8472", "[fd00:172:30::1]:8472"} {
		r := d.peer.UDP(testnet.Attempt{Target: netip.MustParseAddrPort(a), Timeout: 300 * time.Millisecond})
		open = append(open, r.Outcome == testnet.Reached)
	}
	return open
}

// settings are all values below net/ipv4/conf, net/ipv6/conf and ip_forward, and the ruleset without counters and handles.
func (d *node) settings() string {
	d.t.Helper()
	var b strings.Builder
	d.Must(func() error {
		for _, pattern := range []string{"ipv4/conf/*/*", "ipv6/conf/*/*", "ipv4/ip_forward"} {
			names, err := filepath.Glob("/proc/sys/net/" + pattern)
			if err != nil {
				return err
			}
			for _, name := range names {
				value, err := os.ReadFile(name)
				if err != nil {
					continue // a secret that is not set yet
				}
				fmt.Fprintf(&b, "%s = %s", name, value)
			}
		}
		return nil
	})
	return b.String() + d.Run("nft", "--stateless", "list", "ruleset")
}

var profiles = map[string][]testnet.Profile{
	"no firewall": nil, "FORWARD DROP": {testnet.ForwardDrop}, "docker": {testnet.Docker}, "ufw": {testnet.UFW},
	"firewalld": {testnet.Firewalld}, "ufw and docker": {testnet.UFW, testnet.Docker}, "docker and firewalld": {testnet.Docker, testnet.Firewalld},
}

func TestHostilityIsOvercomeAndRestored(t *testing.T) {
	for name, list := range profiles {
		t.Run(name, func(t *testing.T) {
			d := newNode(t)
			for _, p := range list {
				d.Hostile(p)
			}
			d.ServeUDP("node", netip.MustParseAddrPort("0.0.0.0:8472"))
			d.ServeUDP("node", netip.MustParseAddrPort("[::]:8472"))
			before := d.settings()
			if got := d.passes(); slices.Contains(got, testnet.Reached) {
				t.Fatalf("before Apply, pods talk: %v", got)
			}
			if d.apply() == 0 {
				t.Fatal("nothing was written")
			}
			if got := d.passes(); got[0] != testnet.Reached || got[1] != testnet.Reached {
				t.Errorf("after Apply: %v", got)
			}
			if got := d.tunnelIsOpen(); !got[0] || !got[1] {
				t.Errorf("after Apply the tunnel's port is open: %v", got)
			}
			if n := d.apply(); n != 0 {
				t.Errorf("Apply again made %d writes", n)
			}
			// A new process, which knows only the record.
			d.open()
			if n := d.apply(); n != 0 {
				t.Errorf("Apply by a new process made %d writes", n)
			}
			for _, s := range d.check() {
				if !s.OK() || s.Before == "" {
					t.Errorf("after Apply: %+v", s)
				}
			}
			for range 2 {
				d.Must(d.host.Restore)
				if after := d.settings(); after != before {
					t.Errorf("Restore left differences:\n%s", difference(before, after))
				}
			}
			if _, err := os.Stat(d.record); !os.IsNotExist(err) {
				t.Errorf("the record is still there: %v", err)
			}
		})
	}
}

func difference(before, after string) string {
	b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
	var out []string
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}

func TestFormerValuesOfAnUnusualHost(t *testing.T) {
	d := newNode(t)
	// What the kernel changes together with forwarding, each at the value that it would not have of itself.
	d.SetSysctl("net/ipv4/conf/all/accept_redirects", "0")
	d.SetSysctl("net/ipv4/conf/under0/forwarding", "1")
	d.SetSysctl("net/ipv6/conf/under0/forwarding", "1")
	d.SetSysctl("net/ipv4/conf/default/forwarding", "1")
	before := d.settings()
	d.apply()
	d.Must(d.host.Restore)
	if after := d.settings(); after != before {
		t.Errorf("Restore left differences:\n%s", difference(before, after))
	}
}

func TestFirewallsThatStartLater(t *testing.T) {
	d := newNode(t)
	d.apply()
	d.Hostile(testnet.ForwardDrop)
	if n := d.apply(); n != 4 {
		t.Errorf("for FORWARD DROP of two families %d writes", n)
	}
	d.Hostile(testnet.Docker)
	if got := d.passes(); got[0] != testnet.Reached || got[1] != testnet.Reached {
		t.Errorf("when dockerd starts: %v", got)
	}
	// The rules move to the chain that dockerd keeps for them.
	if n := d.apply(); n != 8 {
		t.Errorf("when dockerd started, %d writes", n)
	}
	for _, s := range d.check() {
		if strings.Contains(s.Name, "FORWARD") || !s.OK() {
			t.Errorf("%+v", s)
		}
	}
	// A reload that builds everything anew.
	d.Run("nft", "flush", "ruleset")
	d.Hostile(testnet.Docker)
	if bad := slices.IndexFunc(d.check(), func(s State) bool { return !s.OK() }); bad < 0 {
		t.Error("Check does not notice that the rules are gone")
	}
	d.apply()
	if got := d.passes(); got[0] != testnet.Reached || got[1] != testnet.Reached {
		t.Errorf("after a reload: %v", got)
	}
	d.Run("nft", "flush", "ruleset")
	if n := d.apply(); n != 0 {
		t.Errorf("without a firewall %d writes", n)
	}
}

func TestRulesOfTheOperatorComeFirst(t *testing.T) {
	d := newNode(t)
	d.Hostile(testnet.Docker)
	c := d.NFT()
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := &nftables.Table{Name: "filter", Family: family}
		chain := &nftables.Chain{Table: table, Name: "DOCKER-USER"}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("pwpleft\x00")},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn},
		}})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	d.apply()
	if got := d.passes(); got[0] != testnet.TimedOut || got[1] != testnet.TimedOut {
		t.Errorf("from a pod that the operator blocked: %v", got)
	}
	at := d.left.ServeTCP("left", netip.MustParseAddrPort("10.244.0.2:80"))
	// The first packet of the other pod passes, in front of the final RETURN; the answer meets the operator's rule.
	tap := d.left.Tap("eth0")
	d.right.TCP(testnet.Attempt{Target: at, Timeout: 200 * time.Millisecond})
	if tap.Wait(2*time.Second, func(f []byte) bool { return len(f) > 33 && f[12] == 8 && f[13] == 0 && f[23] == 6 }) == nil {
		t.Error("our rules are behind the final RETURN")
	}
}

func TestOnlyWhatIsOursIsLetThrough(t *testing.T) {
	d := newNode(t)
	for _, p := range []testnet.Profile{testnet.UFW, testnet.Firewalld} {
		d.Hostile(p)
	}
	d.apply()
	for _, from := range []*testnet.NS{d.peer, d.left} {
		to := map[string]string{"peer": "172.30.0.1", "left": "10.244.0.1"}[from.Name()]
		at := d.ServeUDP("node", netip.AddrPortFrom(netip.MustParseAddr(to), 0))
		if r := from.UDP(testnet.Attempt{Target: at, Timeout: 200 * time.Millisecond}); r.Outcome == testnet.Reached {
			t.Errorf("%s reaches a port of the host that its firewall closed", from.Name())
		}
	}
	// Outside the peers' prefixes, the tunnel's port is closed too.
	d.peer.AddAddr("eth0", prefix("198.51.100.1/32"))
	d.AddRoute(prefix("198.51.100.1/32"), netip.MustParseAddr("172.30.0.2"))
	d.ServeUDP("node", netip.MustParseAddrPort("0.0.0.0:8472"))
	r := d.peer.UDP(testnet.Attempt{
		Target: netip.MustParseAddrPort("172.30.0.1:8472"), From: netip.MustParseAddrPort("198.51.100.1:4242"),
		Timeout: 200 * time.Millisecond,
	})
	if r.Outcome == testnet.Reached {
		t.Error("a stranger reaches the tunnel's port")
	}
}

func TestLearnedRouterSurvivesForwarding(t *testing.T) {
	d := newNode(t)
	learn := func() {
		d.Run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "under0", "proto", "ra", "expires", "1800")
	}
	learned := func() bool { return d.Run("ip", "-6", "route", "show", "default", "proto", "ra") != "" }
	learn()
	before := d.settings()
	d.apply()
	if got := d.Sysctl("net/ipv6/conf/under0/accept_ra"); got != "2" {
		t.Errorf("accept_ra of the underlay is %s", got)
	}
	if got := d.Sysctl("net/ipv6/conf/pwpleft/accept_ra"); got != "1" {
		t.Errorf("accept_ra of a link without a router is %s", got)
	}
	if !learned() {
		t.Error("the learned router is forgotten")
	}
	if n := d.apply(); n != 0 {
		t.Errorf("Apply again made %d writes", n)
	}
	d.Must(d.host.Restore)
	if after := d.settings(); after != before {
		t.Errorf("Restore left differences:\n%s", difference(before, after))
	}
	// Where another program listens to routers itself, nothing is to be done.
	d.SetSysctl("net/ipv6/conf/under0/accept_ra", "0")
	d.apply()
	if got := d.Sysctl("net/ipv6/conf/under0/accept_ra"); got != "0" {
		t.Errorf("accept_ra 0 became %s", got)
	}
}

func TestWantedOrder(t *testing.T) {
	got := fmt.Sprint(wanted(facts{routers: []string{"eth0", "eth1.100"}}))
	want := "[{net/ipv6/conf/eth0/accept_ra 2} {net/ipv6/conf/eth1.100/accept_ra 2} {net/ipv4/ip_forward 1} {net/ipv6/conf/all/forwarding 1}]"
	if got != want {
		t.Errorf("wanted %s", got)
	}
}

func TestRecordKeepsTheFirstValue(t *testing.T) {
	var r record
	r.add("a", "0")
	r.add("a", "1")
	path := filepath.Join(t.TempDir(), "record")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	back, err := readRecord(path)
	if err != nil || back.before()["a"] != "0" {
		t.Errorf("record %+v, %v", back, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(path); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged record: %v", err)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	good := Config{Record: "/tmp/x", Underlay: "eth0", TunnelPort: 1, TunnelPeers: []netip.Prefix{prefix("10.0.0.0/8")}}
	for name, change := range map[string]func(*Config){
		"no record":   func(c *Config) { c.Record = "" },
		"no underlay": func(c *Config) { c.Underlay = "" },
		"no port":     func(c *Config) { c.TunnelPort = 0 },
		"host bits":   func(c *Config) { c.TunnelPeers = []netip.Prefix{prefix("10.0.0.1/8")} },
	} {
		c := good
		change(&c)
		if _, err := Open(c); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
