package ruleset_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/policy/internal/planner"
	"podwire.dev/services/policy/internal/ruleset"
)

// cluster makes random objects out of few words, so that they meet.
type cluster struct{ *rand.Rand }

func (c cluster) one(words ...string) string { return words[c.IntN(len(words))] }

func (c cluster) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if c.IntN(3) > 0 {
			out[k] = c.one("x", "y")
		}
	}
	return out
}

func (c cluster) selector() *objectv1.LabelSelector {
	s := &objectv1.LabelSelector{}
	switch c.IntN(4) {
	case 0:
	case 1:
		s.MatchLabels = map[string]string{c.one("a", "b"): c.one("x", "y")}
	default:
		e := &objectv1.LabelSelectorRequirement{Key: c.one("a", "b"), Operator: c.one("In", "NotIn", "Exists", "DoesNotExist")}
		if e.Operator == "In" || e.Operator == "NotIn" {
			e.Values = [][]string{{"x"}, {"y"}, {"x", "y"}}[c.IntN(3)]
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (c cluster) namespace(name string) *objectv1.Namespace {
	return &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name, Labels: c.labels()}}
}

func (c cluster) pod(i int) *objectv1.Pod {
	name := fmt.Sprintf("p%d", i)
	p := &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: c.one("n1", "n2", "ghost"), Name: name, Uid: "uid-" + name, Labels: c.labels()},
		Spec:     &objectv1.PodSpec{NodeName: c.one("node-1", "node-2", "node-2", ""), HostNetwork: c.IntN(8) == 0},
		Status:   &objectv1.PodStatus{Phase: c.one("Running", "Running", "Running", "Pending", "Succeeded")},
	}
	for range c.IntN(3) {
		port := &objectv1.ContainerPort{Name: c.one("web", "dns", ""), ContainerPort: int32(c.number()), Protocol: new(c.one("TCP", "UDP", "SCTP"))}
		p.Spec.Containers = append(p.Spec.Containers, &objectv1.Container{Ports: []*objectv1.ContainerPort{port}})
	}
	if c.IntN(6) > 0 {
		p.Status.PodIps = append(p.Status.PodIps, &objectv1.PodIP{Ip: fmt.Sprintf("10.0.%d.%d", i%2, 10+i)})
	}
	if c.IntN(2) > 0 {
		p.Status.PodIps = append(p.Status.PodIps, &objectv1.PodIP{Ip: fmt.Sprintf("fd00::%d:%d", i%2, 10+i)})
	}
	return p
}

func (c cluster) number() int { return []int{53, 80, 81, 443}[c.IntN(4)] }

func (c cluster) ports() []*objectv1.NetworkPolicyPort {
	var out []*objectv1.NetworkPolicyPort
	for range c.IntN(3) {
		p := &objectv1.NetworkPolicyPort{}
		if c.IntN(2) > 0 {
			p.Protocol = new(c.one("TCP", "UDP", "SCTP"))
		}
		switch c.IntN(4) {
		case 0:
		case 1:
			p.Port = structpb.NewStringValue(c.one("web", "dns"))
		default:
			n := c.number()
			p.Port = structpb.NewNumberValue(float64(n))
			if c.IntN(2) > 0 {
				p.EndPort = new(int32(n + c.IntN(30)))
			}
		}
		out = append(out, p)
	}
	return out
}

func (c cluster) peers() []*objectv1.NetworkPolicyPeer {
	var out []*objectv1.NetworkPolicyPeer
	for range c.IntN(3) {
		p := &objectv1.NetworkPolicyPeer{}
		switch c.IntN(4) {
		case 0:
			p.IpBlock = [...]*objectv1.IPBlock{
				{Cidr: "0.0.0.0/0"}, {Cidr: "10.0.0.0/8", Except: []string{"10.0.1.0/24"}}, {Cidr: "10.0.0.0/24", Except: []string{"10.0.0.12/32", "10.0.0.14/31"}},
				{Cidr: "::/0"}, {Cidr: "fd00::/16", Except: []string{"fd00::1:0/112"}}, {Cidr: "203.0.113.0/24"}, {Cidr: "203.0.113.9/32"}, {Cidr: "255.255.255.254/31"},
			}[c.IntN(8)]
		case 1:
			p.PodSelector = c.selector()
		case 2:
			p.NamespaceSelector = c.selector()
		default:
			p.PodSelector, p.NamespaceSelector = c.selector(), c.selector()
		}
		out = append(out, p)
	}
	return out
}

