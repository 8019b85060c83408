// Package archtest keeps the walls of the tree: who may import whom, what a pure core must not touch, which
// package is the one door to each outside thing, and the habits of the house (documentation, sizes, goroutines,
// names) that a linter cannot know.
//
// In: the sources of the repository, as a file system. Out: findings, each with a place and what to do about it.
// It reads syntax only, so it needs no compiler, no network and a second of time, and it also works on a tree
// that does not build.
//
// Invariants: every rule has a bad sample in testdata (a txtar tree and the findings it must yield), so no rule
// passes because it sees nothing; a rule that found no subject in the repository fails; an exception states its
// reason and fails once it excuses nothing.
//
// It must not be imported: it has users only in its own tests. To change a wall, change layout.go and say why in
// an ADR; to make an exception, add it to exceptions.go with its reason.
package archtest
