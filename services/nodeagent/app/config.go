package app

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/services/nodeagent/internal/addresses"
)

// Config is the configuration file.
type Config struct {
	daemon.Common `yaml:",inline"`
	// Node is the name of the Node object.
	Node string `yaml:"node"`
	// Underlay are addresses of this host that the other members reach, at most one of each family; the tunnel ends at the
	// first.
	Underlay []string `yaml:"underlay"`
	// Zone is the Node's topology.kubernetes.io/zone; empty for none.
	Zone string `yaml:"zone"`
	// Labels are further labels of the Node.
	Labels map[string]string `yaml:"labels"`
	// State is the directory of everything that a restarted agent must find.
	State string `yaml:"state"`
	// ClusterDNS are the addresses of kube-system/kube-dns, and ClusterDomain is the cluster's domain, for the pods'
	// resolv.conf.
	ClusterDNS    []string `yaml:"clusterDNS"`
	ClusterDomain string   `yaml:"clusterDomain"`
	// Families are those of every pod, the primary first, IPv4 and IPv6; empty: those of ClusterDNS, in that order.
	Families []string `yaml:"families"`
	// SubstituteImages runs the built-in image in the place of one that no driver can run.
	SubstituteImages bool `yaml:"substituteImages"`
	// VXLANPort is the UDP port of the tunnel, the same on every member.
	VXLANPort uint16 `yaml:"vxlanPort"`
	// TunnelPeers are prefixes from which tunnel packets are let in where another firewall of this host drops; empty: the
	// prefix of the underlay address.
	TunnelPeers []string `yaml:"tunnelPeers"`
	// AgentTarget is the gRPC target at which others dial this agent; empty: the unix socket, or else the advertised or
	// the underlay address.
	AgentTarget string `yaml:"agentTarget"`
}

// SetDefaults fills in what a file may leave out.
func (c *Config) SetDefaults() {
	c.ClusterDomain = "cluster.local"
	c.VXLANPort = fabric.DefaultPort
}

// Check returns what is wrong with the agent's own keys.
func (c *Config) Check() []errs.Violation {
	_, violations := c.parse()
	return violations
}

// settings is a Config, parsed.
type settings struct {
	Config
	underlay    []netip.Addr
	dns         []netip.Addr
	families    []addresses.Family
	tunnelPeers []netip.Prefix
	target      string
}

func (c *Config) parse() (settings, []errs.Violation) {
	s := settings{Config: *c}
	var out []errs.Violation
	bad := func(field, value, rule string) {
		out = append(out, errs.Violation{Field: field, Value: value, Rule: rule})
	}
	if c.Node == "" || strings.ContainsAny(c.Node, "/ \n") {
		bad("node", c.Node, "is required: the name of this node")
	}
	if !filepath.IsAbs(c.State) {
		bad("state", c.State, "must be an absolute path of a directory that survives restarts")
	}
	if c.VXLANPort == 0 {
		bad("vxlanPort", "0", "must be between 1 and 65535")
	}
	if len(c.Underlay) == 0 {
		bad("underlay", "", "is required: addresses of this host that the other members reach")
	}
	s.underlay = addrs("underlay", c.Underlay, bad)
	s.dns = addrs("clusterDNS", c.ClusterDNS, bad)
	for i, text := range c.TunnelPeers {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			bad(fmt.Sprintf("tunnelPeers[%d]", i), text, "must be a prefix such as 192.0.2.0/24")
			continue
		}
		s.tunnelPeers = append(s.tunnelPeers, p)
	}
	for _, source := range sources {
		name := string(source)
		if c.Peers[name] == "" {
			bad("peers."+name, "", "is required: the gRPC target of "+name)
		}
	}
	s.families = c.families(s.dns, bad)
	s.target = c.target(s.underlay)
	return s, out
}

// addrs parses addresses, at most one of each family.
func addrs(field string, texts []string, bad func(field, value, rule string)) (list []netip.Addr) {
	seen := map[bool]bool{}
	for i, text := range texts {
		a, err := netip.ParseAddr(text)
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case err != nil || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback():
			bad(at, text, "must be an IPv4 or IPv6 address of a host")
		case seen[a.Is4()]:
			bad(at, text, "must be the only one of its family")
		default:
			seen[a.Is4()] = true
			list = append(list, a)
		}
	}
	return list
}

func (c *Config) families(dns []netip.Addr, bad func(field, value, rule string)) (list []addresses.Family) {
	names := map[string]addresses.Family{addresses.IPv4.String(): addresses.IPv4, addresses.IPv6.String(): addresses.IPv6}
	for i, name := range c.Families {
		f, ok := names[name]
		if !ok || slices.Contains(list, f) {
			bad(fmt.Sprintf("families[%d]", i), name, "must be IPv4 or IPv6, each at most once")
			continue
		}
		list = append(list, f)
	}
	if len(c.Families) == 0 {
		for _, a := range dns {
			f := addresses.IPv6
			if a.Is4() {
				f = addresses.IPv4
			}
			list = append(list, f)
		}
	}
	if len(list) == 0 && len(c.Families) == 0 && len(c.ClusterDNS) == 0 {
		bad("families", "", "is required where clusterDNS is empty: the families of the cluster's pods, the primary first")
	}
	return list
}

// target is how others dial this agent.
func (c *Config) target(underlay []netip.Addr) string {
	if c.AgentTarget != "" {
		return c.AgentTarget
	}
	if c.Socket != "" {
		return "unix://" + c.Socket
	}
	if c.Advertise != "" {
		return c.Advertise
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return ""
	}
	if a, err := netip.ParseAddr(host); (host == "" || err == nil && a.IsUnspecified()) && len(underlay) > 0 {
		host = underlay[0].String()
	}
	return net.JoinHostPort(host, port)
}

// nodeLabels are the labels that the configuration gives the Node.
func (c *Config) nodeLabels() map[string]string {
	labels := maps.Clone(c.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if c.Zone != "" {
		labels["topology.kubernetes.io/zone"] = c.Zone
	}
	return labels
}
