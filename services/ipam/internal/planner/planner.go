// Package planner holds the ipam service's World: what the store shows as granted, and the members of the fabric that
// follow from it. In: records and events. Out: the ranges and members that every node and member holds. It grants nothing
// itself.
package planner

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ipam/internal/pool"
)

// The store's kinds that the World is made of.
const (
	KindBlock   = "addressblocks.ipam.podwire.dev"
	KindClaim   = "addressclaims.ipam.podwire.dev"
	KindService = "services"
	KindPod     = "pods"
)

// The Pods of fabric members that are no nodes, which cluster writes: their Namespace, and the annotation that names their
// service.
const (
	MemberNamespace  = "kube-system"
	AnnotationMember = "podwire.dev/member"
)

// Planner implements feed.Planner. The feed's goroutine owns it.
type Planner struct {
	ranges pool.Ranges
	pools  *pool.Pools
	nodes  map[string]*objectv1.Node
	// members are the Pods of fabric members, by name; gone has the revision since which one that holds addresses is absent.
	members map[string]*objectv1.Pod
	gone    map[string]store.Revision
	began   store.Revision   // of this World
	blocks  map[string]lease // by name
	claims  map[string]store.Record
	owners  map[string]bool // UIDs of Services
	rows    *nodestate.Slice
	dirty   bool
}

// lease is one AddressBlock.
type lease struct {
	rec    store.Record
	prefix netip.Prefix
	holder Holder
}

// Holder is who holds a block; the zero Holder of a block that is cut into members' addresses.
type Holder struct {
	// Node is the name of a Node, Member that of a fabric member; one of them is empty.
	Node, Member string
}

func (h Holder) String() string {
	if h.Member != "" {
		return "member " + h.Member
	}
	return "node " + h.Node
}

// HolderOf reads who holds an AddressBlock.
func HolderOf(o *objectv1.AddressBlock) Holder {
	return Holder{Node: o.GetSpec().GetNode(), Member: o.GetSpec().GetMember()}
}

// New makes a Planner of the configured ranges with an empty World.
func New(r pool.Ranges) *Planner {
	p := &Planner{ranges: r}
	p.Reset()
	return p
}

// Pools is what the api chooses from, inside feed.Do only.
func (p *Planner) Pools() *pool.Pools { return p.pools }

// Reset implements feed.Planner.
func (p *Planner) Reset() {
	*p = Planner{
		ranges: p.ranges, pools: pool.New(p.ranges), nodes: map[string]*objectv1.Node{}, blocks: map[string]lease{},
		claims: map[string]store.Record{}, owners: map[string]bool{}, rows: nodestate.NewSlice(), dirty: true,
		members: map[string]*objectv1.Pod{}, gone: map[string]store.Revision{},
	}
}

// Put implements feed.Planner.
func (p *Planner) Put(rec store.Record) {
	switch o := rec.Object.(type) {
	case *objectv1.Node:
		p.nodes[rec.Key.Name], p.dirty = o, true
	case *objectv1.AddressBlock:
		prefix, err := netip.ParsePrefix(o.GetSpec().GetCidr())
		if err != nil {
			return // not of ours: ipam is the sole writer, and writes what parses
		}
		l := lease{rec, prefix, HolderOf(o)}
		p.blocks[rec.Key.Name] = l
		switch {
		case l.holder.Member != "":
			p.pools.HoldMember(prefix.Addr(), l.holder.Member)
		case l.holder.Node != "":
			p.pools.HoldBlock(prefix, l.holder.Node)
		default:
			p.pools.HoldCut(prefix)
		}
		p.dirty = true
	case *objectv1.Pod:
		if _, ok := o.GetMetadata().GetAnnotations()[AnnotationMember]; ok && rec.Key.Namespace == MemberNamespace {
			p.members[rec.Key.Name], p.dirty = o, true
			delete(p.gone, rec.Key.Name)
		} else {
			p.dropMember(rec.Key, rec.Revision)
		}
	case *objectv1.AddressClaim:
		p.claims[rec.Key.Name] = rec
		p.pools.Hold(ClaimOf(o))
	case *objectv1.Service:
		p.owners[o.GetMetadata().GetUid()] = true
	}
}

// Delete implements feed.Planner.
func (p *Planner) Delete(ev store.Event) {
	switch ev.Key.Kind {
	case feed.KindNode:
		delete(p.nodes, ev.Key.Name)
		p.dirty = true
	case KindBlock:
		if l, ok := p.blocks[ev.Key.Name]; ok {
			if l.holder.Member != "" {
				p.pools.FreeMember(l.prefix.Addr())
			} else {
				p.pools.FreeBlock(l.prefix)
			}
			delete(p.blocks, ev.Key.Name)
			p.dirty = true
		}
	case KindPod:
		p.dropMember(ev.Key, ev.Revision)
	case KindClaim:
		if rec, ok := p.claims[ev.Key.Name]; ok {
			c := ClaimOf(rec.Object.(*objectv1.AddressClaim))
			p.pools.Free(c.Pool, c.Value)
			delete(p.claims, ev.Key.Name)
		}
	case KindService:
		delete(p.owners, ev.UID)
	}
}

