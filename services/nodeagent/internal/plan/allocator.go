package plan

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"podwire.dev/internal/errs"
)

// Quiet is the least time between the release of an id and its next use under another name: a packet, or a tracked
// flow that is about to be reconciled, may still carry it.
const Quiet = 60 * time.Second

const (
	maxID      = IDBase | ^IDMask
	stateTitle = "podwire ids 1"
)

// Allocator gives ids to names and slots to endpoints, and remembers both. Ids are taken in a ring, so one is used
// again as late as possible. It is not safe for concurrent use.
//
// Its state is text, one record per line (see [Allocator.Save]); the records of [Allocator.Log], appended to a saved
// state, are that state brought up to date, so an agent need not write the whole state on each change.
type Allocator struct {
	ids     map[string]uint32
	names   map[uint32]string
	cooling map[uint32]time.Time
	slots   map[uint32][]uint32
	// index finds the slot of an endpoint, of the services whose slots were exchanged.
	index map[uint32]map[uint32]int
	// order is cooling in the order of release, for forgetting what has cooled.
	order []uint32
	next  uint32
	log   bytes.Buffer
}

// NewAllocator returns an allocator that has given nothing.
func NewAllocator() *Allocator {
	return &Allocator{
		ids: map[string]uint32{}, names: map[uint32]string{}, cooling: map[uint32]time.Time{},
		slots: map[uint32][]uint32{}, index: map[uint32]map[uint32]int{}, next: IDBase,
	}
}

// LoadAllocator reads a saved state, followed by any number of logs. A last line without line break was cut off by a
// crash and is ignored.
func LoadAllocator(state []byte) (*Allocator, error) {
	a := NewAllocator()
	lines := strings.Split(string(state), "\n")
	lines = lines[:len(lines)-1]
	if len(lines) == 0 || lines[0] != stateTitle {
		return nil, errs.New(errs.Invalid, "ids: the state does not begin with %q; remove it to begin anew", stateTitle)
	}
	for i, line := range lines[1:] {
		if err := a.replay(line); err != nil {
			return nil, errs.Wrap(err, "ids: line %d", i+2)
		}
	}
	a.log.Reset()
	return a, nil
}

// Save returns the whole state, in the same bytes for equal states.
func (a *Allocator) Save() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n", stateTitle)
	used := make([]uint32, 0, len(a.names))
	for id := range a.names {
		used = append(used, id)
	}
	sort.Slice(used, func(i, j int) bool { return used[i] < used[j] })
	for _, id := range used {
		writeName(&b, id, a.names[id])
	}
	for _, id := range used {
		if len(a.slots[id]) > 0 {
			writeSlots(&b, id, a.slots[id])
		}
	}
	cool := make([]uint32, 0, len(a.cooling))
	for id := range a.cooling {
		cool = append(cool, id)
	}
	sort.Slice(cool, func(i, j int) bool { return cool[i] < cool[j] })
	for _, id := range cool {
		writeFree(&b, id, a.cooling[id])
	}
	fmt.Fprintf(&b, "next %d\n", a.next)
	return b.Bytes()
}

// Log returns the records since the last call of Log.
func (a *Allocator) Log() []byte {
	b := append([]byte(nil), a.log.Bytes()...)
	a.log.Reset()
	return b
}

// ID is the id of a name, or false.
func (a *Allocator) ID(name string) (uint32, bool) {
	id, ok := a.ids[name]
	return id, ok
}

// Name is the name of an id in use, or "". Names begin with a letter for their kind: s service, e endpoint, a source class,
// i and o ingress and egress subject, p peer, w pair, t port class.
func (a *Allocator) Name(id uint32) string { return a.names[id] }

// Get returns the id of a name, a new one where it has none.
func (a *Allocator) Get(name string, now time.Time) (uint32, error) {
	if id, ok := a.ids[name]; ok {
		return id, nil
	}
	if strings.ContainsAny(name, "\n") || name == "" {
		return 0, errs.New(errs.Invalid, "ids: name %q cannot be stored", name)
	}
	for range ^IDMask {
		id := a.next
		if a.next++; a.next > maxID {
			a.next = IDBase
		}
		if a.names[id] != "" || a.cools(id, now) {
			continue
		}
		a.take(id, name)
		writeName(&a.log, id, name)
		return id, nil
	}
	return 0, errs.New(errs.Exhausted, "ids: all %d ids are in use or were within %s", ^IDMask, Quiet)
}

