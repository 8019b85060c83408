package plan

import (
	"errors"
	"net/netip"
	"sort"
	"strconv"
	"strings"
	"time"

	"podwire.dev/internal/nodestate"
)

// Planner holds the rows of a node and the elements that they ask for, and re-plans what a change touches. The zero
// value is not usable; see [New]. A Planner is not safe for concurrent use.
type Planner struct {
	node Node
	ids  *Allocator

	rows        map[nodestate.Table]map[string]nodestate.Row
	pools       map[nodestate.ServiceKey]*pool
	slots       map[nodestate.ServiceKey]map[place]*slots
	services    map[nodestate.ServiceKey]nodestate.ServicePort
	attachments map[string]Attachment

	dirty map[string]func(*unit)
	units map[string]*unit
	// refs counts, for each name, the units that use its id.
	refs map[string]int
	// claims are the values that units give a key, by unit; the first one is desired.
	claims map[SetName]map[Key][]claim
	// named counts, for each id, the elements whose value it is.
	named   map[uint32]int
	desired Elements
	// fresh are programs that units being planned asked for.
	fresh []*unit
}

type claim struct {
	unit  string
	value Value
}

// unit is what one thing asks for: its elements, and the names of the ids in them.
type unit struct {
	name     string
	ids      *Allocator
	elements []Element
	names    map[string]bool
	// pass is the Commit that plans the unit, taken the names of the ids that it asked for beside names; of no meaning after it.
	pass  *pass
	taken []string
	err   error
}

// pass is what one Commit collects.
type pass struct {
	now      time.Time
	touched  map[SetName]map[Key]bool
	released map[string]bool
}

// New returns a planner of an empty state. The planner owns ids from now on.
func New(node Node, ids *Allocator) *Planner {
	p := &Planner{
		ids:         ids,
		rows:        map[nodestate.Table]map[string]nodestate.Row{},
		pools:       map[nodestate.ServiceKey]*pool{},
		slots:       map[nodestate.ServiceKey]map[place]*slots{},
		services:    map[nodestate.ServiceKey]nodestate.ServicePort{},
		attachments: map[string]Attachment{},
		dirty:       map[string]func(*unit){}, units: map[string]*unit{}, refs: map[string]int{},
		claims: map[SetName]map[Key][]claim{}, named: map[uint32]int{}, desired: Elements{},
	}
	p.SetNode(node)
	p.dirty["static"] = planStatic
	return p
}

// SetNode replaces what is known of the node.
func (p *Planner) SetNode(node Node) {
	renamed := node.Name != p.node.Name || node.Zone != p.node.Zone
	p.node = node
	p.node.Addresses = append([]netip.Addr(nil), node.Addresses...)
	p.dirty["node"] = p.planNode
	if renamed {
		for k, all := range p.pools {
			for at := range all.at {
				all.set(at, p.useOf(k, at))
			}
		}
		for k := range p.services {
			p.touchService(k)
		}
		p.touchPods()
	}
}

// Attach adds or replaces a pod.
func (p *Planner) Attach(a Attachment) {
	a.Addresses = append([]netip.Addr(nil), a.Addresses...)
	p.attachments[a.UID] = a
	p.touchPod(a.UID)
}

// Detach takes a pod out.
func (p *Planner) Detach(uid string) {
	delete(p.attachments, uid)
	p.touchPod(uid)
}

// Apply changes the rows by a delta: removes first. Rows of tables that the plan does not use are ignored. A delta
// with a row that is not valid is refused as a whole (errs.Invalid, one error joined per row) and changes nothing.
func (p *Planner) Apply(d nodestate.Delta) error {
	var bad []error
	for _, r := range d.Upserts {
		if err := validate(r); err != nil {
			bad = append(bad, err)
		}
	}
	if len(bad) > 0 {
		return errors.Join(bad...)
	}
	for _, ref := range d.Removes {
		if old, ok := p.rows[ref.Table][ref.Key]; ok {
			delete(p.rows[ref.Table], ref.Key)
			p.changed(old, nil)
		}
	}
	for _, r := range d.Upserts {
		t, k := r.Table(), r.Key()
		if p.rows[t] == nil {
			p.rows[t] = map[string]nodestate.Row{}
		}
		old := p.rows[t][k]
		p.rows[t][k] = r
		p.changed(old, r)
	}
	return nil
}

