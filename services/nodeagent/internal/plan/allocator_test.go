package plan_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/plan"
)

func get(t *testing.T, a *plan.Allocator, name string, now time.Time) uint32 {
	t.Helper()
	id, err := a.Get(name, now)
	if err != nil {
		t.Fatal(err)
	}
	if id&plan.IDMask != plan.IDBase {
		t.Fatalf("%#x is outside the ids", id)
	}
	return id
}

func TestIDsAreStableAndQuiet(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 2))
		a := plan.NewAllocator()
		state := a.Save()
		held := map[string]uint32{}
		freed := map[uint32]time.Time{}
		now := start
		for range 300 {
			name := fmt.Sprintf("e 10.0.0.%d:80", r.IntN(20))
			if r.IntN(2) == 0 {
				a.Release(name, now)
				if id, ok := held[name]; ok {
					freed[id] = now
					delete(held, name)
				}
			} else {
				id := get(t, a, name, now)
				if old, ok := held[name]; ok && old != id {
					t.Fatalf("%s had %#x and has %#x", name, old, id)
				}
				if at, ok := freed[id]; ok && held[name] != id && now.Sub(at) < plan.Quiet {
					t.Fatalf("%#x was released %s ago", id, now.Sub(at))
				}
				for other, taken := range held {
					if taken == id && other != name {
						t.Fatalf("%s and %s have both %#x", name, other, id)
					}
				}
				held[name] = id
			}
			now = now.Add(time.Duration(r.IntN(5000)) * time.Millisecond)
			state = append(state, a.Log()...)
			if r.IntN(20) == 0 { // a restart
				b, err := plan.LoadAllocator(state)
				if err != nil {
					t.Fatal(err)
				}
				for name, id := range held {
					if got, ok := b.ID(name); !ok || got != id || b.Name(id) != name {
						t.Fatalf("%s is %#x after a restart, was %#x", name, got, id)
					}
				}
				a = b
			}
		}
	}
}

// TestQuietAtTheEndOfTheRing lets the ring come round, where ids would be used again at once.
func TestQuietAtTheEndOfTheRing(t *testing.T) {
	a, err := plan.LoadAllocator([]byte("podwire ids 1\nnext 1358954495\n")) // the last id
	if err != nil {
		t.Fatal(err)
	}
	last := get(t, a, "e last", start)
	first := get(t, a, "e first", start)
	if last != plan.IDBase|^plan.IDMask || first != plan.IDBase {
		t.Fatalf("got %#x and %#x", last, first)
	}
	a.Release("e first", start)
	state := bytes.Replace(a.Save(), []byte("next 1342177281"), []byte("next 1342177280"), 1)
	for _, c := range []struct {
		after time.Duration
		want  uint32
	}{{plan.Quiet - 1, plan.IDBase + 1}, {plan.Quiet, plan.IDBase}, {-time.Hour, plan.IDBase + 1}} {
		b, err := plan.LoadAllocator(state)
		if err != nil {
			t.Fatal(err)
		}
		if got := get(t, b, "e other", start.Add(c.after)); got != c.want {
			t.Errorf("after %s: %#x, want %#x", c.after, got, c.want)
		}
	}
}

func TestSlots(t *testing.T) {
	a := plan.NewAllocator()
	service := get(t, a, "s x", start)
	ids := make([]uint32, 5)
	for i := range ids {
		ids[i] = get(t, a, fmt.Sprintf("e %d", i), start)
	}
	for _, c := range []struct{ want, slots []uint32 }{
		{ids[0:4], []uint32{ids[0], ids[1], ids[2], ids[3]}},
		{[]uint32{ids[0], ids[2], ids[3]}, []uint32{ids[0], ids[3], ids[2]}},
		{[]uint32{ids[2], ids[4]}, []uint32{ids[2], ids[4]}},
		{[]uint32{ids[0], ids[2], ids[4], ids[4]}, []uint32{ids[2], ids[4], ids[0]}},
		{nil, nil},
	} {
		got := a.Slots(service, c.want)
		if !slices.Equal(got, c.slots) {
			t.Errorf("slots for %v: %v, want %v", c.want, got, c.slots)
		}
		b, err := plan.LoadAllocator(a.Save())
		if err != nil {
			t.Fatal(err)
		}
		if again := b.Slots(service, c.want); !slices.Equal(again, got) {
			t.Errorf("after a restart: %v, want %v", again, got)
		}
	}
}