// Release gives the id of a name back. The slots of a service go with its id.
func (a *Allocator) Release(name string, now time.Time) {
	id, ok := a.ids[name]
	if !ok {
		return
	}
	a.free(id, now)
	writeFree(&a.log, id, now)
	for len(a.order) > 0 && !a.cools(a.order[0], now) {
		a.order = a.order[1:]
	}
}

// Avoid keeps ids that some elements carry, and that the allocator does not know, from being given for [Quiet]: for
// an agent that lost its state and finds a table full of ids.
func (a *Allocator) Avoid(have Elements, now time.Time) {
	for _, el := range have.Sorted() {
		for _, id := range idsOf(string(el.Key) + string(el.Value)) {
			if a.names[id] == "" && !a.cooling[id].Equal(now) {
				a.cool(id, now)
				writeFree(&a.log, id, now)
			}
		}
	}
}

// Slots brings the slots of a service to hold the wanted endpoint ids, moving as few as possible: each vanished one is
// replaced by what is in the last slot, new ones are appended in the order given. The result must not be changed.
func (a *Allocator) Slots(service uint32, want []uint32) []uint32 {
	old := a.slots[service]
	wanted := make(map[uint32]bool, len(want))
	for _, id := range want {
		wanted[id] = true
	}
	slots := append([]uint32(nil), old...)
	have := make(map[uint32]bool, len(slots))
	for i := 0; i < len(slots); {
		if wanted[slots[i]] && !have[slots[i]] {
			have[slots[i]] = true
			i++
			continue
		}
		slots[i] = slots[len(slots)-1]
		slots = slots[:len(slots)-1]
	}
	for _, id := range want {
		if !have[id] {
			have[id] = true
			slots = append(slots, id)
		}
	}
	if !equalIDs(old, slots) {
		a.setSlots(service, slots)
		writeSlots(&a.log, service, slots)
	}
	return slots
}

// Holds says whether an endpoint is in a slot of a service.
func (a *Allocator) Holds(service, endpoint uint32) bool {
	_, ok := a.slotsOf(service)[endpoint]
	return ok
}

// slotsOf finds the slot of each endpoint of a service.
func (a *Allocator) slotsOf(service uint32) map[uint32]int {
	index := a.index[service]
	if index == nil {
		index = make(map[uint32]int, len(a.slots[service]))
		for slot, endpoint := range a.slots[service] {
			index[endpoint] = slot
		}
		a.index[service] = index
	}
	return index
}

// Exchange does what [Allocator.Slots] does, for the difference alone and at its cost: it takes endpoints out of the slots of
// a service, and appends others in the order given. It returns the slots that hold another endpoint now, ascending.
func (a *Allocator) Exchange(service uint32, gone, fresh []uint32) []int {
	if len(gone)+len(fresh) > 0 {
		writeExchange(&a.log, service, gone, fresh)
	}
	slots, index := a.slots[service], a.slotsOf(service)
	out := make(map[uint32]bool, len(gone))
	var changed []int
	for _, id := range gone {
		if slot, ok := index[id]; ok {
			out[id] = true
			changed = append(changed, slot)
		}
	}
	sort.Ints(changed)
	for _, slot := range changed {
		for slot < len(slots) && out[slots[slot]] {
			last := len(slots) - 1
			delete(index, slots[slot])
			if slot != last {
				slots[slot] = slots[last]
				index[slots[slot]] = slot
			}
			slots = slots[:last]
		}
	}
	for len(changed) > 0 && changed[len(changed)-1] >= len(slots) {
		changed = changed[:len(changed)-1]
	}
	for _, id := range fresh {
		if _, have := index[id]; !have {
			index[id] = len(slots)
			changed = append(changed, len(slots))
			slots = append(slots, id)
		}
	}
	if a.slots[service] = slots; len(slots) == 0 {
		delete(a.slots, service)
		delete(a.index, service)
	}
	return changed
}

