package up

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"

	"podwire.dev/cmd/podwire/internal/lab"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/cmd/podwire/internal/supervise"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

// instance is one Podwire on this machine: everything about it follows from its directory and its options.
type instance struct {
	dir  statedir.Dir
	opts Options
}

const (
	grpcPort      = "7443"
	etcdPort      = "2379"
	vxlanPort     = 8472
	dnsPort       = 53
	clusterDomain = "cluster.local"
	nodePorts     = "30000-32767"
	// kubeDNSHost is the address of kube-system/kube-dns in each Service range.
	kubeDNSHost = 10
	// etcd is stopped after its clients.
	lastTurn = 1
)

// joiners is where in serviceNames those begin that join: etcd and cluster have their leaves from the start.
const joiners = 2

// agentPeers are the services that agents need.
func agentPeers() []string { return []string{"cluster", "ipam", "svcproxy", "policy"} }

// agentName is the service that runs on nodes.
const agentName = "nodeagent"

// pkiPlan is what gets join tokens.
func (i instance) pkiPlan() pki.Plan {
	return pki.Plan{Services: serviceNames()[joiners:], Nodes: i.opts.nodeNames()}
}

// address is the IPv4 address of a service on the underlay: what others dial.
func (i instance) address(service string) netip.Addr {
	return host(i.opts.Underlay[0], firstServiceHost+slices.Index(serviceNames(), service))
}

func (i instance) target(service string) string {
	return net.JoinHostPort(i.address(service).String(), grpcPort)
}

func (i instance) nodeAddresses(n int) []netip.Prefix { return i.opts.hosts(firstNodeHost + n - 1) }

// lab is what the kernel is to hold.
func (i instance) lab() lab.Plan {
	p := lab.Plan{Dir: i.dir, Bridge: i.opts.hosts(bridgeHost)}
	for n, service := range serviceNames() {
		p.Members = append(p.Members, lab.Member{Name: statedir.ServiceNS(service), Addresses: i.opts.hosts(firstServiceHost + n)})
	}
	p.Members = append(p.Members, lab.Member{Name: statedir.Outside, Addresses: i.opts.hosts(outsideHost)})
	for n, node := range i.opts.nodeNames() {
		p.Members = append(p.Members, lab.Member{
			Name: node, Addresses: i.nodeAddresses(n + 1),
			Paths: map[string]string{
				i.dir.Node(node, "opt", "cni", "bin"):   "/opt/cni/bin",
				i.dir.Node(node, "etc", "cni", "net.d"): "/etc/cni/net.d",
			},
		})
	}
	return p
}

// children are the processes, each with the file that it reads.
func (i instance) children() []supervise.Child {
	var out []supervise.Child
	for _, service := range serviceNames() {
		c := supervise.Child{Name: service, Args: i.args(service, service), Net: i.dir.NetNS(statedir.ServiceNS(service))}
		if service == "etcd" {
			c.Turn = lastTurn
		}
		out = append(out, c)
	}
	for _, node := range i.opts.nodeNames() {
		out = append(out, supervise.Child{Name: node, Args: i.args(agentName, node), Net: i.dir.NetNS(node), Mount: i.dir.MountNS(node)})
	}
	return out
}

func (i instance) args(service, child string) []string {
	return []string{"podwire", "serve", service, "--config", i.dir.Config(child)}
}

// config is what a child reads. Each service has some of these keys and refuses all others.
type config struct {
	Listen    string            `yaml:"listen,omitempty"`
	Socket    string            `yaml:"socket,omitempty"`
	Identity  string            `yaml:"identity"`
	Advertise string            `yaml:"advertise,omitempty"`
	Join      *join             `yaml:"join,omitempty"`
	Etcd      *etcd             `yaml:"etcd,omitempty"`
	Peers     map[string]string `yaml:"peers,omitempty"`

	DataDir string `yaml:"dataDir,omitempty"` // etcd

	Required []string `yaml:"required,omitempty"` // cluster
	CADir    string   `yaml:"caDir,omitempty"`

	Pods          []netip.Prefix `yaml:"pods,omitempty"` // ipam
	Services      []netip.Prefix `yaml:"services,omitempty"`
	LoadBalancers []string       `yaml:"loadBalancers,omitempty"`
	NodePorts     string         `yaml:"nodePorts,omitempty"`

	ClusterDomain string       `yaml:"clusterDomain,omitempty"` // cluster, svcproxy, dns, nodeagent
	ClusterDNS    []netip.Addr `yaml:"clusterDNS,omitempty"`

	Member       *memberPlace   `yaml:"member,omitempty"` // dns, ingress
	Ranges       []netip.Prefix `yaml:"ranges,omitempty"` // dns
	Forward      *forward       `yaml:"forward,omitempty"`
	IngressClass *ingressClass  `yaml:"ingressClass,omitempty"` // ingress
	SecretsKey   string         `yaml:"secretsKey,omitempty"`

	Node             string       `yaml:"node,omitempty"` // nodeagent
	Underlay         []netip.Addr `yaml:"underlay,omitempty"`
	State            string       `yaml:"state,omitempty"`
	VXLANPort        int          `yaml:"vxlanPort,omitempty"`
	SubstituteImages bool         `yaml:"substituteImages,omitempty"`
}

type memberPlace struct {
	Name      string       `yaml:"name"`
	Underlay  []netip.Addr `yaml:"underlay"`
	VXLANPort int          `yaml:"vxlanPort"`
}

type forward struct {
	Upstreams []netip.AddrPort `yaml:"upstreams"`
}

