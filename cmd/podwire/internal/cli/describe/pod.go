package describe

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// AnnotationMember names, on the Pod of a fabric member, the service that it is a replica of.
const AnnotationMember = "podwire.dev/member"

func (p *page) pod(ctx context.Context, o *objectv1.Pod) {
	p.head(o)
	spec, status := o.GetSpec(), o.GetStatus()
	member := o.GetMetadata().GetAnnotations()[AnnotationMember]
	if member != "" {
		p.field(0, "Member", "replica of the service "+member+", not run by a node")
	} else {
		p.field(0, "Node", or(strings.Trim(spec.GetNodeName()+"/"+status.GetHostIp(), "/"), none))
	}
	if t := status.GetStartTime(); t != nil {
		p.field(0, "Start Time", moment(t))
	}
	phase := or(status.GetPhase(), "Pending")
	if o.GetMetadata().GetDeletionTimestamp() != nil {
		phase = "Terminating"
	}
	p.field(0, "Status", phase)
	p.optional(0, "Reason", status.GetReason())
	p.optional(0, "Message", oneLine(status.GetMessage()))
	var ips []string
	for _, ip := range status.GetPodIps() {
		ips = append(ips, ip.GetIp())
	}
	p.several(0, "IPs", ips)
	p.containers("Init Containers", spec.GetInitContainers(), status.GetInitContainerStatuses())
	p.containers("Containers", spec.GetContainers(), status.GetContainerStatuses())
	p.conditions(podConditions(status.GetConditions()))
	p.field(0, "DNS Policy", or(spec.GetDnsPolicy(), "ClusterFirst"))
	p.field(0, "Node-Selectors", mapText(spec.GetNodeSelector()))
	p.podNeighbours(ctx, o)
	p.podWarnings(ctx, o, member)
}

func (p *page) containers(title string, list []*objectv1.Container, states []*objectv1.ContainerStatus) {
	if len(list) == 0 {
		return
	}
	p.line(0, title+":")
	for _, c := range list {
		p.line(1, c.GetName()+":")
		p.field(2, "Image", c.GetImage())
		var ports []string
		for _, port := range c.GetPorts() {
			text := fmt.Sprintf("%d/%s", port.GetContainerPort(), or(port.GetProtocol(), "TCP"))
			if port.GetName() != "" {
				text += " (" + port.GetName() + ")"
			}
			ports = append(ports, text)
		}
		p.field(2, "Ports", joined(ports))
		if len(c.GetCommand()) > 0 {
			p.field(2, "Command", oneLine(strings.Join(c.GetCommand(), " ")))
		}
		if len(c.GetArgs()) > 0 {
			p.field(2, "Args", oneLine(strings.Join(c.GetArgs(), " ")))
		}
		for _, s := range states {
			if s.GetName() == c.GetName() {
				p.containerStatus(s)
			}
		}
		p.probe("Liveness", c.GetLivenessProbe())
		p.probe("Readiness", c.GetReadinessProbe())
		p.probe("Startup", c.GetStartupProbe())
	}
}

func (p *page) containerStatus(s *objectv1.ContainerStatus) {
	p.state("State", s.GetState())
	if last := s.GetLastState(); last.GetTerminated() != nil {
		p.state("Last State", last)
	}
	p.field(2, "Ready", yesNo(s.GetReady()))
	p.field(2, "Restart Count", strconv.Itoa(int(s.GetRestartCount())))
}

func (p *page) state(key string, s *objectv1.ContainerState) {
	switch {
	case s.GetRunning() != nil:
		p.field(2, key, "Running")
		p.field(3, "Started", moment(s.GetRunning().GetStartedAt()))
	case s.GetTerminated() != nil:
		t := s.GetTerminated()
		p.field(2, key, "Terminated")
		p.optional(3, "Reason", t.GetReason())
		p.optional(3, "Message", oneLine(t.GetMessage()))
		p.field(3, "Exit Code", strconv.Itoa(int(t.GetExitCode())))
		if t.GetSignal() != 0 {
			p.field(3, "Signal", strconv.Itoa(int(t.GetSignal())))
		}
		p.field(3, "Finished", moment(t.GetFinishedAt()))
	default:
		p.field(2, key, "Waiting")
		p.optional(3, "Reason", s.GetWaiting().GetReason())
		p.optional(3, "Message", oneLine(s.GetWaiting().GetMessage()))
	}
}

