// Package e2e drives a real instance as its users do: `podwire up`, the command line and gRPC, pods in namespaces, and
// packets that are sent and answered. Faults are what happens to machines: processes that are killed or stand still, a store
// that is put back from a backup, clients that all write at once. Nothing is looked at from the inside.
//
// In: the binary that PODWIRE_BINARY names, else bin/podwire. The tests share one instance in a temporary state, but for
// those that break its store; each works in namespaces of its own and removes them. This test binary also plays the parts of
// pods (see part): servers, and senders that count what was lost and go on whatever becomes of agents.
//
// Invariants: every check is a probe that could come out otherwise; nothing waits for time to pass, everything for receipts,
// readiness, requests or an answer; no time is asserted, bounds are only there so that what never happens fails. Random drills
// print their seed, and -seed repeats it. At the end `podwire down` has left nothing.
package e2e
