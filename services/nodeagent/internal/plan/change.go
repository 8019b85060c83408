package plan

import (
	"sort"
	"time"
)

// Change is a step from one set of elements to another. Add, Replace and Remove belong into one transaction: the
// kernel shows them at one instant, so what refers and what is referred to appear together. Late removals follow at
// least [Grace] after that transaction was committed, since a packet may have looked up what referred to them before.
// Each list is sorted by set, in the order of [Sets], and key.
type Change struct {
	// Add are new elements.
	Add []Element
	// Replace are elements whose key exists with another value: removed and added in the same transaction.
	Replace []Element
	// Remove are removed in the same transaction: what nothing refers to (frontends, gate), what must stop at once
	// (an allowance), and intervals, which must not overlap their successors. Values are the old ones.
	Remove []Element
	// Late are removed afterwards. Values are the old ones.
	Late []Element
}

// Empty says whether there is nothing to do.
func (c Change) Empty() bool {
	return len(c.Add) == 0 && len(c.Replace) == 0 && len(c.Remove) == 0 && len(c.Late) == 0
}

// Diff is the step from what the kernel has to what it should have.
func Diff(have, want Elements) Change {
	var st step
	refs := map[uint32]int{}
	for _, set := range Sets() {
		if set.Dynamic {
			continue
		}
		for k, v := range want[set.Name] {
			if id := named(set.Name, v); id != 0 {
				refs[id]++
			}
			old, had := have[set.Name][k]
			switch {
			case !had:
				st.add = append(st.add, Element{set.Name, k, v})
			case old != v:
				st.replace = append(st.replace, Element{set.Name, k, v})
			}
		}
		for k, v := range have[set.Name] {
			if _, ok := want[set.Name][k]; !ok {
				st.gone = append(st.gone, Element{set.Name, k, v})
			}
		}
	}
	return st.sorted(refs)
}

// step collects a Change.
type step struct{ add, replace, gone []Element }

// named is the id that an element's value is; 0 for none.
func named(set SetName, v Value) uint32 {
	if set == SetHairpin.In(IPv4) {
		return 0 // an address, as wide as a mark
	}
	if id := MarkOf(v); id&IDMask == IDBase {
		return id
	}
	return 0
}

// sorted makes the Change; refs counts, for each id, the wanted elements whose value it is.
func (st step) sorted(refs map[uint32]int) Change {
	c := Change{Add: st.add, Replace: st.replace}
	for _, el := range st.gone {
		if late(el, refs) {
			c.Late = append(c.Late, el)
		} else {
			c.Remove = append(c.Remove, el)
		}
	}
	for _, list := range [][]Element{c.Add, c.Replace, c.Remove, c.Late} {
		sortElements(list)
	}
	return c
}

// late says whether an element may only be removed after what referred to it. Of an allowance, only one whose subject
// or peer class nothing has any more may wait; any other is a permission withdrawn and goes at once.
func late(el Element, refs map[uint32]int) bool {
	switch el.Set {
	case SetServices, SetCounts, SetPrograms, SetChoices, SetSlots, SetEndpoints.In(IPv4), SetEndpoints.In(IPv6):
		return true
	case SetAllow, SetAllowProtocol, SetAllowPort, SetPairs, SetAllowRange, SetAdmitted:
		for _, id := range idsOf(string(el.Key)) {
			if refs[id] == 0 {
				return true
			}
		}
	}
	return false
}

func sortElements(list []Element) {
	rank := map[SetName]int{}
	for i, s := range Sets() {
		rank[s.Name] = i
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].Set != list[j].Set {
			return rank[list[i].Set] < rank[list[j].Set]
		}
		return list[i].Key < list[j].Key
	})
}

// Queue holds late removals until they are due. The zero value is empty. It is not safe for concurrent use.
type Queue struct{ batches []batch }

type batch struct {
	due      time.Time
	elements Elements
}

// Put queues the late removals of a change that was committed at the time given. The agent calls it after the commit.
func (q *Queue) Put(committed time.Time, late []Element) {
	if len(late) == 0 {
		return
	}
	b := batch{committed.Add(Grace), Elements{}}
	for _, el := range late {
		b.elements.Put(el)
	}
	q.batches = append(q.batches, b)
}

// Rebase fits a change to a kernel that still holds what is queued: an element to add that is there already is left
// out, one that is there with another value is replaced, and neither is removed later. The agent calls it before the
// commit; after a commit that failed it reads the kernel instead, and forgets the queue.
func (q *Queue) Rebase(c Change) Change {
	if len(q.batches) == 0 {
		return c
	}
	var add []Element
	for _, el := range c.Add {
		old, queued := q.take(el.Set, el.Key)
		switch {
		case !queued:
			add = append(add, el)
		case old != el.Value:
			c.Replace = append(c.Replace[:len(c.Replace):len(c.Replace)], el)
		}
	}
	c.Add = add
	sortElements(c.Replace)
	return c
}

func (q *Queue) take(set SetName, k Key) (Value, bool) {
	for _, b := range q.batches {
		if v, ok := b.elements[set][k]; ok {
			b.elements.Delete(set, k)
			return v, true
		}
	}
	return "", false
}

// Due takes out what is due, as a change.
func (q *Queue) Due(now time.Time) Change {
	var c Change
	for len(q.batches) > 0 && !q.batches[0].due.After(now) {
		c.Remove = append(c.Remove, q.batches[0].elements.Sorted()...)
		q.batches = q.batches[1:]
	}
	sortElements(c.Remove)
	return c
}

// Next is the time at which something becomes due; false if nothing is queued.
func (q *Queue) Next() (time.Time, bool) {
	if len(q.batches) == 0 {
		return time.Time{}, false
	}
	return q.batches[0].due, true
}

// Forget drops what is queued, after the kernel was read and compared anew.
func (q *Queue) Forget() { q.batches = nil }
