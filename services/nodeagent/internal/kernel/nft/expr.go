package nft

import (
	"encoding/binary"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"podwire.dev/services/nodeagent/internal/plan"
)

// The functions of this file write rules as nft's own compiler does, register by register: Debian 12's nft can list
// only what it could have written itself, and aborts on some other forms that the kernel accepts.

// code is a piece of a rule.
type code []expr.Any

func rule(parts ...code) code {
	var c code
	for _, p := range parts {
		c = append(c, p...)
	}
	return c
}

// field loads one field of a key into a register.
type field struct {
	width uint32
	load  func(reg uint32) expr.Any
}

// register is the one that nft chooses for the 4-byte word off of a key: a 16-byte register where it begins one.
func register(off uint32) uint32 {
	if off%4 == 0 {
		return unix.NFT_REG_1 + off/4
	}
	return unix.NFT_REG32_00 + off
}

// load puts fields side by side, from the word given.
func load(off uint32, fields ...field) code {
	var c code
	for _, f := range fields {
		c = append(c, f.load(register(off)))
		off += (f.width + 3) / 4
	}
	return c
}

func meta(width uint32, key expr.MetaKey) field {
	return field{width, func(r uint32) expr.Any { return &expr.Meta{Key: key, Register: r} }}
}

func payload(base expr.PayloadBase, offset, width uint32) field {
	return field{width, func(r uint32) expr.Any {
		return &expr.Payload{DestRegister: r, Base: base, Offset: offset, Len: width}
	}}
}

// end is a side of a packet.
type end uint8

const (
	source end = iota
	destination
)

// addr is an address of the packet; the rule must have asked for the family before (see family).
func addr(f plan.Family, e end) field {
	if f == plan.IPv6 {
		return payload(expr.PayloadBaseNetworkHeader, 8+16*uint32(e), 16)
	}
	return payload(expr.PayloadBaseNetworkHeader, 12+4*uint32(e), 4)
}

func iifname() field { return meta(16, expr.MetaKeyIIFNAME) }
func oifname() field { return meta(16, expr.MetaKeyOIFNAME) }
func l4proto() field { return meta(1, expr.MetaKeyL4PROTO) }
func mark() field    { return meta(4, expr.MetaKeyMARK) }
func dport() field   { return payload(expr.PayloadBaseTransportHeader, 2, 2) }

func ctMark() field {
	return field{4, func(r uint32) expr.Any { return &expr.Ct{Key: expr.CtKeyMARK, Register: r} }}
}

func cmp(op expr.CmpOp, data ...byte) code {
	return code{&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: data}}
}

func is(f field, data ...byte) code { return rule(load(0, f), cmp(expr.CmpOpEq, data...)) }

func nfproto(f plan.Family) uint32 {
	if f == plan.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func family(f plan.Family) code { return is(meta(1, expr.MetaKeyNFPROTO), byte(nfproto(f))) }

// named compares an interface name; a * at its end matches any rest.
func named(f field, op expr.CmpOp, name string) code {
	data := make([]byte, 16)
	copy(data, name)
	if n := len(name); name[n-1] == '*' {
		data = data[:n-1]
	}
	return rule(load(0, f), cmp(op, data...))
}

func from(name string) code    { return named(iifname(), expr.CmpOpEq, name) }
func notFrom(name string) code { return named(iifname(), expr.CmpOpNeq, name) }
func to(name string) code      { return named(oifname(), expr.CmpOpEq, name) }
func notTo(name string) code   { return named(oifname(), expr.CmpOpNeq, name) }

// in goes on where the set holds the key, out where it does not.
func in(set plan.SetName, key ...field) code {
	return append(load(0, key...), &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: string(set)})
}

func out(set plan.SetName, key ...field) code {
	return append(load(0, key...), &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: string(set), Invert: true})
}

// find puts what the map holds for the key into the first register, and ends the rule where it holds nothing.
func find(set plan.SetName, key ...field) code {
	return append(load(0, key...), &expr.Lookup{
		SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, IsDestRegSet: true, SetName: string(set),
	})
}

// vmap takes the verdict that the map holds for the key.
func vmap(set plan.SetName, key ...field) code {
	return append(load(0, key...), &expr.Lookup{
		SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: string(set),
	})
}

func word(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func value(v uint32) code {
	return code{&expr.Immediate{Register: unix.NFT_REG_1, Data: word(v)}}
}

// setMark and setCtMark store what value was put into the first register.
func setMark(v code) code {
	return rule(v, code{&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1}})
}

func setCtMark(v code) code {
	return rule(v, code{&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1}})
}

// masked compares bits of a field.
func masked(f field, mask uint32, op expr.CmpOp, v uint32) code {
	return rule(load(0, f), code{&expr.Bitwise{
		SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4,
		Mask: word(mask), Xor: make([]byte, 4),
	}}, cmp(op, word(v)...))
}

func state(bits uint32) code {
	f := field{4, func(r uint32) expr.Any { return &expr.Ct{Key: expr.CtKeySTATE, Register: r} }}
	return masked(f, bits, expr.CmpOpNeq, 0)
}

// dynset changes key -> data in a dynamic map; operation is one of NFT_DYNSET_OP_*.
func dynset(set plan.SetName, operation uint32, timeout time.Duration, data field, key ...field) code {
	var width uint32
	for _, f := range key {
		width += (f.width + 3) / 4
	}
	dataAt := (width + 3) &^ 3 // nft gives a key whole 16-byte registers
	c := append(load(0, key...), load(dataAt, data)...)
	return append(c, &expr.Dynset{
		SrcRegKey: unix.NFT_REG_1, SrcRegData: register(dataAt), SetName: string(set), Operation: operation, Timeout: timeout,
	})
}

// hashed is jhash over fields: see affinity.
func hashed(seed uint32, fields ...field) code {
	var width uint32
	for _, f := range fields {
		width += (f.width + 3) &^ 3
	}
	return append(load(4, fields...), &expr.Hash{
		SourceRegister: unix.NFT_REG_2, DestRegister: unix.NFT_REG_1, Length: width, Modulus: 1<<32 - 1, Seed: seed,
		Type: expr.HashTypeJenkins,
	})
}

func verdict(k expr.VerdictKind, chain string) code {
	return code{&expr.Verdict{Kind: k, Chain: chain}}
}

func accept() code            { return verdict(expr.VerdictAccept, "") }
func drop() code              { return verdict(expr.VerdictDrop, "") }
func back() code              { return verdict(expr.VerdictReturn, "") }
func jump(chain string) code  { return verdict(expr.VerdictJump, chain) }
func leave(chain string) code { return verdict(expr.VerdictGoto, chain) }

func count(c Counter) code {
	return code{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: string(c)}}
}
