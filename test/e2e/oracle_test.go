package e2e

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"podwire.dev/internal/manifest"
	"podwire.dev/internal/policytest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of random drills; 0 takes another one each time")
	roundsFlag = flag.Int("rounds", 6, "rounds of TestPolicyOracle")
)

// seed is printed, so that a failure can be had again.
func seed(t *testing.T) uint64 {
	n := *seedFlag
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (go test -run %s -seed %d)", n, t.Name(), n)
	return n
}

// The random cluster's pods, and the ports on which each listens in both protocols.
const oraclePods = 8

var (
	oracleNamespaces = []string{"oracle-1", "oracle-2", "oracle-3"}
	oraclePorts      = []int{53, 80, 81, 443}
)

// oracleRound is one random cluster on the running instance.
type oracleRound struct {
	t *testing.T
	policytest.Random
	oracle  policytest.Oracle
	outside []netip.Addr
	// nodes are the addresses of their tunnels, which other nodes' pods see; underlay those that the outside sees.
	nodes    map[string][]netip.Addr
	underlay map[string][]string
	// services are the addresses of each pod's Service, by the pod's name.
	services map[string][]string
	// differences counts where packets or explain disagree with the oracle.
	mu                 sync.Mutex
	probes, yes, asked int
}

// TestPolicyOracle sends packets through random clusters with random policies, and wants what the naive oracle says.
func TestPolicyOracle(t *testing.T) {
	n := seed(t)
	shared.startListener(t, ":80")
	o := &oracleRound{t: t, Random: policytest.Random{Rand: rand.New(rand.NewPCG(n, 0))}, nodes: map[string][]netip.Addr{},
		underlay: map[string][]string{}, services: map[string][]string{}}
	for _, a := range shared.addressesOf(t, outside(), "eth0") {
		o.outside = append(o.outside, netip.MustParseAddr(a))
	}
	for _, node := range shared.nodes(t) {
		o.underlay[node] = shared.nodeAddresses(t, node)
		for _, a := range shared.addressesOf(t, onNode(node), "pwvx") {
			o.nodes[node] = append(o.nodes[node], netip.MustParseAddr(a))
		}
	}
	o.Words = policytest.Words{
		Namespaces: oracleNamespaces, Numbers: oraclePorts, PortNames: []string{"web", "dns"}, Protocols: []string{"TCP", "UDP"},
	}
	t.Cleanup(func() { shared.remove(t, o.namespaces()) })
	shared.apply(t, o.namespaces()+o.pods())
	o.read()
	for _, p := range o.oracle.Pods {
		o.services[p.GetMetadata().GetName()] = shared.service(t, p.GetMetadata().GetNamespace(), p.GetMetadata().GetName()).Spec.ClusterIPs
	}
	before := ""
	for round := range *roundsFlag {
		change := o.namespaces() + o.relabelled(round)
		o.read() // for the addresses of the pod that was replaced
		text := o.policies()
		if before != "" {
			shared.remove(t, before)
		}
		shared.apply(t, change+text)
		before = text
		o.read()
		o.packets(round)
		o.explain(round)
		if t.Failed() {
			t.Fatalf("round %d\n%s", round, change+text)
		}
	}
	t.Logf("%d probes and %d explanations in %d rounds agree with the oracle; %d probes were allowed", o.probes, o.asked, *roundsFlag, o.yes)
	if o.yes < o.probes/10 || o.yes > o.probes*9/10 {
		t.Errorf("%d of %d probes were allowed: the clusters are one-sided", o.yes, o.probes)
	}
}

func (o *oracleRound) namespaces() string {
	var b strings.Builder
	for _, ns := range oracleNamespaces {
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {%s}}}\n", ns, inline(o.Labels()))
	}
	return b.String()
}

// pods are all pods, each with a Service of its own.
func (o *oracleRound) pods() string {
	var b strings.Builder
	for n := range oraclePods {
		name, ns := fmt.Sprintf("p%d", n), oracleNamespaces[n%len(oracleNamespaces)]
		b.WriteString(o.pod(ns, name, fmt.Sprintf("node-%d", n/3%3+1)))
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: %s}, spec: {ipFamilyPolicy: PreferDualStack, selector: {pod: %s}, "+
			"ports: [{name: t, port: 8000, targetPort: 81}, {name: u, port: 8000, protocol: UDP, targetPort: 53}]}}\n", name, ns, name)
	}
	return b.String()
}

// pod has random labels; which of its ports is "web" and which "dns" is random as well.
func (o *oracleRound) pod(ns, name, node string) string {
	var ports []string
	web, dns := o.IntN(2*len(oraclePorts)), o.IntN(2*len(oraclePorts))
	for n := range 2 * len(oraclePorts) {
		text := fmt.Sprintf("containerPort: %d, protocol: %s", oraclePorts[n/2], []string{"TCP", "UDP"}[n%2])
		if n == web {
			text += ", name: web"
		} else if n == dns {
			text += ", name: dns"
		}
		ports = append(ports, "{"+text+"}")
	}
	labels := o.Labels()
	labels["pod"] = name
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s, labels: {%s}}, spec: {nodeName: %s, "+
		"terminationGracePeriodSeconds: 1, containers: [{name: echo, image: podwire.dev/echo, ports: [%s]}]}}\n",
		name, ns, inline(labels), node, strings.Join(ports, ", "))
}

