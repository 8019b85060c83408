package lb

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/nodestate"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// violations collects what is wrong under a path.
type violations []errs.Violation

func (v *violations) add(path, value, rule string, args ...any) {
	*v = append(*v, errs.Violation{Field: path, Value: value, Rule: fmt.Sprintf(rule, args...)})
}

// oneOf checks an enumeration.
func (v *violations) oneOf(path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		v.add(path, value, "must be one of: %s", strings.Join(allowed, ", "))
	}
}

// ValidateService returns every rule of core/v1 that a completed Service breaks, with Kubernetes' field paths; old is
// what it replaces, nil on create; have are the cluster's families. Metadata is not its concern, but for the annotation
// with source ranges. What needs a look at other Services (addresses and node ports that are taken) is ipam's.
func ValidateService(o, old *objectv1.Service, have Families) []errs.Violation {
	var v violations
	spec := o.GetSpec()
	v.oneOf("spec.type", spec.GetType(), TypeClusterIP, TypeNodePort, TypeLoadBalancer, TypeExternalName)
	v.shapeOfType(o)
	v.servicePorts(o)
	for _, key := range slices.Sorted(maps.Keys(spec.GetSelector())) {
		v.labelKey("spec.selector", key)
		v.labelValue("spec.selector["+key+"]", spec.GetSelector()[key])
	}
	v.affinity(spec)
	v.clusterIPs(o)
	v.families(o, have)
	for i, text := range spec.GetExternalIps() {
		v.usableIP(fmt.Sprintf("spec.externalIPs[%d]", i), text)
	}
	v.balancer(o)
	v.trafficPolicies(o)
	if old != nil {
		v.serviceUpdate(o, old)
	}
	return v
}

// shapeOfType checks what a type must have and must not have.
func (v *violations) shapeOfType(o *objectv1.Service) {
	spec := o.GetSpec()
	if len(spec.GetPorts()) == 0 && !isHeadless(o) && spec.GetType() != TypeExternalName {
		v.add("spec.ports", "", "is required")
	}
	switch spec.GetType() {
	case TypeLoadBalancer, TypeNodePort:
		if isHeadless(o) {
			v.add("spec.clusterIPs[0]", headless, "may not be set to 'None' for %s services", spec.GetType())
		}
	case TypeExternalName:
		for _, field := range []struct {
			name string
			set  bool
		}{
			{"clusterIPs", len(spec.GetClusterIps()) > 0 || spec.GetClusterIp() != ""},
			{"ipFamilies", len(spec.GetIpFamilies()) > 0},
			{"ipFamilyPolicy", spec.IpFamilyPolicy != nil},
		} {
			if field.set {
				v.add("spec."+field.name, "", "may not be set for ExternalName services")
			}
		}
		v.externalName(spec.GetExternalName())
	}
}

func (v *violations) externalName(name string) {
	if name == "" {
		v.add("spec.externalName", "", "is required")
		return
	}
	if rule := names.DNSSubdomain(strings.TrimSuffix(name, ".")); rule != "" {
		v.add("spec.externalName", name, "%s", rule)
	}
}

type portKey struct {
	protocol string
	number   int32
}

func (v *violations) servicePorts(o *objectv1.Service) {
	ports := o.GetSpec().GetPorts()
	taken := map[string]bool{}
	seen, onNodes := map[portKey]bool{}, map[portKey]bool{}
	for i, p := range ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		v.portName(at+".name", p.GetName(), len(ports) > 1, taken)
		v.portNumber(at+".port", p.GetPort())
		v.protocol(at+".protocol", p.GetProtocol())
		v.targetPort(at+".targetPort", p.GetTargetPort())
		if p.AppProtocol != nil {
			v.labelKey(at+".appProtocol", p.GetAppProtocol())
		}
		key := portKey{p.GetProtocol(), p.GetPort()}
		if seen[key] {
			v.add(at, fmt.Sprintf("%s %d", key.protocol, key.number), "is a duplicate: port and protocol are those of another port")
		}
		seen[key] = true
		if p.GetNodePort() == 0 {
			continue
		}
		number := strconv.Itoa(int(p.GetNodePort()))
		if !mayHaveNodePorts(o) {
			v.add(at+".nodePort", number, "may not be used when `type` is '%s'", typeOf(o))
			continue
		}
		v.portNumber(at+".nodePort", p.GetNodePort())
		key.number = p.GetNodePort()
		if onNodes[key] {
			v.add(at+".nodePort", number, "is a duplicate: another port has it for the same protocol")
		}
		onNodes[key] = true
	}
}

