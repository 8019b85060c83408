// Package fabric carries packets between the members of a cluster: one VXLAN device, one forwarding entry, neighbour entry
// and route per member, written once and resolved by nobody, so that the first packet to any pod is delivered.
//
// In: the members and ranges that ipam pushes, and the member's own name and underlay address. Out: the VXLAN device with
// the member's tunnel addresses; for each other member a forwarding entry (tunnel MAC to underlay address), permanent
// neighbour entries and a route per block; a route per Service range, whose source is the tunnel address (on a member that
// is no node, and translates nothing, an unreachable one); and unreachable routes for pod addresses that nobody holds.
//
// Invariants: [Compute] is pure, and the order of rows does not matter. [Fabric.Apply] reads the kernel and writes only what
// differs: additions first, each before what depends on it, removals after all additions, in reverse. A route is replaced, so
// that there is no moment without it. What belongs to the fabric is known by the device's name and alias and by the route
// protocol number 97 together with the device or the type unreachable; nothing else is ever changed. In particular, pod
// routes (number 97, on pod links) are another package's, and a foreign route to the same destination is reported, not
// replaced.
//
// This package is the only writer of VXLAN devices, forwarding entries and member routes. It knows nothing of pods.
package fabric
