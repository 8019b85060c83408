package nft_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

// writer is what the real table and the fake have in common.
type writer interface {
	Read() (nft.State, error)
	Install(plan.Elements) (nft.Result, error)
	Apply(plan.Change) (nft.Result, error)
	Remove() (nft.Result, error)
	Counts() (map[nft.Counter]nft.Count, error)
	Total() nft.Result
	Close() error
}

// everySet holds two elements of every set, adjacent ones where there are intervals.
func everySet() plan.Elements {
	e := sample()
	for _, def := range plan.Sets() {
		if def.Dynamic || (len(def.Data) > 0 && def.Data[0] == plan.TypeVerdict) {
			continue
		}
		for i := range 2 {
			value := make([]byte, plan.WidthOf(def.Data))
			if len(def.Data) == 0 {
				value = nil
			}
			if len(value) > 0 {
				value[0] = byte(7 + i)
			}
			k := make([]byte, plan.WidthOf(def.Key))
			k[len(k)-1] = byte(16 * (i + 1))
			if len(def.Key) > 1 { // the last bytes may be padding
				k[0], k[len(k)-1] = byte(16*(i+1)), 0
			}
			key := plan.Key(k)
			if def.Interval {
				last := append([]byte(nil), k...)
				last[len(last)-1] += 15
				key = plan.Range(plan.Field(k), plan.Field(last))
			}
			e.Put(plan.Element{Set: def.Name, Key: key, Value: plan.Value(value)})
		}
	}
	return e
}

