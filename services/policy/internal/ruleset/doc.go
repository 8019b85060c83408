// Package ruleset computes, from Namespaces, Pods and NetworkPolicies, the policy tables of every node.
//
// In: objects, one change at a time ([World]). Out: for each node that a change concerns, the rows that its agent must
// hold ([World.Compile]), and for any connection the verdict with the rules that give it ([World.Explain]).
//
// How pods become classes. A rule's peers are terms: a pod selector within a namespace, a namespace selector, both, an
// IP block, or "has a port of this name" (which only a named port in an egress rule needs). Pods and addresses that
// match exactly the same of a node's terms form one peer class; pods of the node that the same policies isolate, and
// whose named ports resolve alike, form one subject class. A class is named by a hash of what defines it, so every
// replica and every version of the World names it alike. An Allow row connects a subject class, a peer class and ports.
//
// Invariants: the result depends on the present objects only, never on the order in which they came; what a rule refers
// to and does not exist matches nothing; a pod that a policy selects is isolated whatever its rules say. The package is
// pure: no I/O, no clock, no goroutine. Semantics: Kubernetes' NetworkPolicy documentation and networking.k8s.io/v1.
package ruleset
