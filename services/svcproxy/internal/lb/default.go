package lb

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// CarryService fills o with what Kubernetes keeps of the Service it replaces where the caller left it out: cluster
// addresses, families, node ports and the health check port while they are needed. What the new type does not need is
// dropped, unless the caller changed it, in which case validation is to complain. old is nil on create.
func CarryService(o, old *objectv1.Service) {
	if o.Spec == nil {
		o.Spec = &objectv1.ServiceSpec{}
	}
	carryAnnotations(o, old)
	if old != nil {
		carryValues(o, old)
	}
	carryClusterIPs(o, old)
	if old != nil {
		carryFamilies(o, old)
		dropUnneeded(o, old)
	}
}

// carryAnnotations keeps our own annotations ours.
func carryAnnotations(o, old *objectv1.Service) {
	meta := o.GetMetadata()
	for _, key := range []string{AnnotationAnnouncer, AnnotationEpoch} {
		value, ok := old.GetMetadata().GetAnnotations()[key]
		if !ok || !Balanced(o) {
			delete(meta.GetAnnotations(), key)
			continue
		}
		if meta.Annotations == nil {
			meta.Annotations = map[string]string{}
		}
		meta.Annotations[key] = value
	}
}

// carryValues keeps allocated values (Kubernetes: patchAllocatedValues).
func carryValues(o, old *objectv1.Service) {
	spec, was := o.GetSpec(), old.GetSpec()
	if needsClusterIP(o) && needsClusterIP(old) {
		if spec.ClusterIp == "" && len(spec.ClusterIps) == 0 {
			spec.ClusterIp = was.ClusterIp
		}
		if len(spec.ClusterIps) == 0 && spec.ClusterIp == was.ClusterIp {
			spec.ClusterIps = slices.Clone(was.ClusterIps)
		}
	}
	if needsNodePorts(o) && needsNodePorts(old) {
		carryNodePorts(spec, was, nodePorts(o), nodePorts(old))
	}
	if needsHealthCheck(o) && needsHealthCheck(old) && spec.HealthCheckNodePort == 0 {
		spec.HealthCheckNodePort = was.HealthCheckNodePort
	}
}

// carryNodePorts gives each port that names none the node port of the old port of the same name, unless the caller gave
// it to another one.
func carryNodePorts(spec, was *objectv1.ServiceSpec, now, before []int32) {
	used := map[int32]bool{}
	for _, n := range now {
		if slices.Contains(before, n) {
			used[n] = true
		}
	}
	byName := map[string]*objectv1.ServicePort{}
	for _, p := range was.GetPorts() {
		byName[p.GetName()] = p
	}
	carried := map[int32]map[string]bool{} // node port -> protocols
	for _, p := range spec.GetPorts() {
		n := byName[p.GetName()].GetNodePort()
		if p.GetNodePort() != 0 || n == 0 || used[n] || carried[n][p.GetProtocol()] {
			continue
		}
		p.NodePort = n
		if carried[n] == nil {
			carried[n] = map[string]bool{}
		}
		carried[n][p.GetProtocol()] = true
	}
}

// carryClusterIPs brings clusterIP and clusterIPs together where the caller used only the older one (Kubernetes:
// normalizeClusterIPs).
func carryClusterIPs(o, old *objectv1.Service) {
	spec, was := o.GetSpec(), old.GetSpec()
	switch {
	case spec.ClusterIp != "" && len(spec.ClusterIps) == 0:
		spec.ClusterIps = []string{spec.ClusterIp}
	case old == nil || was.GetClusterIp() == spec.ClusterIp || !slices.Equal(spec.ClusterIps, was.GetClusterIps()):
	case spec.ClusterIp == "":
		spec.ClusterIps = nil
	default:
		spec.ClusterIps = []string{spec.ClusterIp}
	}
}

