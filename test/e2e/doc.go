// Package e2e drives a real instance as its users do: `podwire up`, the command line and gRPC, pods in namespaces, and
// packets that are sent and answered. Nothing is looked at from the inside.
//
// In: the binary that PODWIRE_BINARY names, else bin/podwire. The tests share one instance in a temporary state; each
// works in namespaces of its own and removes them. Invariants: every check is a probe that could come out otherwise;
// nothing waits for time to pass, everything for receipts, readiness or an answer; at the end `podwire down` has left
// nothing.
package e2e
