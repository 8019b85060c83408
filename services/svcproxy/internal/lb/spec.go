package lb

import (
	"slices"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// typeOf is spec.type with its default.
func typeOf(o *objectv1.Service) string {
	if t := o.GetSpec().GetType(); t != "" {
		return t
	}
	return TypeClusterIP
}

func isHeadless(o *objectv1.Service) bool {
	ips := o.GetSpec().GetClusterIps()
	if len(ips) == 0 {
		return o.GetSpec().GetClusterIp() == headless
	}
	return len(ips) == 1 && ips[0] == headless
}

func needsClusterIP(o *objectv1.Service) bool { return typeOf(o) != TypeExternalName }

func needsNodePorts(o *objectv1.Service) bool {
	switch typeOf(o) {
	case TypeNodePort:
		return true
	case TypeLoadBalancer:
		asked := o.GetSpec().AllocateLoadBalancerNodePorts
		return asked == nil || *asked
	}
	return false
}

// mayHaveNodePorts says whether node ports that are set are allowed, be they needed or not.
func mayHaveNodePorts(o *objectv1.Service) bool {
	return typeOf(o) == TypeNodePort || typeOf(o) == TypeLoadBalancer
}

func needsHealthCheck(o *objectv1.Service) bool {
	return typeOf(o) == TypeLoadBalancer && o.GetSpec().GetExternalTrafficPolicy() == policyLocal
}

// externallyAccessible says whether externalTrafficPolicy has a meaning.
func externallyAccessible(o *objectv1.Service) bool {
	switch typeOf(o) {
	case TypeNodePort, TypeLoadBalancer:
		return true
	case TypeClusterIP:
		return len(o.GetSpec().GetExternalIps()) > 0
	}
	return false
}

// Balanced says whether the Service's load balancer is ours.
func Balanced(o *objectv1.Service) bool {
	if typeOf(o) != TypeLoadBalancer {
		return false
	}
	class := o.GetSpec().LoadBalancerClass
	return class == nil || *class == BalancerClass
}

// nodePorts are the node ports that are set, ascending, each once.
func nodePorts(o *objectv1.Service) []int32 {
	var out []int32
	for _, p := range o.GetSpec().GetPorts() {
		if p.GetNodePort() != 0 {
			out = append(out, p.GetNodePort())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func ptr[T any](v T) *T { return &v }

func equalPtr[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
