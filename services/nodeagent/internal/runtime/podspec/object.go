package podspec

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"podwire.dev/internal/errs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// FromObject parses a Pod. It expects an object that passed validation and still
// refuses, with errs.Invalid and the field path, what it could not run: names that
// would not be safe as file names, and addresses that are none.
func FromObject(o *objectv1.Pod) (Pod, error) {
	m, s := o.GetMetadata(), o.GetSpec()
	p := Pod{
		Namespace:          m.GetNamespace(),
		Name:               m.GetName(),
		UID:                m.GetUid(),
		Labels:             m.GetLabels(),
		Annotations:        m.GetAnnotations(),
		Hostname:           s.GetHostname(),
		Subdomain:          s.GetSubdomain(),
		SetHostnameAsFQDN:  s.GetSetHostnameAsFqdn(),
		NodeName:           s.GetNodeName(),
		ServiceAccountName: s.GetServiceAccountName(),
		HostNetwork:        s.GetHostNetwork(),
		RestartPolicy:      RestartAlways,
		GracePeriod:        DefaultGracePeriod,
		ActiveDeadline:     seconds(s.GetActiveDeadlineSeconds()),
		DNS:                DNS{Policy: "ClusterFirst"},
	}
	if s.GetHostnameOverride() != "" {
		p.Hostname, p.SetHostnameAsFQDN = s.GetHostnameOverride(), false
	}
	if s.RestartPolicy != nil {
		p.RestartPolicy = RestartPolicy(s.GetRestartPolicy())
	}
	if s.GetTerminationGracePeriodSeconds() > 0 || s.TerminationGracePeriodSeconds != nil {
		p.GracePeriod = seconds(s.GetTerminationGracePeriodSeconds())
	}
	if s.DnsPolicy != nil {
		p.DNS.Policy = s.GetDnsPolicy()
	}
	var bad []errs.Violation
	parseDNS(&p, s, &bad)
	for _, g := range s.GetReadinessGates() {
		p.ReadinessGates = append(p.ReadinessGates, g.GetConditionType())
	}
	if !safeName(p.UID) {
		bad = append(bad, errs.Violation{Field: "metadata.uid", Value: p.UID, Rule: "must be letters, digits, dots and dashes, and begin with a letter or digit"})
	}
	seen := map[string]bool{}
	lists := []struct {
		field string
		from  []*objectv1.Container
		to    *[]Container
	}{{"spec.initContainers", s.GetInitContainers(), &p.Init}, {"spec.containers", s.GetContainers(), &p.Containers}}
	for _, l := range lists {
		for i, c := range l.from {
			if !safeName(c.GetName()) || seen[c.GetName()] {
				bad = append(bad, errs.Violation{Field: fmt.Sprintf("%s[%d].name", l.field, i), Value: c.GetName(), Rule: "must be a DNS label that no other container of the Pod has"})
			}
			seen[c.GetName()] = true
			*l.to = append(*l.to, container(c, s.GetSecurityContext()))
		}
	}
	if len(p.Containers) == 0 {
		bad = append(bad, errs.Violation{Field: "spec.containers", Rule: "must have at least one container"})
	}
	return p, errs.InvalidFields("Pod "+p.Ref(), bad)
}

func parseDNS(p *Pod, s *objectv1.PodSpec, bad *[]errs.Violation) {
	for i, text := range s.GetDnsConfig().GetNameservers() {
		a, err := netip.ParseAddr(text)
		if err != nil {
			*bad = append(*bad, errs.Violation{Field: fmt.Sprintf("spec.dnsConfig.nameservers[%d]", i), Value: text, Rule: "must be an IP address"})
			continue
		}
		p.DNS.Nameservers = append(p.DNS.Nameservers, a)
	}
	p.DNS.Searches = s.GetDnsConfig().GetSearches()
	for _, o := range s.GetDnsConfig().GetOptions() {
		text := o.GetName()
		if o.Value != nil {
			text += ":" + o.GetValue()
		}
		p.DNS.Options = append(p.DNS.Options, text)
	}
	for i, h := range s.GetHostAliases() {
		a, err := netip.ParseAddr(h.GetIp())
		if err != nil {
			*bad = append(*bad, errs.Violation{Field: fmt.Sprintf("spec.hostAliases[%d].ip", i), Value: h.GetIp(), Rule: "must be an IP address"})
			continue
		}
		p.HostAliases = append(p.HostAliases, HostAlias{IP: a, Hostnames: h.GetHostnames()})
	}
}

// safeName says whether a name can be one element of a path.
func safeName(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.') {
			return false
		}
	}
	return true
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

func container(c *objectv1.Container, podContext *structpb.Struct) Container {
	out := Container{
		Name: c.GetName(), Image: c.GetImage(),
		Command: c.GetCommand(), Args: c.GetArgs(), WorkingDir: c.GetWorkingDir(),
		Startup: parseProbe(c.GetStartupProbe()), Readiness: parseProbe(c.GetReadinessProbe()),
		Liveness:  parseProbe(c.GetLivenessProbe()),
		PostStart: hook(c.GetLifecycle().GetPostStart()), PreStop: hook(c.GetLifecycle().GetPreStop()),
		StopSignal: c.GetLifecycle().GetStopSignal(),
		Restart:    RestartPolicy(c.GetRestartPolicy()),
		User:       user(podContext, c.GetSecurityContext()),
	}
	for _, p := range c.GetPorts() {
		port := Port{Name: p.GetName(), Protocol: "TCP", Number: uint16(p.GetContainerPort()), HostPort: uint16(p.GetHostPort())}
		if p.Protocol != nil {
			port.Protocol = p.GetProtocol()
		}
		out.Ports = append(out.Ports, port)
	}
	for _, e := range c.GetEnv() {
		v := EnvVar{Name: e.GetName(), Value: e.GetValue()}
		if from := e.GetValueFrom(); from != nil {
			path, optional := source(from)
			if path == "" && optional {
				continue
			}
			if path == "" {
				out.Problem = fmt.Sprintf("env %s: valueFrom is supported for fieldRef only on this runtime; give a value", e.GetName())
			}
			v.FieldPath = path
		}
		out.Env = append(out.Env, v)
	}
	for i, from := range c.GetEnvFrom() {
		if _, optional := source(from); !optional {
			out.Problem = fmt.Sprintf("envFrom[%d]: ConfigMaps and Secrets are not supported on this runtime; name the variables under env", i)
		}
	}
	return out
}

