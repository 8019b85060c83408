package lb_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/manifest"
	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
)

var both = lb.Families{lb.IPv4, lb.IPv6}

// sim is a store with a World on it that settles: what the World lacks is written and comes back as a change.
type sim struct {
	t        testing.TB
	world    *lb.World
	services map[lb.Ref]*objectv1.Service
	slices   map[lb.Ref]*objectv1.EndpointSlice
	pods     map[lb.Ref]*objectv1.Pod
	nodes    map[string]*objectv1.Node
	rows     map[lb.Ref][]nodestate.Row
	epoch    int
	// written are the slices that were written or deleted since they were last printed, moved the Services.
	written, moved []string
	// partial counts the plans that were computed from what changed; quick leaves the comparison with the whole out.
	partial int
	quick   bool
}

func newSim(t testing.TB) *sim {
	return &sim{
		t: t, world: lb.NewWorld(), services: map[lb.Ref]*objectv1.Service{}, slices: map[lb.Ref]*objectv1.EndpointSlice{},
		pods: map[lb.Ref]*objectv1.Pod{}, nodes: map[string]*objectv1.Node{}, rows: map[lb.Ref][]nodestate.Row{},
	}
}

func refOf(o interface{ GetMetadata() *objectv1.ObjectMeta }) lb.Ref {
	return lb.Ref{Namespace: o.GetMetadata().GetNamespace(), Name: o.GetMetadata().GetName()}
}

