package zone

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// spec is what the zone needs to know of a Service.
type spec struct {
	external string // the name that an ExternalName leads to, lower case, with a final dot
	headless bool
	addrs    []netip.Addr
	ports    []port
	// unready publishes endpoints that are not ready.
	unready bool
}

// port is a named port.
type port struct {
	// label is "_<name>._<protocol>".
	label  string
	number uint16
}

// slice is what the zone needs to know of an EndpointSlice.
type slice struct {
	ports     []port
	endpoints []endpoint
}

type endpoint struct {
	addr  netip.Addr
	host  string
	ready bool
}

func readService(o *objectv1.Service) *spec {
	in := o.GetSpec()
	s := &spec{unready: in.GetPublishNotReadyAddresses()}
	if in.GetType() == "ExternalName" {
		s.external = strings.ToLower(strings.TrimSuffix(in.GetExternalName(), ".")) + "."
		return s
	}
	s.headless = in.GetClusterIp() == "None" || slices.Contains(in.GetClusterIps(), "None")
	for _, ip := range in.GetClusterIps() {
		s.addrs = appendAddr(s.addrs, ip)
	}
	s.addrs = appendAddr(s.addrs, in.GetClusterIp())
	for _, p := range in.GetPorts() {
		s.ports = appendPort(s.ports, p.GetName(), p.GetProtocol(), p.GetPort())
	}
	return s
}

func readSlice(o *objectv1.EndpointSlice) slice {
	var s slice
	for _, p := range o.GetPorts() {
		s.ports = appendPort(s.ports, p.GetName(), p.GetProtocol(), p.GetPort())
	}
	for _, e := range o.GetEndpoints() {
		if len(e.GetAddresses()) == 0 {
			continue
		}
		a, err := netip.ParseAddr(e.GetAddresses()[0])
		if err != nil || a.Zone() != "" {
			continue // a slice of names (FQDN) has no addresses
		}
		a = a.Unmap()
		host := e.GetHostname()
		if names.DNSLabel(host) != "" {
			host = dashed(a)
		}
		ready := e.GetConditions() == nil || e.GetConditions().Ready == nil || e.GetConditions().GetReady()
		s.endpoints = append(s.endpoints, endpoint{addr: a, host: host, ready: ready})
	}
	return s
}

// dashed is the label of an endpoint without a host name: its address, as CoreDNS writes it.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}

// appendPort adds a port that has a name; others have no records (specification 2.3.2).
func appendPort(to []port, name, protocol string, number int32) []port {
	if name == "" || number < 1 || number > 65535 {
		return to
	}
	return append(to, port{"_" + strings.ToLower(name) + "._" + strings.ToLower(cmp.Or(protocol, "TCP")), uint16(number)})
}

// service is a Service as it is answered from. It never changes.
type service struct {
	ref Ref
	// name is complete: "web.default.svc.cluster.local.".
	name     string
	external string
	headless bool
	// v4 and v6 are what the name resolves to: ClusterIPs, or the addresses of ready endpoints.
	v4, v6 []netip.Addr
	// hosts are the ready endpoints by their label.
	hosts map[string]*host
	// targets are the ports by their label "_http._tcp", and all of them under "".
	targets map[string][]target
	// pointers are the PTR records that it causes, sorted.
	pointers []pointer
	// ready of all endpoints, for the reason.
	ready, all int
}

// host is an endpoint, or several of one name.
type host struct {
	name   string
	v4, v6 []netip.Addr
}

// target is one SRV record.
type target struct {
	host *host // nil: the Service itself
	port uint16
}

// exists says whether the Service's own name exists: that of a headless Service without ready endpoints does not
// (specification 2.4.1).
func (s *service) exists() bool { return !s.headless || s.ready > 0 }

// weight shares 100 out evenly, as CoreDNS does, so that a client that honours weights takes each target equally often.
func (s *service) weight() uint16 {
	return uint16(max(1, 100/max(1, len(s.v4)+len(s.v6))))
}

func compile(ref Ref, in spec, parts map[string]slice, domain string) *service {
	s := &service{ref: ref, name: ref.Name + "." + ref.Namespace + ".svc." + domain, external: in.external, headless: in.headless}
	if in.external != "" {
		return s
	}
	b := building{service: s, seen: map[targetKey]struct{}{}}
	if !in.headless {
		for _, a := range in.addrs {
			s.v4, s.v6 = appendFamily(s.v4, s.v6, a)
			s.pointers = append(s.pointers, pointer{addr: a, ref: ref, name: s.name})
		}
		for _, p := range in.ports {
			b.add(p, nil)
		}
	}
	// Several slices may say the same of an endpoint, one for each of its families or ports: sorted, they give equal answers
	// whatever came first.
	for _, key := range sortedKeys(parts) {
		for _, e := range parts[key].endpoints {
			s.all++
			if !e.ready && !in.unready {
				continue
			}
			s.ready++
			h := b.host(e)
			if !in.headless {
				continue
			}
			for _, p := range parts[key].ports {
				b.add(p, h)
			}
		}
	}
	if in.headless {
		s.v4, s.v6 = unique(s.v4), unique(s.v6)
	}
	slices.SortFunc(s.pointers, pointer.compare)
	s.pointers = slices.Compact(s.pointers)
	return s
}

// building is a Service while it is compiled.
type building struct {
	*service
	seen map[targetKey]struct{}
}

type targetKey struct {
	host   *host
	label  string
	number uint16
}

func (b *building) add(p port, h *host) {
	key := targetKey{h, p.label, p.number}
	if _, had := b.seen[key]; had {
		return
	}
	b.seen[key] = struct{}{}
	if b.targets == nil {
		b.targets = map[string][]target{}
	}
	b.targets[p.label] = append(b.targets[p.label], target{h, p.number})
	key.label = ""
	if _, had := b.seen[key]; !had {
		b.seen[key] = struct{}{}
		b.targets[""] = append(b.targets[""], target{h, p.number})
	}
}

// host takes an endpoint in.
func (b *building) host(e endpoint) *host {
	h := b.hosts[e.host]
	if h == nil {
		if b.hosts == nil {
			b.hosts = map[string]*host{}
		}
		h = &host{name: e.host + "." + b.name}
		b.hosts[e.host] = h
	}
	if !slices.Contains(h.v4, e.addr) && !slices.Contains(h.v6, e.addr) {
		h.v4, h.v6 = appendFamily(h.v4, h.v6, e.addr)
	}
	if b.headless {
		b.v4, b.v6 = appendFamily(b.v4, b.v6, e.addr)
	}
	b.pointers = append(b.pointers, pointer{addr: e.addr, ref: b.ref, host: e.host, name: h.name})
	return h
}

func appendFamily(v4, v6 []netip.Addr, a netip.Addr) (four, six []netip.Addr) {
	if a.Is4() {
		return append(v4, a), v6
	}
	return v4, append(v6, a)
}

func unique(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
