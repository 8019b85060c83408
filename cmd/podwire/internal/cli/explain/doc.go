// Package explain reads the question of `podwire explain` and writes its answer.
//
// In: the two ends of a connection as a user writes them, and an [Answer] that the command has put together. Out: the ends
// in parts, and the answer as text or JSON. Invariants: what an end prints reads back as the same end; an answer says what
// the services want and what the nodes' tables do side by side, and never hides that the two differ. The package asks
// nobody.
package explain