// relabelled gives every pod other labels; one of them is another pod of the same name, on another node.
func (o *oracleRound) relabelled(round int) string {
	var b strings.Builder
	for n, p := range o.oracle.Pods {
		ns, name := p.GetMetadata().GetNamespace(), p.GetMetadata().GetName()
		if n == round%len(o.oracle.Pods) {
			shared.must(o.t, "delete", "pod", name, "-n", ns, "--wait")
			shared.apply(o.t, o.pod(ns, name, fmt.Sprintf("node-%d", o.IntN(3)+1)))
			continue
		}
		p.Status = nil
		p.Metadata.ResourceVersion = ""
		p.Metadata.Labels = o.Labels()
		p.Metadata.Labels["pod"] = name
		b.WriteString(document(o.t, p))
	}
	return b.String()
}

func document(t *testing.T, m manifest.Message) string {
	t.Helper()
	text, err := manifest.Encode(m, manifest.YAML)
	if err != nil {
		t.Fatal(err)
	}
	return "---\n" + string(text)
}

// policies are new ones. Their blocks are made of addresses that are there.
func (o *oracleRound) policies() string {
	o.Words.Blocks = o.blocks()
	o.oracle.Policies = nil
	var b strings.Builder
	for n := range 2 + o.IntN(6) {
		p := o.Policy(fmt.Sprintf("np%d", n))
		p.ApiVersion, p.Kind = "networking.k8s.io/v1", "NetworkPolicy"
		o.oracle.Policies = append(o.oracle.Policies, p)
		b.WriteString(document(o.t, p))
	}
	return b.String()
}

func (o *oracleRound) blocks() []*objectv1.IPBlock {
	out := []*objectv1.IPBlock{{Cidr: "0.0.0.0/0"}, {Cidr: "::/0"}}
	for family, bits := range []int{26, 122} {
		whole := []string{"10.244.0.0/16", "fd00:10:244::/48"}[family]
		single := func(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
		for range 2 {
			a := podAddresses(o.oracle.Pods[o.IntN(len(o.oracle.Pods))])[family]
			block, _ := a.Prefix(bits)
			half, _ := a.Prefix(bits + 4)
			out = append(out, &objectv1.IPBlock{Cidr: single(a)}, &objectv1.IPBlock{Cidr: block.String(), Except: []string{single(a)}},
				&objectv1.IPBlock{Cidr: whole, Except: []string{half.String()}})
		}
		out = append(out, &objectv1.IPBlock{Cidr: single(o.outside[family])},
			&objectv1.IPBlock{Cidr: single(o.nodes[[]string{"node-1", "node-2", "node-3"}[o.IntN(3)]][family])})
	}
	return out
}

// read takes the objects as they are in the store. The policies stay those that were made here.
func (o *oracleRound) read() {
	o.t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		o.t.Fatal(err)
	}
	o.oracle.Namespaces, o.oracle.Pods = nil, nil
	for _, what := range [][]string{{"namespaces"}, {"pods", "-A"}} {
		out := shared.must(o.t, append(append([]string{"get"}, what...), "-o", "yaml")...)
		objects, err := manifest.Parse(kinds, what[0], strings.NewReader(out), manifest.DefaultLimits())
		if err != nil {
			o.t.Fatal(err)
		}
		for _, x := range objects {
			switch m := x.Message.(type) {
			case *objectv1.Namespace:
				o.oracle.Namespaces = append(o.oracle.Namespaces, m)
			case *objectv1.Pod:
				if slices.Contains(oracleNamespaces, m.GetMetadata().GetNamespace()) {
					o.oracle.Pods = append(o.oracle.Pods, m)
				}
			}
		}
	}
	if len(o.oracle.Pods) != oraclePods {
		o.t.Fatalf("%d pods", len(o.oracle.Pods))
	}
}

// podAddresses are a pod's, IPv4 first.
func podAddresses(p *objectv1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, a := range p.GetStatus().GetPodIps() {
		out = append(out, netip.MustParseAddr(a.GetIp()))
	}
	return out
}

// expected is one probe, and what has to come of it.
type expected struct {
	question
	flow policytest.Flow
	// reaches says that the packet arrives; the answer then begins with answer.
	reaches bool
	answer  string
}

// packets probes every pair of pods in both families and protocols on every port, each pod's Service, and pods from nodes
// and to the outside.
func (o *oracleRound) packets(round int) {
	places := map[string][]expected{}
	for _, p := range o.oracle.Pods {
		places[p.GetMetadata().GetNamespace()+"/"+p.GetMetadata().GetName()] = o.fromPod(p)
	}
	for node := range o.nodes {
		places[node] = o.fromNode(node)
	}
	var all sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(places)) {
		from := onNode(name)
		if ns, pod, ok := strings.Cut(name, "/"); ok {
			from = inPod(ns, pod)
		}
		all.Go(func() { o.probe(round, from, places[name]) })
	}
	all.Wait()
}

