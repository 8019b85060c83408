// Package podfiles writes the files that every Pod has of its own: /etc/hosts,
// /etc/resolv.conf and its host name.
//
// In: the Pod, its addresses and the node's resolver configuration. Out: file
// contents, byte for byte as a kubelet of the same configuration writes them where
// its documentation says how. Invariants: pure; equal input gives equal bytes. It
// must not read or write files.
package podfiles

import (
	"fmt"
	"net/netip"
	"strings"

	"podwire.dev/internal/resolvconf"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// maxHostname is HOST_NAME_MAX less one, where Kubernetes truncates.
const maxHostname = 63

// Hostname is what gethostname(2) says in the Pod: spec.hostname or the Pod's name,
// at most 63 bytes; the full domain name with setHostnameAsFQDN, which must fit
// (Kubernetes refuses it otherwise).
func Hostname(p podspec.Pod, clusterDomain string) (string, error) {
	short := shortName(p)
	fqdn := FQDN(p, clusterDomain)
	if !p.SetHostnameAsFQDN || fqdn == "" {
		return short, nil
	}
	if len(fqdn) > maxHostname+1 {
		return "", fmt.Errorf("host name %s is longer than %d bytes; shorten it or unset setHostnameAsFQDN", fqdn, maxHostname+1)
	}
	return fqdn, nil
}

func shortName(p podspec.Pod) string {
	name := p.Name
	if p.Hostname != "" {
		name = p.Hostname
	}
	if len(name) > maxHostname {
		name = strings.TrimRight(name[:maxHostname], "-.")
	}
	return name
}

// FQDN is the Pod's full name (Kubernetes DNS specification 1.1, section 2.4), empty
// without spec.subdomain.
func FQDN(p podspec.Pod, clusterDomain string) string {
	if p.Subdomain == "" {
		return ""
	}
	return strings.Join([]string{shortName(p), p.Subdomain, p.Namespace, "svc", clusterDomain}, ".")
}

const localhostLines = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::0	ip6-localnet
fe00::0	ip6-mcastprefix
fe00::1	ip6-allnodes
fe00::2	ip6-allrouters
`

// Hosts is /etc/hosts of a Pod with its own network namespace: each address of the Pod
// leads to its name, then come the hostAliases.
func Hosts(p podspec.Pod, podIPs []netip.Addr, clusterDomain string) string {
	var b strings.Builder
	b.WriteString("# Kubernetes-managed hosts file.\n" + localhostLines)
	for _, ip := range podIPs {
		b.WriteString(ip.String())
		if fqdn := FQDN(p, clusterDomain); fqdn != "" {
			b.WriteString("\t" + fqdn)
		}
		b.WriteString("\t" + shortName(p) + "\n")
	}
	writeAliases(&b, p.HostAliases)
	return b.String()
}

// HostNetworkHosts is /etc/hosts of a hostNetwork Pod: the node's, and the hostAliases.
func HostNetworkHosts(p podspec.Pod, nodeHosts string) string {
	var b strings.Builder
	b.WriteString("# Kubernetes-managed hosts file (host network).\n" + nodeHosts)
	writeAliases(&b, p.HostAliases)
	return b.String()
}

func writeAliases(b *strings.Builder, aliases []podspec.HostAlias) {
	if len(aliases) == 0 {
		return
	}
	b.WriteString("\n# Entries added by HostAliases.\n")
	for _, a := range aliases {
		b.WriteString(a.IP.String() + "\t" + strings.Join(a.Hostnames, "\t") + "\n")
	}
}

// Cluster is what the node knows about the cluster's DNS.
type Cluster = resolvconf.Cluster

// Resolve is the Pod's resolv.conf by its dnsPolicy and dnsConfig. node is the node's.
func Resolve(p podspec.Pod, cluster Cluster, node resolvconf.Conf) resolvconf.Conf {
	return resolvconf.For(resolvconf.Pod{
		Namespace: p.Namespace, HostNetwork: p.HostNetwork, Policy: p.DNS.Policy,
		Nameservers: p.DNS.Nameservers, Searches: p.DNS.Searches, Options: p.DNS.Options,
	}, cluster, node)
}