type ingressClass struct {
	Name    string `yaml:"name"`
	Default bool   `yaml:"default"`
}

type join struct {
	Target    string `yaml:"target"`
	TokenFile string `yaml:"tokenFile"`
	CAFile    string `yaml:"caFile"`
}

type etcd struct {
	Endpoints []string `yaml:"endpoints"`
}

// configs are the children's files, by child.
func (i instance) configs() map[string]config {
	out := map[string]config{}
	for _, service := range serviceNames() {
		out[service] = i.serviceConfig(service)
	}
	for n, node := range i.opts.nodeNames() {
		out[node] = i.agentConfig(n+1, node)
	}
	return out
}

func (i instance) serviceConfig(service string) config {
	if service == "etcd" {
		return config{
			Listen:   net.JoinHostPort(i.address(service).String(), etcdPort),
			Identity: i.dir.Identity(service), DataDir: i.dir.Path("etcd"),
		}
	}
	c := config{
		Listen: ":" + grpcPort, Socket: i.dir.Socket(service), Identity: i.dir.Identity(service), Advertise: i.target(service),
		Etcd:  &etcd{Endpoints: []string{"https://" + net.JoinHostPort(i.address("etcd").String(), etcdPort)}},
		Peers: map[string]string{},
	}
	if service != "cluster" {
		c.Join = i.join(pki.Service(service))
	}
	switch service {
	case "cluster":
		c.Required = serviceNames()[1:]
		c.CADir, c.ClusterDomain = i.dir.Path("pki"), clusterDomain
	case "ipam":
		c.Pods, c.Services, c.NodePorts = i.opts.Pods, i.opts.Services, nodePorts
		for _, p := range i.opts.Underlay {
			c.LoadBalancers = append(c.LoadBalancers, host(p, firstLBHost).String()+"-"+host(p, lastLBHost).String())
		}
	case "svcproxy":
		c.ClusterDomain, c.ClusterDNS = clusterDomain, i.clusterDNS()
		c.Peers["ipam"] = i.target("ipam")
	case "dns":
		i.place(&c, service)
		c.ClusterDomain, c.Ranges = clusterDomain, slices.Concat(i.opts.Pods, i.opts.Services)
		c.Forward = &forward{Upstreams: []netip.AddrPort{netip.AddrPortFrom(i.opts.hosts(outsideHost)[0].Addr(), dnsPort)}}
	case "ingress":
		i.place(&c, service)
		c.IngressClass = &ingressClass{Name: "nginx-example", Default: true}
		c.SecretsKey = i.dir.Path("pki", pki.SecretsKeyFile)
	}
	return c
}

// place gives a service's replica its place in the fabric.
func (i instance) place(c *config, service string) {
	c.Member = &memberPlace{Name: memberName(service), VXLANPort: vxlanPort}
	for _, p := range i.opts.hosts(firstServiceHost + slices.Index(serviceNames(), service)) {
		c.Member.Underlay = append(c.Member.Underlay, p.Addr())
	}
	for _, peer := range []string{"cluster", "ipam"} {
		c.Peers[peer] = i.target(peer)
	}
}

func (i instance) agentConfig(n int, node string) config {
	c := config{
		Listen: ":" + grpcPort, Socket: i.dir.AgentSocket(node), Identity: i.dir.Node(node, "identity"),
		Join:  i.join(pki.Node(node)),
		Peers: map[string]string{},
		Node:  node, State: i.dir.Node(node, "state"), VXLANPort: vxlanPort,
		ClusterDomain: clusterDomain, ClusterDNS: i.clusterDNS(), SubstituteImages: i.opts.SubstituteImages,
	}
	for _, p := range i.nodeAddresses(n) {
		c.Underlay = append(c.Underlay, p.Addr())
	}
	c.Advertise = net.JoinHostPort(c.Underlay[0].String(), grpcPort)
	for _, service := range agentPeers() {
		c.Peers[service] = i.target(service)
	}
	return c
}

func (i instance) join(id pki.Identity) *join {
	dir := i.dir.Path("pki")
	return &join{Target: i.target("cluster"), TokenFile: pki.TokenFile(dir, id), CAFile: i.dir.Path("pki", pki.CACertFile)}
}

func (i instance) clusterDNS() []netip.Addr {
	var out []netip.Addr
	for _, p := range i.opts.Services {
		out = append(out, host(p, kubeDNSHost))
	}
	return out
}

// supervisorName is the service that keeps the others.
const supervisorName = "supervisor"

// supervisorConfig is the file that the supervisor reads.
type supervisorConfig struct {
	State    string            `yaml:"state"`
	Children []supervise.Child `yaml:"children"`
}

// write writes every child's file, and the supervisor's, and returns how many differed.
func (i instance) write() (int, error) {
	changed := 0
	put := func(child string, content any) error {
		var text bytes.Buffer
		text.WriteString("# Written by `podwire up`.\n")
		enc := yaml.NewEncoder(&text)
		if err := enc.Encode(content); err != nil {
			return errs.WrapAs(errs.Internal, err, "configuration of %s", child)
		}
		if old, err := os.ReadFile(i.dir.Config(child)); err == nil && bytes.Equal(old, text.Bytes()) {
			return nil
		}
		changed++
		return statedir.WriteFile(i.dir.Config(child), text.Bytes(), 0o644)
	}
	for child, c := range i.configs() {
		if err := put(child, c); err != nil {
			return changed, err
		}
	}
	return changed, put(supervisorName, supervisorConfig{State: string(i.dir), Children: i.children()})
}
