package planner

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/feed"
	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/liveness"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// world drives a Planner as the feed does.
type world struct {
	t    *testing.T
	p    *Planner
	rev  store.Revision
	made map[store.Key]store.Revision
}

func newWorld(t *testing.T) *world {
	return &world{t: t, p: New(func() time.Time { return noon }), rev: 1, made: map[store.Key]store.Revision{}}
}

func (w *world) put(kind string, o store.Object) store.Record {
	w.rev++
	key := store.KeyOf(kind, o)
	if w.made[key] == 0 {
		w.made[key] = w.rev
	}
	if o.GetMetadata().GetUid() == "" {
		o.GetMetadata().Uid = fmt.Sprintf("uid-%d", w.made[key])
	}
	rec := store.Record{Key: key, Object: o, Revision: w.rev, CreateRevision: w.made[key], Traceparent: fmt.Sprintf("trace-%d", w.rev)}
	w.p.Put(rec)
	return rec
}

func (w *world) drop(kind string, o store.Object) {
	w.rev++
	key := store.KeyOf(kind, o)
	delete(w.made, key)
	w.p.Delete(store.Event{Type: store.Deleted, Record: store.Record{Key: key, Revision: w.rev}})
}

func (w *world) plan() feed.Plan {
	w.t.Helper()
	p, err := w.p.Plan(w.rev)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// commit does what the writer does, and says in one line per write what it did.
func (w *world) commit() string {
	w.t.Helper()
	var out []string
	for _, wr := range w.plan().Writes {
		if wr.Base == nil || wr.Cause.Revision == 0 {
			w.t.Errorf("write of %s has no base or no cause: %+v", wr.Key, wr.Cause)
		}
		if wr.Object == nil {
			out = append(out, fmt.Sprintf("%s removed because of %d", wr.Key.Name, wr.Cause.Revision))
			w.drop(wr.Key.Kind, wr.Base.Object)
			continue
		}
		o := wr.Object.(*objectv1.Pod)
		text := fmt.Sprintf("%s on %q because of %d", wr.Key.Name, o.Spec.NodeName, wr.Cause.Revision)
		if o.Metadata.DeletionTimestamp != nil {
			text += fmt.Sprintf(", ends in %s", o.Metadata.DeletionTimestamp.AsTime().Sub(noon))
		}
		for _, c := range o.GetStatus().GetConditions() {
			text += fmt.Sprintf(", %s=%s %s", c.GetType(), c.GetStatus(), c.GetReason())
		}
		out = append(out, text)
		w.put(wr.Key.Kind, o)
	}
	if again := w.plan().Writes; len(again) > 0 {
		w.t.Errorf("what was written is wanted again: %v", again)
	}
	return strings.Join(out, "\n")
}

func (w *world) want(want string) {
	w.t.Helper()
	if got := w.commit(); got != want {
		w.t.Errorf("writes:\n%s\nwant:\n%s", got, want)
	}
}

func node(name, ready, reason string) *objectv1.Node {
	n := &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: name}, Status: &objectv1.NodeStatus{
		Addresses: []*objectv1.NodeAddress{{Type: "InternalIP", Address: "172.30.0.1"}},
	}}
	if ready != "" {
		n.Status.Conditions = []*objectv1.NodeCondition{{Type: "Ready", Status: ready, Reason: reason, LastTransitionTime: timestamppb.New(noon)}}
	}
	return n
}

func pod(name, onNode string) *objectv1.Pod {
	return &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: name},
		Spec:     &objectv1.PodSpec{NodeName: onNode, Containers: []*objectv1.Container{{Name: "c", Image: "i"}}},
		Status:   &objectv1.PodStatus{Phase: "Pending"},
	}
}

func running(name, onNode string) *objectv1.Pod {
	o := pod(name, onNode)
	o.Status = &objectv1.PodStatus{Phase: "Running", Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}}}
	return o
}

func ending(name string) *objectv1.Namespace {
	return &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name, DeletionTimestamp: timestamppb.New(noon)}}
}

