package zone

import (
	"fmt"
	"net/netip"
)

// Reason says which object gave an answer, or why there is none. It is put into words only where it is asked for.
type Reason struct {
	kind reasonKind
	ref  Ref
	// name is a part of the question: a label, a port, a type.
	name string
	addr netip.Addr
	// ready of all endpoints.
	ready, all int
}

type reasonKind uint8

const (
	reasonOutside reasonKind = iota
	reasonApex
	reasonInner
	reasonVersion
	reasonServer
	reasonNotSchema
	reasonNoNamespace
	reasonNoService
	reasonClusterIP
	reasonHeadless
	reasonNoneReady
	reasonNoFamily
	reasonNoRecord
	reasonExternal
	reasonEndpoint
	reasonNoEndpoint
	reasonPort
	reasonNoPort
	reasonPod
	reasonNoPod
	reasonNotAddress
	reasonAddress
	reasonNobody
	reasonEndless
)

// String is one sentence without a final stop.
func (r Reason) String() string {
	switch r.kind {
	case reasonOutside:
		return "the name is outside of the cluster's zones"
	case reasonApex:
		return "the top of the zone"
	case reasonInner:
		return "the name has no records of its own, only names below it"
	case reasonVersion:
		return "the version of the Kubernetes DNS specification"
	case reasonServer:
		return "the addresses of Service kube-system/kube-dns"
	case reasonNotSchema:
		return "the cluster's domain has no names of this form"
	case reasonNoNamespace:
		return fmt.Sprintf("Namespace %s does not exist", r.ref.Namespace)
	case reasonNobody:
		return fmt.Sprintf("%s is an address of the cluster that no Service and no ready endpoint has", r.addr)
	case reasonNotAddress:
		return "the name is not that of an address"
	case reasonPod:
		return fmt.Sprintf("Pod %s has the address %s", r.ref, r.addr)
	case reasonNoPod:
		return fmt.Sprintf("no Pod of namespace %s has the address %s", r.ref.Namespace, r.addr)
	case reasonEndless:
		return fmt.Sprintf("the aliases that begin at Service %s lead in a circle, or further than %d steps", r.ref, maxAliases)
	}
	return r.service()
}

// service is the sentence about a Service.
func (r Reason) service() string {
	switch r.kind {
	case reasonNoService:
		return fmt.Sprintf("Service %s does not exist", r.ref)
	case reasonClusterIP:
		return fmt.Sprintf("the ClusterIP of Service %s", r.ref)
	case reasonHeadless:
		return fmt.Sprintf("Service %s is headless: %d of its %d endpoints are ready", r.ref, r.ready, r.all)
	case reasonNoneReady:
		return fmt.Sprintf("Service %s is headless, and none of its %d endpoints is ready", r.ref, r.all)
	case reasonNoFamily:
		return fmt.Sprintf("Service %s has no address of this family", r.ref)
	case reasonNoRecord:
		return fmt.Sprintf("Service %s has no record of this type", r.ref)
	case reasonExternal:
		return fmt.Sprintf("Service %s is an ExternalName: %s", r.ref, r.name)
	case reasonEndpoint:
		return fmt.Sprintf("endpoint %s of Service %s", r.name, r.ref)
	case reasonNoEndpoint:
		return fmt.Sprintf("Service %s has no ready endpoint %s", r.ref, r.name)
	case reasonPort:
		return fmt.Sprintf("port %s of Service %s", r.name, r.ref)
	case reasonNoPort:
		return fmt.Sprintf("Service %s has no port %s with a ready endpoint", r.ref, r.name)
	case reasonAddress:
		return fmt.Sprintf("%s is an address of Service %s", r.addr, r.ref)
	}
	return ""
}
