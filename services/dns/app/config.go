package app

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/member"
	"podwire.dev/internal/names"
	"podwire.dev/services/dns/internal/forward"
)

// Config is the configuration file. peers.cluster and peers.ipam are required.
type Config struct {
	daemon.Common `yaml:",inline"`
	// Member is the replica's place in the fabric.
	Member member.Config `yaml:"member"`
	// ClusterDomain is the domain below which Services have their names. The agents and svcproxy are given the same.
	ClusterDomain string `yaml:"clusterDomain"`
	// Ranges are the cluster's addresses, in CIDR form: those of Pods and Services, as ipam's configuration has them. Their
	// reverse names are answered here and never forwarded.
	Ranges []string `yaml:"ranges"`
	// Forward says who is asked for names outside; neither of its keys: nobody, they are refused.
	Forward Forward `yaml:"forward"`
	// StubZones are zones outside that have servers of their own.
	StubZones []StubZone `yaml:"stubZones"`
	// Cache bounds what is kept of others' answers.
	Cache Cache `yaml:"cache"`
}

// Forward names the upstream servers, in one of two ways.
type Forward struct {
	// Upstreams are addresses with an optional port (53), in the order of preference.
	Upstreams []string `yaml:"upstreams"`
	// ResolvConf is the path of a resolv.conf whose nameservers they are; read again when it changes.
	ResolvConf string `yaml:"resolvConf"`
}

// StubZone is one zone with its servers.
type StubZone struct {
	Zone      string   `yaml:"zone"`
	Upstreams []string `yaml:"upstreams"`
}

// Cache bounds what is kept of others' answers.
type Cache struct {
	// Entries is the number of answers.
	Entries int `yaml:"entries"`
	// MaxTTL and MaxNegativeTTL bound for how long one is kept, whatever its own time is.
	MaxTTL         time.Duration `yaml:"maxTTL"`
	MaxNegativeTTL time.Duration `yaml:"maxNegativeTTL"`
}

const (
	dnsPort = 53
	// maxUpstreams bounds the servers of a zone: a question reaches only the first few.
	maxUpstreams = 15
	maxEntries   = 1_000_000
	maxMaxTTL    = 24 * time.Hour
)

// SetDefaults fills in architecture's defaults.
func (c *Config) SetDefaults() {
	c.ClusterDomain = "cluster.local"
	c.Ranges = []string{"10.244.0.0/16", "fd00:10:244::/48", "10.96.0.0/16", "fd00:10:96::/112"}
	c.Cache = Cache{Entries: forward.DefaultEntries, MaxTTL: forward.DefaultMaxTTL, MaxNegativeTTL: forward.DefaultMaxNegativeTTL}
}

// Check returns what is wrong with the service's own part.
func (c *Config) Check() []errs.Violation {
	_, out := c.settings()
	for _, peer := range []string{"cluster", "ipam"} {
		if c.Peers[peer] == "" {
			out = append(out, errs.Violation{Field: "peers." + peer, Rule: fmt.Sprintf("is required: the gRPC target of %s, such as dns:///%[1]s:7443", peer)})
		}
	}
	return append(out, c.Member.Check(Name)...)
}

// settings is the configuration as it is used.
type settings struct {
	domain    string
	ranges    []netip.Prefix
	upstreams []netip.AddrPort
	stubs     []forward.Stub
}

func (c *Config) settings() (settings, []errs.Violation) {
	s := settings{domain: strings.ToLower(strings.TrimSuffix(c.ClusterDomain, "."))}
	var out []errs.Violation
	bad := func(field, value, rule string) {
		out = append(out, errs.Violation{Field: field, Value: value, Rule: rule})
	}
	if rule := names.DNSSubdomain(s.domain); rule != "" {
		bad("clusterDomain", c.ClusterDomain, rule)
	}
	for i, text := range c.Ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() || p.Bits() == 0 || p.Addr().Is4In6() {
			bad(fmt.Sprintf("ranges[%d]", i), text, "must be an address range in CIDR form, such as 10.244.0.0/16")
			continue
		}
		s.ranges = append(s.ranges, p)
	}
	if len(c.Forward.Upstreams) > 0 && c.Forward.ResolvConf != "" {
		bad("forward", "", "must have at most one of upstreams and resolvConf")
	}
	var wrong []errs.Violation
	s.upstreams, wrong = upstreams("forward.upstreams", c.Forward.Upstreams)
	out = append(out, wrong...)
	seen := map[string]bool{}
	for i, z := range c.StubZones {
		field := fmt.Sprintf("stubZones[%d]", i)
		zone := dns.CanonicalName(z.Zone)
		switch _, ok := dns.IsDomainName(z.Zone); {
		case !ok || z.Zone == "" || zone == ".":
			bad(field+".zone", z.Zone, "must be a domain name, such as corp.example")
		case dns.IsSubDomain(s.domain+".", zone):
			bad(field+".zone", z.Zone, "must not be within clusterDomain, which is answered here alone")
		case seen[zone]:
			bad(field+".zone", z.Zone, "must not be given twice")
		}
		seen[zone] = true
		if len(z.Upstreams) == 0 {
			bad(field+".upstreams", "", "is required: one address with an optional port at least")
		}
		servers, wrong := upstreams(field+".upstreams", z.Upstreams)
		out = append(out, wrong...)
		s.stubs = append(s.stubs, forward.Stub{Zone: zone, Upstreams: servers})
	}
	if n := c.Cache.Entries; n < 1 || n > maxEntries {
		bad("cache.entries", fmt.Sprint(n), fmt.Sprintf("must be between 1 and %d", maxEntries))
	}
	for field, d := range map[string]time.Duration{"cache.maxTTL": c.Cache.MaxTTL, "cache.maxNegativeTTL": c.Cache.MaxNegativeTTL} {
		if d < time.Second || d > maxMaxTTL {
			bad(field, d.String(), "must be between 1s and 24h")
		}
	}
	return s, out
}

func upstreams(field string, texts []string) (list []netip.AddrPort, bad []errs.Violation) {
	if len(texts) > maxUpstreams {
		bad = append(bad, errs.Violation{Field: field, Rule: fmt.Sprintf("must be no more than %d", maxUpstreams)})
	}
	for i, text := range texts {
		a, err := netip.ParseAddrPort(text)
		if err != nil {
			var addr netip.Addr
			addr, err = netip.ParseAddr(text)
			a = netip.AddrPortFrom(addr, dnsPort)
		}
		if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
			bad = append(bad, errs.Violation{
				Field: fmt.Sprintf("%s[%d]", field, i), Value: text,
				Rule: "must be the address of a server with an optional port, such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53",
			})
			continue
		}
		list = append(list, a)
	}
	return list, bad
}
