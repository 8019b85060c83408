// Package plan computes what the node's nftables table must hold.
//
// In: the rows that the services pushed (internal/nodestate), the node's name and addresses, and the pods attached to
// it. Out: [Elements], the elements of every set of the table, and a [Change] for each step between two states, ordered
// so that a packet in the middle of several lookups never finds half of it.
//
// The table's rules never vary; they are internal/kernel/nft's. What the sets mean is said at their names (SetPods and
// following), and docs of that package say which rule reads them. The path of a new connection to a Service:
//
//	address . protocol . port -> service id -> program (its endpoint count n, or an affinity timeout)
//	                                        -> slot, at random below n -> endpoint id -> address . port
//
// and of a packet that policy judges:
//
//	local address -> subject class, other address -> peer class (prefix, then single address)
//	(subject, peer or 0 for any) alone, with protocol, with protocol and port -> allowed; anything else is denied
//
// Ranges of more than [ExpandPorts] ports go another way, since nothing with intervals may grow with policies but by
// distinct ranges: (subject, peer) -> pair id, port -> port class, (pair id, port class) -> allowed.
//
// Invariants. Elements depend on the input and on the [Allocator] only, never on the order in which rows came, nor on
// the order of maps. A change re-plans the units it touches (one service port, one pod, one policy row), and of a service
// port the endpoints it touches, so its cost does not depend on the number of the others, unless the port chooses its endpoints
// otherwise (the first ready one, the last); two exceptions grow with what they alone hold: load balancer source
// ranges, and wide port ranges of one protocol. Rows that are missing close: a pod without Subject has no class and is
// denied, a frontend without endpoints refuses. An id is not given again within [Quiet] of its release.
//
// The package is pure: no I/O, no clock (it is passed in), no goroutine.
package plan
