package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Link is a network device.
type Link struct {
	Index int
	Name  string
	// Kind is the driver: "veth", "vxlan", "bridge"; empty for hardware.
	Kind string
	// Alias is the free text of IFLA_IFALIAS.
	Alias string
	MAC   [6]byte
	MTU   int
	Up    bool
	// Peer is the index of the other end of a veth pair, in its own namespace; of the lower device for others.
	Peer int
	// PeerNS is the id, in this namespace, of the namespace that Peer is in; -1 where it is this one.
	PeerNS int
	// VXLAN is set for Kind "vxlan".
	VXLAN VXLAN
}

// VXLAN is what makes a VXLAN device.
type VXLAN struct {
	VNI   uint32
	Port  uint16
	Local netip.Addr
	// Learning says whether the device learns senders; ours never do.
	Learning bool
}

const ifinfomsgLen = 16

func ifinfomsg(index int, up, change uint32) payload {
	p := make(payload, ifinfomsgLen, 256)
	binary.NativeEndian.PutUint32(p[4:], uint32(index))
	binary.NativeEndian.PutUint32(p[8:], up)
	binary.NativeEndian.PutUint32(p[12:], change)
	return p
}

// VethPair describes a veth pair, whose two ends are made at once, each in its namespace.
type VethPair struct {
	Name, PeerName string
	MAC, PeerMAC   [6]byte
	MTU            int
	// PeerNS is a descriptor of the peer's namespace.
	PeerNS int
}

// The attributes of a veth pair, from linux/veth.h.
const vethInfoPeer = 1

// AddVeth makes a veth pair; it fails with EEXIST where either name is taken.
func AddVeth(v VethPair) Request {
	peer := ifinfomsg(0, 0, 0).str(unix.IFLA_IFNAME, v.PeerName).attr(unix.IFLA_ADDRESS, v.PeerMAC[:]).
		u32(unix.IFLA_MTU, uint32(v.MTU)).u32(unix.IFLA_NET_NS_FD, uint32(v.PeerNS))
	info := payload{}.str(unix.IFLA_INFO_KIND, "veth").
		nest(unix.IFLA_INFO_DATA, payload{}.attr(vethInfoPeer, peer))
	p := ifinfomsg(0, 0, 0).str(unix.IFLA_IFNAME, v.Name).attr(unix.IFLA_ADDRESS, v.MAC[:]).
		u32(unix.IFLA_MTU, uint32(v.MTU)).nest(unix.IFLA_LINKINFO, info)
	return Request{
		what: "add veth " + v.Name, typ: unix.RTM_NEWLINK, payload: p,
		flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL,
	}
}

// AddVXLAN makes a VXLAN device with no default destination and without learning: it sends only where forwarding entries
// say, and drops everything else.
func AddVXLAN(name string, mac [6]byte, mtu int, v VXLAN) Request {
	data := payload{}.u32(unix.IFLA_VXLAN_ID, v.VNI).
		attr(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, v.Port)).u8(unix.IFLA_VXLAN_LEARNING, 0)
	local := uint16(unix.IFLA_VXLAN_LOCAL)
	if v.Local.Is6() {
		local = unix.IFLA_VXLAN_LOCAL6
	}
	data = data.addr(local, v.Local)
	info := payload{}.str(unix.IFLA_INFO_KIND, "vxlan").nest(unix.IFLA_INFO_DATA, data)
	p := ifinfomsg(0, 0, 0).str(unix.IFLA_IFNAME, name).attr(unix.IFLA_ADDRESS, mac[:]).
		u32(unix.IFLA_MTU, uint32(mtu)).nest(unix.IFLA_LINKINFO, info)
	return Request{
		what: "add vxlan " + name, typ: unix.RTM_NEWLINK, payload: p,
		flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL,
	}
}

// LinkLocal says whether the kernel gives a link an IPv6 link-local address.
type LinkLocal uint8

// The modes of link-local addresses.
const (
	KeepLinkLocal LinkLocal = iota
	NoLinkLocal             // IN6_ADDR_GEN_MODE_NONE
)

const inet6AddrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h

// Prepared is what a link is given before it is up.
type Prepared struct {
	// Index names the link; 0 where Name does, in the batch that makes it.
	Index int
	Name  string
	// Alias is kept where empty.
	Alias     string
	LinkLocal LinkLocal
}

// Prepare changes a link that is down. It is a request of its own, since the kernel sets a link up before it looks at the
// other attributes of the same request, and would give it a link-local address first.
func Prepare(l Prepared) Request {
	p := ifinfomsg(l.Index, 0, 0)
	if l.Index == 0 {
		p = p.str(unix.IFLA_IFNAME, l.Name)
	}
	if l.Alias != "" {
		p = p.attr(unix.IFLA_IFALIAS, []byte(l.Alias))
	}
	if l.LinkLocal == NoLinkLocal {
		inet6 := payload{}.u8(unix.IFLA_INET6_ADDR_GEN_MODE, inet6AddrGenModeNone)
		p = p.nest(unix.IFLA_AF_SPEC, payload{}.nest(unix.AF_INET6, inet6))
	}
	return Request{what: fmt.Sprintf("prepare link %d %s", l.Index, l.Name), typ: unix.RTM_NEWLINK, payload: p}
}

// Setup is what can change while a link is up; zero fields stay as they are.
type Setup struct {
	// Index names the link; 0 where Name does, in the batch that makes it.
	Index int
	Name  string
	MAC   [6]byte
	MTU   int
}

