package ruleset_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"podwire.dev/internal/manifest"
	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/policy/internal/planner"
	"podwire.dev/services/policy/internal/ruleset"
)

// recipe is one of github.com/ahmetb/kubernetes-network-policy-recipes (Apache-2.0), with what it promises.
type recipe struct {
	ID         string                       `yaml:"id"`
	Title      string                       `yaml:"title"`
	Namespaces map[string]map[string]string `yaml:"namespaces"`
	Pods       []struct {
		Name   string            `yaml:"name"`
		Labels map[string]string `yaml:"labels"`
	} `yaml:"pods"`
	Policies []yaml.Node `yaml:"policies"`
	Probes   []struct {
		From, To, Protocol string
		Port               uint16
		Connected          bool
	} `yaml:"probes"`
}

// parse reads manifests; defaults and validation are the service's.
func parse(t testing.TB, text string) []manifest.Object {
	t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Parse(kinds, "in.yaml", strings.NewReader(text), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestRecipes(t *testing.T) {
	t.Parallel()
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
	for _, r := range file.Recipes {
		t.Run(r.ID, func(t *testing.T) {
			t.Parallel()
			r.check(t)
		})
	}
}

func (r recipe) check(t *testing.T) {
	plan := planner.New()
	for name, labels := range r.Namespaces {
		all := map[string]string{"kubernetes.io/metadata.name": name}
		for k, v := range labels {
			all[k] = v
		}
		put(plan, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name, Labels: all}})
	}
	for i, p := range r.Pods {
		ns, name, _ := strings.Cut(p.Name, "/")
		put(plan, &objectv1.Pod{
			Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: name, Uid: p.Name, Labels: p.Labels},
			Spec:     &objectv1.PodSpec{NodeName: "node-1"},
			Status:   &objectv1.PodStatus{PodIps: []*objectv1.PodIP{{Ip: fmt.Sprintf("10.244.0.%d", i+2)}}},
		})
	}
	for _, p := range r.Policies {
		text, err := yaml.Marshal(&p)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range parse(t, string(text)) {
			np := o.Message.(*objectv1.NetworkPolicy)
			ruleset.DefaultPolicy(np)
			if bad := ruleset.ValidatePolicy(np); len(bad) > 0 {
				t.Fatalf("%s: %v", o, bad)
			}
			put(plan, np)
		}
	}
	if len(r.Probes) == 0 {
		t.Fatal("no probes")
	}
	for _, p := range r.Probes {
		to, viaService := strings.CutPrefix(p.To, "service ")
		port := p.Port
		if viaService {
			port = map[uint16]uint16{8001: 8000, 5001: 5000}[port] // the only Service of the recipes, recipe-09's
		}
		egress, ingress, err := plan.World().Explain(ruleset.Connection{
			From: partyOf(p.From), To: partyOf(to), Protocol: protocolOf(t, p.Protocol), Port: port,
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := egress.Verdict != ruleset.Denied && ingress.Verdict != ruleset.Denied; got != p.Connected {
			t.Errorf("%s -> %s:%d/%s: %v, want %v (egress %+v, ingress %+v)", p.From, p.To, p.Port, p.Protocol, got, p.Connected, egress, ingress)
		}
	}
}

// protocolOf knows ICMP too, which a rule admits only by admitting every port.
func protocolOf(t *testing.T, name string) nodestate.Protocol {
	const icmp = 1
	if name == "ICMP" {
		return icmp
	}
	p, ok := nodestate.ParseProtocol(name)
	if !ok {
		t.Fatalf("protocol %q", name)
	}
	return p
}

// partyOf is the party that a recipe means: a pod, or "external", any address of the world outside.
func partyOf(name string) ruleset.Party {
	ns, pod, ok := strings.Cut(name, "/")
	if !ok {
		return ruleset.Party{Address: netip.MustParseAddr("203.0.113.7")}
	}
	return ruleset.Party{Pod: ruleset.Ref{Namespace: ns, Name: pod}}
}
