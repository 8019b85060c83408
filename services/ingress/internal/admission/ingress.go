package admission

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// AnnotationClass is the annotation that named the class of an Ingress before spec.ingressClassName did.
const AnnotationClass = "kubernetes.io/ingress.class"

// Path types.
const (
	PathExact                  = "Exact"
	PathPrefix                 = "Prefix"
	PathImplementationSpecific = "ImplementationSpecific"
)

// CarryIngress keeps the class that was filled in at creation: an apply of the same manifest must not take it away.
func CarryIngress(o, old *objectv1.Ingress) {
	if old == nil || old.GetSpec().IngressClassName == nil || o.GetSpec().GetIngressClassName() != "" {
		return
	}
	if _, named := o.GetMetadata().GetAnnotations()[AnnotationClass]; named {
		return
	}
	if o.Spec == nil {
		o.Spec = &objectv1.IngressSpec{}
	}
	if o.Spec.IngressClassName == nil {
		class := old.GetSpec().GetIngressClassName()
		o.Spec.IngressClassName = &class
	}
}

// DefaultIngress gives a new Ingress the status that says that it has no address yet.
func DefaultIngress(o, old *objectv1.Ingress) {
	if o.Spec == nil {
		o.Spec = &objectv1.IngressSpec{}
	}
	if old == nil {
		o.Status = &objectv1.IngressStatus{LoadBalancer: &objectv1.IngressLoadBalancerStatus{}}
	}
}

// WantsClass says whether an Ingress that is being created names no class, in neither of the two ways.
func WantsClass(o *objectv1.Ingress) bool {
	_, named := o.GetMetadata().GetAnnotations()[AnnotationClass]
	return !named && o.GetSpec().IngressClassName == nil
}

// DefaultClass is the one class that is marked as the default; nil where none is. Errors: Denied where several are, as
// Kubernetes' documentation has it.
func DefaultClass(classes []*objectv1.IngressClass) (*objectv1.IngressClass, error) {
	var marked []*objectv1.IngressClass
	var list []string
	for _, c := range classes {
		if c.GetMetadata().GetAnnotations()[AnnotationDefaultClass] == "true" {
			marked = append(marked, c)
			list = append(list, c.GetMetadata().GetName())
		}
	}
	slices.Sort(list)
	switch len(marked) {
	case 0:
		return nil, nil
	case 1:
		return marked[0], nil
	default:
		return nil, errs.New(errs.Denied, "%d default IngressClasses were found, only 1 allowed: %s; name one in spec.ingressClassName, or take the annotation %s from the others",
			len(marked), strings.Join(list, ", "), AnnotationDefaultClass)
	}
}

// ValidateIngress returns the rules that an Ingress breaks. old is nil when it is being created.
func ValidateIngress(o, old *objectv1.Ingress) []errs.Violation {
	var v violations
	spec := o.GetSpec()
	if spec.GetDefaultBackend() == nil && len(spec.GetRules()) == 0 {
		v.add("spec", "", "either `defaultBackend` or `rules` must be specified")
	}
	if spec.GetDefaultBackend() != nil {
		v.backend("spec.defaultBackend", spec.GetDefaultBackend())
	}
	for i, rule := range spec.GetRules() {
		v.rule(fmt.Sprintf("spec.rules[%d]", i), rule)
	}
	for i, t := range spec.GetTls() {
		at := fmt.Sprintf("spec.tls[%d]", i)
		for j, host := range t.GetHosts() {
			v.host(fmt.Sprintf("%s.hosts[%d]", at, j), host)
		}
		if t.GetSecretName() != "" {
			v.named(at+".secretName", t.GetSecretName(), names.DNSSubdomain)
		}
	}
	if spec.IngressClassName != nil {
		v.named("spec.ingressClassName", spec.GetIngressClassName(), names.DNSSubdomain)
	}
	class, named := o.GetMetadata().GetAnnotations()[AnnotationClass]
	if old == nil && named && spec.IngressClassName != nil && class != spec.GetIngressClassName() {
		v.add("metadata.annotations["+AnnotationClass+"]", class, "must match `ingressClassName` when both are specified")
	}
	return v
}

