package fabric

import (
	"net/netip"
	"slices"
	"sync"

	"podwire.dev/internal/nodestate"
)

// Fake is a [Fabric] without a kernel, for tests: rows are judged by Compute, as the real one does, and what they ask for
// is kept in memory. It outlives whoever drives it, as a kernel does. Its methods may be called at the same time.
type Fake struct {
	self     string
	underlay netip.Addr

	mu      sync.Mutex
	held    state
	members []nodestate.Member
	ranges  []nodestate.Range
	writes  int
}

// NewFake is the kernel of the member self at an underlay address; it has no routes yet.
func NewFake(self string, underlay netip.Addr) *Fake { return &Fake{self: self, underlay: underlay} }

// fakeMTU is that of the device where the underlay is an ordinary Ethernet, in bytes.
const fakeMTU = 1450

// Device is what [Fabric.EnsureDevice] says.
func (f *Fake) Device() Device {
	return Device{
		Link: "pwvx", Index: 1, MTU: fakeMTU, MAC: nodestate.TunnelMACOf(f.self),
		Underlay: Underlay{Link: "eth0", Index: 2, MTU: fakeMTU + Encapsulation(f.underlay), Address: f.underlay},
	}
}

// Apply is [Fabric.Apply].
func (f *Fake) Apply(members []nodestate.Member, ranges []nodestate.Range) (Result, error) {
	plan := Compute(f.self, f.underlay, members, ranges)
	wanted := desired(plan, f.Device().Index)
	f.mu.Lock()
	defer f.mu.Unlock()
	add, remove := difference(wanted, f.held)
	writes := len(add) + len(remove)
	f.held, f.members, f.ranges = wanted, slices.Clone(members), slices.Clone(ranges)
	f.writes += writes
	return Result{Device: f.Device(), Writes: writes, Problems: plan.Problems}, nil
}

// Held is [Fabric.Held].
func (f *Fake) Held() (Held, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.held.addresses) == 0 {
		return Held{}, nil
	}
	held := Held{MAC: nodestate.TunnelMACOf(f.self)}
	for a := range f.held.addresses {
		held.Addresses = append(held.Addresses, a)
	}
	slices.SortFunc(held.Addresses, netip.Addr.Compare)
	return held, nil
}

// Remove is [Fabric.Remove].
func (f *Fake) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held, f.members, f.ranges = newState(), nil, nil
	return nil
}

// Rows are those of the last Apply.
func (f *Fake) Rows() *nodestate.Slice {
	f.mu.Lock()
	defer f.mu.Unlock()
	var rows []nodestate.Row
	for _, m := range f.members {
		rows = append(rows, m)
	}
	for _, r := range f.ranges {
		rows = append(rows, r)
	}
	return nodestate.NewSlice(rows...)
}

// Writes is the number of changes since the beginning.
func (f *Fake) Writes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}
