package planner_test

import (
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/svcproxy/internal/lb"
	"podwire.dev/services/svcproxy/internal/planner"
	"podwire.dev/services/svcproxy/internal/proxytest"
)

// TestCause: a derived write names the earliest change that asked for it, until it is there.
func TestCause(t *testing.T) {
	p := planner.New(time.Now)
	put := func(rev store.Revision, kind string, o store.Object) {
		meta := o.GetMetadata()
		p.Put(store.Record{
			Key:    store.Key{Kind: kind, Namespace: meta.GetNamespace(), Name: meta.GetName()},
			Object: o, Revision: rev, Traceparent: "trace-" + strconv.Itoa(int(rev)),
		})
	}
	plan := func(at store.Revision) []feed.Write {
		t.Helper()
		out, err := p.Plan(at)
		if err != nil {
			t.Fatal(err)
		}
		return out.Writes
	}
	put(2, planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "default"}})
	put(3, planner.KindService, &objectv1.Service{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "web", Uid: "u"},
		Spec: &objectv1.ServiceSpec{
			Selector: map[string]string{"app": "web"}, ClusterIp: "10.96.0.1", ClusterIps: []string{"10.96.0.1"}, IpFamilies: []string{"IPv4"},
			Ports: []*objectv1.ServicePort{{Port: 80}},
		},
	})
	pod := func(ready string) *objectv1.Pod {
		return &objectv1.Pod{
			Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "a", Uid: "a", Labels: map[string]string{"app": "web"}},
			Status:   &objectv1.PodStatus{PodIp: "10.244.0.1", Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: ready}}},
		}
	}
	put(4, planner.KindPod, pod("False"))
	first := plan(4)
	if len(first) != 1 || first[0].Cause != (store.Cause{Revision: 3, Traceparent: "trace-3"}) || first[0].Base != nil {
		t.Fatalf("first: %+v", first)
	}
	put(5, planner.KindPod, pod("True"))
	second := plan(5)
	if len(second) != 1 || second[0].Cause.Revision != 3 || !second[0].Object.(*objectv1.EndpointSlice).GetEndpoints()[0].GetConditions().GetReady() {
		t.Fatalf("second: %+v", second)
	}
	put(6, planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "other"}})
	if again := plan(6); len(again) != 1 || again[0].Key != second[0].Key {
		t.Fatalf("what is lacking is named again: %+v", again)
	}
	put(7, planner.KindSlice, second[0].Object)
	if left := plan(7); len(left) != 0 {
		t.Fatalf("left: %+v", left)
	}
	put(8, planner.KindPod, pod("False"))
	third := plan(8)
	if len(third) != 1 || third[0].Cause.Revision != 8 || third[0].Base == nil || third[0].Base.Revision != 7 ||
		third[0].Object.GetMetadata().GetUid() != second[0].Object.GetMetadata().GetUid() || third[0].Object.GetMetadata().GetGeneration() != 2 {
		t.Fatalf("third: %+v", third)
	}
}

// TestNamespaceEnds: what a Terminating Namespace has is deleted, and nothing is made in it.
func TestNamespaceEnds(t *testing.T) {
	b := proxytest.New(t)
	b.Pod("a", "web", "10.244.0.1")
	b.Apply("web", `{selector: {app: web}, ports: [{port: 80}]}`)
	b.Store(b.Parse(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: hand, namespace: default}, addressType: IPv4, endpoints: []}`), planner.KindSlice)
	b.Settle()
	b.Writes = nil
	end := b.Store(&objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "default", DeletionTimestamp: timestamppb.New(time.Unix(1, 0))}}, planner.KindNamespace)
	b.Pod("b", "web", "10.244.0.2")
	b.Settle()
	if len(b.Writes) != 3 || b.Rows.Len() != 0 {
		t.Errorf("%d rows, writes %+v", b.Rows.Len(), b.Writes)
	}
	for _, w := range b.Writes {
		if w.Object != nil || w.Cause.Revision != end {
			t.Errorf("%s: %v because of %d", w.Key, w.Object, w.Cause.Revision)
		}
	}
}

// TestAnnouncerMoves: the row follows what is stored, and its epoch rises.
func TestAnnouncerMoves(t *testing.T) {
	b := proxytest.New(t)
	b.IPAM.Balancers = true
	b.Node("node-1", "True", "172.30.0.2")
	b.Apply("web", `{type: LoadBalancer, ports: [{port: 80}]}`)
	row := func() nodestate.Announcement {
		t.Helper()
		row, ok := b.Rows.Get(nodestate.Ref{Table: nodestate.TableAnnouncements, Key: "198.51.100.1"})
		if !ok {
			t.Fatal("not announced")
		}
		return row.(nodestate.Announcement)
	}
	before := row()
	b.Node("node-2", "True", "172.30.0.3")
	b.Settle()
	if row() != before {
		t.Errorf("moved for no reason: %+v", row())
	}
	b.Node("node-1", "Unknown", "172.30.0.2")
	b.Settle()
	after := row()
	if before.Node != "node-1" || after.Node != "node-2" || after.Epoch <= before.Epoch {
		t.Errorf("from %+v to %+v", before, after)
	}
	if got := b.Get("web").GetMetadata().GetAnnotations()[lb.AnnotationEpoch]; got != strconv.FormatInt(after.Epoch, 10) {
		t.Errorf("stored epoch %s", got)
	}
	if d := b.Replan(); !d.Empty() {
		t.Errorf("a new World holds other rows: %v", d)
	}
}

// TestAddressPasses: an address that passes from one Service to another within one plan stays announced.
func TestAddressPasses(t *testing.T) {
	b := proxytest.New(t)
	b.Node("node-1", "True", "172.30.0.2")
	stored := func(name, ip string) {
		o := b.Service(name, `{type: LoadBalancer, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ipFamilies: [IPv4], ports: [{port: 80}]}`)
		o.Metadata.Uid = "uid-" + name
		o.Metadata.Annotations = map[string]string{lb.AnnotationAnnouncer: "node-1", lb.AnnotationEpoch: "1"}
		if ip != "" {
			o.Status = &objectv1.ServiceStatus{LoadBalancer: &objectv1.LoadBalancerStatus{Ingress: []*objectv1.LoadBalancerIngress{{Ip: ip}}}}
		}
		b.Store(o, planner.KindService)
	}
	for _, order := range [][2]string{{"a", "b"}, {"b", "a"}} {
		stored(order[0], "198.51.100.1")
		stored(order[1], "")
		b.Settle()
		stored(order[0], "")
		stored(order[1], "198.51.100.1")
		b.Settle()
		if _, ok := b.Rows.Get(nodestate.Ref{Table: nodestate.TableAnnouncements, Key: "198.51.100.1"}); !ok {
			t.Errorf("from %s to %s: not announced", order[0], order[1])
		}
	}
}
