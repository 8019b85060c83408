// Package control is what one node says to the control plane and asks of it: its Node object, its heartbeat, blocks of
// addresses, the status of its pods.
//
// In: what the node is and how it fares. Out: calls to cluster and ipam. Invariants: every call is repeated until it
// succeeds or is pointless; nothing here waits for another; losing a service changes nothing on the node. The node writes
// its own Node and the Pods assigned to it, and of the Node only what it knows: what people and cluster wrote is kept.
// It must not touch the kernel or decide what runs.
package control