// put stores an object, a Service completed as an Apply would but for what ipam allocates.
func (s *sim) put(o proto.Message) {
	s.t.Helper()
	switch o := o.(type) {
	case *objectv1.Service:
		old := s.services[refOf(o)]
		status := o.GetStatus()
		o.Metadata.Uid = cmpOr(o.Metadata.Uid, "uid-"+o.Metadata.Name)
		lb.CarryService(o, old)
		o.Status = status
		lb.DefaultService(o, both)
		if bad := lb.ValidateService(o, old, both); len(bad) > 0 {
			s.t.Fatalf("Service %s: %v", refOf(o), bad)
		}
		s.services[refOf(o)] = o
		s.world.SetService(lb.ParseService(o))
	case *objectv1.EndpointSlice:
		lb.DefaultSlice(o)
		if bad := lb.ValidateSlice(o, nil); len(bad) > 0 {
			s.t.Fatalf("EndpointSlice %s: %v", refOf(o), bad)
		}
		s.slices[refOf(o)] = o
		s.world.SetSlice(lb.ParseSlice(o))
	case *objectv1.Pod:
		o.Metadata.Uid = cmpOr(o.Metadata.Uid, "uid-"+o.Metadata.Name)
		s.pods[refOf(o)] = o
		if p, ok := lb.ParsePod(o); ok {
			s.world.SetPod(p)
		} else {
			s.world.DeletePod(refOf(o))
		}
	case *objectv1.Node:
		s.nodes[o.GetMetadata().GetName()] = o
		s.world.SetNode(lb.ParseNode(o))
	default:
		s.t.Fatalf("%T", o)
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (s *sim) remove(kind string, ref lb.Ref) {
	switch kind {
	case "service":
		delete(s.services, ref)
		s.world.DeleteService(ref)
	case "endpointslice":
		delete(s.slices, ref)
		s.world.DeleteSlice(ref)
	case "pod":
		delete(s.pods, ref)
		s.world.DeletePod(ref)
	case "node":
		delete(s.nodes, ref.Name)
		s.world.DeleteNode(ref.Name)
	default:
		s.t.Fatalf("kind %q", kind)
	}
}

// settle plans and writes until nothing is lacking.
func (s *sim) settle() {
	s.t.Helper()
	for round := 0; ; round++ {
		refs := s.world.Dirty()
		if len(refs) == 0 {
			return
		}
		if round > 5 {
			s.t.Fatalf("does not settle: %v", refs)
		}
		for _, ref := range refs {
			s.write(ref, s.replan(ref))
		}
	}
}

// replan is the plan of a Service, computed from what changed, as the whole plan has it.
func (s *sim) replan(ref lb.Ref) lb.Plan {
	s.t.Helper()
	if s.quick {
		return s.world.Replan(ref)
	}
	want := s.world.Plan(ref)
	got := s.world.Replan(ref)
	if got.Partial {
		s.partial++
		rows := nodestate.NewSlice(s.rows[ref]...)
		for _, name := range got.Gone {
			rows.Remove(name)
		}
		for _, row := range got.Rows {
			rows.Upsert(row)
		}
		if d := nodestate.Diff(nodestate.NewSlice(want.Rows...), rows); !d.Empty() {
			s.t.Fatalf("%s: what changed makes other rows than the whole: %+v", ref, d)
		}
		got.Rows, got.Gone, got.Partial = want.Rows, nil, false
	}
	byName := func(a, b lb.Slice) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(want.Writes, byName)
	slices.SortFunc(got.Writes, byName)
	if !reflect.DeepEqual(want, got) {
		s.t.Fatalf("%s: what changed asks for\n%+v\nand the whole for\n%+v", ref, got, want)
	}
	return got
}

func (s *sim) write(ref lb.Ref, p lb.Plan) {
	if p.Partial {
		p.Rows = nil // a benchmark's, which looks at none
	}
	if s.rows[ref] = p.Rows; len(p.Rows) == 0 {
		delete(s.rows, ref)
	}
	for _, x := range p.Stale {
		s.written = append(s.written, "-"+x.String())
		s.remove("endpointslice", x)
	}
	for _, x := range p.Writes {
		s.written = append(s.written, x.String())
		o := &objectv1.EndpointSlice{Metadata: &objectv1.ObjectMeta{Namespace: x.Namespace, Name: x.Name}}
		x.Fill(o)
		s.put(o)
	}
	if o := s.services[ref]; o != nil && p.Move {
		s.epoch++
		s.moved = append(s.moved, ref.String()+"="+p.Announcer)
		o = proto.Clone(o).(*objectv1.Service)
		if o.Metadata.Annotations == nil {
			o.Metadata.Annotations = map[string]string{}
		}
		o.Metadata.Annotations[lb.AnnotationAnnouncer] = p.Announcer
		o.Metadata.Annotations[lb.AnnotationEpoch] = fmt.Sprint(s.epoch)
		if p.Announcer == "" {
			delete(o.Metadata.Annotations, lb.AnnotationAnnouncer)
			delete(o.Metadata.Annotations, lb.AnnotationEpoch)
		}
		s.services[ref] = o
		s.world.SetService(lb.ParseService(o))
	}
}

// String is everything derived, in a form for goldens.
func (s *sim) String() string {
	var b strings.Builder
	for _, line := range slices.Sorted(slices.Values(s.written)) {
		fmt.Fprintf(&b, "wrote %s\n", line)
	}
	for _, line := range s.moved {
		fmt.Fprintf(&b, "moved %s\n", line)
	}
	s.written, s.moved = nil, nil
	for _, ref := range slices.SortedFunc(maps.Keys(s.slices), lb.Ref.Compare) {
		x := lb.ParseSlice(s.slices[ref])
		fmt.Fprintf(&b, "slice %s %s ports %s\n", ref, x.Family, portsText(x.Ports))
		for _, e := range x.Endpoints {
			fmt.Fprintf(&b, "  %s\n", endpointText(e))
		}
	}
	for _, ref := range slices.SortedFunc(maps.Keys(s.rows), lb.Ref.Compare) {
		for _, row := range s.rows[ref] {
			fmt.Fprintf(&b, "%s\n", rowText(row))
		}
	}
	return b.String()
}

func portsText(ports []lb.SlicePort) string {
	var out []string
	for _, p := range ports {
		out = append(out, fmt.Sprintf("%s:%d/%s", p.Name, p.Number, p.Protocol))
	}
	return "[" + strings.Join(out, " ") + "]"
}

func endpointText(e lb.SliceEndpoint) string {
	parts := []string{e.Address.String()}
	for _, flag := range []struct {
		on   bool
		name string
	}{{e.Ready, "ready"}, {e.Serving, "serving"}, {e.Terminating, "terminating"}} {
		if flag.on {
			parts = append(parts, flag.name)
		}
	}
	for _, f := range [][2]string{
		{"node", e.Node}, {"zone", e.Zone}, {"hostname", e.Hostname}, {"for-zone", e.HintZones}, {"for-node", e.HintNodes}, {"pod", e.Target.Name},
	} {
		if f[1] != "" {
			parts = append(parts, f[0]+"="+f[1])
		}
	}
	return strings.Join(parts, " ")
}

func rowText(row nodestate.Row) string {
	switch r := row.(type) {
	case nodestate.ServicePort:
		text := fmt.Sprintf("serve %s %v:%d", r.ServiceKey, r.ClusterAddresses, r.Port)
		if r.NodePort != 0 {
			text += fmt.Sprintf(" node-port %d%v", r.NodePort, r.NodePortFamilies)
		}
		if len(r.LoadBalancerAddresses) > 0 {
			text += fmt.Sprintf(" balancer %v", r.LoadBalancerAddresses)
		}
		if r.SourceMode == nodestate.SourceSome {
			text += fmt.Sprintf(" from %v", r.SourceRanges)
		}
		if len(r.ExternalAddresses) > 0 {
			text += fmt.Sprintf(" external %v", r.ExternalAddresses)
		}
		if r.AffinitySeconds > 0 {
			text += fmt.Sprintf(" affinity %ds", r.AffinitySeconds)
		}
		return text + fmt.Sprintf(" inside %s outside %s", localityText(r.InternalPolicy), localityText(r.ExternalPolicy))
	case nodestate.Endpoint:
		state := map[nodestate.EndpointState]string{nodestate.EndpointReady: "ready", nodestate.EndpointTerminating: "terminating"}[r.State]
		text := fmt.Sprintf("  to %s node=%s zone=%s %s", r.Key(), r.Node, r.Zone, state)
		if len(r.HintZones)+len(r.HintNodes) > 0 {
			text += fmt.Sprintf(" for zones %v nodes %v", r.HintZones, r.HintNodes)
		}
		return text
	case nodestate.Announcement:
		return fmt.Sprintf("announce %s by %s since %d", r.Address, r.Node, r.Epoch)
	}
	return "?"
}

func localityText(l nodestate.Locality) string {
	return map[nodestate.Locality]string{nodestate.LocalityCluster: "all", nodestate.LocalityLocal: "local"}[l]
}

// objects parses a manifest; what names no namespace is in default.
func objects(t testing.TB, text string) []proto.Message {
	t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := manifest.Parse(kinds, "test.yaml", strings.NewReader(text), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	var out []proto.Message
	for _, o := range parsed {
		if o.Kind.Name != "Node" && o.Message.GetMetadata().GetNamespace() == "" {
			o.Message.GetMetadata().Namespace = "default"
		}
		out = append(out, o.Message)
	}
	return out
}