// dropMember forgets a member whose Pod is gone, or is another's since.
func (p *Planner) dropMember(key store.Key, since store.Revision) {
	if key.Namespace != MemberNamespace || p.members[key.Name] == nil {
		return
	}
	delete(p.members, key.Name)
	p.gone[key.Name], p.dirty = since, true
}

// ClaimOf reads an AddressClaim.
func ClaimOf(o *objectv1.AddressClaim) pool.Claim {
	owner := o.GetSpec().GetOwner()
	return pool.Claim{
		Pool: pool.Kind(o.GetSpec().GetPool()), Value: o.GetSpec().GetValue(),
		Owner: pool.Owner{Kind: owner.GetKind(), Namespace: owner.GetNamespace(), Name: owner.GetName(), UID: owner.GetUid()},
	}
}

// Plan implements feed.Planner. Members are few: they are computed anew whenever a Node or a block changed. An error is
// a configuration whose ranges leave out what is held: before anything of it reaches a node, the process ends.
func (p *Planner) Plan(at store.Revision) (feed.Plan, error) {
	p.pools.Passed(int64(at))
	if p.began == 0 {
		p.began = at
	}
	if !p.dirty {
		return feed.Plan{}, nil
	}
	if outside := p.pools.Outside(); len(outside) > 0 {
		return feed.Plan{}, errs.New(errs.Invalid, "configuration: pods, services and blockSizes leave out what is held: %s; "+
			"put the old values back, and remove its Nodes and Services first", strings.Join(outside, ", "))
	}
	p.dirty = false
	next := nodestate.NewSlice(p.rangeRows()...)
	for _, m := range p.rowsOfMembers() {
		next.Upsert(m)
	}
	p.forgetGone()
	delta := nodestate.Diff(p.rows, next)
	p.rows = next
	return feed.Plan{Shared: delta}, nil
}

func (p *Planner) rangeRows() []nodestate.Row {
	var rows []nodestate.Row
	add := func(k nodestate.RangeKind, prefixes ...netip.Prefix) {
		for _, prefix := range prefixes {
			rows = append(rows, nodestate.Range{Kind: k, Prefix: prefix.Masked()})
		}
	}
	add(nodestate.RangePod, p.ranges.Pods...)
	add(nodestate.RangeService, p.ranges.Services...)
	for _, r := range p.ranges.LoadBalancers {
		add(nodestate.RangeLoadBalancer, r.Prefixes()...)
	}
	return rows
}

// rowsOfMembers returns the fabric: every Node that has an address, with its blocks, and every member that has one and
// holds an address.
func (p *Planner) rowsOfMembers() []nodestate.Row {
	held := map[Holder][]lease{}
	for _, l := range p.blocks {
		held[l.holder] = append(held[l.holder], l)
	}
	var rows []nodestate.Row
	for _, name := range slices.Sorted(maps.Keys(p.nodes)) {
		m := nodestate.Member{Name: name, Kind: nodestate.MemberNode, Underlay: underlay(p.nodes[name]), TunnelMAC: nodestate.TunnelMACOf(name)}
		if len(m.Underlay) == 0 {
			continue
		}
		m.Tunnel, m.Blocks = tunnels(held[Holder{Node: name}])
		rows = append(rows, m)
	}
	for _, name := range slices.Sorted(maps.Keys(p.members)) {
		m := nodestate.Member{Name: nodestate.ServiceMember(name), Kind: nodestate.MemberService, Underlay: hostAddresses(p.members[name])}
		m.TunnelMAC = nodestate.TunnelMACOf(m.Name)
		m.Tunnel, m.Blocks = tunnels(held[Holder{Member: name}])
		if len(m.Underlay) > 0 && len(m.Blocks) > 0 {
			rows = append(rows, m)
		}
	}
	return rows
}

// hostAddresses are the underlay addresses of a member, the tunnel's end first.
func hostAddresses(o *objectv1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, h := range o.GetStatus().GetHostIps() {
		if addr, err := netip.ParseAddr(h.GetIp()); err == nil && addr.Zone() == "" {
			out = append(out, addr)
		}
	}
	return out
}

func underlay(n *objectv1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.GetStatus().GetAddresses() {
		if addr, err := netip.ParseAddr(a.GetAddress()); err == nil && addr.Zone() == "" && a.GetType() == "InternalIP" {
			out = append(out, addr)
		}
	}
	return out
}

// tunnels returns a member's tunnel addresses, each the first address of the block that it has held longest, and all of
// its blocks by address.
func tunnels(held []lease) ([]netip.Addr, []netip.Prefix) {
	slices.SortFunc(held, func(a, b lease) int {
		if a.rec.CreateRevision != b.rec.CreateRevision {
			return int(a.rec.CreateRevision - b.rec.CreateRevision)
		}
		return a.prefix.Addr().Compare(b.prefix.Addr())
	})
	var addrs []netip.Addr
	var blocks []netip.Prefix
	var have4, have6 bool
	for _, l := range held {
		blocks = append(blocks, l.prefix)
		first := &have6
		if l.prefix.Addr().Is4() {
			first = &have4
		}
		if !*first {
			*first = true
			addrs = append(addrs, l.prefix.Addr())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	slices.SortFunc(blocks, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return addrs, blocks
}

// Claim returns a claim by the name of its object.
func (p *Planner) Claim(name string) (store.Record, bool) {
	rec, ok := p.claims[name]
	return rec, ok
}
