// Package push carries the rows of nodestate from the service that plans them to the agent that holds them, and brings
// back what each node holds.
//
// In, at the service: one [Publication] per World, from the one goroutine of the feed. Out, at the agent: one [Update]
// at a time, in order, complete and verified. Back: an ack per update, folded into the service's [Watermark].
//
// # Versions
//
// A version is the revision of the World that a state was planned from. The hub stamps a slice with the version at which
// it last changed, not with the newest World's: every subscriber of an unchanged slice then holds the same version, so
// that the next change is one message, encoded once, for all of them. What did not change counts as held without a
// message.
//
// # One message in flight
//
// The hub sends a subscriber the next message after the ack of the last one. What happens meanwhile coalesces: the next
// message leads from the version that the subscriber holds to the newest one. There is no queue per subscriber that could
// overflow, a slow agent costs one number, and the base of each message is known to be what the agent holds. After a
// refusal the agent goes on holding its version; the hub sends again from there, when something changes or after a pause
// that doubles.
//
// # What may remove rows
//
// A DELTA whose base is the held version and whose digests agree afterwards; or a complete snapshot (BEGIN, every row
// announced, END with digests that agree) of the held cluster id at a version that is not below the held one. A store
// that went backwards, or another store, freezes the agent's state until [Subscriber.Accept], which an
// [Accepted] remembers for the node's other slices; so does a history that the marks of the store ([nodestate.History]) tell
// from the held one. An incomplete snapshot, a
// gap or a digest that does not agree changes nothing: the agent subscribes again and asks for a snapshot.
//
// # Order on the agent
//
// verify, append to the journal, kernel commit, ack. The journal comes first so that a restart between the two goes
// forward to the state that was about to be true, never back to one that the kernel has left; a refusal appends the
// rollback.
//
// Invariants: Publish never waits for a subscriber. Constructors start nothing. The package knows no Kubernetes object:
// it moves rows. It must not change a row, and it must not decide what a node should hold.
package push
