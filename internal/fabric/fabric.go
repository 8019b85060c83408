package fabric

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/rtnl"
	"podwire.dev/internal/fabric/sysctl"
	"podwire.dev/internal/nodestate"
)

// The defaults of [Config].
const (
	DefaultLink = "pwvx"
	// DefaultPort is Linux' own number for VXLAN; 4789, IANA's, is taken on hosts in a Docker swarm.
	DefaultPort uint16 = 8472
	DefaultVNI  uint32 = 97
)

// Config is what a member is told about its fabric.
type Config struct {
	// Self is the name of this member.
	Self string
	// Underlay is an address of this host that the other members reach; the tunnel ends here.
	Underlay netip.Addr
	// Link is the name of the VXLAN device; "" is DefaultLink.
	Link string
	// Port is the UDP port of the tunnel, the same on every member; 0 is DefaultPort.
	Port uint16
	// VNI is the VXLAN network identifier (RFC 7348), 1 to 2^24-1, the same on every member; 0 is DefaultVNI.
	VNI uint32
}

func (c Config) complete() (Config, error) {
	if c.Link == "" {
		c.Link = DefaultLink
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.VNI == 0 {
		c.VNI = DefaultVNI
	}
	var bad []errs.Violation
	if c.Self == "" {
		bad = append(bad, errs.Violation{Field: "self", Rule: "must name this member"})
	}
	if !c.Underlay.IsValid() || c.Underlay.IsUnspecified() || c.Underlay.IsLoopback() || c.Underlay.Is4In6() {
		bad = append(bad, errs.Violation{
			Field: "underlay", Value: c.Underlay.String(), Rule: "must be an address of this host that other members reach",
		})
	}
	if len(c.Link) >= unix.IFNAMSIZ {
		bad = append(bad, errs.Violation{Field: "link", Value: c.Link, Rule: "must have at most 15 bytes"})
	}
	if c.VNI >= 1<<24 {
		bad = append(bad, errs.Violation{Field: "vni", Rule: "must be between 1 and 16777215"})
	}
	return c, errs.InvalidFields("fabric configuration", bad)
}

// Fabric is this member's door to the kernel of one network namespace: its methods are called on threads of the namespace
// that it was opened in, and not at the same time.
type Fabric struct {
	cfg  Config
	conn *rtnl.Conn
	// sysctls counts what conn does not.
	sysctls int
}

// Open opens the fabric in the network namespace of the calling thread. It changes nothing.
func Open(cfg Config) (*Fabric, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	conn, err := rtnl.Open()
	if err != nil {
		return nil, errs.Wrap(err, "fabric")
	}
	return &Fabric{cfg: cfg, conn: conn}, nil
}

// Close frees the descriptors; the kernel keeps what was applied.
func (f *Fabric) Close() { f.conn.Close() }

// Device is what a member tells ipam about itself, and the MTU of everything that goes through the fabric.
type Device struct {
	// Link is the name of the VXLAN device.
	Link  string
	Index int
	MAC   [6]byte
	// MTU is the underlay's MTU less the encapsulation, in bytes.
	MTU      int
	Underlay Underlay
}

// Underlay is the link that carries the configured underlay address.
type Underlay struct {
	Link    string
	Index   int
	MTU     int
	Address netip.Addr
}

// Result says what Apply did.
type Result struct {
	Device Device
	// Writes is the number of changes made in the kernel; 0 where it agreed already.
	Writes int
	// Problems are rows that could not be used, and why; the rest was applied.
	Problems []Problem
}

// Encapsulation is the number of bytes that the tunnel adds in front of a pod's packet: outer IP header (20 or 40), UDP (8),
// VXLAN (8), and the inner Ethernet header (14); RFC 7348 section 5.
func Encapsulation(underlay netip.Addr) int {
	if underlay.Is4() {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}

// FindUnderlay returns the link that has the configured underlay address. NotFound where none has.
func (f *Fabric) FindUnderlay() (Underlay, error) {
	index, found, err := f.conn.FindAddress(f.cfg.Underlay)
	if err != nil {
		return Underlay{}, errs.Wrap(err, "fabric: find underlay address %s", f.cfg.Underlay)
	}
	if !found {
		return Underlay{}, errs.New(errs.NotFound,
			"fabric: no link of this host has the underlay address %s; configure an address that `ip address` shows", f.cfg.Underlay)
	}
	l, found, err := f.conn.LinkByIndex(index)
	if err != nil || !found {
		return Underlay{}, errs.WrapAs(errs.Unavailable, errors.Join(err, unix.ENODEV),
			"fabric: read link %d of underlay address %s", index, f.cfg.Underlay)
	}
	return Underlay{Link: l.Name, Index: index, MTU: l.MTU, Address: f.cfg.Underlay}, nil
}

// alias marks the device as ours.
const alias = "podwire:fabric"

// minMTU is the smallest MTU with which the kernel carries IPv6 (RFC 8200 section 5).
const minMTU = 1280

// EnsureDevice makes the VXLAN device, or adopts the one that is there, without addresses and routes, so that a member can
// register its MAC before it knows any other. A device with another identifier, port or tunnel end is made anew. A link of
// that name that is not ours is Exists.
func (f *Fabric) EnsureDevice() (Device, error) {
	underlay, err := f.FindUnderlay()
	if err != nil {
		return Device{}, err
	}
	want := Device{
		Link: f.cfg.Link, MAC: nodestate.TunnelMACOf(f.cfg.Self), MTU: underlay.MTU - Encapsulation(f.cfg.Underlay), Underlay: underlay,
	}
	if want.MTU < minMTU {
		return Device{}, errs.New(errs.Invalid, "fabric: link %s has an MTU of %d, which leaves %d for pods; IPv6 needs %d: raise it to %d",
			underlay.Link, underlay.MTU, want.MTU, minMTU, minMTU+Encapsulation(f.cfg.Underlay))
	}
	vxlan := rtnl.VXLAN{VNI: f.cfg.VNI, Port: f.cfg.Port, Local: f.cfg.Underlay}
	l, found, err := f.conn.LinkByName(f.cfg.Link)
	if err != nil {
		return Device{}, errs.Wrap(err, "fabric: device")
	}
	if found && (l.Kind != "vxlan" || l.Alias != alias) {
		return Device{}, errs.New(errs.Exists,
			"fabric: this host has a link %s that is not Podwire's (kind %q, alias %q); remove or rename it", l.Name, l.Kind, l.Alias)
	}
	if found && l.VXLAN != vxlan {
		if err := f.conn.Do(rtnl.DeleteLink(l.Index)); err != nil {
			return Device{}, errs.Wrap(err, "fabric: replace device")
		}
		found = false
	}
	requests := []rtnl.Request(nil)
	switch {
	case !found:
		requests = []rtnl.Request{
			rtnl.AddVXLAN(f.cfg.Link, want.MAC, want.MTU, vxlan),
			rtnl.Prepare(rtnl.Prepared{Name: f.cfg.Link, Alias: alias, LinkLocal: rtnl.NoLinkLocal}),
			rtnl.SetUp(rtnl.Setup{Name: f.cfg.Link}),
		}
	case !l.Up || l.MTU != want.MTU || l.MAC != want.MAC:
		requests = []rtnl.Request{rtnl.SetUp(rtnl.Setup{Index: l.Index, MAC: want.MAC, MTU: want.MTU})}
	}
	if len(requests) > 0 {
		if l, err = f.conn.DoThenGet(f.cfg.Link, requests...); err != nil {
			return Device{}, errs.Wrap(err, "fabric: device")
		}
	}
	want.Index = l.Index
	return want, f.deviceSysctls()
}

// deviceSysctls sets what netlink cannot.
func (f *Fabric) deviceSysctls() error {
	for _, s := range [][2]string{
		// Loose: the kernel takes the larger of this and conf/all, and the strict check of a host (1) would drop answers whose
		// way back is another one. What may come through the tunnel is judged by our own rules.
		{"net/ipv4/conf/" + f.cfg.Link + "/rp_filter", "2"},
		// A container engine turns IPv6 off for links that are made later in a container of its own; addresses and routes need
		// it on.
		{"net/ipv6/conf/" + f.cfg.Link + "/disable_ipv6", "0"},
		// Nobody behind the tunnel is this host's router, whatever conf/default says.
		{"net/ipv6/conf/" + f.cfg.Link + "/accept_ra", "0"},
	} {
		n, err := sysctl.Ensure(s[0], s[1])
		f.sysctls += n
		if err != nil {
			return errs.Wrap(err, "fabric: device")
		}
	}
	return nil
}

// Apply makes the kernel agree with the rows. Rows that cannot be used are reported in the result and leave the others
// alone; an error means that the kernel refused something else, and that it should be tried again.
func (f *Fabric) Apply(members []nodestate.Member, ranges []nodestate.Range) (Result, error) {
	before := f.writes()
	device, err := f.EnsureDevice()
	if err != nil {
		return Result{Writes: f.writes() - before}, err
	}
	plan := Compute(f.cfg.Self, f.cfg.Underlay, members, ranges)
	wanted := desired(plan, device.Index)
	forgotten, err := f.settle(wanted, device.Index)
	if forgotten {
		_, err = f.settle(wanted, device.Index)
	}
	problems, err := foreign(err)
	return Result{
		Device: device, Writes: f.writes() - before, Problems: append(plan.Problems, problems...),
	}, errs.Wrap(err, "fabric: apply")
}

// settle makes the kernel agree once. It says whether the kernel may have forgotten more than was removed: with the last
// IPv4 address of a link go all IPv4 routes and neighbours on it.
func (f *Fabric) settle(wanted state, index int) (forgotten bool, err error) {
	actual, err := f.read(index)
	if err != nil {
		return false, err
	}
	add, remove := difference(wanted, actual)
	var local []netip.Addr
	for a := range wanted.addresses {
		local = append(local, a)
	}
	for a := range actual.addresses {
		_, keep := wanted.addresses[a]
		forgotten = forgotten || !keep
	}
	if len(add) == 0 {
		return forgotten, f.conn.Do(remove...)
	}
	return forgotten, errors.Join(f.conn.DoThenAwait(local, add...), f.conn.Do(remove...))
}

func (f *Fabric) writes() int { return int(f.conn.Writes()) + f.sysctls }

// foreign takes out of err, which rtnl.Conn.Do returned, the routes that could not be added since another program has one.
func foreign(err error) ([]Problem, error) {
	var problems []Problem
	var rest []error
	for _, e := range flatten(err) {
		var refusal *rtnl.Refusal
		if errors.As(e, &refusal) && refusal.Errno == unix.EEXIST {
			problems = append(problems, Problem{refusal.Request, "another program has a route to the same destination; " +
				"remove it, or configure another range"})
			continue
		}
		rest = append(rest, e)
	}
	return problems, errors.Join(rest...)
}

func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

// Remove takes the device and every route of ours away. What is gone already is no error.
func (f *Fabric) Remove() error {
	var requests []rtnl.Request
	l, found, err := f.conn.LinkByName(f.cfg.Link)
	if err != nil {
		return errs.Wrap(err, "fabric: remove")
	}
	routes, err := f.conn.Routes(0)
	if err != nil {
		return errs.Wrap(err, "fabric: remove")
	}
	for _, r := range routes {
		if r.Type == rtnl.Unreachable {
			requests = append(requests, r.Delete())
		}
	}
	if found && l.Kind == "vxlan" && l.Alias == alias {
		requests = append(requests, rtnl.DeleteLink(l.Index))
	}
	return errs.Wrap(f.conn.Do(requests...), "fabric: remove")
}
