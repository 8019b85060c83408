package admission

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// containers checks the containers of a Pod and what has to be unique among them.
func (v *violations) containers(spec *objectv1.PodSpec) {
	if len(spec.GetContainers()) == 0 {
		v.add("spec.containers", "", "is required: a Pod has at least one container")
	}
	taken, hostPorts := map[string]bool{}, map[string]bool{}
	for _, list := range []struct {
		path string
		of   []*objectv1.Container
		init initContainers
	}{{"spec.initContainers", spec.GetInitContainers(), true}, {"spec.containers", spec.GetContainers(), false}} {
		for i, c := range list.of {
			at := fmt.Sprintf("%s[%d]", list.path, i)
			v.container(at, c, taken)
			v.ports(at+".ports", c.GetPorts(), spec.GetHostNetwork(), hostPorts)
			v.containerRestart(at, c, list.init)
			v.probes(at, c, spec)
			v.resources(at+".resources", c.GetResources())
		}
	}
}

// initContainers tells the two lists apart.
type initContainers bool

func (v *violations) container(at string, c *objectv1.Container, taken map[string]bool) {
	name := c.GetName()
	switch {
	case name == "":
		v.add(at+".name", "", "is required")
	case taken[name]:
		v.add(at+".name", name, "must be unique among the containers and init containers of the Pod")
	default:
		v.named(at+".name", name, names.DNSLabel)
	}
	taken[name] = true
	switch image := c.GetImage(); {
	case image == "":
		v.add(at+".image", "", "is required")
	case strings.TrimSpace(image) != image:
		v.add(at+".image", image, "must not have leading or trailing whitespace")
	}
	v.oneOf(at+".imagePullPolicy", c.GetImagePullPolicy(), "Always", "IfNotPresent", "Never")
	v.oneOf(at+".terminationMessagePolicy", c.GetTerminationMessagePolicy(), "File", "FallbackToLogsOnError")
	for i, e := range c.GetEnv() {
		path := fmt.Sprintf("%s.env[%d]", at, i)
		if rule := envNameRule(e.GetName()); rule != "" {
			v.add(path+".name", e.GetName(), "%s", rule)
		}
		v.envSource(path, e)
	}
}

// envSource checks an EnvVarSource, of which exactly one field is set.
func (v *violations) envSource(at string, e *objectv1.EnvVar) {
	if e.GetValueFrom() == nil {
		return
	}
	if e.GetValue() != "" {
		v.add(at+".valueFrom", "", "may not be specified when `value` is not empty")
	}
	sources := 0
	for _, name := range []string{"fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"} {
		if _, ok := e.GetValueFrom().GetFields()[name]; ok {
			sources++
		}
	}
	if sources != 1 {
		v.add(at+".valueFrom", "", "must specify exactly one of fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef or fileKeyRef")
	}
}

func (v *violations) ports(at string, ports []*objectv1.ContainerPort, hostNetwork bool, hostPorts map[string]bool) {
	taken, numbers := map[string]bool{}, map[string]bool{}
	for i, p := range ports {
		path := fmt.Sprintf("%s[%d]", at, i)
		if name := p.GetName(); name != "" {
			if rule := names.Port(name); rule != "" {
				v.add(path+".name", name, "%s", rule)
			} else if taken[name] {
				v.add(path+".name", name, "must be unique among the ports of the container")
			}
			taken[name] = true
		}
		v.between(path+".containerPort", p.GetContainerPort(), 1, math.MaxUint16)
		v.oneOf(path+".protocol", p.GetProtocol(), "TCP", "UDP", "SCTP")
		number := fmt.Sprintf("%d/%s", p.GetContainerPort(), p.GetProtocol())
		if numbers[number] && p.GetHostPort() == 0 {
			v.add(path, number, "must be unique among the ports of the container")
		}
		numbers[number] = true
		v.hostPort(path, p, hostNetwork, hostPorts)
	}
}

func (v *violations) hostPort(at string, p *objectv1.ContainerPort, hostNetwork bool, taken map[string]bool) {
	if p.GetHostIp() != "" {
		v.address(at+".hostIP", p.GetHostIp())
	}
	if p.GetHostPort() == 0 {
		return
	}
	v.between(at+".hostPort", p.GetHostPort(), 1, math.MaxUint16)
	if hostNetwork && p.GetHostPort() != p.GetContainerPort() {
		v.add(at+".hostPort", strconv.Itoa(int(p.GetHostPort())), "must match `containerPort` when `hostNetwork` is true")
	}
	id := fmt.Sprintf("%s/%s/%d", p.GetProtocol(), p.GetHostIp(), p.GetHostPort())
	if taken[id] {
		v.add(at+".hostPort", strconv.Itoa(int(p.GetHostPort())), "must be unique among the ports of the Pod")
	}
	taken[id] = true
}

// containerRestart are the rules of a container's own restart policy and of its hooks.
func (v *violations) containerRestart(at string, c *objectv1.Container, init initContainers) {
	if c.RestartPolicy != nil {
		v.oneOf(at+".restartPolicy", c.GetRestartPolicy(), "Always", "OnFailure", "Never")
	}
	sidecar := bool(init) && c.GetRestartPolicy() == "Always"
	if bool(init) && !sidecar {
		for _, f := range []struct {
			name string
			set  bool
		}{
			{"lifecycle", c.GetLifecycle() != nil}, {"livenessProbe", c.GetLivenessProbe() != nil},
			{"readinessProbe", c.GetReadinessProbe() != nil}, {"startupProbe", c.GetStartupProbe() != nil},
		} {
			if f.set {
				v.add(at+"."+f.name, "", "may not be set for init containers without restartPolicy=Always")
			}
		}
		return
	}
	v.hook(at+".lifecycle.postStart", c.GetLifecycle().GetPostStart(), c)
	v.hook(at+".lifecycle.preStop", c.GetLifecycle().GetPreStop(), c)
}

