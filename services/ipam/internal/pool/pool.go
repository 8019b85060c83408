package pool

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
)

// Kind is what a value is taken from. Its text is AddressClaim.spec.pool.
type Kind string

// The pools.
const (
	Service      Kind = "service"
	NodePort     Kind = "node-port"
	LoadBalancer Kind = "load-balancer"
)

// Owner is the object that a claim is for.
type Owner struct{ Kind, Namespace, Name, UID string }

// Claim is one value that somebody holds.
type Claim struct {
	Pool  Kind
	Value string
	Owner Owner
}

// Name is the name of the AddressClaim of a value: one value, one name. IPv6 is written out, since a name may not end in
// a hyphen.
func (k Kind) Name(value string) string {
	if a, err := netip.ParseAddr(value); err == nil {
		value = strings.NewReplacer(".", "-", ":", "-").Replace(a.StringExpanded())
	}
	return string(k) + "-" + value
}

// BlockName is the name of the AddressBlock of a block.
func BlockName(p netip.Prefix) string {
	return "block-" + strings.NewReplacer(".", "-", ":", "-").Replace(p.Addr().StringExpanded()) + "-" + strconv.Itoa(p.Bits())
}

// Pools are the ranges with what is held of them.
type Pools struct {
	Ranges
	claims map[string]Claim // by name
	counts map[Kind]int
	blocks map[netip.Prefix]string // block -> node, or fabricMembers
	// singles are the addresses of cut blocks that fabric members hold.
	singles map[netip.Addr]string
	left    map[netip.Addr]departure
	// freed says in which order blocks came back: the one that came back last is leased last, since nodes that have not
	// heard of it yet still treat its addresses as the old pods'.
	freed map[netip.Prefix]uint64
	frees uint64
	// tried are names that the store refused, with the revision that took them: held, though not seen yet.
	tried map[string]int64
	at    int64 // the newest revision seen
}

// New returns pools of which nothing is held.
func New(r Ranges) *Pools {
	return &Pools{
		Ranges: r, claims: map[string]Claim{}, counts: map[Kind]int{},
		blocks: map[netip.Prefix]string{}, freed: map[netip.Prefix]uint64{}, tried: map[string]int64{},
		singles: map[netip.Addr]string{}, left: map[netip.Addr]departure{},
	}
}

// Hold records a claim that the store shows.
func (p *Pools) Hold(c Claim) {
	name := c.Pool.Name(c.Value)
	if _, ok := p.claims[name]; !ok {
		p.counts[c.Pool]++
	}
	p.claims[name] = c
	delete(p.tried, name)
}

// Free forgets a claim.
func (p *Pools) Free(k Kind, value string) {
	name := k.Name(value)
	if _, ok := p.claims[name]; ok {
		p.counts[k]--
	}
	delete(p.claims, name)
	delete(p.tried, name)
}

// Lost records that the store refused a candidate: somebody made it at a revision, which will show it.
func (p *Pools) Lost(name string, made int64) {
	if made > p.at {
		p.tried[name] = made
	}
}

// Passed says that everything up to a revision is recorded.
func (p *Pools) Passed(at int64) {
	p.at = at
	for name, made := range p.tried {
		if made <= at {
			delete(p.tried, name)
		}
	}
}

// Claims calls fn for every claim.
func (p *Pools) Claims(fn func(Claim)) {
	for _, c := range p.claims {
		fn(c)
	}
}

// HoldBlock records a leased block; FreeBlock forgets it.
func (p *Pools) HoldBlock(b netip.Prefix, node string) {
	p.blocks[b] = node
	delete(p.freed, b)
	delete(p.tried, BlockName(b))
}

// FreeBlock forgets a leased block.
func (p *Pools) FreeBlock(b netip.Prefix) {
	if _, held := p.blocks[b]; held {
		p.frees++
		p.freed[b] = p.frees
	}
	delete(p.blocks, b)
	delete(p.tried, BlockName(b))
}

// Want is one value that somebody asks for.
type Want struct {
	Pool Kind
	// Family is 4 or 6; 0 for a node port.
	Family int
	// Value is the exact value; empty: any.
	Value string
}

// NextBlock returns the lowest block of a family that has not been held yet or, where there is none, the one that came
// back first. Errors: Exhausted.
func (p *Pools) NextBlock(fam int) (netip.Prefix, error) {
	var oldest netip.Prefix
	for _, pods := range p.Pods {
		if family(pods.Addr()) != fam {
			continue
		}
		bits := p.BlockBits[fam]
		end := nodestate.LastOf(pods)
		for b := netip.PrefixFrom(pods.Addr(), bits); ; {
			if _, held := p.blocks[b]; !held && p.tried[BlockName(b)] == 0 {
				switch seq, used := p.freed[b]; {
				case !used:
					return b, nil
				case !oldest.IsValid() || seq < p.freed[oldest]:
					oldest = b
				}
			}
			last := nodestate.LastOf(b)
			if last == end {
				break
			}
			b = netip.PrefixFrom(last.Next(), bits)
		}
	}
	if oldest.IsValid() {
		return oldest, nil
	}
	return netip.Prefix{}, errs.New(errs.Exhausted, "ipam: no free block of IPv%d pod addresses is left in %v: "+
		"add a range to pods, or remove Nodes that are gone", fam, p.Pods)
}

