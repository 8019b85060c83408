package app

import (
	"context"
	"net/netip"

	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/announce"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/pods"
	"podwire.dev/services/nodeagent/internal/runtime"
)

// Doors are the ways by which an agent changes its host: all of them, but for the files of its own state. Production opens
// the kernel's; [Fake] has others, for the test of the whole flow.
type Doors struct {
	Rules     dataplane.Rules
	Fabric    dataplane.Members
	Flows     dataplane.Flows
	Links     Links
	Host      Host
	Announcer Announcer
	// MTU of pods' links, in bytes: what the fabric's device has.
	MTU int
	// Addresses are those on which the node serves node ports, sorted; announced are those that Announcer holds and that
	// are none of them.
	Addresses func(announced []netip.Addr) ([]netip.Addr, error)
	// Runtime opens the driver that runs containers.
	Runtime func(runtime.Config) (runtime.Driver, error)
}

// Links connects pods; *link.Links is one.
type Links interface {
	pods.Links
	// Writes is the number of changes made in the kernel since it was opened.
	Writes() uint64
}

// Host holds the settings of the host; *host.Host is one.
type Host interface {
	// Apply makes every setting as wanted and returns the number of writes.
	Apply() (int, error)
	// Check reads every setting and changes nothing.
	Check() ([]host.State, error)
}

// Announcer holds the node's load balancer addresses; *announce.Announcer is one.
type Announcer interface {
	dataplane.Announcer
	// List returns the addresses that are held, sorted.
	List() ([]netip.Addr, error)
	// Watch gives a held address up when another node announces it, and then calls yielded, until ctx ends.
	Watch(ctx context.Context, yielded func(announce.Claim)) error
	// Yielded returns the addresses given up to other nodes, with the epoch at which.
	Yielded() map[netip.Addr]int64
}

// nodeAddresses are the node's addresses now.
func (d Doors) nodeAddresses() ([]netip.Addr, error) {
	announced, err := d.Announcer.List()
	if err != nil {
		return nil, err
	}
	return d.Addresses(announced)
}