// probe writes a probe with its numbers, which have Kubernetes' defaults where the object has none.
func (p *page) probe(key string, probe *objectv1.Probe) {
	if probe == nil {
		return
	}
	what := "unknown"
	switch {
	case probe.GetHttpGet() != nil:
		get := probe.GetHttpGet()
		what = fmt.Sprintf("http-get %s://%s:%v%s", strings.ToLower(or(get.GetScheme(), "HTTP")), get.GetHost(), get.GetPort().AsInterface(), or(get.GetPath(), "/"))
	case probe.GetTcpSocket() != nil:
		what = fmt.Sprintf("tcp-socket %s:%v", probe.GetTcpSocket().GetHost(), probe.GetTcpSocket().GetPort().AsInterface())
	case probe.GetGrpc() != nil:
		what = fmt.Sprintf("grpc :%d %s", probe.GetGrpc().GetPort(), probe.GetGrpc().GetService())
	case probe.GetExec() != nil:
		what = "exec [" + oneLine(strings.Join(probe.GetExec().GetCommand(), " ")) + "]"
	}
	number := func(value *int32, otherwise int32) int32 {
		if value == nil {
			return otherwise
		}
		return *value
	}
	p.field(2, key, fmt.Sprintf("%s delay=%ds timeout=%ds period=%ds #success=%d #failure=%d", strings.TrimSpace(what), probe.GetInitialDelaySeconds(),
		number(probe.TimeoutSeconds, 1), number(probe.PeriodSeconds, 10), number(probe.SuccessThreshold, 1), number(probe.FailureThreshold, 3)))
}

// condition is what the kinds' conditions have in common.
type condition struct{ typ, status, reason, message string }

func podConditions(list []*objectv1.PodCondition) []condition {
	var out []condition
	for _, c := range list {
		out = append(out, condition{c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage()})
	}
	return out
}

func (p *page) conditions(list []condition) {
	if len(list) == 0 {
		return
	}
	p.line(0, "Conditions:")
	p.line(1, "Type\tStatus\tReason\tMessage")
	p.line(1, "----\t------\t------\t-------")
	for _, c := range list {
		p.line(1, c.typ+"\t"+c.status+"\t"+c.reason+"\t"+oneLine(c.message))
	}
}

// podNeighbours writes which Services and NetworkPolicies select the Pod.
func (p *page) podNeighbours(ctx context.Context, o *objectv1.Pod) {
	labels, ns := o.GetMetadata().GetLabels(), o.GetMetadata().GetNamespace()
	if services, ok := list[*objectv1.Service](ctx, p, "Service", ns); ok {
		var of []string
		for _, s := range services {
			if sel := s.GetSpec().GetSelector(); len(sel) > 0 && contains(labels, sel) {
				of = append(of, s.GetMetadata().GetName())
			}
		}
		p.field(0, "Services", joined(of))
	}
	policies, ok := list[*objectv1.NetworkPolicy](ctx, p, "NetworkPolicy", ns)
	if !ok {
		return
	}
	isolated := map[string][]string{}
	for _, np := range policies {
		if !matches(np.GetSpec().GetPodSelector(), labels) {
			continue
		}
		for _, direction := range np.GetSpec().GetPolicyTypes() {
			isolated[direction] = append(isolated[direction], np.GetMetadata().GetName())
		}
	}
	p.line(0, "Network Policies:")
	for _, direction := range []string{"Ingress", "Egress"} {
		if names := isolated[direction]; len(names) > 0 {
			p.field(1, direction, "only as allowed by "+joined(names))
		} else {
			p.field(1, direction, "everything (no policy selects the pod)")
		}
	}
}

func (p *page) podWarnings(ctx context.Context, o *objectv1.Pod, member string) {
	if node := o.GetSpec().GetNodeName(); node != "" {
		n, found, ok := get[*objectv1.Node](ctx, p, "Node", "", node)
		switch {
		case ok && !found:
			p.warn("node %s does not exist: nothing runs this pod", node)
		case ok && nodeReady(n) != "True":
			p.warn("node %s is not ready: the pod is in no endpoints until it is", node)
		}
	} else if member == "" && live(o) {
		p.warn("the pod has no node yet: nothing runs it")
	}
	for _, c := range o.GetStatus().GetConditions() {
		if c.GetStatus() != "True" && c.GetMessage() != "" && live(o) {
			p.warn("not %s: %s", c.GetType(), oneLine(c.GetMessage()))
		}
	}
	if len(o.GetStatus().GetPodIps()) == 0 && o.GetStatus().GetPhase() == "Running" {
		p.warn("the pod runs without an address")
	}
}
