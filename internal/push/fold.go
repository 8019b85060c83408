package push

import (
	"cmp"
	"slices"

	"podwire.dev/internal/nodestate"
)

// Laggard is a node that holds a watermark back.
type Laggard struct {
	Node string
	// Held is the newest revision at which the node holds everything planned for it.
	Held int64
	// Refused is the revision that the node refused, and Reason its words; 0 and empty where it only has not answered.
	Refused int64
	Reason  string
	// Through is the newest revision up to which the refusal speaks, 0 where there is none: a change above it may be on its way
	// to the node, or wait for what is derived from it, and may be taken.
	Through int64
}

// Watermark says up to which revision every node holds everything that a service planned.
type Watermark struct {
	Service nodestate.Source
	// Revision never falls.
	Revision int64
	// Laggards are nodes that do not hold the newest World, sorted by name: those that refused and those furthest
	// behind, at most MaxLaggards.
	Laggards []Laggard
}

// MaxLaggards bounds the laggards that a watermark names, and so its size.
const MaxLaggards = 64

// Claim is what is known of one Node of the store.
type Claim struct {
	Node     string
	Standing Standing
	// Subscribed says whether a subscriber speaks for the node now: of one declared dead, whether it has been heard since.
	Subscribed bool
	// Known says whether Held is: what the subscriber holds, or what the node held last. Where it is not, the node counts
	// as in the last watermark.
	Known bool
	Held  int64
	// Refused and Reason are as in Laggard. Through is the newest World of which the node has been sent everything that it
	// refused, or refused before.
	Refused int64
	Reason  string
	Through int64
}

// Settlement says that in the World of a version every write derived from a change at or below Settled is present.
type Settlement struct{ Version, Settled int64 }

// Fold computes a service's watermark from the one before, the newest World, the settlements of the Worlds published
// (ascending), and what is known of each Node:
//
//   - a Node that was never Ready does not count; one declared dead counts only while it subscribes and is heard;
//   - a Node whose state is not known counts as it did last, and as the last watermark where it never did;
//   - a Node that refused a revision stays below it, and the refusal speaks up to the settlement of the newest World that has
//     nothing for the Node but what it refused;
//   - the watermark is the settlement of the newest World that every Node that counts holds, and never falls.
//
// It also returns that minimum, the newest World where no Node counts.
func Fold(prev Watermark, world int64, settlements []Settlement, claims []Claim) (Watermark, int64) {
	out := Watermark{Service: prev.Service, Revision: prev.Revision}
	lowest := world
	for _, c := range claims {
		if !c.counts() {
			continue
		}
		held := c.held(prev)
		lowest = min(lowest, held)
		if held < world || c.Refused > 0 {
			l := Laggard{Node: c.Node, Held: held, Refused: c.Refused, Reason: c.Reason}
			if c.Refused > 0 {
				l.Through = settled(settlements, c.Through)
			}
			out.Laggards = append(out.Laggards, l)
		}
	}
	out.Revision = max(out.Revision, settled(settlements, lowest))
	out.Laggards = worst(out.Laggards)
	return out, lowest
}

func (c Claim) counts() bool {
	return c.Standing == StandingMember || c.Standing == StandingDead && c.Subscribed
}

func (c Claim) held(prev Watermark) int64 {
	held := prev.Revision
	if c.Known {
		held = c.Held
	} else if i := slices.IndexFunc(prev.Laggards, func(l Laggard) bool { return l.Node == c.Node }); i >= 0 {
		held = prev.Laggards[i].Held
	}
	if c.Refused > 0 {
		held = min(held, c.Refused-1)
	}
	return held
}

// settled is the settlement of the newest World at or below a version; 0 where none is known.
func settled(settlements []Settlement, version int64) int64 {
	for _, s := range slices.Backward(settlements) {
		if s.Version <= version {
			return s.Settled
		}
	}
	return 0
}

// worst keeps the laggards that matter most, and sorts them by name.
func worst(ls []Laggard) []Laggard {
	if len(ls) > MaxLaggards {
		slices.SortFunc(ls, func(a, b Laggard) int {
			return cmp.Or(cmp.Compare(sign(b.Refused), sign(a.Refused)), cmp.Compare(a.Held, b.Held), cmp.Compare(a.Node, b.Node))
		})
		ls = ls[:MaxLaggards:MaxLaggards]
	}
	slices.SortFunc(ls, func(a, b Laggard) int { return cmp.Compare(a.Node, b.Node) })
	return ls
}

func sign(revision int64) int { return cmp.Compare(revision, 0) }
