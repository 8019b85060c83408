// Package announce holds load balancer addresses on the underlay, so that the network around the cluster sends packets for
// them to this node.
//
// In: the rows that give addresses to this node. Out: each of them as an address of the underlay's link, which makes the
// kernel answer ARP and neighbour solicitations, and go on answering when the agent is dead; a gratuitous ARP or unsolicited
// neighbour advertisement when the caller asks for one; and a call when another node announced an address that was held here,
// after it was given up.
//
// Invariants: the addresses are /32 and /128, without duplicate address detection, deprecated and of link scope, so that the
// kernel never chooses one as the source of what the host sends. Ours are known by the address protocol number 97
// (IFA_PROTO, Linux 5.18); no other address is ever touched. Whoever hears another announce an address it holds yields at
// once, and takes it again only under a higher epoch: two answers are possible while a frame is on its way, and no longer.
//
// It must not decide which node announces: that is svcproxy's, by election and epoch. It never sleeps: the caller spaces the
// announcements.
package announce

import (
	"maps"
	"net"
	"net/netip"
	"sort"
	"sync"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/rtnl"
	"podwire.dev/internal/nodestate"
)

// Config says where addresses are announced.
type Config struct {
	// Link is the underlay's link.
	Link string
	// Yielded are addresses given up earlier, with the epoch at which: what Yielded returned, kept by the caller over a
	// restart of the agent, so that the last good state on its disk does not take them back.
	Yielded map[netip.Addr]int64
}

// Claim is another node's announcement of an address that this node held.
type Claim struct {
	Address netip.Addr
	// By is the MAC that announced it.
	By [6]byte
	// Epoch is the epoch at which this node held, and gave up, the address; 0 where it held the address from before a
	// restart and was not told the epoch since.
	Epoch int64
}

// Announcer is the door to the announced addresses of one link. Its methods may be called at the same time.
type Announcer struct {
	link string
	conn *rtnl.Conn
	arp  *packet.Conn
	nd   *packet.Conn

	mu      sync.Mutex
	held    map[netip.Addr]int64 // epoch
	yielded map[netip.Addr]int64
}

// Open opens the door in the network namespace of the calling thread. From now on it hears what others announce; Watch
// acts on it. Addresses that are on the link from before are held.
func Open(cfg Config) (*Announcer, error) {
	a := &Announcer{link: cfg.Link, held: map[netip.Addr]int64{}, yielded: map[netip.Addr]int64{}}
	maps.Copy(a.yielded, cfg.Yielded)
	var err error
	if a.conn, err = rtnl.Open(); err != nil {
		return nil, errs.Wrap(err, "announce on %s", cfg.Link)
	}
	if err := a.listen(); err != nil {
		_ = a.Close()
		return nil, err
	}
	live, err := a.List()
	if err != nil {
		_ = a.Close()
		return nil, err
	}
	for _, address := range live {
		a.held[address] = 0
	}
	return a, nil
}

func (a *Announcer) listen() error {
	l, err := a.find()
	if err != nil {
		return err
	}
	ifi := &net.Interface{Index: l.Index, Name: l.Name, HardwareAddr: l.MAC[:]}
	for _, s := range []struct {
		conn     **packet.Conn
		protocol int
		filter   packet.Config
	}{
		{&a.arp, unix.ETH_P_ARP, packet.Config{Filter: filterARP}},
		{&a.nd, unix.ETH_P_IPV6, packet.Config{Filter: filterNA}},
	} {
		// A socket of one protocol does not see what the host itself sends.
		if *s.conn, err = packet.Listen(ifi, packet.Raw, s.protocol, &s.filter); err != nil {
			return errs.WrapAs(errs.Internal, err, "announce on %s: open packet socket", a.link)
		}
	}
	return nil
}

// Close frees the descriptors and ends Watch; the kernel keeps the addresses and answers for them.
func (a *Announcer) Close() error {
	a.conn.Close()
	for _, c := range []*packet.Conn{a.arp, a.nd} {
		if c != nil {
			_ = c.Close()
		}
	}
	return nil
}

func (a *Announcer) find() (rtnl.Link, error) {
	l, found, err := a.conn.LinkByName(a.link)
	if err != nil {
		return l, errs.Wrap(err, "announce on %s", a.link)
	}
	if !found {
		return l, errs.New(errs.NotFound, "announce: there is no link %s on this host", a.link)
	}
	return l, nil
}