func (o *oracleRound) probe(round int, from place, list []expected) {
	var questions []question
	for _, e := range list {
		questions = append(questions, e.question)
	}
	replies := shared.ask(o.t, from, 2*time.Second, questions)
	o.mu.Lock()
	defer o.mu.Unlock()
	for n, e := range list {
		o.probes++
		if e.reaches {
			o.yes++
		}
		r := replies[n]
		if e.reaches && strings.HasPrefix(r.Line, e.answer) || !e.reaches && r.Failure == silence {
			continue
		}
		o.t.Errorf("round %d: %v -> %s %s: %s; the oracle: egress %v, ingress %v, want %v %s", round, from, e.Protocol, e.Target, r,
			o.oracle.Egress(e.flow), o.oracle.Ingress(e.flow), e.reaches, e.answer)
	}
}

func (o *oracleRound) fromPod(p *objectv1.Pod) []expected {
	var out []expected
	own := podAddresses(p)
	for _, to := range o.oracle.Pods {
		vips := o.services[to.GetMetadata().GetName()]
		for family, a := range podAddresses(to) {
			f := policytest.Flow{From: p, To: to, FromAddr: own[family], ToAddr: a}
			seen := own[family].String()
			if p == to {
				seen = "" // of itself a pod sees its node through a Service
			} else {
				out = append(out, o.everyPort(f, seen)...)
			}
			for protocol, port := range map[string]int{"TCP": 81, "UDP": 53} {
				e := o.expect(f, protocol, port, seen)
				e.Target, e.reaches = net.JoinHostPort(vips[family], "8000"), e.reaches || p == to
				out = append(out, e)
			}
		}
	}
	for family, a := range o.outside {
		e := o.expect(policytest.Flow{From: p, FromAddr: own[family], ToAddr: a}, "TCP", 80, "")
		e.answer = "listener " + o.underlay[p.GetSpec().GetNodeName()][family] // masqueraded
		out = append(out, e)
	}
	return out
}

func (o *oracleRound) fromNode(node string) []expected {
	var out []expected
	for _, to := range o.oracle.Pods {
		for family, a := range podAddresses(to) {
			list := o.everyPort(policytest.Flow{To: to, FromAddr: o.nodes[node][family], ToAddr: a}, "")
			for n := range list {
				list[n].reaches = list[n].reaches || to.GetSpec().GetNodeName() == node
			}
			out = append(out, list...)
		}
	}
	return out
}

// everyPort are the probes of one pair in one family. The pod sees the client at the address seen.
func (o *oracleRound) everyPort(f policytest.Flow, seen string) []expected {
	var out []expected
	for _, protocol := range []string{"TCP", "UDP"} {
		for _, port := range oraclePorts {
			out = append(out, o.expect(f, protocol, port, seen))
		}
	}
	return out
}

func (o *oracleRound) expect(f policytest.Flow, protocol string, port int, seen string) expected {
	f.Protocol, f.Port = protocol, port
	return expected{
		question: question{strings.ToLower(protocol), net.JoinHostPort(f.ToAddr.String(), strconv.Itoa(port))}, flow: f,
		reaches: o.oracle.Allowed(f), answer: f.To.GetMetadata().GetName() + " " + seen,
	}
}

// explanations is how many questions are put to `podwire explain` in each round, and explainers how many at once.
const (
	explanations = 40
	explainers   = 4
)

// explain asks by name and by address; of a name the first family is judged.
func (o *oracleRound) explain(round int) {
	var all sync.WaitGroup
	slots := make(chan struct{}, explainers)
	for range explanations {
		from, to := o.oracle.Pods[o.IntN(oraclePods)], o.oracle.Pods[o.IntN(oraclePods)]
		if from == to {
			continue
		}
		family := 0
		a, b := "pod/"+from.GetMetadata().GetNamespace()+"/"+from.GetMetadata().GetName(), "pod/"+to.GetMetadata().GetNamespace()+"/"+to.GetMetadata().GetName()
		a = strings.TrimPrefix(a, "pod/")
		f := policytest.Flow{From: from, To: to, Protocol: o.One("TCP", "UDP"), Port: o.Number()}
		port := strconv.Itoa(f.Port)
		target := b + ":" + port
		if o.IntN(2) == 0 {
			family = o.IntN(2)
			a, target = podAddresses(from)[family].String(), net.JoinHostPort(podAddresses(to)[family].String(), port)
		}
		f.FromAddr, f.ToAddr = podAddresses(from)[family], podAddresses(to)[family]
		target += "/" + f.Protocol
		o.asked++
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			answer := shared.run("explain", a, target)
			want := 1
			if o.oracle.Allowed(f) {
				want = 0
			}
			if answer.code != want || strings.Contains(answer.out, "DIFFERS") {
				o.t.Errorf("round %d: podwire explain %s %s: exit %d; the oracle: egress %v, ingress %v\n%s%s", round, a, target, answer.code,
					o.oracle.Egress(f), o.oracle.Ingress(f), answer.out, answer.err)
			}
		})
	}
	all.Wait()
}
