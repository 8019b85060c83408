// Package policytest is a second opinion on NetworkPolicies: an oracle that decides by brute force, and random policies to
// try it on. The tests of policy's rows and the end-to-end tests with real packets use the same.
//
// In: objects as they are in the store, and the first packet of a connection; or a source of randomness and the words to
// make policies of. Out: whether each end lets the packet pass; policies that are valid. Invariants: the oracle is written
// straight from Kubernetes' documentation of networking.k8s.io/v1 and shares nothing with the product but the objects; it
// is slow. The product must not import the package.
package policytest
