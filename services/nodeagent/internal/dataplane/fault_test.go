package dataplane_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

func TestARefusedSliceHoldsBackNoOther(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.put(nodestate.SourcePolicy, open("a"))
		held := n.holds(nodestate.SourcePolicy)
		n.together(
			n.update(nodestate.SourcePolicy, 500, open("b"), bad()),
			n.update(nodestate.SourceSvcproxy, 501, service("web", "10.96.0.7")),
		)
		tables, _ := n.read()
		if got := tables.Versions[nodestate.SourcePolicy].Revision; got != held {
			t.Errorf("policy is at %d, want what was held, %d", got, held)
		}
		if _, ok := tables.Policy.Get(nodestate.Ref{Table: nodestate.TableSubjects, Key: "b"}); ok {
			t.Error("half of a refused slice is held")
		}
		if got := tables.Versions[nodestate.SourceSvcproxy].Revision; got != 501 {
			t.Errorf("svcproxy is at %d", got)
		}
		n.agree()
	})
}

func TestWhatTheKernelRefusesIsTakenBack(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"))
		n.refuse = func(c plan.Change) error {
			for _, el := range c.Add {
				one := plan.Elements{}
				one.Put(el)
				if strings.Contains(one.Format(), "10.96.0.66") {
					return errs.WrapAs(errs.Conflict, errKernel, "nft")
				}
			}
			return nil
		}
		n.together(
			n.update(nodestate.SourceSvcproxy, 500, service("bad", "10.96.0.66")),
			n.update(nodestate.SourcePolicy, 501, open("a")),
		)
		tables, _ := n.read()
		if got := tables.Versions[nodestate.SourceSvcproxy].Revision; got == 500 {
			t.Error("a version that the kernel refused is held")
		}
		if got := tables.Versions[nodestate.SourcePolicy].Revision; got != 501 {
			t.Errorf("policy is at %d: it was not to blame", got)
		}
		if n.has("10.96.0.66") || !n.has("10.96.0.7") {
			t.Errorf("the kernel holds\n%s", n.inKernel().Format())
		}
		n.agree()
	})
}

// TestWhatIsRefusedLeavesNoIDs: an update that the kernel refused, and that nobody sends again, holds no id.
func TestWhatIsRefusedLeavesNoIDs(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"), endpoint("web", "10.244.1.5"))
		n.refuse = func(c plan.Change) error {
			for _, el := range c.Add {
				one := plan.Elements{}
				one.Put(el)
				if strings.Contains(one.Format(), "10.96.0.66") {
					return errs.WrapAs(errs.Conflict, errKernel, "nft")
				}
			}
			return nil
		}
		n.together(n.update(nodestate.SourceSvcproxy, 500, service("bad", "10.96.0.66"), endpoint("bad", "10.244.1.9")))
		n.refuse = nil
		n.put(nodestate.SourceSvcproxy, service("db", "10.96.0.8"), endpoint("db", "10.244.1.6"))
		n.agree()
		saved, err := os.ReadFile(filepath.Join(n.dir, "ids"))
		if err != nil {
			t.Fatal(err)
		}
		ids, err := plan.LoadAllocator(saved)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{
			"e 10.244.1.5:8080": true, "e 10.244.1.6:8080": true, "e 10.244.1.9:8080": false,
			"s default/bad:/TCP 4 all": false, "s default/web:/TCP 4 all": true,
		} {
			if _, has := ids.ID(name); has != want {
				t.Errorf("%q has an id: %t, want %t; the file holds\n%s", name, has, want, saved)
			}
		}
	})
}

func TestMembersThatTheKernelRefuses(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.put(nodestate.SourceIPAM, member(self, "10.244.0.1"))
		held := n.holds(nodestate.SourceIPAM)
		n.noMembers = errKernel
		n.put(nodestate.SourceIPAM, member("node-2", "10.244.1.1"),
			nodestate.Range{Kind: nodestate.RangePod, Prefix: prefix("10.244.0.0/16")})
		if got := n.holds(nodestate.SourceIPAM); got != held {
			t.Errorf("holds %d, want %d", got, held)
		}
		if n.has("pod-ranges4") {
			t.Error("the table has a part of a refused update")
		}
		n.agree()
	})
}

func TestALostAnswerIsReadBack(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.lose = true
		_, from := n.since(0)
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"))
		if got := n.holds(nodestate.SourceSvcproxy); got != n.version {
			t.Errorf("holds %d, want %d: the transaction was committed", got, n.version)
		}
		if lines, _ := n.since(from); count(lines, "commit") != 1 {
			t.Errorf("written twice: %v", lines)
		}
	})
}

