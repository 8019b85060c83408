// Package proxy is the ingress' HTTP server: it takes requests from clients and passes them on to endpoints as a table of
// package route says.
//
// In: a [Snapshot] (a table and the certificates that it names), published as often as it changes; listeners. Out: answers
// of endpoints, streamed; or the ingress' own, in plain text with the reason's code.
//
// Invariants: a request is judged by one Snapshot; those under way when another is published end where they began, and an
// endpoint that left gets no new request. A request is sent to another endpoint only where that cannot do its work twice:
// nothing of it was sent, or its method may be repeated (RFC 9110 section 9.2.2) and all of its body is at hand. What a
// client says of itself in forwarding headers is believed of trusted proxies only. Memory is bounded by [Limits], whatever
// clients send. The package must not know the store, nor decide where a request goes.
package proxy