func (v *violations) portName(path, name string, required bool, taken map[string]bool) {
	switch {
	case name == "" && required:
		v.add(path, "", "is required where there are several ports")
	case name == "":
	case names.DNSLabel(name) != "":
		v.add(path, name, "%s", names.DNSLabel(name))
	case taken[name]:
		v.add(path, name, "is a duplicate")
	}
	taken[name] = true
}

func (v *violations) portNumber(path string, n int32) {
	if n < 1 || n > 65535 {
		v.add(path, strconv.Itoa(int(n)), "must be between 1 and 65535, inclusive")
	}
}

func (v *violations) protocol(path, name string) {
	if _, ok := nodestate.ParseProtocol(name); !ok || name == "" {
		v.add(path, name, "must be one of: SCTP, TCP, UDP")
	}
}

func (v *violations) targetPort(path string, value *structpb.Value) {
	switch kind := value.GetKind().(type) {
	case *structpb.Value_NumberValue:
		if n := kind.NumberValue; n < 1 || n > 65535 || n != float64(int32(n)) {
			v.add(path, strconv.FormatFloat(n, 'f', -1, 64), "must be between 1 and 65535, inclusive")
		}
	case *structpb.Value_StringValue:
		if rule := names.Port(kind.StringValue); rule != "" {
			v.add(path, kind.StringValue, "%s", rule)
		}
	default:
		v.add(path, "", "must be a port number or the name of a container port")
	}
}

func (v *violations) affinity(spec *objectv1.ServiceSpec) {
	v.oneOf("spec.sessionAffinity", spec.GetSessionAffinity(), affinityClientIP, affinityNone)
	switch spec.GetSessionAffinity() {
	case affinityNone:
		if spec.GetSessionAffinityConfig() != nil {
			v.add("spec.sessionAffinityConfig", "", "must not be set when session affinity is None")
		}
	case affinityClientIP:
		seconds := spec.GetSessionAffinityConfig().GetClientIp().GetTimeoutSeconds()
		if seconds < 1 || seconds > maxAffinity {
			v.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", strconv.Itoa(int(seconds)),
				"must be greater than 0 and at most %d", maxAffinity)
		}
	}
}

