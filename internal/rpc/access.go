package rpc

import (
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

// Effect is what a call does, as far as clients and traces are concerned.
type Effect int8

const (
	// Read changes nothing: clients repeat it when a replica is unavailable.
	Read Effect = iota + 1
	// Write changes something. It is never repeated for the caller, who alone knows
	// whether twice is once, and it leaves a hop in the ring of each side.
	Write
	// Stream stays open; its handler's context ends when the server stops. It is
	// neither repeated nor traced as a whole: what it carries has traces of its own.
	Stream
	// Probe asks after the process itself, often; it is not traced.
	Probe
)

// Who is a set of callers: Anyone, or the path of one identity, or /kind/*.
type Who string

// The sets of callers.
const (
	// Anyone includes clients without a certificate.
	Anyone Who = "anyone"
	// Authenticated is every identity.
	Authenticated Who = "/*"
	Users         Who = "/user/*"
	Nodes         Who = "/node/*"
	Services      Who = "/service/*"
	Cluster       Who = "/service/cluster"
	IPAM          Who = "/service/ipam"
	Svcproxy      Who = "/service/svcproxy"
	Policy        Who = "/service/policy"
	DNS           Who = "/service/dns"
	Ingress       Who = "/service/ingress"
)

func (w Who) includes(id Identity) bool {
	switch w {
	case Anyone:
		return true
	case Authenticated:
		return id.Kind != pki.KindAnonymous
	}
	if kind, ok := strings.CutSuffix(string(w), "*"); ok {
		return strings.HasPrefix(id.String(), kind)
	}
	return string(w) == id.String()
}

// Rule says who may make a call, and what the call does.
type Rule struct {
	Effect Effect
	// Allow lists who may; empty is nobody.
	Allow []Who
}

// Access maps the full method, /package.Service/Method, to its rule. A method that is
// not in it may be called by nobody.
type Access map[string]Rule

// Check is Denied unless id may call method.
func (a Access) Check(id Identity, method string) error {
	rule, known := a[method]
	if known {
		for _, who := range rule.Allow {
			if who.includes(id) {
				return nil
			}
		}
	}
	if id == pki.Anonymous {
		return errs.New(errs.Denied, "%s: needs a client certificate", method)
	}
	return errs.New(errs.Denied, "%s: %s may not call it", method, id)
}

// add puts the methods of one service into a.
func (a Access) add(service string, effect Effect, methods string, allow ...Who) {
	for method := range strings.FieldsSeq(methods) {
		a["/"+service+"/"+method] = Rule{effect, allow}
	}
}

// Table is who may call what: the whole of it. Users are people and their tools, who
// may do everything that is meant for people. Which object a node may touch is decided
// by the api that owns the object (RequireNode).
func Table() Access {
	a := Access{}

	a.add("grpc.health.v1.Health", Probe, "Check List Watch", Authenticated)
	a.add("grpc.reflection.v1.ServerReflection", Stream, "ServerReflectionInfo", Authenticated)
	a.add("grpc.reflection.v1alpha.ServerReflection", Stream, "ServerReflectionInfo", Authenticated)
	a.add("podwire.trace.v1.TraceService", Read, "GetHops", Users, Services)
	a.add("podwire.push.v1.PushService", Stream, "Subscribe", Nodes, DNS, Ingress) // members: ipam's only

	a.add("podwire.cluster.v1.EnrolmentService", Write, "Enroll", Anyone)
	a.add("podwire.cluster.v1.EnrolmentService", Write, "CreateToken RevokeToken", Users)
	a.add("podwire.cluster.v1.LivenessService", Stream, "Heartbeat", Nodes)
	a.add("podwire.cluster.v1.MemberService", Stream, "Attend", DNS, Ingress) // a service: its own replicas
	a.add("podwire.cluster.v1.DirectoryService", Read, "ListProcesses", Users, Services)
	a.add("podwire.cluster.v1.ReceiptService", Stream, "Wait", Users)
	a.add("podwire.cluster.v1.NamespaceService", Read, "Get List", Users, Services)
	a.add("podwire.cluster.v1.NamespaceService", Stream, "Watch", Users, Services)
	a.add("podwire.cluster.v1.NamespaceService", Write, "Apply Delete", Users)
	a.add("podwire.cluster.v1.NamespaceService", Write, "UpdateStatus", Users)
	a.add("podwire.cluster.v1.NodeService", Read, "Get", Users, Services, Nodes)
	a.add("podwire.cluster.v1.NodeService", Read, "List", Users, Services)
	a.add("podwire.cluster.v1.NodeService", Stream, "Watch", Users, Services)
	a.add("podwire.cluster.v1.NodeService", Write, "Apply UpdateStatus", Users, Nodes) // a node: its own
	a.add("podwire.cluster.v1.NodeService", Write, "Delete", Users)
	a.add("podwire.cluster.v1.PodService", Read, "Get", Users, Services, Nodes) // a node: those assigned to it
	a.add("podwire.cluster.v1.PodService", Read, "List", Users, Services)
	a.add("podwire.cluster.v1.PodService", Stream, "Watch", Users, Services)
	a.add("podwire.cluster.v1.PodService", Write, "Apply Delete UpdateStatus", Users, Nodes) // a node: its own

	a.add("podwire.ipam.v1.AllocationService", Write, "LeaseBlock", Nodes, DNS, Ingress)          // a node: its own; a service: its own replicas
	a.add("podwire.ipam.v1.AllocationService", Write, "ReleaseBlock", Nodes, DNS, Ingress, Users) // as LeaseBlock
	a.add("podwire.ipam.v1.AllocationService", Write, "Allocate Release", Svcproxy, Users)
	a.add("podwire.ipam.v1.AllocationService", Read, "ListPools", Users, Services)
	a.add("podwire.ipam.v1.AddressBlockService", Read, "Get List", Users, Services)
	a.add("podwire.ipam.v1.AddressBlockService", Stream, "Watch", Users, Services)
	a.add("podwire.ipam.v1.AddressClaimService", Read, "Get List", Users, Services)
	a.add("podwire.ipam.v1.AddressClaimService", Stream, "Watch", Users, Services)

	a.add("podwire.svcproxy.v1.ServiceService", Read, "Get List", Users, Services)
	a.add("podwire.svcproxy.v1.ServiceService", Stream, "Watch", Users, Services)
	a.add("podwire.svcproxy.v1.ServiceService", Write, "Apply Delete UpdateStatus", Users)
	a.add("podwire.svcproxy.v1.EndpointSliceService", Read, "Get List", Users, Services)
	a.add("podwire.svcproxy.v1.EndpointSliceService", Stream, "Watch", Users, Services)
	a.add("podwire.svcproxy.v1.EndpointSliceService", Write, "Apply Delete", Users)
	a.add("podwire.svcproxy.v1.LookupService", Read, "Lookup", Users)

	a.add("podwire.policy.v1.NetworkPolicyService", Read, "Get List", Users, Services)
	a.add("podwire.policy.v1.NetworkPolicyService", Stream, "Watch", Users, Services)
	a.add("podwire.policy.v1.NetworkPolicyService", Write, "Apply Delete", Users)
	a.add("podwire.policy.v1.VerdictService", Read, "Explain", Users)

	a.add("podwire.dns.v1.ResolveService", Read, "Resolve", Users)

	a.add("podwire.ingress.v1.IngressService", Read, "Get List", Users, Services)
	a.add("podwire.ingress.v1.IngressService", Stream, "Watch", Users, Services)
	a.add("podwire.ingress.v1.IngressService", Write, "Apply Delete UpdateStatus", Users)
	a.add("podwire.ingress.v1.IngressClassService", Read, "Get List", Users, Services)
	a.add("podwire.ingress.v1.IngressClassService", Stream, "Watch", Users, Services)
	a.add("podwire.ingress.v1.IngressClassService", Write, "Apply Delete", Users)
	a.add("podwire.ingress.v1.SecretService", Read, "Get List", Users) // no service: only ingress itself reads Secrets
	a.add("podwire.ingress.v1.SecretService", Stream, "Watch", Users)
	a.add("podwire.ingress.v1.SecretService", Write, "Apply Delete", Users)
	a.add("podwire.ingress.v1.RouteService", Read, "Match", Users)

	a.add("podwire.nodeagent.v1.AgentService", Stream, "Exec Logs", Users)
	a.add("podwire.nodeagent.v1.AgentService", Read, "Explain Status", Users)
	a.add("podwire.nodeagent.v1.AgentService", Write, "Accept", Users)
	return a
}
