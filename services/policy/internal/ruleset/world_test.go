package ruleset_test

import (
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/policytest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/policy/internal/ruleset"
)

func ref(name string) ruleset.Ref { return ruleset.Ref{Namespace: "a", Name: name} }

func pod(name, node string, labels map[string]string, addrs ...string) ruleset.Pod {
	p := ruleset.Pod{Ref: ref(name), UID: name, Node: node, Labels: labels}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

var web, client = map[string]string{"app": "web"}, map[string]string{"app": "client"}

// webFromClients isolates web, on node-1, and admits clients of any namespace.
func webFromClients(t testing.TB) *ruleset.World {
	t.Helper()
	w := ruleset.NewWorld()
	w.SetNamespace("a", nil)
	w.SetPod(pod("web", "node-1", web, "10.0.0.1"))
	w.SetPod(pod("client", "node-2", client, "10.0.1.1"))
	w.SetPolicy(policyOf(t, `{"metadata":{"namespace":"a","name":"p"},"spec":{"podSelector":{"matchLabels":{"app":"web"}},
		"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"client"}},"namespaceSelector":{}}]}]}}`))
	w.Dirty()
	return w
}

func policyOf(t testing.TB, json string) ruleset.Policy {
	t.Helper()
	o := &objectv1.NetworkPolicy{}
	if err := protojson.Unmarshal([]byte(json), o); err != nil {
		t.Fatal(err)
	}
	return ruleset.ParsePolicy(o)
}

// TestDirty says which nodes a change concerns, and that a change which concerns nobody concerns nobody.
func TestDirty(t *testing.T) {
	t.Parallel()
	allowNothing := `{"metadata":{"namespace":"a","name":"n"},"spec":{"podSelector":{"matchLabels":{"app":"client"}}}}`
	for _, tt := range []struct {
		what   string
		change func(w *ruleset.World)
		want   []string
	}{
		{"the same pod again", func(w *ruleset.World) { w.SetPod(pod("web", "node-1", web, "10.0.0.1")) }, nil},
		{"a pod that nobody selects", func(w *ruleset.World) { w.SetPod(pod("x", "node-3", nil, "10.0.2.1")) }, []string{"node-3"}},
		{"a peer elsewhere", func(w *ruleset.World) { w.SetPod(pod("y", "node-3", client, "10.0.2.1")) }, []string{"node-1", "node-3"}},
		{"a peer without an address yet", func(w *ruleset.World) { w.SetPod(pod("y", "node-3", client)) }, []string{"node-3"}},
		{"a peer that goes", func(w *ruleset.World) { w.DeletePod(ref("client")) }, []string{"node-1", "node-2"}},
		{"a pod on no node", func(w *ruleset.World) { w.SetPod(pod("z", "", nil)) }, nil},
		{"a namespace of nobody", func(w *ruleset.World) { w.SetNamespace("b", nil) }, nil},
		{"labels of a namespace that no selector asks for", func(w *ruleset.World) { w.SetNamespace("a", map[string]string{"k": "v"}) }, nil},
		{"a namespace that goes, with its peers", func(w *ruleset.World) { w.DeleteNamespace("a") }, []string{"node-1"}},
		{"a policy for other pods", func(w *ruleset.World) { w.SetPolicy(policyOf(t, allowNothing)) }, []string{"node-2"}},
		{"a policy that goes", func(w *ruleset.World) { w.DeletePolicy(ref("p")) }, []string{"node-1"}},
		{"what never was", func(w *ruleset.World) { w.DeletePolicy(ref("q")); w.DeletePod(ref("q")); w.DeleteNamespace("q") }, nil},
		{"a node", func(w *ruleset.World) { w.SetNode("node-1", []netip.Addr{netip.MustParseAddr("192.0.2.1")}) }, nil},
	} {
		w := webFromClients(t)
		tt.change(w)
		if got := w.Dirty(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, got, tt.want)
		}
		if got := w.Dirty(); len(got) != 0 {
			t.Errorf("%s: asked again: %v", tt.what, got)
		}
	}
	w := webFromClients(t)
	again := `{"metadata":{"namespace":"a","name":"p"},"spec":{"podSelector":{"matchLabels":{"app":"web"}},
		"ingress":[{"from":[{"podSelector":{"matchExpressions":[{"key":"app","operator":"In","values":["client"]}]},"namespaceSelector":{}}]}]}}`
	w.SetPolicy(policyOf(t, again))
	if got := w.Dirty(); len(got) != 0 {
		t.Errorf("the same policy in other words: %v", got)
	}
}

