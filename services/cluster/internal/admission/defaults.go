package admission

import (
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Phases of a Pod.
const (
	Pending   = "Pending"
	Running   = "Running"
	Succeeded = "Succeeded"
	Failed    = "Failed"
	Unknown   = "Unknown"
)

// DefaultScheduler is the name of the scheduler that this service is.
const DefaultScheduler = "default-scheduler"

// defaultGrace is terminationGracePeriodSeconds where nobody says, in seconds.
const defaultGrace = 30

// CarryPod fills in what Kubernetes keeps of a Pod that is replaced where the caller left it out: the node that was
// chosen, and the pull policy, whose default follows from the image that the Pod began with.
func CarryPod(o, old *objectv1.Pod) {
	if old == nil || o.Spec == nil {
		return
	}
	if o.Spec.NodeName == "" {
		o.Spec.NodeName = old.GetSpec().GetNodeName()
	}
	carryPullPolicy(o.Spec.Containers, old.GetSpec().GetContainers())
	carryPullPolicy(o.Spec.InitContainers, old.GetSpec().GetInitContainers())
}

func carryPullPolicy(list, old []*objectv1.Container) {
	for i, c := range list {
		if c.ImagePullPolicy == nil && i < len(old) && old[i].GetName() == c.GetName() {
			c.ImagePullPolicy = old[i].ImagePullPolicy
		}
	}
}

// DefaultPod fills in the defaults of core/v1's PodSpec and Container, and the first status of a new Pod.
func DefaultPod(o, old *objectv1.Pod) {
	if o.Spec == nil {
		o.Spec = &objectv1.PodSpec{}
	}
	spec := o.Spec
	fill(&spec.RestartPolicy, "Always")
	fill(&spec.TerminationGracePeriodSeconds, defaultGrace)
	fill(&spec.DnsPolicy, "ClusterFirst")
	fill(&spec.SchedulerName, DefaultScheduler)
	fill(&spec.EnableServiceLinks, true)
	if spec.ServiceAccountName == "" {
		spec.ServiceAccountName = spec.ServiceAccount
	}
	spec.ServiceAccount = spec.ServiceAccountName
	for _, t := range spec.Tolerations {
		if t.Operator != nil && *t.Operator == "" {
			t.Operator = nil
		}
	}
	for _, list := range [][]*objectv1.Container{spec.InitContainers, spec.Containers} {
		for _, c := range list {
			defaultContainer(c, spec.HostNetwork)
		}
	}
	if old == nil {
		o.Status = &objectv1.PodStatus{Phase: Pending, QosClass: qosClass(spec)}
	}
}

func defaultContainer(c *objectv1.Container, hostNetwork bool) {
	fill(&c.ImagePullPolicy, pullPolicy(c.GetImage()))
	fill(&c.TerminationMessagePath, "/dev/termination-log")
	fill(&c.TerminationMessagePolicy, "File")
	for _, p := range c.Ports {
		fill(&p.Protocol, "TCP")
		if hostNetwork && p.HostPort == 0 {
			p.HostPort = p.ContainerPort
		}
	}
	for _, p := range []*objectv1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		defaultProbe(p)
	}
	for _, h := range []*objectv1.LifecycleHandler{c.GetLifecycle().GetPostStart(), c.GetLifecycle().GetPreStop()} {
		defaultHTTPGet(h.GetHttpGet())
	}
}

// pullPolicy is Always for the tag latest and for no tag, else IfNotPresent ("Images" in Kubernetes' documentation).
func pullPolicy(image string) string {
	name, _, digested := strings.Cut(image, "@")
	last := name[strings.LastIndexByte(name, '/')+1:]
	_, tag, tagged := strings.Cut(last, ":")
	if tag == "latest" || !tagged && !digested {
		return "Always"
	}
	return "IfNotPresent"
}

func defaultProbe(p *objectv1.Probe) {
	if p == nil {
		return
	}
	zeroIsAbsent(&p.TimeoutSeconds, 1)
	zeroIsAbsent(&p.PeriodSeconds, 10)
	zeroIsAbsent(&p.SuccessThreshold, 1)
	zeroIsAbsent(&p.FailureThreshold, 3)
	defaultHTTPGet(p.HttpGet)
	if p.Grpc != nil {
		fill(&p.Grpc.Service, "")
	}
}

// zeroIsAbsent fills in a number that Kubernetes takes for absent where it is 0.
func zeroIsAbsent(field **int32, value int32) {
	if *field == nil || **field == 0 {
		*field = &value
	}
}

func defaultHTTPGet(g *objectv1.HTTPGetAction) {
	if g == nil {
		return
	}
	if g.GetPath() == "" {
		g.Path = ptr("/")
	}
	fill(&g.Scheme, "HTTP")
}

// GracePeriod is how many seconds a Pod gets to stop, of which the caller asked for asked, nil for the Pod's own. A Pod
// that runs nowhere, or no more, gets none.
func GracePeriod(o *objectv1.Pod, asked *int32) int32 {
	if o.GetSpec().GetNodeName() == "" || Finished(o) {
		return 0
	}
	if asked != nil {
		return *asked
	}
	if o.GetSpec().TerminationGracePeriodSeconds == nil {
		return defaultGrace
	}
	return o.GetSpec().GetTerminationGracePeriodSeconds()
}

// Finished says whether the Pod's containers have ended for good.
func Finished(o *objectv1.Pod) bool {
	phase := o.GetStatus().GetPhase()
	return phase == Succeeded || phase == Failed
}
