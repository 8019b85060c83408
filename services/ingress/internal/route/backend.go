package route

import (
	"net/netip"
	"slices"
	"time"
)

// Backend is one port of a Service, as rules lead to it.
type Backend struct {
	// Service and Port are as the Ingress names them.
	Service  Ref
	Port     string
	Protocol Protocol
	// Timeout is how long an endpoint may take to begin its response; 0 is the server's own.
	Timeout time.Duration
	// Endpoints are where requests go, sorted: the ready ones; where none is, those that terminate and still serve.
	Endpoints []netip.AddrPort
	// Problem says why there are no endpoints.
	Problem string

	key backendKey
}

// backendKey tells backends apart.
type backendKey struct {
	service Ref
	target  Target
	// protocol is that of the annotation; the Service's own word counts where none is set.
	protocol    Protocol
	hasProtocol bool
	timeout     time.Duration
}

func (b *Backend) equal(o *Backend) bool {
	return b.Problem == o.Problem && b.Protocol == o.Protocol && slices.Equal(b.Endpoints, o.Endpoints)
}

// backend resolves a key.
func (w *World) backend(key backendKey) Backend {
	b := Backend{Service: key.service, Port: key.target.port(), Protocol: key.protocol, Timeout: key.timeout, key: key}
	if key.target.Resource != "" {
		b.Port, b.Problem = "", "backend.resource "+key.target.Resource+": there are no resources to serve; name a Service"
		return b
	}
	s, ok := w.services[key.service]
	switch {
	case !ok:
		b.Problem = "Service " + key.service.String() + " does not exist"
		return b
	case s.ExternalName:
		b.Problem = "Service " + key.service.String() + " is of type ExternalName: requests only go to endpoints, and a name may mean anything"
		return b
	}
	i := slices.IndexFunc(s.Ports, func(p ServicePort) bool {
		if key.target.PortName != "" {
			return p.Name == key.target.PortName
		}
		return p.Number == key.target.PortNumber
	})
	if i < 0 {
		b.Problem = "Service " + key.service.String() + " has no TCP port " + b.Port
		return b
	}
	if !key.hasProtocol && s.Ports[i].AppProtocol == "kubernetes.io/h2c" {
		b.Protocol = H2C
	}
	if b.Endpoints = w.endpoints(&s, s.Ports[i].Name); len(b.Endpoints) == 0 {
		b.Problem = "Service " + key.service.String() + " has no ready endpoint for port " + b.Port
	}
	return b
}

// endpoints are those of one family, since a pod with two addresses is one pod: the Service's first family, unless only
// the other has any.
func (w *World) endpoints(s *Service, port string) []netip.AddrPort {
	for _, draining := range []bool{false, true} {
		var v4, v6 []netip.AddrPort
		for _, slice := range w.slices[s.Ref] {
			i := slices.IndexFunc(slice.Ports, func(p SlicePort) bool { return p.Name == port })
			if i < 0 {
				continue
			}
			for _, e := range slice.Endpoints {
				if draining && !e.Draining || !draining && !e.Ready {
					continue
				}
				if at := netip.AddrPortFrom(e.Address, slice.Ports[i].Number); e.Address.Is4() {
					v4 = append(v4, at)
				} else {
					v6 = append(v6, at)
				}
			}
		}
		first, second := v4, v6
		if s.IPv6First {
			first, second = v6, v4
		}
		if len(first) == 0 {
			first = second
		}
		if len(first) > 0 {
			slices.SortFunc(first, netip.AddrPort.Compare)
			return slices.Compact(first)
		}
	}
	return nil
}
