package push

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"podwire.dev/internal/nodestate"
)

func member(node string, held int64) Claim {
	return Claim{Node: node, Standing: StandingMember, Subscribed: true, Known: true, Held: held}
}

func TestFold(t *testing.T) {
	prev := Watermark{Service: nodestate.SourcePolicy, Revision: 10}
	tests := []struct {
		name        string
		prev        Watermark
		world       int64
		settlements []Settlement
		claims      []Claim
		revision    int64
		laggards    []Laggard
		lowest      int64
	}{
		{name: "no node counts: the World alone", world: 20, settlements: []Settlement{{20, 20}}, revision: 20, lowest: 20},
		{
			name: "everybody holds everything", world: 20, settlements: []Settlement{{20, 20}},
			claims: []Claim{member("a", 20), member("b", 20)}, revision: 20, lowest: 20,
		},
		{
			name: "the slowest decides", world: 20, settlements: []Settlement{{15, 15}, {20, 20}},
			claims: []Claim{member("a", 20), member("b", 15)}, revision: 15, lowest: 15,
			laggards: []Laggard{{Node: "b", Held: 15}},
		},
		{
			name: "a derived write is missing", world: 20, settlements: []Settlement{{20, 18}},
			claims: []Claim{member("a", 20)}, revision: 18, lowest: 20,
		},
		{
			name: "a derived write is in the World, but not on the node", world: 20, settlements: []Settlement{{16, 14}, {20, 20}},
			claims: []Claim{member("a", 18)}, revision: 14, lowest: 18, laggards: []Laggard{{Node: "a", Held: 18}},
		},
		{
			name: "never falls", world: 20, settlements: []Settlement{{5, 5}, {20, 20}},
			claims: []Claim{member("a", 5)}, revision: 10, lowest: 5, laggards: []Laggard{{Node: "a", Held: 5}},
		},
		{
			name: "a node that nobody claims counts at what it held last", world: 20, settlements: []Settlement{{12, 12}, {20, 20}},
			claims:   []Claim{{Node: "a", Standing: StandingMember, Known: true, Held: 12}, member("b", 20)},
			revision: 12, lowest: 12, laggards: []Laggard{{Node: "a", Held: 12}},
		},
		{
			name: "after a restart of the service it counts as in the watermark", world: 20, settlements: []Settlement{{20, 20}},
			claims:   []Claim{{Node: "a", Standing: StandingMember}, member("b", 20)},
			revision: 10, lowest: 10, laggards: []Laggard{{Node: "a", Held: 10}},
		},
		{
			name: "or as its laggard", prev: Watermark{Revision: 10, Laggards: []Laggard{{Node: "a", Held: 10}, {Node: "b", Held: 13}}},
			world: 20, settlements: []Settlement{{13, 13}, {20, 20}},
			claims:   []Claim{member("a", 20), {Node: "b", Standing: StandingMember}},
			revision: 13, lowest: 13, laggards: []Laggard{{Node: "b", Held: 13}},
		},
		{
			name: "a new node joins when it is Ready", world: 20, settlements: []Settlement{{20, 20}},
			claims:   []Claim{member("a", 20), {Node: "b", Standing: StandingNew, Subscribed: true, Known: true, Held: 3}},
			revision: 20, lowest: 20,
		},
		{
			name: "a dead one leaves", world: 20, settlements: []Settlement{{20, 20}},
			claims:   []Claim{member("a", 20), {Node: "b", Standing: StandingDead, Known: true, Held: 3}},
			revision: 20, lowest: 20,
		},
		{
			name: "and rejoins by subscribing", world: 20, settlements: []Settlement{{12, 12}, {20, 20}},
			claims:   []Claim{member("a", 20), {Node: "b", Standing: StandingDead, Subscribed: true, Known: true, Held: 12}},
			revision: 12, lowest: 12, laggards: []Laggard{{Node: "b", Held: 12}},
		},
		{
			name: "a node that is gone from the store does not count", world: 20, settlements: []Settlement{{20, 20}},
			claims: []Claim{{Node: "a", Subscribed: true, Known: true, Held: 3}}, revision: 20, lowest: 20,
		},
		{
			name: "a refused revision holds the watermark", world: 20, settlements: []Settlement{{17, 17}, {20, 20}},
			claims:   []Claim{{Node: "a", Standing: StandingMember, Subscribed: true, Known: true, Held: 17, Refused: 20, Reason: "no space", Through: 20}},
			revision: 17, lowest: 17, laggards: []Laggard{{Node: "a", Held: 17, Refused: 20, Reason: "no space", Through: 20}},
		},
		{
			name: "also where the content is not new", world: 20, settlements: []Settlement{{17, 17}, {20, 20}},
			claims:   []Claim{{Node: "a", Standing: StandingMember, Subscribed: true, Known: true, Held: 20, Refused: 20, Reason: "no"}},
			revision: 17, lowest: 19, laggards: []Laggard{{Node: "a", Held: 19, Refused: 20, Reason: "no"}},
		},
		{
			name: "a refusal speaks of what is settled", world: 22, settlements: []Settlement{{17, 17}, {20, 19}, {22, 22}},
			claims:   []Claim{{Node: "a", Standing: StandingMember, Subscribed: true, Known: true, Held: 17, Refused: 20, Reason: "no", Through: 21}},
			revision: 17, lowest: 17, laggards: []Laggard{{Node: "a", Held: 17, Refused: 20, Reason: "no", Through: 19}},
		},
		{
			name: "no settlement is known that far back", world: 20, settlements: []Settlement{{18, 18}, {20, 20}},
			claims: []Claim{member("a", 17)}, revision: 10, lowest: 17, laggards: []Laggard{{Node: "a", Held: 17}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := prev
			if test.prev.Revision != 0 {
				p = test.prev
			}
			w, lowest := Fold(p, test.world, test.settlements, test.claims)
			want := Watermark{Service: p.Service, Revision: test.revision, Laggards: test.laggards}
			if !reflect.DeepEqual(w, want) || lowest != test.lowest {
				t.Errorf("got %+v, lowest %d\nwant %+v, lowest %d", w, lowest, want, test.lowest)
			}
		})
	}
}

