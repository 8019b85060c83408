// Package route is what an Ingress means: where a request goes, and which certificate a client is shown.
//
// In: Ingresses, IngressClasses, Services, EndpointSlices and what is known of Secrets, one change at a time ([World]).
// Out: an immutable [Table] that answers, for a host, a path and a client, which rule matches, which endpoints it leads
// to, what path they are sent, or what the ingress answers itself, always with the reason ([Table.Decide]); and for a
// server name, which Secret's certificate is shown ([Table.Certificate]).
//
// Invariants: a table depends on the present objects only, never on the order in which they came. What is missing fails
// closed: the rule that names it matches and answers with an error, and no other rule takes over. One request is judged in
// one way: a path that an endpoint could read as another route's is refused ([ParsePath], [Table.Decide]). The package is
// pure: no I/O, no clock, no goroutine; a Secret's content is somebody else's to read.
//
// Semantics: Kubernetes' documentation of Ingress and networking.k8s.io/v1; for the annotations of nginx.ingress.kubernetes.io,
// ingress-nginx' documentation, with the differences that docs/ingress.md lists.
package route