func TestAvoid(t *testing.T) {
	a := plan.NewAllocator()
	have := plan.Elements{}
	have.Put(plan.Element{
		Set: plan.SetSlots, Key: plan.Concat(plan.Mark(plan.IDBase), plan.Mark(0)), Value: plan.Data(plan.Mark(plan.IDBase + 1)),
	})
	a.Avoid(have, start)
	if got := get(t, a, "e x", start); got != plan.IDBase+2 {
		t.Errorf("got %#x, which the kernel holds", got)
	}
}

func FuzzLoadAllocator(f *testing.F) {
	a := plan.NewAllocator()
	for i := range 3 {
		if _, err := a.Get(fmt.Sprintf("e %d", i), start); err != nil {
			f.Fatal(err)
		}
	}
	id, _ := a.ID("e 0")
	a.Slots(id, []uint32{id + 1, id + 2})
	a.Release("e 1", start)
	f.Add(a.Save())
	f.Add([]byte("podwire ids 1\nname 1342177280 e x\nslots 1342177280 7\n"))
	f.Add([]byte("podwire ids 1\nfree 1342177280 x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := plan.LoadAllocator(data)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatalf("%v is not of kind invalid", err)
			}
			return
		}
		saved := a.Save()
		b, err := plan.LoadAllocator(saved)
		if err != nil {
			t.Fatalf("what was saved does not load: %v\n%s", err, saved)
		}
		if again := b.Save(); !bytes.Equal(again, saved) {
			t.Fatalf("saved\n%s\nand again\n%s", saved, again)
		}
	})
}

// TestExchange: exchanging the difference gives the slots that the whole list gives, and so does what is kept of it.
func TestExchange(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		whole, parts := plan.NewAllocator(), plan.NewAllocator()
		service := get(t, whole, "s", start)
		get(t, parts, "s", start)
		saved := parts.Save()
		parts.Log()
		held := map[uint32]bool{}
		var want, list []uint32
		for range 30 {
			var gone, fresh []uint32
			for id := service + 1; id < service+12; id++ {
				switch {
				case r.IntN(3) > 0:
				case held[id]:
					gone = append(gone, id)
				default:
					fresh = append(fresh, id)
				}
			}
			for _, id := range gone {
				delete(held, id)
			}
			for _, id := range fresh {
				held[id] = true
			}
			want = want[:0]
			for id := range held {
				want = append(want, id)
			}
			slices.Sort(want)
			before := list
			changed := parts.Exchange(service, gone, fresh)
			list = slices.Clone(whole.Slots(service, want))
			saved = append(saved, parts.Log()...)
			loaded, err := plan.LoadAllocator(saved)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(loaded.Save(), parts.Save()) || !bytes.Equal(whole.Save(), parts.Save()) {
				t.Fatalf("seed %d: gone %v, fresh %v: as a whole\n%sin parts\n%skept\n%s", seed, gone, fresh, whole.Save(), parts.Save(), loaded.Save())
			}
			for slot, id := range list {
				if _, said := slices.BinarySearch(changed, slot); (slot >= len(before) || before[slot] != id) && !said {
					t.Fatalf("seed %d: slot %d holds another endpoint, and is not among %v", seed, slot, changed)
				}
				if !parts.Holds(service, id) {
					t.Fatalf("seed %d: %#x is in slot %d, and not found", seed, id, slot)
				}
			}
			for _, id := range gone {
				if parts.Holds(service, id) {
					t.Fatalf("seed %d: %#x is found, and in no slot", seed, id)
				}
			}
		}
	}
}
