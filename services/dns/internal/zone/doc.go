// Package zone holds what the cluster's names resolve to, and answers questions about them: the schema of the Kubernetes DNS
// specification 1.1.
//
// In: Services, EndpointSlices, Pods, Namespaces and the address ranges that are the cluster's. Out: a View, which answers
// any question of the cluster's domain and of the reverse zones of its ranges, with the reason in words for people.
//
// Invariants: a View never changes and is safe for any number of readers without a lock; the World, which one goroutine
// owns, makes the next View from the one before by copying only the paths that changed. A change costs the endpoints of the
// Services that it touches, however many others there are. A name exists exactly if it or a name below it has a record
// (RFC 8020), with one exception: the inner names of reverse zones always exist.
//
// The package must not know of sockets, messages or forwarding: a name that is not the cluster's is said to be outside, and
// an alias that leads there is said to lead there.
package zone
