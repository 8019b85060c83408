package lb_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
)

func p[T any](v T) *T { return &v }

// TestHistories runs random histories: after each step the incremental World has the rows of a World built from scratch
// in another order, what is stored lacks nothing, and the endpoints are those that a naive oracle finds.
func TestHistories(t *testing.T) {
	const runs = 60
	partial := 0
	for seed := range runs {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			s := newSim(t)
			for range 120 {
				for range 1 + r.IntN(3) {
					randomStep(r, s)
				}
				s.settle()
				checkScratch(t, r, s)
				checkOracle(t, s)
				if t.Failed() {
					return
				}
			}
			partial += s.partial
		})
	}
	if partial == 0 && !t.Failed() {
		t.Error("nothing was planned from what changed alone")
	}
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func randomStep(r *rand.Rand, s *sim) {
	ns := pick(r, "a", "b")
	switch r.IntN(10) {
	case 0, 1:
		s.put(randomService(r, ns, s))
	case 2:
		s.remove("service", lb.Ref{Namespace: ns, Name: pick(r, "x", "y", "z")})
	case 3, 4, 5:
		s.put(randomPod(r, ns))
	case 6:
		s.remove("pod", lb.Ref{Namespace: ns, Name: fmt.Sprint("p", r.IntN(8))})
	case 7:
		name := pick(r, "n1", "n2", "n3")
		if r.IntN(4) == 0 {
			s.remove("node", lb.Ref{Name: name})
			return
		}
		s.put(&objectv1.Node{
			Metadata: &objectv1.ObjectMeta{Name: name, Labels: map[string]string{lb.LabelZone: pick(r, "u", "v")}},
			Status:   &objectv1.NodeStatus{Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: pick(r, "True", "True", "False")}}},
		})
	case 8:
		name := pick(r, "hand-1", "hand-2")
		s.put(&objectv1.EndpointSlice{
			Metadata:    &objectv1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{lb.LabelServiceName: pick(r, "x", "y", "z")}},
			AddressType: "IPv4", Ports: []*objectv1.EndpointPort{{Port: p(int32(8000 + r.IntN(2)))}},
			Endpoints: []*objectv1.Endpoint{{
				Addresses:  []string{fmt.Sprintf("192.0.2.%d", 1+r.IntN(3))},
				Conditions: &objectv1.EndpointConditions{Ready: p(r.IntN(2) == 0), Serving: p(r.IntN(2) == 0), Terminating: p(r.IntN(2) == 0)},
			}},
		})
	case 9: // somebody meddles with a slice
		if refs := slices.SortedFunc(maps.Keys(s.slices), lb.Ref.Compare); len(refs) > 0 {
			ref := pick(r, refs...)
			if o := proto.Clone(s.slices[ref]).(*objectv1.EndpointSlice); r.IntN(2) == 0 && len(o.Endpoints) > 0 {
				o.Endpoints = o.Endpoints[1:]
				s.put(o)
				return
			}
			s.remove("endpointslice", ref)
		}
	}
}

func randomService(r *rand.Rand, ns string, s *sim) *objectv1.Service {
	ref := lb.Ref{Namespace: ns, Name: pick(r, "x", "y", "z")}
	o := &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: ref.Name},
		Spec: &objectv1.ServiceSpec{
			ClusterIp: "10.96.0." + fmt.Sprint(10+int(ref.Name[0]-'w')+10*int(ns[0]-'a')),
			Type:      p(pick(r, "ClusterIP", "NodePort", "LoadBalancer")), PublishNotReadyAddresses: r.IntN(6) == 0,
			Ports: []*objectv1.ServicePort{{Port: 80, TargetPort: pick(r, structpb.NewStringValue("http"), structpb.NewNumberValue(8080))}},
		},
	}
	if old := s.services[ref]; old != nil {
		o.Spec.ClusterIp = "" // what it has
		if r.IntN(3) == 0 {
			o.Metadata.Uid = old.GetMetadata().GetUid() + "+" // made anew meanwhile
		} else {
			o.Metadata.Uid = old.GetMetadata().GetUid()
		}
	}
	if r.IntN(4) > 0 {
		o.Spec.Selector = map[string]string{"app": pick(r, "x", "y")}
		if r.IntN(3) == 0 {
			o.Spec.Selector["tier"] = "1"
		}
	}
	if r.IntN(3) == 0 && o.Spec.GetType() != "ClusterIP" {
		o.Spec.ExternalTrafficPolicy = p("Local")
	}
	if o.Spec.GetType() == "LoadBalancer" {
		o.Status = &objectv1.ServiceStatus{LoadBalancer: &objectv1.LoadBalancerStatus{
			Ingress: []*objectv1.LoadBalancerIngress{{Ip: "198.51.100." + fmt.Sprint(int(ref.Name[0]-'w')+10*int(ns[0]-'a'))}},
		}}
	}
	return o
}