func TestDriftIsMendedAndNamed(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"), endpoint("web", "10.244.1.5"))
		n.agree()
		var gone []plan.Element
		for key, value := range n.inKernel()[plan.SetFrontends.In(plan.IPv4)] {
			gone = append(gone, plan.Element{Set: plan.SetFrontends.In(plan.IPv4), Key: key, Value: value})
		}
		stranger := plan.Element{Set: plan.SetNode.In(plan.IPv4), Key: plan.Concat(plan.Addr(addrs("192.0.2.1")[0]))}
		n.tamper(func(table *nft.Fake) error {
			_, err := table.Apply(plan.Change{Remove: gone, Add: []plan.Element{stranger}})
			return err
		})
		elapse(31 * time.Second)
		_, stats := n.read()
		text := strings.Join(stats.Drift, "\n")
		if !strings.Contains(text, "missing frontends4 10.96.0.7") || !strings.Contains(text, "foreign node4 192.0.2.1") {
			t.Errorf("drift: %q", stats.Drift)
		}
		n.agree()
		elapse(31 * time.Second)
		if _, stats := n.read(); len(stats.Drift) != 0 {
			t.Errorf("still: %q", stats.Drift)
		}
	})
}

func TestATableThatSomebodyRemoved(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"))
		n.tamper(func(table *nft.Fake) error {
			_, err := table.Remove()
			return err
		})
		n.put(nodestate.SourceSvcproxy, service("db", "10.96.0.8")) // the transaction fails, and shows it
		n.agree()
		if !n.has("10.96.0.7") {
			t.Error("the table was not made anew")
		}
	})
}

// While the table is gone nothing is judged: nobody may have to wait for the next change, nor for the next comparison.
func TestATableThatSomebodyFlushedIsPutBackAtOnce(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"))
		n.tamper(func(table *nft.Fake) error {
			_, err := table.Remove()
			return err
		})
		elapse(time.Second)
		if !n.has("10.96.0.7") {
			t.Error("the table was not made anew")
		}
	})
}

func TestAKernelThatDoesNotAnswerIsTriedAgain(t *testing.T) {
	world(t, func(t *testing.T, n *node) {
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"))
		n.tamper(func(table *nft.Fake) error {
			table.Fail = func(string) error { return errs.WrapAs(errs.Unavailable, errKernel, "nft") }
			return nil
		})
		n.put(nodestate.SourceSvcproxy, service("db", "10.96.0.8"))
		if _, stats := n.read(); !strings.Contains(strings.Join(stats.Problems, " "), errKernel.Error()) {
			t.Errorf("problems: %q", stats.Problems)
		}
		n.tamper(func(table *nft.Fake) error {
			table.Fail = nil
			return nil
		})
		elapse(2 * time.Second)
		if _, stats := n.read(); len(stats.Problems) != 0 {
			t.Errorf("problems: %q", stats.Problems)
		}
		n.agree()
	})
}

func TestRestartWritesNothing(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{diary: &diary{}}
		n := start(t, k, dir, nil)
		n.put(nodestate.SourceIPAM, member(self, "10.244.0.1"), nodestate.Range{Kind: nodestate.RangePod, Prefix: prefix("10.244.0.0/16")})
		n.put(nodestate.SourcePolicy, isolated("a", 7), nodestate.Allow{
			Direction: nodestate.Ingress, Subject: nodestate.Class{7}, PeerMode: nodestate.PeerAny, PortMode: nodestate.PortAny,
		})
		n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"), endpoint("web", "10.244.1.5"), endpoint("web", "10.244.1.6"),
			nodestate.Announcement{Address: addrs("172.30.0.200")[0], Node: self, Epoch: 1})
		n.drop(nodestate.SourceSvcproxy, endpoint("web", "10.244.1.5")) // slots are history
		a := pod("a", "pwpa", "10.244.0.10")
		n.prepare(t.Context(), a)
		n.agree()
		held := n.after()
		n.end()
		before := n.inKernel().Format()

		_, from := n.since(0)
		n = start(t, k, dir, held, a)
		defer n.end()
		elapse(time.Second) // late removals would come now
		if _, stats := n.read(); stats.Writes != 0 || stats.Objects != 0 || len(stats.Drift) != 0 {
			t.Errorf("a restart wrote %d times, %d objects; drift %q", stats.Writes, stats.Objects, stats.Drift)
		}
		lines, _ := n.since(from)
		if count(lines, "commit")+count(lines, "install")+count(lines, "members")+count(lines, "advertise") != 0 {
			t.Errorf("a restart did %v", lines)
		}
		if got := n.inKernel().Format(); got != before {
			t.Errorf("the table changed from\n%s\nto\n%s", before, got)
		}
		if u := k.workloads[len(k.workloads)-1]; u.Complete {
			t.Error("what a journal says of pods is not complete")
		}
	})
}

