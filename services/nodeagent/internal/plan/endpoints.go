package plan

import (
	"net/netip"
	"slices"
	"strconv"

	"podwire.dev/internal/nodestate"
)

// use says how an endpoint may be used; 0: there is none.
type use uint8

const (
	usePresent    use = 1 << iota
	useReady          // else it terminates, and serves
	useLocal          // it is on this node
	useZoneHinted     // it has hints for zones
	useZone           // they name this node's
	useNodeHinted     // it has hints for nodes
	useNode           // they name this node
)

// place is one list of endpoints of a service port: those of a family, all or this node's.
type place struct {
	family Family
	scope  nodestate.Locality
}

// places are those of every service port, in order.
func places() [4]place {
	return [4]place{
		{IPv4, nodestate.LocalityCluster}, {IPv4, nodestate.LocalityLocal},
		{IPv6, nodestate.LocalityCluster}, {IPv6, nodestate.LocalityLocal},
	}
}

// tally counts the endpoints of one place. Of those that are ready it counts the hints, too, where the place minds them.
type tally struct {
	ready, ending                          int
	zoneHinted, inZone, nodeHinted, onNode int
}

// choice is which endpoints of a place take its connections.
type choice uint8

const (
	chooseEnding choice = iota // those that terminate and still serve
	chooseReady
	chooseZone // those that are ready and hinted for this node's zone
	chooseNode // those that are ready and hinted for this node
)

// picks says which endpoints of a place take connections, for each place by itself: those that are ready or, where none is,
// those that terminate but still serve (KEP-1669). Hints narrow the ready ones if every one of them has one and at least one
// names this node, or else its zone; otherwise they say nothing (KEP-2433, KEP-3015).
func (t tally) picks() (n int, c choice) {
	switch {
	case t.ready == 0:
		return t.ending, chooseEnding
	case t.nodeHinted == t.ready && t.onNode > 0:
		return t.onNode, chooseNode
	case t.zoneHinted == t.ready && t.inZone > 0:
		return t.inZone, chooseZone
	}
	return t.ready, chooseReady
}

// takes says whether the choice has an endpoint of such use.
func (c choice) takes(u use) bool {
	switch c {
	case chooseReady:
		return u&useReady != 0
	case chooseZone:
		return u&useReady != 0 && u&useZone != 0
	case chooseNode:
		return u&useReady != 0 && u&useNode != 0
	}
	return u&useReady == 0
}

// pool are the endpoints of one service port.
type pool struct {
	at      map[netip.AddrPort]use
	tallies map[place]tally
	// touched are those that changed since the last plan.
	touched map[netip.AddrPort]bool
}

func newPool() *pool { return &pool{at: map[netip.AddrPort]use{}, tallies: map[place]tally{}} }

func (p *pool) set(at netip.AddrPort, now use) {
	old := p.at[at]
	if old == now {
		return
	}
	p.count(at, old, -1)
	p.count(at, now, 1)
	if p.at[at] = now; now == 0 {
		delete(p.at, at)
	}
	if p.touched == nil {
		p.touched = map[netip.AddrPort]bool{}
	}
	p.touched[at] = true
}

func (p *pool) count(at netip.AddrPort, u use, n int) {
	if u == 0 {
		return
	}
	for _, where := range places() {
		if where.family != familyOf(at.Addr()) || where.scope == nodestate.LocalityLocal && u&useLocal == 0 {
			continue
		}
		t := p.tallies[where]
		if u&useReady == 0 {
			t.ending += n
		} else {
			t.ready += n
			if where.scope == nodestate.LocalityCluster { // of this node's own there is nothing to prefer
				t.hint(u, n)
			}
		}
		p.tallies[where] = t
	}
}

// hint counts the hints of n endpoints that are ready.
func (t *tally) hint(u use, n int) {
	for _, c := range []struct {
		bit use
		to  *int
	}{{useZoneHinted, &t.zoneHinted}, {useZone, &t.inZone}, {useNodeHinted, &t.nodeHinted}, {useNode, &t.onNode}} {
		if u&c.bit != 0 {
			*c.to += n
		}
	}
}