func (c cluster) policy(i int) *objectv1.NetworkPolicy {
	o := &objectv1.NetworkPolicy{
		Metadata: &objectv1.ObjectMeta{Namespace: c.one("n1", "n2", "ghost"), Name: fmt.Sprintf("np%d", i)},
		Spec:     &objectv1.NetworkPolicySpec{PodSelector: c.selector()},
	}
	o.Spec.PolicyTypes = [][]string{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}[c.IntN(4)]
	for range c.IntN(3) {
		o.Spec.Ingress = append(o.Spec.Ingress, &objectv1.NetworkPolicyIngressRule{From: c.peers(), Ports: c.ports()})
	}
	for range c.IntN(3) {
		o.Spec.Egress = append(o.Spec.Egress, &objectv1.NetworkPolicyEgressRule{To: c.peers(), Ports: c.ports()})
	}
	return o
}

func keyOf(o store.Object) store.Key {
	switch o.(type) {
	case *objectv1.Namespace:
		return store.KeyOf(planner.KindNamespace, o)
	case *objectv1.Pod:
		return store.KeyOf(planner.KindPod, o)
	case *objectv1.Node:
		return store.KeyOf("nodes", o)
	}
	return store.KeyOf(planner.KindPolicy, o)
}

func put(p *planner.Planner, o store.Object) {
	p.Put(store.Record{Key: keyOf(o), Object: o, Revision: 1})
}

func remove(p *planner.Planner, o store.Object) {
	p.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: keyOf(o)}})
}

// node is what one node holds, as its agent sees it.
type node struct{ *nodestate.Slice }

// judge is what the agent does with the rows: one direction of one pod.
func (n node) judge(uid string, d nodestate.Direction, peer netip.Addr, protocol nodestate.Protocol, port uint16) (bool, error) {
	row, ok := n.Get(nodestate.Ref{Table: nodestate.TableSubjects, Key: nodestate.Subject{PodUID: uid}.Key()})
	if !ok {
		return false, fmt.Errorf("no subject %s", uid)
	}
	side := row.(nodestate.Subject).Ingress
	if d == nodestate.Egress {
		side = row.(nodestate.Subject).Egress
	}
	if side.Mode == nodestate.SideOpen {
		return true, nil
	}
	var class *nodestate.Class
	if row, ok := n.Get(nodestate.Ref{Table: nodestate.TablePeers, Key: nodestate.Peer{Address: peer}.Key()}); ok {
		c := row.(nodestate.Peer).Class
		class = &c
	} else {
		found := 0
		n.Each(nodestate.TablePeerRanges, func(row nodestate.Row) {
			r := row.(nodestate.PeerRange)
			if r.From.BitLen() == peer.BitLen() && !peer.Less(r.From) && !r.To.Less(peer) {
				found++
				class = &r.Class
			}
		})
		if found > 1 {
			return false, fmt.Errorf("%d ranges contain %s", found, peer)
		}
	}
	allowed := false
	n.Each(nodestate.TableAllows, func(row nodestate.Row) {
		a := row.(nodestate.Allow)
		if a.Direction != d || a.Subject != side.Class || a.PeerMode == nodestate.PeerClass && (class == nil || a.Peer != *class) {
			return
		}
		switch a.PortMode {
		case nodestate.PortAny:
			allowed = true
		case nodestate.PortProtocol:
			allowed = allowed || a.Protocol == protocol
		case nodestate.PortRange:
			allowed = allowed || a.Protocol == protocol && a.From <= port && port <= a.To
		}
	})
	return allowed, nil
}

func addresses(p *objectv1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.GetStatus().GetPodIps() {
		out = append(out, netip.MustParseAddr(ip.GetIp()))
	}
	return out
}

func dump(o oracle) string {
	text := ""
	for _, x := range o.namespaces {
		text += protojson.Format(x) + "\n"
	}
	for _, x := range o.pods {
		text += protojson.Format(x) + "\n"
	}
	for _, x := range o.policies {
		text += protojson.Format(x) + "\n"
	}
	return text
}

// examination holds one cluster's verdicts against each other.
type examination struct {
	t      *testing.T
	o      oracle
	plan   *planner.Planner
	nodes  map[string]node
	probes int
	// yes counts the verdicts that allow, so that a test in which nothing is allowed is noticed.
	yes int
}

func examine(t *testing.T, o oracle) *examination {
	e := &examination{t: t, o: o, plan: planner.New(), nodes: map[string]node{}}
	for _, x := range o.policies {
		if bad := ruleset.ValidatePolicy(x); len(bad) > 0 {
			t.Fatalf("the generator makes invalid policies: %v", bad)
		}
		put(e.plan, x)
	}
	for _, x := range o.pods {
		put(e.plan, x)
	}
	for _, x := range o.namespaces {
		put(e.plan, x)
	}
	made, err := e.plan.Plan(1)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range made.PerNode {
		e.nodes[name] = node{s}
	}
	return e
}

