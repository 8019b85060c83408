// Package secondopinion holds what the node's kernel does against two models that were written apart from it: the tracer,
// which walks the tables' elements, and the judge, which reads policy's rows.
//
// In: random clusters of two nodes and their pods, as the rows that the services would push, and a seed. Out: for each
// packet that is sent, what arrived where, from which address, and what the models say. There is nothing here but tests:
//
//	go test ./services/nodeagent/internal/secondopinion -seed 7 -clusters 100
//
// Invariants: no outcome is excused. The rows are made here, by a generator that knows nothing of how the services
// compute them, so that it also makes what they never would.
package secondopinion