// takes says whether an endpoint takes the connections of a place.
func (p *pool) takes(at netip.AddrPort, where place) bool {
	u := p.at[at]
	if u == 0 || where.family != familyOf(at.Addr()) || where.scope == nodestate.LocalityLocal && u&useLocal == 0 {
		return false
	}
	_, c := p.tallies[where].picks()
	return c.takes(u)
}

// all are the endpoints that take the connections of a place, sorted.
func (p *pool) all(where place) []netip.AddrPort {
	var out []netip.AddrPort
	for at := range p.at {
		if p.takes(at, where) {
			out = append(out, at)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// pool is that of a service port.
func (p *Planner) pool(k nodestate.ServiceKey) *pool {
	if p.pools[k] == nil {
		p.pools[k] = newPool()
	}
	return p.pools[k]
}

// useOf is how the rows of an address and port say that it may be used. There is more than one where an IPv4 address is
// also given in IPv6's form: the most usable counts.
func (p *Planner) useOf(k nodestate.ServiceKey, at netip.AddrPort) use {
	best := use(0)
	forms := []netip.Addr{at.Addr()}
	if at.Addr().Is4() {
		forms = append(forms, netip.AddrFrom16(at.Addr().As16()))
	}
	for _, a := range forms {
		key := nodestate.Endpoint{ServiceKey: k, Address: a, Backend: at.Port()}.Key()
		e, ok := p.rows[nodestate.TableEndpoints][key].(nodestate.Endpoint)
		if !ok {
			continue
		}
		u := usePresent
		if e.State == nodestate.EndpointReady {
			u |= useReady
		}
		if e.Node != "" && e.Node == p.node.Name {
			u |= useLocal
		}
		u |= hinted(e.HintZones, p.node.Zone, useZoneHinted, useZone) | hinted(e.HintNodes, p.node.Name, useNodeHinted, useNode)
		if best == 0 || u&useReady > best&useReady || u&useReady == best&useReady && u > best {
			best = u
		}
	}
	return best
}

// hinted are the bits of a list of hints: some, if there are some, and own, if they name this node's.
func hinted(list []string, name string, some, own use) use {
	switch {
	case len(list) == 0:
		return 0
	case name != "" && slices.Contains(list, name):
		return some | own
	}
	return some
}

// slots is what is planned of one place of a service port.
type slots struct {
	unit   string // whose claims its elements are
	id     uint32 // of the service
	choice choice // which endpoints take its connections
	sticky bool
}

// slotStep is what becomes of the slots of one place.
type slotStep struct {
	where place
	next  slots
	// whole says that every endpoint is planned anew; else gone and fresh are the difference.
	whole bool
	gone  []uint32
	fresh []netip.AddrPort
	ids   []uint32 // of fresh
}

// slotSteps prepares the slots of the places in use, by their service ids. It changes nothing but the ids that it takes;
// where there is none left, the unit has the error.
func (p *Planner) slotSteps(u *unit, k nodestate.ServiceKey, sticky bool, used map[place]uint32) []slotStep {
	var steps []slotStep
	for _, where := range places() {
		id, ok := used[where]
		if !ok {
			continue
		}
		_, c := p.pool(k).tallies[where].picks()
		st := slotStep{where: where, next: slots{id: id, choice: c, sticky: sticky}}
		old := p.slots[k][where]
		if st.whole = old == nil; old != nil {
			st.next.unit = old.unit
			st.whole = *old != st.next
		} else {
			st.next.unit = "service " + k.String() + " " + strconv.Itoa(int(where.family)) + " " + strconv.Itoa(int(where.scope))
		}
		if st.whole {
			st.fresh = p.pool(k).all(where)
		} else {
			p.difference(&st, k)
		}
		for _, at := range st.fresh {
			st.ids = append(st.ids, u.take("e "+at.String()))
		}
		steps = append(steps, st)
	}
	return steps
}

// difference finds what the touched endpoints change of a place.
func (p *Planner) difference(st *slotStep, k nodestate.ServiceKey) {
	for at := range p.pool(k).touched {
		id, known := p.ids.ID("e " + at.String())
		has := known && p.ids.Holds(st.next.id, id)
		switch takes := p.pool(k).takes(at, st.where); {
		case takes && !has:
			st.fresh = append(st.fresh, at)
		case has && !takes && familyOf(at.Addr()) == st.where.family:
			st.gone = append(st.gone, id)
		}
	}
	slices.SortFunc(st.fresh, netip.AddrPort.Compare)
	slices.Sort(st.gone)
}

// planSlots takes the steps: their cost is that of the difference, and that of the whole only where a place begins, ends, or
// chooses otherwise.
func (p *Planner) planSlots(u *unit, k nodestate.ServiceKey, steps []slotStep) {
	next := make(map[place]*slots, len(steps))
	for _, st := range steps {
		next[st.where] = &st.next
	}
	for where, old := range p.slots[k] {
		if now := next[where]; now == nil || *now != *old {
			p.dropSlots(u, where, old)
		}
	}
	for _, st := range steps {
		s, f := st.next, st.where.family
		if st.whole {
			for slot, endpoint := range p.ids.Slots(s.id, st.ids) {
				p.hold(u, s.unit, slotOf(s.id, slot, endpoint))
			}
		} else {
			p.moveSlots(u, s, st)
			for _, id := range st.gone {
				p.dropEndpoint(u, f, s, id)
			}
		}
		for i, at := range st.fresh {
			p.refs["e "+at.String()]++
			p.hold(u, s.unit, Element{SetEndpoints.In(f), Concat(Mark(st.ids[i])), Data(Addr(at.Addr()), Port(at.Port()))})
			if s.sticky {
				p.hold(u, s.unit, Element{SetSticky, Concat(Mark(s.id), Mark(st.ids[i])), ""})
			}
		}
	}
	if p.slots[k] = next; len(next) == 0 {
		delete(p.slots, k)
	}
	if all := p.pools[k]; all != nil {
		if all.touched = nil; len(all.at) == 0 {
			delete(p.pools, k)
		}
	}
}

// moveSlots exchanges endpoints: what was in the last slots moves into the gaps.
func (p *Planner) moveSlots(u *unit, s slots, st slotStep) {
	if len(st.gone)+len(st.fresh) == 0 {
		return
	}
	before := len(p.ids.slots[s.id])
	changed := p.ids.Exchange(s.id, st.gone, st.ids)
	now := p.ids.slots[s.id]
	for slot := len(now); slot < before; slot++ {
		p.release(u, s.unit, slotOf(s.id, slot, 0))
	}
	for _, slot := range changed {
		p.release(u, s.unit, slotOf(s.id, slot, 0))
		p.hold(u, s.unit, slotOf(s.id, slot, now[slot]))
	}
}

func slotOf(service uint32, slot int, endpoint uint32) Element {
	return Element{SetSlots, Concat(Mark(service), Mark(uint32(slot))), Data(Mark(endpoint))}
}

// dropSlots takes all that is planned of a place away. The slots stay with the allocator for as long as the service's id.
func (p *Planner) dropSlots(u *unit, where place, old *slots) {
	for slot, id := range p.ids.slots[old.id] {
		p.release(u, old.unit, slotOf(old.id, slot, 0))
		p.dropEndpoint(u, where.family, *old, id)
	}
}

func (p *Planner) dropEndpoint(u *unit, f Family, s slots, id uint32) {
	p.release(u, s.unit, Element{SetEndpoints.In(f), Concat(Mark(id)), ""})
	if s.sticky {
		p.release(u, s.unit, Element{SetSticky, Concat(Mark(s.id), Mark(id)), ""})
	}
	name := p.ids.Name(id)
	if p.refs[name]--; p.refs[name] == 0 {
		u.pass.released[name] = true
	}
}

// hold and release claim an element, and take the claim back, outside of the unit's own elements.
func (p *Planner) hold(u *unit, owner string, el Element) {
	p.claim(owner, el)
	touch(u.pass.touched, el)
}

func (p *Planner) release(u *unit, owner string, el Element) {
	p.unclaim(owner, el)
	touch(u.pass.touched, el)
}
