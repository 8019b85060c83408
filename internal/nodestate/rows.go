package nodestate

import (
	"net/netip"
	"strconv"
)

// Source is the service that computes and pushes a slice.
type Source string

// The services that push.
const (
	SourceCluster  Source = "cluster"
	SourceIPAM     Source = "ipam"
	SourceSvcproxy Source = "svcproxy"
	SourcePolicy   Source = "policy"
)

// Table names one table of a slice.
type Table string

// The tables, each written by one source.
const (
	TableWorkloads     Table = "workloads"     // cluster, per node
	TableMembers       Table = "members"       // ipam
	TableRanges        Table = "ranges"        // ipam
	TableServicePorts  Table = "serviceports"  // svcproxy
	TableEndpoints     Table = "endpoints"     // svcproxy
	TableAnnouncements Table = "announcements" // svcproxy
	TableSubjects      Table = "subjects"      // policy, per node
	TablePeers         Table = "peers"         // policy, per node
	TablePeerRanges    Table = "peerranges"    // policy, per node
	TableAllows        Table = "allows"        // policy, per node
)

// Tables returns the tables of a source in the order in which an agent applies additions: what is referred to first.
func Tables(s Source) []Table {
	switch s {
	case SourceCluster:
		return []Table{TableWorkloads}
	case SourceIPAM:
		return []Table{TableRanges, TableMembers}
	case SourceSvcproxy:
		return []Table{TableEndpoints, TableServicePorts, TableAnnouncements}
	case SourcePolicy:
		return []Table{TablePeerRanges, TablePeers, TableAllows, TableSubjects}
	}
	return nil
}

// Row is one row of a table.
type Row interface {
	// Table is the table that the row belongs to.
	Table() Table
	// Key names the row within its table; printable, without line breaks.
	Key() string
	// appendTo appends the row's canonical encoding: every field, in order, each delimited.
	appendTo(b []byte) []byte
}

// Protocol is a transport protocol, by its IP protocol number.
type Protocol uint8

// The protocols that Services and policies know.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// ParseProtocol returns the protocol of a Kubernetes name; the empty string is TCP, Kubernetes' default.
func ParseProtocol(name string) (Protocol, bool) {
	switch name {
	case "", "TCP":
		return TCP, true
	case "UDP":
		return UDP, true
	case "SCTP":
		return SCTP, true
	}
	return 0, false
}

// String is Kubernetes' name of the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "protocol " + strconv.Itoa(int(p))
}

// AddrRange is an inclusive range of addresses of one family.
type AddrRange struct{ From, To netip.Addr }

// Workload is a Pod assigned to the node.
type Workload struct {
	UID, Namespace, Name string
	// Pod is podwire.object.v1.Pod in deterministic binary form, without status and without the server's
	// bookkeeping (resourceVersion, managedFields), so that a status update is no change of the row.
	Pod string
}

// MemberKind says what a fabric member is.
type MemberKind uint8

// The kinds of members.
const (
	MemberNode    MemberKind = 1 // runs pods
	MemberService MemberKind = 2 // a replica of dns or ingress: a policy peer, never a subject
)

// Member is one participant of the fabric.
type Member struct {
	Name string
	Kind MemberKind
	// Underlay are the member's own addresses; the first is the tunnel's endpoint.
	Underlay []netip.Addr
	// TunnelMAC is the MAC of the member's VXLAN device.
	TunnelMAC [6]byte
	// Tunnel is the tunnel address of each family, taken from the member's first block of that family.
	Tunnel []netip.Addr
	// Blocks are the pod addresses that the member holds.
	Blocks []netip.Prefix
}

// RangeKind says what a range is for.
type RangeKind uint8

// The kinds of ranges.
const (
	RangePod          RangeKind = 1
	RangeService      RangeKind = 2
	RangeLoadBalancer RangeKind = 3
)

// Range is a cluster-wide address range.
type Range struct {
	Kind   RangeKind
	Prefix netip.Prefix
}

// ServiceKey names one port of one Service.
type ServiceKey struct {
	Namespace, Service string
	// Port is the port's name; empty where the Service has one unnamed port.
	Port     string
	Protocol Protocol
}

// String is <namespace>/<service>:<port>/<protocol>.
func (k ServiceKey) String() string {
	return k.Namespace + "/" + k.Service + ":" + k.Port + "/" + k.Protocol.String()
}

// Locality says which endpoints a node may use for a Service.
type Locality uint8

// Kubernetes' traffic policies.
const (
	LocalityCluster Locality = 1
	LocalityLocal   Locality = 2
)

