package plan_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"podwire.dev/internal/nodestate"
	"podwire.dev/services/nodeagent/internal/plan"
)

// chosen are the addresses that a service's slots lead to, by scope.
func chosen(t *testing.T, text string, ids *plan.Allocator) (all, local []string) {
	t.Helper()
	s := parseState(t, text)
	elements, err := plan.Plan(plan.Input{Node: s.node, Services: nodestate.NewSlice(s.rows...)}, ids, start)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range elements[plan.SetSlots] {
		name := ids.Name(plan.MarkOf(plan.Value(key[:4])))
		to := netip.MustParseAddrPort(ids.Name(plan.MarkOf(value))[len("e "):]).Addr().String()
		switch name {
		case "s default/s:/TCP 4 all":
			all = append(all, to)
		case "s default/s:/TCP 4 local":
			local = append(local, to)
		default:
			t.Fatalf("a slot of %q", name)
		}
	}
	slices.Sort(all)
	slices.Sort(local)
	return all, local
}

func TestHints(t *testing.T) {
	const service = "service default/s:/TCP 80 cluster=10.96.0.7 external=203.0.113.10 outside=local\n"
	e := func(n int, rest string) string {
		return fmt.Sprintf("endpoint default/s:/TCP 10.244.0.%d:80 %s\n", n, rest)
	}
	for _, tt := range []struct {
		name, node, endpoints string
		all, local            []string
	}{
		{"no hints", "node-1@a", e(1, "node-1") + e(2, "node-2"), []string{"1", "2"}, []string{"1"}},
		{"zones", "node-1@a", e(1, "node-1 zones=b") + e(2, "node-2 zones=a") + e(3, "node-3 zones=a,b"), []string{"2", "3"}, []string{"1"}},
		{"one has no hint", "node-1@a", e(1, "node-1 zones=a") + e(2, "node-2"), []string{"1", "2"}, []string{"1"}},
		{"nobody is hinted for here", "node-1@a", e(1, "node-1 zones=b") + e(2, "node-2 zones=c"), []string{"1", "2"}, []string{"1"}},
		{"the node has no zone", "node-1", e(1, "node-1 zones=a") + e(2, "node-2 zones=b"), []string{"1", "2"}, []string{"1"}},
		{"node before zone", "node-1@a", e(1, "node-1 zones=a nodes=node-1") + e(2, "node-2 zones=a nodes=node-2"), []string{"1"}, []string{"1"}},
		{"else zone", "node-1@a", e(1, "node-3 zones=b nodes=node-3") + e(2, "node-2 zones=a nodes=node-2"), []string{"2"}, nil},
		{"else any", "node-1@a", e(1, "node-3 zones=b nodes=node-3") + e(2, "node-2 zones=c nodes=node-2"), []string{"1", "2"}, nil},
		{"not all have node hints", "node-1@a", e(1, "node-1 zones=a nodes=node-1") + e(2, "node-2 zones=a"), []string{"1", "2"}, []string{"1"}},
		{"the ending do not count", "node-1@a", e(1, "node-2 zones=b") + e(2, "node-1 terminating zones=a") + e(3, "node-2 terminating"), []string{"1"}, []string{"2"}},
		{"the ending are taken whatever they say", "node-1@a", e(1, "node-2 terminating zones=b") + e(2, "node-2 terminating zones=a"), []string{"1", "2"}, nil},
	} {
		want := func(list []string) (out []string) {
			for _, n := range list {
				out = append(out, "10.244.0."+n)
			}
			return out
		}
		all, local := chosen(t, "node "+tt.node+" 172.30.0.2\n"+service+tt.endpoints, plan.NewAllocator())
		if !slices.Equal(all, want(tt.all)) || !slices.Equal(local, want(tt.local)) {
			t.Errorf("%s: all %v, local %v; want %v and %v", tt.name, all, local, tt.all, tt.local)
		}
	}
}

// TestHintsAgainstTheRule compares random endpoints with the rule as kube-proxy states it: the narrowest of node, zone and all
// for which every ready endpoint has a hint and one of them names this node's.
func TestHintsAgainstTheRule(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 1))
	for range 2000 {
		var text string
		var list []nodestate.Endpoint
		for n := range r.IntN(5) {
			line := fmt.Sprintf("endpoint default/s:/TCP 10.244.0.%d:80 node-%d", n, r.IntN(3))
			for _, option := range [][]string{{"", "", " terminating"}, {"", " zones=a", " zones=a", " zones=b", " zones=a,b"}, {"", " nodes=node-1", " nodes=node-2", " nodes=node-1"}} {
				line += option[r.IntN(len(option))]
			}
			text += line + "\n"
			list = append(list, parseState(t, line).rows[0].(nodestate.Endpoint))
		}
		all, _ := chosen(t, "node node-1@a 172.30.0.2\nservice default/s:/TCP 80 cluster=10.96.0.7\n"+text, plan.NewAllocator())
		if want := rule(list, "node-1", "a"); !slices.Equal(all, want) {
			t.Fatalf("%s\ngot %v, want %v", text, all, want)
		}
	}
}

func rule(list []nodestate.Endpoint, node, zone string) []string {
	ready := slices.DeleteFunc(slices.Clone(list), func(e nodestate.Endpoint) bool { return e.State != nodestate.EndpointReady })
	for _, narrow := range []struct {
		hints func(nodestate.Endpoint) []string
		own   string
	}{
		{func(e nodestate.Endpoint) []string { return e.HintNodes }, node},
		{func(e nodestate.Endpoint) []string { return e.HintZones }, zone},
	} {
		all := !slices.ContainsFunc(ready, func(e nodestate.Endpoint) bool { return len(narrow.hints(e)) == 0 })
		own := slices.DeleteFunc(slices.Clone(ready), func(e nodestate.Endpoint) bool { return !slices.Contains(narrow.hints(e), narrow.own) })
		if all && len(own) > 0 {
			return addresses(own)
		}
	}
	if len(ready) > 0 {
		return addresses(ready)
	}
	return addresses(list)
}

func addresses(list []nodestate.Endpoint) (out []string) {
	for _, e := range list {
		out = append(out, e.Address.String())
	}
	slices.Sort(out)
	return out
}
