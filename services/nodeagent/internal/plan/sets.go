package plan

// SetName names a set or map of the table.
type SetName string

// Type is the type of one field of a key or of a value, named as nft names it.
type Type uint8

// The field types. Widths are those of the kernel, in bytes.
const (
	TypeAddr4   Type = iota + 1 // ipv4_addr, 4
	TypeAddr6                   // ipv6_addr, 16
	TypeLink                    // ifname, 16, zero padded
	TypeProto                   // inet_proto, 1
	TypePort                    // inet_service, 2, big endian
	TypeMark                    // mark, 4, host order
	TypeVerdict                 // verdict; a [Value] holds its text: "drop", "goto <chain>", "jump <chain>"
)

// Set defines one set (no data) or map (data) of the table.
type Set struct {
	Name SetName
	// Key and Data are the fields in order; more than one is a concatenation, each field padded to 4 bytes.
	Key, Data []Type
	// Interval: keys are inclusive ranges of the single key field, which never overlap (see [Range]). Such sets grow
	// with distinct prefixes and port ranges only, since the kernel's cost per element rises with their size.
	Interval bool
	// Dynamic: written by the packet path only. The plan has no elements for it and no reader returns any.
	Dynamic bool
}

// The sets that have one instance per address family; the name carries the family (see [SetName.In]).
const (
	// SetPods is the gate: link . address of each local pod.
	SetPods SetName = "pods"
	// SetSelf is address . address of each local pod, twice the same: a packet to itself.
	SetSelf SetName = "self"
	// SetHairpin maps a local pod's address to the node's tunnel address, the source of its packets to itself.
	SetHairpin SetName = "hairpin"
	// SetPodRanges are the cluster's pod ranges: the fabric.
	SetPodRanges SetName = "pod-ranges"
	// SetServiceRanges are the cluster's Service ranges.
	SetServiceRanges SetName = "service-ranges"
	// SetNode are the node's own addresses on which NodePorts are served: no loopback, no link-local.
	SetNode SetName = "node"
	// SetUnderlays are the members' own addresses: who may send tunnel packets.
	SetUnderlays SetName = "underlays"
	// SetFrontends maps address . protocol . port to the service id that clients in the cluster use.
	SetFrontends SetName = "frontends"
	// SetOutside overrides SetFrontends for clients outside the cluster (externalTrafficPolicy: Local).
	SetOutside SetName = "outside"
	// SetNodePorts maps protocol . port on SetNode's addresses to a service id.
	SetNodePorts SetName = "nodeports"
	// SetNodePortsOutside overrides SetNodePorts for clients outside the cluster.
	SetNodePortsOutside SetName = "nodeports-outside"
	// SetEndpoints maps an endpoint id to address . port.
	SetEndpoints SetName = "endpoints"
	// SetAffinity remembers client . service id -> endpoint id; dynamic. In IPv6 the key is a hash of the two.
	SetAffinity SetName = "affinity"
	// SetGuards are the address . protocol . port of load balancer addresses with source ranges.
	SetGuards SetName = "guards"
	// SetSources maps client address ranges to a source class.
	SetSources SetName = "sources"
	// SetIngress and SetEgress map a local pod's address to its subject class, or [Open].
	SetIngress SetName = "ingress"
	SetEgress  SetName = "egress"
	// SetRanges maps address ranges to a peer class, SetPeers single addresses; SetPeers wins.
	SetRanges SetName = "ranges"
	SetPeers  SetName = "peers"
)

// The sets that both families share.
const (
	// SetTunnelPort is the UDP port of the tunnel.
	SetTunnelPort SetName = "tunnel-port"
	// SetServices maps a service id to a program: an endpoint count, or one of the Program constants.
	SetServices SetName = "services"
	// SetCounts maps the service id of a service with affinity to its endpoint count.
	SetCounts SetName = "counts"
	// SetPrograms maps a program to the chain that runs it; SetChoices maps the programs that are endpoint counts only,
	// for the chains of affinities, since the kernel refuses a map that leads a chain to itself. They are the only maps
	// of verdicts, and grow with distinct programs: the kernel validates the verdicts of a whole table whenever such a
	// map gains an element.
	SetPrograms SetName = "programs"
	SetChoices  SetName = "choices"
	// SetSlots maps service id . slot to an endpoint id; slots are 0..n-1.
	SetSlots SetName = "slots"
	// SetSticky are the service id . endpoint id pairs that an affinity may still name.
	SetSticky SetName = "sticky"
	// SetAdmitted are service id . source class pairs.
	SetAdmitted SetName = "admitted"
	// SetAllow, SetAllowProtocol, SetAllowPort are subject class . peer class (0: any peer), then protocol, then port.
	SetAllow         SetName = "allow"
	SetAllowProtocol SetName = "allow-protocol"
	SetAllowPort     SetName = "allow-port"
	// SetPairs maps subject class . peer class to a pair id where wide port ranges are allowed.
	SetPairs SetName = "pairs"
	// SetPortsTCP, SetPortsUDP, SetPortsSCTP map ports to a port class; classes of two protocols differ.
	SetPortsTCP  SetName = "ports-tcp"
	SetPortsUDP  SetName = "ports-udp"
	SetPortsSCTP SetName = "ports-sctp"
	// SetAllowRange are pair id . port class.
	SetAllowRange SetName = "allow-range"
)

