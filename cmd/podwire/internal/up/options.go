package up

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"

	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
)

// Options are what an instance is asked to be. They are kept in its state directory.
type Options struct {
	Nodes int `json:"nodes"`
	// SubstituteImages runs the built-in image in the place of images that no driver can run.
	SubstituteImages bool `json:"substituteImages"`
	// Pods, Services and Underlay are CIDRs, at most one of each family.
	Pods     []netip.Prefix `json:"pods"`
	Services []netip.Prefix `json:"services"`
	Underlay []netip.Prefix `json:"underlay"`
}

// DefaultNodes is how many nodes `up` makes.
const DefaultNodes = 3

// The hosts of the underlay: number 1 is the bridge, each service has its own, nodes begin at 11, and the addresses of
// LoadBalancers are the last.
const (
	bridgeHost       = 1
	firstServiceHost = 2
	outsideHost      = 9
	firstNodeHost    = 11
	firstLBHost      = 200
	lastLBHost       = 250

	// MaxNodes is how many nodes the underlay has room for.
	MaxNodes = 150
)

// serviceNames are the services of an instance, in the order of their addresses.
func serviceNames() []string {
	return append([]string{"etcd", "cluster", "ipam", "svcproxy", "policy"}, memberServices()...)
}

// memberServices are the services whose replicas are members of the fabric.
func memberServices() []string { return []string{"dns", "ingress"} }

// memberName is the name of a service's one replica in the fabric, and of its Pod.
func memberName(service string) string { return service + "-1" }

// DefaultOptions are those of an instance whose command line says nothing. The underlay follows from the id, so that two
// instances on one machine are easy to tell apart; their underlays do not meet.
func DefaultOptions(dir statedir.Dir) Options {
	third, err := strconv.ParseUint(dir.ID()[:2], 16, 8)
	if err != nil {
		third = 0 // an ID is hexadecimal
	}
	v4 := netip.AddrFrom4([4]byte{172, 30, byte(third), 0})
	v6 := netip.MustParseAddr("fd00:172:30::").As16()
	v6[7] = byte(third)
	return Options{
		Nodes:    DefaultNodes,
		Pods:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		Underlay: []netip.Prefix{netip.PrefixFrom(v4, 24), netip.PrefixFrom(netip.AddrFrom16(v6), 64)},
	}
}

// Check returns everything that is wrong with the options, as one Invalid.
func (o Options) Check() error {
	var out []errs.Violation
	bad := func(flag, value, rule string) {
		out = append(out, errs.Violation{Field: flag, Value: value, Rule: rule})
	}
	if o.Nodes < 1 || o.Nodes > MaxNodes {
		bad("--nodes", strconv.Itoa(o.Nodes), fmt.Sprintf("must be between 1 and %d", MaxNodes))
	}
	ranges := o.Ranges()
	for i, r := range ranges {
		if r.Prefix != r.Prefix.Masked() {
			bad(r.Flag, r.Prefix.String(), "has host bits: must be "+r.Prefix.Masked().String())
		}
		for _, other := range ranges[:i] {
			switch {
			case other.Flag == r.Flag && other.Prefix.Addr().Is4() == r.Prefix.Addr().Is4():
				bad(r.Flag, r.Prefix.String(), "must have at most one range of each family")
			case other.Prefix.Overlaps(r.Prefix):
				bad(r.Flag, r.Prefix.String(), "overlaps "+other.Prefix.String()+" of "+other.Flag)
			}
		}
	}
	for _, p := range o.Underlay {
		if p.Addr().BitLen()-p.Bits() < 8 {
			bad("--underlay", p.String(), "must have room for 256 addresses")
		}
	}
	for flag, list := range map[string][]netip.Prefix{"--pods": o.Pods, "--services": o.Services, "--underlay": o.Underlay} {
		if len(list) == 0 || !list[0].Addr().Is4() {
			bad(flag, "", "must begin with an IPv4 range")
		}
	}
	return errs.InvalidFields("options", out)
}

// Range is one range of addresses that an instance uses.
type Range struct {
	// Flag is what chooses it.
	Flag   string
	Prefix netip.Prefix
}

// Ranges are all ranges, in the order of the flags.
func (o Options) Ranges() []Range {
	var out []Range
	add := func(flag string, list []netip.Prefix) {
		for _, p := range list {
			out = append(out, Range{flag, p})
		}
	}
	add("--pods", o.Pods)
	add("--services", o.Services)
	add("--underlay", o.Underlay)
	return out
}

// prefixes are all ranges.
func (o Options) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, r := range o.Ranges() {
		out = append(out, r.Prefix)
	}
	return out
}

// encode is the form in which options are kept and compared.
func (o Options) encode() (json.RawMessage, error) {
	text, err := json.Marshal(o)
	return text, errs.WrapAs(errs.Internal, err, "options")
}

func decodeOptions(text json.RawMessage) (o Options, err error) {
	if err = json.Unmarshal(text, &o); err == nil {
		err = o.Check()
	}
	return o, err
}

// host is the n-th address of a range.
func host(p netip.Prefix, n int) netip.Addr {
	bytes := p.Addr().AsSlice()
	bytes[len(bytes)-1] += byte(n)
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// hosts are the addresses of machine n on the underlay, one of each family.
func (o Options) hosts(n int) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range o.Underlay {
		out = append(out, netip.PrefixFrom(host(p, n), p.Bits()))
	}
	return out
}

func (o Options) nodeNames() []string {
	var out []string
	for n := 1; n <= o.Nodes; n++ {
		out = append(out, statedir.NodeName(n))
	}
	return out
}
