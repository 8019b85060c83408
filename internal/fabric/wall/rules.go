package wall

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// sets are those of the transaction, by name.
type sets = map[string]*nftables.Set

// part is some expressions of a rule.
type part func(sets) []expr.Any

// rule is what a chain does with packets that all its parts match.
type rule struct {
	why   string
	parts []part
}

func (r rule) exprs(s sets) []expr.Any {
	var out []expr.Any
	for _, p := range r.parts {
		out = append(out, p(s)...)
	}
	return out
}

type chain struct {
	name  string
	hook  *nftables.ChainHook
	rules []rule
}

func (w *Wall) chains() []chain {
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	tunnel, elsewhere := iif(expr.CmpOpEq, w.cfg.Link), iif(expr.CmpOpNeq, w.cfg.Link)
	input := []rule{
		{"its own", []part{iif(expr.CmpOpEq, "lo"), accept}},
		{"members' tunnel packets", []part{udpTo(w.cfg.Port), elsewhere, family(unix.NFPROTO_IPV4), in(setMembers4, source4), accept}},
		{"members' tunnel packets", []part{udpTo(w.cfg.Port), elsewhere, family(unix.NFPROTO_IPV6), in(setMembers6, source6), accept}},
		{"others' tunnel packets", []part{udpTo(w.cfg.Port), drop}},
	}
	for _, port := range w.cfg.TCP {
		input = append(input, rule{"served to pods", []part{tunnel, opens, tcpTo(port), accept}})
	}
	input = append(input,
		rule{"not for pods", []part{tunnel, opens, reset}},
		rule{"fabric address from elsewhere", []part{elsewhere, family(unix.NFPROTO_IPV4), in(setOwn4, destination4), drop}},
		rule{"fabric address from elsewhere", []part{elsewhere, family(unix.NFPROTO_IPV6), in(setOwn6, destination6), drop}},
	)
	return []chain{
		{"input", nftables.ChainHookInput, input},
		{"forward", nftables.ChainHookForward, []rule{
			{"out of the fabric", []part{tunnel, drop}},
			{"into the fabric", []part{oif(w.cfg.Link), drop}},
		}},
	}
}

func comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }

func verdict(kind expr.VerdictKind) part {
	return func(sets) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
}

// reset refuses a TCP connection.
func reset(sets) []expr.Any { return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func iif(op expr.CmpOp, link string) part { return meta(expr.MetaKeyIIFNAME, op, linkName(link)) }

func oif(link string) part { return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, linkName(link)) }

// linkName is a link's name as the kernel compares it, filled up with zeros.
func linkName(link string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, link)
	return b
}

func family(f byte) part { return meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f}) }

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) part {
	return func(sets) []expr.Any {
		return []expr.Any{&expr.Meta{Key: key, Register: unix.NFT_REG_1}, &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: data}}
	}
}

// field is a place in a packet.
type field struct {
	base        expr.PayloadBase
	offset, len uint32
}

var (
	source4      = field{expr.PayloadBaseNetworkHeader, 12, 4}
	destination4 = field{expr.PayloadBaseNetworkHeader, 16, 4}
	source6      = field{expr.PayloadBaseNetworkHeader, 8, 16}
	destination6 = field{expr.PayloadBaseNetworkHeader, 24, 16}
	toPort       = field{expr.PayloadBaseTransportHeader, 2, 2}
	tcpFlags     = field{expr.PayloadBaseTransportHeader, 13, 1}
)

func (f field) load() expr.Any {
	return &expr.Payload{DestRegister: unix.NFT_REG_1, Base: f.base, Offset: f.offset, Len: f.len}
}

func in(set string, f field) part {
	return func(s sets) []expr.Any {
		return []expr.Any{f.load(), &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: set, SetID: s[set].ID}}
	}
}

func udpTo(port uint16) part { return to(unix.IPPROTO_UDP, port) }

func tcpTo(port uint16) part { return to(unix.IPPROTO_TCP, port) }

func to(protocol byte, port uint16) part {
	match := meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{protocol})
	data := binary.BigEndian.AppendUint16(nil, port)
	return func(s sets) []expr.Any {
		return slices.Concat(match(s), []expr.Any{toPort.load(), &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: data}})
	}
}

// opens matches the TCP segments that can begin a connection: SYN without ACK.
func opens(s sets) []expr.Any {
	const syn, ack = 0x02, 0x10
	return slices.Concat(meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})(s), []expr.Any{
		tcpFlags.load(),
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{syn}},
	})
}
