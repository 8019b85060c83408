// Package planner holds the ipam service's World: what the store shows as granted, and the members of the fabric that
// follow from it. In: records and events. Out: the ranges and members that every node holds. It grants nothing itself.
package planner

import (
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
)

// Planner implements feed.Planner. The feed's goroutine owns it.
type Planner struct {
	ranges pool.Ranges
	pools  *pool.Pools
	nodes  map[string]*objectv1.Node
	blocks map[string]lease // by name
	claims map[string]store.Record
	owners map[string]bool // UIDs of Services
	rows   *nodestate.Slice
	dirty  bool
}

// lease is one AddressBlock.
type lease struct {
	rec    store.Record
	prefix netip.Prefix
	node   string
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
		p.blocks[rec.Key.Name] = lease{rec, prefix, o.GetSpec().GetNode()}
		p.pools.HoldBlock(prefix, o.GetSpec().GetNode())
		p.dirty = true
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
			p.pools.FreeBlock(l.prefix)
			delete(p.blocks, ev.Key.Name)
			p.dirty = true
		}
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
	if !p.dirty {
		return feed.Plan{}, nil
	}
	if outside := p.pools.Outside(); len(outside) > 0 {
		return feed.Plan{}, errs.New(errs.Invalid, "configuration: pods, services and blockSizes leave out what is held: %s; "+
			"put the old values back, and remove its Nodes and Services first", strings.Join(outside, ", "))
	}
	p.dirty = false
	next := nodestate.NewSlice(p.rangeRows()...)
	for _, m := range p.members() {
		next.Upsert(m)
	}
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

// members returns the fabric: every Node that has an address, with its blocks.
func (p *Planner) members() []nodestate.Row {
	held := map[string][]lease{}
	for _, l := range p.blocks {
		held[l.node] = append(held[l.node], l)
	}
	names := make([]string, 0, len(p.nodes))
	for name := range p.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	var rows []nodestate.Row
	for _, name := range names {
		m := nodestate.Member{Name: name, Kind: nodestate.MemberNode, Underlay: underlay(p.nodes[name]), TunnelMAC: nodestate.TunnelMACOf(name)}
		if len(m.Underlay) == 0 {
			continue
		}
		m.Tunnel, m.Blocks = tunnels(held[name])
		rows = append(rows, m)
	}
	return rows
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

// Orphan is a grant whose owner the store does not show.
type Orphan struct {
	Rec store.Record
	// Reason is for people.
	Reason string
}

// Orphans returns the claims whose owner does not exist and the blocks of Nodes that do not exist, by object name.
func (p *Planner) Orphans() map[string]Orphan {
	out := map[string]Orphan{}
	for name, rec := range p.claims {
		c := ClaimOf(rec.Object.(*objectv1.AddressClaim))
		if !p.owners[c.Owner.UID] {
			out[name] = Orphan{rec, "no " + c.Owner.Kind + " " + c.Owner.Namespace + "/" + c.Owner.Name + " with its uid exists"}
		}
	}
	for name, l := range p.blocks {
		if p.nodes[l.node] == nil {
			out[name] = Orphan{l.rec, "no Node " + l.node + " exists"}
		}
	}
	return out
}

// Block returns a lease by the name of its object.
func (p *Planner) Block(name string) (store.Record, bool) {
	l, ok := p.blocks[name]
	return l.rec, ok
}

// LeaseOf returns the lease of a family, 4 or 6, that a node's request was answered with.
func (p *Planner) LeaseOf(node, request string, fam int) (store.Record, bool) {
	for _, l := range p.blocks {
		if l.node == node && l.prefix.Addr().Is4() == (fam == 4) && l.rec.Object.GetMetadata().GetAnnotations()[AnnotationRequest] == request {
			return l.rec, true
		}
	}
	return store.Record{}, false
}

// AnnotationRequest is the annotation of an AddressBlock with the request_id that leased it.
const AnnotationRequest = "ipam.podwire.dev/request"

// Claim returns a claim by the name of its object.
func (p *Planner) Claim(name string) (store.Record, bool) {
	rec, ok := p.claims[name]
	return rec, ok
}

// Tunnel says whether a block carries its node's tunnel address, and so cannot be given back while the node exists.
func (p *Planner) Tunnel(name string) bool {
	l, ok := p.blocks[name]
	if !ok {
		return false
	}
	var held []lease
	for _, other := range p.blocks {
		if other.node == l.node {
			held = append(held, other)
		}
	}
	addrs, _ := tunnels(held)
	return slices.Contains(addrs, l.prefix.Addr())
}
