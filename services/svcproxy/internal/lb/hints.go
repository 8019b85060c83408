package lb

import (
	"slices"

	"podwire.dev/internal/nodestate"
)

// hinted narrows the endpoints that clients of a node may use to those that hints name: for the node if every endpoint has a
// hint for nodes and one names this one, else for its zone in the same way, else not at all (KEP-2433, KEP-3015). What
// terminates has no say. The word says by what they were narrowed; empty for not at all.
func (w *World) hinted(list []nodestate.Endpoint, node string) (chosen []nodestate.Endpoint, word string) {
	if len(list) == 0 || list[0].State != nodestate.EndpointReady {
		return list, ""
	}
	for _, by := range []struct {
		word, own string
		hints     func(nodestate.Endpoint) []string
	}{
		{"this node", node, func(e nodestate.Endpoint) []string { return e.HintNodes }},
		{"its zone " + w.nodes[node].Zone, w.nodes[node].Zone, func(e nodestate.Endpoint) []string { return e.HintZones }},
	} {
		every := !slices.ContainsFunc(list, func(e nodestate.Endpoint) bool { return len(by.hints(e)) == 0 })
		own := slices.DeleteFunc(slices.Clone(list), func(e nodestate.Endpoint) bool { return !slices.Contains(by.hints(e), by.own) })
		if by.own != "" && every && len(own) > 0 {
			return own, by.word
		}
	}
	return list, ""
}
