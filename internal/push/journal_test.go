package push

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podwire.dev/internal/nodestate"
)

// script is a journal driven as a subscriber drives it.
type script struct {
	t      *testing.T
	j      *Journal
	slice  *nodestate.Slice
	held   nodestate.Version
	states map[nodestate.Version]*nodestate.Slice
}

func open(t *testing.T, dir string) *script {
	t.Helper()
	j, err := OpenJournal(dir, nodestate.SourceCluster)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, j: j, states: map[nodestate.Version]*nodestate.Slice{}}
	s.slice, s.held = j.Load()
	s.states[s.held] = s.slice.Clone()
	return s
}

// step appends an update, and applies or refuses it.
func (s *script) step(revision int64, refuse string, rows ...nodestate.Row) {
	s.t.Helper()
	next := s.slice.Clone()
	for _, r := range rows {
		next.Upsert(r)
	}
	v := nodestate.Version{ClusterID: 1, Revision: revision}
	if err := s.j.append(s.held, v, nodestate.Diff(s.slice, next), digestsOf(nodestate.SourceCluster, next)); err != nil {
		s.t.Fatal(err)
	}
	if refuse != "" {
		if err := s.j.rollback(revision, s.held.Revision); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	s.slice, s.held = next, v
	s.states[v] = next.Clone()
	if err := s.j.settle(s.slice, s.held); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) reopen(dir string) *script {
	s.t.Helper()
	if err := s.j.Close(); err != nil {
		s.t.Fatal(err)
	}
	next := open(s.t, dir)
	if next.held != s.held || !nodestate.Diff(next.slice, s.slice).Empty() || next.j.Problem() != "" {
		s.t.Fatalf("held %v, loaded %v (%s)", s.held, next.held, next.j.Problem())
	}
	return next
}

func workload(uid, spec string) nodestate.Row { return nodestate.Workload{UID: uid, Pod: spec} }

func TestJournalKeeps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	s = s.reopen(dir)
	s.step(5, "", workload("a", "1"), workload("b", "1"))
	s = s.reopen(dir)
	s.step(6, "", workload("a", "2"))
	s.step(7, "no", workload("c", "1"))
	s = s.reopen(dir)
	s.step(7, "", workload("d", "1"))
	s.step(8, "")
	s.reopen(dir)
}

