package app

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/testnet"
	nodeagentv1 "podwire.dev/proto/podwire/nodeagent/v1"
	"podwire.dev/services/nodeagent/internal/addresses"
)

// asAgent makes this test binary the agent.
const asAgent = "nodeagent-of-a-test"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == asAgent {
		os.Exit(Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func valid() Config {
	c := Config{
		Common: daemon.Common{Socket: "/s/agent.sock", Peers: map[string]string{"cluster": "c", "ipam": "i", "svcproxy": "s", "policy": "p"}},
		Node:   "node-1", Underlay: []string{"172.30.0.2", "fd00::2"}, State: "/s", ClusterDNS: []string{"fd00::a", "10.96.0.10"},
	}
	c.SetDefaults()
	return c
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if v := new(Config).Check(); len(v) == 0 {
		t.Error("an empty configuration is fine")
	}
	good := valid()
	s, violations := good.parse()
	if len(violations) > 0 || !slices.Equal(s.families, []addresses.Family{addresses.IPv6, addresses.IPv4}) || s.target != "unix:///s/agent.sock" {
		t.Errorf("%v %v %q", violations, s.families, s.target)
	}
	for _, tt := range []struct {
		field  string
		change func(*Config)
	}{
		{"node", func(c *Config) { c.Node = "" }},
		{"node", func(c *Config) { c.Node = "a/b" }},
		{"state", func(c *Config) { c.State = "relative" }},
		{"vxlanPort", func(c *Config) { c.VXLANPort = 0 }},
		{"underlay", func(c *Config) { c.Underlay = nil }},
		{"underlay[0]", func(c *Config) { c.Underlay = []string{"127.0.0.1"} }},
		{"underlay[1]", func(c *Config) { c.Underlay = []string{"172.30.0.2", "172.30.0.3"} }},
		{"clusterDNS[0]", func(c *Config) { c.ClusterDNS = []string{"kube-dns"} }},
		{"families", func(c *Config) { c.ClusterDNS = nil }},
		{"families[0]", func(c *Config) { c.Families = []string{"ipv4"} }},
		{"families[1]", func(c *Config) { c.Families = []string{"IPv4", "IPv4"} }},
		{"tunnelPeers[0]", func(c *Config) { c.TunnelPeers = []string{"10.0.0.1/8"} }},
		{"peers.policy", func(c *Config) { delete(c.Peers, "policy") }},
	} {
		c := valid()
		tt.change(&c)
		v := c.Check()
		if len(v) != 1 || v[0].Field != tt.field {
			t.Errorf("%s: %v", tt.field, v)
		}
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	underlay := []netip.Addr{netip.MustParseAddr("fd00::2")}
	for _, tt := range []struct {
		common     daemon.Common
		configured string
		want       string
	}{
		{daemon.Common{Socket: "/s", Listen: ":7443"}, "", "unix:///s"},
		{daemon.Common{Listen: ":7443"}, "", "[fd00::2]:7443"},
		{daemon.Common{Listen: "[::]:7443"}, "", "[fd00::2]:7443"},
		{daemon.Common{Listen: "192.0.2.1:7443"}, "", "192.0.2.1:7443"},
		{daemon.Common{Listen: ":7443", Advertise: "node.example:1"}, "", "node.example:1"},
		{daemon.Common{Socket: "/s"}, "dns:///x:1", "dns:///x:1"},
	} {
		c := Config{Common: tt.common, AgentTarget: tt.configured}
		if got := c.target(underlay); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.common, got, tt.want)
		}
	}
}

func TestYieldedAddressesAreKept(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "yielded.json")
	if got, err := readYielded(path); err != nil || len(got) != 0 {
		t.Errorf("no file: %v %v", got, err)
	}
	want := map[netip.Addr]int64{netip.MustParseAddr("192.0.2.1"): 3, netip.MustParseAddr("2001:db8::1"): 4}
	if err := writeYielded(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := readYielded(path)
	if err != nil || len(got) != 2 || got[netip.MustParseAddr("2001:db8::1")] != 4 {
		t.Errorf("got %v %v", got, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readYielded(path); !errs.Is(err, errs.Invalid) {
		t.Errorf("damaged: %v", err)
	}
}

func TestOSImage(t *testing.T) {
	t.Parallel()
	if got := osImage("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"); got != "Debian GNU/Linux 12 (bookworm)" {
		t.Error(got)
	}
}

// node is an agent in a namespace whose services are all away.
type node struct {
	t      *testing.T
	ns     *testnet.NS
	config string
	socket string
}

func newNode(t *testing.T) *node {
	t.Helper()
	net := testnet.New(t)
	n := &node{t: t, ns: net.AddNS("node")}
	net.Underlay("underlay")(n.ns, netip.MustParsePrefix("172.30.9.2/24"), netip.MustParsePrefix("fd00:172:30:9::2/64"))
	dir := t.TempDir()
	n.config, n.socket = filepath.Join(dir, "config.yaml"), filepath.Join(dir, "agent.sock")
	text := fmt.Sprintf(`socket: %[1]s/agent.sock
node: node-1
underlay: [172.30.9.2, "fd00:172:30:9::2"]
state: %[1]s/state
clusterDNS: [10.96.0.10, "fd00:10:96::a"]
peers: {cluster: "unix:%[1]s/cluster", ipam: "unix:%[1]s/ipam", svcproxy: "unix:%[1]s/svcproxy", policy: "unix:%[1]s/policy"}
`, dir)
	if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// start runs the agent and returns what it says of itself, and what ends it.
func (n *node) start() (*nodeagentv1.StatusResponse, func()) {
	n.t.Helper()
	cmd := exec.Command("/proc/self/exe", asAgent, "--config", n.config)
	var log strings.Builder
	cmd.Stderr = &log
	if err := n.ns.Start(cmd); err != nil {
		n.t.Fatal(err)
	}
	ended := false
	stop := func() {
		ended = true
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			n.t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			n.t.Errorf("the agent: %v\n%s", err, log.String())
		}
	}
	n.t.Cleanup(func() {
		if !ended {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	status, err := n.status(ctx)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, log.String())
	}
	return status, stop
}

// status waits until the agent is SERVING.
func (n *node) status(ctx context.Context) (*nodeagentv1.StatusResponse, error) {
	conn, err := rpc.Dial("unix:"+n.socket, pki.Service(Name), nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return nodeagentv1.NewAgentServiceClient(conn).Status(ctx, &nodeagentv1.StatusRequest{}, grpc.WaitForReady(true))
}

func TestAnAgentAlone(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.ns.Sysctl("net/ipv4/ip_forward")
	status, stop := n.start()
	if len(status.GetSlices()) != 4 || status.GetSlices()[0].GetConnected() || status.GetKernelWrites() == 0 {
		t.Errorf("status: %v", status)
	}
	for _, s := range status.GetSettings() {
		if s.GetActual() != s.GetWanted() {
			t.Errorf("setting: %v", s)
		}
	}
	if out, err := n.remove(); err == nil || !strings.Contains(out, "stop it first") {
		t.Errorf("removed under a running agent: %v\n%s", err, out)
	}
	stop()
	if got := n.ns.Run("nft", "list", "table", "inet", "podwire"); !strings.Contains(got, "drop-gate") {
		t.Error("the table went with the agent")
	}

	status, stop = n.start()
	if status.GetKernelWrites() != 0 || status.GetKernelObjectsWritten() != 0 || len(status.GetDrift()) != 0 {
		t.Errorf("a restart wrote %d times, %d objects; drift %q", status.GetKernelWrites(), status.GetKernelObjectsWritten(), status.GetDrift())
	}
	stop()

	if out, err := n.remove(); err != nil {
		t.Fatalf("remove: %v\n%s", err, out)
	}
	if _, err := n.ns.Try("nft", "list", "table", "inet", "podwire"); err == nil {
		t.Error("the table is still there")
	}
	if _, err := n.ns.Try("ip", "link", "show", "pwvx"); err == nil {
		t.Error("the fabric's device is still there")
	}
	if got := n.ns.Sysctl("net/ipv4/ip_forward"); got != before {
		t.Errorf("ip_forward is %s, was %s", got, before)
	}
	if out, err := n.remove(); err != nil {
		t.Errorf("again: %v\n%s", err, out)
	}
}

// What somebody else changes is put back within seconds; that it was is told afterwards, too.
func TestAChangedSettingIsTold(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	_, stop := n.start()
	defer stop()
	n.ns.SetSysctl("net/ipv4/ip_forward", "0")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		st, err := n.status(ctx)
		if err != nil {
			t.Fatalf("the change was never told: %v", err)
		}
		wrong := slices.ContainsFunc(st.GetSettings(), func(s *nodeagentv1.HostSetting) bool {
			return s.GetName() == "net/ipv4/ip_forward" && s.GetActual() != s.GetWanted()
		})
		told := slices.ContainsFunc(st.GetWarnings(), func(w string) bool {
			return strings.Contains(w, `net/ipv4/ip_forward: somebody else changed it to "0"; put back to "1" once`)
		})
		if !wrong && !told {
			t.Fatalf("it is shown neither as wrong nor as mended\n%v", st)
		}
		if told {
			break
		}
		<-look.C
	}
	if got := n.ns.Sysctl("net/ipv4/ip_forward"); got != "1" {
		t.Errorf("ip_forward is %s", got)
	}
}

func (n *node) remove() (string, error) {
	cmd := exec.Command("/proc/self/exe", asAgent, "remove", "--config", n.config)
	var out strings.Builder
	cmd.Stderr = &out
	err := n.ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

func TestAnAgentWithoutItsUnderlay(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ns.Run("ip", "address", "del", "172.30.9.2/24", "dev", "eth0")
	cmd := exec.Command("/proc/self/exe", asAgent, "--config", n.config)
	var log strings.Builder
	cmd.Stderr = &log
	if err := n.ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(log.String(), "172.30.9.2") {
		t.Errorf("%v\n%s", err, log.String())
	}
}