// usableIP checks an address that packets are to be sent to, and returns it.
func (v *violations) usableIP(path, text string) (netip.Addr, bool) {
	a, ok := v.ip(path, text)
	if !ok {
		return a, false
	}
	switch {
	case a.IsUnspecified():
		v.add(path, text, "may not be unspecified")
	case a.IsLoopback():
		v.add(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case a.IsLinkLocalUnicast():
		v.add(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case a.IsLinkLocalMulticast():
		v.add(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	default:
		return a, true
	}
	return a, false
}

func (v *violations) ip(path, text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil || a.Zone() != "":
		v.add(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
	case a.Is4In6():
		v.add(path, text, "must not be an IPv4-mapped IPv6 address")
	default:
		return a, true
	}
	return netip.Addr{}, false
}

// balancer checks the fields that belong to type LoadBalancer.
func (v *violations) balancer(o *objectv1.Service) {
	spec := o.GetSpec()
	onlyBalancer := "may only be used when `type` is 'LoadBalancer'"
	isBalancer := spec.GetType() == TypeLoadBalancer
	path := "spec.loadBalancerSourceRanges"
	ranges := sourceRanges(o)
	if len(spec.GetLoadBalancerSourceRanges()) == 0 && len(ranges) > 0 {
		path = "metadata.annotations[" + AnnotationSourceRanges + "]"
	}
	if len(ranges) > 0 && !isBalancer {
		v.add(path, "", "%s", onlyBalancer)
	}
	for i, text := range ranges {
		if _, err := netip.ParsePrefix(strings.TrimSpace(text)); err != nil {
			v.add(fmt.Sprintf("%s[%d]", path, i), text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
		}
	}
	if spec.AllocateLoadBalancerNodePorts != nil && !isBalancer {
		v.add("spec.allocateLoadBalancerNodePorts", strconv.FormatBool(*spec.AllocateLoadBalancerNodePorts), "%s", onlyBalancer)
	}
	if spec.LoadBalancerClass != nil {
		if !isBalancer {
			v.add("spec.loadBalancerClass", spec.GetLoadBalancerClass(), "%s", onlyBalancer)
		}
		v.labelKey("spec.loadBalancerClass", spec.GetLoadBalancerClass())
	}
	if text := spec.GetLoadBalancerIp(); text != "" && Balanced(o) {
		a, ok := v.usableIP("spec.loadBalancerIP", text)
		if ok && !slices.Contains(spec.GetIpFamilies(), string(FamilyOf(a))) {
			v.add("spec.loadBalancerIP", text, "must be of one of the Service's ipFamilies")
		}
	}
}

func (v *violations) trafficPolicies(o *objectv1.Service) {
	spec := o.GetSpec()
	switch {
	case externallyAccessible(o):
		v.oneOf("spec.externalTrafficPolicy", spec.GetExternalTrafficPolicy(), policyCluster, policyLocal)
	case spec.GetExternalTrafficPolicy() != "":
		v.add("spec.externalTrafficPolicy", spec.GetExternalTrafficPolicy(), "may only be set for externally-accessible services")
	}
	switch n := spec.GetHealthCheckNodePort(); {
	case n != 0 && !needsHealthCheck(o):
		v.add("spec.healthCheckNodePort", strconv.Itoa(int(n)),
			"may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
	case n != 0:
		v.portNumber("spec.healthCheckNodePort", n)
		if slices.Contains(nodePorts(o), n) {
			v.add("spec.healthCheckNodePort", strconv.Itoa(int(n)), "must not be the node port of a port")
		}
	}
	if spec.InternalTrafficPolicy != nil {
		v.oneOf("spec.internalTrafficPolicy", spec.GetInternalTrafficPolicy(), policyCluster, policyLocal)
	}
	if spec.TrafficDistribution != nil {
		v.oneOf("spec.trafficDistribution", spec.GetTrafficDistribution(), preferClose, preferSameNode, preferSameZone)
	}
}

// ValidateServiceStatus returns what is wrong with a new status.
func ValidateServiceStatus(o, old *objectv1.Service) []errs.Violation {
	var v violations
	ingress := o.GetStatus().GetLoadBalancer().GetIngress()
	if len(ingress) > 0 && typeOf(o) != TypeLoadBalancer {
		v.add("status.loadBalancer.ingress", "", "may only be used when `spec.type` is \"LoadBalancer\"")
		return v
	}
	if Balanced(o) && !sameIngress(ingress, old.GetStatus().GetLoadBalancer().GetIngress()) {
		v.add("status.loadBalancer.ingress", "",
			"is written by Podwire; leave it as it is, or set spec.loadBalancerClass for another implementation")
	}
	for i, in := range ingress {
		at := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
		if in.GetIp() != "" {
			v.ip(at+".ip", in.GetIp())
		}
		switch {
		case in.GetIp() == "" && in.IpMode != nil:
			v.add(at+".ipMode", in.GetIpMode(), "may not be specified when `ip` is not set")
		case in.IpMode != nil:
			v.oneOf(at+".ipMode", in.GetIpMode(), ipModeProxy, ipModeVIP)
		}
		if in.GetHostname() == "" {
			continue
		}
		if _, err := netip.ParseAddr(in.GetHostname()); err == nil {
			v.add(at+".hostname", in.GetHostname(), "must be a DNS name, not an IP address")
		} else if rule := names.DNSSubdomain(in.GetHostname()); rule != "" {
			v.add(at+".hostname", in.GetHostname(), "%s", rule)
		}
	}
	return v
}

func sameIngress(a, b []*objectv1.LoadBalancerIngress) bool {
	return slices.EqualFunc(a, b, func(x, y *objectv1.LoadBalancerIngress) bool {
		return x.GetIp() == y.GetIp() && x.GetHostname() == y.GetHostname() && x.GetIpMode() == y.GetIpMode() &&
			slices.EqualFunc(x.GetPorts(), y.GetPorts(), func(p, q *objectv1.PortStatus) bool {
				return p.GetPort() == q.GetPort() && p.GetProtocol() == q.GetProtocol() && p.GetError() == q.GetError()
			})
	})
}
