// Package pool chooses addresses, blocks and ports: from which range, which one is free, and how a grant is named.
//
// In: the configured ranges and the grants that the store shows. Out: candidates. A candidate is no grant: that is the
// transaction which creates the object named after the value, so that two replicas that choose alike cannot both have it.
//
// Invariants: what is reserved, outside of the ranges or held is never chosen; the name of a grant follows from its value
// alone. The package is pure: no I/O, no clock; chance is passed in.
package pool
