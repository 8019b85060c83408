// Package testnet gives tests real network namespaces: nodes, pods and a hostile host, with real packets between them.
//
// In: a test, and a description of namespaces, veth pairs, bridges and addresses. Out: namespaces in which a test runs
// code, commands, servers, clients and forged frames, and typed outcomes of each attempt.
//
// Invariants: a namespace lives as long as a descriptor of this process refers to it, so nothing is left behind, whatever
// way the test process ends, and test processes that run at the same time cannot collide: no namespace and no link of a
// test has a name outside its own namespaces. Every ability that is missing (no root, no such kernel feature) fails the
// test; nothing is ever skipped.
//
// It must not touch the namespace that the test process was started in, and must not be imported by anything but tests.
package testnet
