package up_test

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"podwire.dev/cmd/podwire/internal/etcdserver"
	"podwire.dev/internal/daemon"
	"podwire.dev/internal/pki"
	cluster "podwire.dev/services/cluster/app"
	dns "podwire.dev/services/dns/app"
	ingress "podwire.dev/services/ingress/app"
	ipam "podwire.dev/services/ipam/app"
	nodeagent "podwire.dev/services/nodeagent/app"
	policy "podwire.dev/services/policy/app"
	svcproxy "podwire.dev/services/svcproxy/app"
)

// composeDir has the stack, and the configurations that its containers read.
const composeDir = "../../../../deploy/compose"

// composeFile is what these tests read of a compose.yaml (compose-spec).
type composeFile struct {
	Services map[string]composeService
	Networks map[string]struct {
		IPAM struct {
			Config []struct {
				Subnet  netip.Prefix
				IPRange netip.Prefix `yaml:"ip_range"`
				Gateway netip.Addr
			}
		}
	}
	Volumes map[string]any
}

type composeService struct {
	Image         string
	PullPolicy    string `yaml:"pull_policy"`
	Command       []string
	User          string
	Privileged    bool
	ReadOnly      bool     `yaml:"read_only"`
	CapDrop       []string `yaml:"cap_drop"`
	CapAdd        []string `yaml:"cap_add"`
	GroupAdd      []string `yaml:"group_add"`
	ContainerName string   `yaml:"container_name"`
	Ports         []any
	Restart       string
	Healthcheck   struct{ Test []string }
	Volumes       []string
	// Networks are a list of names, or a map of them to addresses.
	Networks yaml.Node
}

// mount is one of a service's volumes: of a name, of a file beside compose.yaml, or of nobody else.
type mount struct{ source, target string }

func (s composeService) mounts() (list []mount) {
	for _, text := range s.Volumes {
		source, target, _ := strings.Cut(strings.TrimSuffix(text, ":ro"), ":")
		if target == "" {
			source, target = "", source
		}
		list = append(list, mount{source, target})
	}
	return list
}

// at is the volume that a path of the container lies in.
func (s composeService) at(path string) (m mount, found bool) {
	for _, c := range s.mounts() {
		if (path == c.target || strings.HasPrefix(path, c.target+"/")) && len(c.target) > len(m.target) {
			m, found = c, true
		}
	}
	return m, found
}

// addresses are the fixed ones, sorted.
func (s composeService) addresses(t *testing.T) (list []netip.Addr) {
	t.Helper()
	if s.Networks.Kind != yaml.MappingNode {
		return nil
	}
	var networks map[string]map[string]netip.Addr
	if err := s.Networks.Decode(&networks); err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		list = slices.AppendSeq(list, maps.Values(n))
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(composeDir, "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var c composeFile
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Services) == 0 || len(c.Networks) != 1 {
		t.Fatalf("%d services, %d networks", len(c.Services), len(c.Networks))
	}
	return c
}

// loaded is one configuration of the stack: the common part, and the further paths that it names.
type loaded struct {
	daemon.Common
	paths []string
}

// configurations are those of all services of the stack that read one, loaded as the services load them.
func configurations(t *testing.T) map[string]loaded {
	t.Helper()
	agent := func(name string) loaded {
		c := load[nodeagent.Config](t, name)
		return loaded{c.Common, []string{c.State}}
	}
	store, authority := load[etcdserver.Config](t, "etcd"), load[cluster.Config](t, "cluster")
	doors := load[ingress.Config](t, "ingress")
	return map[string]loaded{
		"etcd":     {store.Common, []string{store.DataDir}},
		"cluster":  {authority.Common, []string{authority.CADir}},
		"ipam":     {load[ipam.Config](t, "ipam").Common, nil},
		"svcproxy": {load[svcproxy.Config](t, "svcproxy").Common, nil},
		"policy":   {load[policy.Config](t, "policy").Common, nil},
		"dns":      {load[dns.Config](t, "dns").Common, nil},
		"ingress":  {doors.Common, []string{doors.SecretsKey}},
		"node-1":   agent("node-1"), "node-2": agent("node-2"), "node-3": agent("node-3"),
	}
}