// row is an announced address as the kernel shows it.
func row(index int, address netip.Addr) rtnl.Address {
	r := rtnl.Address{Index: index, Address: address, Preference: rtnl.Deprecated, Protocol: rtnl.Protocol}
	if address.Is4() {
		// IPv4 pays no heed to lifetimes when it chooses a source, only to scopes.
		r.Scope = unix.RT_SCOPE_LINK
	}
	return r
}

// Apply makes the link hold exactly the rows' addresses, except those that this node yielded at the row's epoch or a later
// one: the caller passes the rows of this node. It returns the addresses that are new on the link or whose epoch rose,
// sorted; the caller now passes them to Advertise, three times, spaced.
func (a *Announcer) Apply(rows []nodestate.Announcement) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, err := a.find()
	if err != nil {
		return nil, err
	}
	live, err := a.live(l.Index)
	if err != nil {
		return nil, err
	}
	desired := a.desired(rows)
	var add, remove []rtnl.Request
	var added, news []netip.Addr
	for address, epoch := range desired {
		old, known := a.held[address]
		if !live[address] {
			add, added = append(add, row(l.Index, address).Add()), append(added, address)
		}
		if !live[address] || known && old != 0 && epoch > old {
			news = append(news, address)
		}
	}
	for address := range live {
		if _, ok := desired[address]; !ok {
			remove = append(remove, row(l.Index, address).Delete())
		}
	}
	if err := a.conn.DoThenAwait(added, add...); err != nil {
		return nil, errs.Wrap(err, "announce on %s", a.link)
	}
	if err := a.conn.Do(remove...); err != nil {
		return nil, errs.Wrap(err, "announce on %s", a.link)
	}
	a.held = desired
	sortAddresses(news)
	return news, a.checkMarks(l.Index, added)
}

// desired returns the rows' addresses with their epochs, and forgets what was yielded and is not asked for any more.
func (a *Announcer) desired(rows []nodestate.Announcement) map[netip.Addr]int64 {
	desired, yielded := map[netip.Addr]int64{}, map[netip.Addr]int64{}
	for _, r := range rows {
		if epoch, ok := a.yielded[r.Address]; ok && epoch >= r.Epoch {
			yielded[r.Address] = epoch
			continue
		}
		desired[r.Address] = max(desired[r.Address], r.Epoch)
	}
	a.yielded = yielded
	return desired
}

// checkMarks makes sure that new addresses can be told from foreign ones later.
func (a *Announcer) checkMarks(index int, added []netip.Addr) error {
	if len(added) == 0 {
		return nil
	}
	live, err := a.live(index)
	if err != nil {
		return err
	}
	for _, address := range added {
		if !live[address] {
			return errs.New(errs.Exists, "announce on %s: %s is on the link, but not as ours: either somebody else put it there, "+
				"or this kernel keeps no address protocol (IFA_PROTO, Linux 5.18)", a.link, address)
		}
	}
	return nil
}

func (a *Announcer) live(index int) (map[netip.Addr]bool, error) {
	addresses, err := a.conn.Addresses(index)
	if err != nil {
		return nil, errs.Wrap(err, "announce on %s", a.link)
	}
	live := map[netip.Addr]bool{}
	for _, x := range addresses {
		if x.Protocol == rtnl.Protocol {
			live[x.Address] = true
		}
	}
	return live, nil
}

// List returns the addresses that the link holds for us, sorted.
func (a *Announcer) List() ([]netip.Addr, error) {
	l, err := a.find()
	if err != nil {
		return nil, err
	}
	live, err := a.live(l.Index)
	if err != nil {
		return nil, err
	}
	list := make([]netip.Addr, 0, len(live))
	for address := range live {
		list = append(list, address)
	}
	sortAddresses(list)
	return list, nil
}

// Yielded returns the addresses given up to other nodes, with the epoch at which, as long as rows ask for them.
func (a *Announcer) Yielded() map[netip.Addr]int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.yielded)
}

// Remove takes every address of ours off the link.
func (a *Announcer) Remove() error {
	_, err := a.Apply(nil)
	return err
}

// Writes is the number of addresses put on or taken off since Open.
func (a *Announcer) Writes() uint64 { return a.conn.Writes() }

func sortAddresses(list []netip.Addr) {
	sort.Slice(list, func(i, j int) bool { return list[i].Less(list[j]) })
}