// changed marks what a row concerns; old is nil for a new row, now for one that is gone.
func (p *Planner) changed(old, now nodestate.Row) {
	row := now
	if row == nil {
		row = old
	}
	key := row.Key()
	switch r := row.(type) {
	case nodestate.Range:
		p.dirty["fabric"] = p.planFabric
	case nodestate.Member:
		p.dirty["members"] = p.planMembers
		if r.Name == p.node.Name {
			p.touchPods()
		}
	case nodestate.ServicePort:
		p.changedService(old, now)
	case nodestate.Endpoint:
		p.changedEndpoint(r)
	case nodestate.Subject:
		p.touchPod(r.PodUID)
	case nodestate.Peer:
		p.touchRow("peer "+key, now, planPeer)
	case nodestate.PeerRange:
		p.touchRow("range "+key, now, planPeerRange)
	case nodestate.Allow:
		p.changedAllow(key, old, now)
	}
}

func (p *Planner) changedService(old, now nodestate.Row) {
	was, had := old.(nodestate.ServicePort)
	is, has := now.(nodestate.ServicePort)
	if has {
		p.services[is.ServiceKey] = is
		p.touchService(is.ServiceKey)
	} else {
		delete(p.services, was.ServiceKey)
		p.touchService(was.ServiceKey)
	}
	if (had && was.SourceMode == nodestate.SourceSome) || (has && is.SourceMode == nodestate.SourceSome) {
		p.dirty["sources"] = p.planSources
	}
}

func (p *Planner) changedEndpoint(e nodestate.Endpoint) {
	at := netip.AddrPortFrom(e.Address.Unmap(), e.Backend)
	p.pool(e.ServiceKey).set(at, p.useOf(e.ServiceKey, at))
	p.touchService(e.ServiceKey)
}

func (p *Planner) changedAllow(key string, old, now nodestate.Row) {
	p.touchRow("allow "+key, now, planAllow)
	for _, r := range []nodestate.Row{old, now} {
		if a, ok := r.(nodestate.Allow); ok && wide(a) {
			proto := a.Protocol
			p.dirty["ports "+proto.String()] = func(u *unit) { p.planPorts(u, proto) }
		}
	}
}

func (p *Planner) touchRow(name string, row nodestate.Row, plan func(*unit, nodestate.Row)) {
	p.dirty[name] = func(u *unit) {
		if row != nil {
			plan(u, row)
		}
	}
}

func (p *Planner) touchService(k nodestate.ServiceKey) {
	p.dirty["service "+k.String()] = func(u *unit) { p.planService(u, k) }
}

func (p *Planner) touchPod(uid string) {
	p.dirty["pod "+uid] = func(u *unit) { p.planPod(u, uid) }
}

func (p *Planner) touchPods() {
	for uid := range p.attachments {
		p.touchPod(uid)
	}
}

// Desired are the elements as of the last Commit. The caller must not change them, and must not use them after the
// next Commit; see [Elements.Clone].
func (p *Planner) Desired() Elements { return p.desired }

// IDs is the planner's allocator, for saving it and for turning ids into names.
func (p *Planner) IDs() *Allocator { return p.ids }

// Commit re-plans what was touched and returns the step to the new elements. A unit that cannot be planned (no id is
// left) keeps its elements, is tried again at the next Commit, and is named in the error; the Change holds the rest.
func (p *Planner) Commit(now time.Time) (Change, error) {
	var failed []error
	at := &pass{now: now, touched: map[SetName]map[Key]bool{}, released: map[string]bool{}}
	for _, name := range sortedKeys(p.dirty) {
		u := &unit{name: name, ids: p.ids, names: map[string]bool{}, pass: at}
		p.dirty[name](u)
		if u.err != nil {
			failed = append(failed, u.err)
			for n := range u.names {
				at.released[n] = true
			}
			for _, n := range u.taken {
				at.released[n] = true
			}
			continue
		}
		delete(p.dirty, name)
		p.replaceUnit(u, at)
	}
	if len(p.dirty) == 0 {
		p.dirty = map[string]func(*unit){} // a map that was large once costs its size each time
	}
	for _, u := range p.fresh {
		p.replaceUnit(u, at)
	}
	p.fresh = nil
	var st step
	for _, set := range Sets() {
		for k := range at.touched[set.Name] {
			p.settle(&st, set.Name, k)
		}
	}
	change := st.sorted(p.named)
	for _, name := range sortedKeys(at.released) {
		if p.refs[name] == 0 {
			delete(p.refs, name)
			p.ids.Release(name, now)
		}
	}
	return change, errors.Join(failed...)
}

