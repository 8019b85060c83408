package liveness

import (
	"sync"

	"podwire.dev/internal/store"
)

// deaths are the nodes that the World may still call dead. An agent that is answered reports its Pods again: before the World
// has the node alive, the planner would take that back, and nobody would say it once more. It is safe for concurrent use.
type deaths struct {
	mu sync.Mutex
	// known is false before the World was looked at: everybody may be dead in it.
	known bool
	// since is the revision at which each was declared dead.
	since map[string]store.Revision
}

// forget begins anew: another replica judged meanwhile.
func (d *deaths) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known, d.since = false, nil
}

// read takes in what the World at a revision says.
func (d *deaths) read(at store.Revision, dead map[string]store.Revision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := map[string]store.Revision{}
	for node, since := range d.since {
		if at < since {
			next[node] = since // that World does not know of it yet
		}
	}
	for node, since := range dead {
		next[node] = max(next[node], since)
	}
	d.known, d.since = true, next
}

// declare enters a death that was written at a revision.
func (d *deaths) declare(node string, at store.Revision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known {
		d.since[node] = at
	}
}

// has says whether the World may call the node dead.
func (d *deaths) has(node string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, dead := d.since[node]
	return dead || !d.known
}
