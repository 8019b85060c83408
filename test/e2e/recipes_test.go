package e2e

import (
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"
)

// recipe is one of github.com/ahmetb/kubernetes-network-policy-recipes (Apache-2.0) as facts: who is there, what is
// applied, and who then reaches whom.
type recipe struct {
	ID         string
	Title      string
	Namespaces map[string]map[string]string
	Pods       []recipePod
	Policies   []yaml.Node
	Probes     []recipeProbe
}

type recipePod struct {
	Name   string
	Labels map[string]string
	Ports  []int
}

type recipeProbe struct {
	From, To, Protocol string
	Port               int
	Connected          bool
}

// serviceRemap are the ports of recipe 9's Service, which its note gives.
const serviceRemap = "[{name: api, port: 8001, targetPort: 8000}, {name: metrics, port: 5001, targetPort: 5000}]"

// denied is what a probe without an answer exits with; policy drops.
const (
	reached = 0
	refused = 1
	denied  = 2
)

func TestRecipes(t *testing.T) {
	raw, err := os.ReadFile("testdata/recipes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Recipes []recipe }
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Recipes) != 18 {
		t.Fatalf("%d recipes", len(file.Recipes))
	}
	shared.startListener(t, ":80")
	outside := shared.outsideAddress(t)
	for _, r := range file.Recipes {
		t.Run(r.ID, func(t *testing.T) { r.replay(t, outside) })
	}
}

// replay applies everything and sends each probe; before the policies, so that a denied probe has reached once.
func (r recipe) replay(t *testing.T, outside string) {
	world := r.world()
	t.Cleanup(func() { shared.remove(t, world) })
	shared.apply(t, world)
	targets := r.targets(t, outside)
	r.probeAll(t, targets, "before the policies", func(recipeProbe) bool { return true })
	policies := r.policies(t)
	shared.apply(t, policies)
	r.probeAll(t, targets, "with the policies", func(p recipeProbe) bool { return p.Connected })
	shared.remove(t, policies)
	r.probeAll(t, targets, "after the policies", func(recipeProbe) bool { return true })
}

func (r recipe) probeAll(t *testing.T, targets map[recipeProbe][]string, when string, connected func(recipeProbe) bool) {
	t.Helper()
	var all sync.WaitGroup
	for _, p := range r.Probes {
		all.Go(func() {
			a := shared.run(append(p.place(), targets[p]...)...)
			want := denied
			if connected(p) {
				want = reached
			}
			if a.code != want {
				t.Errorf("%s: %+v: exit %d, want %d: %s", when, p, a.code, want, a.text())
			}
		})
	}
	all.Wait()
}

// place is where a probe is sent from.
func (p recipeProbe) place() []string {
	if p.From == "external" {
		return []string{"exec", "--outside", "--"}
	}
	ns, name, _ := strings.Cut(p.From, "/")
	return []string{"exec", "-n", ns, name, "--"}
}

// targets are the commands of all probes. Clients outside come through a NodePort; ICMP is ping's.
func (r recipe) targets(t *testing.T, outside string) map[recipeProbe][]string {
	t.Helper()
	out := map[recipeProbe][]string{}
	for _, p := range r.Probes {
		ref, isService := strings.CutPrefix(p.To, "service ")
		ns, name, _ := strings.Cut(ref, "/")
		host, port := outside, p.Port
		switch {
		case isService:
			host = serviceAddress(t, ns, name)
		case p.From == "external":
			host, port = nodeAddress(t, "node-1"), nodePort(t, ns, name)
		case p.To != "external":
			host = podAddress(t, ns, name)
		}
		if p.Protocol == "ICMP" {
			out[p] = []string{"sh", "-c", "ping -c 1 -W 1 " + host + " || exit 2"}
			continue
		}
		out[p] = []string{"probe", strings.ToLower(p.Protocol), net.JoinHostPort(host, strconv.Itoa(port)), "--timeout", "1s"}
	}
	return out
}

// world is what is there before the policies: one echo pod for each pod of the recipe, over three nodes.
func (r recipe) world() string {
	var b strings.Builder
	for _, ns := range slices.Sorted(maps.Keys(r.Namespaces)) {
		if ns == "default" || ns == "kube-system" {
			continue // they are there from the first day, and stay
		}
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {%s}}}\n", ns, inline(r.Namespaces[ns]))
	}
	for n, p := range r.Pods {
		ns, name, _ := strings.Cut(p.Name, "/")
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s, labels: {%s}}, spec: {nodeName: node-%d, "+
			"terminationGracePeriodSeconds: 1, containers: [{name: echo, image: podwire.dev/echo, ports: [%s]}]}}\n",
			name, ns, inline(p.Labels), n%3+1, containerPorts(p.Ports))
	}
	if slices.ContainsFunc(r.Probes, func(p recipeProbe) bool { return strings.HasPrefix(p.To, "service ") }) {
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Service, metadata: {name: apiserver}, spec: {selector: {app: apiserver}, ports: %s}}\n", serviceRemap)
	}
	if slices.ContainsFunc(r.Probes, func(p recipeProbe) bool { return p.From == "external" }) {
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}}\n")
	}
	return b.String()
}

func (r recipe) policies(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, p := range r.Policies {
		text, err := yaml.Marshal(&p)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "---\n%s", text)
	}
	return b.String()
}

// containerPorts has each port in both protocols: the recipes' DNS is probed with both.
func containerPorts(ports []int) string {
	var out []string
	for _, p := range ports {
		out = append(out, fmt.Sprintf("{containerPort: %d}, {containerPort: %d, protocol: UDP}", p, p))
	}
	return strings.Join(out, ", ")
}

func inline(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, fmt.Sprintf("%s: %q", k, labels[k]))
	}
	return strings.Join(out, ", ")
}

func podAddress(t *testing.T, ns, name string) string {
	t.Helper()
	var pod struct{ Status struct{ PodIP string } }
	shared.get(t, &pod, "pod", name, "-n", ns)
	return pod.Status.PodIP
}

func serviceAddress(t *testing.T, ns, name string) string {
	t.Helper()
	var s struct{ Spec struct{ ClusterIP string } }
	shared.get(t, &s, "service", name, "-n", ns)
	return s.Spec.ClusterIP
}

func nodePort(t *testing.T, ns, name string) int {
	t.Helper()
	var s struct {
		Spec struct{ Ports []struct{ NodePort int } }
	}
	shared.get(t, &s, "service", name, "-n", ns)
	return s.Spec.Ports[0].NodePort
}

func nodeAddress(t *testing.T, name string) string {
	t.Helper()
	var n struct {
		Status struct {
			Addresses []struct{ Type, Address string }
		}
	}
	shared.get(t, &n, "node", name)
	for _, a := range n.Status.Addresses {
		if a.Type == "InternalIP" {
			return a.Address
		}
	}
	t.Fatalf("%s has no address", name)
	return ""
}
