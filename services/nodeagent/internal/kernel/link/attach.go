package link

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/rtnl"
	"podwire.dev/internal/fabric/sysctl"
)

// hostMAC is the MAC of the host side of every pod link. One for all, since no two pods share a segment.
var hostMAC = [6]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// Gateways of pods: no host owns them; a permanent neighbour entry in the pod says where they are.
var (
	gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	gateway6 = netip.MustParseAddr("fe80::1")
)

func gatewayOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return gateway4
	}
	return gateway6
}

func defaultOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// podMAC is the MAC of the pod's side: 0a:58 and the last four bytes of its first address, so that the host's neighbour
// entries can be written without asking the pod.
func podMAC(addresses []netip.Addr) [6]byte {
	mac := [6]byte{0x0a, 0x58}
	b := addresses[0].AsSlice()
	copy(mac[2:], b[len(b)-4:])
	return mac
}

// metric is the metric of all our routes on pod links and in pods; see the package fabric.
const metric = 1024

// rows are the addresses, neighbours and routes of one end of a pod's link.
type rows struct {
	addresses  map[netip.Addr]rtnl.Address
	neighbours map[netip.Addr]rtnl.Neighbour
	routes     map[rtnl.RouteKey]rtnl.Route
}

func newRows() rows {
	return rows{map[netip.Addr]rtnl.Address{}, map[netip.Addr]rtnl.Neighbour{}, map[rtnl.RouteKey]rtnl.Route{}}
}

func (r rows) route(route rtnl.Route) { r.routes[route.Key()] = route }

// inPod is what eth0 carries, by its index.
func inPod(p Pod, index int) rows {
	r := newRows()
	for _, a := range p.Addresses {
		gateway := gatewayOf(a)
		r.addresses[a] = rtnl.Address{Index: index, Address: a, Protocol: rtnl.Protocol}
		r.neighbours[gateway] = rtnl.Neighbour{Index: index, Address: gateway, MAC: hostMAC}
		r.route(rtnl.Route{Dst: defaultOf(a), Type: rtnl.Unicast, Index: index, Via: gateway, Metric: metric})
	}
	return r
}

// onHost is what the host side carries, by its index.
func onHost(p Pod, index int) rows {
	r := newRows()
	for _, a := range p.Addresses {
		r.neighbours[a] = rtnl.Neighbour{Index: index, Address: a, MAC: podMAC(p.Addresses)}
		r.route(rtnl.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Type: rtnl.Unicast, Index: index, Metric: metric})
	}
	return r
}