// carryFamilies keeps the families, which are bound to the addresses, and takes the second one away from a Service that
// becomes SingleStack.
func carryFamilies(o, old *objectv1.Service) {
	if !needsClusterIP(o) || !needsClusterIP(old) {
		return
	}
	spec, was := o.GetSpec(), old.GetSpec()
	if spec.IpFamilyPolicy == nil {
		spec.IpFamilyPolicy = was.IpFamilyPolicy
	}
	if len(spec.IpFamilies) == 0 {
		spec.IpFamilies = slices.Clone(was.IpFamilies)
	}
	if spec.GetIpFamilyPolicy() != singleStack || was.GetIpFamilyPolicy() == singleStack {
		return
	}
	if len(spec.ClusterIps) > 1 && slices.Equal(spec.ClusterIps, was.ClusterIps) {
		spec.ClusterIps = spec.ClusterIps[:1]
	}
	if len(spec.IpFamilies) > 1 && slices.Equal(spec.IpFamilies, was.IpFamilies) {
		spec.IpFamilies = spec.IpFamilies[:1]
	}
}

// dropUnneeded wipes what the new type has no use for and the caller did not touch (Kubernetes: dropTypeDependentFields).
func dropUnneeded(o, old *objectv1.Service) {
	spec, was := o.GetSpec(), old.GetSpec()
	if needsClusterIP(old) && !needsClusterIP(o) {
		if slices.Equal(spec.ClusterIps, was.ClusterIps) && spec.ClusterIp == was.ClusterIp {
			spec.ClusterIp, spec.ClusterIps = "", nil
		}
		if slices.Equal(spec.IpFamilies, was.IpFamilies) {
			spec.IpFamilies = nil
		}
		if equalPtr(spec.IpFamilyPolicy, was.IpFamilyPolicy) {
			spec.IpFamilyPolicy = nil
		}
		if equalPtr(spec.InternalTrafficPolicy, was.InternalTrafficPolicy) {
			spec.InternalTrafficPolicy = nil
		}
	}
	if needsNodePorts(old) && !needsNodePorts(o) && slices.Equal(nodePorts(o), nodePorts(old)) {
		for _, p := range spec.Ports {
			p.NodePort = 0
		}
	}
	if needsHealthCheck(old) && !needsHealthCheck(o) && spec.HealthCheckNodePort == was.HealthCheckNodePort {
		spec.HealthCheckNodePort = 0
	}
	if typeOf(old) == TypeLoadBalancer && typeOf(o) != TypeLoadBalancer {
		if equalPtr(spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			spec.AllocateLoadBalancerNodePorts = nil
		}
		if equalPtr(spec.LoadBalancerClass, was.LoadBalancerClass) {
			spec.LoadBalancerClass = nil
		}
	}
	if externallyAccessible(old) && !externallyAccessible(o) && equalPtr(spec.ExternalTrafficPolicy, was.ExternalTrafficPolicy) {
		spec.ExternalTrafficPolicy = nil
	}
}

// DefaultService fills in Kubernetes' defaults. have are the cluster's families. The status that does not fit the type
// any more is cleared: a Service has load balancer addresses only while it is of type LoadBalancer.
func DefaultService(o *objectv1.Service, have Families) {
	if o.Spec == nil {
		o.Spec = &objectv1.ServiceSpec{}
	}
	spec := o.Spec
	spec.Type = ptr(typeOf(o))
	if spec.GetSessionAffinity() == "" {
		spec.SessionAffinity = ptr(affinityNone)
	}
	switch spec.GetSessionAffinity() {
	case affinityNone:
		spec.SessionAffinityConfig = nil
	case affinityClientIP:
		defaultAffinityConfig(spec)
	}
	for _, p := range spec.GetPorts() {
		if p.Protocol == nil {
			p.Protocol = ptr("TCP")
		}
		if unsetPort(p.GetTargetPort()) {
			p.TargetPort = structpb.NewNumberValue(float64(p.GetPort()))
		}
	}
	if externallyAccessible(o) && spec.GetExternalTrafficPolicy() == "" {
		spec.ExternalTrafficPolicy = ptr(policyCluster)
	}
	if spec.GetType() != TypeExternalName && spec.InternalTrafficPolicy == nil {
		spec.InternalTrafficPolicy = ptr(policyCluster)
	}
	if spec.GetType() == TypeLoadBalancer {
		if spec.AllocateLoadBalancerNodePorts == nil {
			spec.AllocateLoadBalancerNodePorts = ptr(true)
		}
	} else if o.Status != nil {
		o.Status.LoadBalancer = nil
	}
	if o.Status == nil {
		o.Status = &objectv1.ServiceStatus{}
	}
	if o.Status.LoadBalancer == nil {
		o.Status.LoadBalancer = &objectv1.LoadBalancerStatus{}
	}
	defaultFamilies(o, have)
}

