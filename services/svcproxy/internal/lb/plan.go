package lb

import (
	"cmp"
	"hash/fnv"
	"maps"
	"slices"

	"podwire.dev/internal/nodestate"
)

// Plan is what a Service asks for.
type Plan struct {
	// Rows are all of the Service's rows.
	Rows []nodestate.Row
	// Partial says that Rows are only those that may have changed, in no order, and Gone those that there are no more.
	Partial bool
	Gone    []nodestate.Ref
	// Writes are the derived slices that are not stored as they are wanted: to be written whole.
	Writes []Slice
	// Stale are the stored slices that are to go.
	Stale []Ref
	// Announcer is the Node that is to announce the load balancer addresses; empty for none.
	Announcer string
	// Move says that what is stored names another Announcer.
	Move bool
}

// Plan computes one Service; a Service that does not exist has no rows, and the slices that it owned are stale.
func (w *World) Plan(ref Ref) Plan {
	s := w.services[ref]
	if s == nil {
		return Plan{Stale: w.orphans(ref)}
	}
	p := Plan{Stale: w.leftovers(s)}
	var wanted []Slice
	if s.derives() {
		wanted, p.Stale = w.derive(s)
	}
	for _, x := range wanted {
		if stored := w.slices[x.Ref]; stored == nil || !sameSlice(stored, &x) {
			p.Writes = append(p.Writes, x)
		}
	}
	merged := w.merge(s)
	p.Announcer = w.announcer(s, merged)
	p.Move = p.Announcer != s.Announcer
	p.Rows = w.rows(s, merged)
	return p
}

// orphans are the slices of a Service that is gone, but for those that were written by hand and owned by nobody.
func (w *World) orphans(ref Ref) []Ref {
	var out []Ref
	for _, x := range w.slicesOf[ref] {
		if x.Derived && x.Service == ref.Name || x.Owner != "" && x.OwnerName == ref.Name {
			out = append(out, x.Ref)
		}
	}
	slices.SortFunc(out, Ref.Compare)
	return out
}

// leftovers are the slices that were derived when the Service had a selector, or that an earlier Service of the same
// name owned.
func (w *World) leftovers(s *serviceState) []Ref {
	var out []Ref
	for _, x := range w.slicesOf[s.Ref] {
		if x.Derived && x.Service == s.Name || x.Owner != "" && x.OwnerName == s.Name && x.Owner != s.UID {
			out = append(out, x.Ref)
		}
	}
	slices.SortFunc(out, Ref.Compare)
	return out
}

// merge is every endpoint of every slice of a Service, each (port, address) once: of several the most usable counts.
func (w *World) merge(s *serviceState) []nodestate.Endpoint {
	if !s.Served() {
		return nil
	}
	best := map[string]nodestate.Endpoint{}
	for _, slice := range w.slicesOf[s.Ref] {
		for i := range slice.Endpoints {
			for _, row := range w.backends(s, slice, &slice.Endpoints[i]) {
				key := row.Key()
				if have, ok := best[key]; !ok || better(row, have) {
					best[key] = row
				}
			}
		}
	}
	out := make([]nodestate.Endpoint, 0, len(best))
	for _, key := range slices.Sorted(maps.Keys(best)) {
		out = append(out, best[key])
	}
	return out
}

// backends are the rows of one endpoint of a slice, one for each of its ports that the Service has.
func (w *World) backends(s *serviceState, slice *Slice, e *SliceEndpoint) []nodestate.Endpoint {
	state, ok := e.state()
	if !ok || slice.Service != s.Name || !slices.Contains(s.Families, slice.Family) {
		return nil
	}
	var out []nodestate.Endpoint
	for _, port := range slice.Ports {
		if !s.has(port) || port.Number == 0 {
			continue
		}
		out = append(out, nodestate.Endpoint{
			ServiceKey: nodestate.ServiceKey{Namespace: s.Namespace, Service: s.Name, Port: port.Name, Protocol: port.Protocol},
			Address:    e.Address, Backend: port.Number, Node: e.Node, Zone: e.Zone, State: state,
			HintZones: hints(e.HintZones), HintNodes: hints(e.HintNodes),
		})
	}
	return out
}

