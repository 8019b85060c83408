package lb

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Slice is an EndpointSlice.
type Slice struct {
	Ref
	// Service is the name of the Service, of the same namespace; empty for a slice that belongs to none.
	Service string
	// Derived says that the slice is written by us.
	Derived bool
	// Owner is the UID of the one Service that owns the slice; empty where none does.
	Owner string
	// OwnerName is the name of that Service.
	OwnerName string
	Labels    map[string]string
	// Family is empty for a slice of names, which only DNS serves.
	Family    Family
	Ports     []SlicePort
	Endpoints []SliceEndpoint
}

// SlicePort is one port of every endpoint of a slice.
type SlicePort struct {
	Name        string
	Protocol    nodestate.Protocol
	Number      uint16 // 0: every port
	AppProtocol string
}

// SliceEndpoint is one backend. Absent conditions are resolved as Kubernetes resolves them.
type SliceEndpoint struct {
	Address                     netip.Addr
	Ready, Serving, Terminating bool
	Node, Zone, Hostname        string
	// Target is the object behind the endpoint.
	Target Target
	// HintZones and HintNodes are the names of those who are to use the endpoint, sorted, with commas between them.
	HintZones, HintNodes string
}

// Target is the object behind an endpoint.
type Target struct{ Kind, Namespace, Name, UID string }

// ParseSlice reads a stored EndpointSlice. Of an endpoint's addresses the first counts, as for every reader of slices.
func ParseSlice(o *objectv1.EndpointSlice) Slice {
	meta := o.GetMetadata()
	s := Slice{
		Ref: Ref{meta.GetNamespace(), meta.GetName()}, Labels: meta.GetLabels(),
		Service: meta.GetLabels()[LabelServiceName], Derived: meta.GetLabels()[LabelManagedBy] == ManagedBy,
	}
	if owners := meta.GetOwnerReferences(); len(owners) == 1 && owners[0].GetKind() == "Service" {
		s.Owner, s.OwnerName = owners[0].GetUid(), owners[0].GetName()
	}
	if f := Family(o.GetAddressType()); f.valid() {
		s.Family = f
	}
	for _, p := range o.GetPorts() {
		if protocol, ok := nodestate.ParseProtocol(p.GetProtocol()); ok {
			s.Ports = append(s.Ports, SlicePort{p.GetName(), protocol, uint16(p.GetPort()), p.GetAppProtocol()})
		}
	}
	for _, e := range o.GetEndpoints() {
		if parsed, ok := parseEndpoint(e); ok && FamilyOf(parsed.Address) == s.Family {
			s.Endpoints = append(s.Endpoints, parsed)
		}
	}
	return s
}

func parseEndpoint(e *objectv1.Endpoint) (SliceEndpoint, bool) {
	if len(e.GetAddresses()) == 0 {
		return SliceEndpoint{}, false
	}
	a, err := netip.ParseAddr(e.GetAddresses()[0])
	if err != nil {
		return SliceEndpoint{}, false
	}
	c := e.GetConditions()
	ref := e.GetTargetRef()
	out := SliceEndpoint{
		Address: a, Ready: c == nil || c.Ready == nil || *c.Ready, Terminating: c.GetTerminating(),
		Node: e.GetNodeName(), Zone: e.GetZone(), Hostname: e.GetHostname(),
		Target: Target{ref.GetKind(), ref.GetNamespace(), ref.GetName(), ref.GetUid()},
	}
	out.Serving = out.Ready
	if c != nil && c.Serving != nil {
		out.Serving = *c.Serving
	}
	out.HintZones = namesOf(e.GetHints().GetForZones())
	out.HintNodes = namesOf(e.GetHints().GetForNodes())
	return out, true
}

// state is how a node may use the endpoint; ok is false where it may not.
func (e *SliceEndpoint) state() (nodestate.EndpointState, bool) {
	switch {
	case e.Ready:
		return nodestate.EndpointReady, true
	case e.Serving && e.Terminating:
		return nodestate.EndpointTerminating, true
	}
	return 0, false
}

