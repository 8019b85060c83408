// Package member makes the replica of a service a member of the fabric: a process that exchanges packets with pods,
// though it is no node.
//
// In: the configuration, what ipam pushes, what the service says of itself. Out: an address of each family of the pod
// ranges, leased from ipam; a fabric in the kernel of this network namespace that reaches every pod from them; and a Pod
// in kube-system, which cluster writes for as long as the member attends.
//
//	m, err := member.Join(d, cfg.Common, cfg.Member, creds, member.Service{Name: Name, Ports: ports})
//	…
//	d.Go("sockets", func(ctx context.Context) error {
//		addresses, err := m.Await(ctx) // leased, and on the device
//		…                              // bind
//		m.Ready()
//	})
//
// Invariants: nothing here waits for a service that something else waits for: the lease and the fabric need ipam alone,
// attending needs cluster alone, and losing both changes nothing in the kernel. What an earlier process of the same member
// left is adopted as it is. The kernel is written after a complete first slice only. Addresses never change while the
// process runs: should ipam give others, the process ends, loudly, and its successor serves on them. A network namespace
// has one member: the fabric of another is refused, not taken over. It must not decide who is a member or who holds which
// address.
package member