// SetUp changes a link and sets it up.
func SetUp(s Setup) Request {
	p := ifinfomsg(s.Index, unix.IFF_UP, unix.IFF_UP)
	if s.Index == 0 {
		p = p.str(unix.IFLA_IFNAME, s.Name)
	}
	if s.MAC != ([6]byte{}) {
		p = p.attr(unix.IFLA_ADDRESS, s.MAC[:])
	}
	if s.MTU != 0 {
		p = p.u32(unix.IFLA_MTU, uint32(s.MTU))
	}
	return Request{what: fmt.Sprintf("set up link %d %s", s.Index, s.Name), typ: unix.RTM_NEWLINK, payload: p}
}

// DeleteLink removes a link, and with it its addresses, neighbours and routes; a link that is gone is no failure.
func DeleteLink(index int) Request {
	return Request{
		what: fmt.Sprintf("delete link %d", index), typ: unix.RTM_DELLINK, payload: ifinfomsg(index, 0, 0),
		tolerate: []unix.Errno{unix.ENODEV},
	}
}

func getLink(name string) Request {
	return Request{
		what: "get link " + name, typ: unix.RTM_GETLINK, query: true,
		payload: ifinfomsg(0, 0, 0).str(unix.IFLA_IFNAME, name),
	}
}

// LinkByName returns the link of that name, and whether there is one.
func (c *Conn) LinkByName(name string) (Link, bool, error) {
	l, err := c.DoThenGet(name)
	if errors.Is(err, unix.ENODEV) {
		return Link{}, false, nil
	}
	return l, err == nil, err
}

// LinkByIndex returns the link of that index, and whether there is one.
func (c *Conn) LinkByIndex(index int) (Link, bool, error) {
	answers, err := c.exchange([]Request{{
		what: fmt.Sprintf("get link %d", index), typ: unix.RTM_GETLINK, query: true, payload: ifinfomsg(index, 0, 0),
	}})
	if errors.Is(err, unix.ENODEV) {
		return Link{}, false, nil
	}
	if err != nil || len(answers) == 0 {
		return Link{}, false, err
	}
	return parseLink(answers[0]), true, nil
}

// DoThenGet carries the requests out and, in the same batch, reads the link of that name.
func (c *Conn) DoThenGet(name string, requests ...Request) (Link, error) {
	answers, err := c.exchange(append(requests, getLink(name)))
	if err != nil {
		return Link{}, err
	}
	for _, m := range answers {
		if m.typ == unix.RTM_NEWLINK {
			return parseLink(m), nil
		}
	}
	return Link{}, &Refusal{Request: "get link " + name, Errno: unix.ENODEV}
}

// Links returns every link of the namespace.
func (c *Conn) Links() ([]Link, error) {
	msgs, err := c.dump("links", unix.RTM_GETLINK, ifinfomsg(0, 0, 0))
	if err != nil {
		return nil, err
	}
	links := make([]Link, 0, len(msgs))
	for _, m := range msgs {
		links = append(links, parseLink(m))
	}
	return links, nil
}

func parseLink(m message) Link {
	if len(m.payload) < ifinfomsgLen {
		return Link{}
	}
	l := Link{
		Index:  int(number(m.payload[4:8])),
		Up:     number(m.payload[8:12])&unix.IFF_UP != 0,
		PeerNS: -1,
	}
	for _, a := range attributes(m.payload[ifinfomsgLen:]) {
		switch a.typ {
		case unix.IFLA_IFNAME:
			l.Name = text(a.value)
		case unix.IFLA_IFALIAS:
			l.Alias = text(a.value)
		case unix.IFLA_ADDRESS:
			copy(l.MAC[:], a.value)
		case unix.IFLA_MTU:
			l.MTU = int(number(a.value))
		case unix.IFLA_LINK:
			l.Peer = int(number(a.value))
		case unix.IFLA_LINK_NETNSID:
			l.PeerNS = int(int32(number(a.value)))
		case unix.IFLA_LINKINFO:
			l.parseInfo(attributes(a.value))
		}
	}
	return l
}

func (l *Link) parseInfo(info []attribute) {
	for _, a := range info {
		if a.typ == unix.IFLA_INFO_KIND {
			l.Kind = text(a.value)
		}
	}
	for _, a := range info {
		if a.typ != unix.IFLA_INFO_DATA || l.Kind != "vxlan" {
			continue
		}
		for _, d := range attributes(a.value) {
			switch d.typ {
			case unix.IFLA_VXLAN_ID:
				l.VXLAN.VNI = number(d.value)
			case unix.IFLA_VXLAN_PORT:
				if len(d.value) == 2 {
					l.VXLAN.Port = binary.BigEndian.Uint16(d.value)
				}
			case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
				l.VXLAN.Local = address(d.value)
			case unix.IFLA_VXLAN_LEARNING:
				l.VXLAN.Learning = number(d.value) != 0
			}
		}
	}
}

// NamespaceID returns the id that this namespace has for the one behind a descriptor; -1 where it has none.
func (c *Conn) NamespaceID(fd int) (int, error) {
	answers, err := c.exchange([]Request{{
		what: "get namespace id", typ: unix.RTM_GETNSID, query: true,
		payload: make(payload, 4).u32(unix.NETNSA_FD, uint32(fd)), // struct rtgenmsg, padded
	}})
	if err != nil {
		return -1, err
	}
	for _, m := range answers {
		if m.typ != unix.RTM_NEWNSID || len(m.payload) < 4 {
			continue
		}
		for _, a := range attributes(m.payload[4:]) {
			if a.typ == unix.NETNSA_NSID {
				return int(int32(number(a.value))), nil
			}
		}
	}
	return -1, nil
}
