package plan

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"sort"
	"strconv"
	"strings"

	"podwire.dev/internal/nodestate"
)

// Field is one field of a key or value, as the kernel's bytes without padding.
type Field string

// Key is an element's key as the kernel's bytes: one field, or several, each padded to 4 bytes. The key of an
// interval set is its first field's lowest value followed by its highest.
type Key string

// Value is an element's data, laid out as a Key; of a verdict map, the verdict's text; of a set, empty.
type Value string

// Element is one element of one set.
type Element struct {
	Set   SetName
	Key   Key
	Value Value
}

// Addr is an address field; IPv4 addresses in IPv6 form count as IPv4.
func Addr(a netip.Addr) Field { return Field(a.Unmap().AsSlice()) }

// Link is an interface name field.
func Link(name string) Field {
	var b [16]byte
	copy(b[:15], name)
	return Field(b[:])
}

// Proto is a transport protocol field.
func Proto(p nodestate.Protocol) Field { return Field([]byte{byte(p)}) }

// Port is a port field.
func Port(p uint16) Field { return Field(binary.BigEndian.AppendUint16(nil, p)) }

// Mark is a mark field: an id, a class, a slot, a program.
func Mark(v uint32) Field { return Field(binary.NativeEndian.AppendUint32(nil, v)) }

// MarkOf reads a value of one mark; 0 if it is none.
func MarkOf(v Value) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32([]byte(v))
}

// EndpointOf reads a value of SetEndpoints.
func EndpointOf(v Value) (netip.AddrPort, bool) {
	if len(v) != 8 && len(v) != 20 {
		return netip.AddrPort{}, false
	}
	n := len(v) - 4
	a, ok := netip.AddrFromSlice([]byte(v[:n]))
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(v[n:n+2]))), ok
}

// Concat makes a key of fields.
func Concat(fields ...Field) Key { return Key(concat(fields)) }

// Data makes a value of fields.
func Data(fields ...Field) Value { return Value(concat(fields)) }

func concat(fields []Field) string {
	if len(fields) == 1 {
		return string(fields[0])
	}
	var b strings.Builder
	for _, f := range fields {
		b.WriteString(string(f))
		b.WriteString("\x00\x00\x00"[:-len(f)&3])
	}
	return b.String()
}

// Range makes a key of an interval set; both ends are included.
func Range(low, high Field) Key { return Key(low) + Key(high) }

// Elements are the elements of sets, by name and key.
type Elements map[SetName]map[Key]Value

// Put adds or replaces one element.
func (e Elements) Put(el Element) {
	if e[el.Set] == nil {
		e[el.Set] = map[Key]Value{}
	}
	e[el.Set][el.Key] = el.Value
}

// Delete takes one element out.
func (e Elements) Delete(set SetName, k Key) {
	delete(e[set], k)
	if len(e[set]) == 0 {
		delete(e, set)
	}
}

// Lookup finds a key in a set that has no intervals.
func (e Elements) Lookup(set SetName, fields ...Field) (Value, bool) {
	v, ok := e[set][Concat(fields...)]
	return v, ok
}

// LookupRange finds the interval that holds a field. Its cost is the number of the set's intervals.
func (e Elements) LookupRange(set SetName, f Field) (Value, bool) {
	for k, v := range e[set] {
		n := len(k) / 2
		if n == len(f) && Field(k[:n]) <= f && f <= Field(k[n:]) {
			return v, true
		}
	}
	return "", false
}

// Len is the number of elements.
func (e Elements) Len() int {
	n := 0
	for _, s := range e {
		n += len(s)
	}
	return n
}

// Equal says whether two have the same elements.
func (e Elements) Equal(o Elements) bool {
	return maps.EqualFunc(e, o, func(a, b map[Key]Value) bool { return maps.Equal(a, b) })
}

// Clone is a copy.
func (e Elements) Clone() Elements {
	c := make(Elements, len(e))
	for name, s := range e {
		m := make(map[Key]Value, len(s))
		for k, v := range s {
			m[k] = v
		}
		c[name] = m
	}
	return c
}

// Sorted returns the elements by set in the order of [Sets], then by key.
func (e Elements) Sorted() []Element {
	list := make([]Element, 0, e.Len())
	for _, s := range Sets() {
		from := len(list)
		for k, v := range e[s.Name] {
			list = append(list, Element{s.Name, k, v})
		}
		part := list[from:]
		sort.Slice(part, func(i, j int) bool { return part[i].Key < part[j].Key })
	}
	return list
}

// Format is one line per element, sorted: "<set> <key>[ : <value>]", fields as nft writes them.
func (e Elements) Format() string {
	defs := map[SetName]Set{}
	for _, s := range Sets() {
		defs[s.Name] = s
	}
	var b strings.Builder
	for _, el := range e.Sorted() {
		b.WriteString(el.format(defs[el.Set]))
		b.WriteByte('\n')
	}
	return b.String()
}

func (el Element) format(s Set) string {
	text := string(el.Set) + " "
	if s.Interval {
		n := len(el.Key) / 2
		text += formatField(s.Key[0], string(el.Key[:n])) + "-" + formatField(s.Key[0], string(el.Key[n:]))
	} else {
		text += formatFields(s.Key, string(el.Key))
	}
	switch {
	case len(s.Data) == 0:
		return text
	case s.Data[0] == TypeVerdict:
		return text + " : " + string(el.Value)
	}
	return text + " : " + formatFields(s.Data, string(el.Value))
}

// Width is the number of bytes of a field of the type; 0 for verdicts.
func (t Type) Width() int {
	switch t {
	case TypeAddr4, TypeMark:
		return 4
	case TypeAddr6, TypeLink:
		return 16
	case TypeProto:
		return 1
	case TypePort:
		return 2
	}
	return 0
}

// WidthOf is the number of bytes of a key or value of the types.
func WidthOf(types []Type) int {
	if len(types) == 1 {
		return types[0].Width()
	}
	n := 0
	for _, t := range types {
		n += (t.Width() + 3) &^ 3
	}
	return n
}

func formatFields(types []Type, raw string) string {
	if len(raw) != WidthOf(types) {
		return fmt.Sprintf("%x", raw)
	}
	parts := make([]string, 0, len(types))
	for _, t := range types {
		parts = append(parts, formatField(t, raw[:t.Width()]))
		if len(types) > 1 {
			raw = raw[(t.Width()+3)&^3:]
		}
	}
	return strings.Join(parts, " . ")
}

func formatField(t Type, raw string) string {
	switch t {
	case TypeAddr4, TypeAddr6:
		a, _ := netip.AddrFromSlice([]byte(raw))
		return a.String()
	case TypeLink:
		return strings.TrimRight(raw, "\x00")
	case TypeProto:
		return strings.ToLower(nodestate.Protocol(raw[0]).String())
	case TypePort:
		return strconv.Itoa(int(binary.BigEndian.Uint16([]byte(raw))))
	case TypeMark:
		return fmt.Sprintf("%#x", binary.NativeEndian.Uint32([]byte(raw)))
	}
	return fmt.Sprintf("%x", raw)
}
