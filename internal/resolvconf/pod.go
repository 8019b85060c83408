package resolvconf

import (
	"net/netip"
	"slices"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Limits of a resolv.conf (Kubernetes, "DNS for Services and Pods", and the C library).
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchBytes = 2048
)

// Cluster is what the node knows about the cluster's DNS.
type Cluster struct {
	// Domain is the cluster domain, without a final dot.
	Domain string
	// DNS are the addresses of kube-system/kube-dns.
	DNS []netip.Addr
}

// Pod is what of a Pod matters here: spec.dnsPolicy, spec.dnsConfig and what they depend on.
type Pod struct {
	Namespace   string
	HostNetwork bool
	// Policy is ClusterFirst, ClusterFirstWithHostNet, Default or None.
	Policy      string
	Nameservers []netip.Addr
	Searches    []string
	// Options are as they stand in the file: "ndots:2", "edns0".
	Options []string
}

// PodOf reads it from an object. A server that is no address is left out, as no resolver could ask it.
func PodOf(o *objectv1.Pod) Pod {
	spec := o.GetSpec()
	p := Pod{
		Namespace: o.GetMetadata().GetNamespace(), HostNetwork: spec.GetHostNetwork(), Policy: "ClusterFirst",
		Searches: spec.GetDnsConfig().GetSearches(),
	}
	if spec.GetDnsPolicy() != "" {
		p.Policy = spec.GetDnsPolicy()
	}
	for _, text := range spec.GetDnsConfig().GetNameservers() {
		if a, err := netip.ParseAddr(text); err == nil {
			p.Nameservers = append(p.Nameservers, a)
		}
	}
	for _, opt := range spec.GetDnsConfig().GetOptions() {
		text := opt.GetName()
		if opt.Value != nil {
			text += ":" + opt.GetValue()
		}
		p.Options = append(p.Options, text)
	}
	return p
}

// For is the Pod's resolv.conf (Kubernetes, "DNS for Services and Pods"). node is that of its node.
func For(p Pod, cluster Cluster, node Conf) Conf {
	var c Conf
	switch policy := p.Policy; {
	case policy == "None":
	case policy == "Default", len(cluster.DNS) == 0, policy == "ClusterFirst" && p.HostNetwork:
		c = node
	default:
		svc := "svc." + cluster.Domain
		c = Conf{
			Nameservers: cluster.DNS,
			Searches:    append([]string{p.Namespace + "." + svc, svc, cluster.Domain}, node.Searches...),
			Options:     []string{"ndots:5"},
		}
	}
	c.Nameservers = unique(append(slices.Clone(c.Nameservers), p.Nameservers...))
	c.Searches = unique(append(slices.Clone(c.Searches), p.Searches...))
	c.Options = mergeOptions(c.Options, p.Options)
	return c.limited()
}

func unique[T comparable](in []T) []T {
	var out []T
	for _, v := range in {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// mergeOptions puts the Pod's options over the policy's of the same name.
func mergeOptions(base, own []string) []string {
	name := func(o string) string { n, _, _ := strings.Cut(o, ":"); return n }
	out := slices.Clone(base)
	for _, o := range own {
		i := slices.IndexFunc(out, func(b string) bool { return name(b) == name(o) })
		if i >= 0 {
			out[i] = o
		} else {
			out = append(out, o)
		}
	}
	return out
}

// limited drops what resolvers would not read, from the end.
func (c Conf) limited() Conf {
	if len(c.Nameservers) > maxNameservers {
		c.Nameservers = c.Nameservers[:maxNameservers]
	}
	if len(c.Searches) > maxSearches {
		c.Searches = c.Searches[:maxSearches]
	}
	for len(strings.Join(c.Searches, " ")) > maxSearchBytes {
		c.Searches = c.Searches[:len(c.Searches)-1]
	}
	return c
}