func randomPod(r *rand.Rand, ns string) *objectv1.Pod {
	n := r.IntN(8)
	o := &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("p", n), Uid: fmt.Sprint(ns, n, "-", r.IntN(2)), Labels: map[string]string{"app": pick(r, "x", "y")}},
		Spec: &objectv1.PodSpec{NodeName: pick(r, "n1", "n2", "n3"), Containers: []*objectv1.Container{{
			Name: "c", Ports: []*objectv1.ContainerPort{{Name: pick(r, "http", "http", "other"), ContainerPort: pick(r, int32(8080), 9090)}},
		}}},
		Status: &objectv1.PodStatus{
			PodIps:     []*objectv1.PodIP{{Ip: fmt.Sprintf("10.244.%d.%d", ns[0]-'a', n+1)}},
			Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: pick(r, "True", "True", "False")}},
			Phase:      pick(r, "Running", "Running", "Running", "Failed"),
		},
	}
	if r.IntN(3) == 0 {
		o.Metadata.Labels["tier"] = "1"
	}
	if r.IntN(5) == 0 {
		o.Metadata.DeletionTimestamp = &timestamppb.Timestamp{Seconds: 1}
	}
	return o
}

// checkScratch builds a World of what is stored, in random order, and compares.
func checkScratch(t *testing.T, r *rand.Rand, s *sim) {
	t.Helper()
	w := lb.NewWorld()
	var puts []func()
	for _, o := range s.services {
		puts = append(puts, func() { w.SetService(lb.ParseService(o)) })
	}
	for _, o := range s.slices {
		puts = append(puts, func() { w.SetSlice(lb.ParseSlice(o)) })
	}
	for _, o := range s.pods {
		puts = append(puts, func() {
			if pod, ok := lb.ParsePod(o); ok {
				w.SetPod(pod)
			}
		})
	}
	for _, o := range s.nodes {
		puts = append(puts, func() { w.SetNode(lb.ParseNode(o)) })
	}
	r.Shuffle(len(puts), func(i, j int) { puts[i], puts[j] = puts[j], puts[i] })
	for _, put := range puts {
		put()
	}
	refs := w.Dirty()
	for ref := range s.rows {
		if !slices.Contains(refs, ref) {
			t.Errorf("%s has rows and does not exist", ref)
		}
	}
	for _, ref := range refs {
		plan := w.Plan(ref)
		if len(plan.Writes) > 0 || len(plan.Stale) > 0 || plan.Move {
			t.Errorf("%s is not settled: %+v", ref, plan)
		}
		want, got := nodestate.NewSlice(plan.Rows...), nodestate.NewSlice(s.rows[ref]...)
		if d := nodestate.Diff(got, want); !d.Empty() || len(plan.Rows) != want.Len() {
			t.Errorf("%s: rows differ from scratch: %+v", ref, d)
		}
	}
}

// checkOracle finds each Service's endpoints the slow way.
func checkOracle(t *testing.T, s *sim) {
	t.Helper()
	for ref, service := range s.services {
		best := map[string]nodestate.EndpointState{}
		add := func(addr string, port int32, ready, serving, terminating bool) {
			key := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)).String()
			switch {
			case ready:
				best[key] = nodestate.EndpointReady
			case serving && terminating && best[key] == 0:
				best[key] = nodestate.EndpointTerminating
			}
		}
		for _, pod := range s.pods {
			if refOf(pod).Namespace == ref.Namespace && len(service.Spec.Selector) > 0 && contained(service.Spec.Selector, pod.Metadata.Labels) {
				oraclePod(service, pod, add)
			}
		}
		for at, x := range s.slices {
			if at.Namespace != ref.Namespace || !strings.HasPrefix(at.Name, "hand-") || x.Metadata.Labels[lb.LabelServiceName] != ref.Name {
				continue
			}
			for _, e := range x.Endpoints {
				add(e.Addresses[0], x.Ports[0].GetPort(), e.Conditions.GetReady(), e.Conditions.GetServing(), e.Conditions.GetTerminating())
			}
		}
		got := map[string]nodestate.EndpointState{}
		for _, row := range s.rows[ref] {
			if e, ok := row.(nodestate.Endpoint); ok {
				got[netip.AddrPortFrom(e.Address, e.Backend).String()] = e.State
			}
		}
		if !maps.Equal(got, best) {
			t.Errorf("%s: endpoints %v, the oracle has %v", ref, got, best)
		}
	}
}

