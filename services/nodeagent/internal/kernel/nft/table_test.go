package nft_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podwire.dev/internal/testnet"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/plan"
)

var update = flag.Bool("update", false, "write the golden files anew")

// open makes a namespace with an open table.
func open(t *testing.T) (*testnet.NS, *nft.Table) {
	t.Helper()
	ns := testnet.New(t).AddNS("node")
	table, err := nft.Open(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	return ns, table
}

func sample() plan.Elements {
	e := plan.Elements{}
	e.Put(plan.Element{Set: plan.SetPrograms, Key: plan.Concat(plan.Mark(3)), Value: "jump count-3"})
	e.Put(plan.Element{Set: plan.SetChoices, Key: plan.Concat(plan.Mark(3)), Value: "jump count-3"})
	e.Put(plan.Element{Set: plan.SetPrograms, Key: plan.Concat(plan.Mark(plan.ProgramAffinity + 10800)), Value: "goto affinity-10800"})
	e.Put(plan.Element{Set: plan.SetPrograms, Key: plan.Concat(plan.Mark(plan.ProgramRefuse)), Value: "goto refuse"})
	e.Put(plan.Element{Set: plan.SetPrograms, Key: plan.Concat(plan.Mark(plan.ProgramNoLocal)), Value: "goto no-local"})
	return e
}

func TestListing(t *testing.T) {
	ns, table := open(t)
	if _, err := table.Install(sample()); err != nil {
		t.Fatal(err)
	}
	listing := ns.Run("nft", "list", "ruleset")
	got := strings.ReplaceAll(listing, nft.Version(), "skeleton-VERSION")
	path := filepath.Join("testdata", "ruleset.nft")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the listing is not %s:\n%s", path, got)
	}

	ns.Run("nft", "flush", "ruleset")
	load := exec.Command("nft", "-f", "-")
	load.Stdin = strings.NewReader(listing)
	if err := ns.Start(load); err != nil {
		t.Fatal(err)
	}
	if err := load.Wait(); err != nil {
		t.Fatalf("nft -f of the listing: %v", err)
	}
	if again := ns.Run("nft", "list", "ruleset"); again != listing {
		t.Errorf("listed, loaded and listed again, the ruleset is another one:\n%s", again)
	}
	s, err := table.Read()
	if err != nil || !s.Whole {
		t.Errorf("the loaded listing is not recognised: %+v, %v", s, err)
	}
}