func (v *violations) hook(at string, h *objectv1.LifecycleHandler, c *objectv1.Container) {
	if h == nil {
		return
	}
	count := v.actions(at, c, actions{exec: h.GetExec(), httpGet: h.GetHttpGet(), tcpSocket: h.GetTcpSocket()})
	if s := h.GetSleep(); s != nil {
		count++
		v.atLeast(at+".sleep.seconds", s.GetSeconds(), 0)
	}
	v.exactlyOne(at, count, "handler")
}

func (v *violations) exactlyOne(at string, count int, what string) {
	switch {
	case count == 0:
		v.add(at, "", "must specify a %s type", what)
	case count > 1:
		v.add(at, "", "may not specify more than 1 %s type", what)
	}
}

// probes are the rules of the three probes.
func (v *violations) probes(at string, c *objectv1.Container, spec *objectv1.PodSpec) {
	for _, p := range []struct {
		name  string
		probe *objectv1.Probe
	}{{"livenessProbe", c.GetLivenessProbe()}, {"readinessProbe", c.GetReadinessProbe()}, {"startupProbe", c.GetStartupProbe()}} {
		if p.probe == nil {
			continue
		}
		path := at + "." + p.name
		v.probe(path, p.probe, c)
		if p.name != "readinessProbe" && p.probe.GetSuccessThreshold() != 1 {
			v.add(path+".successThreshold", strconv.Itoa(int(p.probe.GetSuccessThreshold())), "must be 1")
		}
		if p.probe.TerminationGracePeriodSeconds == nil {
			continue
		}
		if p.name == "readinessProbe" {
			v.add(path+".terminationGracePeriodSeconds", strconv.Itoa(int(p.probe.GetTerminationGracePeriodSeconds())), "must not be set for readinessProbes")
		} else {
			v.atLeast(path+".terminationGracePeriodSeconds", p.probe.GetTerminationGracePeriodSeconds(), 1)
		}
	}
}

func (v *violations) probe(at string, p *objectv1.Probe, c *objectv1.Container) {
	count := v.actions(at, c, actions{exec: p.GetExec(), httpGet: p.GetHttpGet(), tcpSocket: p.GetTcpSocket()})
	if g := p.GetGrpc(); g != nil {
		count++
		v.between(at+".grpc.port", g.GetPort(), 1, math.MaxUint16)
	}
	v.exactlyOne(at, count, "handler")
	v.atLeast(at+".initialDelaySeconds", p.GetInitialDelaySeconds(), 0)
	v.atLeast(at+".timeoutSeconds", p.GetTimeoutSeconds(), 1)
	v.atLeast(at+".periodSeconds", p.GetPeriodSeconds(), 1)
	v.atLeast(at+".successThreshold", p.GetSuccessThreshold(), 1)
	v.atLeast(at+".failureThreshold", p.GetFailureThreshold(), 1)
}

// actions are the actions that probes and hooks have in common.
type actions struct {
	exec      *objectv1.ExecAction
	httpGet   *objectv1.HTTPGetAction
	tcpSocket *objectv1.TCPSocketAction
}

// actions checks the actions that are set and counts them.
func (v *violations) actions(at string, c *objectv1.Container, a actions) int {
	count := 0
	if a.exec != nil {
		count++
		if len(a.exec.GetCommand()) == 0 {
			v.add(at+".exec.command", "", "is required")
		}
	}
	if g := a.httpGet; g != nil {
		count++
		v.portOf(at+".httpGet.port", g.GetPort(), c)
		v.oneOf(at+".httpGet.scheme", g.GetScheme(), "HTTP", "HTTPS")
		for i, h := range g.GetHttpHeaders() {
			if !isHeaderName(h.GetName()) {
				v.add(fmt.Sprintf("%s.httpGet.httpHeaders[%d].name", at, i), h.GetName(), "must be a valid HTTP header name: letters, digits and '-'")
			}
		}
	}
	if s := a.tcpSocket; s != nil {
		count++
		v.portOf(at+".tcpSocket.port", s.GetPort(), c)
	}
	return count
}

// portOf checks a port that is a number or the name of one of the container's.
func (v *violations) portOf(at string, port *structpb.Value, c *objectv1.Container) {
	switch value := port.AsInterface().(type) {
	case float64:
		if value < 1 || value > math.MaxUint16 || value != math.Trunc(value) {
			v.add(at, strconv.FormatFloat(value, 'f', -1, 64), "must be between 1 and 65535, inclusive")
		}
	case string:
		if rule := names.Port(value); rule != "" {
			v.add(at, value, "%s", rule)
			return
		}
		for _, p := range c.GetPorts() {
			if p.GetName() == value {
				return
			}
		}
		v.add(at, value, "must be the number of a port or the name of one of the container's ports")
	case nil:
		v.add(at, "", "is required")
	default:
		v.add(at, fmt.Sprint(value), "must be the number of a port or the name of one of the container's ports")
	}
}

// isHeaderName is the rule of Kubernetes' IsHTTPHeaderName.
func isHeaderName(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && s[i] != '-' {
			return false
		}
	}
	return s != ""
}
