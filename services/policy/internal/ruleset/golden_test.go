package ruleset_test

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/policy/internal/planner"
	"podwire.dev/services/policy/internal/ruleset"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares the last file of each archive with what the first gives.
func golden(t *testing.T, pattern string, fn func(t *testing.T, in string) string) {
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v", pattern, err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) != 2 || archive.Files[0].Name != "in.yaml" || archive.Files[1].Name != "want" {
				t.Fatal("an archive holds in.yaml and want")
			}
			got := fn(t, string(archive.Files[0].Data))
			if *update {
				archive.Files[1].Data = []byte(got)
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(archive.Files[1].Data); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestRows(t *testing.T) {
	golden(t, "testdata/rows/*.txtar", func(t *testing.T, in string) string {
		plan := planner.New()
		for _, o := range parse(t, in) {
			if np, ok := o.Message.(*objectv1.NetworkPolicy); ok {
				ruleset.DefaultPolicy(np)
				if bad := ruleset.ValidatePolicy(np); len(bad) > 0 {
					t.Fatalf("%s: %v", o, bad)
				}
			}
			if pod, ok := o.Message.(*objectv1.Pod); ok {
				pod.Metadata.Uid = pod.GetMetadata().GetName()
			}
			put(plan, o.Message)
		}
		made, err := plan.Plan(1)
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, name := range slices.Sorted(keys(made.PerNode)) {
			text.WriteString("node " + name + "\n" + printRows(made.PerNode[name]))
		}
		return text.String()
	})
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// printRows writes rows for people: classes get letters in the order in which they appear.
func printRows(s *nodestate.Slice) string {
	names := map[nodestate.Class]string{}
	class := func(prefix string, c nodestate.Class) string {
		if names[c] == "" {
			names[c] = fmt.Sprintf("%s%d", prefix, len(names)+1)
		}
		return names[c]
	}
	side := func(x nodestate.Side) string {
		if x.Mode == nodestate.SideOpen {
			return "open"
		}
		return class("s", x.Class) + " " + strings.Join(x.Policies, ",")
	}
	var lines []string
	for _, r := range s.Rows(nodestate.TableSubjects) {
		x := r.(nodestate.Subject)
		lines = append(lines, fmt.Sprintf("  subject %s ingress %s egress %s", x.PodUID, side(x.Ingress), side(x.Egress)))
	}
	for _, r := range s.Rows(nodestate.TablePeers) {
		x := r.(nodestate.Peer)
		lines = append(lines, fmt.Sprintf("  peer %s %s", x.Address, class("p", x.Class)))
	}
	for _, r := range s.Rows(nodestate.TablePeerRanges) {
		x := r.(nodestate.PeerRange)
		lines = append(lines, fmt.Sprintf("  range %s-%s %s", x.From, x.To, class("p", x.Class)))
	}
	var allows []string
	for _, r := range s.Rows(nodestate.TableAllows) {
		x := r.(nodestate.Allow)
		peer, ports := "any", "any"
		if x.PeerMode == nodestate.PeerClass {
			peer = names[x.Peer]
		}
		switch x.PortMode {
		case nodestate.PortProtocol:
			ports = x.Protocol.String()
		case nodestate.PortRange:
			ports = fmt.Sprintf("%s/%d-%d", x.Protocol, x.From, x.To)
		}
		subject := names[x.Subject]
		if subject == "" || peer == "" {
			subject += "?" + hex.EncodeToString(x.Subject[:]) // an Allow of nobody
		}
		allows = append(allows, fmt.Sprintf("  allow %s %s %s %s  # %s", x.Direction, subject, peer, ports, strings.Join(x.Origins, ", ")))
	}
	slices.Sort(allows)
	return strings.Join(append(lines, allows...), "\n") + "\n"
}

func TestValidation(t *testing.T) {
	golden(t, "testdata/validate/*.txtar", func(t *testing.T, in string) string {
		var text strings.Builder
		for _, o := range parse(t, in) {
			np := o.Message.(*objectv1.NetworkPolicy)
			ruleset.DefaultPolicy(np)
			fmt.Fprintf(&text, "%s\n", np.GetMetadata().GetName())
			for _, v := range ruleset.ValidatePolicy(np) {
				fmt.Fprintf(&text, "  %s\n", v)
			}
		}
		return text.String()
	})
}
