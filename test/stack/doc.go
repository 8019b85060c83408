// Package stack runs the whole flow in one process: the four services on one store in memory, over mutual TLS on
// loopback, and three nodes whose kernel is a map.
//
//	apply -> api -> store -> feed -> Plan() -> push -> subscribe -> rows -> ack -> watermark -> wait
//
// In: manifests. Out: what each node holds at the revision that `wait` has passed. The tests look at the seams between the
// services, which no test of one service sees: derived writes and their causes, receipts over all of them, one service
// that is down while the others go on. The kernel itself is the agent's tests' and test/e2e's.
//
// Invariants: nothing sleeps; every wait is for a receipt or a state that a node reports.
package stack
