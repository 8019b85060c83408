package link

import (
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"

	"podwire.dev/internal/errs"
)

// Fake is a [Links] without a kernel, for tests. It refuses what Links refuses of a pod's description, and repairs
// without a write what is as asked for. The zero value is a node without pod links. Its methods may be called at the same
// time.
type Fake struct {
	mu     sync.Mutex
	live   map[string]Attachment // by UID
	last   int
	writes uint64
}

// Attach is [Links.Attach].
func (f *Fake) Attach(p Pod) (Attachment, error) {
	if err := p.validate(); err != nil {
		return Attachment{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	addresses := slices.Clone(p.Addresses)
	sort.Slice(addresses, func(i, j int) bool { return addresses[i].Less(addresses[j]) })
	held, ok := f.live[p.UID]
	if ok && slices.Equal(held.Addresses, addresses) {
		return clone(held), nil
	}
	if !ok {
		f.last++
		held = Attachment{Link: Name(p.UID), Index: f.last, UID: p.UID, Namespace: p.Namespace, Name: p.Name}
	}
	held.Addresses = addresses
	if f.live == nil {
		f.live = map[string]Attachment{}
	}
	f.live[p.UID] = held
	f.writes++
	return clone(held), nil
}

// Detach is [Links.Detach].
func (f *Fake) Detach(uid string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if uid == "" {
		return errs.New(errs.Invalid, "detach pod: a UID is required")
	}
	if _, ok := f.live[uid]; ok {
		delete(f.live, uid)
		f.writes++
	}
	return nil
}

// List is [Links.List].
func (f *Fake) List() ([]Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	live := slices.SortedFunc(maps.Values(f.live), func(a, b Attachment) int { return strings.Compare(a.Link, b.Link) })
	for i, a := range live {
		live[i] = clone(a)
	}
	return live, nil
}

// Writes is [Links.Writes].
func (f *Fake) Writes() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}

func clone(a Attachment) Attachment {
	a.Addresses = slices.Clone(a.Addresses)
	return a
}
