// Package nft is the only writer of the nftables table "inet podwire".
//
// In: elements and changes of the plan (services/nodeagent/internal/plan). Out: transactions, and the table's content
// read back.
//
// The rules are a fixed skeleton, named by a digest of itself (the empty set skeleton-…), so that an agent recognises
// its own and replaces any other in one transaction. Everything that varies is an element. Two kinds of chains vary:
// count-<n>, one for each number of endpoints that a service has or had, and affinity-<seconds>; they are made in the
// transaction that first names them and go away only in one that an agent makes when it starts.
//
// Marks. During the first packet of a flow from or to a pod or a Service, both the packet's mark and the conntrack
// mark are ours, all bits, since they are the only variables that a rule has. Every path that lets a packet go on
// clears both: the packet's mark before the next routing decision, the conntrack mark in the hook's last chain. What
// other software puts there is lost on those packets; all other packets keep theirs. While a flow is on its way to an
// endpoint, its conntrack mark is the endpoint's id (plan.IDMask, plan.IDBase). A flow that policy has cut is marked by
// internal/kernel/ct (plan.CutMark); the rules only drop what belongs to it.
//
// Invariants. A commit is one batch. After an error that is no plain refusal by the kernel, the caller must read before
// it believes anything: the batch may have been applied (errs.Unavailable says so). The table never accepts in another
// table's place. No goroutine is started; a Table must not be used by two at once.
//
// It must not compute what the table should hold, and must not touch any other table.
package nft
