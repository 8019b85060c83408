// Package feed runs a service's World: one goroutine that follows the store, has the service's pure core plan what it
// sees, publishes the plan to the nodes, and hands what the service derives to a writer.
//
//	store -> Follower -> [Planner.Put, Delete, Plan] -> push.Hub -> nodes
//	                                   `-> writer (elected) -> store
//
// A service that pushes nothing has Answers in the hub's place: its watermark says from which World its replicas answer.
//
// What happens to objects of other services only raises the World's revision.
//
// In: the store's updates. Out: publications of the hub, derived writes, the service's watermark.
//
// Invariants: the Planner is called by one goroutine only; updates that wait are applied together before one Plan, which
// is all the coalescing there is; after a compaction the Planner begins a new World and the nodes get the difference. A
// derived write carries its cause, is committed only by the elected replica, and holds the settled revision below its
// cause until the World contains it. The package must not know what the objects mean, except Nodes, on which receipts
// rest.
package feed

import (
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
)

// Planner is a service's World with its plan: the pure core behind an adapter. One goroutine calls it.
type Planner interface {
	// Reset begins a new, empty World. Every object follows as a Put.
	Reset()
	// Put adds an object or replaces it.
	Put(rec store.Record)
	// Delete removes an object. The event's Object is its last state, or nil where that is not known any more.
	Delete(ev store.Event)
	// Plan says what the World at a revision asks for.
	Plan(at store.Revision) (Plan, error)
}

// Plan is what a World asks for.
type Plan struct {
	// Shared is the change of the slice that all nodes have in common since the Plan before; after Reset, every row as
	// an upsert and no removes.
	Shared nodestate.Delta
	// PerNode are the complete slices of the nodes whose slice may have changed since the Plan before. An empty slice
	// is a node without rows.
	PerNode map[string]*nodestate.Slice
	// Writes are all the derived writes that the World lacks, not only the new ones.
	Writes []Write
}

// Write is one derived write.
type Write struct {
	// Key names the object.
	Key store.Key
	// Object is the wanted state; nil deletes.
	Object store.Object
	// Base is the record that the write was computed from and that must still hold; nil where the object must not exist.
	Base *store.Record
	// Cause is the change that asked for it: its revision and trace.
	Cause store.Cause
}