func TestFoldNamesTheWorst(t *testing.T) {
	var claims []Claim
	for i := range 200 {
		claims = append(claims, member(fmt.Sprintf("n%03d", i), int64(1000-i)))
	}
	claims[3].Refused, claims[3].Reason = 2000, "no"
	w, _ := Fold(Watermark{}, 5000, nil, claims)
	if len(w.Laggards) != MaxLaggards || w.Laggards[0].Node != "n003" || w.Laggards[1].Node != "n137" || w.Laggards[MaxLaggards-1].Node != "n199" {
		t.Errorf("%d laggards: %+v", len(w.Laggards), w.Laggards)
	}
}

func TestPace(t *testing.T) {
	base := Watermark{Revision: 10, Laggards: []Laggard{{Node: "a", Held: 10}}}
	raised := Watermark{Revision: 11}
	refused := Watermark{Revision: 10, Laggards: []Laggard{{Node: "a", Held: 10, Refused: 12, Reason: "no"}}}
	moved := Watermark{Revision: 10, Laggards: []Laggard{{Node: "b", Held: 10}}}
	for _, test := range []struct {
		name  string
		now   Watermark
		since time.Duration
		wait  time.Duration
		due   bool
	}{
		{"nothing changed", base, time.Hour, 0, false},
		{"a rise is written at once", raised, time.Second, 0, true},
		{"ten times a second at most", raised, 30 * time.Millisecond, 70 * time.Millisecond, true},
		{"a refusal is written at once", refused, time.Second, 0, true},
		{"who lags can wait", moved, 300 * time.Millisecond, 700 * time.Millisecond, true},
		{"but not for ever", moved, time.Second, 0, true},
	} {
		wait, due := pace(base, test.now, test.since)
		if wait != test.wait || due != test.due {
			t.Errorf("%s: got %v %v, want %v %v", test.name, wait, due, test.wait, test.due)
		}
	}
}
