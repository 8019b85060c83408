package api

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/planner"
)

func TestPodIsPlaced(t *testing.T) {
	b := newBench(t)
	b.addNode("node-1")
	made := b.addPod("web")
	rec := b.until(podKey("web"), assigned)
	o := rec.Object.(*objectv1.Pod)
	if o.GetSpec().GetNodeName() != "node-1" || o.GetMetadata().GetGeneration() != 2 {
		t.Errorf("Pod is on %s in generation %d", o.GetSpec().GetNodeName(), o.GetMetadata().GetGeneration())
	}
	if int64(rec.Cause.Revision) != made.GetRevision() {
		t.Errorf("the assignment is caused by %d, want the creation at %d", rec.Cause.Revision, made.GetRevision())
	}
	again, err := b.pods.Apply(b.ctx, &clusterv1.PodServiceApplyRequest{Object: podNamed("web")})
	if err != nil || again.GetOutcome() != objectv1.Outcome_OUTCOME_UNCHANGED || again.GetObject().GetSpec().GetNodeName() != "node-1" {
		t.Errorf("the manifest applied again: %v, %v", again, err)
	}
	moved := podNamed("web")
	moved.Spec.NodeName = "node-2"
	_, err = b.pods.Apply(b.ctx, &clusterv1.PodServiceApplyRequest{Object: moved})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "pod updates may not change fields other than") {
		t.Errorf("a Pod that moves: %v", err)
	}
}

func TestUnschedulable(t *testing.T) {
	b := newBench(t)
	b.addPod("web")
	rec := b.until(podKey("web"), func(o store.Object) bool { return len(o.(*objectv1.Pod).GetStatus().GetConditions()) > 0 })
	c := rec.Object.(*objectv1.Pod).GetStatus().GetConditions()[0]
	if c.GetReason() != "Unschedulable" || c.GetMessage() != "no nodes available to schedule pods" {
		t.Errorf("condition is %v", c)
	}
	b.addNode("node-1")
	rec = b.until(podKey("web"), assigned)
	if c := rec.Object.(*objectv1.Pod).GetStatus().GetConditions(); len(c) != 1 || c[0].GetStatus() != "True" {
		t.Errorf("conditions are %v", c)
	}
}

// report is what an agent says of a running Pod.
func report(o *objectv1.Pod, ips ...string) *clusterv1.PodServiceUpdateStatusRequest {
	out := &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: o.GetMetadata().GetNamespace(), Name: o.GetMetadata().GetName(), Uid: o.GetMetadata().GetUid()},
		Status:   &objectv1.PodStatus{Phase: "Running", Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}}},
	}
	for _, ip := range ips {
		out.Status.PodIps = append(out.Status.PodIps, &objectv1.PodIP{Ip: ip})
	}
	if len(ips) > 0 {
		out.Status.PodIp = ips[0]
	}
	return &clusterv1.PodServiceUpdateStatusRequest{Object: out}
}

