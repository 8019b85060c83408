package route

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Controller is the value of spec.controller of the IngressClasses that Podwire serves.
const Controller = "podwire.dev/ingress"

// Annotations of Kubernetes that concern an Ingress' class.
const (
	// AnnotationClass named the class before spec.ingressClassName existed.
	AnnotationClass = "kubernetes.io/ingress.class"
	// AnnotationDefaultClass marks the class of Ingresses that name none.
	AnnotationDefaultClass = "ingressclass.kubernetes.io/is-default-class"
)

// labelServiceName says which Service an EndpointSlice belongs to.
const labelServiceName = "kubernetes.io/service-name"

// Ref names a namespaced object.
type Ref struct{ Namespace, Name string }

// String is <namespace>/<name>.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Compare orders by namespace, then name.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(cmp.Compare(r.Namespace, o.Namespace), cmp.Compare(r.Name, o.Name))
}

// Class is an IngressClass.
type Class struct {
	Name, Controller string
	Default          bool
}

// ParseClass reads a stored IngressClass.
func ParseClass(o *objectv1.IngressClass) Class {
	return Class{
		Name: o.GetMetadata().GetName(), Controller: o.GetSpec().GetController(),
		Default: o.GetMetadata().GetAnnotations()[AnnotationDefaultClass] == "true",
	}
}

// PathType is how a rule's path is compared.
type PathType string

// The path types.
const (
	Exact                  PathType = "Exact"
	Prefix                 PathType = "Prefix"
	ImplementationSpecific PathType = "ImplementationSpecific"
)

// Target is the port of a Service that a rule names.
type Target struct {
	Service string
	// PortName or PortNumber names the port.
	PortName   string
	PortNumber int32
	// Resource is set for a backend that is no Service: its kind and name.
	Resource string
}

// port is how the Ingress names the port.
func (t Target) port() string {
	if t.PortName != "" {
		return t.PortName
	}
	return strconv.Itoa(int(t.PortNumber))
}

func parseTarget(b *objectv1.IngressBackend) Target {
	if r := b.GetResource(); r != nil {
		return Target{Resource: r.GetKind() + "/" + r.GetName()}
	}
	s := b.GetService()
	return Target{Service: s.GetName(), PortName: s.GetPort().GetName(), PortNumber: s.GetPort().GetNumber()}
}

// Rule is one path of one rule of an Ingress.
type Rule struct {
	// Field is its path in the object: spec.rules[0].http.paths[1].
	Field string
	// Host is in lower case; empty for every host.
	Host   string
	Path   string
	Type   PathType
	Target Target
}

// TLS is one entry of spec.tls.
type TLS struct {
	Field string
	// Hosts are in lower case; none means every host that no other entry names.
	Hosts []string
	// Secret is empty for the server's own certificate.
	Secret string
}

// Ingress is an Ingress.
type Ingress struct {
	Ref
	Created time.Time
	// Class is spec.ingressClassName, or the annotation that came before it; empty where neither is set.
	Class   string
	Default *Target
	TLS     []TLS
	Rules   []Rule
	Options Options
}

// ParseIngress reads a stored Ingress.
func ParseIngress(o *objectv1.Ingress) Ingress {
	meta, spec := o.GetMetadata(), o.GetSpec()
	in := Ingress{
		Ref: Ref{meta.GetNamespace(), meta.GetName()}, Class: spec.GetIngressClassName(),
		Options: parseOptions(meta.GetAnnotations()),
	}
	if at := meta.GetCreationTimestamp(); at != nil {
		in.Created = at.AsTime()
	}
	if spec.IngressClassName == nil {
		in.Class = meta.GetAnnotations()[AnnotationClass]
	}
	if b := spec.GetDefaultBackend(); b != nil {
		t := parseTarget(b)
		in.Default = &t
	}
	for i, entry := range spec.GetTls() {
		t := TLS{Field: "spec.tls[" + strconv.Itoa(i) + "]", Secret: entry.GetSecretName()}
		for _, h := range entry.GetHosts() {
			t.Hosts = append(t.Hosts, strings.ToLower(h))
		}
		in.TLS = append(in.TLS, t)
	}
	for i, rule := range spec.GetRules() {
		field := "spec.rules[" + strconv.Itoa(i) + "]"
		for j, p := range rule.GetHttp().GetPaths() {
			in.Rules = append(in.Rules, Rule{
				Field: field + ".http.paths[" + strconv.Itoa(j) + "]", Host: strings.ToLower(rule.GetHost()),
				Path: p.GetPath(), Type: PathType(p.GetPathType()), Target: parseTarget(p.GetBackend()),
			})
		}
	}
	return in
}

