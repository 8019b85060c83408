// Package ct ends the tracked flows that the node's tables no longer carry. It is the only package that changes conntrack
// entries.
//
// In: what the kernel holds now (dataplane.Tables) and what changed. Out: entries of this network namespace deleted, and others
// marked as cut (plan.CutMark) or released.
//
// A rule of the table judges and translates the first packet of a flow only; all others follow the entry that the first
// one left. So a change of the tables means nothing to flows that exist, until their entries go or the table drops their packets:
//
//   - Services. A UDP or SCTP flow to a Service's address or node port ends when the endpoint that it was sent to is no
//     longer one of that port, when the Service is gone, when another Service has taken the address or port, and when it
//     was never translated, since it began before there was a Service. An endpoint that terminates but serves, or that a
//     traffic policy no longer chooses, keeps its flows. TCP flows are left alone. All of it is as in kube-proxy.
//   - Policy. A flow from or to a pod of this node ends when policy (internal/judge) no longer lets it pass, judged in its
//     original direction, from the source before to the destination after translation. It also ends when the pod is gone,
//     so that the next pod of the address inherits none.
//
// How policy ends a flow. A TCP flow and a ping are deleted: the skeleton lets no TCP flow begin in its middle, and conntrack
// takes no answer to a ping for a beginning. Anything else would begin anew, in the other direction, with whatever its server
// still sends; policy may allow that direction, and what the client may not send would pass as the answer. Such an entry is
// marked as cut and stays, and the skeleton drops what belongs to it, in both directions. It expires when neither end has sent
// anything for conntrack's timeout. When policy allows the flow again, the mark is taken away: the flow goes on as the one that it
// was, begun by the same end, so that the next change judges it right.
//
// Invariants. Every pass lists all entries and compares them; nothing depends on having seen an event. Only entries from
// or to a Service's addresses or one of this node's pods are ever touched. They are deleted by tuple and id, so that a flow that
// began anew meanwhile stays; the kernel finds those to mark by tuple alone, so a pass that cut flows looks again. The caller
// commits the rules first. What is cut belongs to policy: Services do not end it.
//
// An address of the node's blocks that is in use belongs to an attached pod or to the node itself.
//
// The package must not change the ruleset, and must not decide what policy means.
package ct
