package nft

import (
	"encoding/binary"
	"sort"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/plan"
)

func (b *batch) add(list []plan.Element) error {
	for _, el := range list {
		if el.Set == plan.SetPrograms || el.Set == plan.SetChoices {
			if err := b.needChain(el.Value); err != nil {
				return err
			}
		}
	}
	return b.each(list, b.conn.SetAddElements)
}

func (b *batch) remove(list []plan.Element) error {
	return b.each(list, b.conn.SetDeleteElements)
}

// each calls write with lists of elements of one set, each within the limits of one message.
func (b *batch) each(list []plan.Element, write func(*nftables.Set, []nftables.SetElement) error) error {
	defs := definitions()
	for len(list) > 0 {
		def, ok := defs[list[0].Set]
		if !ok || def.Dynamic {
			return errs.New(errs.Internal, "nft: set %q is none of the plan's", list[0].Set)
		}
		var out []nftables.SetElement
		size := 0
		for len(list) > 0 && list[0].Set == def.Name && len(out) < maxElements-1 && size < maxBytes {
			out = append(out, encode(def, list[0])...)
			// Attributes around key and data take less than 64 bytes.
			size += 2 * (64 + len(list[0].Key) + len(list[0].Value))
			list = list[1:]
			b.objects++
		}
		if err := write(setOf(def), out); err != nil {
			return errs.WrapAs(errs.Internal, err, "nft: encode elements of %s", def.Name)
		}
	}
	return nil
}

func definitions() map[plan.SetName]plan.Set {
	defs := map[plan.SetName]plan.Set{}
	for _, s := range plan.Sets() {
		defs[s.Name] = s
	}
	return defs
}

// encode gives an element as the kernel takes it. An interval is two: its first value, and the first value after it,
// marked as an end, unless the interval reaches to the last value.
func encode(def plan.Set, el plan.Element) []nftables.SetElement {
	out := nftables.SetElement{Key: []byte(el.Key)}
	if def.Interval {
		out.Key = out.Key[:len(el.Key)/2]
	}
	switch {
	case len(def.Data) == 0:
	case def.Data[0] == plan.TypeVerdict:
		out.VerdictData = parseVerdict(el.Value)
	default:
		out.Val = []byte(el.Value)
	}
	if !def.Interval {
		return []nftables.SetElement{out}
	}
	end, ok := after([]byte(el.Key[len(el.Key)/2:]))
	if !ok {
		return []nftables.SetElement{out}
	}
	return []nftables.SetElement{out, {Key: end, IntervalEnd: true}}
}

// after is the value that follows in big endian; false after the last.
func after(v []byte) ([]byte, bool) {
	b := append([]byte(nil), v...)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b, true
		}
	}
	return nil, false
}

func before(v []byte) []byte {
	b := append([]byte(nil), v...)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]--; b[i] != 0xff {
			break
		}
	}
	return b
}

func parseVerdict(v plan.Value) *expr.Verdict {
	verb, name, _ := strings.Cut(string(v), " ")
	switch verb {
	case "goto":
		return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name}
	case "jump":
		return &expr.Verdict{Kind: expr.VerdictJump, Chain: name}
	}
	return &expr.Verdict{Kind: expr.VerdictDrop}
}

// decode is the inverse of encode for all elements of a set.
func decode(def plan.Set, list []nftables.SetElement) (map[plan.Key]plan.Value, error) {
	out := make(map[plan.Key]plan.Value, len(list))
	if def.Interval {
		return out, decodeIntervals(def, list, out)
	}
	for _, el := range list {
		v, err := decodeValue(def, el)
		if err != nil {
			return nil, err
		}
		out[plan.Key(el.Key)] = v
	}
	return out, nil
}

func decodeIntervals(def plan.Set, list []nftables.SetElement, out map[plan.Key]plan.Value) error {
	// An end and the next interval's begin may share a value: the end comes first.
	sort.Slice(list, func(i, j int) bool {
		a, b := string(list[i].Key), string(list[j].Key)
		if a != b {
			return a < b
		}
		return list[i].IntervalEnd && !list[j].IntervalEnd
	})
	for i, el := range list {
		if el.IntervalEnd {
			continue
		}
		last := []byte(strings.Repeat("\xff", len(el.Key)))
		if i+1 < len(list) {
			last = before(list[i+1].Key)
		}
		v, err := decodeValue(def, el)
		if err != nil {
			return err
		}
		out[plan.Key(el.Key)+plan.Key(last)] = v
	}
	return nil
}

func decodeValue(def plan.Set, el nftables.SetElement) (plan.Value, error) {
	if len(def.Data) == 0 {
		return "", nil
	}
	if def.Data[0] != plan.TypeVerdict {
		return plan.Value(el.Val), nil
	}
	ad, err := netlink.NewAttributeDecoder(el.Val)
	if err != nil {
		return "", errs.WrapAs(errs.Internal, err, "nft: read verdict in %s", def.Name)
	}
	ad.ByteOrder = binary.BigEndian
	verb, name := "drop", ""
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			switch int32(ad.Uint32()) {
			case unix.NFT_GOTO:
				verb = "goto "
			case unix.NFT_JUMP:
				verb = "jump "
			}
		case unix.NFTA_VERDICT_CHAIN:
			name = ad.String()
		}
	}
	return plan.Value(verb + name), ad.Err()
}