// SourceMode says which clients may use a Service's load balancer addresses.
type SourceMode uint8

// The source modes; zero is refused, so that a forgotten field never opens an address.
const (
	SourceAll  SourceMode = 1
	SourceSome SourceMode = 2
)

// ServicePort is one port of one Service that has addresses of its own (a headless Service has none and no row).
type ServicePort struct {
	ServiceKey
	ClusterAddresses []netip.Addr
	Port             uint16
	// NodePort is served on every address of every node, for the families of NodePortFamilies; 0: none.
	NodePort         uint16
	NodePortFamilies []uint8 // 4, 6
	// LoadBalancerAddresses are status.loadBalancer.ingress addresses (of ipMode VIP).
	LoadBalancerAddresses []netip.Addr
	// ExternalAddresses are spec.externalIPs.
	ExternalAddresses []netip.Addr
	SourceMode        SourceMode
	// SourceRanges limits the clients of LoadBalancerAddresses where SourceMode is SourceSome.
	SourceRanges []netip.Prefix
	// AffinitySeconds is the timeout of ClientIP affinity; 0: none.
	AffinitySeconds uint32
	// InternalPolicy rules traffic to ClusterAddresses, ExternalPolicy all other.
	InternalPolicy, ExternalPolicy Locality
}

// EndpointState says whether an endpoint takes new connections.
type EndpointState uint8

// The endpoint states. Endpoints in any other state have no row.
const (
	EndpointReady       EndpointState = 1
	EndpointTerminating EndpointState = 2 // serving; used only where no endpoint is ready (KEP-1669)
)

// Endpoint is one backend of one ServicePort.
type Endpoint struct {
	ServiceKey
	Address netip.Addr
	Backend uint16 // port at Address
	Node    string // empty: unknown, so local to no node
	Zone    string
	State   EndpointState
	// HintZones and HintNodes are the zones and Nodes whose clients are to use it (EndpointSlice, hints), sorted; none: no hint.
	HintZones, HintNodes []string
}

// Announcement gives a load balancer address to one node to announce.
type Announcement struct {
	Address netip.Addr
	Node    string
	// Epoch rises with each move of the address.
	Epoch int64
}

// Class identifies a set of pods or addresses that policy treats alike: the first 16 bytes of a SHA-256 over what
// defines the set, so that equal sets have equal classes on every replica and in every version.
type Class [16]byte

// Direction is the direction of a NetworkPolicy rule, seen from the subject.
type Direction uint8

// The directions.
const (
	Ingress Direction = 1
	Egress  Direction = 2
)

// String is the rule list's name in a NetworkPolicy.
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// SideMode says how one direction of a pod is judged.
type SideMode uint8

// The side modes; zero is refused.
const (
	SideOpen     SideMode = 1 // no policy selects the pod for this direction
	SideIsolated SideMode = 2 // only what an Allow of the class names passes
)

// Side is one direction of a Subject.
type Side struct {
	Mode  SideMode
	Class Class // zero where open
	// Policies are the <namespace>/<name> that isolate the pod, sorted.
	Policies []string
}

// Subject is the policy of one Pod of the node. A pod without a row gets no packet through.
type Subject struct {
	PodUID          string
	Ingress, Egress Side
}

// Peer gives the class of one pod address as a peer. An address without a row, and in no PeerRange, has no class:
// only an Allow for any peer admits it.
type Peer struct {
	Address netip.Addr
	Class   Class
}

// PeerRange gives the class of the addresses of a range that have no Peer row. Ranges do not overlap.
type PeerRange struct {
	AddrRange
	Class Class
}

// PeerMode says which peers an Allow names.
type PeerMode uint8

// The peer modes; zero is refused.
const (
	PeerAny   PeerMode = 1
	PeerClass PeerMode = 2
)

// PortMode says which ports an Allow names.
type PortMode uint8

// The port modes; zero is refused.
const (
	PortAny      PortMode = 1 // every protocol, with or without ports
	PortProtocol PortMode = 2 // every port of Protocol
	PortRange    PortMode = 3 // From..To of Protocol
)

// Allow lets (subject class, peers, ports) pass in one direction.
type Allow struct {
	Direction Direction
	Subject   Class
	PeerMode  PeerMode
	Peer      Class // zero where PeerMode is PeerAny
	PortMode  PortMode
	Protocol  Protocol // zero where PortMode is PortAny
	From, To  uint16   // inclusive; zero unless PortMode is PortRange
	// Origins are the rules that this comes from, "<namespace>/<name> ingress[0]", sorted.
	Origins []string
}