func TestPlacing(t *testing.T) {
	w := newWorld(t)
	w.put(KindPod, pod("a", ""))
	w.want(`a on "" because of 2, PodScheduled=False Unschedulable`)
	w.want("") // once

	w.put(KindNode, node("n1", "False", ""))
	w.want(`a on "" because of 3, PodScheduled=False Unschedulable`)
	w.put(KindNode, node("n1", "True", ""))
	w.put(KindPod, pod("b", ""))
	w.put(KindNode, node("n2", "True", ""))
	w.want("a on \"n1\" because of 5, PodScheduled=True \nb on \"n2\" because of 7, PodScheduled=True ")

	// What is finished leaves room; what is being deleted, or another scheduler's, is left alone.
	done := pod("b", "n2")
	done.Status.Phase = "Succeeded"
	w.put(KindPod, done)
	w.put(KindPod, pod("c", ""))
	other := pod("d", "")
	other.Spec.SchedulerName = proto.String("mine")
	w.put(KindPod, other)
	w.want(`c on "n2" because of 12, PodScheduled=True `)

	gated := pod("e", "")
	gated.Spec.SchedulingGates = []*objectv1.PodSchedulingGate{{Name: "g"}}
	w.put(KindPod, gated)
	w.want(fmt.Sprintf(`e on "" because of %d, PodScheduled=False SchedulingGated`, w.rev))

	cordoned := node("n1", "True", "")
	cordoned.Spec = &objectv1.NodeSpec{Unschedulable: true}
	w.put(KindNode, cordoned)
	w.put(KindPod, pod("f", ""))
	w.want(fmt.Sprintf(`f on "n2" because of %d, PodScheduled=True `, w.rev))
}

func TestDeadNode(t *testing.T) {
	w := newWorld(t)
	w.put(KindNode, node("n1", "True", ""))
	w.put(KindPod, running("a", "n1"))
	w.put(KindPod, pod("b", "n1")) // was never ready
	done := running("c", "n1")
	done.Status.Phase = "Succeeded"
	w.put(KindPod, done)
	w.want("")
	w.put(KindNode, node("n1", "False", liveness.ReasonNotReady))
	w.want("") // not ready is not dead
	w.put(KindNode, node("n1", "Unknown", liveness.ReasonDead))
	died := w.rev
	w.want(fmt.Sprintf(`a on "n1" because of %d, Ready=False NodeDead`, died))

	// The agent is there again before its heartbeats are: what it says stands, whatever else changes.
	w.put(KindPod, running("a", "n1"))
	w.want("")
	labelled := running("a", "n1")
	labelled.Metadata.Labels = map[string]string{"x": "y"}
	w.put(KindPod, labelled)
	w.put(KindNode, node("n1", "Unknown", liveness.ReasonDead))
	w.want("")

	// A change of something else does not stand for a report.
	w.put(KindNode, node("n1", "True", ""))
	w.put(KindNode, node("n1", "Unknown", liveness.ReasonDead))
	died = w.rev
	again := running("a", "n1")
	w.put(KindPod, again)
	w.want(fmt.Sprintf(`a on "n1" because of %d, Ready=False NodeDead`, died))
}

func TestDeadNodeInASnapshot(t *testing.T) {
	for _, c := range []struct {
		name string
		told bool
	}{{"the Pods are not told yet", false}, {"the agent reported since", true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			dead, web := node("n1", "Unknown", liveness.ReasonDead), running("a", "n1")
			w.p.Reset()
			podRev, nodeRev := store.Revision(5), store.Revision(9)
			if c.told {
				podRev = 12
			}
			w.rev = 20
			w.p.Put(store.Record{Key: store.KeyOf(KindNode, dead), Object: dead, Revision: nodeRev, CreateRevision: 2})
			w.p.Put(store.Record{Key: store.KeyOf(KindPod, web), Object: web, Revision: podRev, CreateRevision: 3})
			if got := len(w.plan().Writes); got == 1 == c.told {
				t.Errorf("%d writes", got)
			}
		})
	}
}