func TestRestoreWithServicesDown(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		held := map[nodestate.Source]dataplane.Held{
			nodestate.SourceIPAM:     slice(7, member(self, "10.244.0.1")),
			nodestate.SourcePolicy:   slice(8, open("a")),
			nodestate.SourceSvcproxy: slice(9, service("web", "10.96.0.7"), endpoint("web", "10.244.1.5")),
			nodestate.SourceCluster:  slice(10, nodestate.Workload{UID: "a", Namespace: "default", Name: "a"}),
		}
		k := &kernel{diary: &diary{}}
		n := start(t, k, dir, held)
		defer n.end()
		n.agree()
		if len(k.routed) != 1 || !n.has("frontends4", "10.96.0.7") || len(k.workloads) != 1 || len(k.workloads[0].Upserts) != 1 {
			t.Errorf("restored: members %v, workloads %v, table\n%s", k.routed, k.workloads, n.inKernel().Format())
		}
		if err := n.loop.Prepare(t.Context(), pod("a", "pwpa", "10.244.0.10")); err != nil {
			t.Errorf("a pod whose policy is on disk: %v", err)
		}
		if n.holds(nodestate.SourcePolicy) != 8 {
			t.Error("the version of the journal is what is held")
		}
	})
}

func TestIDsThatWereLost(t *testing.T) {
	for _, tt := range []struct {
		what   string
		damage func(path string) error
		aside  bool
	}{
		{"removed", os.Remove, false},
		{"damaged", func(path string) error { return os.WriteFile(path, []byte("podwire ids 1\nname x y\n"), 0o600) }, true},
		{"another format", func(path string) error { return os.WriteFile(path, []byte("something else\n"), 0o600) }, true},
		{"cut off", func(path string) error {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, raw[:len(raw)-3], 0o600)
		}, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				k := &kernel{diary: &diary{}}
				n := start(t, k, dir, nil)
				n.put(nodestate.SourceSvcproxy, service("web", "10.96.0.7"), endpoint("web", "10.244.1.5"))
				held := n.after()
				n.end()
				old := n.inKernel()[plan.SetFrontends.In(plan.IPv4)]
				path := filepath.Join(dir, "ids")
				if err := tt.damage(path); err != nil {
					t.Fatal(err)
				}
				n = start(t, k, dir, held)
				defer n.end()
				n.agree()
				if _, err := os.Stat(path + ".damaged"); (err == nil) != tt.aside {
					t.Errorf("set aside: %v", err)
				}
				if tt.what == "cut off" {
					return // nothing that is in use was lost
				}
				for key, value := range n.inKernel()[plan.SetFrontends.In(plan.IPv4)] {
					if old[key] == value {
						t.Errorf("id %#x may still be on its way under another name", plan.MarkOf(value))
					}
				}
			})
		})
	}
}

func TestRowsOfAJournalThatCannotBePlanned(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := start(t, &kernel{diary: &diary{}}, dir, map[nodestate.Source]dataplane.Held{
			nodestate.SourcePolicy: slice(8, open("a"), bad()),
		})
		defer n.end()
		if err := n.loop.Prepare(t.Context(), pod("a", "pwpa", "10.244.0.10")); err != nil {
			t.Errorf("the other rows are good: %v", err)
		}
		if _, stats := n.read(); len(stats.Problems) != 1 || !strings.Contains(stats.Problems[0], "slice of policy") {
			t.Errorf("problems: %q", stats.Problems)
		}
		n.push(nodestate.SourcePolicy, nodestate.Delta{}) // the service says that this is what the node should hold
		if n.holds(nodestate.SourcePolicy) != 8 {
			t.Error("a slice that is not in the kernel was acked")
		}
		n.drop(nodestate.SourcePolicy, bad())
		if n.holds(nodestate.SourcePolicy) != n.version {
			t.Error("a slice that can be planned was refused")
		}
		if _, stats := n.read(); len(stats.Problems) != 0 {
			t.Errorf("problems: %q", stats.Problems)
		}
		n.agree()
	})
}