type place struct {
	pod  *objectv1.Pod
	addr netip.Addr // invalid: the pod has none
}

func (e *examination) places() []place {
	out := []place{}
	for _, a := range []string{"203.0.113.9", "203.0.113.8", "10.0.0.200", "10.0.1.200", "255.255.255.255", "2001:db8::1", "fd00::1:9999"} {
		out = append(out, place{addr: netip.MustParseAddr(a)})
	}
	for _, p := range e.o.pods {
		if len(addresses(p)) == 0 {
			out = append(out, place{pod: p})
		}
		for _, a := range addresses(p) {
			out = append(out, place{p, a})
		}
	}
	return out
}

func (e *examination) all(r *rand.Rand) {
	places := e.places()
	for _, from := range places {
		for _, to := range places {
			if from.addr.IsValid() && to.addr.IsValid() && from.addr.BitLen() != to.addr.BitLen() {
				continue
			}
			for range 4 {
				protocol := []string{"TCP", "UDP", "SCTP"}[r.IntN(3)]
				port := []int{53, 80, 81, 90, 443}[r.IntN(5)]
				e.probe(flow{from.pod, to.pod, from.addr, to.addr, protocol, port})
			}
		}
	}
}

// party names a place by its address where that is enough, so that both ways of asking are tried.
func party(p *objectv1.Pod, a netip.Addr) ruleset.Party {
	if p == nil {
		return ruleset.Party{Address: a}
	}
	return ruleset.Party{Pod: ruleset.Ref{Namespace: p.GetMetadata().GetNamespace(), Name: p.GetMetadata().GetName()}}
}

func (e *examination) probe(f flow) {
	e.probes++
	protocol, _ := nodestate.ParseProtocol(f.protocol)
	wantOut, wantIn := e.o.egress(f), e.o.ingress(f)
	if wantOut && wantIn {
		e.yes++
	}
	if f.fromAddr.IsValid() && f.toAddr.IsValid() {
		e.rows(f, nodestate.Egress, f.from, f.toAddr, protocol, wantOut)
		e.rows(f, nodestate.Ingress, f.to, f.fromAddr, protocol, wantIn)
	}
	// A pod asked for by name is judged by one family, which need not be the one of this flow.
	if len(addresses(f.from)) > 1 || len(addresses(f.to)) > 1 {
		return
	}
	egress, ingress, err := e.plan.World().Explain(ruleset.Connection{
		From: party(f.from, f.fromAddr), To: party(f.to, f.toAddr), Protocol: protocol, Port: uint16(f.port),
	})
	if err != nil {
		e.t.Fatal(err)
	}
	own := ingress.Verdict == ruleset.OwnNode
	if own != (f.from.GetSpec().GetHostNetwork() && f.to != nil && !f.to.GetSpec().GetHostNetwork() && f.from.GetSpec().GetNodeName() != "" &&
		f.from.GetSpec().GetNodeName() == f.to.GetSpec().GetNodeName()) {
		e.t.Errorf("%+v: explain says own node: %v", f, own)
	}
	blind := f.from.GetSpec().GetHostNetwork() // its packets bear an address that Explain does not know
	if gotOut := egress.Verdict != ruleset.Denied; gotOut != wantOut {
		e.t.Fatalf("%+v: explain says egress %v, the oracle %v\n%s", f, gotOut, wantOut, dump(e.o))
	}
	if gotIn := ingress.Verdict != ruleset.Denied; gotIn != wantIn && !blind {
		e.t.Fatalf("%+v: explain says ingress %v, the oracle %v\n%s", f, gotIn, wantIn, dump(e.o))
	}
	for _, j := range []ruleset.Judgement{egress, ingress} {
		if (j.Verdict == ruleset.Allowed) != (len(j.Rules) > 0) || (j.Verdict == ruleset.Denied || j.Verdict == ruleset.Allowed) != (len(j.Policies) > 0) {
			e.t.Fatalf("%+v: a verdict without its reasons: %+v", f, j)
		}
	}
}

