// Package stack runs the whole flow in one process: the four services on one store in memory, over mutual TLS on
// loopback, and three agents whose hosts are kept in memory.
//
//	apply -> api -> store -> feed -> Plan() -> push -> subscribe -> dataplane -> plan -> table -> ack -> watermark -> wait
//
// In: manifests. Out: what the nftables table of each host does with a packet at the revision that `wait` has passed, and
// which Pods run there. The tests look at the seams between the processes, which no test of one of them sees: derived
// writes and their causes, receipts over all services, each process that stops and starts while the others go on, a host
// that refuses, hangs or is silent, a store that goes backwards. What a kernel does with the table is the agent's tests'
// and test/e2e's.
//
// Invariants: every wait is for a receipt, or for a state of a node or of its host; a host is looked at every few
// milliseconds, since it tells nobody.
package stack