// difference returns what turns actual into desired: additions in the order in which one needs another, then removals.
func difference(desired, actual rows) []rtnl.Request {
	var add, remove []rtnl.Request
	for k, a := range desired.addresses {
		if _, ok := actual.addresses[k]; !ok {
			add = append(add, a.Add())
		}
	}
	for k, n := range desired.neighbours {
		if actual.neighbours[k] != n {
			add = append(add, n.Set())
		}
	}
	for k, r := range desired.routes {
		if actual.routes[k] != r {
			// Replace also takes a host route over that a dead link of the same address left in another's hands.
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
	for k, a := range actual.addresses {
		if _, ok := desired.addresses[k]; !ok {
			remove = append(remove, a.Delete())
		}
	}
	return append(add, remove...)
}

func readRows(c *rtnl.Conn, index int) (rows, error) {
	r := newRows()
	addresses, err := c.Addresses(index)
	if err != nil {
		return r, err
	}
	for _, a := range addresses {
		r.addresses[a.Address] = a
	}
	neighbours, err := c.Neighbours(index)
	if err != nil {
		return r, err
	}
	for _, n := range neighbours {
		r.neighbours[n.Address] = n
	}
	routes, err := c.Routes(index)
	if err != nil {
		return r, err
	}
	for _, route := range routes {
		r.route(route)
	}
	return r, nil
}

// Attach connects a pod; on a pod that is connected it repairs what differs. When it returns without an error, the pod's
// first packet and the first packet to it find their way. Errors: Invalid for a bad Pod, NotFound where its namespace is
// gone, Exists where a link that is not ours stands in the way. After any error the pair may exist in part; Attach again
// completes it, and Detach removes it.
func (l *Links) Attach(p Pod) (Attachment, error) {
	if err := p.validate(); err != nil {
		return Attachment{}, err
	}
	defer l.lock(p.UID)()
	ns, err := l.enter(p)
	if err != nil {
		return Attachment{}, errs.Wrap(err, "attach pod %s/%s", p.Namespace, p.Name)
	}
	defer ns.close()
	host, err := l.attach(p, ns)
	l.inPods.Add(ns.conn.Writes())
	if err != nil {
		return Attachment{}, errs.Wrap(err, "attach pod %s/%s", p.Namespace, p.Name)
	}
	a := Attachment{
		Link: host.Name, Index: host.Index, UID: p.UID, Namespace: p.Namespace, Name: p.Name,
		Addresses: append([]netip.Addr(nil), p.Addresses...),
	}
	sort.Slice(a.Addresses, func(i, j int) bool { return a.Addresses[i].Less(a.Addresses[j]) })
	return a, nil
}

// ends are the two ends of a pair as they are, and what they carry.
type ends struct {
	host          rtnl.Link
	onHost, inPod rows
	// hostUp and podUp set the links of a new pair up.
	hostUp, podUp []rtnl.Request
}

func (l *Links) attach(p Pod, ns *podNS) (rtnl.Link, error) {
	e, found, err := l.find(p, ns)
	if err == nil && !found {
		e, err = l.make(p, ns)
	}
	if err != nil {
		return rtnl.Link{}, err
	}
	// The pod's side first: when the host routes packets to the pod, it can answer. The host side is down until its settings
	// are made, since a process in the pod may send router advertisements already.
	if requests := append(e.podUp, difference(inPod(p, e.host.Peer), e.inPod)...); len(requests) > 0 {
		if err := ns.conn.DoThenAwait(p.Addresses, requests...); err != nil {
			return rtnl.Link{}, err
		}
	}
	n, err := ensure(hostSettings(e.host.Name, p))
	l.inPods.Add(uint64(n))
	if err != nil {
		return rtnl.Link{}, err
	}
	if err := l.conn.Do(append(e.hostUp, difference(onHost(p, e.host.Index), e.onHost)...)...); err != nil {
		return rtnl.Link{}, err
	}
	if len(e.hostUp) > 0 {
		// The end that was up first gets its queue from a kernel worker, and until then drops what it is to send. Reading a
		// link makes the kernel (6.8 and newer) do that work first.
		_, _, err = ns.conn.LinkByIndex(e.host.Peer)
	}
	return e.host, err
}

// make makes the pair, down.
func (l *Links) make(p Pod, ns *podNS) (ends, error) {
	name := Name(p.UID)
	host, err := l.conn.DoThenGet(name,
		rtnl.AddVeth(rtnl.VethPair{
			Name: name, PeerName: Interface, MAC: hostMAC, PeerMAC: podMAC(p.Addresses), MTU: p.MTU, PeerNS: int(ns.file.Fd()),
		}),
		rtnl.Prepare(rtnl.Prepared{Name: name, Alias: aliasOf(p), LinkLocal: rtnl.NoLinkLocal}))
	if errors.Is(err, unix.EEXIST) {
		return ends{}, errs.WrapAs(errs.Exists, err,
			"the pod's network namespace %s has a link %s that is not Podwire's", p.NetNS, Interface)
	}
	return ends{
		host: host, onHost: newRows(), inPod: newRows(),
		podUp: []rtnl.Request{
			rtnl.SetUp(rtnl.Setup{Index: loopback}),
			rtnl.Prepare(rtnl.Prepared{Index: host.Peer, LinkLocal: rtnl.NoLinkLocal}),
			rtnl.SetUp(rtnl.Setup{Index: host.Peer}),
		},
		hostUp: []rtnl.Request{rtnl.SetUp(rtnl.Setup{Index: host.Index})},
	}, err
}

// loopback is the index of lo in every namespace: LOOPBACK_IFINDEX of net/flow.h.
const loopback = 1

// find reads the pair of a pod that was attached before. A pair whose other end is not in the pod's namespace (the pod was
// made anew under the same UID) is removed, and not found.
func (l *Links) find(p Pod, ns *podNS) (ends, bool, error) {
	host, found, err := l.conn.LinkByName(Name(p.UID))
	if err != nil || !found {
		return ends{}, false, err
	}
	if a, ok := parseAlias(host.Alias); !ok || a.UID != p.UID || host.Kind != "veth" {
		return ends{}, false, notOurs(host, p.UID)
	}
	id, err := l.conn.NamespaceID(int(ns.file.Fd()))
	if err != nil {
		return ends{}, false, err
	}
	pod, found, err := ns.conn.LinkByIndex(host.Peer)
	if err != nil {
		return ends{}, false, err
	}
	if !found || host.PeerNS < 0 || host.PeerNS != id || pod.Peer != host.Index || pod.Name != Interface {
		return ends{}, false, l.conn.Do(rtnl.DeleteLink(host.Index))
	}
	e := ends{host: host}
	if e.inPod, err = readRows(ns.conn, pod.Index); err != nil {
		return ends{}, false, err
	}
	if e.onHost, err = readRows(l.conn, host.Index); err != nil {
		return ends{}, false, err
	}
	lo, _, err := ns.conn.LinkByIndex(loopback)
	if err != nil {
		return ends{}, false, err
	}
	inPodWrites, onHostWrites := repair(lo, rtnl.Link{Up: true}), repair(host, rtnl.Link{Up: true, MTU: p.MTU, MAC: hostMAC})
	inPodWrites = append(inPodWrites, repair(pod, rtnl.Link{Up: true, MTU: p.MTU, MAC: podMAC(p.Addresses)})...)
	if len(inPodWrites)+len(onHostWrites) > 0 {
		// The kernel forgets neighbours and routes of a link that goes down or gets another MAC: read again.
		if err := errors.Join(ns.conn.Do(inPodWrites...), l.conn.Do(onHostWrites...)); err != nil {
			return ends{}, false, err
		}
		return l.find(p, ns)
	}
	return e, true, nil
}

// repair returns what gives a link the properties of want; zero fields of want are as they please.
func repair(l, want rtnl.Link) []rtnl.Request {
	s := rtnl.Setup{Index: l.Index}
	if want.MTU != 0 && l.MTU != want.MTU {
		s.MTU = want.MTU
	}
	if want.MAC != ([6]byte{}) && l.MAC != want.MAC {
		s.MAC = want.MAC
	}
	if l.Up && s.MTU == 0 && s.MAC == ([6]byte{}) {
		return nil
	}
	return []rtnl.Request{rtnl.SetUp(s)}
}

// setting is a sysctl below /proc/sys and its value.
type setting struct{ name, value string }

// hostSettings are what netlink cannot set on the host side.
func hostSettings(name string, p Pod) []setting {
	v4, v6 := "net/ipv4/conf/"+name+"/", "net/ipv6/conf/"+name+"/"
	list := []setting{
		// Loose: a strict check by routes would refuse what policy routing of other programs sends another way. Which pod may
		// use which source address is judged by the gate in our nftables table.
		{v4 + "rp_filter", "2"},
		// A pod is never a router of this host, whatever conf/default says: it neither announces itself, nor names another
		// way, nor says which way its packets take.
		{v6 + "accept_ra", "0"},
		{v4 + "accept_redirects", "0"}, {v6 + "accept_redirects", "0"},
		{v4 + "accept_source_route", "0"}, {v6 + "accept_source_route", "0"},
		// The only way out of a pod is its gateway.
		{v4 + "send_redirects", "0"},
	}
	if hasIPv6(p.Addresses) {
		// A container engine turns IPv6 off for links that are made in a container later. First: it brings the link's other
		// settings to life.
		list = append([]setting{{v6 + "disable_ipv6", "0"}}, list...)
	}
	return list
}

// podSettings turn IPv6 on where a container engine turned it off for a container without IPv6 of its own. They are made
// in the pod's namespace; default stands for an eth0 that is not there yet.
func podSettings(p Pod) []setting {
	if !hasIPv6(p.Addresses) {
		return nil
	}
	var list []setting
	for _, scope := range []string{"default", Interface, "lo"} {
		list = append(list, setting{"net/ipv6/conf/" + scope + "/disable_ipv6", "0"})
	}
	return list
}

func hasIPv6(addresses []netip.Addr) bool { return slices.ContainsFunc(addresses, netip.Addr.Is6) }

// ensure makes settings of the calling thread's namespace, and returns the number of writes that it took.
func ensure(list []setting) (int, error) {
	writes := 0
	for _, s := range list {
		n, err := sysctl.Ensure(s.name, s.value)
		writes += n
		if err != nil {
			return writes, err
		}
	}
	return writes, nil
}

// podNS is an open door to a pod's namespace.
type podNS struct {
	file *os.File
	conn *rtnl.Conn
}

func (n *podNS) close() {
	n.conn.Close()
	_ = n.file.Close()
}

// enter opens the pod's namespace and makes the settings in it that netlink cannot.
func (l *Links) enter(p Pod) (*podNS, error) {
	file, err := os.Open(p.NetNS)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.WrapAs(errs.NotFound, err, "its network namespace is gone")
	}
	if err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "open its network namespace")
	}
	type result struct {
		conn   *rtnl.Conn
		writes int
		err    error
	}
	done := make(chan result, 1)
	go func() {
		// A goroutine of its own: if the way back failed, its thread would end with it rather than serve others in the wrong
		// namespace.
		runtime.LockOSThread()
		var r result
		back, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- result{err: errs.WrapAs(errs.Internal, err, "open own network namespace")}
			return
		}
		defer func() { _ = back.Close() }()
		if r.err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); r.err != nil {
			r.err = errs.WrapAs(errs.Invalid, r.err, "enter its network namespace %s", p.NetNS)
			done <- r
			return
		}
		if r.writes, r.err = ensure(podSettings(p)); r.err == nil {
			r.conn, r.err = rtnl.Open()
		}
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- r
	}()
	r := <-done
	l.inPods.Add(uint64(r.writes))
	if r.err != nil {
		_ = file.Close()
		return nil, r.err
	}
	return &podNS{file: file, conn: r.conn}, nil
}
