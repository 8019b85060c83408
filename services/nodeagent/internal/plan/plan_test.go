package plan_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

var update = flag.Bool("update", false, "write the golden files anew")

var start = time.Unix(1_000_000, 0)

var idText = regexp.MustCompile(`0x50[0-9a-f]{6}`)

// readable puts names in the place of ids.
func readable(text string, ids *plan.Allocator) string {
	return idText.ReplaceAllStringFunc(text, func(s string) string {
		n, _ := strconv.ParseUint(s[2:], 16, 32)
		name := ids.Name(uint32(n))
		if name == "" {
			return "UNKNOWN " + s
		}
		return "<" + strings.ReplaceAll(name, strings.Repeat("0", 30), "…") + ">"
	})
}

// TestGolden plans testdata/*.txtar: each "state" is followed by the "elements" it must give, and, from the second
// state of a file on, by the "change" that leads there.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := golden(t, archive)
			if *update {
				if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if a, b := string(txtar.Format(got)), string(txtar.Format(archive)); a != b && !*update {
				t.Errorf("got\n%s\nwant\n%s", a, b)
			}
		})
	}
}

func golden(t *testing.T, archive *txtar.Archive) *txtar.Archive {
	t.Helper()
	ids := plan.NewAllocator()
	out := &txtar.Archive{Comment: archive.Comment}
	var p *plan.Planner
	held := nodestate.NewSlice()
	now := start
	for _, f := range archive.Files {
		if f.Name != "state" {
			continue
		}
		out.Files = append(out.Files, f)
		s := parseState(t, string(f.Data))
		first := p == nil
		if first {
			p = plan.New(s.node, ids)
		}
		p.SetNode(s.node)
		for _, a := range s.pods {
			p.Attach(a)
		}
		rows := nodestate.NewSlice(s.rows...)
		if err := p.Apply(nodestate.Diff(held, rows)); err != nil {
			t.Fatal(err)
		}
		held = rows
		now = now.Add(time.Hour)
		names := snapshot(ids)
		c, err := p.Commit(now)
		if err != nil {
			t.Fatal(err)
		}
		if first {
			out.Files = append(out.Files, txtar.File{Name: "elements", Data: []byte(readable(p.Desired().Format(), ids))})
			continue
		}
		var b strings.Builder
		for _, part := range []struct {
			name string
			list []plan.Element
		}{{"add", c.Add}, {"replace", c.Replace}, {"remove", c.Remove}, {"late", c.Late}} {
			e := plan.Elements{}
			for _, el := range part.list {
				e.Put(el)
			}
			for line := range strings.Lines(e.Format()) {
				b.WriteString(part.name + " " + readable(readable(line, names), ids))
			}
		}
		out.Files = append(out.Files, txtar.File{Name: "change", Data: []byte(b.String())})
	}
	return out
}

// snapshot knows the names of now and, for ids that are given later, says so in a form that readable leaves alone.
func snapshot(ids *plan.Allocator) *plan.Allocator {
	c, err := plan.LoadAllocator(ids.Save())
	if err != nil {
		return plan.NewAllocator()
	}
	return c
}

func TestInvalidRowsAreRefusedWhole(t *testing.T) {
	key := nodestate.ServiceKey{Namespace: "a", Service: "b", Protocol: nodestate.TCP}
	good := nodestate.Range{Kind: nodestate.RangePod}
	for _, bad := range []nodestate.Row{
		nodestate.ServicePort{ServiceKey: key, Port: 80},
		nodestate.ServicePort{ServiceKey: key, Port: 80, SourceMode: nodestate.SourceAll},
		nodestate.ServicePort{
			ServiceKey: key, SourceMode: nodestate.SourceAll,
			InternalPolicy: nodestate.LocalityCluster, ExternalPolicy: nodestate.LocalityCluster,
		},
		nodestate.Endpoint{ServiceKey: key, State: nodestate.EndpointReady},
		nodestate.Endpoint{ServiceKey: key, Address: addrs([]string{"10.0.0.1"})[0], Backend: 80},
		nodestate.Subject{PodUID: "x"},
		nodestate.Peer{},
		nodestate.PeerRange{AddrRange: nodestate.AddrRange{From: addrs([]string{"10.0.0.2"})[0], To: addrs([]string{"10.0.0.1"})[0]}},
		nodestate.Allow{Direction: nodestate.Ingress, PortMode: nodestate.PortAny},
		nodestate.Allow{Direction: nodestate.Ingress, PeerMode: nodestate.PeerAny},
		nodestate.Allow{PeerMode: nodestate.PeerAny, PortMode: nodestate.PortAny},
		nodestate.Allow{Direction: nodestate.Ingress, PeerMode: nodestate.PeerAny, PortMode: nodestate.PortProtocol, Protocol: 1},
	} {
		p := plan.New(plan.Node{}, plan.NewAllocator())
		if _, err := p.Commit(start); err != nil {
			t.Fatal(err)
		}
		if err := p.Apply(nodestate.Delta{Upserts: []nodestate.Row{good, bad}}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v, want invalid", bad, err)
		}
		if c, err := p.Commit(start); err != nil || !c.Empty() {
			t.Errorf("%+v: the refused delta had an effect: %+v %v", bad, c, err)
		}
	}
}

func TestQueue(t *testing.T) {
	el := func(set plan.SetName, slot, value uint32) plan.Element {
		return plan.Element{Set: set, Key: plan.Concat(plan.Mark(1), plan.Mark(slot)), Value: plan.Data(plan.Mark(value))}
	}
	var q plan.Queue
	if _, ok := q.Next(); ok {
		t.Error("an empty queue has something next")
	}
	q.Put(start, []plan.Element{el(plan.SetSlots, 0, 7), el(plan.SetSlots, 1, 8), el(plan.SetSlots, 2, 9)})
	if due, ok := q.Next(); !ok || due != start.Add(plan.Grace) {
		t.Errorf("next is %v", due)
	}
	c := q.Rebase(plan.Change{Add: []plan.Element{el(plan.SetSlots, 0, 7), el(plan.SetSlots, 1, 5), el(plan.SetSlots, 3, 4)}})
	if len(c.Add) != 1 || c.Add[0] != el(plan.SetSlots, 3, 4) {
		t.Errorf("added: %+v", c.Add)
	}
	if len(c.Replace) != 1 || c.Replace[0] != el(plan.SetSlots, 1, 5) {
		t.Errorf("replaced: %+v", c.Replace)
	}
	if early := q.Due(start.Add(plan.Grace - 1)); !early.Empty() {
		t.Errorf("removed too early: %+v", early)
	}
	if due := q.Due(start.Add(plan.Grace)); len(due.Remove) != 1 || due.Remove[0] != el(plan.SetSlots, 2, 9) {
		t.Errorf("due: %+v", due)
	}
}
