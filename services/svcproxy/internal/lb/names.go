package lb

import (
	"net/netip"
	"strings"
)

// Labels and annotations that Kubernetes gives a meaning.
const (
	// LabelServiceName names the Service of an EndpointSlice.
	LabelServiceName = "kubernetes.io/service-name"
	// LabelManagedBy says who writes an EndpointSlice.
	LabelManagedBy = "endpointslice.kubernetes.io/managed-by"
	// LabelHeadless marks the slices of a headless Service.
	LabelHeadless = "service.kubernetes.io/headless"
	// LabelProxyName on a Service leaves it to another proxy.
	LabelProxyName = "service.kubernetes.io/service-proxy-name"
	// LabelZone is the zone of a Node.
	LabelZone = "topology.kubernetes.io/zone"
	// LabelExcludeBalancers keeps load balancer addresses away from a Node.
	LabelExcludeBalancers = "node.kubernetes.io/exclude-from-external-load-balancers"
	// AnnotationSourceRanges is the older form of spec.loadBalancerSourceRanges.
	AnnotationSourceRanges = "service.beta.kubernetes.io/load-balancer-source-ranges"

	// ManagedBy is the value of LabelManagedBy on the slices that this service derives, the one that Kubernetes' own
	// controller uses.
	ManagedBy = "endpointslice-controller.k8s.io"
)

// Annotations of a Service that svcproxy writes; what a caller writes there is replaced.
const (
	// AnnotationAnnouncer is the Node that announces the load balancer addresses.
	AnnotationAnnouncer = "podwire.dev/announcer"
	// AnnotationEpoch is the store revision at which the announcer was chosen: it rises with each move, also when the
	// address passes from one Service to another.
	AnnotationEpoch = "podwire.dev/announcer-epoch"
)

// BalancerClass is the spec.loadBalancerClass that we implement, besides an absent one.
const BalancerClass = "podwire.dev/announcer"

// Kubernetes' values of enumerations.
const (
	TypeClusterIP    = "ClusterIP"
	TypeNodePort     = "NodePort"
	TypeLoadBalancer = "LoadBalancer"
	TypeExternalName = "ExternalName"

	policyCluster = "Cluster"
	policyLocal   = "Local"

	affinityNone     = "None"
	affinityClientIP = "ClientIP"

	singleStack       = "SingleStack"
	preferDualStack   = "PreferDualStack"
	requireDualStack  = "RequireDualStack"
	preferClose       = "PreferClose"
	preferSameZone    = "PreferSameZone"
	preferSameNode    = "PreferSameNode"
	ipModeVIP         = "VIP"
	ipModeProxy       = "Proxy"
	addressFQDN       = "FQDN"
	headless          = "None"
	defaultAffinity   = 10800
	maxAffinity       = 86400
	maxSliceEndpoints = 100
	maxClusterIPs     = 2
	maxLabel          = 63
)

// Family is an address family, as Service.spec.ipFamilies and EndpointSlice.addressType spell it.
type Family string

// The families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

func (f Family) other() Family {
	if f == IPv4 {
		return IPv6
	}
	return IPv4
}

func (f Family) valid() bool { return f == IPv4 || f == IPv6 }

// number is 4 or 6, as nodestate counts families.
func (f Family) number() uint8 {
	if f == IPv4 {
		return 4
	}
	return 6
}

// Families are those that the cluster has Service addresses of; the first is the primary one.
type Families []Family

func (f Families) has(x Family) bool {
	for _, have := range f {
		if have == x {
			return true
		}
	}
	return false
}

// Ref names an object.
type Ref struct{ Namespace, Name string }

// String is <namespace>/<name>.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Compare orders by namespace, then name.
func (r Ref) Compare(o Ref) int {
	if c := strings.Compare(r.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(r.Name, o.Name)
}
