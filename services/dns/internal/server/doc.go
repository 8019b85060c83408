// Package server speaks DNS: UDP and TCP sockets, messages, their limits.
//
// In: packets. Out: packets, or none for what is no query. Invariants: what comes in is read without being trusted: a packet
// costs a bounded amount of work and memory whatever it says, and one that cannot be understood is answered FORMERR at most;
// an answer is never larger than the question's EDNS size, over UDP never than 1232 bytes; what the zone itself says is
// answered in the goroutine that read the question, and only questions for others wait elsewhere, in bounded number. An
// answer goes where its question came from and nowhere else. The package must not know what names mean.
package server