func defaultAffinityConfig(spec *objectv1.ServiceSpec) {
	if spec.SessionAffinityConfig == nil {
		spec.SessionAffinityConfig = &objectv1.SessionAffinityConfig{}
	}
	config := spec.SessionAffinityConfig
	if config.ClientIp == nil {
		config.ClientIp = &objectv1.ClientIPConfig{}
	}
	if config.ClientIp.TimeoutSeconds == nil {
		config.ClientIp.TimeoutSeconds = ptr(int32(defaultAffinity))
	}
}

// unsetPort says whether a target port is to be the Service's own: absent, 0 or empty.
func unsetPort(v *structpb.Value) bool {
	switch kind := v.GetKind().(type) {
	case nil, *structpb.Value_NullValue:
		return true
	case *structpb.Value_NumberValue:
		return kind.NumberValue == 0
	case *structpb.Value_StringValue:
		return kind.StringValue == ""
	}
	return false
}

// defaultFamilies infers ipFamilyPolicy and ipFamilies (Kubernetes: initIPFamilyFields, KEP-563). What cannot be
// inferred stays as it is, for validation to complain about.
func defaultFamilies(o *objectv1.Service, have Families) {
	spec := o.Spec
	if spec.GetType() == TypeExternalName || len(have) == 0 {
		return
	}
	for i, text := range spec.ClusterIps {
		a, err := netip.ParseAddr(text)
		if err == nil && i >= len(spec.IpFamilies) {
			spec.IpFamilies = append(spec.IpFamilies, string(FamilyOf(a)))
		}
	}
	selectorless := isHeadless(o) && len(spec.GetSelector()) == 0
	if spec.IpFamilyPolicy == nil {
		spec.IpFamilyPolicy = ptr(singleStack)
		if selectorless {
			spec.IpFamilyPolicy = ptr(requireDualStack)
		}
	}
	if len(spec.IpFamilies) == 0 {
		spec.IpFamilies = []string{string(have[0])}
	}
	if spec.GetIpFamilyPolicy() == singleStack || len(spec.IpFamilies) > 1 {
		return
	}
	// A headless Service without a selector has nothing of the cluster's, so it may have a family that the cluster
	// has not.
	second := Family(spec.IpFamilies[0]).other()
	if Family(spec.IpFamilies[0]).valid() && (have.has(second) || selectorless) {
		spec.IpFamilies = append(spec.IpFamilies, string(second))
	}
}

// DefaultSlice fills in Kubernetes' defaults of an EndpointSlice: each port's name and protocol.
func DefaultSlice(o *objectv1.EndpointSlice) {
	for _, p := range o.GetPorts() {
		if p.Name == nil {
			p.Name = ptr("")
		}
		if p.Protocol == nil {
			p.Protocol = ptr("TCP")
		}
	}
}

// sourceRanges are the client ranges of a load balancer: spec.loadBalancerSourceRanges or, where that is empty, the
// annotation.
func sourceRanges(o *objectv1.Service) []string {
	if ranges := o.GetSpec().GetLoadBalancerSourceRanges(); len(ranges) > 0 {
		return ranges
	}
	text := strings.TrimSpace(o.GetMetadata().GetAnnotations()[AnnotationSourceRanges])
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// mirrored are the labels of a Service that its slices carry, without those that mean something on a slice.
func mirrored(labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	for _, key := range []string{LabelServiceName, LabelManagedBy, LabelHeadless} {
		delete(out, key)
	}
	if out == nil {
		out = map[string]string{}
	}
	return out
}
