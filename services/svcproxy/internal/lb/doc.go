// Package lb is what a Service means: its defaults and rules, the endpoints behind it, and the rows by which every node
// serves it.
//
// In: Services, EndpointSlices, Pods and Nodes, one change at a time ([World]), and single Services as a caller sends
// them. Out: completed and checked Services and EndpointSlices ([DefaultService], [ValidateService]), the values that a
// Service holds of ipam's pools ([Values], [Wants]), for each Service that a change concerns its wanted EndpointSlices,
// its rows and the node that is to announce it ([World.Plan]; [World.Replan] where only the difference is asked for), and
// where a connection would go ([World.Lookup]).
//
// Invariants: a plan depends on the present objects only, never on the order in which they came; the stored slices are
// among these objects, so that endpoints stay where they are and one Pod's change rewrites one slice. A change that
// does not concern a Service does not make it dirty. The package is pure: no I/O, no clock, no goroutine, and it never
// changes an object of the store, only those that a caller is about to write.
//
// Semantics: Kubernetes' documentation of Service, EndpointSlice and Virtual IPs, core/v1 and discovery.k8s.io/v1,
// KEP-1669 (terminating endpoints) and KEP-563 (dual stack).
package lb