// source reads an EnvVarSource: the path of a fieldRef, or whether what it names
// instead may be absent.
func source(from *structpb.Struct) (fieldPath string, optional bool) {
	for kind, v := range from.GetFields() {
		ref := v.GetStructValue().GetFields()
		if kind == "fieldRef" {
			return ref["fieldPath"].GetStringValue(), false
		}
		if ref["optional"].GetBoolValue() {
			optional = true
		}
	}
	return "", optional
}

// user merges the Pod's security context with the container's, which wins.
func user(pod, own *structpb.Struct) User {
	u := User{UID: -1, GID: -1}
	for _, s := range []*structpb.Struct{pod, own} {
		f := s.GetFields()
		if v, ok := f["runAsUser"]; ok {
			u.UID = int(v.GetNumberValue())
		}
		if v, ok := f["runAsGroup"]; ok {
			u.GID = int(v.GetNumberValue())
		}
		if v, ok := f["runAsNonRoot"]; ok {
			u.NonRoot = v.GetBoolValue()
		}
	}
	for _, g := range pod.GetFields()["supplementalGroups"].GetListValue().GetValues() {
		u.Groups = append(u.Groups, int(g.GetNumberValue()))
	}
	if v, ok := pod.GetFields()["fsGroup"]; ok {
		u.Groups = append(u.Groups, int(v.GetNumberValue()))
	}
	return u
}

func parseProbe(p *objectv1.Probe) *Probe {
	if p == nil {
		return nil
	}
	out := &Probe{
		InitialDelay: seconds(p.GetInitialDelaySeconds()),
		Period:       DefaultProbePeriod, Timeout: DefaultProbeTimeout,
		SuccessThreshold: 1, FailureThreshold: DefaultFailThreshold,
		GracePeriod: -1,
	}
	if p.GetPeriodSeconds() > 0 {
		out.Period = seconds(p.GetPeriodSeconds())
	}
	if p.GetTimeoutSeconds() > 0 {
		out.Timeout = seconds(p.GetTimeoutSeconds())
	}
	if p.GetSuccessThreshold() > 0 {
		out.SuccessThreshold = int(p.GetSuccessThreshold())
	}
	if p.GetFailureThreshold() > 0 {
		out.FailureThreshold = int(p.GetFailureThreshold())
	}
	if p.TerminationGracePeriodSeconds != nil {
		out.GracePeriod = seconds(p.GetTerminationGracePeriodSeconds())
	}
	out.Handler = Handler{HTTP: httpGet(p.GetHttpGet()), TCP: tcpSocket(p.GetTcpSocket()), Exec: p.GetExec().GetCommand()}
	if g := p.GetGrpc(); g != nil {
		out.Handler.GRPC = &GRPC{Port: uint16(g.GetPort()), Service: g.GetService()}
	}
	return out
}

func hook(h *objectv1.LifecycleHandler) *Handler {
	if h == nil {
		return nil
	}
	if s := h.GetSleep(); s != nil && s.GetSeconds() == 0 {
		return nil // allowed, and nothing to do
	}
	return &Handler{
		HTTP: httpGet(h.GetHttpGet()), TCP: tcpSocket(h.GetTcpSocket()),
		Exec: h.GetExec().GetCommand(), Sleep: seconds(h.GetSleep().GetSeconds()),
	}
}

func httpGet(a *objectv1.HTTPGetAction) *HTTPGet {
	if a == nil {
		return nil
	}
	out := &HTTPGet{Scheme: "HTTP", Host: a.GetHost(), Port: portText(a.GetPort()), Path: "/"}
	if a.Scheme != nil {
		out.Scheme = a.GetScheme()
	}
	if a.Path != nil {
		out.Path = a.GetPath()
	}
	for _, h := range a.GetHttpHeaders() {
		out.Headers = append(out.Headers, Header{Name: h.GetName(), Value: h.GetValue()})
	}
	return out
}

func tcpSocket(a *objectv1.TCPSocketAction) *TCPSocket {
	if a == nil {
		return nil
	}
	return &TCPSocket{Host: a.GetHost(), Port: portText(a.GetPort())}
}

// portText is an int-or-string as text.
func portText(v *structpb.Value) string {
	if n, ok := v.GetKind().(*structpb.Value_NumberValue); ok && n.NumberValue == math.Trunc(n.NumberValue) {
		return strconv.FormatInt(int64(n.NumberValue), 10)
	}
	return v.GetStringValue()
}

// PortNumber resolves a port of a probe or hook: a number, or a containerPort's name.
func (c Container) PortNumber(port string) (uint16, error) {
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
		return uint16(n), nil
	}
	for _, p := range c.Ports {
		if p.Name != "" && p.Name == port {
			return p.Number, nil
		}
	}
	return 0, errs.New(errs.Invalid, "container %s: port %q is neither a number from 1 to 65535 nor the name of one of its ports", c.Name, port)
}
