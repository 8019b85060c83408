package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// clean waits until the kernel and the books of every node hold exactly the pods that the store has: links, elements of the
// gate, routes, and addresses in use. What is left over stays left over, so that waiting does not hide it.
func (i *instance) clean(t *testing.T) {
	t.Helper()
	await(t, "nothing is left over", func() error {
		want, err := i.wanted()
		if err != nil {
			return err
		}
		s, err := i.tryStatus()
		if err != nil {
			return err
		}
		for _, n := range s.Nodes {
			if err := i.held(n, want[n.Node]); err != nil {
				return fmt.Errorf("%s: %w", n.Node, err)
			}
		}
		return s.healthy()
	})
}

// wanted are the addresses of the pods in the store, by node. No address may have two.
func (i *instance) wanted() (map[string][]string, error) {
	a := i.run("get", "pods", "-A", "-o", "json")
	if a.code != 0 {
		return nil, fmt.Errorf("podwire get pods: %s", a.text())
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct {
				NodeName    string
				HostNetwork bool
			}
			Status struct{ PodIPs []struct{ IP string } }
		}
	}
	if err := json.Unmarshal([]byte(a.out), &list); err != nil {
		return nil, err
	}
	out, holder := map[string][]string{}, map[string]string{}
	for _, p := range list.Items {
		if p.Spec.HostNetwork || p.Spec.NodeName == "" {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if other := holder[ip.IP]; other != "" {
				return nil, fmt.Errorf("%s and %s have %s", other, p.Metadata.Name, ip.IP)
			}
			holder[ip.IP] = p.Metadata.Name
			out[p.Spec.NodeName] = append(out[p.Spec.NodeName], ip.IP)
		}
	}
	return out, nil
}

var podLink = regexp.MustCompile(`\bpwp[^\s@:"]*`)

// held says where one node holds something else than the pods with these addresses.
func (i *instance) held(n nodeStatus, want []string) error {
	slices.Sort(want)
	in := func(what string, command ...string) (string, error) {
		a := i.exec(onNode(n.Node), command...)
		if a.code != 0 {
			return "", fmt.Errorf("%s: %s", what, a.text())
		}
		return a.out, nil
	}
	links, err := in("links", "ip", "-o", "link", "show")
	if err != nil {
		return err
	}
	if names := distinct(podLink.FindAllString(links, -1)); len(names)*2 != len(want) {
		return fmt.Errorf("%d pod links %v, want those of %d addresses %v", len(names), names, len(want), want)
	}
	var routed, gated []string
	for family, set := range map[string]string{"-4": "pods4", "-6": "pods6"} {
		text, err := in("routes", "ip", family, "route", "show")
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if podLink.MatchString(line) && !strings.HasPrefix(line, "fe80:") {
				routed = append(routed, addressIn(line))
			}
		}
		if text, err = in("gate", "nft", "list", "set", "inet", "podwire", set); err != nil {
			return err
		}
		if _, elements, found := strings.Cut(text, "elements = {"); found {
			for e := range strings.SplitSeq(elements, ",") {
				_, address, _ := strings.Cut(e, " . ")
				gated = append(gated, addressIn(address))
			}
		}
	}
	for what, have := range map[string][]string{"routes to": routed, "the gate open for": gated} {
		if slices.Sort(have); !slices.Equal(have, want) {
			return fmt.Errorf("%s %v, want %v", what, have, want)
		}
	}
	used := 0
	for _, b := range n.Status.Blocks {
		used += b.Used
	}
	if tunnels := 2; used != len(want)+tunnels {
		return fmt.Errorf("%d addresses in use, want %d of pods and %d of the tunnel", used, len(want), tunnels)
	}
	return nil
}

func addressIn(line string) string {
	for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n{}\"", r) }) {
		if a, err := netip.ParseAddr(word); err == nil {
			return a.String()
		}
	}
	return line
}

func distinct(words []string) []string {
	set := map[string]bool{}
	for _, w := range words {
		set[w] = true
	}
	return slices.Sorted(maps.Keys(set))
}