// full are intervals that end with the last value.
func full() plan.Elements {
	e := plan.Elements{}
	for set, ends := range map[plan.SetName][2]string{
		plan.SetRanges.In(4): {"0.0.0.0", "255.255.255.255"}, plan.SetRanges.In(6): {"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	} {
		key := plan.Range(plan.Addr(netip.MustParseAddr(ends[0])), plan.Addr(netip.MustParseAddr(ends[1])))
		e.Put(plan.Element{Set: set, Key: key, Value: plan.Data(plan.Mark(9))})
	}
	e.Put(plan.Element{Set: plan.SetPortsTCP, Key: plan.Range(plan.Port(1000), plan.Port(65535)), Value: plan.Data(plan.Mark(9))})
	return e
}

func read(t *testing.T, w writer, want plan.Elements) {
	t.Helper()
	s, err := w.Read()
	if err != nil {
		t.Fatal(err)
	}
	if !s.Present || !s.Whole {
		t.Fatalf("the table is not whole: %q", s.Damage)
	}
	if got := s.Elements.Format(); got != want.Format() {
		t.Fatalf("the table holds\n%swant\n%s", got, want.Format())
	}
}

func apply(t *testing.T, w writer, c plan.Change, objects int) {
	t.Helper()
	r, err := w.Apply(c)
	if err != nil {
		t.Fatal(err)
	}
	if r.Objects != objects {
		t.Errorf("wrote %d objects, want %d", r.Objects, objects)
	}
}

// TestWriter runs the same steps against the kernel and against the fake.
func TestWriter(t *testing.T) {
	for name, make := range map[string]func() writer{
		"kernel": func() writer { _, table := open(t); return table },
		"fake":   func() writer { return &nft.Fake{} },
	} {
		t.Run(name, func(t *testing.T) {
			w := make()
			if s, err := w.Read(); err != nil || s.Present || s.Whole {
				t.Fatalf("an empty namespace reads as %+v, %v", s, err)
			}
			if _, err := w.Apply(plan.Change{Add: sample().Sorted()}); !errs.Is(err, errs.Internal) {
				t.Errorf("a change without a table: %v", err)
			}
			if _, err := w.Install(everySet()); err != nil {
				t.Fatal(err)
			}
			read(t, w, everySet())

			before := w.Total()
			apply(t, w, plan.Diff(everySet(), everySet()), 0)
			if w.Total() != before {
				t.Error("nothing to do, and yet something was written")
			}

			want := full()
			c := plan.Diff(everySet(), want)
			apply(t, w, c, len(c.Add)+2*len(c.Replace)+len(c.Remove))
			if _, err := w.Apply(plan.Change{Remove: c.Late}); err != nil {
				t.Fatal(err)
			}
			read(t, w, want)
			if _, err := w.Apply(plan.Diff(want, everySet())); err != nil {
				t.Fatal(err)
			}
			read(t, w, everySet())

			again := everySet().Sorted()[0]
			if _, err := w.Apply(plan.Change{Remove: []plan.Element{again, again}}); !errs.Is(err, errs.Conflict) {
				t.Errorf("removing twice: %v, want a conflict", err)
			}
			if _, err := w.Apply(plan.Change{Remove: []plan.Element{again}}); !errs.Is(err, errs.Internal) {
				t.Errorf("a change after a failure, without a look at the table: %v", err)
			}
			read(t, w, everySet())
			if _, err := w.Remove(); err != nil {
				t.Fatal(err)
			}
			if s, err := w.Read(); err != nil || s.Present {
				t.Errorf("after Remove: %+v, %v", s, err)
			}
			if _, err := w.Remove(); err != nil {
				t.Errorf("a second Remove: %v", err)
			}
		})
	}
}

func TestRestart(t *testing.T) {
	ns, table := open(t)
	if _, err := table.Install(everySet()); err != nil {
		t.Fatal(err)
	}
	second, err := nft.Open(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	s, err := second.Read()
	if err != nil {
		t.Fatal(err)
	}
	if c := plan.Diff(s.Elements, everySet()); !c.Empty() || !s.Whole {
		t.Errorf("a restarted agent would write %+v", c)
	}
	if second.Total() != (nft.Result{}) {
		t.Errorf("reading wrote %+v", second.Total())
	}
	// A program that nothing uses any more goes away with its chain.
	c := plan.Diff(s.Elements, full())
	for _, step := range []plan.Change{c, {Remove: c.Late}} {
		if _, err := second.Apply(step); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := ns.Try("nft", "list", "chain", "inet", nft.TableName, "count-3"); err == nil {
		t.Errorf("the chain is still there:\n%s", out)
	}
}

func TestDamageIsFoundAndReplaced(t *testing.T) {
	for _, damage := range [][]string{
		{"flush", "ruleset"},
		{"flush", "table", "inet", "podwire"},
		{"flush", "chain", "inet", "podwire", "judge-ingress"},
		{"flush", "chain", "inet", "podwire", "count-3"},
		{"delete", "chain", "inet", "podwire", "output"},
		{"add", "chain", "inet", "podwire", "forward", "{ policy drop; }"},
		{"add", "rule", "inet", "podwire", "pass", "accept"},
		{"insert", "rule", "inet", "podwire", "forward", "accept"},
		{"delete", "set", "inet", "podwire", nft.Version()},
	} {
		t.Run(fmt.Sprint(damage), func(t *testing.T) {
			ns, table := open(t)
			if _, err := table.Install(everySet()); err != nil {
				t.Fatal(err)
			}
			if seen, err := table.Glance(); seen != "" || err != nil {
				t.Fatalf("a glance at a whole table: %q, %v", seen, err)
			}
			ns.Run("nft", damage...)
			if seen, err := table.Glance(); seen == "" || err != nil {
				t.Fatalf("a glance does not see it: %v", err)
			}
			s, err := table.Read()
			if err != nil || s.Whole {
				t.Fatalf("the damage is not seen: %+v, %v", s, err)
			}
			if s.Present && s.Damage == "" {
				t.Error("the damage is not named")
			}
			if _, err := table.Install(everySet()); err != nil {
				t.Fatal(err)
			}
			read(t, table, everySet())
			if seen, err := table.Glance(); seen != "" || err != nil {
				t.Errorf("a glance at what was put back: %q, %v", seen, err)
			}
		})
	}
	ns, table := open(t)
	if _, err := table.Install(everySet()); err != nil {
		t.Fatal(err)
	}
	ns.Run("nft", "delete", "element", "inet", "podwire", "node4", "{ 0.0.0.16 }")
	s, err := table.Read()
	if err != nil {
		t.Fatal(err)
	}
	c := plan.Diff(s.Elements, everySet())
	if len(c.Add) != 1 || len(c.Replace)+len(c.Remove)+len(c.Late) != 0 {
		t.Errorf("one element is missing, and the change is %+v", c)
	}
}

func TestHundredThousandElements(t *testing.T) {
	_, table := open(t)
	if _, err := table.Install(sample()); err != nil {
		t.Fatal(err)
	}
	many := sample()
	for i := range uint32(100_000) {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0af40000+i)))
		many.Put(plan.Element{
			Set: plan.SetFrontends.In(plan.IPv4), Key: plan.Concat(plan.Addr(a), plan.Proto(6), plan.Port(80)),
			Value: plan.Data(plan.Mark(plan.IDBase + i)),
		})
	}
	r, err := table.Apply(plan.Diff(sample(), many))
	if err != nil {
		t.Fatal(err)
	}
	if r != (nft.Result{Transactions: 1, Objects: 100_000}) {
		t.Errorf("wrote %+v", r)
	}
	s, err := table.Read()
	if err != nil {
		t.Fatal(err)
	}
	if !s.Elements.Equal(many) {
		t.Errorf("%d elements came back, want %d", s.Elements.Len(), many.Len())
	}
	one := plan.Element{Set: plan.SetNode.In(plan.IPv4), Key: plan.Concat(plan.Addr(netip.MustParseAddr("192.0.2.1")))}
	apply(t, table, plan.Change{Add: []plan.Element{one}}, 1)
}
