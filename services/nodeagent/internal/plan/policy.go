package plan

import (
	"encoding/hex"
	"strconv"

	"podwire.dev/internal/nodestate"
)

// subject is the class of one side of a subject.
func (u *unit) subject(d nodestate.Direction, s nodestate.Side) uint32 {
	if s.Mode == nodestate.SideOpen {
		return Open
	}
	return u.subjectClass(d, s.Class)
}

func (u *unit) subjectClass(d nodestate.Direction, c nodestate.Class) uint32 {
	kind := "i"
	if d == nodestate.Egress {
		kind = "o"
	}
	return u.id(kind, hex.EncodeToString(c[:]))
}

func (u *unit) peerClass(c nodestate.Class) uint32 { return u.id("p", hex.EncodeToString(c[:])) }

// sides are the subject and the peer class of an allowance.
func (u *unit) sides(a nodestate.Allow) (subject, peer uint32) {
	peer = AnyPeer
	if a.PeerMode == nodestate.PeerClass {
		peer = u.peerClass(a.Peer)
	}
	return u.subjectClass(a.Direction, a.Subject), peer
}

func planPeer(u *unit, row nodestate.Row) {
	if r, ok := row.(nodestate.Peer); ok {
		u.put(SetPeers.In(familyOf(r.Address)), Concat(Addr(r.Address)), Data(Mark(u.peerClass(r.Class))))
	}
}

func planPeerRange(u *unit, row nodestate.Row) {
	if r, ok := row.(nodestate.PeerRange); ok {
		u.put(SetRanges.In(familyOf(r.From)), Range(Addr(r.From), Addr(r.To)), Data(Mark(u.peerClass(r.Class))))
	}
}

// wide says whether an allowance goes by port class.
func wide(a nodestate.Allow) bool {
	return a.PortMode == nodestate.PortRange && int(a.To)-int(a.From) >= ExpandPorts
}

// planAllow gives an allowance that is not wide; [Planner.planPorts] gives the wide ones of a protocol together.
func planAllow(u *unit, row nodestate.Row) {
	a, ok := row.(nodestate.Allow)
	if !ok || wide(a) {
		return
	}
	s, p := u.sides(a)
	subject, peer := Mark(s), Mark(p)
	switch a.PortMode {
	case nodestate.PortAny:
		u.put(SetAllow, Concat(subject, peer), "")
	case nodestate.PortProtocol:
		u.put(SetAllowProtocol, Concat(subject, peer, Proto(a.Protocol)), "")
	case nodestate.PortRange:
		for port := int(a.From); port <= int(a.To); port++ {
			u.put(SetAllowPort, Concat(subject, peer, Proto(a.Protocol), Port(uint16(port))), "")
		}
	}
}

// planPorts gives the wide port ranges of one protocol: every port is mapped to its atom, one of the pieces into which
// all wide ranges cut the ports, and (pair, atom) is allowed.
func (p *Planner) planPorts(u *unit, proto nodestate.Protocol) {
	var rows []nodestate.Allow
	var all []span
	for _, k := range sortedKeys(p.rows[nodestate.TableAllows]) {
		a, ok := p.rows[nodestate.TableAllows][k].(nodestate.Allow)
		if ok && wide(a) && a.Protocol == proto {
			rows = append(rows, a)
			all = append(all, span{Port(a.From), Port(a.To)})
		}
	}
	pieces := atoms(all)
	classes := make([]uint32, len(pieces))
	for i, piece := range pieces {
		low, high := formatField(TypePort, string(piece.low)), formatField(TypePort, string(piece.high))
		classes[i] = u.id("t", proto.String(), low+"-"+high)
		u.put(portSet(proto), piece.key(), Data(Mark(classes[i])))
	}
	for i, a := range rows {
		s, peer := u.sides(a)
		pair := u.id("w", strconv.FormatUint(uint64(s), 10), strconv.FormatUint(uint64(peer), 10))
		u.put(SetPairs, Concat(Mark(s), Mark(peer)), Data(Mark(pair)))
		for j, piece := range pieces {
			if all[i].covers(piece) {
				u.put(SetAllowRange, Concat(Mark(pair), Mark(classes[j])), "")
			}
		}
	}
}
