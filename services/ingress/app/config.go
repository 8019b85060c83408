package app

import (
	"fmt"
	"net/netip"

	"podwire.dev/internal/daemon"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/member"
	"podwire.dev/internal/names"
	"podwire.dev/services/ingress/internal/proxy"
)

// Config is the configuration file. peers.cluster and peers.ipam are required.
type Config struct {
	daemon.Common `yaml:",inline"`
	// Member is the replica's place in the fabric.
	Member member.Config `yaml:"member"`
	// IngressClass is the class that is written where it does not exist. Whatever their names, all classes are served whose
	// spec.controller is podwire.dev/ingress.
	IngressClass IngressClass `yaml:"ingressClass"`
	// SecretsKey is the path of the file with the keys of Secrets, which `podwire pki init` makes.
	SecretsKey string `yaml:"secretsKey"`
	// TrustedProxies are the ranges of proxies in front, in CIDR form, whose X-Forwarded-* and X-Real-IP are believed.
	TrustedProxies []string `yaml:"trustedProxies"`
	// Limits bound what clients and endpoints can take.
	Limits proxy.Limits `yaml:"limits"`
}

// IngressClass is the class that the service founds.
type IngressClass struct {
	// Name is its name; empty founds none.
	Name string `yaml:"name"`
	// Default marks it as the class of Ingresses that name none.
	Default bool `yaml:"default"`
}

// SetDefaults fills in architecture's defaults.
func (c *Config) SetDefaults() {
	c.IngressClass.Name = "nginx-example"
	c.Limits = proxy.DefaultLimits()
}

// Check returns what is wrong with the service's own part.
func (c *Config) Check() []errs.Violation {
	_, out := c.trusted()
	for _, peer := range []string{"cluster", "ipam"} {
		if c.Peers[peer] == "" {
			out = append(out, errs.Violation{Field: "peers." + peer, Rule: fmt.Sprintf("is required: the gRPC target of %s, such as dns:///%[1]s:7443", peer)})
		}
	}
	if c.SecretsKey == "" {
		out = append(out, errs.Violation{Field: "secretsKey", Rule: "is required: the path of the file secrets.key that `podwire pki init` made"})
	}
	switch name := c.IngressClass.Name; {
	case name == "" && c.IngressClass.Default:
		out = append(out, errs.Violation{Field: "ingressClass.default", Value: "true", Rule: "needs ingressClass.name"})
	case name != "" && names.DNSSubdomain(name) != "":
		out = append(out, errs.Violation{Field: "ingressClass.name", Value: name, Rule: names.DNSSubdomain(name)})
	}
	out = append(out, c.Limits.Check()...)
	return append(out, c.Member.Check(Name)...)
}

func (c *Config) trusted() (list []netip.Prefix, bad []errs.Violation) {
	for i, text := range c.TrustedProxies {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			bad = append(bad, errs.Violation{Field: fmt.Sprintf("trustedProxies[%d]", i), Value: text, Rule: "must be a range in CIDR form, such as 10.0.0.0/8"})
			continue
		}
		list = append(list, p)
	}
	return list, bad
}