// Choose returns the value to claim for a want. taken are the names chosen before in the same request. pick returns a
// number below n, and is asked once per choice. Errors: Invalid for a value that is not in the pool, Exists for one that
// another owner holds, Exhausted. A value that the same owner holds is returned again.
func (p *Pools) Choose(w Want, o Owner, taken map[string]bool, pick func(n uint64) uint64) (string, error) {
	if w.Value != "" {
		return p.exact(w, o)
	}
	if w.Pool == NodePort {
		return p.anyPort(taken, pick)
	}
	for _, r := range p.dynamic(w) {
		size := r.size()
		start := pick(size)
		// A pool is a cluster's, so size bounds the walk only in theory: it ends at the first gap after start.
		for i := range min(size, uint64(len(p.claims)+len(p.tried)+len(taken)+reservedPerRange+1)) {
			a := plus(r.From, (start+i)%size)
			if value := a.String(); p.free(w.Pool.Name(value), taken) && !(w.Pool == Service && p.reserved(a)) {
				return value, nil
			}
		}
	}
	return "", errs.New(errs.Exhausted, "ipam: pool %s has no free IPv%d address: add a range to its configuration, "+
		"or delete Services that need none", w.Pool, w.Family)
}

// The addresses of a service range that are given only to who asks for them exactly, counted from the range's own:
// default/kubernetes has the first, kube-system/kube-dns the tenth.
const (
	kubernetesOffset = 1
	kubeDNSOffset    = 10
	reservedPerRange = 2
)

func (p *Pools) reserved(a netip.Addr) bool {
	for _, s := range p.Services {
		if s.Contains(a) {
			first := s.Masked().Addr()
			return a == plus(first, kubernetesOffset) || a == plus(first, kubeDNSOffset)
		}
	}
	return false
}

func (p *Pools) free(name string, taken map[string]bool) bool {
	_, held := p.claims[name]
	return !held && p.tried[name] == 0 && !taken[name]
}

func (p *Pools) anyPort(taken map[string]bool, pick func(n uint64) uint64) (string, error) {
	all := uint64(p.NodePorts.To-p.NodePorts.From) + 1
	static := staticBand(all, 32, 128)
	for _, band := range [][2]uint64{{static, all}, {0, static}} { // KEP-3668: the lower band is left to exact requests
		size := band[1] - band[0]
		if size == 0 {
			continue
		}
		start := pick(size)
		for i := range size {
			value := strconv.FormatUint(uint64(p.NodePorts.From)+band[0]+(start+i)%size, 10)
			if p.free(NodePort.Name(value), taken) {
				return value, nil
			}
		}
	}
	return "", errs.New(errs.Exhausted, "ipam: every node port of %s is taken", p.NodePorts)
}

// staticBand is how many of the lowest values of a pool are chosen last, so that exact requests find them free:
// size/step, at least 16 and at most most, but none of a pool of 16 or fewer (KEP-3070 for addresses, KEP-3668 for node
// ports).
func staticBand(size, step, most uint64) uint64 {
	const least = 16
	if size <= least {
		return 0
	}
	return min(max(least, size/step), most)
}

// dynamic returns the ranges to choose a want from, best first.
func (p *Pools) dynamic(w Want) []AddrRange {
	var out, later []AddrRange
	if w.Pool == LoadBalancer {
		for _, r := range p.LoadBalancers {
			if family(r.From) == w.Family {
				out = append(out, r)
			}
		}
		return out
	}
	for _, s := range p.Services {
		if family(s.Addr()) != w.Family {
			continue
		}
		usable := usable(s)
		band := staticBand(AddrRange{s.Masked().Addr(), nodestate.LastOf(s)}.size(), 16, 256)
		if band == 0 {
			out = append(out, usable)
			continue
		}
		out = append(out, AddrRange{plus(usable.From, band), usable.To})
		later = append(later, AddrRange{usable.From, plus(usable.From, band-1)})
	}
	return append(out, later...)
}

// usable leaves out the addresses of a service range that are not for Services: the network's own and, in IPv4, the
// broadcast address.
func usable(s netip.Prefix) AddrRange {
	r := AddrRange{s.Masked().Addr(), nodestate.LastOf(s)}
	if r.size() > 2 {
		r.From = r.From.Next()
		if s.Addr().Is4() {
			r.To = r.To.Prev()
		}
	}
	return r
}

