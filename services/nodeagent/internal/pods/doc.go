// Package pods runs the lives of the node's pods: from the row that assigns a Pod to this node to the last trace of it.
//
// In: the workload rows of cluster's slice ([Supervisor.Restore] from the journal, [Supervisor.Update] from the
// service), what the runtime says of containers ([Supervisor.Changed]), and what an earlier agent left on disk and in the
// kernel. Out: sandboxes, links, containers, and the status of each Pod.
//
// # The order of a start
//
//	addresses -> sandbox -> policy and gate in the kernel -> link -> files, init containers, containers -> probes -> ready
//
// Policy comes before the link: no packet of a pod passes before the rules about this pod are in the kernel. The
// addresses are reported as soon as the link is there, so that other nodes know the pod before it is ready.
//
// # The order of an end
//
//	not ready -> preStop, SIGTERM, grace, SIGKILL -> link away -> out of the kernel's tables -> sandbox away
//	-> Pod deleted for good -> its addresses in quarantine, which is bound to the revision of that deletion
//
// A Pod whose row vanished was deleted by force: the same, without grace and without the deletion. A Pod that has finished
// (Succeeded, Failed) gives its network back and keeps its logs.
//
// # What is trusted when
//
// Rows from the journal start and adopt pods. Only a word of the service itself ([Supervisor.Update]) tears down pods
// that have no row. A pod that runs already is adopted by the same steps, each of which changes nothing where nothing
// differs; its readiness stays what it was until a probe of this agent has a verdict.
//
// Invariants: one goroutine per pod decides about it, another reports its status; no pod waits for another but for its
// turn among [Config.Starts] that start. The end of the process ends no pod. The package must not decide which address a pod gets,
// what policy says, or how containers run: it declares interfaces for those who do.
package pods