func load[T any](t *testing.T, name string) T {
	t.Helper()
	c, err := daemon.Load[T](filepath.Join(composeDir, name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// scalable are the services that have several replicas: nothing about them may be one container's.
var scalable = []string{"cluster", "ipam", "svcproxy", "policy", "dns", "ingress"}

func TestComposeContainers(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	images := map[string]bool{}
	for name, s := range c.Services {
		images[s.Image] = true
		if s.PullPolicy != "never" || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || s.Restart == "" {
			t.Errorf("%s: must pull nothing, have a read-only root, drop all capabilities and say when it restarts: %+v", name, s)
		}
		if s.Privileged || len(s.Ports) > 0 || s.ContainerName != "" {
			t.Errorf("%s: must not be privileged, publish a port or have a name of its own", name)
		}
		if slices.Contains(scalable, name) && s.addresses(t) != nil {
			t.Errorf("%s: must not have a fixed address", name)
		}
		if len(s.Healthcheck.Test) == 0 && name != "pki" && name != "outside" {
			t.Errorf("%s: has no health check", name)
		}
		for _, m := range s.mounts() {
			_, named := c.Volumes[m.source]
			if _, err := os.Stat(filepath.Join(composeDir, m.source)); m.source != "" && !named && err != nil {
				t.Errorf("%s: mounts %q, which is neither a volume nor a file beside compose.yaml", name, m.source)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(composeDir, "images", "*.Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	var built []string
	for _, f := range files {
		built = append(built, "podwire/"+strings.TrimSuffix(filepath.Base(f), ".Dockerfile"))
	}
	if used := slices.Sorted(maps.Keys(images)); !slices.Equal(used, built) {
		t.Errorf("the containers use the images %q, and %q are built", used, built)
	}
}

// TestComposeConfigurations loads every file as its service does, and looks for each path in its container.
func TestComposeConfigurations(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	makes := c.Services["pki"]
	var joins []string
	for name, config := range configurations(t) {
		s := c.Services[name]
		paths := append([]string{config.Identity}, config.paths...)
		if j := config.Join; j != nil {
			paths = append(paths, j.TokenFile, j.CAFile)
			id := pki.Service(name)
			if strings.HasPrefix(name, "node-") {
				id = pki.Node(name)
			}
			joins = append(joins, id.String())
			own, _ := s.at(j.TokenFile)
			given := mount{own.source, fmt.Sprintf("/pki/join/%s-%s", id.Kind, id.Name)}
			if !slices.Contains(makes.mounts(), given) {
				t.Errorf("%s: mounts %s at %s, which pki does not hand out for %s", name, own.source, own.target, id)
			}
		}
		for _, path := range paths {
			if _, found := s.at(path); !found {
				t.Errorf("%s: its configuration says %s, where no volume is mounted", name, path)
			}
		}
		if want := (mount{"./" + name + ".yaml", configOf(s)}); !slices.Contains(s.mounts(), want) {
			t.Errorf("%s: must mount %s at %s, as its command says", name, want.source, want.target)
		}
	}
	var given []string
	for _, arg := range makes.Command {
		for flag, id := range map[string]func(string) pki.Identity{"--service=": pki.Service, "--node=": pki.Node} {
			if names, ok := strings.CutPrefix(arg, flag); ok {
				for name := range strings.SplitSeq(names, ",") {
					given = append(given, id(name).String())
				}
			}
		}
	}
	slices.Sort(joins)
	slices.Sort(given)
	if !slices.Equal(joins, given) {
		t.Errorf("pki makes tokens for %q, and %q join", given, joins)
	}
}

// configOf is the file that a container's command names.
func configOf(s composeService) string {
	if i := slices.Index(s.Command, "--config"); i >= 0 && i+1 < len(s.Command) {
		return s.Command[i+1]
	}
	return ""
}

func TestComposeAddresses(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	var dynamic, subnets []netip.Prefix
	for _, n := range c.Networks["underlay"].IPAM.Config {
		subnets, dynamic = append(subnets, n.Subnet), append(dynamic, n.IPRange)
		if !n.Subnet.Contains(n.IPRange.Addr()) || !n.Subnet.Contains(n.Gateway) {
			t.Errorf("subnet %s has range %s and gateway %s", n.Subnet, n.IPRange, n.Gateway)
		}
	}
	ours := load[ipam.Config](t, "ipam")
	for _, text := range slices.Concat(ours.Pods, ours.Services) {
		for _, subnet := range subnets {
			if subnet.Overlaps(netip.MustParsePrefix(text)) {
				t.Errorf("%s overlaps the underlay %s", text, subnet)
			}
		}
	}
	fixed := map[netip.Addr]string{}
	for name, s := range c.Services {
		for _, a := range s.addresses(t) {
			fixed[a] = name
		}
	}
	for _, text := range ours.LoadBalancers {
		first, last := ends(t, text)
		if within(subnets, first) != within(subnets, last) || !within(subnets, first).IsValid() {
			t.Errorf("load balancer addresses %s are not in one subnet of the underlay", text)
		}
		for _, d := range dynamic {
			if d.Overlaps(netip.PrefixFrom(first, first.BitLen())) || d.Overlaps(netip.PrefixFrom(last, last.BitLen())) ||
				first.Less(d.Addr()) && d.Addr().Less(last) {
				t.Errorf("load balancer addresses %s are given to containers, too: %s", text, d)
			}
		}
		for a, name := range fixed {
			if !a.Less(first) && !last.Less(a) {
				t.Errorf("load balancer addresses %s hold %s of %s", text, a, name)
			}
		}
	}
	served := load[svcproxy.Config](t, "svcproxy")
	for _, name := range []string{"node-1", "node-2", "node-3"} {
		agent := load[nodeagent.Config](t, name)
		var said []netip.Addr
		for _, text := range agent.Underlay {
			a := netip.MustParseAddr(text)
			said = append(said, a)
			if within(dynamic, a).IsValid() || !within(subnets, a).IsValid() {
				t.Errorf("%s: %s must be in the underlay, and not among what Docker gives away", name, a)
			}
		}
		slices.SortFunc(said, netip.Addr.Compare)
		if got := c.Services[name].addresses(t); !slices.Equal(got, said) {
			t.Errorf("%s: the container has %s, the agent says %s", name, got, said)
		}
		if agent.Node != name || !slices.Equal(agent.ClusterDNS, served.ClusterDNS) || agent.ClusterDomain != served.ClusterDomain {
			t.Errorf("%s: node %s, clusterDNS %s and clusterDomain %s do not agree with svcproxy", name, agent.Node, agent.ClusterDNS, agent.ClusterDomain)
		}
	}
}

// ends are the first and the last address of a CIDR or of first-last.
func ends(t *testing.T, text string) (first, last netip.Addr) {
	t.Helper()
	if from, to, ok := strings.Cut(text, "-"); ok {
		return netip.MustParseAddr(from), netip.MustParseAddr(to)
	}
	p := netip.MustParsePrefix(text)
	bytes := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 1 << (7 - i%8)
	}
	last, _ = netip.AddrFromSlice(bytes)
	return p.Masked().Addr(), last
}

// within is the prefix that has an address; none is invalid.
func within(list []netip.Prefix, a netip.Addr) netip.Prefix {
	for _, p := range list {
		if p.Contains(a) {
			return p
		}
	}
	return netip.Prefix{}
}
