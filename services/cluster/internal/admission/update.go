package admission

import (
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// ruleImmutable is Kubernetes' message for an update of what may not change.
const ruleImmutable = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`," +
	"`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)," +
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

// podUpdate are the rules of an update ("Pod update and replacement" in Kubernetes' documentation). A Pod is of one node
// for its whole life: nodeName may be set once, by the scheduler.
func (v *violations) podUpdate(o, old *objectv1.Pod) {
	now, was := o.GetSpec(), old.GetSpec()
	v.activeDeadline(now, was)
	v.gatesRemoved(now, was)
	if len(*v) > 0 {
		return
	}
	if changed := changedFields(masked(now, was), was); len(changed) > 0 {
		v.add("spec", strings.Join(changed, ", "), ruleImmutable)
	}
}

func (v *violations) activeDeadline(now, was *objectv1.PodSpec) {
	if was.ActiveDeadlineSeconds == nil {
		return
	}
	const at = "spec.activeDeadlineSeconds"
	switch {
	case now.ActiveDeadlineSeconds == nil:
		v.add(at, "", "must not update from a positive integer to nil value")
	case now.GetActiveDeadlineSeconds() > was.GetActiveDeadlineSeconds():
		v.add(at, strconv.Itoa(int(now.GetActiveDeadlineSeconds())), "must be less than or equal to previous value")
	}
}

func (v *violations) gatesRemoved(now, was *objectv1.PodSpec) {
	for _, g := range now.GetSchedulingGates() {
		if !slices.ContainsFunc(was.GetSchedulingGates(), func(w *objectv1.PodSchedulingGate) bool { return w.GetName() == g.GetName() }) {
			v.add("spec.schedulingGates", g.GetName(), "may not be added: gates can be removed only")
		}
	}
}

// masked is the new spec with the old values in the place of all that may change.
func masked(now, was *objectv1.PodSpec) *objectv1.PodSpec {
	out := proto.Clone(now).(*objectv1.PodSpec)
	maskImages(out.Containers, was.GetContainers())
	maskImages(out.InitContainers, was.GetInitContainers())
	out.ActiveDeadlineSeconds = was.ActiveDeadlineSeconds
	out.SchedulingGates = was.GetSchedulingGates()
	if added(now.GetTolerations(), was.GetTolerations()) {
		out.Tolerations = was.GetTolerations()
	}
	// While a gate holds the Pod back, its node selector may become narrower (KEP-3838).
	if len(was.GetSchedulingGates()) > 0 && narrower(now.GetNodeSelector(), was.GetNodeSelector()) {
		out.NodeSelector = was.GetNodeSelector()
	}
	return out
}

func maskImages(list, was []*objectv1.Container) {
	for i, c := range list {
		if i < len(was) {
			c.Image = was[i].GetImage()
		}
	}
}

// added says whether every old toleration is still there; tolerationSeconds of one may change, as in Kubernetes.
func added(now, was []*objectv1.Toleration) bool {
	for _, w := range was {
		if !slices.ContainsFunc(now, func(n *objectv1.Toleration) bool {
			return n.GetKey() == w.GetKey() && n.GetOperator() == w.GetOperator() && n.GetValue() == w.GetValue() && n.GetEffect() == w.GetEffect()
		}) {
			return false
		}
	}
	return true
}

func narrower(now, was map[string]string) bool {
	for key, value := range was {
		if have, ok := now[key]; !ok || have != value {
			return false
		}
	}
	return true
}

// changedFields are the JSON names of the fields that differ, in the order of the message.
func changedFields(a, b *objectv1.PodSpec) []string {
	if proto.Equal(a, b) {
		return nil
	}
	var out []string
	x, y := a.ProtoReflect(), b.ProtoReflect()
	fields := x.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !proto.Equal(only(x, f), only(y, f)) {
			out = append(out, "spec."+f.JSONName())
		}
	}
	return out
}

// only is a message with one field of m.
func only(m protoreflect.Message, f protoreflect.FieldDescriptor) proto.Message {
	out := m.New()
	if m.Has(f) {
		out.Set(f, m.Get(f))
	}
	return out.Interface()
}
