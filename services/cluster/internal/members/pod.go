package members

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/admission"
)

// equal says whether two members say the same.
func (a Attendance) equal(b Attendance) bool {
	return a.Name == b.Name && a.Service == b.Service && a.Ready == b.Ready && a.Reason == b.Reason &&
		slices.Equal(a.Underlay, b.Underlay) && slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Ports, b.Ports)
}

// Scheduler is the schedulerName of members' Pods: nobody's, so that no scheduler places them.
const Scheduler = "podwire.dev-member"

// Reasons of the conditions.
const (
	ReasonReady    = "MemberReady"
	ReasonNotReady = "MemberNotReady"
	ReasonSilent   = "MemberSilent"
)

// labelsOf are by what Services and policies select the members of a service.
func labelsOf(service string) map[string]string {
	if service == "dns" {
		return map[string]string{"k8s-app": "kube-dns"} // as every cluster's DNS has it
	}
	return map[string]string{"app.kubernetes.io/name": "podwire-" + service}
}

// maxReason bounds what a member may write into its Pod, in bytes.
const maxReason = 512

// podOf is the Pod of a member that attends, from the one that is there, nil for none. leased are those of its addresses
// that it may have.
func podOf(have *objectv1.Pod, a Attendance, leased []netip.Addr, now time.Time) *objectv1.Pod {
	o := &objectv1.Pod{
		ApiVersion: "v1", Kind: "Pod",
		Metadata: &objectv1.ObjectMeta{
			Namespace: Namespace, Name: a.Name, Uid: uuid.NewString(), CreationTimestamp: stamp(now), Generation: 1,
		},
	}
	if have != nil {
		o = proto.Clone(have).(*objectv1.Pod)
	}
	meta := o.Metadata
	for key, value := range labelsOf(a.Service) {
		put(&meta.Labels, key, value)
	}
	put(&meta.Annotations, Annotation, a.Service)
	if spec := specOf(a); !proto.Equal(spec, o.Spec) {
		if o.Spec != nil {
			meta.Generation++
		}
		o.Spec = spec
	}
	if o.Status == nil {
		o.Status = &objectv1.PodStatus{StartTime: stamp(now)}
	}
	s := o.Status
	s.Phase = admission.Running
	s.HostIp, s.HostIps = "", nil
	for i, addr := range a.Underlay {
		if i == 0 {
			s.HostIp = addr.String()
		}
		s.HostIps = append(s.HostIps, &objectv1.HostIP{Ip: addr.String()})
	}
	s.PodIp, s.PodIps = "", nil
	for i, addr := range leased {
		if i == 0 {
			s.PodIp = addr.String()
		}
		s.PodIps = append(s.PodIps, &objectv1.PodIP{Ip: addr.String()})
	}
	setReady(o, verdictOn(a, leased), now)
	return o
}

func put(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}

func specOf(a Attendance) *objectv1.PodSpec {
	c := &objectv1.Container{Name: a.Service, Image: "podwire.dev/" + a.Service}
	for _, p := range a.Ports {
		c.Ports = append(c.Ports, &objectv1.ContainerPort{Name: p.Name, ContainerPort: int32(p.Port), Protocol: proto.String(p.Protocol)})
	}
	o := &objectv1.Pod{Spec: &objectv1.PodSpec{
		Containers: []*objectv1.Container{c}, SchedulerName: proto.String(Scheduler), DnsPolicy: proto.String("Default"),
	}}
	admission.DefaultPod(o, o)
	return o.Spec
}

// verdict is whether a member serves.
type verdict struct {
	status, reason, message string
}

func verdictOn(a Attendance, leased []netip.Addr) verdict {
	if i := slices.IndexFunc(a.Addresses, func(addr netip.Addr) bool { return !slices.Contains(leased, addr) }); i >= 0 {
		return verdict{"False", ReasonNotReady, fmt.Sprintf("it says that its address is %s, which it does not lease", a.Addresses[i])}
	}
	if a.Ready && len(leased) > 0 {
		return verdict{"True", ReasonReady, ""}
	}
	message := a.Reason
	switch {
	case a.Ready:
		message = "it has no address"
	case message == "":
		message = "the member says not ready"
	}
	return verdict{"False", ReasonNotReady, clip(message)}
}

// clip bounds a text, and leaves no part of a letter.
func clip(text string) string {
	if len(text) > maxReason {
		text = text[:maxReason]
	}
	return strings.ToValidUTF8(text, "")
}

// setReady puts the verdict into the Pod's conditions and its container's status. The time of the last transition stays
// where the status does.
func setReady(o *objectv1.Pod, v verdict, now time.Time) {
	s := o.Status
	for _, typ := range []string{"ContainersReady", "Ready"} {
		next := &objectv1.PodCondition{
			Type: typ, Status: v.status, Reason: v.reason, Message: v.message, LastTransitionTime: stamp(now),
		}
		i := slices.IndexFunc(s.Conditions, func(c *objectv1.PodCondition) bool { return c.GetType() == typ })
		if i < 0 {
			s.Conditions = append(s.Conditions, next)
			continue
		}
		if s.Conditions[i].GetStatus() == v.status {
			next.LastTransitionTime = s.Conditions[i].LastTransitionTime
		}
		s.Conditions[i] = next
	}
	c := o.GetSpec().GetContainers()[0]
	s.ContainerStatuses = []*objectv1.ContainerStatus{{
		Name: c.GetName(), Image: c.GetImage(), Ready: v.status == "True", Started: proto.Bool(true),
		State: &objectv1.ContainerState{Running: &objectv1.ContainerStateRunning{StartedAt: s.StartTime}},
	}}
}

// silenced is the Pod of a member that is not heard any more.
func silenced(have *objectv1.Pod, now time.Time) *objectv1.Pod {
	o := proto.Clone(have).(*objectv1.Pod)
	if o.Status == nil {
		o.Status = &objectv1.PodStatus{}
	}
	setReady(o, verdict{"False", ReasonSilent, "the member does not attend any more"}, now)
	return o
}

func stamp(now time.Time) *timestamppb.Timestamp { return timestamppb.New(now.Truncate(time.Second)) }

func readyStatus(o *objectv1.Pod) string {
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c.GetStatus()
		}
	}
	return ""
}