// better orders duplicates, so that the result does not depend on the order of slices.
func better(a, b nodestate.Endpoint) bool {
	switch {
	case a.State != b.State:
		return a.State == nodestate.EndpointReady
	case a.Node != b.Node:
		return b.Node == "" || a.Node != "" && a.Node < b.Node
	case a.Zone != b.Zone:
		return b.Zone == "" || a.Zone != "" && a.Zone < b.Zone
	}
	return cmp.Or(slices.Compare(a.HintNodes, b.HintNodes), slices.Compare(a.HintZones, b.HintZones)) > 0
}

// has says whether a slice's port is one of the Service's: by name and protocol.
func (s *Service) has(port SlicePort) bool {
	return slices.ContainsFunc(s.Ports, func(p Port) bool { return p.Name == port.Name && p.Protocol == port.Protocol })
}

// rows are what nodes serve of a Service.
func (w *World) rows(s *serviceState, endpoints []nodestate.Endpoint) []nodestate.Row {
	if !s.Served() {
		return nil
	}
	var out []nodestate.Row
	for _, p := range s.Ports {
		out = append(out, s.row(p))
	}
	for _, e := range endpoints {
		out = append(out, e)
	}
	if s.Ours && s.Announcer != "" {
		for _, a := range s.Balancer {
			out = append(out, nodestate.Announcement{Address: a, Node: s.Announcer, Epoch: s.Epoch})
		}
	}
	return out
}

func (s *Service) row(p Port) nodestate.ServicePort {
	row := nodestate.ServicePort{
		ServiceKey:       nodestate.ServiceKey{Namespace: s.Namespace, Service: s.Name, Port: p.Name, Protocol: p.Protocol},
		ClusterAddresses: s.ClusterIPs, Port: p.Number, LoadBalancerAddresses: s.Balancer, ExternalAddresses: s.Externals,
		SourceMode: nodestate.SourceAll, AffinitySeconds: s.Affinity,
		InternalPolicy: s.InternalPolicy, ExternalPolicy: s.ExternalPolicy,
	}
	if s.Limited {
		row.SourceMode, row.SourceRanges = nodestate.SourceSome, s.Sources
	}
	if p.NodePort != 0 && (s.Type == TypeNodePort || s.Type == TypeLoadBalancer) {
		row.NodePort = p.NodePort
		for _, f := range s.Families {
			row.NodePortFamilies = append(row.NodePortFamilies, f.number())
		}
		slices.Sort(row.NodePortFamilies)
	}
	return row
}

// announcer chooses the Node that announces a Service's load balancer addresses. The stored one stays while it may;
// otherwise the choice is spread over the Nodes by a hash, so that a Node that comes or goes moves no other address.
// Where externalTrafficPolicy is Local, only a Node with an endpoint may, and of these one whose endpoint is not
// ending. Where no Node may and the policy is Cluster, what is stored stays: nothing is gained by taking it away.
func (w *World) announcer(s *serviceState, endpoints []nodestate.Endpoint) string {
	if !s.Ours || !s.Served() || len(s.Balancer) == 0 {
		return ""
	}
	if s.ExternalPolicy == nodestate.LocalityLocal {
		return w.localAnnouncer(s, endpoints)
	}
	if w.nodes[s.Announcer].Able {
		return s.Announcer
	}
	able := map[string]bool{}
	for name, n := range w.nodes {
		if n.Able {
			able[name] = true
		}
	}
	if len(able) == 0 {
		return s.Announcer
	}
	return spread(s, able)
}

func (w *World) localAnnouncer(s *serviceState, endpoints []nodestate.Endpoint) string {
	ready, ending := map[string]bool{}, map[string]bool{}
	for _, e := range endpoints {
		switch {
		case !w.nodes[e.Node].Able:
		case e.State == nodestate.EndpointReady:
			ready[e.Node] = true
		default:
			ending[e.Node] = true
		}
	}
	switch {
	case ready[s.Announcer], ending[s.Announcer] && len(ready) == 0:
		return s.Announcer
	case len(ready) > 0:
		return spread(s, ready)
	}
	return spread(s, ending)
}

// spread is rendezvous hashing: the Node with the highest hash together with the Service.
func spread(s *serviceState, able map[string]bool) string {
	best, most := "", uint64(0)
	for name := range able {
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.Namespace + "/" + s.Name + "\x00" + name)) // never fails: it only computes
		if sum := mix(h.Sum64()); best == "" || sum > most || sum == most && name < best {
			best, most = name, sum
		}
	}
	return best
}

// mix spreads the last bytes of a name, which FNV leaves in the low bits, over all bits (the finisher of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