func verdicts(t *testing.T, w *ruleset.World, from, to ruleset.Party) (egress, ingress ruleset.Verdict) {
	t.Helper()
	e, i, err := w.Explain(ruleset.Connection{From: from, To: to, Protocol: nodestate.TCP, Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	return e.Verdict, i.Verdict
}

// TestSharedAddress has two pods claim one address, which must then open no more than both may.
func TestSharedAddress(t *testing.T) {
	t.Parallel()
	shared := ruleset.Party{Address: netip.MustParseAddr("10.0.1.1")}
	to := ruleset.Party{Pod: ref("web")}
	allows := func(w *ruleset.World) (explain, rows bool) {
		_, v := verdicts(t, w, shared, to)
		got, err := node{w.Compile("node-1")}.judge("web", nodestate.Ingress, shared.Address, nodestate.TCP, 80)
		if err != nil {
			t.Fatal(err)
		}
		return v == ruleset.Allowed, got
	}
	for _, tt := range []struct {
		what  string
		other ruleset.Pod
		want  bool
	}{
		{"a stranger", pod("other", "node-3", nil, "10.0.1.1"), false},
		{"another client", pod("other", "node-3", client, "10.0.1.1"), true},
		{"one that has finished", ruleset.Pod{Ref: ref("other"), UID: "o", Addresses: []netip.Addr{shared.Address}, Finished: true}, true},
		{"one on its host's network", ruleset.Pod{Ref: ref("other"), UID: "o", Addresses: []netip.Addr{shared.Address}, HostNetwork: true}, true},
	} {
		w := webFromClients(t)
		w.SetPod(tt.other)
		dirty := w.Dirty()
		if explain, rows := allows(w); explain != tt.want || rows != tt.want {
			t.Errorf("with %s: explain %v, rows %v, want %v", tt.what, explain, rows, tt.want)
		}
		if !tt.want && !slices.Contains(dirty, "node-1") {
			t.Errorf("with %s: node-1 is not told", tt.what)
		}
		w.DeletePod(ref("other"))
		if !tt.want && !slices.Contains(w.Dirty(), "node-1") {
			t.Errorf("without %s: node-1 is not told", tt.what)
		}
		if explain, rows := allows(w); !explain || !rows {
			t.Errorf("without %s: explain %v, rows %v", tt.what, explain, rows)
		}
	}
}

// TestExplainParties asks for nodes, addresses and pods of both families.
func TestExplainParties(t *testing.T) {
	t.Parallel()
	w := webFromClients(t)
	w.SetNode("node-1", []netip.Addr{netip.MustParseAddr("192.0.2.1")})
	w.SetNode("node-2", []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")})
	host := pod("host", "node-1", client, "192.0.2.1")
	host.HostNetwork = true
	w.SetPod(host)
	w.SetPod(pod("dual", "node-2", nil, "10.0.1.9", "fd00::9"))
	w.SetPod(pod("dual-web", "node-1", map[string]string{"app": "dual"}, "fd00::1", "10.0.0.9"))
	w.SetPolicy(policyOf(t, `{"metadata":{"namespace":"a","name":"six"},"spec":{"podSelector":{"matchLabels":{"app":"dual"}},
		"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8"}}]}]}}`))
	w.SetPolicy(policyOf(t, `{"metadata":{"namespace":"a","name":"out"},"spec":{"podSelector":{"matchLabels":{"app":"client"}},
		"policyTypes":["Egress"],"egress":[{"to":[{"ipBlock":{"cidr":"192.0.2.2/32"}}]}]}}`))
	byPod := func(name string) ruleset.Party { return ruleset.Party{Pod: ref(name)} }
	byAddr := func(a string) ruleset.Party { return ruleset.Party{Address: netip.MustParseAddr(a)} }
	byNode := func(n string) ruleset.Party { return ruleset.Party{Node: n} }
	for _, tt := range []struct {
		what            string
		from, to        ruleset.Party
		egress, ingress ruleset.Verdict
	}{
		{"own node", byNode("node-1"), byPod("web"), ruleset.NotIsolated, ruleset.OwnNode},
		{"own node by address", byAddr("192.0.2.1"), byPod("web"), ruleset.NotIsolated, ruleset.OwnNode},
		{"a pod on its own node's network", byPod("host"), byPod("web"), ruleset.NotIsolated, ruleset.OwnNode},
		{"another node", byNode("node-2"), byPod("web"), ruleset.NotIsolated, ruleset.Denied},
		{"to a node that a block names", byPod("client"), byNode("node-2"), ruleset.Allowed, ruleset.NotIsolated},
		{"to one that none names", byPod("client"), byNode("node-1"), ruleset.Denied, ruleset.NotIsolated},
		{"the destination's first family", byPod("dual"), byPod("dual-web"), ruleset.NotIsolated, ruleset.Denied},
		{"the only family in common", byPod("client"), byPod("dual-web"), ruleset.Denied, ruleset.Allowed},
		{"from outside", byAddr("203.0.113.1"), byPod("web"), ruleset.NotIsolated, ruleset.Denied},
		{"by a pod's address", byAddr("10.0.1.1"), byAddr("10.0.0.1"), ruleset.Denied, ruleset.Allowed},
	} {
		if e, i := verdicts(t, w, tt.from, tt.to); e != tt.egress || i != tt.ingress {
			t.Errorf("%s: egress %d, ingress %d, want %d, %d", tt.what, e, i, tt.egress, tt.ingress)
		}
	}
	for _, p := range []ruleset.Party{byPod("nobody"), byNode("node-9"), {}} {
		if _, _, err := w.Explain(ruleset.Connection{From: p, To: byPod("web")}); err == nil {
			t.Errorf("%+v is known", p)
		}
		if _, _, err := w.Explain(ruleset.Connection{From: byPod("web"), To: p}); err == nil {
			t.Errorf("%+v is known", p)
		}
	}
}

// FuzzPolicy reads any NetworkPolicy: what validation refuses must not panic or open anything but what it says, and
// what it accepts must give the rows that the oracle gives.
func FuzzPolicy(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"spec":{"ingress":[{}]}}`, `{"spec":{"egress":[{"ports":[{"port":"http"},{"port":1,"endPort":9}]}]}}`,
		`{"spec":{"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}]}]}}`,
		`{"spec":{"ingress":[{"from":[{"ipBlock":{"cidr":"bad"}}],"ports":[{"port":1.5},{"port":true},{"protocol":"x"}]}]}}`,
		`{"spec":{"podSelector":{"matchExpressions":[{"key":"a","operator":"Weird"}]},"egress":[{"to":[{}]}],"policyTypes":["x"]}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, json string) {
		np := &objectv1.NetworkPolicy{}
		if protojson.Unmarshal([]byte(json), np) != nil {
			return
		}
		np.Metadata = &objectv1.ObjectMeta{Namespace: "n1", Name: "np"}
		ruleset.DefaultPolicy(np)
		valid := len(ruleset.ValidatePolicy(np)) == 0
		p := ruleset.ParsePolicy(np)
		w := ruleset.NewWorld()
		w.SetPod(pod("web", "node-1", web, "10.0.0.1", "fd00::1"))
		w.SetPolicy(p)
		w.Compile("node-1")
		if !valid {
			return
		}
		o := policytest.Oracle{
			Namespaces: []*objectv1.Namespace{{Metadata: &objectv1.ObjectMeta{Name: "n1"}}},
			Policies:   []*objectv1.NetworkPolicy{np},
			Pods: []*objectv1.Pod{
				{Metadata: &objectv1.ObjectMeta{Namespace: "n1", Name: "p", Uid: "p"}, Spec: &objectv1.PodSpec{NodeName: "node-1"},
					Status: &objectv1.PodStatus{PodIps: []*objectv1.PodIP{{Ip: "10.0.0.1"}}}},
				{Metadata: &objectv1.ObjectMeta{Namespace: "n2", Name: "q", Uid: "q", Labels: web}, Spec: &objectv1.PodSpec{NodeName: "node-2"},
					Status: &objectv1.PodStatus{PodIps: []*objectv1.PodIP{{Ip: "10.0.0.2"}}}},
			},
		}
		e := examine(t, o)
		for _, from := range e.places() {
			for _, to := range e.places() {
				if from.addr.BitLen() == to.addr.BitLen() {
					e.probe(between(from, to, "TCP", 80))
					e.probe(between(from, to, "UDP", 53))
				}
			}
		}
	})
}