func (a *Allocator) take(id uint32, name string) {
	a.ids[name], a.names[id] = id, name
	delete(a.cooling, id)
}

func (a *Allocator) free(id uint32, at time.Time) {
	delete(a.ids, a.names[id])
	delete(a.names, id)
	a.setSlots(id, nil)
	a.cool(id, at)
}

func (a *Allocator) cool(id uint32, at time.Time) {
	a.cooling[id] = at
	a.order = append(a.order, id)
}

func (a *Allocator) setSlots(service uint32, slots []uint32) {
	delete(a.index, service)
	if len(slots) == 0 {
		delete(a.slots, service)
		return
	}
	a.slots[service] = slots
}

// cools says whether an id may not be used yet. A release in the future (the clock was set back) counts from now.
func (a *Allocator) cools(id uint32, now time.Time) bool {
	at, ok := a.cooling[id]
	if !ok {
		return false
	}
	if at.After(now) {
		a.cooling[id] = now
		return true
	}
	if now.Sub(at) < Quiet {
		return true
	}
	delete(a.cooling, id)
	return false
}

func (a *Allocator) replay(line string) error {
	bad := errs.New(errs.Invalid, "record %q is damaged; remove the state to begin anew", line)
	verb, rest, _ := strings.Cut(line, " ")
	first, rest, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(first, 10, 32)
	if err != nil || uint32(n)&IDMask != IDBase {
		return bad
	}
	id := uint32(n)
	switch verb {
	case "next":
		a.next = id
	case "name":
		if rest == "" || a.names[id] != "" || a.ids[rest] != 0 {
			return bad
		}
		a.take(id, rest)
		if a.next = id + 1; a.next > maxID {
			a.next = IDBase
		}
	case "free":
		ms, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			return bad
		}
		a.free(id, time.UnixMilli(ms))
	case "slots":
		var slots []uint32
		for _, f := range strings.Fields(rest) {
			v, err := strconv.ParseUint(f, 10, 32)
			if err != nil || uint32(v)&IDMask != IDBase {
				return bad
			}
			slots = append(slots, uint32(v))
		}
		a.setSlots(id, slots)
	case "exchange":
		lists := map[byte][]uint32{}
		for _, f := range strings.Fields(rest) {
			v, err := strconv.ParseUint(f[1:], 10, 32)
			if err != nil || uint32(v)&IDMask != IDBase || f[0] != '-' && f[0] != '+' {
				return bad
			}
			lists[f[0]] = append(lists[f[0]], uint32(v))
		}
		a.Exchange(id, lists['-'], lists['+'])
	default:
		return bad
	}
	return nil
}

func writeName(b *bytes.Buffer, id uint32, name string) { fmt.Fprintf(b, "name %d %s\n", id, name) }

func writeFree(b *bytes.Buffer, id uint32, at time.Time) {
	fmt.Fprintf(b, "free %d %d\n", id, at.UnixMilli())
}

func writeSlots(b *bytes.Buffer, id uint32, slots []uint32) {
	fmt.Fprintf(b, "slots %d", id)
	for _, s := range slots {
		fmt.Fprintf(b, " %d", s)
	}
	b.WriteByte('\n')
}

func writeExchange(b *bytes.Buffer, id uint32, gone, fresh []uint32) {
	fmt.Fprintf(b, "exchange %d", id)
	for _, s := range gone {
		fmt.Fprintf(b, " -%d", s)
	}
	for _, s := range fresh {
		fmt.Fprintf(b, " +%d", s)
	}
	b.WriteByte('\n')
}

func equalIDs(a, b []uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// idsOf finds the ids among the 4-byte words of raw kernel bytes. An address may look like one; callers must not mind.
func idsOf(raw string) []uint32 {
	var ids []uint32
	for ; len(raw) >= 4; raw = raw[4:] {
		if v := MarkOf(Value(raw[:4])); v&IDMask == IDBase {
			ids = append(ids, v)
		}
	}
	return ids
}
