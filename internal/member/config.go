package member

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/internal/names"
)

// Config is the part `member` of a service's configuration:
//
//	Member member.Config `yaml:"member"`
type Config struct {
	// Name of the replica, an RFC 1123 label that begins with the service's name and a dash; the name of its Pod in
	// kube-system. Empty: <service>-<host name>.
	Name string `yaml:"name"`
	// Underlay are addresses of this host that nodes reach, at most one of each family, the tunnel's end first. Empty: those
	// of the link with the default route, else of the only link beside loopback.
	Underlay []string `yaml:"underlay"`
	// VXLANPort is the UDP port of the tunnel, the same on every member; 0 is 8472.
	VXLANPort uint16 `yaml:"vxlanPort"`
}

// Check returns what is wrong with the configuration of a service's replica, as fields below "member".
func (c Config) Check(service string) []errs.Violation {
	_, out := c.underlay()
	if c.Name != "" {
		if rule := names.Member(service, c.Name); rule != "" {
			out = append(out, errs.Violation{Field: "member.name", Value: c.Name, Rule: rule})
		}
	}
	return out
}

func (c Config) underlay() (list []netip.Addr, bad []errs.Violation) {
	families := map[bool]bool{}
	for i, text := range c.Underlay {
		a, err := netip.ParseAddr(text)
		rule := ""
		switch {
		case err != nil || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast():
			rule = "must be an IPv4 or IPv6 address of this host"
		case families[a.Is4()]:
			rule = "must be the only one of its family"
		}
		if rule != "" {
			bad = append(bad, errs.Violation{Field: fmt.Sprintf("member.underlay[%d]", i), Value: text, Rule: rule})
			continue
		}
		families[a.Is4()] = true
		list = append(list, a)
	}
	return list, bad
}

// self is the configuration with what this host tells.
func (c Config) self(service string) (name string, underlay []netip.Addr, err error) {
	if err := errs.InvalidFields("configuration", c.Check(service)); err != nil {
		return "", nil, err
	}
	if name = c.Name; name == "" {
		if name, err = ownName(service); err != nil {
			return "", nil, err
		}
	}
	if underlay, _ = c.underlay(); len(underlay) == 0 {
		underlay, err = fabric.HostUnderlay()
	}
	return name, underlay, errs.Wrap(err, "configuration: member.underlay is empty")
}

// ownName is the service's name, a dash and the first label of the host's name.
func ownName(service string) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", errs.WrapAs(errs.Internal, err, "configuration: member.name is empty, and this host has no name")
	}
	label, _, _ := strings.Cut(strings.ToLower(host), ".")
	name := service + "-" + label
	if rule := names.Member(service, name); rule != "" {
		return "", errs.InvalidFields("configuration", []errs.Violation{{
			Field: "member.name", Value: name, Rule: rule + "; it is made of this host's name: configure another"}})
	}
	return name, nil
}