func TestNodeMayReportItsOwnPodsOnly(t *testing.T) {
	b := newBench(t)
	b.addNode("node-1")
	b.addPod("web")
	o := b.until(podKey("web"), assigned).Object.(*objectv1.Pod)
	b.commit(b.fake.Txn().Create(&objectv1.AddressBlock{
		Metadata: &objectv1.ObjectMeta{Name: "b"}, Spec: &objectv1.AddressBlockSpec{Cidr: "10.244.0.0/26", Node: "node-1"},
	}, planner.KindBlock))

	resp, err := b.pods.UpdateStatus(b.as("node-1"), report(o, "10.244.0.9"))
	if err != nil {
		t.Fatalf("an address of a block that was leased a moment ago: %v", err)
	}
	if s := resp.GetObject(); s.GetSpec().GetNodeName() != "node-1" || s.GetStatus().GetPodIp() != "10.244.0.9" || len(s.GetStatus().GetConditions()) != 2 {
		t.Errorf("stored is %v", s)
	}
	_, err = b.pods.UpdateStatus(b.as("node-1"), report(o, "10.244.0.70"))
	b.refused("an address that the node does not lease", err, errs.Denied)
	_, err = b.pods.UpdateStatus(b.as("node-1"), report(o, "172.30.0.11"))
	b.refused("the node's address for a Pod without hostNetwork", err, errs.Denied)
	_, err = b.pods.UpdateStatus(b.as("node-2"), report(o))
	b.refused("another node's Pod", err, errs.Denied)
	anonymous := report(o)
	anonymous.Object.Metadata.Uid = ""
	_, err = b.pods.UpdateStatus(b.as("node-1"), anonymous)
	b.refused("a report without uid", err, errs.Invalid)
	stale := report(o)
	stale.Object.Metadata.Uid = "an-earlier-one"
	_, err = b.pods.UpdateStatus(b.as("node-1"), stale)
	b.refused("a report on an earlier Pod of the name", err, errs.Conflict)

	_, err = b.pods.Get(b.as("node-1"), &clusterv1.PodServiceGetRequest{Namespace: "default", Name: "web"})
	if err != nil {
		t.Errorf("a node reads its own Pod: %v", err)
	}
	_, err = b.pods.Get(b.as("node-2"), &clusterv1.PodServiceGetRequest{Namespace: "default", Name: "web"})
	b.refused("a node reads another's Pod", err, errs.Denied)
	_, err = b.pods.Apply(b.as("node-1"), &clusterv1.PodServiceApplyRequest{Object: podNamed("evil")})
	b.refused("a node makes a Pod", err, errs.Denied)
	_, err = b.pods.Apply(b.as("node-1"), &clusterv1.PodServiceApplyRequest{Object: podNamed("web")})
	b.refused("a node changes its Pod", err, errs.Denied)
}

func TestHostNetworkPodHasItsNodesAddress(t *testing.T) {
	b := newBench(t)
	b.addNode("node-1")
	o := podNamed("web")
	o.Spec.HostNetwork = true
	if _, err := b.pods.Apply(b.ctx, &clusterv1.PodServiceApplyRequest{Object: o}); err != nil {
		t.Fatal(err)
	}
	o = b.until(podKey("web"), assigned).Object.(*objectv1.Pod)
	if _, err := b.pods.UpdateStatus(b.as("node-1"), report(o, "172.30.0.11")); err != nil {
		t.Error(err)
	}
	_, err := b.pods.UpdateStatus(b.as("node-1"), report(o, "172.30.0.12"))
	b.refused("another machine's address", err, errs.Denied)
}

func TestGracefulDeletion(t *testing.T) {
	b := newBench(t)
	b.addNode("node-1")
	b.addPod("web")
	o := b.until(podKey("web"), assigned).Object.(*objectv1.Pod)
	uid := o.GetMetadata().GetUid()
	remove := func(uid string, grace *int32) *clusterv1.PodServiceDeleteRequest {
		return &clusterv1.PodServiceDeleteRequest{Namespace: "default", Name: "web", Uid: uid, GracePeriodSeconds: grace}
	}
	_, err := b.pods.Delete(b.as("node-1"), remove(uid, proto.Int32(0)))
	b.refused("a node deletes what nobody asked it to", err, errs.Denied)

	resp, err := b.pods.Delete(b.ctx, remove("", nil))
	if err != nil {
		t.Fatal(err)
	}
	meta := resp.GetObject().GetMetadata()
	if meta.GetDeletionTimestamp() == nil || meta.GetDeletionGracePeriodSeconds() != 30 {
		t.Errorf("marked is %v", meta)
	}
	_, err = b.pods.Delete(b.as("node-2"), remove(uid, proto.Int32(0)))
	b.refused("another node finishes", err, errs.Denied)
	_, err = b.pods.Delete(b.as("node-1"), remove("", proto.Int32(0)))
	b.refused("a node finishes without the uid", err, errs.Invalid)
	_, err = b.pods.Delete(b.as("node-1"), remove(uid, nil))
	b.refused("a node finishes with a grace period", err, errs.Invalid)
	if _, err = b.pods.Delete(b.as("node-1"), remove(uid, proto.Int32(0))); err != nil {
		t.Fatal(err)
	}
	b.until(podKey("web"), absent)

	b.addPod("forced")
	b.until(podKey("forced"), assigned)
	if _, err := b.pods.Delete(b.ctx, &clusterv1.PodServiceDeleteRequest{Namespace: "default", Name: "forced", GracePeriodSeconds: proto.Int32(0)}); err != nil {
		t.Fatal(err)
	}
	b.until(podKey("forced"), absent)
}
