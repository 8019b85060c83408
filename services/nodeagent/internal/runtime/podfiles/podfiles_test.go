package podfiles

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"podwire.dev/internal/resolvconf"
	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestHosts(t *testing.T) {
	p := podspec.Pod{Namespace: "ns", Name: "web-0", Hostname: "web-0", Subdomain: "web",
		HostAliases: []podspec.HostAlias{{IP: netip.MustParseAddr("127.0.0.1"), Hostnames: []string{"foo.local", "bar.local"}}}}
	got := Hosts(p, addrs("10.244.0.5", "fd00::5"), "cluster.local")
	want := "# Kubernetes-managed hosts file.\n" + localhostLines +
		"10.244.0.5\tweb-0.web.ns.svc.cluster.local\tweb-0\nfd00::5\tweb-0.web.ns.svc.cluster.local\tweb-0\n" +
		"\n# Entries added by HostAliases.\n127.0.0.1\tfoo.local\tbar.local\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := HostNetworkHosts(podspec.Pod{}, "127.0.0.1 localhost\n"); !strings.HasSuffix(got, "(host network).\n127.0.0.1 localhost\n") {
		t.Errorf("%q", got)
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 62) + "-bcd"
	for _, c := range []struct {
		pod  podspec.Pod
		want string
	}{
		{podspec.Pod{Name: "web"}, "web"},
		{podspec.Pod{Name: "web", Hostname: "h"}, "h"},
		{podspec.Pod{Name: long}, long[:62]},
		{podspec.Pod{Name: "web", Namespace: "n", Subdomain: "s", SetHostnameAsFQDN: true}, "web.s.n.svc.cluster.local"},
		{podspec.Pod{Name: "web", SetHostnameAsFQDN: true}, "web"},
	} {
		if got, err := Hostname(c.pod, "cluster.local"); got != c.want || err != nil {
			t.Errorf("%+v: %q, %v", c.pod, got, err)
		}
	}
	if _, err := Hostname(podspec.Pod{Name: long, Namespace: "n", Subdomain: "s", SetHostnameAsFQDN: true}, "cluster.local"); err == nil {
		t.Error("a host name that is too long was taken")
	}
}

func TestResolve(t *testing.T) {
	cluster := Cluster{Domain: "cluster.local", DNS: addrs("10.96.0.10", "fd00:10:96::a")}
	host := resolvconf.Conf{Nameservers: addrs("192.0.2.53"), Searches: []string{"corp.example"}, Options: []string{"rotate"}}
	many := podspec.DNS{Policy: "None", Nameservers: addrs("1.1.1.1", "2.2.2.2", "1.1.1.1", "3.3.3.3", "4.4.4.4")}
	for i := range 40 {
		many.Searches = append(many.Searches, fmt.Sprintf("s%d.example", i))
	}
	for name, c := range map[string]struct {
		pod  podspec.Pod
		want string
	}{
		"cluster first": {podspec.Pod{Namespace: "ns", DNS: podspec.DNS{Policy: "ClusterFirst"}},
			"search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\nnameserver fd00:10:96::a\noptions ndots:5\n"},
		"default": {podspec.Pod{DNS: podspec.DNS{Policy: "Default"}}, "search corp.example\nnameserver 192.0.2.53\noptions rotate\n"},
		"host network falls back": {podspec.Pod{HostNetwork: true, DNS: podspec.DNS{Policy: "ClusterFirst"}},
			"search corp.example\nnameserver 192.0.2.53\noptions rotate\n"},
		"host network asks for it": {podspec.Pod{Namespace: "n", HostNetwork: true, DNS: podspec.DNS{Policy: "ClusterFirstWithHostNet"}},
			"search n.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\nnameserver fd00:10:96::a\noptions ndots:5\n"},
		"merge": {podspec.Pod{Namespace: "ns", DNS: podspec.DNS{Policy: "ClusterFirst", Nameservers: addrs("9.9.9.9"), Searches: []string{"cluster.local", "my.dns"}, Options: []string{"ndots:2", "edns0"}}},
			"search ns.svc.cluster.local svc.cluster.local cluster.local corp.example my.dns\nnameserver 10.96.0.10\nnameserver fd00:10:96::a\nnameserver 9.9.9.9\noptions ndots:2 edns0\n"},
		"limits": {podspec.Pod{DNS: many}, "search " + strings.Join(many.Searches[:32], " ") + "\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n"},
	} {
		if got := Resolve(c.pod, cluster, host).String(); got != c.want {
			t.Errorf("%s: got\n%swant\n%s", name, got, c.want)
		}
	}
}
