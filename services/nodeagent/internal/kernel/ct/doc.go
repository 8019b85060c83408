// Package ct ends the tracked flows that the node's tables no longer carry. It is the only package that deletes conntrack
// entries.
//
// In: what the kernel holds now (dataplane.Tables) and what changed. Out: deleted entries of this network namespace.
//
// A rule of the table judges and translates the first packet of a flow only; all others follow the entry that the first
// one left. So a change of the tables means nothing to flows that exist, until their entries go:
//
//   - Services. A UDP or SCTP flow to a Service's address or node port ends when the endpoint that it was sent to is no
//     longer one of that port, when the Service is gone, when another Service has taken the address or port, and when it
//     was never translated, since it began before there was a Service. An endpoint that terminates but serves, or that a
//     traffic policy no longer chooses, keeps its flows. TCP flows are left alone. All of it is as in kube-proxy.
//   - Policy. A flow from or to a pod of this node ends when policy (internal/judge) no longer lets it pass, judged in its
//     original direction, from the source before to the destination after translation. It also ends when the pod is gone,
//     so that the next pod of the address inherits none.
//
// Invariants. Every pass lists all entries and compares them; nothing depends on having seen an event. Only entries from
// or to a Service's addresses or one of this node's pods are ever deleted, each by its tuple and its id, so that a flow
// that began anew meanwhile stays. The caller commits the rules first. A TCP flow that was cut stays cut, because the
// skeleton lets no flow begin in its middle. A UDP flow has no beginning: a late answer to one that was cut is a flow of its
// own in the other direction, which policy may allow, and which lets pass what the other end still sends. A pass that cut
// such a flow looks for answers a few times, and later passes for as long as there are any. What is left is a server that
// is always in the middle of an answer while its client never pauses.
//
// An address of the node's blocks that is in use belongs to an attached pod or to the node itself.
//
// The package must not change the ruleset, and must not decide what policy means.
package ct