func (v *violations) rule(at string, rule *objectv1.IngressRule) {
	if host := rule.GetHost(); host != "" {
		if isAddress(host) {
			v.add(at+".host", host, "must be a DNS name, not an IP address")
		} else {
			v.host(at+".host", host)
		}
	}
	if rule.GetHttp() == nil {
		return
	}
	if len(rule.GetHttp().GetPaths()) == 0 {
		v.add(at+".http.paths", "", "is required")
	}
	for i, p := range rule.GetHttp().GetPaths() {
		v.path(fmt.Sprintf("%s.http.paths[%d]", at, i), p)
	}
}

// path is the rule of one path. Without a pathType nothing more can be said of it.
func (v *violations) path(at string, p *objectv1.HTTPIngressPath) {
	if p.PathType == nil {
		v.add(at+".pathType", "", "pathType must be specified")
		return
	}
	path := p.GetPath()
	absolute := strings.HasPrefix(path, "/")
	switch p.GetPathType() {
	case PathExact, PathPrefix:
		if !absolute {
			v.add(at+".path", path, "must be an absolute path")
		}
		for _, sequence := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(path, sequence) {
				v.add(at+".path", path, "must not contain '%s'", sequence)
			}
		}
		for _, suffix := range []string{"/..", "/."} {
			if strings.HasSuffix(path, suffix) {
				v.add(at+".path", path, "cannot end with '%s'", suffix)
			}
		}
	case PathImplementationSpecific:
		if path != "" && !absolute {
			v.add(at+".path", path, "must be an absolute path")
		}
	default:
		v.add(at+".pathType", p.GetPathType(), "must be one of %s, %s, %s", PathExact, PathImplementationSpecific, PathPrefix)
	}
	v.backend(at+".backend", p.GetBackend())
}

func (v *violations) backend(at string, b *objectv1.IngressBackend) {
	switch {
	case b.GetResource() != nil && b.GetService() != nil:
		v.add(at, "", "cannot set both resource and service backends")
	case b.GetResource() != nil:
		v.reference(at+".resource", b.GetResource())
	case b.GetService() != nil:
		v.service(at, b.GetService())
	default:
		v.add(at, "", "resource or service backend is required")
	}
}

func (v *violations) reference(at string, r *objectv1.TypedLocalObjectReference) {
	if r.ApiGroup != nil {
		v.named(at+".apiGroup", r.GetApiGroup(), names.DNSSubdomain)
	}
	v.segment(at+".kind", r.GetKind())
	v.segment(at+".name", r.GetName())
}

func (v *violations) service(at string, s *objectv1.IngressServiceBackend) {
	if s.GetName() == "" {
		v.add(at+".service.name", "", "is required")
	} else {
		v.named(at+".service.name", s.GetName(), names.DNS1035Label)
	}
	name, number := s.GetPort().GetName(), s.GetPort().GetNumber()
	switch {
	case name != "" && number != 0:
		v.add(at, "", "cannot set both port name & port number")
	case name != "":
		v.named(at+".service.port.name", name, names.Port)
	case number < 0 || number > 65535:
		v.add(at+".service.port.number", strconv.Itoa(int(number)), "must be between 1 and 65535, inclusive")
	case number == 0:
		v.add(at, "", "port name or number is required")
	}
}

// ValidateIngressStatus returns the rules that a new status breaks.
func ValidateIngressStatus(o, _ *objectv1.Ingress) []errs.Violation {
	var v violations
	for i, door := range o.GetStatus().GetLoadBalancer().GetIngress() {
		at := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
		if ip := door.GetIp(); ip != "" {
			if addr, err := netip.ParseAddr(ip); err != nil || addr.Zone() != "" || addr.Is4In6() {
				v.add(at+".ip", ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
			}
		}
		if host := door.GetHostname(); host != "" {
			if isAddress(host) {
				v.add(at+".hostname", host, "must be a DNS name, not an IP address")
			} else {
				v.named(at+".hostname", host, names.DNSSubdomain)
			}
		}
		for j, p := range door.GetPorts() {
			if n := p.GetPort(); n < 1 || n > 65535 {
				v.add(fmt.Sprintf("%s.ports[%d].port", at, j), strconv.Itoa(int(n)), "must be between 1 and 65535, inclusive")
			}
		}
	}
	return v
}
