// Package describe writes objects for people, as kubectl describe does: what an object says, what it comes to together
// with the objects around it, and what about it cannot work.
//
// In: an object and a [Reader] of the objects around it. Out: text. Invariants: no value of a Secret is written; what
// could not be read is said to be unknown and hides nothing else; a warning names the object that is missing and what
// that means. The package must not decide what the services decide (who reaches whom, where a request goes): explain and
// the services' own questions do. It repeats only what Kubernetes documents of selectors and references.
package describe