func TestNamespaceEnds(t *testing.T) {
	w := newWorld(t)
	w.put(KindNode, node("n1", "True", ""))
	w.put(KindPod, running("a", "n1"))
	w.put(KindPod, pod("b", ""))
	held := pod("c", "")
	held.Metadata.Finalizers = []string{"example.com/x"}
	w.put(KindPod, held)
	w.put(KindService, &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "web"}})
	w.put(KindNamespace, ending("default"))
	cause := w.rev
	w.want(fmt.Sprintf("a on \"n1\" because of %[1]d, ends in 30s, Ready=True \nb removed because of %[1]d\nc on \"\" because of %[1]d, ends in 0s", cause))
	if e := w.p.Endings(); len(e) != 1 || e[0].Content != 3 {
		t.Errorf("endings are %+v, want one with a, c and the Service", e)
	}
	w.drop(KindPod, pod("a", "n1"))
	w.drop(KindPod, held)
	w.drop(KindService, &objectv1.Service{Metadata: &objectv1.ObjectMeta{Namespace: "default", Name: "web"}})
	if e := w.p.Endings(); len(e) != 1 || e[0].Content != 0 {
		t.Errorf("endings are %+v, want an empty one", e)
	}
	w.drop(KindNamespace, ending("default"))
	if e := w.p.Endings(); len(e) != 0 {
		t.Errorf("endings are %+v, want none", e)
	}
}

func TestDeletedPodOfNoNode(t *testing.T) {
	w := newWorld(t)
	n := node("n1", "True", "")
	w.put(KindNode, n)
	o := running("a", "n1")
	o.Metadata.DeletionTimestamp = timestamppb.New(noon)
	w.put(KindPod, o)
	w.want("") // the agent's to remove
	marked := w.rev
	w.drop(KindNode, n)
	w.want(fmt.Sprintf("a removed because of %d", marked))
}

func TestSlices(t *testing.T) {
	w := newWorld(t)
	w.put(KindNode, node("n1", "True", ""))
	w.put(KindPod, pod("a", "n1"))
	w.put(KindPod, pod("b", "n2"))
	w.put(KindPod, pod("c", ""))
	plan := w.plan()
	if len(plan.PerNode) != 2 || plan.PerNode["n1"].Len() != 1 || plan.PerNode["n2"].Len() != 1 {
		t.Fatalf("slices are %v", plan.PerNode)
	}
	row := plan.PerNode["n1"].Rows(nodestate.TableWorkloads)[0].(nodestate.Workload)
	var got objectv1.Pod
	if err := proto.Unmarshal([]byte(row.Pod), &got); err != nil {
		t.Fatal(err)
	}
	if row.Name != "a" || row.Namespace != "default" || row.UID == "" || got.Status != nil || got.GetSpec().GetContainers()[0].GetImage() != "i" {
		t.Errorf("row is %+v of %v", row, &got)
	}

	reported := running("a", "n1")
	reported.Metadata.Uid, reported.Metadata.ResourceVersion = row.UID, "77"
	w.put(KindPod, reported)
	if plan := w.plan(); len(plan.PerNode) != 0 {
		t.Errorf("a status changes the slices of %v", plan.PerNode)
	}
	w.drop(KindPod, reported)
	if plan := w.plan(); len(plan.PerNode) != 1 || plan.PerNode["n1"].Len() != 0 {
		t.Errorf("slices after the last Pod are %v, want an empty one", plan.PerNode)
	}
}

func TestOwns(t *testing.T) {
	w := newWorld(t)
	w.put(KindNode, node("n1", "True", ""))
	w.put(KindBlock, &objectv1.AddressBlock{Metadata: &objectv1.ObjectMeta{Name: "b"}, Spec: &objectv1.AddressBlockSpec{Cidr: "10.244.0.0/26", Node: "n1"}})
	in, out, own := NodeAddresses(addresses("10.244.0.9"))[0], NodeAddresses(addresses("10.244.0.70"))[0], NodeAddresses(addresses("172.30.0.1"))[0]
	if !w.p.Owns("n1", false, in) || w.p.Owns("n2", false, in) || w.p.Owns("n1", false, out) || w.p.Owns("n1", false, own) {
		t.Error("addresses of Pods are judged wrongly")
	}
	if !w.p.Owns("n1", true, own) || w.p.Owns("n2", true, own) || w.p.Owns("n1", true, in) {
		t.Error("addresses of Pods with hostNetwork are judged wrongly")
	}
}

func addresses(list ...string) *objectv1.Node {
	n := &objectv1.Node{Status: &objectv1.NodeStatus{}}
	for _, a := range list {
		n.Status.Addresses = append(n.Status.Addresses, &objectv1.NodeAddress{Type: "InternalIP", Address: a})
	}
	return n
}