// Sweep releases the ids that nothing planned refers to: what was planned and taken back, by a planner before this one, has
// left them. Everything that is held must be planned; it comes after a Commit.
func (p *Planner) Sweep(now time.Time) {
	for _, name := range sortedKeys(p.ids.ids) {
		if p.refs[name] == 0 {
			p.ids.Release(name, now)
		}
	}
}

// replaceUnit puts a unit's claims and references in the place of its last ones.
func (p *Planner) replaceUnit(u *unit, at *pass) {
	for name := range u.names {
		p.refs[name]++
	}
	old := p.units[u.name]
	if old != nil {
		for name := range old.names {
			if p.refs[name]--; p.refs[name] == 0 {
				at.released[name] = true
			}
		}
		for _, el := range old.elements {
			p.unclaim(u.name, el)
			touch(at.touched, el)
		}
	}
	for _, el := range u.elements {
		p.claim(u.name, el)
		touch(at.touched, el)
	}
	if len(u.elements) == 0 && len(u.names) == 0 {
		delete(p.units, u.name)
		return
	}
	u.pass, u.taken = nil, nil
	p.units[u.name] = u
}

func touch(touched map[SetName]map[Key]bool, el Element) {
	if touched[el.Set] == nil {
		touched[el.Set] = map[Key]bool{}
	}
	touched[el.Set][el.Key] = true
}

func (p *Planner) claim(name string, el Element) {
	if p.claims[el.Set] == nil {
		p.claims[el.Set] = map[Key][]claim{}
	}
	list := p.claims[el.Set][el.Key]
	i := sort.Search(len(list), func(i int) bool { return list[i].unit >= name })
	if i < len(list) && list[i].unit == name {
		return
	}
	list = append(list, claim{})
	copy(list[i+1:], list[i:])
	list[i] = claim{name, el.Value}
	p.claims[el.Set][el.Key] = list
}

func (p *Planner) unclaim(name string, el Element) {
	list := p.claims[el.Set][el.Key]
	for i := range list {
		if list[i].unit == name {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(p.claims[el.Set], el.Key)
		return
	}
	p.claims[el.Set][el.Key] = list
}

// settle brings one key of desired to what its claims say.
func (p *Planner) settle(st *step, set SetName, k Key) {
	old, had := p.desired[set][k]
	list := p.claims[set][k]
	if len(list) == 0 {
		if had {
			p.desired.Delete(set, k)
			p.count(set, old, -1)
			st.gone = append(st.gone, Element{set, k, old})
		}
		return
	}
	value := list[0].value
	if had && old == value {
		return
	}
	el := Element{set, k, value}
	p.desired.Put(el)
	p.count(set, value, 1)
	if had {
		p.count(set, old, -1)
		st.replace = append(st.replace, el)
		return
	}
	st.add = append(st.add, el)
}

func (p *Planner) count(set SetName, v Value, n int) {
	id := named(set, v)
	if id == 0 {
		return
	}
	if p.named[id] += n; p.named[id] == 0 {
		delete(p.named, id)
	}
}

// put adds an element to the unit.
func (u *unit) put(set SetName, k Key, v Value) {
	u.elements = append(u.elements, Element{set, k, v})
}

// id is the id of a name; the unit refers to it from now on.
func (u *unit) id(parts ...string) uint32 {
	name := strings.Join(parts, " ")
	id, err := u.ids.Get(name, u.pass.now)
	if err != nil {
		u.err = err
		return 0
	}
	u.names[name] = true
	return id
}

// take is the id of a name that somebody else than the unit refers to.
func (u *unit) take(name string) uint32 {
	id, err := u.ids.Get(name, u.pass.now)
	if err != nil {
		u.err = err
		return 0
	}
	u.taken = append(u.taken, name)
	return id
}

// useProgram makes sure that a program has its chain. A program stays when nothing uses it any more: a chain may only
// be removed by an agent that starts, since a packet may be on its way to it (see internal/kernel/nft).
func (p *Planner) useProgram(program uint32, v Value) {
	name := "program " + strconv.FormatUint(uint64(program), 10)
	if p.units[name] != nil {
		return
	}
	u := &unit{name: name, names: map[string]bool{}}
	u.put(SetPrograms, Concat(Mark(program)), v)
	if program < ProgramAffinity {
		u.put(SetChoices, Concat(Mark(program)), v)
	}
	p.fresh = append(p.fresh, u)
}
