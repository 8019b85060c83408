package fabric

import (
	"net/netip"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/rtnl"
)

// The metrics of our routes. Any number but 0 reads back from both families as it was written; ours are looked up only
// among routes to the same destination.
const (
	metric           = 1024
	metricUnassigned = 2048
)

// state is the fabric's part of the kernel, desired or actual.
type state struct {
	addresses   map[netip.Addr]rtnl.Address
	forwardings map[[6]byte]rtnl.Forwarding
	neighbours  map[netip.Addr]rtnl.Neighbour
	routes      map[rtnl.RouteKey]rtnl.Route
}

func newState() state {
	return state{
		addresses: map[netip.Addr]rtnl.Address{}, forwardings: map[[6]byte]rtnl.Forwarding{},
		neighbours: map[netip.Addr]rtnl.Neighbour{}, routes: map[rtnl.RouteKey]rtnl.Route{},
	}
}

// desired is the plan as the kernel shows it, on the device of that index.
func desired(p Plan, index int) state {
	s := newState()
	for _, a := range p.Addresses {
		s.addresses[a] = rtnl.Address{Index: index, Address: a, Protocol: rtnl.Protocol}
	}
	for _, peer := range p.Peers {
		s.forwardings[peer.MAC] = rtnl.Forwarding{Index: index, MAC: peer.MAC, To: peer.Underlay}
		for _, a := range peer.Addresses {
			s.neighbours[a] = rtnl.Neighbour{Index: index, Address: a, MAC: peer.MAC}
		}
	}
	for _, r := range p.Routes {
		k := rtnl.Route{Dst: r.Dst, Type: rtnl.Unicast, Index: index, Via: r.Via, Src: r.Src, Metric: metric}
		if r.Kind == Unassigned {
			k = rtnl.Route{Dst: r.Dst, Type: rtnl.Unreachable, Metric: metricUnassigned}
		}
		s.routes[k.Key()] = k
	}
	return s
}

// read returns the fabric's part of the kernel.
func (f *Fabric) read(index int) (state, error) {
	s := newState()
	addresses, err := f.conn.Addresses(index)
	if err != nil {
		return s, errs.Wrap(err, "fabric: read addresses")
	}
	for _, a := range addresses {
		s.addresses[a.Address] = a
	}
	forwardings, err := f.conn.Forwardings(index)
	if err != nil {
		return s, errs.Wrap(err, "fabric: read forwarding entries")
	}
	for _, e := range forwardings {
		s.forwardings[e.MAC] = e
	}
	neighbours, err := f.conn.Neighbours(index)
	if err != nil {
		return s, errs.Wrap(err, "fabric: read neighbours")
	}
	for _, n := range neighbours {
		s.neighbours[n.Address] = n
	}
	routes, err := f.conn.Routes(0)
	if err != nil {
		return s, errs.Wrap(err, "fabric: read routes")
	}
	for _, r := range routes {
		if r.Index == index || r.Type == rtnl.Unreachable {
			s.routes[r.Key()] = r
		}
	}
	return s, nil
}

// difference returns what turns actual into desired: what to add, in the order in which one thing needs another, and what
// to remove, in reverse. An entry that changes is replaced by the addition, and not removed.
func difference(desired, actual state) (add, remove []rtnl.Request) {
	for k, a := range desired.addresses {
		if _, ok := actual.addresses[k]; !ok {
			add = append(add, a.Add())
		}
	}
	for k, e := range desired.forwardings {
		if actual.forwardings[k] != e {
			add = append(add, e.Set())
		}
	}
	for k, n := range desired.neighbours {
		if actual.neighbours[k] != n {
			add = append(add, n.Set())
		}
	}
	for k, r := range desired.routes {
		old, ok := actual.routes[k]
		switch {
		case !ok:
			add = append(add, r.Add())
		case old != r:
			add = append(add, r.Replace())
		}
	}
	for k, r := range actual.routes {
		if _, ok := desired.routes[k]; !ok {
			remove = append(remove, r.Delete())
		}
	}
	for k, n := range actual.neighbours {
		if _, ok := desired.neighbours[k]; !ok {
			remove = append(remove, n.Delete())
		}
	}
	for k, e := range actual.forwardings {
		if _, ok := desired.forwardings[k]; !ok {
			remove = append(remove, e.Delete())
		}
	}
	for k, a := range actual.addresses {
		if _, ok := desired.addresses[k]; !ok {
			remove = append(remove, a.Delete())
		}
	}
	return add, remove
}
