// Package addresses gives the pods of one node their addresses.
//
// In: blocks leased from ipam, the live links (the witness of what is in use), the requests of the pods' lifecycles,
// and the watermark that heartbeats bring. Out: one address of each family per pod, and leases of further blocks before
// they are needed.
//
// Invariants. An address belongs to one pod UID at a time, also over crashes: what is given is on disk before its pod
// knows it, and an address whose link is gone after a restart counts as released at that moment. The node's tunnel
// addresses are never given. A released address is not given again for at least [Config.Quarantine], and not before the
// services that everybody waits for have passed the removal of its last pod ([Allocator.Watermark]); while that revision
// is not known, it is not given at all. Addresses never used before come first, then the one that was released longest
// ago. Blocks are routed, not bridged, so they have neither network nor broadcast address.
//
// One goroutine, [Allocator.Run], owns the state; what others read is an immutable copy. The package writes one file and
// must not touch the kernel.
package addresses