func oraclePod(service *objectv1.Service, pod *objectv1.Pod, add func(string, int32, bool, bool, bool)) {
	if pod.Status.Phase == "Failed" {
		return
	}
	port := int32(8080)
	if service.Spec.Ports[0].TargetPort.GetStringValue() != "" {
		c := pod.Spec.Containers[0].Ports[0]
		if port = c.ContainerPort; c.Name != "http" {
			return
		}
	}
	ready := pod.Status.Conditions[0].Status == "True"
	ending := pod.Metadata.DeletionTimestamp != nil
	add(pod.Status.PodIps[0].Ip, port, service.Spec.PublishNotReadyAddresses || ready && !ending, ready, ending)
}

func contained(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func manyPods(s *sim, from, to int, app string) {
	for i := from; i < to; i++ {
		s.put(&objectv1.Pod{
			Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("pod-%04d", i), Labels: map[string]string{"app": app}},
			Spec:     &objectv1.PodSpec{NodeName: "n"},
			Status: &objectv1.PodStatus{
				PodIp:      netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}).String(),
				Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}},
			},
		})
	}
}

func selecting(name string) *objectv1.Service {
	return &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name},
		Spec: &objectv1.ServiceSpec{
			ClusterIp: "10.96.0.9", Selector: map[string]string{"app": name}, Ports: []*objectv1.ServicePort{{Port: 80}},
		},
	}
}

// TestPacking: at most 100 endpoints in a slice, and one Pod's change writes one slice.
func TestPacking(t *testing.T) {
	s := newSim(t)
	s.put(selecting("web"))
	manyPods(s, 0, 250, "web")
	s.settle()
	sizes := func() []int {
		var out []int
		for _, x := range s.slices {
			out = append(out, len(x.Endpoints))
		}
		slices.Sort(out)
		return out
	}
	if got := sizes(); !slices.Equal(got, []int{50, 100, 100}) {
		t.Fatalf("sizes %v", got)
	}
	for _, step := range []struct {
		name   string
		do     func()
		writes int
		sizes  []int
	}{
		{"one more", func() { manyPods(s, 250, 251, "web") }, 1, []int{51, 100, 100}},
		{"one gone", func() { s.remove("pod", lb.Ref{Namespace: "default", Name: "pod-0000"}) }, 1, []int{51, 99, 100}},
		{"replaced", func() {
			s.remove("pod", lb.Ref{Namespace: "default", Name: "pod-0001"})
			manyPods(s, 251, 252, "web")
		}, 1, []int{51, 99, 100}},
		{"another's", func() { manyPods(s, 300, 301, "other") }, 0, []int{51, 99, 100}},
		{"fifty more", func() { manyPods(s, 400, 450, "web") }, 2, []int{100, 100, 100}},
		{"and one", func() { manyPods(s, 450, 451, "web") }, 1, []int{1, 100, 100, 100}},
	} {
		s.written = nil
		step.do()
		s.settle()
		if len(s.written) != step.writes {
			t.Errorf("%s: wrote %v", step.name, s.written)
		}
		if got := sizes(); !slices.Equal(got, step.sizes) {
			t.Errorf("%s: sizes %v, want %v", step.name, got, step.sizes)
		}
	}
}

// TestUnrelated: what does not concern a Service makes none dirty.
func TestUnrelated(t *testing.T) {
	s := newSim(t)
	s.put(selecting("web"))
	manyPods(s, 0, 2, "web")
	s.put(&objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "n"}})
	s.settle()
	again := proto.Clone(s.pods[lb.Ref{Namespace: "default", Name: "pod-0000"}]).(*objectv1.Pod)
	again.Metadata.Annotations = map[string]string{"seen": "again"}
	s.put(again)
	manyPods(s, 10, 12, "other")
	s.put(&objectv1.Node{
		Metadata: &objectv1.ObjectMeta{Name: "n"},
		Status:   &objectv1.NodeStatus{Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "True"}}},
	})
	s.put(&objectv1.EndpointSlice{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "nobodys"}, AddressType: "IPv4"})
	if dirty := s.world.Dirty(); len(dirty) > 0 {
		t.Errorf("dirty: %v", dirty)
	}
}

