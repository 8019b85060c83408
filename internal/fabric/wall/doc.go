// Package wall keeps what is not meant for it away from a fabric member that is no node: its own nftables table in the
// member's network namespace.
//
// In: the member's fabric addresses, the underlay addresses of the other members, the ports that it serves to pods. Out: the
// table inet podwire-member. Through it
//
//   - the tunnel's port takes packets of members only, and none that came through the tunnel: whoever else could send
//     there would speak for any pod, since the inner source is believed;
//   - nothing is forwarded into the fabric or out of it, whatever ip_forward says: the nodes take what a member sends for its own;
//   - the fabric addresses answer to the fabric only: the kernel would take packets for them from any link;
//   - through the tunnel, TCP connections begin to the served ports only; others are refused. What else listens here is for
//     the underlay.
//
// Invariants: the table is replaced whole, in one transaction, so that no packet sees a part of it; what is there already is
// not written again. No connection is tracked for its sake. Nothing but that table is written.
package wall
