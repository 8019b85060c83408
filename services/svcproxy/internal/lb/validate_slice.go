package lb

import (
	"fmt"
	"net/netip"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Kubernetes' limits of an EndpointSlice.
const (
	maxEndpoints  = 1000
	maxAddresses  = 100
	maxSlicePorts = 100
	maxHints      = 8
	maxTopology   = 16
)

// ValidateSlice returns every rule of discovery.k8s.io/v1 that an EndpointSlice breaks, with Kubernetes' field paths; old
// is what it replaces, nil on create.
func ValidateSlice(o, old *objectv1.EndpointSlice) []errs.Violation {
	var v violations
	switch kind := o.GetAddressType(); {
	case kind == "":
		v.add("addressType", "", "is required: IPv4, IPv6 or FQDN")
	case kind != addressFQDN && !Family(kind).valid():
		v.oneOf("addressType", kind, addressFQDN, string(IPv4), string(IPv6))
	}
	if old != nil && o.GetAddressType() != old.GetAddressType() {
		v.add("addressType", o.GetAddressType(), "field is immutable")
	}
	if n := len(o.GetEndpoints()); n > maxEndpoints {
		v.add("endpoints", fmt.Sprint(n), "must have at most %d items", maxEndpoints)
		return v
	}
	for i, e := range o.GetEndpoints() {
		v.endpoint(fmt.Sprintf("endpoints[%d]", i), o.GetAddressType(), e)
	}
	v.slicePorts(o.GetPorts())
	return v
}

func (v *violations) endpoint(path, kind string, e *objectv1.Endpoint) {
	switch n := len(e.GetAddresses()); {
	case n == 0:
		v.add(path+".addresses", "", "must contain at least 1 address")
	case n > maxAddresses:
		v.add(path+".addresses", fmt.Sprint(n), "must have at most %d items", maxAddresses)
	}
	for i, text := range e.GetAddresses() {
		v.endpointAddress(fmt.Sprintf("%s.addresses[%d]", path, i), kind, text)
	}
	if e.Hostname != nil {
		if rule := names.DNSLabel(e.GetHostname()); rule != "" {
			v.add(path+".hostname", e.GetHostname(), "%s", rule)
		}
	}
	if e.NodeName != nil {
		if rule := names.DNSSubdomain(e.GetNodeName()); rule != "" {
			v.add(path+".nodeName", e.GetNodeName(), "%s", rule)
		}
	}
	if n := len(e.GetDeprecatedTopology()); n > maxTopology {
		v.add(path+".deprecatedTopology", fmt.Sprint(n), "must have at most %d items", maxTopology)
	}
	v.hints(path+".hints", e.GetHints())
}

func (v *violations) endpointAddress(path, kind, text string) {
	switch kind {
	case string(IPv4), string(IPv6):
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || FamilyOf(a) != Family(kind) || a.Is4In6() {
			v.add(path, text, "must be a valid %s address", kind)
			return
		}
		v.usableIP(path, text)
	case addressFQDN:
		name := strings.TrimSuffix(text, ".")
		switch rule := names.DNSSubdomain(name); {
		case rule != "":
			v.add(path, text, "%s", rule)
		case !strings.Contains(name, "."):
			v.add(path, text, "should be a domain with at least two segments separated by dots")
		}
	}
}

func (v *violations) hints(path string, h *objectv1.EndpointHints) {
	if n := len(h.GetForZones()); n > maxHints {
		v.add(path+".forZones", fmt.Sprint(n), "must have at most %d items", maxHints)
	}
	zones := map[string]bool{}
	for i, z := range h.GetForZones() {
		at := fmt.Sprintf("%s.forZones[%d].name", path, i)
		v.labelValue(at, z.GetName())
		v.once(at, z.GetName(), zones)
	}
	if n := len(h.GetForNodes()); n > maxHints {
		v.add(path+".forNodes", fmt.Sprint(n), "must have at most %d items", maxHints)
	}
	nodes := map[string]bool{}
	for i, n := range h.GetForNodes() {
		at := fmt.Sprintf("%s.forNodes[%d].name", path, i)
		if rule := names.DNSSubdomain(n.GetName()); rule != "" {
			v.add(at, n.GetName(), "%s", rule)
		}
		v.once(at, n.GetName(), nodes)
	}
}

func (v *violations) once(path, name string, seen map[string]bool) {
	if seen[name] {
		v.add(path, name, "is a duplicate")
	}
	seen[name] = true
}

func (v *violations) slicePorts(ports []*objectv1.EndpointPort) {
	if n := len(ports); n > maxSlicePorts {
		v.add("ports", fmt.Sprint(n), "must have at most %d items", maxSlicePorts)
		return
	}
	taken := map[string]bool{}
	for i, p := range ports {
		at := fmt.Sprintf("ports[%d]", i)
		if name := p.GetName(); name != "" && names.DNSLabel(name) != "" {
			v.add(at+".name", name, "%s", names.DNSLabel(name))
		}
		v.once(at+".name", p.GetName(), taken)
		v.protocol(at+".protocol", p.GetProtocol())
		if p.Port != nil {
			v.portNumber(at+".port", p.GetPort())
		}
		if p.AppProtocol != nil {
			v.labelKey(at+".appProtocol", p.GetAppProtocol())
		}
	}
}
