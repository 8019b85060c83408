// Package nodestate defines the tables that a node holds: their rows, keys, encoding and digest, and the difference
// between two states.
//
// In: rows computed by the services' pure cores. Out: the same rows, read by the agent's plan. internal/push carries
// them in between.
//
// Invariants: a row is a value; it is never changed after it was put into a [Slice]. Equal rows encode to equal
// bytes, so that digests computed by different replicas, and by the agent, agree. A digest does not depend on the
// order in which rows came. Slices within a row (addresses, prefixes, names) are kept in the order in which the
// core gave them and are part of the row's identity: cores sort them.
//
// The package is pure: it performs no I/O, reads no clock, and starts no goroutine.
package nodestate