// BenchmarkOneEndpoint is one Pod that turns unready and ready again, through both plans of its Service, among others.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("%d-services", n), func(b *testing.B) {
			s := newSim(b)
			for i := range n {
				name := fmt.Sprintf("s%d", i)
				s.put(selecting(name))
				manyPodsOf(s, name, i)
			}
			s.settle()
			pod := s.pods[lb.Ref{Namespace: "default", Name: "s1-0"}]
			b.ResetTimer()
			for i := range b.N {
				o := proto.Clone(pod).(*objectv1.Pod)
				o.Status.Conditions[0].Status = []string{"False", "True"}[i%2]
				s.put(o)
				s.settle()
				s.written = s.written[:0]
			}
		})
	}
}

func manyPodsOf(s *sim, app string, service int) {
	for i := range 10 {
		n := service*10 + i
		s.put(&objectv1.Pod{
			Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("%s-%d", app, i), Labels: map[string]string{"app": app}},
			Status: &objectv1.PodStatus{
				PodIp:      netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}).String(),
				Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}},
			},
		})
	}
}

// TestOneEndpointCostsOneEndpoint compares what one Pod that turns unready and ready again costs a Service of 300 Pods with what
// it costs one of 3,000.
func TestOneEndpointCostsOneEndpoint(t *testing.T) {
	cost := func(pods int) float64 {
		s, pod := bigService(t, pods)
		s.quick = true
		step := turning(s, pod)
		step()
		return testing.AllocsPerRun(10, step)
	}
	few, many := cost(300), cost(3000)
	if many > 1.2*few {
		t.Errorf("%.0f allocations among 300 Pods, %.0f among 3,000", few, many)
	}
}

func bigService(t testing.TB, pods int) (*sim, *objectv1.Pod) {
	s := newSim(t)
	s.quick = true
	s.put(selecting("web"))
	manyPods(s, 0, pods, "web")
	s.settle()
	return s, s.pods[lb.Ref{Namespace: "default", Name: "pod-0007"}]
}

// turning turns a Pod unready or ready again, each time that it is called.
func turning(s *sim, pod *objectv1.Pod) func() {
	i := 0
	return func() {
		o := proto.Clone(pod).(*objectv1.Pod)
		o.Status.Conditions[0].Status = []string{"False", "True"}[i%2]
		i++
		s.put(o)
		s.settle()
		s.written = s.written[:0]
	}
}

// BenchmarkOneEndpointOfMany is one Pod that turns unready and ready again, through both plans of its Service.
func BenchmarkOneEndpointOfMany(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, pod := bigService(b, n)
			step := turning(s, pod)
			for b.Loop() {
				step()
			}
		})
	}
}

// TestAReadyNodeAnnounces: an address of policy Local moves from a Node whose endpoint ends to one whose endpoint is ready, when
// that Node becomes able to announce.
func TestAReadyNodeAnnounces(t *testing.T) {
	s := newSim(t)
	node := func(name, ready string) {
		s.put(&objectv1.Node{
			Metadata: &objectv1.ObjectMeta{Name: name},
			Status:   &objectv1.NodeStatus{Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: ready}}},
		})
	}
	pod := func(name, node, address string) *objectv1.Pod {
		return &objectv1.Pod{
			Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "web"}},
			Spec:     &objectv1.PodSpec{NodeName: node},
			Status:   &objectv1.PodStatus{PodIp: address, Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}}},
		}
	}
	node("n1", "False")
	node("n2", "True")
	ending := pod("b", "n2", "10.244.1.1")
	ending.Metadata.DeletionTimestamp = &timestamppb.Timestamp{Seconds: 1}
	s.put(pod("a", "n1", "10.244.0.1"))
	s.put(ending)
	o := selecting("web")
	o.Spec.Type, o.Spec.ExternalTrafficPolicy = p("LoadBalancer"), p("Local")
	o.Status = &objectv1.ServiceStatus{LoadBalancer: &objectv1.LoadBalancerStatus{Ingress: []*objectv1.LoadBalancerIngress{{Ip: "198.51.100.1"}}}}
	s.put(o)
	s.settle()
	node("n1", "True")
	s.settle()
	if want := []string{"default/web=n2", "default/web=n1"}; !slices.Equal(s.moved, want) {
		t.Errorf("announced by %v, want %v", s.moved, want)
	}
}
