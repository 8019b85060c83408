package nft

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/plan"
)

// own is an expression that the library (v0.3.0) cannot send as the kernel wants it. It embeds the library's interface, whose
// methods cannot be written here, only to stand in rules beside the others; nothing but marshal may ask it for its bytes.
type own struct {
	expr.Any
	name       string
	attributes []netlink.Attribute
}

// marshal gives an expression as the kernel takes it.
func marshal(e expr.Any) ([]byte, error) {
	o, ok := e.(own)
	if !ok {
		return expr.Marshal(byte(nftables.TableFamilyINet), e)
	}
	data, err := netlink.MarshalAttributes(o.attributes)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "nft: expression %s", o.name)
	}
	return netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: append([]byte(o.name), 0)},
		{Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: data},
	})
}

func number(kind uint16, v uint32) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: binary.BigEndian.AppendUint32(nil, v)}
}

// direction is one of a tracked flow's, as in enum ip_conntrack_dir.
type direction byte

const (
	original direction = 0
	reply    direction = 1
)

// flowSource is the source address of a tracked flow in one direction: of what began it, or of what answers it after
// translation. The library knows the keys of one family, and sends no direction with them. It ends the rule where the flow is
// of the other family.
func flowSource(d direction, f plan.Family) field {
	key, width := uint32(unix.NFT_CT_SRC_IP), uint32(4)
	if f == plan.IPv6 {
		key, width = unix.NFT_CT_SRC_IP6, 16
	}
	return field{width, func(r uint32) expr.Any {
		return own{name: "ct", attributes: []netlink.Attribute{
			number(unix.NFTA_CT_DREG, r), number(unix.NFTA_CT_KEY, key), {Type: unix.NFTA_CT_DIRECTION, Data: []byte{byte(d)}},
		}}
	}}
}

// The ports that masquerading gives to flows: above everything that a node serves, node ports included. They are Linux's range
// for what connects out.
const (
	lowestLent  = 32768
	highestLent = 60999
)

// masqueradeTo masquerades to the ports above. The kernel obeys them only with a flag that the library leaves out. The rule
// must have asked for a protocol with ports.
func masqueradeTo() code {
	port := func(r uint32, n uint16) expr.Any {
		return &expr.Immediate{Register: r, Data: binary.BigEndian.AppendUint16(nil, n)}
	}
	return code{port(unix.NFT_REG_1, lowestLent), port(unix.NFT_REG_2, highestLent), own{
		name: "masq", attributes: []netlink.Attribute{
			number(unix.NFTA_MASQ_FLAGS, unix.NF_NAT_RANGE_PROTO_SPECIFIED),
			number(unix.NFTA_MASQ_REG_PROTO_MIN, unix.NFT_REG_1), number(unix.NFTA_MASQ_REG_PROTO_MAX, unix.NFT_REG_2),
		},
	}}
}
