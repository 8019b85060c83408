// Package dataplane is the one goroutine that decides what the node's kernel holds.
//
//	push updates, attachments, timers -> plan -> ids on disk -> nftables -> members -> addresses -> tracked flows -> ack
//
// In: the updates of the four services, pods that are attached and detached, time. Out: transactions in the kernel, an ack
// for each update with how long each step took, and one hop per change in the change's own trace.
//
// Invariants. Everything that waits goes into one transaction. Ids are on disk before the transaction that uses them.
// What the kernel refuses is read back and compared; what it refuses again is taken out of the plan, and its updates are
// refused: the kernel keeps what it held. Tracked flows are judged after the rules are in, never before. An update is
// acked after all of it. Prepare returns when the pod's gate and policy are in the kernel; until then nothing passes.
// Nothing here opens anything because of an error.
//
// The package must not speak to any service, run any pod, or know how a rule is written.
package dataplane

import (
	"context"
	"net/netip"

	"podwire.dev/internal/fabric"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

// Rules is the nftables table of the node; *nft.Table is one.
type Rules interface {
	Read() (nft.State, error)
	// Glance says cheaply what is wrong with the table's rules; "" where nothing is.
	Glance() (damage string, err error)
	Install(want plan.Elements) (nft.Result, error)
	Apply(change plan.Change) (nft.Result, error)
}

// Members is the fabric; *fabric.Fabric is one.
type Members interface {
	Apply(members []nodestate.Member, ranges []nodestate.Range) (fabric.Result, error)
}

// Announcer holds this node's load balancer addresses; *announce.Announcer is one. It may be nil.
type Announcer interface {
	Apply(rows []nodestate.Announcement) ([]netip.Addr, error)
	Advertise(addrs []netip.Addr) error
}

// Flows are the flows that conntrack tracks.
type Flows interface {
	// Reconcile ends the flows that the tables no longer carry, and returns how many. When it returns, nothing of them passes.
	Reconcile(ctx context.Context, t Tables, what Concern) (int, error)
}

// Concern says what changed, so that nothing else is looked at.
type Concern struct{ Services, Policy bool }

// Tables are what the kernel holds now, for reading only.
type Tables struct {
	Node        plan.Node
	Fabric      *nodestate.Slice // ranges, members
	Services    *nodestate.Slice // serviceports, endpoints, announcements
	Policy      *nodestate.Slice // subjects, peers, peerranges, allows
	Workloads   *nodestate.Slice // workloads, for counting
	Attachments []plan.Attachment
	// Elements are those of the nftables table.
	Elements plan.Elements
	Versions map[nodestate.Source]nodestate.Version
}

// Workloads takes the pods that the node is to run.
type Workloads interface {
	// SetWorkloads hands over an update of cluster's slice and does not wait for pods to start. Complete says that the
	// service confirmed the slice, so that a pod that is not in it is gone; a slice from disk is not complete.
	SetWorkloads(u WorkloadUpdate)
}

// WorkloadUpdate is a step of cluster's slice.
type WorkloadUpdate struct {
	Upserts  []nodestate.Workload
	Removes  []string // UIDs
	Version  nodestate.Version
	Changes  []push.Change
	Complete bool
}