// Family is an address family: 4 or 6.
type Family uint8

// The families, in the order of every list.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families returns both families.
func Families() [2]Family { return [2]Family{IPv4, IPv6} }

// Addr is the field type of the family's addresses.
func (f Family) Addr() Type {
	if f == IPv6 {
		return TypeAddr6
	}
	return TypeAddr4
}

// In is the name of the family's instance of a set.
func (n SetName) In(f Family) SetName {
	if f == IPv6 {
		return n + "6"
	}
	return n + "4"
}

func affinityKey(f Family) []Type {
	if f == IPv6 {
		return []Type{TypeMark}
	}
	return []Type{TypeAddr4, TypeMark}
}

// Sets returns the definition of every set of the table, in the order in which they are created.
func Sets() []Set {
	var sets []Set
	for _, f := range Families() {
		a := f.Addr()
		sets = append(sets,
			Set{Name: SetPods.In(f), Key: []Type{TypeLink, a}},
			Set{Name: SetSelf.In(f), Key: []Type{a, a}},
			Set{Name: SetHairpin.In(f), Key: []Type{a}, Data: []Type{a}},
			Set{Name: SetPodRanges.In(f), Key: []Type{a}, Interval: true},
			Set{Name: SetServiceRanges.In(f), Key: []Type{a}, Interval: true},
			Set{Name: SetNode.In(f), Key: []Type{a}},
			Set{Name: SetUnderlays.In(f), Key: []Type{a}},
			Set{Name: SetFrontends.In(f), Key: []Type{a, TypeProto, TypePort}, Data: []Type{TypeMark}},
			Set{Name: SetOutside.In(f), Key: []Type{a, TypeProto, TypePort}, Data: []Type{TypeMark}},
			Set{Name: SetNodePorts.In(f), Key: []Type{TypeProto, TypePort}, Data: []Type{TypeMark}},
			Set{Name: SetNodePortsOutside.In(f), Key: []Type{TypeProto, TypePort}, Data: []Type{TypeMark}},
			Set{Name: SetEndpoints.In(f), Key: []Type{TypeMark}, Data: []Type{a, TypePort}},
			Set{Name: SetAffinity.In(f), Key: affinityKey(f), Data: []Type{TypeMark}, Dynamic: true},
			Set{Name: SetGuards.In(f), Key: []Type{a, TypeProto, TypePort}},
			Set{Name: SetSources.In(f), Key: []Type{a}, Data: []Type{TypeMark}, Interval: true},
			Set{Name: SetIngress.In(f), Key: []Type{a}, Data: []Type{TypeMark}},
			Set{Name: SetEgress.In(f), Key: []Type{a}, Data: []Type{TypeMark}},
			Set{Name: SetRanges.In(f), Key: []Type{a}, Data: []Type{TypeMark}, Interval: true},
			Set{Name: SetPeers.In(f), Key: []Type{a}, Data: []Type{TypeMark}},
		)
	}
	mark, pair := []Type{TypeMark}, []Type{TypeMark, TypeMark}
	return append(sets,
		Set{Name: SetTunnelPort, Key: []Type{TypePort}},
		Set{Name: SetServices, Key: mark, Data: mark},
		Set{Name: SetCounts, Key: mark, Data: mark},
		Set{Name: SetPrograms, Key: mark, Data: []Type{TypeVerdict}},
		Set{Name: SetChoices, Key: mark, Data: []Type{TypeVerdict}},
		Set{Name: SetSlots, Key: pair, Data: mark},
		Set{Name: SetSticky, Key: pair},
		Set{Name: SetAdmitted, Key: pair},
		Set{Name: SetAllow, Key: pair},
		Set{Name: SetAllowProtocol, Key: []Type{TypeMark, TypeMark, TypeProto}},
		Set{Name: SetAllowPort, Key: []Type{TypeMark, TypeMark, TypeProto, TypePort}},
		Set{Name: SetPairs, Key: pair, Data: mark},
		Set{Name: SetPortsTCP, Key: []Type{TypePort}, Data: mark, Interval: true},
		Set{Name: SetPortsUDP, Key: []Type{TypePort}, Data: mark, Interval: true},
		Set{Name: SetPortsSCTP, Key: []Type{TypePort}, Data: mark, Interval: true},
		Set{Name: SetAllowRange, Key: pair},
	)
}