// exact checks a value that was asked for by name. Messages are Kubernetes'.
func (p *Pools) exact(w Want, o Owner) (string, error) {
	value, err := p.canonical(w)
	if err != nil {
		return "", err
	}
	if held, ok := p.claims[w.Pool.Name(value)]; ok && held.Owner.UID != o.UID {
		return "", Taken(w.Pool)
	}
	return value, nil
}

// Taken is the error for a value that was asked for exactly and that another owner holds, in Kubernetes' words.
func Taken(k Kind) error {
	if k == NodePort {
		return errs.New(errs.Exists, "provided port is already allocated")
	}
	return errs.New(errs.Exists, "provided IP is already allocated")
}

// canonical is an exact value in the form that claims have.
func (p *Pools) canonical(w Want) (string, error) {
	if w.Pool == NodePort {
		n, err := strconv.ParseUint(w.Value, 10, 16)
		if err != nil || uint16(n) < p.NodePorts.From || uint16(n) > p.NodePorts.To {
			return "", errs.New(errs.Invalid, "provided port is not in the valid range. The range of valid ports is %s", p.NodePorts)
		}
		return strconv.FormatUint(n, 10), nil
	}
	a, err := netip.ParseAddr(w.Value)
	if err != nil || a.Zone() != "" {
		return "", errs.New(errs.Invalid, "%q is not an IP address", w.Value)
	}
	var valid []string
	if w.Pool == LoadBalancer {
		for _, r := range p.LoadBalancers {
			if r.Contains(a) {
				return a.String(), nil
			}
			valid = append(valid, r.String())
		}
	} else {
		for _, s := range p.Services {
			if usable(s).Contains(a) {
				return a.String(), nil
			}
			valid = append(valid, s.String())
		}
	}
	return "", errs.New(errs.Invalid, "provided IP is not in the valid range. The range of valid IPs is %s", strings.Join(valid, ", "))
}

// Status is how full one range is.
type Status struct {
	Pool, Range string
	// Size and Used count values, of pod ranges blocks. Size is capped at 2^62.
	Size, Used int64
}

// Status describes every range. Used of a pool with several ranges is given with the first.
func (p *Pools) Status() []Status {
	var out []Status
	for _, pods := range p.Pods {
		bits := p.BlockBits[family(pods.Addr())]
		s := Status{Pool: "pod", Range: pods.String(), Size: 1 << min(62, bits-pods.Bits())}
		for b := range p.blocks {
			if pods.Contains(b.Addr()) {
				s.Used++
			}
		}
		out = append(out, s)
	}
	within := func(k Kind, r AddrRange, text string) {
		s := Status{Pool: string(k), Range: text, Size: int64(r.size())}
		for _, c := range p.claims {
			if a, err := netip.ParseAddr(c.Value); err == nil && c.Pool == k && r.Contains(a) {
				s.Used++
			}
		}
		out = append(out, s)
	}
	for _, s := range p.Services {
		within(Service, usable(s), s.String())
	}
	for _, r := range p.LoadBalancers {
		within(LoadBalancer, r, r.String())
	}
	return append(out, Status{
		Pool: string(NodePort), Range: p.NodePorts.String(),
		Size: int64(p.NodePorts.To) - int64(p.NodePorts.From) + 1, Used: int64(p.counts[NodePort]),
	})
}

// Outside returns the leased blocks that lie in no pod range or are of another size than the configured one, and the
// service addresses in no service range: the configuration was changed under them.
func (p *Pools) Outside() []string {
	var out []string
	for b, node := range p.blocks {
		within := func(pods netip.Prefix) bool { return pods.Contains(b.Addr()) && pods.Contains(nodestate.LastOf(b)) }
		if b.Bits() != p.BlockBits[family(b.Addr())] || !slices.ContainsFunc(p.Pods, within) {
			out = append(out, fmt.Sprintf("block %s of %s", b, holder(node)))
		}
	}
	for a, member := range p.singles {
		if !slices.ContainsFunc(p.Pods, func(pods netip.Prefix) bool { return pods.Contains(a) }) {
			out = append(out, fmt.Sprintf("%s of member %s", a, member))
		}
	}
	for _, c := range p.claims {
		a, err := netip.ParseAddr(c.Value)
		if c.Pool == Service && (err != nil || !slices.ContainsFunc(p.Services, func(s netip.Prefix) bool { return s.Contains(a) })) {
			out = append(out, fmt.Sprintf("%s of Service %s/%s", c.Value, c.Owner.Namespace, c.Owner.Name))
		}
	}
	slices.Sort(out)
	return out
}
