package plan

import (
	"net/netip"
	"sort"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
)

// Grace is the least time between a transaction and the removal of what it stopped referring to.
const Grace = 100 * time.Millisecond

// Reserved classes, marks and programs. Ids of the [Allocator] all lie at [IDBase] and above.
const (
	// Open is the class of a subject that no policy isolates.
	Open uint32 = 1
	// AnyPeer is the peer class of allowances for any peer; no peer has it.
	AnyPeer uint32 = 0
	// ProgramRefuse refuses: no endpoint anywhere. ProgramNoLocal drops: policy Local, and no endpoint here.
	ProgramRefuse  uint32 = 0x20000000
	ProgramNoLocal uint32 = 0x20000001
	// ProgramAffinity plus the timeout in seconds is the program of a service with affinity.
	ProgramAffinity uint32 = 0x10000000
	// IDBase and IDMask recognise our ids in marks: id & IDMask == IDBase.
	IDBase uint32 = 0x50000000
	IDMask uint32 = 0xff000000
	// CutMark, in the bits of IDMask of a flow's conntrack mark, says that policy has cut the flow: internal/kernel/ct sets and
	// clears it, and the table drops the flow's packets in both directions. Nothing else begins with these bits.
	CutMark uint32 = 0x60000000
	// ExpandPorts is the width up to which a range of ports becomes single elements of SetAllowPort.
	ExpandPorts = 16
	// MaxAffinity is Kubernetes' limit of an affinity timeout, in seconds.
	MaxAffinity = 86400
)

// Attachment is a pod of this node, as far as packets know it. The link need not exist yet.
type Attachment struct {
	UID string
	// Link is the host side's name, pwp….
	Link string
	// Addresses are the pod's, at most one per family.
	Addresses []netip.Addr
}

// Node is what the plan knows of the node itself.
type Node struct {
	// Name is the Node object's name, compared with Endpoint.Node and Member.Name.
	Name string
	// Zone is the Node's topology.kubernetes.io/zone, compared with the hints of endpoints; empty: none.
	Zone string
	// Addresses serve NodePorts; loopback and link-local ones are left out by the plan.
	Addresses []netip.Addr
	// TunnelPort is the UDP port of the tunnel; 0: the node has none.
	TunnelPort uint16
}

// Input is a whole state. Slices may be nil: their rows have not come yet.
type Input struct {
	Node        Node
	Attachments []Attachment
	Fabric      *nodestate.Slice // ranges, members
	Services    *nodestate.Slice // serviceports, endpoints
	Policy      *nodestate.Slice // subjects, peers, peerranges, allows
}

// Plan computes the elements of a whole state; ids remembers what it gave. It is [Planner] in one call.
func Plan(in Input, ids *Allocator, now time.Time) (Elements, error) {
	p := New(in.Node, ids)
	for _, a := range in.Attachments {
		p.Attach(a)
	}
	for _, s := range []*nodestate.Slice{in.Fabric, in.Services, in.Policy} {
		if s == nil {
			continue
		}
		if err := p.Apply(nodestate.Diff(nodestate.NewSlice(), s)); err != nil {
			return nil, err
		}
	}
	if _, err := p.Commit(now); err != nil {
		return nil, err
	}
	return p.Desired(), nil
}

// validate refuses rows whose unset fields would otherwise decide something.
func validate(r nodestate.Row) error {
	bad := func(rule string) error {
		return errs.New(errs.Invalid, "plan: row %s %q: %s", r.Table(), r.Key(), rule)
	}
	switch row := r.(type) {
	case nodestate.ServicePort:
		switch {
		case row.Port == 0:
			return bad("port must not be 0")
		case portSet(row.Protocol) == "":
			return bad("protocol must be TCP, UDP or SCTP")
		case row.SourceMode != nodestate.SourceAll && row.SourceMode != nodestate.SourceSome:
			return bad("source mode must be all or some")
		case !locality(row.InternalPolicy) || !locality(row.ExternalPolicy):
			return bad("traffic policies must be Cluster or Local")
		case row.AffinitySeconds > MaxAffinity:
			return bad("affinity timeout must be at most 86400 s")
		}
	case nodestate.Endpoint:
		if !row.Address.IsValid() || row.Backend == 0 {
			return bad("address and port must be set")
		}
		if row.State != nodestate.EndpointReady && row.State != nodestate.EndpointTerminating {
			return bad("state must be ready or terminating")
		}
	case nodestate.Subject:
		if !side(row.Ingress) || !side(row.Egress) {
			return bad("both sides must be open or isolated")
		}
	case nodestate.Peer:
		if !row.Address.IsValid() {
			return bad("address must be set")
		}
	case nodestate.PeerRange:
		if !row.From.IsValid() || row.From.BitLen() != row.To.BitLen() || row.To.Less(row.From) {
			return bad("range must have two ends of one family, in order")
		}
	case nodestate.Allow:
		return validateAllow(row, bad)
	}
	return nil
}

func validateAllow(a nodestate.Allow, bad func(string) error) error {
	switch {
	case a.Direction != nodestate.Ingress && a.Direction != nodestate.Egress:
		return bad("direction must be ingress or egress")
	case a.PeerMode != nodestate.PeerAny && a.PeerMode != nodestate.PeerClass:
		return bad("peer mode must be any or class")
	case a.PortMode < nodestate.PortAny || a.PortMode > nodestate.PortRange:
		return bad("port mode must be any, protocol or range")
	case a.PortMode != nodestate.PortAny && portSet(a.Protocol) == "":
		return bad("protocol must be TCP, UDP or SCTP")
	case a.PortMode == nodestate.PortRange && a.To < a.From:
		return bad("ports must be in order")
	}
	return nil
}

func locality(l nodestate.Locality) bool {
	return l == nodestate.LocalityCluster || l == nodestate.LocalityLocal
}

func side(s nodestate.Side) bool {
	return s.Mode == nodestate.SideOpen || s.Mode == nodestate.SideIsolated
}

func portSet(p nodestate.Protocol) SetName {
	switch p {
	case nodestate.TCP:
		return SetPortsTCP
	case nodestate.UDP:
		return SetPortsUDP
	case nodestate.SCTP:
		return SetPortsSCTP
	}
	return ""
}

func familyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
