// Package forward asks other servers for the names that are not the cluster's, and keeps what they say.
//
// In: questions, upstream servers in the order of preference, stub zones. Out: answers with where they come from.
//
// Invariants: of equal questions one is on its way at a time, so that a loop through ourselves joins what it came from and
// ends with that one's deadline. Message ids and source ports are random, and an answer counts only from the server that was
// asked, with the id and the question that were sent. What is kept is bounded in number, in size and in time: positive
// answers by their TTL, negative ones by their SOA (RFC 2308), failures for at most five seconds (RFC 9520), and for one
// hour past its time what upstream servers fail to renew (RFC 8767). A truncated answer is never kept.
//
// The package must not know of the cluster's zones: who calls it has asked them first.
package forward
