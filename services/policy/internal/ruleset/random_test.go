package ruleset_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/policytest"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/policy/internal/planner"
	"podwire.dev/services/policy/internal/ruleset"
)

// cluster makes random objects out of few words, so that they meet.
type cluster struct{ policytest.Random }

func newCluster(seed, stream uint64) cluster {
	return cluster{policytest.Random{Rand: rand.New(rand.NewPCG(seed, stream)), Words: policytest.Words{
		Namespaces: []string{"n1", "n2", "ghost"}, Numbers: []int{53, 80, 81, 443}, PortNames: []string{"web", "dns"},
		Protocols: []string{"TCP", "UDP", "SCTP"},
		Blocks: []*objectv1.IPBlock{
			{Cidr: "0.0.0.0/0"}, {Cidr: "10.0.0.0/8", Except: []string{"10.0.1.0/24"}}, {Cidr: "10.0.0.0/24", Except: []string{"10.0.0.12/32", "10.0.0.14/31"}},
			{Cidr: "::/0"}, {Cidr: "fd00::/16", Except: []string{"fd00::1:0/112"}}, {Cidr: "203.0.113.0/24"}, {Cidr: "203.0.113.9/32"}, {Cidr: "255.255.255.254/31"},
		},
	}}}
}

func (c cluster) namespace(name string) *objectv1.Namespace {
	return &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name, Labels: c.Labels()}}
}

func (c cluster) pod(i int) *objectv1.Pod {
	name := fmt.Sprintf("p%d", i)
	p := &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: c.One("n1", "n2", "ghost"), Name: name, Uid: "uid-" + name, Labels: c.Labels()},
		Spec:     &objectv1.PodSpec{NodeName: c.One("node-1", "node-2", "node-2", ""), HostNetwork: c.IntN(8) == 0},
		Status:   &objectv1.PodStatus{Phase: c.One("Running", "Running", "Running", "Pending", "Succeeded")},
	}
	for range c.IntN(3) {
		port := &objectv1.ContainerPort{Name: c.One("web", "dns", ""), ContainerPort: int32(c.Number()), Protocol: new(c.One("TCP", "UDP", "SCTP"))}
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

func dump(o policytest.Oracle) string {
	text := ""
	for _, x := range o.Namespaces {
		text += protojson.Format(x) + "\n"
	}
	for _, x := range o.Pods {
		text += protojson.Format(x) + "\n"
	}
	for _, x := range o.Policies {
		text += protojson.Format(x) + "\n"
	}
	return text
}

// examination holds one cluster's verdicts against each other.
type examination struct {
	t      *testing.T
	o      policytest.Oracle
	plan   *planner.Planner
	nodes  map[string]node
	probes int
	// yes counts the verdicts that allow, so that a test in which nothing is allowed is noticed.
	yes int
}

func examine(t *testing.T, o policytest.Oracle) *examination {
	e := &examination{t: t, o: o, plan: planner.New(), nodes: map[string]node{}}
	for _, x := range o.Policies {
		if bad := ruleset.ValidatePolicy(x); len(bad) > 0 {
			t.Fatalf("the generator makes invalid policies: %v", bad)
		}
		put(e.plan, x)
	}
	for _, x := range o.Pods {
		put(e.plan, x)
	}
	for _, x := range o.Namespaces {
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

func between(from, to place, protocol string, port int) policytest.Flow {
	return policytest.Flow{From: from.pod, To: to.pod, FromAddr: from.addr, ToAddr: to.addr, Protocol: protocol, Port: port}
}

func (e *examination) places() []place {
	out := []place{}
	for _, a := range []string{"203.0.113.9", "203.0.113.8", "10.0.0.200", "10.0.1.200", "255.255.255.255", "2001:db8::1", "fd00::1:9999"} {
		out = append(out, place{addr: netip.MustParseAddr(a)})
	}
	for _, p := range e.o.Pods {
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
				e.probe(between(from, to, protocol, port))
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

func (e *examination) probe(f policytest.Flow) {
	e.probes++
	protocol, _ := nodestate.ParseProtocol(f.Protocol)
	wantOut, wantIn := e.o.Egress(f), e.o.Ingress(f)
	if wantOut && wantIn {
		e.yes++
	}
	if f.FromAddr.IsValid() && f.ToAddr.IsValid() {
		e.rows(f, nodestate.Egress, f.From, f.ToAddr, protocol, wantOut)
		e.rows(f, nodestate.Ingress, f.To, f.FromAddr, protocol, wantIn)
	}
	// A pod asked for by name is judged by one family, which need not be the one of this flow.
	if len(addresses(f.From)) > 1 || len(addresses(f.To)) > 1 {
		return
	}
	egress, ingress, err := e.plan.World().Explain(ruleset.Connection{
		From: party(f.From, f.FromAddr), To: party(f.To, f.ToAddr), Protocol: protocol, Port: uint16(f.Port),
	})
	if err != nil {
		e.t.Fatal(err)
	}
	own := ingress.Verdict == ruleset.OwnNode
	if own != (f.From.GetSpec().GetHostNetwork() && f.To != nil && !f.To.GetSpec().GetHostNetwork() && f.From.GetSpec().GetNodeName() != "" &&
		f.From.GetSpec().GetNodeName() == f.To.GetSpec().GetNodeName()) {
		e.t.Errorf("%+v: explain says own node: %v", f, own)
	}
	blind := f.From.GetSpec().GetHostNetwork() // its packets bear an address that Explain does not know
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

func (e *examination) rows(f policytest.Flow, d nodestate.Direction, subject *objectv1.Pod, peer netip.Addr, protocol nodestate.Protocol, want bool) {
	if subject == nil || subject.GetSpec().GetNodeName() == "" || subject.GetSpec().GetHostNetwork() {
		return
	}
	got, err := e.nodes[subject.GetSpec().GetNodeName()].judge(subject.GetMetadata().GetUid(), d, peer, protocol, uint16(f.Port))
	if err != nil || got != want {
		e.t.Fatalf("%+v: the rows say %s %v (%v), the oracle %v\n%s", f, d, got, err, want, dump(e.o))
	}
}

// TestOracle holds the compiled rows and Explain against the oracle, on random clusters.
func TestOracle(t *testing.T) {
	t.Parallel()
	probes, yes := 0, 0
	for seed := uint64(0); probes < 200_000; seed++ {
		r := newCluster(seed, 7)
		o := policytest.Oracle{Namespaces: []*objectv1.Namespace{r.namespace("n1"), r.namespace("n2")}}
		for i := range 2 + r.IntN(6) {
			o.Pods = append(o.Pods, r.pod(i))
		}
		for i := range r.IntN(6) {
			o.Policies = append(o.Policies, r.Policy(fmt.Sprintf("np%d", i)))
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
		r := newCluster(seed, 11)
		step, squashed := newFollower(), newFollower()
		present := map[store.Key]store.Object{}
		var history []map[store.Key]store.Object
		for range 60 {
			var o store.Object
			switch r.IntN(4) {
			case 0:
				o = r.namespace(r.One("n1", "n2", "ghost"))
			case 1, 2:
				o = r.pod(r.IntN(5))
			default:
				o = r.Policy(fmt.Sprintf("np%d", r.IntN(4)))
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