// TestJournalCompacts: the file stays within a small multiple of what it holds, however many updates there were.
func TestJournalCompacts(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 400 {
		s.step(int64(i+1), "", workload(fmt.Sprint(i%10), strings.Repeat("x", 2000+i)))
	}
	info, err := os.Stat(filepath.Join(dir, "cluster.journal"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 200<<10 {
		t.Errorf("%d bytes for 10 rows of 2,400", info.Size())
	}
	s = s.reopen(dir)
	s.step(500, "no", workload("x", "1"))
	s.reopen(dir)
}

// TestJournalTorn cuts and damages a journal at every byte: what loads is always a state that was held.
func TestJournalTorn(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.step(5, "", workload("a", "1"), workload("b", "1"))
	s.step(6, "no", workload("a", "3"))
	s.step(6, "", workload("a", "2"))
	s.step(7, "", workload("c", "1"))
	if err := s.j.rewrite(s.slice, s.held); err != nil {
		t.Fatal(err)
	}
	s.step(8, "", workload("d", "1"))
	s.step(9, "no", workload("e", "1"))
	s.step(10, "", workload("a", "4"))
	// A refused state is one that the kernel was about to hold: a journal that ends before the rollback may give it.
	refused := s.states[nodestate.Version{ClusterID: 1, Revision: 8}].Clone()
	refused.Upsert(workload("e", "1"))
	s.states[nodestate.Version{ClusterID: 1, Revision: 9}] = refused
	path := filepath.Join(dir, "cluster.journal")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, data []byte) {
		t.Helper()
		p := readJournal(nodestate.SourceCluster, data)
		want, ok := s.states[p.version]
		if !ok || !nodestate.Diff(want, p.slice).Empty() {
			t.Fatalf("%s: loads version %d, which was never so", what, p.version.Revision)
		}
	}
	newest := map[int64]bool{}
	for i := range whole {
		check(fmt.Sprintf("cut at %d", i), whole[:i])
		check(fmt.Sprintf("zeros from %d", i), append(append([]byte(nil), whole[:i]...), make([]byte, 64)...))
		bad := append([]byte(nil), whole...)
		bad[i] ^= 0x41
		check(fmt.Sprintf("damaged at %d", i), bad)
		newest[readJournal(nodestate.SourceCluster, whole[:i]).version.Revision] = true
	}
	if len(newest) != 4 { // nothing, 7, 8, 9; 10 only whole
		t.Errorf("cuts gave the versions %v", newest)
	}

	// A journal that was cut goes on where it ends.
	if err := os.WriteFile(path, whole[:len(whole)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	cut := open(t, dir)
	if cut.j.Problem() == "" || cut.held.Revision != 8 {
		t.Errorf("held %v, problem %q", cut.held, cut.j.Problem())
	}
	cut.step(11, "", workload("f", "1"))
	cut.reopen(dir)
}

func TestJournalOfAnotherSource(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).step(5, "", workload("a", "1"))
	if err := os.Rename(filepath.Join(dir, "cluster.journal"), filepath.Join(dir, "policy.journal")); err != nil {
		t.Fatal(err)
	}
	j, err := OpenJournal(dir, nodestate.SourcePolicy)
	if err != nil {
		t.Fatal(err)
	}
	if s, v := j.Load(); s.Len() != 0 || v.Revision != 0 || !strings.Contains(j.Problem(), "no journal of this source") {
		t.Errorf("held %v, problem %q", v, j.Problem())
	}
	if _, err := OpenJournal(dir, "nobody"); err == nil {
		t.Error("a source without tables has a journal")
	}
	if _, err := OpenJournal(filepath.Join(dir, "policy.journal"), nodestate.SourcePolicy); err == nil {
		t.Error("a file is no directory")
	}
}

// TestJournalRecovers: a journal that could not be written holds an older state, and is written anew with the next update.
func TestJournalRecovers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.step(5, "", workload("a", "1"))
	if err := s.j.file.Close(); err != nil {
		t.Fatal(err)
	}
	v := nodestate.Version{ClusterID: 1, Revision: 6}
	next := nodestate.NewSlice(workload("a", "2"))
	if err := s.j.append(s.held, v, nodestate.Diff(s.slice, next), digestsOf(nodestate.SourceCluster, next)); err == nil {
		t.Fatal("a closed file was written to")
	}
	if err := s.j.rollback(6, 5); err == nil {
		t.Fatal("a rollback without its update")
	}
	if got := open(t, dir); got.held.Revision != 5 {
		t.Errorf("held %v", got.held)
	}
	s.slice, s.held = next, v
	if err := s.j.settle(next, v); err != nil {
		t.Fatal(err)
	}
	s.step(7, "", workload("b", "1"))
	s.reopen(dir)
}

func TestJournalKeepsFrozen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.step(50, "", workload("a", "1"))
	offered := nodestate.Version{ClusterID: 2, Revision: 3}
	if err := s.j.freeze(offered); err != nil {
		t.Fatal(err)
	}
	s = s.reopen(dir)
	if s.j.loaded.frozen != offered {
		t.Errorf("frozen at %v", s.j.loaded.frozen)
	}
	s.step(51, "no", workload("b", "1"))
	s = s.reopen(dir)
	if s.j.loaded.frozen != offered {
		t.Errorf("thawed by what was refused: %v", s.j.loaded.frozen)
	}
	s.step(52, "", workload("b", "1"))
	s = s.reopen(dir)
	if s.j.loaded.frozen != (nodestate.Version{}) {
		t.Errorf("still frozen at %v", s.j.loaded.frozen)
	}
}

// TestUndo: whatever a delta does, its undo takes back.
func TestUndo(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	s := nodestate.NewSlice()
	for range 2000 {
		var d nodestate.Delta
		for range r.IntN(4) {
			d.Upserts = append(d.Upserts, workload(fmt.Sprint(r.IntN(6)), fmt.Sprint(r.IntN(3))))
			d.Removes = append(d.Removes, nodestate.Ref{Table: nodestate.TableWorkloads, Key: fmt.Sprint(r.IntN(6))})
		}
		before := s.Clone()
		back := undo(s, d)
		s.Apply(d)
		after := s.Clone()
		s.Apply(back)
		if !nodestate.Diff(before, s).Empty() {
			t.Fatalf("%v of %v gives %v", back, d, s.Rows(nodestate.TableWorkloads))
		}
		s = after
	}
}
