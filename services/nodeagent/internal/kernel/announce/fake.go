package announce

import (
	"context"
	"maps"
	"net/netip"
	"sync"

	"podwire.dev/internal/nodestate"
)

// Fake is an [Announcer] without a kernel, for tests: addresses are held, and given up when another claims them, by the
// rules of the real one; nothing is sent. The zero value holds nothing. Its methods may be called at the same time.
type Fake struct {
	mu      sync.Mutex
	state   Announcer // its door is never used: only held and yielded
	writes  uint64
	claims  []Claim
	claimed chan struct{} // closed and replaced with each claim
}

func (f *Fake) init() {
	if f.claimed == nil {
		f.claimed, f.state.held = make(chan struct{}), map[netip.Addr]int64{}
	}
}

// Apply is [Announcer.Apply].
func (f *Fake) Apply(rows []nodestate.Announcement) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	desired := f.state.desired(rows)
	var news []netip.Addr
	for address, epoch := range desired {
		old, known := f.state.held[address]
		if !known {
			f.writes++
		}
		if !known || old != 0 && epoch > old {
			news = append(news, address)
		}
	}
	for address := range f.state.held {
		if _, ok := desired[address]; !ok {
			f.writes++
		}
	}
	f.state.held = desired
	sortAddresses(news)
	return news, nil
}

// Advertise is [Announcer.Advertise]; it sends nothing.
func (f *Fake) Advertise([]netip.Addr) error { return nil }

// List is [Announcer.List].
func (f *Fake) List() ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]netip.Addr, 0, len(f.state.held))
	for address := range f.state.held {
		list = append(list, address)
	}
	sortAddresses(list)
	return list, nil
}

// Yielded is [Announcer.Yielded].
func (f *Fake) Yielded() map[netip.Addr]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.state.yielded)
}

// Claim is another node's announcement of an address: one that is held is given up, and Watch tells.
func (f *Fake) Claim(address netip.Addr, by [6]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	epoch, held := f.state.held[address]
	if !held {
		return
	}
	delete(f.state.held, address)
	if f.state.yielded == nil {
		f.state.yielded = map[netip.Addr]int64{}
	}
	f.state.yielded[address] = epoch
	f.writes++
	f.claims = append(f.claims, Claim{Address: address, By: by, Epoch: epoch})
	close(f.claimed)
	f.claimed = make(chan struct{})
}

// Watch is [Announcer.Watch].
func (f *Fake) Watch(ctx context.Context, yielded func(Claim)) error {
	for {
		f.mu.Lock()
		f.init()
		claims, more := f.claims, f.claimed
		f.claims = nil
		f.mu.Unlock()
		for _, c := range claims {
			yielded(c)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

// Writes is [Announcer.Writes].
func (f *Fake) Writes() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}