// Fill writes the slice into an EndpointSlice whose name, namespace and UID are set: labels, owner, ports and endpoints.
func (s *Slice) Fill(o *objectv1.EndpointSlice) {
	meta := o.GetMetadata()
	meta.Labels = maps.Clone(s.Labels)
	meta.OwnerReferences = []*objectv1.OwnerReference{{
		ApiVersion: "v1", Kind: "Service", Name: s.OwnerName, Uid: s.Owner, Controller: ptr(true), BlockOwnerDeletion: ptr(true),
	}}
	o.ApiVersion, o.Kind, o.AddressType = "discovery.k8s.io/v1", "EndpointSlice", string(s.Family)
	o.Ports, o.Endpoints = nil, nil
	for _, p := range s.Ports {
		port := &objectv1.EndpointPort{Name: ptr(p.Name), Protocol: ptr(p.Protocol.String()), Port: ptr(int32(p.Number))}
		if p.AppProtocol != "" {
			port.AppProtocol = ptr(p.AppProtocol)
		}
		o.Ports = append(o.Ports, port)
	}
	for _, e := range s.Endpoints {
		o.Endpoints = append(o.Endpoints, e.object())
	}
}

func (e *SliceEndpoint) object() *objectv1.Endpoint {
	out := &objectv1.Endpoint{
		Addresses: []string{e.Address.String()},
		Conditions: &objectv1.EndpointConditions{
			Ready: ptr(e.Ready), Serving: ptr(e.Serving), Terminating: ptr(e.Terminating),
		},
		TargetRef: &objectv1.ObjectReference{
			Kind: e.Target.Kind, Namespace: e.Target.Namespace, Name: e.Target.Name, Uid: e.Target.UID,
		},
	}
	for _, field := range []struct {
		to   **string
		text string
	}{{&out.NodeName, e.Node}, {&out.Zone, e.Zone}, {&out.Hostname, e.Hostname}} {
		if field.text != "" {
			*field.to = ptr(field.text)
		}
	}
	if e.HintZones != "" || e.HintNodes != "" {
		out.Hints = &objectv1.EndpointHints{}
	}
	for _, name := range hints(e.HintZones) {
		out.Hints.ForZones = append(out.Hints.ForZones, &objectv1.ForZone{Name: name})
	}
	for _, name := range hints(e.HintNodes) {
		out.Hints.ForNodes = append(out.Hints.ForNodes, &objectv1.ForNode{Name: name})
	}
	return out
}

// namesOf joins the names of hints; neither zones nor Nodes have a comma in theirs.
func namesOf[H interface{ GetName() string }](list []H) string {
	var out []string
	for _, h := range list {
		if h.GetName() != "" {
			out = append(out, h.GetName())
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ",")
}

// hints are the names that namesOf joined.
func hints(joined string) []string {
	if joined == "" {
		return nil
	}
	return strings.Split(joined, ",")
}

// portsKey names a set of ports, whatever their order.
func portsKey(ports []SlicePort) string {
	parts := make([]string, len(ports))
	for i, p := range ports {
		parts[i] = p.Name + "\x00" + p.Protocol.String() + "\x00" + strconv.Itoa(int(p.Number)) + "\x00" + p.AppProtocol
	}
	slices.Sort(parts)
	return strings.Join(parts, "\x01")
}

// sameSlice says whether a stored slice is what is wanted.
func sameSlice(a, b *Slice) bool {
	return a.Service == b.Service && a.Owner == b.Owner && a.OwnerName == b.OwnerName && a.Family == b.Family &&
		maps.Equal(a.Labels, b.Labels) && portsKey(a.Ports) == portsKey(b.Ports) && slices.Equal(a.Endpoints, b.Endpoints)
}

func compareEndpoints(a, b SliceEndpoint) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Target.UID, b.Target.UID))
}
