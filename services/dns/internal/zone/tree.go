package zone

import (
	"math/bits"
	"net/netip"
)

// tree is a persistent map (a hash trie after Bagwell, "Ideal Hash Trees", 2001): what has been published is never changed
// again, and a change copies the few nodes on its path. Nodes that carry the edit at work were made by it and are changed in
// place, so that building a tree costs no copies.
type tree[K comparable, V any] struct {
	root *trieNode[K, V]
	hash func(key K, seed uint64) uint64
	seed uint64
	size int
}

// edit is an identity: the changes between two publications.
type edit struct{ _ byte }

const (
	trieBits = 5
	trieMask = 1<<trieBits - 1
	hashBits = 64
)

type trieNode[K comparable, V any] struct {
	edit   *edit
	bitmap uint32
	slots  []trieSlot[K, V]
}

// trieSlot is a node below or a leaf.
type trieSlot[K comparable, V any] struct {
	child *trieNode[K, V]
	leaf  *trieLeaf[K, V]
}

// trieLeaf never changes once it is linked.
type trieLeaf[K comparable, V any] struct {
	hash  uint64
	key   K
	value V
	// next is another key of the same hash.
	next *trieLeaf[K, V]
}

func (t *tree[K, V]) get(key K) (V, bool) {
	h := t.hash(key, t.seed)
	for n, shift := t.root, 0; n != nil; shift += trieBits {
		bit := uint32(1) << (h >> shift & trieMask)
		if n.bitmap&bit == 0 {
			break
		}
		slot := &n.slots[bits.OnesCount32(n.bitmap&(bit-1))]
		if slot.leaf == nil {
			n = slot.child
			continue
		}
		for l := slot.leaf; l != nil; l = l.next {
			if l.key == key {
				return l.value, true
			}
		}
		break
	}
	var none V
	return none, false
}

func (t *tree[K, V]) set(e *edit, key K, value V) {
	leaf := &trieLeaf[K, V]{hash: t.hash(key, t.seed), key: key, value: value}
	t.root = t.insert(e, t.root, 0, leaf)
}

func (t *tree[K, V]) remove(e *edit, key K) {
	t.root = t.without(e, t.root, 0, t.hash(key, t.seed), key)
}

// owned is n, or a copy of it that e may change.
func (n *trieNode[K, V]) owned(e *edit) *trieNode[K, V] {
	if n == nil {
		return &trieNode[K, V]{edit: e}
	}
	if n.edit == e {
		return n
	}
	return &trieNode[K, V]{edit: e, bitmap: n.bitmap, slots: append([]trieSlot[K, V](nil), n.slots...)}
}

func (t *tree[K, V]) insert(e *edit, n *trieNode[K, V], shift int, leaf *trieLeaf[K, V]) *trieNode[K, V] {
	n = n.owned(e)
	bit := uint32(1) << (leaf.hash >> shift & trieMask)
	i := bits.OnesCount32(n.bitmap & (bit - 1))
	if n.bitmap&bit == 0 {
		n.bitmap |= bit
		n.slots = append(n.slots, trieSlot[K, V]{})
		copy(n.slots[i+1:], n.slots[i:])
		n.slots[i] = trieSlot[K, V]{leaf: leaf}
		t.size++
		return n
	}
	slot := &n.slots[i]
	switch {
	case slot.leaf == nil:
		slot.child = t.insert(e, slot.child, shift+trieBits, leaf)
	case slot.leaf.hash == leaf.hash:
		rest, had := slot.leaf.without(leaf.key)
		if !had {
			t.size++
		}
		leaf.next = rest
		slot.leaf = leaf
	default:
		// Two hashes share the path so far: both move one level down, where they may share it again.
		child := &trieNode[K, V]{edit: e}
		old := slot.leaf
		child.bitmap = 1 << (old.hash >> (shift + trieBits) & trieMask)
		child.slots = []trieSlot[K, V]{{leaf: old}}
		slot.leaf, slot.child = nil, t.insert(e, child, shift+trieBits, leaf)
	}
	return n
}

// without is the chain of leaves less one key, and whether it had it.
func (l *trieLeaf[K, V]) without(key K) (*trieLeaf[K, V], bool) {
	switch {
	case l == nil:
		return nil, false
	case l.key == key:
		return l.next, true
	}
	rest, had := l.next.without(key)
	if !had {
		return l, false
	}
	return &trieLeaf[K, V]{hash: l.hash, key: l.key, value: l.value, next: rest}, true
}

func (t *tree[K, V]) without(e *edit, n *trieNode[K, V], shift int, hash uint64, key K) *trieNode[K, V] {
	if n == nil {
		return nil
	}
	bit := uint32(1) << (hash >> shift & trieMask)
	if n.bitmap&bit == 0 {
		return n
	}
	i := bits.OnesCount32(n.bitmap & (bit - 1))
	slot := n.slots[i]
	if slot.leaf != nil {
		rest, had := slot.leaf.without(key)
		if !had {
			return n
		}
		t.size--
		slot.leaf = rest
	} else {
		child := t.without(e, slot.child, shift+trieBits, hash, key)
		if child == slot.child {
			return n
		}
		slot.child = child
	}
	n = n.owned(e)
	n.slots[i] = slot
	if slot.leaf == nil && slot.child == nil {
		n.bitmap &^= bit
		n.slots = append(n.slots[:i], n.slots[i+1:]...)
		if len(n.slots) == 0 {
			return nil
		}
	}
	return n
}

// The hashes are seeded, so that who chooses names cannot choose where they go.

func mix(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

func hashText(h uint64, s string) uint64 {
	for ; len(s) >= 8; s = s[8:] {
		w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		h = mix(h ^ w)
	}
	w := uint64(len(s)) << 56
	for i := range len(s) {
		w |= uint64(s[i]) << (8 * i)
	}
	return mix(h ^ w)
}

func hashName(name string, seed uint64) uint64 { return hashText(seed, name) }

func hashRef(r Ref, seed uint64) uint64 { return hashText(hashText(seed, r.Namespace), r.Name) }

func hashAddr(a netip.Addr, seed uint64) uint64 {
	b := a.As16()
	var hi, lo uint64
	for i := range 8 {
		hi, lo = hi<<8|uint64(b[i]), lo<<8|uint64(b[8+i])
	}
	return mix(mix(seed^hi) ^ lo)
}

func hashPodAddr(p podAddr, seed uint64) uint64 {
	return hashText(hashAddr(p.addr, seed), p.namespace)
}