// older orders Ingresses by who wins a conflict: the oldest, then by name.
func older(a, b *Ingress) int { return cmp.Or(a.Created.Compare(b.Created), a.Ref.Compare(b.Ref)) }

// Service is what routes need to know of a Service.
type Service struct {
	Ref
	ExternalName bool
	// IPv6First says which family is preferred where endpoints have both.
	IPv6First bool
	Ports     []ServicePort
}

// ServicePort is a TCP port of a Service.
type ServicePort struct {
	Name        string
	Number      int32
	AppProtocol string
}

// ParseService reads a stored Service.
func ParseService(o *objectv1.Service) Service {
	s := Service{
		Ref:          Ref{o.GetMetadata().GetNamespace(), o.GetMetadata().GetName()},
		ExternalName: o.GetSpec().GetType() == "ExternalName",
	}
	if families := o.GetSpec().GetIpFamilies(); len(families) > 0 {
		s.IPv6First = families[0] == "IPv6"
	}
	for _, p := range o.GetSpec().GetPorts() {
		if p.Protocol == nil || p.GetProtocol() == "TCP" {
			s.Ports = append(s.Ports, ServicePort{p.GetName(), p.GetPort(), p.GetAppProtocol()})
		}
	}
	return s
}

// Slice is an EndpointSlice.
type Slice struct {
	Ref
	Service   string
	Ports     []SlicePort
	Endpoints []Endpoint
}

// SlicePort is a TCP port of every endpoint of a slice.
type SlicePort struct {
	Name   string
	Number uint16
}

// Endpoint is one backend. Absent conditions are resolved as Kubernetes resolves them.
type Endpoint struct {
	Address netip.Addr
	Ready   bool
	// Draining says that it terminates and still serves (KEP-1669).
	Draining bool
}

// ParseSlice reads a stored EndpointSlice. Of an endpoint's addresses the first counts, as for every reader of slices.
func ParseSlice(o *objectv1.EndpointSlice) Slice {
	meta := o.GetMetadata()
	s := Slice{Ref: Ref{meta.GetNamespace(), meta.GetName()}, Service: meta.GetLabels()[labelServiceName]}
	for _, p := range o.GetPorts() {
		if port := p.GetPort(); (p.Protocol == nil || p.GetProtocol() == "TCP") && port > 0 && port < 1<<16 {
			s.Ports = append(s.Ports, SlicePort{p.GetName(), uint16(port)})
		}
	}
	for _, e := range o.GetEndpoints() {
		if len(e.GetAddresses()) == 0 {
			continue
		}
		a, err := netip.ParseAddr(e.GetAddresses()[0])
		if err != nil {
			continue // a slice of names, which only DNS serves
		}
		c := e.GetConditions()
		ready := c == nil || c.Ready == nil || *c.Ready
		serving := ready
		if c != nil && c.Serving != nil {
			serving = *c.Serving
		}
		s.Endpoints = append(s.Endpoints, Endpoint{Address: a, Ready: ready, Draining: !ready && serving && c.GetTerminating()})
	}
	return s
}

// Secret is what is known of a Secret; its content stays with who read it.
type Secret struct {
	Ref
	// Problem says why it cannot serve as a certificate; empty where it can.
	Problem string
}

// sortedIngresses are those of a map, the oldest first.
func sortedIngresses(of map[Ref]*Ingress) []*Ingress {
	out := make([]*Ingress, 0, len(of))
	for _, in := range of {
		out = append(out, in)
	}
	slices.SortFunc(out, older)
	return out
}