func (e *examination) rows(f flow, d nodestate.Direction, subject *objectv1.Pod, peer netip.Addr, protocol nodestate.Protocol, want bool) {
	if subject == nil || subject.GetSpec().GetNodeName() == "" || subject.GetSpec().GetHostNetwork() {
		return
	}
	got, err := e.nodes[subject.GetSpec().GetNodeName()].judge(subject.GetMetadata().GetUid(), d, peer, protocol, uint16(f.port))
	if err != nil || got != want {
		e.t.Fatalf("%+v: the rows say %s %v (%v), the oracle %v\n%s", f, d, got, err, want, dump(e.o))
	}
}

// TestOracle holds the compiled rows and Explain against the oracle, on random clusters.
func TestOracle(t *testing.T) {
	t.Parallel()
	probes, yes := 0, 0
	for seed := uint64(0); probes < 200_000; seed++ {
		r := cluster{rand.New(rand.NewPCG(seed, 7))}
		o := oracle{namespaces: []*objectv1.Namespace{r.namespace("n1"), r.namespace("n2")}}
		for i := range 2 + r.IntN(6) {
			o.pods = append(o.pods, r.pod(i))
		}
		for i := range r.IntN(6) {
			o.policies = append(o.policies, r.policy(i))
		}
		e := examine(t, o)
		e.all(r.Rand)
		probes, yes = probes+e.probes, yes+e.yes
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if yes < probes/10 || yes > probes*9/10 {
		t.Errorf("%d of %d flows are allowed: the clusters are one-sided", yes, probes)
	}
}

// follower applies plans as the nodes would.
type follower struct {
	*planner.Planner
	nodes map[string]*nodestate.Slice
}

func newFollower() follower { return follower{planner.New(), map[string]*nodestate.Slice{}} }

func (f follower) plan(t *testing.T) {
	p, err := f.Plan(1)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range p.PerNode {
		f.nodes[name] = s
	}
}

func (f follower) same(o follower) error {
	for _, name := range []string{"node-1", "node-2"} {
		a, b := f.nodes[name], o.nodes[name]
		if a == nil {
			a = nodestate.NewSlice()
		}
		if b == nil {
			b = nodestate.NewSlice()
		}
		if d := nodestate.Diff(a, b); !d.Empty() {
			return fmt.Errorf("%s differs: %+v", name, d)
		}
	}
	return nil
}

// TestHistoryDoesNotMatter plans random histories step by step, and holds what the nodes have then against the plan of
// a World that is made of the last state only, in another order, and against the same history run backwards to it.
func TestHistoryDoesNotMatter(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150) {
		r := cluster{rand.New(rand.NewPCG(seed, 11))}
		step, squashed := newFollower(), newFollower()
		present := map[store.Key]store.Object{}
		var history []map[store.Key]store.Object
		for range 60 {
			var o store.Object
			switch r.IntN(4) {
			case 0:
				o = r.namespace(r.one("n1", "n2", "ghost"))
			case 1, 2:
				o = r.pod(r.IntN(5))
			default:
				o = r.policy(r.IntN(4))
			}
			key := keyOf(o)
			if present[key] != nil && r.IntN(3) == 0 {
				remove(step.Planner, present[key])
				remove(squashed.Planner, present[key])
				delete(present, key)
			} else {
				put(step.Planner, o)
				put(squashed.Planner, o)
				present[key] = o
			}
			step.plan(t)
			history = append(history, clone(present))
		}
		squashed.plan(t)
		fresh := newFollower()
		for _, key := range shuffled(r.Rand, present) {
			put(fresh.Planner, present[key])
		}
		fresh.plan(t)
		if err := fresh.same(step); err != nil {
			t.Fatalf("seed %d: step by step: %v", seed, err)
		}
		if err := fresh.same(squashed); err != nil {
			t.Fatalf("seed %d: squashed: %v", seed, err)
		}
		for i := len(history) - 2; i >= 0; i -= 7 { // back to an earlier state, and compare with that one from scratch
			move(step, present, history[i])
			present = history[i]
			step.plan(t)
			then := newFollower()
			for _, o := range present {
				put(then.Planner, o)
			}
			then.plan(t)
			if err := then.same(step); err != nil {
				t.Fatalf("seed %d: back at step %d: %v", seed, i, err)
			}
		}
	}
}

func move(f follower, from, to map[store.Key]store.Object) {
	for key, o := range from {
		if to[key] == nil {
			remove(f.Planner, o)
		}
	}
	for key, o := range to {
		if from[key] != o {
			put(f.Planner, o)
		}
	}
}

func clone(m map[store.Key]store.Object) map[store.Key]store.Object {
	out := map[store.Key]store.Object{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

func shuffled(r *rand.Rand, m map[store.Key]store.Object) []store.Key {
	var keys []store.Key
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b store.Key) int { return strings.Compare(a.String(), b.String()) })
	r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return keys
}
